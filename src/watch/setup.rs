//! Set-ups: a watch begins, or moves to a later state.
//!
//! Invariant: whatever can fail is done before [`Link::setup_move`] (rule 11); until then the watch is as it was.
//! `ok` follows when all pins of the watch are acked (rule 10), and one set-up of a watch runs at a time.

use std::collections::VecDeque;
use std::time::Duration;

use revfs_protocol::{BlockSpan, FileId, OkReply, PinTo, Tid};

use super::outbox::Out;
use super::pins::{Pins, Waiter};
use super::{Action, Link, Serial};

/// A request of a client to work on a file as of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupRequest {
    /// The file.
    pub file: FileId,
    /// The state.
    pub at: Tid,
    /// Registration that the watch will have.
    pub serial: Serial,
    /// The request's number, for the reply.
    pub(super) stream: u64,
}

/// What [`Link::setup_start`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupStart {
    /// Find out what is to be pinned.
    Go,
    /// It is answered already, or its client gave it up.
    Over,
}

/// A watch was moved: the registration that it had before, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedFrom(pub Option<Serial>);

/// A file on a link.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The state that it works at, and under which registration; `None` before the first set-up moved.
    pub(super) registered: Option<(Tid, Serial)>,
    pub(super) pins: Pins,
    running: Option<Running>,
    queued: VecDeque<SetupRequest>,
}

#[derive(Debug)]
struct Running {
    request: SetupRequest,
    moved: bool,
    /// Size of the file at `at`, bytes, for clients that asked.
    size: u64,
}

impl Watch {
    /// Whether nothing of it is left.
    pub(super) fn is_unused(&self) -> bool {
        self.registered.is_none() && self.running.is_none() && self.queued.is_empty()
    }

    /// The request that was handed out by [`Action::Setup`] last, unless it is answered.
    pub(super) fn running_request(&self) -> Option<SetupRequest> {
        self.running.as_ref().map(|running| running.request)
    }

    /// All requests that are not answered yet.
    pub(super) fn take_requests(&mut self) -> Vec<SetupRequest> {
        self.running.take().map(|running| running.request).into_iter().chain(self.queued.drain(..)).collect()
    }

    /// Set-ups that are not answered.
    pub(super) fn requests(&self) -> usize {
        usize::from(self.running.is_some()) + self.queued.len()
    }
}

impl Link {
    /// A client asks for a set-up.
    pub(super) fn setup_asked(&mut self, stream: u64, file: FileId, at: Tid, actions: &mut Vec<Action>) {
        self.last_serial += 1;
        let request = SetupRequest { file, at, serial: Serial(self.last_serial), stream };
        let watch = self.watches.entry(file).or_default();
        match watch.running {
            None => {
                watch.running = Some(Running { request, moved: false, size: 0 });
                actions.push(Action::Setup(request));
            }
            Some(_) => watch.queued.push_back(request),
        }
    }

    fn running(&mut self, request: &SetupRequest) -> Option<(&mut Watch, Serial)> {
        if self.is_over() || self.faulted {
            return None;
        }
        let watch = self.watches.get_mut(&request.file)?;
        let serial = watch.running.as_ref()?.request.serial;
        (serial == request.serial).then_some((watch, serial))
    }

    /// Whether a set-up is still wanted.
    pub fn setup_is_wanted(&mut self, request: &SetupRequest) -> bool {
        self.running(request).is_some()
    }

    /// `head/at` has reached the state of a set-up: may it go on?
    pub fn setup_start(&mut self, request: &SetupRequest, actions: &mut Vec<Action>) -> SetupStart {
        let Some((watch, _)) = self.running(request) else { return SetupStart::Over };
        match watch.registered {
            Some((now, _)) if request.at < now => {
                self.setup_refuse(request, "going back in history is forbidden", actions);
                SetupStart::Over
            }
            _ => SetupStart::Go,
        }
    }

    /// Refuses a set-up that was not moved; the watch stays as it was.
    pub fn setup_refuse(&mut self, request: &SetupRequest, why: &str, actions: &mut Vec<Action>) {
        let Some((watch, _)) = self.running(request) else { return };
        assert!(
            watch.running.as_ref().is_some_and(|running| !running.moved),
            "a set-up failed after it moved"
        );
        watch.running = None;
        self.reply_refused(request, why);
        self.setup_next(request.file, actions);
        actions.push(Action::Readable);
    }

    /// Registers the watch at the new state; from now on READs pin for it. `None`: the client gave it up.
    pub fn setup_move(&mut self, request: &SetupRequest, size: u64) -> Option<MovedFrom> {
        let (watch, serial) = self.running(request)?;
        let running = watch.running.as_mut()?;
        (running.moved, running.size) = (true, size);
        let before = watch.registered.replace((request.at, serial));
        Some(MovedFrom(before.map(|(_, serial)| serial)))
    }

    /// Queues the pins that a moved watch begins with, and takes back those that it no longer needs.
    pub fn setup_pin(
        &mut self,
        now: Duration,
        request: &SetupRequest,
        pins: &[(BlockSpan, Tid)],
        actions: &mut Vec<Action>,
    ) {
        let Some((watch, serial)) = self.running(request) else { return };
        let mut send = Vec::new();
        for (span, rev) in pins {
            assert!(*rev <= request.at, "a pin of {span:?} to @{rev} for a client at @{}", request.at);
            let to = PinTo::Rev(*rev);
            send.extend(watch.pins.aim(*span, to, serial).into_iter().map(|blocks| (blocks, to)));
        }
        // What a READ pinned since the move stays: its head may be newer than the one that `pins` was found with.
        for span in watch.pins.left_over(serial) {
            let unpinned = watch.pins.aim(span, PinTo::Head, serial);
            send.extend(unpinned.into_iter().map(|blocks| (blocks, PinTo::Head)));
        }
        let waits = watch.pins.wait_for_all(Waiter::Setup);
        self.send_pins(now, request.file, send, actions);
        if !waits {
            self.setup_done(request.file, actions);
        }
    }

    /// All acks that the set-up under way waited for are there.
    pub(super) fn setup_done(&mut self, file: FileId, actions: &mut Vec<Action>) {
        let Some(running) = self.watches.get_mut(&file).and_then(|watch| watch.running.take()) else {
            return;
        };
        let reply = OkReply { size: self.extensions.size.then_some(running.size), ..OkReply::default() };
        self.outbox.push(Out::Ok { stream: running.request.stream, reply });
        self.setup_next(file, actions);
        actions.push(Action::Readable);
    }

    fn setup_next(&mut self, file: FileId, actions: &mut Vec<Action>) {
        let Some(watch) = self.watches.get_mut(&file) else { return };
        match watch.queued.pop_front() {
            Some(request) => {
                watch.running = Some(Running { request, moved: false, size: 0 });
                actions.push(Action::Setup(request));
            }
            None if watch.is_unused() => {
                self.watches.remove(&file);
            }
            None => {}
        }
    }

    pub(super) fn reply_refused(&mut self, request: &SetupRequest, why: &str) {
        let text = format!("setup watch f{} @{}: {why}", request.file, request.at);
        self.reply_error(request.stream, &text);
    }
}
