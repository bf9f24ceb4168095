//! READs that wait for acks.
//!
//! Invariant: a parked READ holds no thread and no lock (rule 15); it is an entry here. A few at a time have loaded
//! their bytes while the client maps its blocks, the others load theirs afterwards, so that thousands take no memory. It
//! goes on when the last ack that it waits for is there, or fails when the process that issued it is barred from head.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot::{self, Receiver, Sender};

use crate::watch::WaitId;

/// Nobody issued the wait but the server.
pub(super) const NO_THREAD: u32 = 0;

/// How the wait of a READ ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every client that is to see something else maps it: answer.
    Go,
    /// Its own process may read no more of head.
    Barred,
}

#[derive(Debug)]
struct Waiting {
    thread: u32,
    /// Acks to come, and one while the READ is still adding to them; an ack may be counted before its wait is.
    acks: i64,
    go: Sender<Outcome>,
}

/// READs that may hold their bytes while they wait.
const EARLY_MAX: usize = 8;

/// Leave to load before the acks are there; held for as long as the READ waits.
#[derive(Debug)]
pub(super) struct EarlySlot(Arc<AtomicUsize>);

impl Drop for EarlySlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Parked {
    /// How many have loaded early.
    early: Arc<AtomicUsize>,
    // Leaf lock: held for a few instructions, or for one pass over what is parked when a client is killed.
    reads: Mutex<Reads>,
}

#[derive(Debug, Default)]
struct Reads {
    last: u64,
    waiting: HashMap<WaitId, Waiting>,
}

impl Parked {
    fn reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to load at once, unless too many have it.
    pub(super) fn early_slot(&self) -> Option<EarlySlot> {
        let slot = EarlySlot(Arc::clone(&self.early));
        // Counted first: the slot takes it back when it is dropped.
        let others = self.early.fetch_add(1, Ordering::Relaxed);
        (others < EARLY_MAX).then_some(slot)
    }

    /// A READ begins to ask links. End it by [`Parked::settle`].
    pub(super) fn begin(&self, thread: u32) -> (WaitId, Receiver<Outcome>) {
        let (go, outcome) = oneshot::channel();
        let mut reads = self.reads();
        reads.last += 1;
        let wait = WaitId(reads.last);
        reads.waiting.insert(wait, Waiting { thread, acks: 1, go });
        (wait, outcome)
    }

    /// It waits for so many acks more.
    pub(super) fn add(&self, wait: WaitId, acks: usize) {
        if let Some(waiting) = self.reads().waiting.get_mut(&wait) {
            waiting.acks += i64::try_from(acks).unwrap_or(i64::MAX);
        }
    }

    /// One ack less.
    pub(super) fn release(&self, wait: WaitId) {
        let mut reads = self.reads();
        let Some(waiting) = reads.waiting.get_mut(&wait) else { return };
        waiting.acks -= 1;
        let done = (waiting.acks == 0).then(|| reads.waiting.remove(&wait)).flatten();
        drop(reads);
        if let Some(done) = done {
            // It is gone if the mount is.
            let _ = done.go.send(Outcome::Go);
        }
    }

    /// All links were asked. `true`: it has to wait.
    pub(super) fn settle(&self, wait: WaitId) -> bool {
        self.release(wait);
        self.reads().waiting.contains_key(&wait)
    }

    /// Ends the READs of threads for which `is_victim` says so.
    pub(super) fn end_of(&self, is_victim: impl Fn(u32) -> bool) {
        let threads: Vec<(WaitId, u32)> =
            self.reads().waiting.iter().map(|(wait, w)| (*wait, w.thread)).collect();
        // Not under the lock: it looks into /proc.
        for (wait, _) in threads.into_iter().filter(|(_, thread)| is_victim(*thread)) {
            let ended = self.reads().waiting.remove(&wait);
            if let Some(ended) = ended {
                let _ = ended.go.send(Outcome::Barred);
            }
        }
    }

    /// How many READs wait.
    pub(super) fn count(&self) -> usize {
        self.reads().waiting.values().filter(|waiting| waiting.thread != NO_THREAD).count()
    }
}
