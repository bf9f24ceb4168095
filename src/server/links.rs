//! Watch links: who has which file open at which state, and what is done after a link's state changed.
//!
//! Invariant: no lock is held while another one of this module is taken, and none while a reply is sent. A watch is
//! registered before its set-up looks at what was read, and is unregistered after it is gone, so a READ that tracked
//! its blocks finds every watch that a set-up did not see these blocks for (rules 4, 9).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use revfs_protocol::{FileId, Tid};
use tracing_mutex::stdsync::{Mutex, MutexGuard, RwLock};

use super::clients::ClientProcess;
use super::stats::LinkStatus;
use super::{Server, Stats};
use crate::watch::{Action, Link, LinkOptions, LinkStats, Serial};

/// Number of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What a read of a link ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkRead {
    /// Bytes; none: the end.
    Bytes(Vec<u8>),
    /// A signal waits for who reads.
    Interrupted,
}

/// Takes what a read ended with.
pub type LinkReply = Box<dyn FnOnce(LinkRead) + Send>;

/// Why a write to a link is refused: it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOver;

struct Reader {
    thread: u32,
    max: usize,
    reply: LinkReply,
}

/// A watch link and who waits to read it.
pub struct WatchLink {
    pub(super) id: LinkId,
    pub(super) process: Arc<dyn ClientProcess>,
    /// When a READ of its process was last seen to wait for others, ns; 0: never.
    pub(super) held_at: AtomicU64,
    // Rule 5: covers the state of each watch, the decision to pin, the pins and the frames. Nothing is sent, waited
    // for or locked under it but the leaf locks of `parked`.
    state: Mutex<State>,
}

struct State {
    link: Link,
    readers: VecDeque<Reader>,
}

impl std::fmt::Debug for WatchLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchLink")
            .field("id", &self.id)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl WatchLink {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `change` with the link, then does what follows from it.
    pub(super) fn with<R>(
        self: &Arc<Self>,
        server: &Arc<Server>,
        change: impl FnOnce(&mut Link, &mut Vec<Action>) -> R,
    ) -> R {
        let mut actions = Vec::new();
        let mut state = self.state();
        let pins_before = state.link.pins();
        let result = change(&mut state.link, &mut actions);
        Stats::add(&server.stats.pins, state.link.pins() - pins_before);
        drop(state);
        server.do_link_actions(self, actions);
        result
    }

    /// Counts of what it has.
    pub(super) fn stats(&self) -> LinkStats {
        self.state().link.stats()
    }

    /// When its oldest pin is overdue, all that it owes put off by `more`.
    pub(super) fn due(&self, more: Duration) -> Option<Duration> {
        let mut state = self.state();
        if !more.is_zero() {
            state.link.postpone(more);
        }
        state.link.due()
    }

    /// What it has, for who looks.
    pub(super) fn status(&self, now: Duration) -> LinkStatus {
        let view = self.state().link.view(now);
        LinkStatus { id: self.id, pid: self.process.pid(), process: self.process.name(), view }
    }

    /// Whether a read of it is answered at once.
    pub fn is_readable(&self) -> bool {
        self.state().link.is_readable()
    }

    /// Threads that wait to read it.
    pub(super) fn reading_threads(&self) -> Vec<u32> {
        self.state().readers.iter().map(|reader| reader.thread).collect()
    }

    /// Ends the waiting reads of threads that `is_signalled` names.
    pub(super) fn interrupt(&self, is_signalled: impl Fn(u32) -> bool) {
        let threads: Vec<u32> =
            self.reading_threads().into_iter().filter(|thread| is_signalled(*thread)).collect();
        if threads.is_empty() {
            return;
        }
        let mut ended = Vec::new();
        let mut state = self.state();
        for reader in std::mem::take(&mut state.readers) {
            match threads.contains(&reader.thread) {
                true => ended.push(reader),
                false => state.readers.push_back(reader),
            }
        }
        drop(state);
        ended.into_iter().for_each(|reader| (reader.reply)(LinkRead::Interrupted));
    }

    /// Hands what is queued to who waits for it.
    fn deliver(&self) {
        loop {
            let mut state = self.state();
            if !state.link.is_readable() {
                return;
            }
            let Some(reader) = state.readers.pop_front() else { return };
            let bytes = state.link.read(reader.max);
            drop(state);
            (reader.reply)(LinkRead::Bytes(bytes));
        }
    }
}

/// All links of a server.
#[derive(Debug, Default)]
pub(super) struct Links {
    last: AtomicU64,
    // Leaf lock.
    open: Mutex<HashMap<LinkId, Arc<WatchLink>>>,
    // Leaf lock: read by each READ of a file under head.
    files: RwLock<HashMap<FileId, Registrations>>,
}

/// The watches of a file by the state that they work at.
#[derive(Debug, Default)]
struct Registrations {
    by_at: BTreeSet<(Tid, LinkId, Serial)>,
    at_of: HashMap<(LinkId, Serial), Tid>,
}

impl Links {
    fn open(&self) -> MutexGuard<'_, HashMap<LinkId, Arc<WatchLink>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that are open.
    pub(super) fn all(&self) -> Vec<Arc<WatchLink>> {
        self.open().values().cloned().collect()
    }

    pub(super) fn count(&self) -> usize {
        self.open().len()
    }

    pub(super) fn register(&self, file: FileId, at: Tid, link: LinkId, serial: Serial) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let watches = files.entry(file).or_default();
        watches.by_at.insert((at, link, serial));
        watches.at_of.insert((link, serial), at);
    }

    pub(super) fn unregister(&self, file: FileId, link: LinkId, serial: Serial) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let Some(watches) = files.get_mut(&file) else { return };
        if let Some(at) = watches.at_of.remove(&(link, serial)) {
            watches.by_at.remove(&(at, link, serial));
        }
        if watches.by_at.is_empty() {
            files.remove(&file);
        }
    }

    /// The oldest state at which a file is watched.
    pub(super) fn oldest_at(&self, file: FileId) -> Option<Tid> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&file)?.by_at.first().map(|(at, _, _)| *at)
    }

    /// The oldest state at which any file is watched.
    pub(super) fn oldest_at_all(&self) -> Option<Tid> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.values().filter_map(|watches| watches.by_at.first().map(|(at, _, _)| *at)).min()
    }

    /// The oldest state at which each file is watched.
    fn oldest_of_each(&self) -> HashMap<FileId, Tid> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let oldest =
            files.iter().filter_map(|(file, watches)| watches.by_at.first().map(|(at, _, _)| (*file, *at)));
        oldest.collect()
    }

    /// Links that watch a file at a state before `rev`, each once.
    pub(super) fn behind(&self, file: FileId, rev: Tid) -> Vec<Arc<WatchLink>> {
        let ids: BTreeSet<LinkId> = {
            let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
            let Some(watches) = files.get(&file) else { return Vec::new() };
            let from = (rev, LinkId(0), Serial(0));
            watches.by_at.range(..from).map(|(_, link, _)| *link).collect()
        };
        let open = self.open();
        ids.iter().filter_map(|id| open.get(id).cloned()).collect()
    }

    /// Watches of all files.
    pub(super) fn watches(&self) -> usize {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.values().map(|watches| watches.by_at.len()).sum()
    }
}

/// Clients whose watches ended as the server stops, and not they: from then on nothing may be read that one of them must
/// not see, for it may have the page mapped.
#[derive(Debug, Default)]
pub(super) struct Abandoned {
    pub(super) pids: Vec<u32>,
    /// The oldest state at which one of them worked on a file.
    pub(super) oldest_at: HashMap<FileId, Tid>,
}

impl Server {
    /// Opens a watch link for the process of a thread.
    ///
    /// # Errors
    /// Why that process cannot have one, with the remedy.
    pub fn open_link(&self, thread: u32) -> Result<Arc<WatchLink>, String> {
        let process = self.processes()?.client_of(thread)?;
        let id = LinkId(self.links.last.fetch_add(1, Ordering::Relaxed) + 1);
        let options = LinkOptions {
            pin_timeout: self.options.pin_timeout,
            only_known_files: self.has_peer_manners(),
            ..LinkOptions::default()
        };
        let state = Mutex::new(State { link: Link::new(options), readers: VecDeque::new() });
        let link = Arc::new(WatchLink { id, process, held_at: AtomicU64::new(0), state });
        self.links.open().insert(id, Arc::clone(&link));
        self.wake_watchdog();
        Stats::add(&self.stats.links_opened, 1);
        Ok(link)
    }

    /// Whether a thread is of a process that has a watch, or had one when the server began to stop.
    pub(super) fn is_client(&self, thread: u32) -> bool {
        let Some(pid) = self.processes().ok().and_then(|processes| processes.pid_of(thread)) else {
            return false;
        };
        // In this order: a link that has ended by now was said to be abandoned before.
        let watches = |link: &Arc<WatchLink>| link.process.pid() == pid && link.stats().watches > 0;
        self.links.all().iter().any(watches) || self.abandoned.load().pids.contains(&pid)
    }

    /// Reads at most `max` bytes of a link; `reply` is called when there are some, maybe before this returns.
    pub fn read_link(&self, link: &Arc<WatchLink>, thread: u32, max: usize, reply: LinkReply) {
        link.state().readers.push_back(Reader { thread, max, reply });
        link.deliver();
    }

    /// Bytes that a thread wrote to a link.
    ///
    /// # Errors
    /// [`LinkOver`].
    pub fn write_link(
        self: &Arc<Self>,
        link: &Arc<WatchLink>,
        thread: u32,
        bytes: &[u8],
    ) -> Result<(), LinkOver> {
        let processes = self.processes().map_err(|_| LinkOver)?;
        let is_foreign = || processes.pid_of(thread) != Some(link.process.pid());
        // It counts for `watch` only, and the answer costs as much as an ack.
        let mut foreign = bytes.contains(&b'w').then(is_foreign);
        let mut actions = Vec::new();
        loop {
            let mut state = link.state();
            if state.link.is_over() || state.link.is_faulted() {
                return Err(LinkOver);
            }
            if state.link.has_half_frame() && foreign.is_none() {
                drop(state);
                foreign = Some(is_foreign());
                continue;
            }
            let now = self.options.clock.monotonic();
            let pins_before = state.link.pins();
            state.link.write(now, bytes, foreign.unwrap_or(true), &mut actions);
            Stats::add(&self.stats.pins, state.link.pins() - pins_before);
            break;
        }
        self.do_link_actions(link, actions);
        Ok(())
    }

    /// The last descriptor of a link was closed.
    pub fn close_link(self: &Arc<Self>, link: &Arc<WatchLink>) {
        let now = self.options.clock.monotonic();
        link.with(self, |state, actions| state.closed(now, actions));
        // One at fault stays until its process is dead, for the READs that wait for it.
        if link.state().link.is_over() {
            self.forget_link(link);
        }
    }

    fn forget_link(&self, link: &WatchLink) {
        self.links.open().remove(&link.id);
        self.setups.forget(link.id);
    }

    /// Ends all links with `0 error: <why>`. From now on READs of clients with watches fail: nobody tells them any
    /// more what to map elsewhere, and head may be newer than their state.
    pub fn close_links(self: &Arc<Self>, why: &str) {
        let watching = self.links.all().into_iter().filter(|link| link.stats().watches > 0);
        let pids: Vec<u32> = watching.map(|link| link.process.pid()).collect();
        self.abandoned.store(Arc::new(Abandoned { pids, oldest_at: self.links.oldest_of_each() }));
        // Also those of others: a READ that went on now would fill a page that a mapping of them waits for.
        self.parked.end_of(|_| true);
        for link in self.links.all() {
            link.with(self, |state, actions| state.close(why, actions));
        }
    }

    /// The process of a link is dead.
    pub(super) fn bury(self: &Arc<Self>, link: &Arc<WatchLink>) {
        link.with(self, Link::dead);
        self.forget_link(link);
    }

    fn do_link_actions(self: &Arc<Self>, link: &Arc<WatchLink>, actions: Vec<Action>) {
        let mut readable = false;
        for action in actions {
            match action {
                Action::Readable => readable = true,
                Action::Setup(request) => self.setup_asked(link, request),
                Action::Unwatch { file, stream } => {
                    let known = self.knows_file(file);
                    link.with(self, |state, actions| state.unwatch_asked(file, stream, known, actions));
                }
                Action::GiveUp(request) => self.setups.give_up(link.id, &request),
                Action::Release(wait) => self.parked.release(wait, link.process.pid()),
                Action::Unregister { file, serial } => self.links.unregister(file, link.id, serial),
                Action::Kill(fault) => self.accuse(link, fault),
                Action::Acked(took) => self.stats.times.pin.observe(took),
            }
        }
        if readable {
            link.deliver();
        }
    }
}
