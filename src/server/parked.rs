//! READs that wait for acks.
//!
//! Invariant: a parked READ holds no thread, no lock and no buffer (rule 15); it is an entry here. It goes on when
//! the last ack that it waits for is there, or fails when the process that issued it is barred from head.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot::{self, Receiver, Sender};

use crate::watch::WaitId;

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

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Parked {
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

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.reads().waiting.len()
    }
}
