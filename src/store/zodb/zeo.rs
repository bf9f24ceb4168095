//! A database behind a ZEO server, read only: protocol 5, in pickles or MessagePack.
//!
//! Invariant: what is answered for a state is what the server had in it, whether it comes from the server or from what it sent
//! before; a state is taken up only when all commits up to it are known or known to be missing. Nothing that a server says is run or
//! believed beyond its bounds. While there is no connection the last state stays, and what is kept goes on being served. Left
//! out on purpose: writing, blobs, and a cache on disk.

mod address;
mod cache;
mod client;
mod error;
mod iterate;
mod link;
mod msgpack;
mod recent;
mod socket;
mod tls;
mod value;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use revfs_protocol::Tid;
use tracing_mutex::stdsync::{Condvar, Mutex, MutexGuard};

use super::Oid;
use super::storage::{Loaded, Oids, Peeked, Refreshed, Storage, StorageError, Transaction, Transactions};
pub use address::{Address, ZeoUrl};
use cache::Record;
use client::{Phase, Server, Shared};
pub use error::ZeoError;
use iterate::{Backwards, Forwards};
pub use tls::{Tls, TlsError};
use value::Value;
use wire::Arg;
pub use wire::MESSAGE_BYTES_MAX;

use crate::env::{self, Clock, SystemClock};

/// How long an answer is waited for unless the URL says so.
pub const WAIT_LIMIT_DEFAULT: Duration = Duration::from_secs(60);
/// Bound of the records that are kept by default, bytes.
pub const CACHE_BYTES_DEFAULT: u64 = 128 << 20;
/// How long a server is waited for that does not answer at first, at most.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a record that are shown of one that is only looked at.
const PEEK_BYTES: usize = 4 << 10;
/// Most records that are asked for at once.
const PREFETCH_MAX: usize = 128;
/// Most revisions of one object that are asked for at once, and in the end.
const REVISIONS_BOUNDS: (i64, i64) = (1 << 10, 1 << 20);
/// Most objects, and most states, of which a fact is remembered.
const FACTS_MAX: usize = 1 << 16;

/// Told how many objects were looked at, of about how many.
pub type ObjectsProgress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// How a server is talked to.
#[derive(Clone)]
pub struct ZeoOptions {
    /// How long an answer is waited for; `wait_timeout` of the URL comes before it.
    pub wait_limit: Duration,
    /// Bound of the records that are kept, bytes.
    pub cache_bytes: u64,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Told how many objects were looked at, of about how many, while all are gone through.
    pub progress: Option<ObjectsProgress>,
}

impl std::fmt::Debug for ZeoOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZeoOptions").field("wait_limit", &self.wait_limit).finish_non_exhaustive()
    }
}

impl Default for ZeoOptions {
    fn default() -> ZeoOptions {
        ZeoOptions {
            wait_limit: WAIT_LIMIT_DEFAULT,
            cache_bytes: CACHE_BYTES_DEFAULT,
            clock: SystemClock::shared(),
            progress: None,
        }
    }
}

/// A record that is on its way.
#[derive(Debug, Default)]
struct Flight {
    // Leaf lock.
    landed: Mutex<Option<Result<Option<Record>, ZeoError>>>,
    moved: Condvar,
}

/// What does not change any more.
#[derive(Debug, Default)]
struct Facts {
    /// The first revision of objects.
    first: HashMap<Oid, Tid>,
    /// Transactions, and the state up to which there is no later one.
    newest: BTreeMap<Tid, Tid>,
}

/// A storage of a ZEO server.
pub struct ZeoStorage {
    progress: Option<ObjectsProgress>,
    shared: Arc<Shared>,
    // Leaf lock. Who waits for a record that another thread asked for does not hold it.
    flights: Mutex<HashMap<(Oid, Tid), Arc<Flight>>>,
    // Leaf lock.
    facts: Mutex<Facts>,
}

impl std::fmt::Debug for ZeoStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZeoStorage").field("server", &self.shared.server).finish_non_exhaustive()
    }
}

impl Drop for ZeoStorage {
    fn drop(&mut self) {
        self.shared.state().ending = true;
        self.shared.notify();
        self.shared.wake();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ZeoStorage {
    /// Connects to the server that the URL names; see [`ZeoUrl`].
    ///
    /// # Errors
    /// The URL is wrong, or the server does not answer within the limit.
    pub fn open(url: &str, options: ZeoOptions) -> Result<ZeoStorage, ZeoError> {
        let parsed = ZeoUrl::parse(url)?;
        for option in &parsed.ignored {
            log::warn!("{url}: the option {option} means nothing here");
        }
        if let Some(tls) = &parsed.tls {
            // What is wrong with its files is said at once, and not after the wait for a server.
            let wrong = |error| ZeoError::Tls { url: url.to_owned(), cause: error };
            tls.config().map_err(wrong)?;
        }
        let server = Server {
            url: url.to_owned(),
            address: parsed.address,
            tls: parsed.tls,
            storage: parsed.storage,
            wait_limit: parsed.wait_timeout.unwrap_or(options.wait_limit),
        };
        let shared = Arc::new(Shared::new(server, options.clock, options.cache_bytes)?);
        let storage = ZeoStorage {
            progress: options.progress,
            shared,
            flights: Mutex::default(),
            facts: Mutex::default(),
        };
        let shared = Arc::clone(&storage.shared);
        env::spawn("zeo", move || link::run(&shared)).map_err(|error| {
            let (url, what) = (url.to_owned(), "starting a thread");
            ZeoError::System { url, what, cause: error.to_string() }
        })?;
        storage.shared.wait_up(OPEN_LIMIT)?;
        let mut state = storage.shared.state();
        state.taken = state.heard.last;
        drop(state);
        Ok(storage)
    }

    fn answer(&self, method: &'static str, what: &str) -> ZeoError {
        ZeoError::Answer { url: self.shared.server.url.clone(), method, what: what.to_owned() }
    }

    fn record(&self, oid: Oid, at: Tid) -> Result<Option<Record>, ZeoError> {
        if let Some(record) = self.shared.cache().get(oid, at) {
            return Ok(Some(record));
        }
        // Many READs of one block ask for it at once: the server is asked once.
        let (flight, is_first) = {
            let mut flights = lock(&self.flights);
            match flights.get(&(oid, at)) {
                Some(flight) => (Arc::clone(flight), false),
                None => {
                    let flight = Arc::new(Flight::default());
                    flights.insert((oid, at), Arc::clone(&flight));
                    (flight, true)
                }
            }
        };
        if is_first {
            let loaded = self.shared.load(oid, at);
            lock(&self.flights).remove(&(oid, at));
            *lock(&flight.landed) = Some(loaded.clone());
            flight.moved.notify_all();
            return loaded;
        }
        // The one who asks waits no longer than the limit, and always lands.
        let landed = flight.moved.wait_while(lock(&flight.landed), |landed| landed.is_none());
        let landed = landed.unwrap_or_else(PoisonError::into_inner);
        landed.clone().unwrap_or(Ok(None))
    }

    /// Revisions of an object, newest first.
    fn revisions(&self, oid: Oid, count: i64) -> Result<Vec<Tid>, ZeoError> {
        let answer = match self.shared.call("history", &[Arg::from(oid.to_be_bytes()), Arg::Int(count)]) {
            Err(error) if error.is_absent_object() => return Ok(Vec::new()),
            other => other?,
        };
        let revisions = answer.list().map(|list| list.iter().map(|entry| entry.get("tid")?.tid()));
        let revisions: Option<Vec<Tid>> = revisions.and_then(Iterator::collect);
        revisions.ok_or_else(|| self.answer("history", "something else than revisions with a tid"))
    }

    fn first_revision(&self, oid: Oid) -> Result<Option<Tid>, ZeoError> {
        if let Some(first) = lock(&self.facts).first.get(&oid) {
            return Ok(Some(*first));
        }
        let mut count = REVISIONS_BOUNDS.0;
        let first = loop {
            let revisions = self.revisions(oid, count)?;
            if (revisions.len() as i64) < count || count >= REVISIONS_BOUNDS.1 {
                break revisions.last().copied();
            }
            count *= 16;
        };
        if let Some(first) = first {
            let mut facts = lock(&self.facts);
            if facts.first.len() >= FACTS_MAX {
                facts.first.clear();
            }
            facts.first.insert(oid, first);
        }
        Ok(first)
    }

    fn newest_at(&self, at: Tid) -> Result<Tid, ZeoError> {
        let last = self.last_tid();
        if at >= last {
            return Ok(last);
        }
        if let Some(known) = self.shared.state().heard.recent.newest(at) {
            return Ok(known);
        }
        let known = |facts: &Facts| {
            let (tid, until) = facts.newest.range(..=at).next_back()?;
            (at <= *until).then_some(*tid)
        };
        if let Some(known) = known(&lock(&self.facts)) {
            return Ok(known);
        }
        let found = Backwards::new(&self.shared, Tid::ZERO, at).next_tid()?.unwrap_or(Tid::ZERO);
        let mut facts = lock(&self.facts);
        if facts.newest.len() >= FACTS_MAX {
            facts.newest.clear();
        }
        let until = facts.newest.entry(found).or_insert(at);
        *until = at.max(*until);
        Ok(found)
    }

    /// The object at or after `from`, and where the next one is.
    fn next_object(&self, from: Option<Oid>) -> Result<Option<(Oid, Option<Oid>)>, ZeoError> {
        const METHOD: &str = "record_iternext";
        let from_arg = from.map_or(Arg::None, |from| Arg::from(from.to_be_bytes()));
        let answer =
            match self.shared.call_upto(self.last_tid(), METHOD, &[from_arg]).map(|(_, answer)| answer) {
                // An empty database has no first object.
                Err(ZeoError::Refused { class, .. }) if from.is_none() && class.ends_with("ValueError") => {
                    return Ok(None);
                }
                // A deleted object has no state that could be sent: it is passed over.
                Err(error) if error.is_absent_object() => {
                    let next = from.map(|from| Oid::from_raw(from.raw().saturating_add(1)));
                    return Ok(from.map(|from| (from, next)));
                }
                other => other?,
            };
        let wrong = || self.answer(METHOD, "something else than an object and the next one");
        let [oid, serial, data, next] = answer.list().unwrap_or_default() else { return Err(wrong()) };
        let oid = oid.oid().filter(|oid| from.is_none_or(|from| *oid >= from)).ok_or_else(wrong)?;
        if let (Some(serial), Value::Bytes(data)) = (serial.tid(), data) {
            // It is looked at next. More is not known than that it was so then.
            let until = cache::Until::Before(Tid::from_raw(serial.raw().saturating_add(1)));
            self.shared.cache().put(oid, Record { serial, data: data.clone() }, until);
        }
        let next = match next {
            Value::None => None,
            next => Some(next.oid().filter(|next| *next > oid).ok_or_else(wrong)?),
        };
        Ok(Some((oid, next)))
    }
}

/// All objects, one question each.
struct Objects<'s> {
    storage: &'s ZeoStorage,
    next: Option<Option<Oid>>,
    done: u64,
    total: u64,
}

impl Objects<'_> {
    /// How many objects there are is asked once, and not of interest unless somebody looks.
    fn tell(&mut self) {
        let Some(progress) = &self.storage.progress else { return };
        if self.done == 0 {
            let info = self.storage.shared.call("get_info", &[]).ok();
            let length = info.and_then(|info| info.get("length").and_then(Value::int));
            self.total = length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        }
        self.done += 1;
        // Both are the same at the end, and not before.
        let total = if self.next.is_none() { self.done } else { self.total.max(self.done + 1) };
        progress(self.done, total);
    }
}

impl Iterator for Objects<'_> {
    type Item = Result<Oid, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.next.take()?;
        match self.storage.next_object(from) {
            Ok(Some((oid, next))) => {
                self.next = next.map(Some);
                self.tell();
                Some(Ok(oid))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error.into())),
        }
    }
}

fn loaded(record: Record) -> Loaded {
    Loaded { serial: record.serial, data: record.data }
}

fn peeked(record: Record) -> Peeked {
    let start = record.data.slice(..record.data.len().min(PEEK_BYTES));
    Peeked { serial: record.serial, start, len: record.data.len() as u64 }
}

impl Storage for ZeoStorage {
    fn url(&self) -> String {
        self.shared.server.url.clone()
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn cached_bytes(&self) -> u64 {
        self.shared.cache().bytes()
    }

    fn last_tid(&self) -> Tid {
        self.shared.state().taken
    }

    fn trouble(&self) -> Option<String> {
        let url = &self.shared.server.url;
        let now = self.shared.clock.monotonic();
        let state = self.shared.state();
        if let Some(back) = state.heard.went_back {
            let last = state.heard.last;
            return Some(format!(
                "{url} went back from @{last} to @{back}, as a restored backup does: mount it anew"
            ));
        }
        let Phase::Down { since, cause } = &state.phase else { return None };
        let seconds = now.saturating_sub(*since).as_secs();
        Some(format!(
            "{url} does not answer for {seconds} s: {cause}; it is tried again, and what is kept is served"
        ))
    }

    fn extent(&self) -> Result<u64, StorageError> {
        let info = self.shared.call("get_info", &[])?;
        let size = info.get("size").and_then(Value::int).and_then(|size| u64::try_from(size).ok());
        Ok(size.ok_or_else(|| self.answer("get_info", "no size"))?)
    }

    fn load(&self, oid: Oid, at: Tid) -> Result<Option<Loaded>, StorageError> {
        Ok(self.record(oid, at)?.map(loaded))
    }

    fn peek(&self, oid: Oid, at: Tid) -> Result<Option<Peeked>, StorageError> {
        Ok(self.record(oid, at)?.map(peeked))
    }

    fn prefetch(&self, oids: &[Oid], at: Tid) {
        let absent: Vec<Oid> = {
            let mut cache = self.shared.cache();
            oids.iter().copied().filter(|oid| cache.get(*oid, at).is_none()).collect()
        };
        for some in absent.chunks(PREFETCH_MAX) {
            if !self.shared.load_ahead(some, at) {
                return;
            }
        }
    }

    fn peek_last(&self, oid: Oid) -> Result<Option<Peeked>, StorageError> {
        if let Some(record) = self.record(oid, self.last_tid())? {
            return Ok(Some(peeked(record)));
        }
        for revision in self.revisions(oid, REVISIONS_BOUNDS.0)? {
            if let Some(record) = self.record(oid, revision)? {
                return Ok(Some(peeked(record)));
            }
        }
        Ok(None)
    }

    fn oldest_serial(&self, oid: Oid) -> Result<Option<Tid>, StorageError> {
        Ok(self.first_revision(oid)?)
    }

    /// What a server packed it does not say.
    fn oldest(&self) -> Result<Tid, StorageError> {
        Ok(Tid::ZERO)
    }

    fn oids(&self) -> Oids<'_> {
        Box::new(Objects { storage: self, next: Some(None), done: 0, total: 0 })
    }

    fn transactions(&self, lo: Tid, hi: Tid) -> Result<Transactions<'_>, StorageError> {
        Ok(Box::new(Forwards::new(&self.shared, lo, hi.min(self.last_tid())).map(told)))
    }

    fn transactions_back(&self, lo: Tid, hi: Tid) -> Transactions<'_> {
        Box::new(Backwards::new(&self.shared, lo, hi.min(self.last_tid())).map(told))
    }

    fn newest(&self, at: Tid) -> Result<Tid, StorageError> {
        Ok(self.newest_at(at)?)
    }

    fn refresh(&self) -> Result<Refreshed, StorageError> {
        let mut state = self.shared.state();
        let (from, to) = (state.taken, state.heard.last);
        state.taken = to;
        Ok(match std::mem::take(&mut state.heard.anew) {
            true => Refreshed::Anew { from, to },
            false if to > from => Refreshed::Grown { from, to },
            false => Refreshed::Nothing,
        })
    }

    fn wait_for_commits(&self, timeout: Duration) {
        self.shared.wait_for_commits(timeout);
    }

    fn wake_follower(&self) {
        self.shared.state().woken = true;
        self.shared.notify();
    }

    fn give_up(&self) {
        let now = self.shared.clock.monotonic();
        self.shared.state().gave_up.get_or_insert(now);
        self.shared.notify();
    }
}

fn told(item: Result<Transaction, ZeoError>) -> Result<Transaction, StorageError> {
    Ok(item?)
}
