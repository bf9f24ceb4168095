//! The thread that talks to the server: it connects, takes up what was missed, and then hands questions out and answers in.
//!
//! Invariant: what a server sends is handled in its order, by this thread alone, so that records and commits are known in the
//! order in which the server had them. It waits for the network and for being woken, and holds no lock meanwhile. Whatever
//! is wrong ends the connection, with its cause, and the next one is tried: after 0.1 s at first, then twice as long each time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use revfs_protocol::Tid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::{Answer, Asked, Shared, State};
use super::error::ZeoError;
use super::socket::Socket;
use super::value::Value;
use super::wire::{self, Arg, Coding, Frames, Message, REPLY};
use crate::env;
use crate::store::zodb::Oid;

/// Bounds of the pause before the next try.
const PAUSE_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A server that accepted a connection has so long to take up the client.
const GREETING_LIMIT: Duration = Duration::from_secs(20);
/// After so long without a word the server is asked whether it lives.
const QUIET_MAX: Duration = Duration::from_secs(30);
/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;
/// Most bytes that the server need not have taken from us: it does not listen.
const OUTGOING_BYTES_MAX: usize = 16 << 20;
/// Most commits that may be told before the client is taken up.
const EARLY_MAX: usize = 10_000;
/// Longest text of a server that is repeated.
const TEXT_CHARS_MAX: usize = 300;

/// Talks to the server until nobody asks any more.
pub fn run(shared: &Arc<Shared>) {
    let mut pause = PAUSE_BOUNDS.0;
    let mut number = 0;
    let mut is_logged = false;
    loop {
        number += 1;
        let cause = match Session::begin(shared, number) {
            Ok(mut session) => {
                pause = PAUSE_BOUNDS.0;
                if is_logged {
                    log::info!(
                        "{}: connected again, the last transaction is @{}",
                        shared.server.url,
                        session.last
                    );
                    is_logged = false;
                }
                session.serve()
            }
            Err(cause) => cause,
        };
        if shared.state().ending {
            shared.is_down("it is closed");
            return;
        }
        if shared.is_down(&cause) || !is_logged {
            log::warn!("{}: {cause}; it is tried again", shared.server.url);
            is_logged = true;
        }
        // Not all who lost it come back at once.
        let jitter = env::random_u64() % u64::try_from(pause.as_millis()).unwrap_or(1).max(1);
        wait(None, shared, pause + Duration::from_millis(jitter) / 2);
        pause = (pause * 2).min(PAUSE_BOUNDS.1);
        if shared.state().ending {
            return;
        }
    }
}

/// Waits for a connection, for being woken, or for a time. Without a connection it is woken by the end alone.
fn wait(socket: Option<(&Socket, bool)>, shared: &Shared, timeout: Duration) {
    let until = shared.clock.monotonic() + timeout;
    loop {
        let left = until.saturating_sub(shared.clock.monotonic());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut polled = vec![PollFd::new(&shared.waker, PollFlags::IN)];
        if let Some((socket, is_writing)) = &socket {
            let events = if *is_writing { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            polled.push(PollFd::new(*socket, events));
        }
        // Interrupted is as good as an event.
        let _interrupted = poll(&mut polled, Some(&timeout));
        // A counter: one read empties it.
        let _empty = rustix::io::read(&shared.waker, &mut [0; 8]);
        if socket.is_some() || left.is_zero() || shared.state().ending {
            return;
        }
    }
}

/// A connection that is taken up.
struct Session<'s> {
    shared: &'s Shared,
    socket: Socket,
    coding: Coding,
    frames: Frames,
    outgoing: Vec<u8>,
    sent: usize,
    buffer: Vec<u8>,
    /// When the server was heard the last time.
    heard: Duration,
    is_asked: bool,
    /// Commits that were told before it was taken up.
    early: Vec<Value>,
    /// The last transaction when it was taken up.
    last: Tid,
    /// The last state that this server is asked for, if it is not the last that was heard of.
    limit: Option<Tid>,
}

impl<'s> Session<'s> {
    /// Connects and takes up what was missed.
    fn begin(shared: &'s Shared, number: u64) -> Result<Session<'s>, String> {
        let server = &shared.server;
        let socket = Socket::connect(&server.address, server.tls.as_ref())
            .map_err(|error| format!("no connection: {error}"))?;
        let mut session = Session {
            shared,
            socket,
            coding: Coding::Pickle,
            frames: Frames::default(),
            outgoing: Vec::new(),
            sent: 0,
            buffer: vec![0; READ_BYTES],
            heard: shared.clock.monotonic(),
            is_asked: false,
            early: Vec::new(),
            last: Tid::ZERO,
            limit: None,
        };
        let until = shared.clock.monotonic() + GREETING_LIMIT.min(shared.server.wait_limit);
        let greeting = session.receive(until)?;
        let coding = Coding::of_greeting(&greeting).ok_or_else(|| {
            let shown: String = String::from_utf8_lossy(&greeting).chars().take(16).collect();
            format!(
                "it speaks {shown:?}, and not protocol 5 of ZEO: it is another service, or older than ZEO 5"
            )
        })?;
        session.coding = coding;
        session.send(coding.answer());
        // All questions of a connection have numbers of their own: an answer to another one is none.
        let storage = Arg::Text(shared.server.storage.clone());
        let last = session.call("register", &[storage, Arg::Bool(true)], until)?;
        session.last = last.tid().ok_or("the server says no last transaction")?;
        session.take_up(until)?;
        shared.is_up(number, coding, session.limit);
        for commit in std::mem::take(&mut session.early) {
            session.committed(&commit)?;
        }
        Ok(session)
    }

    /// Compares what the server has with what was heard before.
    fn take_up(&mut self, until: Duration) -> Result<(), String> {
        let (known, ever, went_back) = {
            let heard = &self.shared.state().heard;
            (heard.last, heard.ever, heard.went_back)
        };
        let last = self.last;
        let is_behind = ever && last < known;
        // A server that has other transactions than those that are known is another one, or lost some.
        let is_same = !ever || known.is_zero() || last == known || is_behind || self.has(known, until)?;
        if is_behind || (went_back.is_some() && !is_same) {
            let limit = went_back.map_or(last, |before| before.min(last));
            self.limit = Some(limit);
            self.shared.state().heard.went_back = Some(limit);
            log::error!("{}: went back from @{known} to @{limit}: head stays", self.shared.server.url);
            return Ok(());
        }
        let missed = match (ever && last > known && is_same).then(|| self.missed(known, until)).transpose()? {
            Some(missed) => missed,
            None if last == known => Some(Vec::new()),
            None => None,
        };
        let mut state = self.shared.state();
        self.shared.cache().missed(last, missed.as_deref());
        if last > known || !ever {
            state.heard.recent.begin(last);
        }
        state.heard.last = last;
        state.heard.ever = true;
        state.heard.went_back = None;
        if !is_same {
            state.heard.anew = true;
            drop(state);
            log::warn!("{}: has no transaction @{known} any more: all is read anew", self.shared.server.url);
        }
        Ok(())
    }

    /// Whether the server has a transaction.
    fn has(&mut self, tid: Tid, until: Duration) -> Result<bool, String> {
        let tid_arg = || Arg::from(tid.to_be_bytes());
        let iterator = self.call("iterator_start", &[tid_arg(), tid_arg()], until)?;
        let iterator = iterator.int().ok_or("iterator_start is answered by no number")?;
        let next = self.call("iterator_next", &[Arg::Int(iterator)], until)?;
        let found = next.list().and_then(|parts| parts.first()).and_then(Value::tid);
        if !next.is_none() {
            self.post("iterator_gc", &[Arg::List(vec![Arg::Int(iterator)])]);
        }
        Ok(found == Some(tid))
    }

    /// What was written since `known`; None: the server does not know.
    fn missed(&mut self, known: Tid, until: Duration) -> Result<Option<Vec<Oid>>, String> {
        let answer = self.call("getInvalidations", &[Arg::from(known.to_be_bytes())], until)?;
        let Some([tid, oids]) = answer.list() else { return Ok(None) };
        // It is as of a state before the one that is to be known: then it says too little.
        if tid.tid().is_none_or(|tid| tid < self.last) {
            return Ok(None);
        }
        Ok(oids.list().and_then(|oids| oids.iter().map(Value::oid).collect()))
    }

    /// Serves until the connection is lost; answers why.
    fn serve(&mut self) -> String {
        loop {
            match self.step() {
                Ok(()) => {}
                Err(cause) => return cause,
            }
        }
    }

    fn step(&mut self) -> Result<(), String> {
        while let Some(message) = self.next_message()? {
            self.handle(&message)?;
        }
        let now = self.shared.clock.monotonic();
        {
            let mut state = self.shared.state();
            if state.ending {
                return Err("it is closed".to_owned());
            }
            if let Some(fault) = state.fault.take() {
                return Err(fault);
            }
            for message in std::mem::take(&mut state.outgoing) {
                wire::add_frame(&message, &mut self.outgoing);
            }
            if now.saturating_sub(self.heard) >= QUIET_MAX && !self.is_asked {
                let id = next_id(&mut state);
                let message = wire::request(self.coding, id, false, "lastTransaction", &[]);
                wire::add_frame(&message, &mut self.outgoing);
                state.asked.insert(id, Asked { slot: None, method: "lastTransaction", load: None });
                self.is_asked = true;
            }
        }
        if self.is_asked && now.saturating_sub(self.heard) >= QUIET_MAX + self.shared.server.wait_limit {
            return Err("the server says nothing any more".to_owned());
        }
        self.pump(QUIET_MAX)
    }

    fn handle(&mut self, bytes: &Bytes) -> Result<(), String> {
        let message = wire::message(self.coding, bytes).map_err(|error| error.to_string())?;
        if message.name != REPLY.as_bytes() {
            return match &message.name[..] {
                b"invalidateTransaction" => self.committed(&message.args),
                // What else servers tell is of no use here.
                _ => Ok(()),
            };
        }
        let asked = self.shared.state().asked.remove(&message.id);
        let asked = asked.ok_or("it answers what was not asked")?;
        self.is_asked = false;
        match (asked.load, refusal(self.shared, &asked, &message)) {
            (None, Some(error)) => answer(&asked, Err(error)),
            (Some(_), Some(error)) if error.is_absent_object() => answer(&asked, Ok(Answer::Record(None))),
            (Some(_), Some(error)) => answer(&asked, Err(error)),
            (Some(load), None) => self.shared.loaded(&asked, load, &message.args, self.limit),
            (None, None) => answer(&asked, Ok(Answer::Value(message.args))),
        }
        Ok(())
    }

    /// The server tells of a commit.
    fn committed(&mut self, args: &Value) -> Result<(), String> {
        const WRONG: &str = "it tells of a commit without an id and objects";
        let Some([tid, oids]) = args.list() else { return Err(WRONG.to_owned()) };
        let tid = tid.tid().ok_or(WRONG)?;
        let oids: Option<Vec<Oid>> = oids.list().and_then(|oids| oids.iter().map(Value::oid).collect());
        let oids = oids.ok_or(WRONG)?;
        // One that is known already, or of a history that is not the one that is served.
        if self.limit.is_some() || tid <= self.last {
            return Ok(());
        }
        self.last = tid;
        let mut state = self.shared.state();
        self.shared.cache().committed(tid, &oids);
        state.heard.recent.add(tid, oids);
        state.heard.last = tid;
        drop(state);
        self.shared.notify();
        Ok(())
    }

    /// Asks, and waits for the answer, before it is taken up.
    fn call(&mut self, method: &'static str, args: &[Arg], until: Duration) -> Result<Value, String> {
        let id = next_id(&mut self.shared.state());
        let message = wire::request(self.coding, id, false, method, args);
        self.send(&message);
        loop {
            let bytes = self.receive(until)?;
            let message = wire::message(self.coding, &bytes).map_err(|error| error.to_string())?;
            if message.name != REPLY.as_bytes() {
                if message.name == b"invalidateTransaction"[..] {
                    self.early.push(message.args);
                }
                if self.early.len() > EARLY_MAX {
                    return Err("it tells of commits, and does not answer".to_owned());
                }
                continue;
            }
            if message.id != id {
                return Err("it answers what was not asked".to_owned());
            }
            let asked = Asked { slot: None, method, load: None };
            return match refusal(self.shared, &asked, &message) {
                Some(error) => Err(error.to_string()),
                None => Ok(message.args),
            };
        }
    }

    /// Says something that is not answered.
    fn post(&mut self, method: &'static str, args: &[Arg]) {
        let message = wire::request(self.coding, 0, true, method, args);
        self.send(&message);
    }

    fn send(&mut self, message: &[u8]) {
        wire::add_frame(message, &mut self.outgoing);
    }

    fn next_message(&mut self) -> Result<Option<Bytes>, String> {
        self.frames.next_message().map_err(|error| error.to_string())
    }

    fn receive(&mut self, until: Duration) -> Result<Bytes, String> {
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(message);
            }
            if self.shared.state().ending {
                return Err("it is closed".to_owned());
            }
            let left = until.checked_sub(self.shared.clock.monotonic()).filter(|left| !left.is_zero());
            self.pump(left.ok_or("it accepts the connection, and does not answer")?)?;
        }
    }

    /// Sends what there is, waits for more, and reads it.
    fn pump(&mut self, timeout: Duration) -> Result<(), String> {
        let lost = |error: io::Error| format!("the connection is lost: {error}");
        while self.sent < self.outgoing.len() {
            match self.socket.write(&self.outgoing[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
        if self.sent == self.outgoing.len() {
            self.outgoing.clear();
            self.sent = 0;
        }
        if self.outgoing.len() > OUTGOING_BYTES_MAX {
            return Err("the server does not take what it is sent".to_owned());
        }
        if !self.socket.may_have_more() {
            let is_writing = !self.outgoing.is_empty() || self.socket.wants_write();
            wait(Some((&self.socket, is_writing)), self.shared, timeout);
        }
        match self.socket.read(&mut self.buffer) {
            Ok(0) => Err("the server closed the connection".to_owned()),
            Ok(count) => {
                self.heard = self.shared.clock.monotonic();
                self.frames.add(self.buffer.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(())
            }
            Err(error) => Err(lost(error)),
        }
    }
}

fn next_id(state: &mut State) -> i64 {
    state.next_id += 1;
    state.next_id - 1
}

fn answer(asked: &Asked, answer: Result<Answer, ZeoError>) {
    if let Some(slot) = &asked.slot {
        slot.answer(answer);
    }
}

/// The error that an answer is, if it is one.
fn refusal(shared: &Shared, asked: &Asked, message: &Message) -> Option<ZeoError> {
    if message.flag == 0 {
        return None;
    }
    let parts = message.args.list().unwrap_or_default();
    let class = parts.first().and_then(Value::text).unwrap_or_else(|| "an error without a name".to_owned());
    let text = match parts.get(1) {
        Some(Value::List(words)) => words.iter().map(shown).collect::<Vec<_>>().join(" "),
        Some(Value::Map(entries)) => entries
            .iter()
            .map(|(key, value)| format!("{}={}", shown(key), shown(value)))
            .collect::<Vec<_>>()
            .join(" "),
        other => other.map(shown).unwrap_or_default(),
    };
    let cut = |text: String| text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect();
    let (url, method) = (shared.server.url.clone(), asked.method);
    Some(ZeoError::Refused { url, method, class: cut(class), text: cut(text) })
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text(_) => value.text().unwrap_or_default(),
        Value::Bytes(bytes) => bytes.iter().take(TEXT_CHARS_MAX).map(|byte| format!("{byte:02x}")).collect(),
        Value::Int(int) => int.to_string(),
        Value::None => "None".to_owned(),
        Value::Bool(bool) => bool.to_string(),
        Value::List(_) | Value::Map(_) | Value::Other => "...".to_owned(),
    }
}
