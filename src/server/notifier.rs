//! The notifier: drops from the kernel's cache what newer heads have changed, then lets `head/at` move.
//!
//! Invariant: it serves no request and holds no lock while the kernel works, for the kernel waits there for
//! READs that are under way (rule 17). `shown` becomes t only when all of t has been dropped (rule 18).

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Delta, KernelCache, Server, Stats};

/// Drops what is queued until the server stops.
pub(super) fn run(server: &Arc<Server>) {
    while let Some(delta) = next(server) {
        let at = delta.at;
        // No kernel cache is set before a mount exists: then nothing is cached.
        if let Some(kernel) = server.kernel_cache() {
            invalidate(server, kernel.as_ref(), delta);
        }
        // Rule 18: all invalidations of `at` returned, and of everything before it, for there is one thread.
        // Only now does `head/at` follow, and only then are waiters woken.
        let guard = server.shown_lock.lock().unwrap_or_else(PoisonError::into_inner);
        server.shown.store(at.raw(), Ordering::SeqCst);
        drop(guard);
        server.shown_moved.notify_all();
        server.start_setups();
        server.history.forget(at, server.options.clock.now_unix_ns());
    }
}

fn next(server: &Server) -> Option<Delta> {
    let queue = server.queue.lock().unwrap_or_else(PoisonError::into_inner);
    let idle = |queue: &mut super::Queue| queue.pending.is_none() && !queue.stopping;
    let mut queue = server.queue_moved.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
    if queue.stopping {
        return None;
    }
    queue.pending.take()
}

/// Data first, then attributes, then names: who sees a new size or a new name sees no old bytes under it.
fn invalidate(server: &Arc<Server>, kernel: &dyn KernelCache, delta: Delta) {
    let stats = &server.stats;
    let files: Vec<_> = delta.files.keys().copied().collect();
    for (file, ranges) in delta.files {
        // All changed blocks, tracked or not (rule 2). A READ of older bytes that is under way holds its pages
        // locked since before it took its head; this call waits for it, and drops what it filled in.
        for range in ranges.into_ranges() {
            kernel.invalidate_data(file, range.start, range.end - range.start);
            Stats::add(&stats.invalidated_ranges, 1);
        }
    }
    server.pin_shrunk(delta.at, &delta.shrunk);
    Stats::add(&stats.invalidated_attributes, (files.len() + delta.dirs.len()) as u64);
    for file in files {
        kernel.invalidate_attributes(file);
    }
    Stats::add(&stats.invalidated_entries, delta.entries.len() as u64);
    for (dir, name) in &delta.entries {
        kernel.invalidate_entry(*dir, name);
    }
    for dir in delta.dirs {
        kernel.invalidate_directory(dir);
    }
    if delta.tags {
        kernel.invalidate_root();
    }
}
