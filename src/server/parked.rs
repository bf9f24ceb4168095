//! READs that wait for acks.
//!
//! Invariant: a parked READ holds no thread and no lock (rule 15); it is an entry here. A few at a time have loaded
//! their bytes while the client maps its blocks, the others load theirs afterwards, so that thousands take no memory. It
//! goes on when the last ack that it waits for is there, or fails when the process that issued it is barred from head;
//! on the very thread that brings that about, for the client waits and each change of threads costs it as much as an ack.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, mpsc};

use tracing_mutex::stdsync::{Mutex, MutexGuard};

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

/// Goes on with what waited; called once, without a lock.
pub(super) type OnEnd = Box<dyn FnOnce(Outcome) + Send>;

struct Waiting {
    thread: u32,
    /// Acks to come, and one while the READ is still adding to them. Each is added under the mutex of its link, so none
    /// is counted before it is waited for.
    acks: usize,
    /// Of them those of each process.
    owing: Vec<(u32, usize)>,
    /// How it ended before it was said what is to be done then.
    ended: Option<Outcome>,
    on_end: Option<OnEnd>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("thread", &self.thread)
            .field("acks", &self.acks)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
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
    pub(super) fn begin(&self, thread: u32) -> WaitId {
        let mut reads = self.reads();
        reads.last += 1;
        let wait = WaitId(reads.last);
        let waiting = Waiting { thread, acks: 1, owing: Vec::new(), ended: None, on_end: None };
        reads.waiting.insert(wait, waiting);
        wait
    }

    /// It waits for so many acks more, of a process.
    pub(super) fn add(&self, wait: WaitId, acks: usize, pid: u32) {
        if acks > 0
            && let Some(waiting) = self.reads().waiting.get_mut(&wait)
        {
            waiting.acks += acks;
            waiting.owing.push((pid, acks));
        }
    }

    /// One ack less, of a process.
    pub(super) fn release(&self, wait: WaitId, pid: u32) {
        let mut reads = self.reads();
        let Some(waiting) = reads.waiting.get_mut(&wait) else { return };
        if let Some(index) = waiting.owing.iter().position(|(of, _)| *of == pid) {
            waiting.owing[index].1 -= 1;
            if waiting.owing[index].1 == 0 {
                waiting.owing.swap_remove(index);
            }
        }
        waiting.acks = waiting.acks.saturating_sub(1);
        if waiting.acks == 0 {
            end(reads, wait, Outcome::Go);
        }
    }

    /// All links were asked. `true`: it has to wait; say by [`Parked::on_end`] what comes then.
    pub(super) fn settle(&self, wait: WaitId) -> bool {
        let mut reads = self.reads();
        let Some(waiting) = reads.waiting.get_mut(&wait) else { return false };
        waiting.acks = waiting.acks.saturating_sub(1);
        // One that is barred already is told so, even if it needs no ack.
        let waits = waiting.acks != 0 || waiting.ended.is_some();
        if !waits {
            reads.waiting.remove(&wait);
        }
        waits
    }

    /// Calls `then` when the wait is over, which may be now.
    pub(super) fn on_end(&self, wait: WaitId, then: OnEnd) {
        let mut reads = self.reads();
        let Entry::Occupied(mut waiting) = reads.waiting.entry(wait) else { return };
        match waiting.get().ended {
            None => waiting.get_mut().on_end = Some(then),
            Some(outcome) => {
                waiting.remove();
                drop(reads);
                then(outcome);
            }
        }
    }

    /// The same as [`Parked::settle`], and waits until the wait is over, on a thread that serves nobody.
    pub(super) fn settle_and_wait(&self, wait: WaitId) {
        if self.settle(wait) {
            let (ended, over) = mpsc::channel();
            let then = move |outcome| {
                let _ = ended.send(outcome);
            };
            self.on_end(wait, Box::new(then));
            // However it ended: an error is a server that ends.
            let _ = over.recv();
        }
    }

    /// Ends the READs of threads for which `is_victim` says so.
    pub(super) fn end_of(&self, is_victim: impl Fn(u32) -> bool) {
        let threads: Vec<(WaitId, u32)> =
            self.reads().waiting.iter().map(|(wait, w)| (*wait, w.thread)).collect();
        // Not under the lock: it looks into /proc.
        for (wait, _) in threads.into_iter().filter(|(_, thread)| is_victim(*thread)) {
            end(self.reads(), wait, Outcome::Barred);
        }
    }

    /// Whether a READ that a thread of `pid` issued waits for the ack of another process. `pid_of` answers whose a
    /// thread is.
    pub(super) fn is_held(&self, pid: u32, pid_of: impl Fn(u32) -> Option<u32>) -> bool {
        let by_others = |waiting: &&Waiting| {
            waiting.thread != NO_THREAD && waiting.owing.iter().any(|(of, _)| *of != pid)
        };
        let threads: Vec<u32> =
            self.reads().waiting.values().filter(by_others).map(|waiting| waiting.thread).collect();
        // Not under the lock: it looks into /proc.
        threads.into_iter().any(|thread| pid_of(thread) == Some(pid))
    }

    /// How many READs wait.
    pub(super) fn count(&self) -> usize {
        let reads = |waiting: &&Waiting| waiting.thread != NO_THREAD && waiting.ended.is_none();
        self.reads().waiting.values().filter(reads).count()
    }
}

/// Ends a wait, unless it has ended.
fn end(mut reads: MutexGuard<'_, Reads>, wait: WaitId, outcome: Outcome) {
    let Entry::Occupied(mut waiting) = reads.waiting.entry(wait) else { return };
    if waiting.get().ended.is_some() {
        return;
    }
    match waiting.get_mut().on_end.take() {
        None => waiting.get_mut().ended = Some(outcome),
        Some(then) => {
            waiting.remove();
            drop(reads);
            then(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wait of thread 7 for so many acks, and what it ended with.
    fn wait(parked: &Parked, acks: usize) -> (WaitId, OnEnd, mpsc::Receiver<Outcome>) {
        let wait = parked.begin(7);
        parked.add(wait, acks, 1);
        let (ended, over) = mpsc::channel();
        (wait, Box::new(move |outcome| ended.send(outcome).unwrap()), over)
    }

    #[test]
    fn a_wait_ends_once_with_its_last_ack_or_when_its_thread_is_barred() {
        let parked = Parked::default();
        let (free, _, _) = wait(&parked, 0);
        assert!(!parked.settle(free), "nobody was asked");
        let (late, then, over) = wait(&parked, 2);
        parked.release(late, 1);
        assert!(parked.settle(late));
        parked.on_end(late, then);
        assert_eq!((over.try_recv(), parked.count()), (Err(mpsc::TryRecvError::Empty), 1));
        parked.release(late, 1);
        assert_eq!((over.recv(), parked.count()), (Ok(Outcome::Go), 0));
        parked.end_of(|_| true);
        assert!(over.recv().is_err(), "it is over");
        let (barred, then, over) = wait(&parked, 1);
        assert!(parked.settle(barred));
        parked.end_of(|thread| thread == 8);
        parked.on_end(barred, then);
        parked.end_of(|thread| thread == 7);
        parked.release(barred, 1);
        assert_eq!((over.recv(), over.recv().is_err()), (Ok(Outcome::Barred), true));
        assert!(parked.reads().waiting.is_empty());
    }

    #[test]
    fn what_ends_a_wait_before_it_is_known_what_comes_then_is_not_lost() {
        let parked = Parked::default();
        let (acked, then, over) = wait(&parked, 1);
        assert!(parked.settle(acked));
        parked.release(acked, 1);
        assert_eq!(parked.count(), 0);
        parked.on_end(acked, then);
        assert_eq!(over.recv(), Ok(Outcome::Go));
        // Barred while it still asks, and it needs no ack: told all the same.
        let (barred, then, over) = wait(&parked, 0);
        parked.end_of(|_| true);
        assert!(parked.settle(barred));
        parked.on_end(barred, then);
        assert_eq!(over.recv(), Ok(Outcome::Barred));
        assert!(parked.reads().waiting.is_empty());
    }

    #[test]
    fn a_process_is_held_by_the_acks_of_others_only() {
        let parked = Parked::default();
        let (held, _, _) = wait(&parked, 2);
        parked.add(held, 1, 2);
        let is_held = |pid| parked.is_held(pid, |thread| Some(thread / 7));
        assert_eq!([is_held(1), is_held(2)], [true, false], "thread 7 is of process 1");
        parked.release(held, 2);
        assert!(!is_held(1), "what is left is its own");
        parked.release(held, 1);
        parked.release(held, 1);
        assert!(!is_held(1));
    }

    #[test]
    fn only_a_few_load_early() {
        let parked = Parked::default();
        let mut slots: Vec<_> = std::iter::from_fn(|| parked.early_slot()).collect();
        assert_eq!(slots.len(), EARLY_MAX);
        slots.pop();
        assert!(parked.early_slot().is_some());
    }
}
