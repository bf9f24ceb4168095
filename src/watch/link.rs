//! One watch link: frames of its client, pins that it owes, and how it ends.
//!
//! Invariant: a client is at fault only for a pin that it still owes (rules 13, 16). Once at fault nothing it sends
//! counts any more, and who waits for it waits until [`Link::dead`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use revfs_protocol::{
    BlockSpan, ClientRequest, Closing, FileId, Frame, LINE_BYTES_MAX, LineBuffer, OkReply, PinTo,
    ServerMessage, Tid, is_ack,
};

use super::outbox::{Out, Outbox};
use super::pins::Waiter;
use super::setup::Watch;
use super::{Action, Fault, LinkStats, LinkView, Serial, WaitId, WatchView};

/// Why a file cannot be watched, in the words of WCFS.
pub const UNKNOWN_FILE: &str = "file not yet known to wcfs or is not a ZBigFile";
/// Replies that a client may leave unread before its link is closed.
const UNREAD_REPLIES_MAX: usize = 4096;
/// Most pins that are on their way; others wait until one of these is acked. A client that knows no ranges may have to be told of
/// each of billions of blocks.
const PINS_ON_WAY_MAX: usize = 1 << 16;
/// Longest that a client that closed its link may take to end, before the first signal.
const EOF_GRACE_MAX: Duration = Duration::from_secs(3);

/// Bounds of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    /// How long a client may owe an ack.
    pub pin_timeout: Duration,
    /// Most files on one link.
    pub watches_max: usize,
    /// Most set-ups of one link that wait or run.
    pub setups_max: usize,
    /// Whether it matters if a file is known that is not watched and shall not be.
    pub only_known_files: bool,
}

impl Default for LinkOptions {
    fn default() -> LinkOptions {
        LinkOptions {
            pin_timeout: Duration::from_secs(30),
            watches_max: 4096,
            setups_max: 4096,
            only_known_files: false,
        }
    }
}

/// What a client asked for with `hello`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extensions {
    pub(super) range: bool,
    pub(super) size: bool,
}

/// Blocks that a pin on its way is for.
#[derive(Clone, Copy, Debug)]
struct Owed {
    file: FileId,
    blocks: BlockSpan,
    to: PinTo,
    since: Duration,
    due: Duration,
}

/// Blocks whose pins are not queued yet; else they are as if these were on their way.
#[derive(Clone, Copy, Debug)]
struct Unsent {
    file: FileId,
    blocks: BlockSpan,
    to: PinTo,
}

/// One open of `head/watch`.
#[derive(Debug)]
pub struct Link {
    options: LinkOptions,
    pub(super) extensions: Extensions,
    input: LineBuffer,
    pub(super) outbox: Outbox,
    pub(super) watches: HashMap<FileId, Watch>,
    /// By id: ids ascend, and so do their times, all of which are put off together.
    owed: BTreeMap<u64, Owed>,
    /// In the order in which they are to be sent; none while there is room among `owed`.
    unsent: VecDeque<Unsent>,
    /// Before this the oldest of them is not overdue: it has its own time from when it became that.
    oldest_due: Duration,
    last_pin: u64,
    /// The longest that an ack took.
    slowest: Duration,
    pub(super) last_serial: u64,
    pub(super) faulted: bool,
    /// READs that wait for the death of a client at fault, besides those that wait for its pins.
    pub(super) death_waiters: Vec<WaitId>,
    /// Nothing is taken any more, and nothing but what is queued is sent.
    over: bool,
}

impl Link {
    /// A link without watches.
    pub fn new(options: LinkOptions) -> Link {
        Link {
            options,
            extensions: Extensions::default(),
            input: LineBuffer::new(LINE_BYTES_MAX),
            outbox: Outbox::default(),
            watches: HashMap::new(),
            owed: BTreeMap::new(),
            unsent: VecDeque::new(),
            oldest_due: Duration::ZERO,
            last_pin: 0,
            slowest: Duration::ZERO,
            last_serial: 0,
            faulted: false,
            death_waiters: Vec::new(),
            over: false,
        }
    }

    /// Whether it has ended: what is written to it is refused, and reads end after what is queued.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether its client is at fault.
    pub fn is_faulted(&self) -> bool {
        self.faulted
    }

    /// Whether something can be read, be it the end.
    pub fn is_readable(&self) -> bool {
        self.over || !self.outbox.is_empty()
    }

    /// Takes at most `max` bytes for the client. Empty and [`Link::is_over`]: the end.
    pub fn read(&mut self, max: usize) -> Vec<u8> {
        self.outbox.take(max)
    }

    /// When the oldest pin is overdue.
    pub fn due(&self) -> Option<Duration> {
        let oldest = self.owed.first_key_value().filter(|_| !self.faulted);
        oldest.map(|(_, owed)| owed.due.max(self.oldest_due))
    }

    /// Gives all pins that are owed more time.
    pub fn postpone(&mut self, more: Duration) {
        self.oldest_due = self.oldest_due.saturating_add(more);
        self.owed.values_mut().for_each(|owed| owed.due = owed.due.saturating_add(more));
    }

    /// Counts of what it has.
    pub fn stats(&self) -> LinkStats {
        let set_up = self.watches.values().filter_map(|watch| watch.registered);
        LinkStats {
            watches: set_up.clone().count(),
            oldest_at: set_up.map(|(at, _)| at).min(),
            pinned: self.watches.values().map(|watch| watch.pins.len()).fold(0, u64::saturating_add),
            owed: self.owed.len(),
            pins: self.pins(),
        }
    }

    /// Pins queued since it was opened, unpins included.
    pub fn pins(&self) -> u64 {
        self.last_pin / 2
    }

    /// What it has, for who looks.
    pub fn view(&self, now: Duration) -> LinkView {
        let view = |(file, watch): (&FileId, &Watch)| WatchView {
            file: *file,
            at: watch.registered.map(|(at, _)| at),
            pinned: watch.pins.len(),
        };
        let mut watches: Vec<WatchView> = self.watches.iter().map(view).collect();
        watches.sort_unstable_by_key(|watch| watch.file);
        let oldest = self.owed.first_key_value().map(|(_, owed)| now.saturating_sub(owed.since));
        LinkView {
            watches,
            owed: self.owed.len(),
            owed_for: oldest,
            slowest: self.slowest,
            pins: self.pins(),
            faulted: self.faulted,
        }
    }

    /// Whether what was written last is not a whole frame yet.
    pub fn has_half_frame(&self) -> bool {
        self.input.is_inside_line()
    }

    /// Bytes that were written, by the process that opened the link or, `foreign`, by another one. Frames are handled
    /// in the order written (rule 14).
    pub fn write(&mut self, now: Duration, bytes: &[u8], foreign: bool, actions: &mut Vec<Action>) {
        if self.over || self.faulted {
            return;
        }
        let mut rest = bytes;
        while !self.over && !self.faulted {
            // Copied: the line is handled with the whole link at hand.
            let mut line = [0; LINE_BYTES_MAX];
            let len = match self.input.next_line(&mut rest) {
                None => return,
                Some(Ok(next)) => {
                    line[..next.len()].copy_from_slice(next);
                    next.len()
                }
                Some(Err(too_long)) => return self.bad_input(&too_long.to_string(), actions),
            };
            match Frame::parse(&line[..len]) {
                Ok(frame) => {
                    self.frame(now, &frame, foreign, actions);
                    self.send_more(now, actions);
                }
                Err(error) => self.bad_input(&error.to_string(), actions),
            }
        }
    }

    fn frame(&mut self, now: Duration, frame: &Frame<'_>, foreign: bool, actions: &mut Vec<Action>) {
        if frame.stream % 2 == 1 {
            return self.request(frame, foreign, actions);
        }
        let stream = frame.stream;
        match self.owed.remove(&stream) {
            Some(owed) if is_ack(frame.message) => {
                // Who carries out many pins one after the other is not late with those at the end: only who stops.
                if self.owed.first_key_value().is_some_and(|(oldest, _)| *oldest > stream) {
                    self.oldest_due = now.saturating_add(self.options.pin_timeout);
                }
                self.acked(now, owed, actions);
            }
            Some(owed) => {
                let said = String::from_utf8_lossy(frame.message);
                let cause = format!("{}: the client answered {said:?}", pin_text(&owed));
                self.owed.insert(stream, owed);
                self.fault(cause, Duration::ZERO, actions);
            }
            // An answer to a pin of a watch that is gone (rule 13).
            None if stream != 0 && stream <= self.last_pin => {}
            None => self.bad_input(&format!("{stream}: reply on unexpected stream"), actions),
        }
    }

    fn request(&mut self, frame: &Frame<'_>, foreign: bool, actions: &mut Vec<Action>) {
        let stream = frame.stream;
        match ClientRequest::parse(frame.message) {
            // Else a link that was passed on could get the one who opened it killed.
            Ok(ClientRequest::Watch { .. }) if foreign => {
                self.reply_error(stream, "setup watch: only the process that opened the link may watch");
                actions.push(Action::Readable);
            }
            Ok(ClientRequest::Watch { file, at }) => self.watch(stream, file, at, actions),
            Ok(ClientRequest::Unwatch { file }) => self.unwatch(stream, file, actions),
            Ok(ClientRequest::Bye) => self.end(actions),
            Ok(ClientRequest::Hello { range, size }) => {
                self.extensions = Extensions { range, size };
                let reply = OkReply { range, size_granted: size, ..OkReply::default() };
                self.outbox.push(Out::Ok { stream, reply });
                actions.push(Action::Readable);
            }
            Err(error) => {
                self.reply_error(stream, &error.to_string());
                actions.push(Action::Readable);
            }
        }
        if self.outbox.len() > UNREAD_REPLIES_MAX + self.owed.len() {
            self.bad_input("too many replies are not read", actions);
        }
    }

    fn watch(&mut self, stream: u64, file: FileId, at: Tid, actions: &mut Vec<Action>) {
        let setups: usize = self.watches.values().map(Watch::requests).sum();
        let full = self.watches.len() >= self.options.watches_max && !self.watches.contains_key(&file);
        if full || setups >= self.options.setups_max {
            self.reply_error(stream, "setup watch: too many watches on this link: open another");
            return actions.push(Action::Readable);
        }
        self.setup_asked(stream, file, at, actions);
    }

    /// Rule 13: in one step the watch is gone, its pins are dropped, and who waited for them does so no longer.
    fn unwatch(&mut self, stream: u64, file: FileId, actions: &mut Vec<Action>) {
        match self.watches.remove(&file) {
            Some(watch) => self.drop_watch(file, watch, true, actions),
            None if self.options.only_known_files => return actions.push(Action::Unwatch { file, stream }),
            None => {}
        }
        self.outbox.push(Out::Ok { stream, reply: OkReply::default() });
        actions.push(Action::Readable);
    }

    /// The answer to [`Action::Unwatch`].
    pub fn unwatch_asked(&mut self, file: FileId, stream: u64, known: bool, actions: &mut Vec<Action>) {
        if self.over || self.faulted {
            return;
        }
        match known {
            true => self.outbox.push(Out::Ok { stream, reply: OkReply::default() }),
            false => self.reply_error(stream, &format!("setup watch f{file} -: {UNKNOWN_FILE}")),
        }
        actions.push(Action::Readable);
    }

    fn drop_watch(&mut self, file: FileId, mut watch: Watch, reply: bool, actions: &mut Vec<Action>) {
        if let Some((_, serial)) = watch.registered {
            actions.push(Action::Unregister { file, serial });
        }
        self.owed.retain(|_, owed| owed.file != file);
        self.unsent.retain(|unsent| unsent.file != file);
        self.outbox.drop_pins(file);
        for waiter in watch.pins.take_waiters() {
            if let Waiter::Read(wait) = waiter {
                actions.push(Action::Release(wait));
            }
        }
        // Else those for a state that never comes pile up with who begins and stops watches.
        if let Some(running) = watch.running_request() {
            actions.push(Action::GiveUp(running));
        }
        for request in watch.take_requests() {
            if reply {
                self.reply_refused(&request, "the watch was stopped");
            }
        }
    }

    fn acked(&mut self, now: Duration, owed: Owed, actions: &mut Vec<Action>) {
        let took = now.saturating_sub(owed.since);
        self.slowest = self.slowest.max(took);
        actions.push(Action::Acked(took));
        let Some(watch) = self.watches.get_mut(&owed.file) else { return };
        let mut released = Vec::new();
        let send = watch.pins.acked(owed.blocks, &mut released);
        self.send_pins(now, owed.file, send, actions);
        for waiter in released {
            match waiter {
                Waiter::Read(wait) => actions.push(Action::Release(wait)),
                Waiter::Setup => self.setup_done(owed.file, actions),
            }
        }
    }

    /// Queues pins whose blocks are marked as on their way; neighbours with one target go in one frame, if the
    /// client knows such frames.
    pub(super) fn send_pins(
        &mut self,
        now: Duration,
        file: FileId,
        mut pins: Vec<(BlockSpan, PinTo)>,
        actions: &mut Vec<Action>,
    ) {
        pins.sort_unstable_by_key(|(blocks, _)| blocks.first);
        let mut pins = pins.into_iter().peekable();
        while let Some((mut blocks, to)) = pins.next() {
            while let Some((next, _)) =
                pins.next_if(|(next, other)| blocks.last.next() == Some(next.first) && *other == to)
            {
                blocks.last = next.last;
            }
            self.unsent.push_back(Unsent { file, blocks, to });
        }
        self.send_more(now, actions);
    }

    /// Queues as many of the pins that are to be sent as may be on their way.
    fn send_more(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.over || self.faulted || self.unsent.is_empty() {
            return;
        }
        let due = now.saturating_add(self.options.pin_timeout);
        while self.owed.len() < PINS_ON_WAY_MAX
            && let Some(Unsent { file, mut blocks, to }) = self.unsent.pop_front()
        {
            if !self.extensions.range
                && let Some(first) = blocks.first.next().filter(|next| *next <= blocks.last)
            {
                self.unsent.push_front(Unsent { file, blocks: BlockSpan { first, ..blocks }, to });
                blocks.last = blocks.first;
            }
            self.last_pin += 2;
            self.owed.insert(self.last_pin, Owed { file, blocks, to, since: now, due });
            self.outbox.push(Out::Pin { id: self.last_pin, file, blocks, to });
        }
        actions.push(Action::Readable);
    }

    pub(super) fn reply_error(&mut self, stream: u64, text: &str) {
        self.outbox.push(Out::Text(ServerMessage::Error(text).to_frame(stream)));
    }

    /// Time has passed: is a pin overdue?
    pub fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let Some(due) = self.due() else { return };
        if self.over || due > now {
            return;
        }
        let cause = self.owed.first_key_value().map(|(_, owed)| pin_text(owed)).unwrap_or_default();
        let timeout = self.options.pin_timeout;
        self.fault(format!("{cause}: not acknowledged within {timeout:?}"), Duration::ZERO, actions);
    }

    /// The last descriptor of the link was closed.
    pub fn closed(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.faulted || self.over {
            return;
        }
        match self.due() {
            Some(due) => {
                // Linux closes descriptors before a process is gone: let it, but not past the pin's own time.
                let grace = due.saturating_sub(now).min(EOF_GRACE_MAX);
                self.fault("unexpected EOF".to_owned(), grace, actions);
            }
            None => self.end(actions),
        }
    }

    /// Something came that is no frame. Only this link is hurt; if it owes a pin its client is.
    fn bad_input(&mut self, what: &str, actions: &mut Vec<Action>) {
        if self.owed.is_empty() {
            return self.close(what, actions);
        }
        self.fault(what.to_owned(), Duration::ZERO, actions);
    }

    /// Ends the link with `0 error: <why>`.
    pub fn close(&mut self, why: &str, actions: &mut Vec<Action>) {
        if self.over || self.faulted {
            return;
        }
        self.outbox.push(Out::Text(Closing::Error(why).to_frame()));
        self.end(actions);
    }

    /// The process that opened the link is gone, and all that it mapped. Others may still have the link open: a
    /// child of it, or who was given the descriptor.
    pub fn opener_exited(&mut self, actions: &mut Vec<Action>) {
        self.close("opener exited", actions);
    }

    /// Rule 16: decided under the link's mutex, while the pin is owed.
    fn fault(&mut self, cause: String, grace: Duration, actions: &mut Vec<Action>) {
        self.faulted = true;
        self.outbox.clear();
        self.outbox.push(Out::Text(Closing::Fatal(&cause).to_frame()));
        actions.push(Action::Readable);
        actions.push(Action::Kill(Fault { cause, grace }));
    }

    /// The client at fault is dead, and maps nothing any more.
    pub fn dead(&mut self, actions: &mut Vec<Action>) {
        self.faulted = false;
        self.end(actions);
    }

    fn end(&mut self, actions: &mut Vec<Action>) {
        self.over = true;
        for (file, watch) in std::mem::take(&mut self.watches) {
            self.drop_watch(file, watch, false, actions);
        }
        self.owed.clear();
        self.unsent.clear();
        actions.extend(self.death_waiters.drain(..).map(Action::Release));
        actions.push(Action::Readable);
    }

    /// Every registration that it has.
    pub fn registrations(&self) -> Vec<(FileId, Serial)> {
        self.watches
            .iter()
            .filter_map(|(file, watch)| watch.registered.map(|(_, serial)| (*file, serial)))
            .collect()
    }
}

fn pin_text(owed: &Owed) -> String {
    format!("pin {} {}", owed.blocks, owed.to)
}
