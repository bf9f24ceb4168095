//! The follower: applies what was committed, publishes it and tells the notifier.
//!
//! Invariant: heads are published in tid order, after the index has them (rule 1) and before anything of them
//! is invalidated (rule 17); a head has its changes to all files that somebody opened before it (`opened`). It never waits for the notifier: commit t+1 is published while t is still being
//! dropped from the kernel's cache. An error moves nothing and ends nothing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use revfs_protocol::{FileId, Tid};

use super::{Delta, HeadState, Server, Stats};
use crate::store::{CommitInfo, Load, ReadError, ReadTxn};

/// Most commits that become one head when the server is behind.
const COMMITS_PER_HEAD_MAX: usize = 4096;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Follows the store until the server stops.
pub(super) fn run(server: &Arc<Server>) {
    server.history.seed(&server.head_txn());
    let mut backoff = BACKOFF_MIN;
    let mut logged = false;
    while !server.stopping() {
        match catch_up(server) {
            Ok(()) => {
                if logged {
                    log::info!("the store is followed again, head is @{}", server.head());
                }
                (backoff, logged) = (BACKOFF_MIN, false);
                server.trouble.store(server.store.trouble().map(Arc::new));
                server.store.wait_for_commits(server.options.poll_interval);
            }
            Err(error) => {
                Stats::add(&server.stats.follow_errors, 1);
                server.trouble.store(Some(Arc::new(error.to_string())));
                if !logged {
                    let head = server.head();
                    log::error!("cannot follow the store, head stays @{head}: {error}; trying again");
                    logged = true;
                }
                wait_or_stop(server, backoff);
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

/// Applies and publishes all that is committed now.
fn catch_up(server: &Server) -> Result<(), ReadError> {
    let refreshed = match server.store.refresh() {
        Load::Ready(result) => result,
        Load::Pending(future) => server.options.runtime.block_on(future),
    };
    // What could be applied is applied: publish it also if what follows it is damaged.
    let applied = server.store.head();
    while server.head() < applied && !server.stopping() {
        publish_some(server, applied)?;
    }
    refreshed.map(|_| ())
}

/// Publishes the next head after the published one, at most `applied`.
fn publish_some(server: &Server, applied: Tid) -> Result<(), ReadError> {
    let old = server.head_txn();
    let opened = &server.history.opened;
    let mut asked = opened.files();
    let mut commits = server.store.commits_of(old.at(), applied, COMMITS_PER_HEAD_MAX, &asked)?;
    // What a file was before it became another one is known as the state before that.
    let epoch = |commit: &CommitInfo| commit.files.iter().any(|change| change.replaced);
    let before = commits.iter().skip(1).position(epoch).map(|index| index + 1);
    let at = match commits.last() {
        Some(last) if commits.len() == COMMITS_PER_HEAD_MAX => last.tid,
        // All of them, or none that is listed: head moves all the same.
        _ => applied,
    };
    let at = before.and_then(|count| commits.get(count - 1)).map_or(at, |last| last.tid);
    commits.truncate(before.unwrap_or(usize::MAX));
    let new = ReadTxn::new(&server.store, at)?;
    let delta = loop {
        // All that can fail comes before publishing; a delta depends on the commits alone, as all changed blocks
        // are invalidated, tracked or not (rule 2).
        let mut delta = Delta::of(&commits, &old, &new)?;
        let epochs = server.epochs_in(&commits)?;
        delta.add_epochs(
            &commits,
            &old,
            |file| epochs.contains_key(&file),
            |file| server.epochs.of(file).is_some(),
        )?;
        let published = opened.publish(at, &asked, || {
            server.history.update(&commits, &new);
            // Rule 22: nobody is told a smaller size before those who work at the larger one are safe.
            server.shrinking.hold(&delta);
            server.epochs.begin(&epochs);
            server.note_commits(&commits);
            server.publish(HeadState { at, txn: new.clone() });
        });
        let Err(late) = published else { break delta };
        // Somebody opened a file while the others were asked about, and has it as of the head before.
        add_files(&mut commits, server.store.commits_of(old.at(), at, COMMITS_PER_HEAD_MAX, &late)?);
        asked.extend(late);
    };
    Stats::add(&server.stats.commits, commits.len() as u64);
    server.stats.heads.fetch_add(1, Ordering::Relaxed);
    let now = server.options.clock.monotonic();
    let mut queue = server.queue.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut queue.pending {
        Some((_, pending)) => pending.merge(delta),
        None => queue.pending = Some((now, delta)),
    }
    drop(queue);
    server.queue_moved.notify_all();
    Ok(())
}

/// Adds to commits what they did to more files.
fn add_files(commits: &mut [CommitInfo], more: Vec<CommitInfo>) {
    for more in more {
        let Some(commit) = commits.iter_mut().find(|commit| commit.tid == more.tid) else { continue };
        let known: BTreeSet<FileId> = commit.files.iter().map(|change| change.file).collect();
        commit.files.extend(more.files.into_iter().filter(|change| !known.contains(&change.file)));
    }
}

fn wait_or_stop(server: &Server, timeout: Duration) {
    let queue = server.queue.lock().unwrap_or_else(PoisonError::into_inner);
    let running = |queue: &mut super::Queue| !queue.stopping;
    drop(server.queue_moved.wait_timeout_while(queue, timeout, running));
}
