//! The watch link: sends frames, and matches replies with who waits for them.
//!
//! Invariant: each frame is one write; nothing is sent by a fork of the process that opened the link, or after the
//! link is down. A reply is delivered by the pinner's thread, after all pins that came before it are carried out.

use crate::error::{ClientError, DownCause};
use crate::shared::lock;
use revfs_protocol::{ClientRequest, FIRST_CLIENT_STREAM, OkReply};
use rustix::io::{Errno, retry_on_intr, write};
use rustix::process::{Pid, getpid};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use tracing_mutex::stdsync::{Condvar, Mutex};

/// What a server answered: ok, or the text of its error.
pub(crate) type Reply = Result<OkReply, Arc<str>>;

/// One open of `head/watch`.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
    pid: Pid,
    sending: Mutex<()>,  // held across one write; no thread that holds it touches a mapping
    state: Mutex<State>, // leaf; nobody holds it across a system call
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    next_stream: u64,
    waiting: HashMap<u64, Option<Reply>>, // stream -> reply, once it is there
    down: Option<DownCause>,
    said_bye: bool,
}

/// A request that was sent.
#[derive(Debug)]
#[must_use = "its reply waits to be taken"]
pub(crate) struct Sent(u64);

impl Link {
    pub(crate) fn new(fd: OwnedFd) -> Link {
        let state =
            State { next_stream: FIRST_CLIENT_STREAM, waiting: HashMap::new(), down: None, said_bye: false };
        let sending = Mutex::new(());
        Link { fd, pid: getpid(), sending, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Whether this process opened the link and it is up.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        if self.pid != getpid() {
            return Err(ClientError::Forked);
        }
        lock(&self.state).down.clone().map_or(Ok(()), |cause| Err(ClientError::Down(cause)))
    }

    /// Whether this process opened the link.
    pub(crate) fn is_own(&self) -> bool {
        self.pid == getpid()
    }

    /// Sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<(), ClientError> {
        self.check()?;
        self.write(frame).map_err(|errno| ClientError::Down(DownCause::of_link(errno)))
    }

    fn write(&self, mut frame: &[u8]) -> Result<(), Errno> {
        let _sending = lock(&self.sending);
        while !frame.is_empty() {
            match retry_on_intr(|| write(&self.fd, frame))? {
                0 => return Err(Errno::PIPE),
                sent => frame = &frame[sent..],
            }
        }
        Ok(())
    }

    /// A stream for one more request.
    pub(crate) fn new_stream(&self) -> u64 {
        let mut state = lock(&self.state);
        state.next_stream += 2;
        state.next_stream - 2
    }

    /// Sends a request, whose reply is taken with [`Link::wait`].
    pub(crate) fn request(&self, request: ClientRequest) -> Result<Sent, ClientError> {
        let stream = self.new_stream();
        lock(&self.state).waiting.insert(stream, None);
        let sent = self.send(&request.to_frame(stream));
        if sent.is_err() {
            lock(&self.state).waiting.remove(&stream);
        }
        sent.map(|()| Sent(stream))
    }

    /// Waits for the reply to a request.
    pub(crate) fn wait(&self, sent: Sent) -> Result<Reply, ClientError> {
        let mut state = lock(&self.state);
        loop {
            // What was answered before the link went down counts.
            if let Some(Some(reply)) = state.waiting.get(&sent.0) {
                let reply = reply.clone();
                state.waiting.remove(&sent.0);
                return Ok(reply);
            }
            if let Some(cause) = state.down.clone() {
                state.waiting.remove(&sent.0);
                return Err(ClientError::Down(cause));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands a reply to who waits for it; whether there is somebody.
    pub(crate) fn deliver(&self, stream: u64, reply: Reply) -> bool {
        let mut state = lock(&self.state);
        let Some(place @ None) = state.waiting.get_mut(&stream) else {
            return false;
        };
        *place = Some(reply);
        self.changed.notify_all();
        true
    }

    /// Takes the link down; whether it was up. The first cause stays.
    pub(crate) fn take_down(&self, cause: DownCause) -> bool {
        let mut state = lock(&self.state);
        let was_up = state.down.is_none();
        state.down.get_or_insert(cause);
        self.changed.notify_all();
        was_up
    }

    /// Says `bye`, once, also on a link that is down already: the server then owes and expects nothing. Only in the
    /// process that opened the link.
    pub(crate) fn say_bye(&self) -> Result<(), Errno> {
        if std::mem::replace(&mut lock(&self.state).said_bye, true) {
            return Ok(());
        }
        self.write(&ClientRequest::Bye.to_frame(self.new_stream()))
    }
}
