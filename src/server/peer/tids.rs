//! Streams on which each transaction is told, one tid a line, after `head/at` and all that depends on it has moved.
//!
//! Invariant: a stream tells each transaction after its open once, in order; one that is not read loses nothing until it
//! holds [`LINES_MAX`] lines, and then it ends. A read that finds nothing takes no thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use revfs_protocol::Tid;
use tracing_mutex::stdsync::{Mutex, MutexGuard};

use crate::server::{LinkRead, LinkReply, Server};

/// Most lines that wait on one stream.
const LINES_MAX: usize = 1 << 16;
/// Most streams.
const STREAMS_MAX: usize = 1024;

struct Reader {
    thread: u32,
    max: usize,
    reply: LinkReply,
}

#[derive(Default)]
struct State {
    text: VecDeque<u8>,
    lines: usize,
    readers: VecDeque<Reader>,
    over: bool,
}

/// One open of the stream.
pub struct TidStream {
    // Leaf lock; nothing is sent under it.
    state: Mutex<State>,
}

impl std::fmt::Debug for TidStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TidStream")
    }
}

impl TidStream {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a read is answered at once.
    pub fn is_readable(&self) -> bool {
        let state = self.state();
        state.over || !state.text.is_empty()
    }

    fn tell(&self, tids: &[Tid]) {
        let mut state = self.state();
        for tid in tids {
            state.text.extend(format!("{tid}\n").into_bytes());
        }
        state.lines = state.text.len() / (Tid::ZERO.to_string().len() + 1);
        if state.lines > LINES_MAX {
            state.over = true;
        }
        drop(state);
        self.deliver();
    }

    fn end(&self) {
        self.state().over = true;
        self.deliver();
    }

    fn deliver(&self) {
        loop {
            let mut state = self.state();
            if state.text.is_empty() && !state.over {
                return;
            }
            let Some(reader) = state.readers.pop_front() else { return };
            let len = state.text.len().min(reader.max);
            let bytes: Vec<u8> = state.text.drain(..len).collect();
            drop(state);
            (reader.reply)(LinkRead::Bytes(bytes));
        }
    }

    fn interrupt(&self, is_signalled: &dyn Fn(u32) -> bool) {
        let threads: Vec<u32> = self.state().readers.iter().map(|reader| reader.thread).collect();
        let signalled: Vec<u32> = threads.into_iter().filter(|thread| is_signalled(*thread)).collect();
        if signalled.is_empty() {
            return;
        }
        let mut state = self.state();
        let (ended, left) = std::mem::take(&mut state.readers)
            .into_iter()
            .partition(|reader: &Reader| signalled.contains(&reader.thread));
        state.readers = left;
        drop(state);
        let ended: VecDeque<Reader> = ended;
        ended.into_iter().for_each(|reader| (reader.reply)(LinkRead::Interrupted));
    }
}

/// All streams.
#[derive(Debug, Default)]
pub(super) struct TidStreams {
    // Leaf lock.
    open: Mutex<Vec<Arc<TidStream>>>,
    count: AtomicUsize,
}

impl TidStreams {
    fn all(&self) -> Vec<Arc<TidStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Server {
    /// Opens a stream; `None` if there are too many, or the server has not these manners.
    pub fn open_tids(&self) -> Option<Arc<TidStream>> {
        let streams = &self.peer.as_ref()?.tids;
        let stream = Arc::new(TidStream { state: Mutex::default() });
        let mut open = streams.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= STREAMS_MAX {
            return None;
        }
        open.push(Arc::clone(&stream));
        streams.count.store(open.len(), Ordering::Relaxed);
        drop(open);
        self.wake_watchdog();
        Some(stream)
    }

    /// Reads at most `max` bytes of a stream; `reply` is called when there are some, maybe before this returns.
    pub fn read_tids(&self, stream: &Arc<TidStream>, thread: u32, max: usize, reply: LinkReply) {
        stream.state().readers.push_back(Reader { thread, max, reply });
        stream.deliver();
    }

    /// The stream was closed.
    pub fn close_tids(&self, stream: &Arc<TidStream>) {
        stream.end();
        let Some(peer) = &self.peer else { return };
        let mut open = peer.tids.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| !Arc::ptr_eq(other, stream));
        peer.tids.count.store(open.len(), Ordering::Relaxed);
    }

    /// How many streams are open.
    pub fn tid_streams(&self) -> usize {
        self.peer.as_ref().map_or(0, |peer| peer.tids.count.load(Ordering::Relaxed))
    }

    /// Tells transactions that `head/at` shows now.
    pub(in crate::server) fn tell_tids(&self, tids: &[Tid]) {
        let Some(peer) = &self.peer else { return };
        peer.tids.all().iter().for_each(|stream| stream.tell(tids));
    }

    /// Ends the reads of threads that a signal waits for.
    pub(in crate::server) fn interrupt_tids(&self, is_signalled: &dyn Fn(u32) -> bool) {
        let Some(peer) = &self.peer else { return };
        peer.tids.all().iter().for_each(|stream| stream.interrupt(is_signalled));
    }

    /// Ends all streams: the server stops.
    pub(in crate::server) fn end_tids(&self) {
        let Some(peer) = &self.peer else { return };
        peer.tids.all().iter().for_each(|stream| stream.end());
    }
}
