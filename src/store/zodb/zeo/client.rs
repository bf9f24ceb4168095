//! Questions to a server, from many threads at once, and what is known between them and the thread that talks to it.
//!
//! Invariant: no lock is held across a wait for the network; who waits, waits for its own answer, and no longer than the
//! limit: from when it asked, and while there is no connection from when that was lost. A question whose connection is lost is
//! asked again, unless it belongs to that connection. A server is asked only for states that it has told.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use revfs_protocol::Tid;
use rustix::event::{EventfdFlags, eventfd};
use tracing_mutex::stdsync::{Condvar, Mutex, MutexGuard};

use super::address::Address;
use super::cache::{Record, RecordCache, Until};
use super::error::ZeoError;
use super::recent::Recent;
use super::tls::Tls;
use super::value::Value;
use super::wire::{self, Arg, Coding};
use crate::env::Clock;
use crate::store::zodb::Oid;

/// Who waits looks so often whether it is to go on.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Once all is to end, what is under way on a connection may take so long.
const END_GRACE: Duration = Duration::from_secs(2);

/// Which server, and how it is talked to.
#[derive(Clone, Debug)]
pub struct Server {
    /// As users name it.
    pub url: String,
    /// Where it is.
    pub address: Address,
    /// TLS, if it is talked to by that.
    pub tls: Option<Tls>,
    /// Name of the storage on it.
    pub storage: String,
    /// How long an answer is waited for.
    pub wait_limit: Duration,
}

/// Whether there is a connection.
#[derive(Clone, Debug)]
pub enum Phase {
    /// There is none.
    Down {
        /// Since when.
        since: Duration,
        /// Why.
        cause: String,
    },
    /// There is one.
    Up {
        /// Its number.
        number: u64,
        /// How its messages are spelt.
        coding: Coding,
        /// The last state that it is asked for, if that is not the last that was heard of: the server went back.
        limit: Option<Tid>,
    },
}

/// What a question came to.
#[derive(Debug)]
pub enum Answer {
    /// What the server says.
    Value(Value),
    /// A record, or that there is none.
    Record(Option<Record>),
}

/// How a question ends.
#[derive(Debug)]
enum End {
    Answered(Result<Answer, ZeoError>),
    Lost(String),
}

/// A question.
struct Question<'a> {
    method: &'static str,
    args: &'a [Arg],
    /// The connection that it is to be asked on; none: any.
    on: Option<u64>,
    /// The record that it asks for.
    load: Option<(Oid, Tid)>,
    /// The last state that it is about.
    upto: Tid,
}

const LOAD: &str = "loadBefore";

impl<'a> Question<'a> {
    fn load(args: &'a [Arg], oid: Oid, at: Tid) -> Question<'a> {
        Question { method: LOAD, args, on: None, load: Some((oid, at)), upto: at }
    }
}

fn load_args(oid: Oid, at: Tid) -> [Arg; 2] {
    [Arg::from(oid.to_be_bytes()), Arg::from(at.raw().saturating_add(1).to_be_bytes())]
}

/// The place where one answer is waited for.
#[derive(Debug, Default)]
pub struct Slot {
    // Leaf lock.
    end: Mutex<Option<End>>,
    moved: Condvar,
}

impl Slot {
    fn set(&self, end: End) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        self.moved.notify_all();
    }

    /// The answer came.
    pub fn answer(&self, answer: Result<Answer, ZeoError>) {
        self.set(End::Answered(answer));
    }
}

/// A question that was sent.
#[derive(Debug)]
pub struct Asked {
    /// Who waits; nobody for what only tells that the server lives.
    pub slot: Option<Arc<Slot>>,
    /// What was asked.
    pub method: &'static str,
    /// The record that it asks for.
    pub load: Option<(Oid, Tid)>,
}

/// What was heard of commits.
#[derive(Debug, Default)]
pub struct Heard {
    /// The last transaction; it never goes back.
    pub last: Tid,
    /// Whether anything was heard.
    pub ever: bool,
    /// What the last ones wrote.
    pub recent: Recent,
    /// The server went back to this state.
    pub went_back: Option<Tid>,
    /// What was known of objects need not hold any more.
    pub anew: bool,
}

/// What is known between the threads.
#[derive(Debug)]
pub struct State {
    /// Whether there is a connection.
    pub phase: Phase,
    /// Messages to be sent.
    pub outgoing: Vec<Vec<u8>>,
    /// Questions that are not answered, by their number.
    pub asked: HashMap<i64, Asked>,
    /// The number of the next question.
    pub next_id: i64,
    /// What was heard of commits.
    pub heard: Heard,
    /// The last transaction that was told to who follows.
    pub taken: Tid,
    /// Who follows is to look.
    pub woken: bool,
    /// Nobody asks any more: the thread ends.
    pub ending: bool,
    /// Since when nothing is waited for any more.
    pub gave_up: Option<Duration>,
    /// Why the connection is to be dropped.
    pub fault: Option<String>,
}

/// All of it.
#[derive(Debug)]
pub struct Shared {
    /// Which server.
    pub server: Server,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ends the wait of the thread that talks to the server.
    pub waker: OwnedFd,
    // Leaf lock.
    state: Mutex<State>,
    moved: Condvar,
    // Leaf lock. May be taken under that of the state.
    cache: Mutex<RecordCache>,
}

impl Shared {
    /// What is known before the first connection.
    pub fn new(server: Server, clock: Arc<dyn Clock>, cache_bytes: u64) -> Result<Shared, ZeoError> {
        let waker = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(|error| {
            let (url, what) = (server.url.clone(), "eventfd");
            ZeoError::System { url, what, cause: error.to_string() }
        })?;
        let phase = Phase::Down { since: clock.monotonic(), cause: "it was not tried yet".to_owned() };
        let state = State {
            phase,
            outgoing: Vec::new(),
            asked: HashMap::new(),
            next_id: 1,
            heard: Heard::default(),
            taken: Tid::ZERO,
            woken: false,
            ending: false,
            gave_up: None,
            fault: None,
        };
        let cache = Mutex::new(RecordCache::new(cache_bytes));
        Ok(Shared { server, clock, waker, state: Mutex::new(state), moved: Condvar::new(), cache })
    }

    /// The state, for a moment.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The records, for a moment.
    pub fn cache(&self) -> MutexGuard<'_, RecordCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all who wait for the state that it moved.
    pub fn notify(&self) {
        self.moved.notify_all();
    }

    /// Ends the wait of the thread that talks to the server.
    pub fn wake(&self) {
        // Fails only if the counter is full, and then it wakes anyway.
        let _full_is_fine = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
    }

    fn url(&self) -> String {
        self.server.url.clone()
    }

    fn down(&self, cause: String) -> ZeoError {
        ZeoError::Down { url: self.url(), waited: self.server.wait_limit, cause }
    }

    /// When who asked at `started` is to go on without an answer.
    fn deadline(&self, state: &State, started: Duration) -> Duration {
        let limit = started + self.server.wait_limit;
        match (&state.phase, state.gave_up) {
            (Phase::Down { .. }, Some(since)) => since,
            (Phase::Down { since, .. }, None) => limit.min(*since + self.server.wait_limit),
            (Phase::Up { .. }, Some(since)) => limit.min(since.max(started) + END_GRACE),
            (Phase::Up { .. }, None) => limit,
        }
    }

    /// Asks, and waits for the answer. The question is not about what is stored in any state.
    ///
    /// # Errors
    /// See [`ZeoError`]; so for all below.
    pub fn call(&self, method: &'static str, args: &[Arg]) -> Result<Value, ZeoError> {
        self.ask(&Question { method, args, on: None, load: None, upto: Tid::ZERO })
            .map(|(_, answer)| value_of(answer))
    }

    /// The same about transactions up to a state.
    pub fn call_upto(&self, upto: Tid, method: &'static str, args: &[Arg]) -> Result<(u64, Value), ZeoError> {
        let answered = self.ask(&Question { method, args, on: None, load: None, upto });
        answered.map(|(number, answer)| (number, value_of(answer)))
    }

    /// The same on the connection with this number.
    pub fn call_on(&self, number: u64, method: &'static str, args: &[Arg]) -> Result<Value, ZeoError> {
        let question = Question { method, args, on: Some(number), load: None, upto: Tid::ZERO };
        self.ask(&question).map(|(_, answer)| value_of(answer))
    }

    /// Asks the server for the record of an object.
    pub fn load(&self, oid: Oid, at: Tid) -> Result<Option<Record>, ZeoError> {
        let args = load_args(oid, at);
        match self.ask(&Question::load(&args, oid, at))? {
            (_, Answer::Record(record)) => Ok(record),
            (_, Answer::Value(_)) => Ok(None),
        }
    }

    /// Asks for the records of many objects at once, and waits until all are kept. `false`: the server does not answer.
    pub fn load_ahead(&self, oids: &[Oid], at: Tid) -> bool {
        let started = self.clock.monotonic();
        let asked: Vec<_> = oids
            .iter()
            .map(|oid| self.submit(&Question::load(&load_args(*oid, at), *oid, at), started))
            .collect();
        let mut landed = asked.into_iter().map(|asked| {
            let (slot, _) = asked?;
            self.wait_for(&slot, LOAD, started)
        });
        landed.all(|end| end.is_ok())
    }

    /// Says something that is not answered, if the connection with this number is there.
    pub fn tell(&self, number: u64, method: &'static str, args: &[Arg]) {
        let mut state = self.state();
        if let Phase::Up { number: now, coding, .. } = state.phase
            && now == number
        {
            state.outgoing.push(wire::request(coding, 0, true, method, args));
            drop(state);
            self.wake();
        }
    }

    fn ask(&self, question: &Question<'_>) -> Result<(u64, Answer), ZeoError> {
        let started = self.clock.monotonic();
        loop {
            let (slot, on) = self.submit(question, started)?;
            match self.wait_for(&slot, question.method, started)? {
                End::Answered(answer) => return answer.map(|answer| (on, answer)),
                End::Lost(cause) if question.on.is_some() => {
                    return Err(ZeoError::Lost { url: self.url(), cause });
                }
                End::Lost(_) => {}
            }
        }
    }

    /// Waits until there is a connection, and sends the question.
    fn submit(&self, question: &Question<'_>, started: Duration) -> Result<(Arc<Slot>, u64), ZeoError> {
        let (method, wanted) = (question.method, question.on);
        let mut state = self.state();
        loop {
            match &state.phase {
                Phase::Up { number, .. } if wanted.is_some_and(|wanted| wanted != *number) => {
                    return Err(ZeoError::Lost { url: self.url(), cause: "there is a new one".to_owned() });
                }
                Phase::Up { number, coding, limit } => {
                    let (number, coding) = (*number, *coding);
                    if let Some(last) = limit.filter(|last| question.upto > *last) {
                        return Err(ZeoError::Behind { url: self.url(), at: question.upto, last });
                    }
                    let id = state.next_id;
                    state.next_id += 1;
                    state.outgoing.push(wire::request(coding, id, false, method, question.args));
                    let slot = Arc::new(Slot::default());
                    state
                        .asked
                        .insert(id, Asked { slot: Some(Arc::clone(&slot)), method, load: question.load });
                    drop(state);
                    self.wake();
                    return Ok((slot, number));
                }
                Phase::Down { cause, .. } if wanted.is_some() => {
                    return Err(ZeoError::Lost { url: self.url(), cause: cause.clone() });
                }
                Phase::Down { cause, .. } => {
                    let now = self.clock.monotonic();
                    let Some(left) =
                        self.deadline(&state, started).checked_sub(now).filter(|left| !left.is_zero())
                    else {
                        return Err(self.down(cause.clone()));
                    };
                    let waited = self.moved.wait_timeout(state, left.min(LOOK_INTERVAL));
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn wait_for(&self, slot: &Slot, method: &'static str, started: Duration) -> Result<End, ZeoError> {
        loop {
            let end = slot.end.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = slot.moved.wait_timeout_while(end, LOOK_INTERVAL, |end| end.is_none());
            if let Some(end) = waited.unwrap_or_else(PoisonError::into_inner).0.take() {
                return Ok(end);
            }
            let mut state = self.state();
            if self.clock.monotonic() >= self.deadline(&state, started) {
                let cause = format!("{method} is not answered");
                if state.gave_up.is_none() {
                    state.fault = Some(cause.clone());
                    drop(state);
                    self.wake();
                }
                return Err(self.down(cause));
            }
        }
    }

    /// Waits for the first connection, for `limit` at most.
    pub fn wait_up(&self, limit: Duration) -> Result<(), ZeoError> {
        let limit = limit.min(self.server.wait_limit);
        let is_down = |state: &mut State| matches!(state.phase, Phase::Down { .. });
        let waited = self.moved.wait_timeout_while(self.state(), limit, is_down);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match &state.phase {
            Phase::Up { .. } => Ok(()),
            Phase::Down { cause, .. } => {
                Err(ZeoError::Down { url: self.url(), waited: limit, cause: cause.clone() })
            }
        }
    }

    /// There is a connection.
    pub fn is_up(&self, number: u64, coding: Coding, limit: Option<Tid>) {
        let mut state = self.state();
        state.phase = Phase::Up { number, coding, limit };
        state.fault = None;
        state.outgoing.clear();
        drop(state);
        self.notify();
    }

    /// There is no connection (any more). `true`: there was one.
    pub fn is_down(&self, cause: &str) -> bool {
        let now = self.clock.monotonic();
        let mut state = self.state();
        let (since, was_up) = match state.phase {
            Phase::Down { since, .. } => (since, false),
            Phase::Up { .. } => (now, true),
        };
        state.phase = Phase::Down { since, cause: cause.to_owned() };
        state.outgoing.clear();
        let lost = std::mem::take(&mut state.asked);
        drop(state);
        for slot in lost.into_values().filter_map(|asked| asked.slot) {
            slot.set(End::Lost(cause.to_owned()));
        }
        self.notify();
        was_up
    }

    /// A record that was asked for came: keeps it, and answers who asked.
    pub fn loaded(&self, asked: &Asked, (oid, at): (Oid, Tid), value: &Value, limit: Option<Tid>) {
        let answer = self.record_of(oid, at, value).map(|found| {
            found.map(|(record, end)| {
                let until = match (end, limit) {
                    (Some(end), _) => Until::Before(end),
                    (None, None) => Until::Known,
                    // What was committed after that is not what was heard of.
                    (None, Some(_)) => Until::Before(Tid::from_raw(at.raw().saturating_add(1))),
                };
                self.cache().put(oid, record.clone(), until);
                record
            })
        });
        if let Some(slot) = &asked.slot {
            slot.answer(answer.map(Answer::Record));
        }
    }

    fn record_of(&self, oid: Oid, at: Tid, value: &Value) -> Result<Option<(Record, Option<Tid>)>, ZeoError> {
        let wrong = |what| ZeoError::Object { url: self.url(), oid, at, what };
        let parts = match value {
            Value::None => return Ok(None),
            value => value.list().unwrap_or_default(),
        };
        let [Value::Bytes(data), serial, end] = parts else {
            return Err(wrong("something else than data and two tids"));
        };
        let serial = serial.tid().filter(|serial| *serial <= at);
        let serial = serial.ok_or_else(|| wrong("a state of it that is later than the one asked for"))?;
        let end = match end {
            Value::None => None,
            end => {
                let end = end.tid().filter(|end| *end > at);
                Some(end.ok_or_else(|| wrong("a state of it that is older than the one asked for"))?)
            }
        };
        Ok(Some((Record { serial, data: data.clone() }, end)))
    }

    /// Waits until commits were heard of that nobody took, or for `timeout`, or until it is woken.
    pub fn wait_for_commits(&self, timeout: Duration) {
        let idle = |state: &mut State| {
            !state.woken && !state.heard.anew && state.heard.last <= state.taken && !state.ending
        };
        let waited = self.moved.wait_timeout_while(self.state(), timeout, idle);
        waited.unwrap_or_else(PoisonError::into_inner).0.woken = false;
    }
}

fn value_of(answer: Answer) -> Value {
    match answer {
        Answer::Value(value) => value,
        Answer::Record(_) => Value::Other,
    }
}
