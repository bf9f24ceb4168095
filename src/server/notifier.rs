//! The notifier: drops from the kernel's cache what newer heads have changed, then lets `head/at` move.
//!
//! Invariant: it serves no request and holds no lock while the kernel works, for the kernel waits there for
//! READs that are under way (rule 17). `shown` becomes t only when all of t has been dropped (rule 18).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use revfs_protocol::{FileId, Tid};

use super::parked::NO_THREAD;
use super::tracking::ANSWER_SETTLES;
use super::{BusyThread, Delta, KernelCache, Server, Stats};
use crate::env;

/// After this a thread that was woken waits for a processor, if it does not run.
const WAKE_TIME: Duration = Duration::from_micros(100);
/// Between two looks whether any thread waits for one; what a thread that runs needs to map a page is less.
const PAUSE_STEP: Duration = Duration::from_micros(50);
/// The same on a busy machine, where each look is at all threads of the clients.
const BUSY_STEP: Duration = Duration::from_millis(2);
/// So long after an answer a thread that waits in the kernel may still wait for the lock under which it maps the page; later
/// it waits for another READ.
const LOCK_SETTLES: Duration = Duration::from_millis(200);

/// Drops what is queued until the server stops.
pub(super) fn run(server: &Arc<Server>) {
    // A commit waits for its pauses.
    env::wake_precisely();
    while let Some((published, delta)) = next(server) {
        let at = delta.at;
        let tids = delta.tids.clone();
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
        server.tell_tids(&tids);
        let took = server.options.clock.monotonic().saturating_sub(published);
        server.stats.times.show.observe(took);
        server.start_setups();
        let oldest = server.links.oldest_at_all().map_or(at, |oldest| oldest.min(at));
        server.history.forget(at, oldest, server.options.clock.now_unix_ns());
    }
}

fn next(server: &Server) -> Option<(Duration, Delta)> {
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
    let changed: Vec<_> =
        delta.files.into_iter().map(|(file, ranges)| (file, ranges.into_ranges())).collect();
    settle(server, delta.at, &changed);
    server.preserve(kernel, &changed);
    for (file, ranges) in changed {
        server.wait_for_stores(file, &ranges);
        // All changed blocks, tracked or not (rule 2). A READ of older bytes that is under way holds its pages
        // locked since before it took its head; this call waits for it, and drops what it filled in.
        for range in ranges {
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
    for file in delta.became {
        kernel.invalidate_number(file);
    }
    for dir in delta.dirs {
        kernel.invalidate_directory(dir);
    }
    if delta.tags {
        kernel.invalidate_root();
    }
}

/// Waits until no page fault of a client with a watch can be caught between the answer of its READ and the page
/// (rule 24).
///
/// After the answer the kernel tries the fault again, now under the lock that the client needs to map anything. If the
/// page is gone by then, the fault READs once more, and that READ must not need a pin. So whoever may wait for a READ
/// that is under way is pinned before the page is dropped, and who was answered a moment ago gets the time to map it.
/// Every READ that comes later is answered from a head that is published already, and asks for its pins itself.
fn settle(server: &Arc<Server>, at: Tid, changed: &[(FileId, Vec<Range<u64>>)]) {
    let wait = server.parked.begin(NO_THREAD);
    let behind = |file: &FileId| server.links.oldest_at(*file).is_some_and(|oldest| oldest < at);
    let watched: Vec<_> = changed.iter().filter(|(file, _)| behind(file)).collect();
    for (file, ranges) in &watched {
        for span in server.tracking.under_way(*file, ranges) {
            server.pin_behind(*file, at, span, wait);
        }
    }
    // Until everybody has mapped it, or is dead.
    server.parked.settle_and_wait(wait);
    // Asked now: what was answered meanwhile, maybe all at once as somebody died, counts too.
    let mut answered = None;
    let mut clients = BTreeSet::new();
    for (file, ranges) in &watched {
        let of_file = server.tracking.answered(*file, ranges);
        if of_file.is_some() {
            clients.extend(server.links.behind(*file, at).iter().map(|link| link.process.pid()));
            answered = answered.max(of_file);
        }
    }
    if let Some(answered) = answered {
        pause(server, &clients, answered);
    }
}

/// Waits until threads that were woken by an answer at `answered` have mapped its pages. They need microseconds once they
/// run: so until nothing on this machine waits for a processor, or until all threads of `clients` that did have had one, or
/// until nobody is believed to have waited so long.
fn pause(server: &Arc<Server>, clients: &BTreeSet<u32>, answered: Duration) {
    let Ok(processes) = server.processes() else { return };
    let busy = |past: Duration| -> BTreeMap<u32, BusyThread> {
        let threads = clients.iter().flat_map(|pid| processes.busy_threads(*pid));
        let counts = |thread: &BusyThread| thread.is_runnable || past < LOCK_SETTLES;
        threads.filter(counts).map(|thread| (thread.thread, thread)).collect()
    };
    let mut past = server.options.clock.monotonic().saturating_sub(answered);
    let mut waiting = None;
    let mut step = PAUSE_STEP;
    while past < ANSWER_SETTLES {
        let mut settled = false;
        // Before, one that was woken may not be seen to wait.
        if past >= WAKE_TIME {
            settled = processes.all_others_run();
            if !settled {
                let now = busy(past);
                let before = waiting.get_or_insert_with(|| now.clone());
                before.retain(|thread, then| match now.get(thread) {
                    // Who sleeps for want of something to do has mapped its page.
                    None => false,
                    // And so has who could run and did. Who runs into a lock waits anew.
                    Some(now) if now.is_runnable => now.ran_ns == then.ran_ns,
                    Some(now) => {
                        *then = *now;
                        true
                    }
                });
                settled = before.is_empty();
                step = BUSY_STEP;
            } else {
                return env::linger(PAUSE_STEP);
            }
        }
        let queue = server.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let running = |queue: &mut super::Queue| !queue.stopping;
        let (queue, _) = server
            .queue_moved
            .wait_timeout_while(queue, step, running)
            .unwrap_or_else(PoisonError::into_inner);
        if settled || queue.stopping {
            return;
        }
        past += step;
    }
}
