//! Transactions of a server, in either direction.
//!
//! Invariant: each transaction of the span is given once, in order, whatever becomes of connections meanwhile; what it wrote
//! is what the server listed, or told when it was committed. A server goes through its transactions forwards only: backwards
//! they are read in pieces of time, each forwards.

use std::sync::Arc;

use revfs_protocol::Tid;

use super::cache::{Record, Until};
use super::client::Shared;
use super::error::ZeoError;
use super::value::Value;
use super::wire::Arg;
use crate::store::zodb::storage::{Transaction, Written};

/// The first piece of time backwards: 1/16 of a minute, as tids count.
const SPAN_FIRST: u64 = 1 << 28;
/// A piece with fewer transactions is followed by one of four times the time.
const SPAN_FULL: usize = 64;
/// Most records of one transaction that are listed.
const RECORDS_MAX: usize = 1 << 22;
/// What a record and a transaction take besides data, about, bytes.
const HEADER_BYTES: u64 = 42;

/// A transaction without what it wrote.
struct Header {
    tid: Tid,
    user: Vec<u8>,
    description: Vec<u8>,
}

/// A position among the transactions of a server. It outlives connections.
struct Position<'s> {
    shared: &'s Shared,
    /// Those up to here were given.
    lo: Tid,
    hi: Tid,
    /// The iterator of the server, and its connection.
    iterator: Option<(u64, i64)>,
}

impl Drop for Position<'_> {
    fn drop(&mut self) {
        if let Some((number, iterator)) = self.iterator {
            self.shared.tell(number, "iterator_gc", &[Arg::List(vec![Arg::Int(iterator)])]);
        }
    }
}

impl<'s> Position<'s> {
    fn new(shared: &'s Shared, lo: Tid, hi: Tid) -> Position<'s> {
        Position { shared, lo, hi, iterator: None }
    }

    fn wrong(&self, method: &'static str, what: &str) -> ZeoError {
        ZeoError::Answer { url: self.shared.server.url.clone(), method, what: what.to_owned() }
    }

    /// Does something with the next transaction, again if the connection is lost meanwhile.
    fn next_with<T>(
        &mut self,
        mut then: impl FnMut(&Position<'s>, (u64, i64), Header) -> Result<T, ZeoError>,
    ) -> Result<Option<T>, ZeoError> {
        loop {
            let result = self.step(&mut then);
            match result {
                Err(ZeoError::Lost { .. }) => self.iterator = None,
                other => return other,
            }
        }
    }

    fn step<T>(
        &mut self,
        then: &mut impl FnMut(&Position<'s>, (u64, i64), Header) -> Result<T, ZeoError>,
    ) -> Result<Option<T>, ZeoError> {
        let from = match self.lo.next() {
            Some(from) if from <= self.hi => from,
            _ => return Ok(None),
        };
        let on = match self.iterator {
            Some(on) => on,
            None => {
                let span = [Arg::from(from.to_be_bytes()), Arg::from(self.hi.to_be_bytes())];
                let (number, iterator) = self.shared.call_upto(self.hi, "iterator_start", &span)?;
                let iterator = iterator.int().ok_or_else(|| self.wrong("iterator_start", "no number"))?;
                *self.iterator.insert((number, iterator))
            }
        };
        let answer = self.shared.call_on(on.0, "iterator_next", &[Arg::Int(on.1)])?;
        if answer.is_none() {
            // The server has forgotten it.
            (self.iterator, self.lo) = (None, self.hi);
            return Ok(None);
        }
        let header = self.header(&answer)?;
        let tid = header.tid;
        let made = then(self, on, header)?;
        self.lo = tid;
        Ok(Some(made))
    }

    fn header(&self, answer: &Value) -> Result<Header, ZeoError> {
        let [tid, _status, user, description, ..] = answer.list().unwrap_or_default() else {
            return Err(self.wrong("iterator_next", "something else than a transaction"));
        };
        let tid = tid.tid().filter(|tid| self.lo < *tid && *tid <= self.hi);
        let tid = tid.ok_or_else(|| self.wrong("iterator_next", "a transaction that was not asked for"))?;
        let text = |value: &Value| value.bytes().map(|bytes| bytes.to_vec()).unwrap_or_default();
        Ok(Header { tid, user: text(user), description: text(description) })
    }

    /// A transaction and what it wrote.
    fn whole(&self, (number, iterator): (u64, i64), header: Header) -> Result<Transaction, ZeoError> {
        let Header { tid, user, description } = header;
        let known = self.shared.state().heard.recent.written(tid);
        let records = match known {
            // How long they are the server did not say.
            Some(oids) => oids.iter().map(|oid| Written { oid: *oid, data_len: 0 }).collect(),
            None => self.records(number, iterator, tid)?,
        };
        Ok(Transaction { tid, user, description, records, done: 0 })
    }

    fn records(&self, number: u64, iterator: i64, tid: Tid) -> Result<Vec<Written>, ZeoError> {
        const METHOD: &str = "iterator_record_next";
        let start = [Arg::Int(iterator), Arg::from(tid.to_be_bytes())];
        let records = self.shared.call_on(number, "iterator_record_start", &start)?;
        let records = records.int().ok_or_else(|| self.wrong("iterator_record_start", "no number"))?;
        let mut written = Vec::new();
        loop {
            let answer = self.shared.call_on(number, METHOD, &[Arg::Int(records)])?;
            if answer.is_none() {
                return Ok(written);
            }
            let wrong = |what| self.wrong(METHOD, what);
            let [oid, _, data, back] = answer.list().unwrap_or_default() else {
                return Err(wrong("something else than a record"));
            };
            let oid = oid.oid().ok_or_else(|| wrong("a record without an object"))?;
            let mut data_len = 0;
            if let Value::Bytes(data) = data {
                if back.is_none() {
                    data_len = data.len() as u64;
                }
                // Who goes through transactions often looks at what they wrote.
                let until = Until::Before(Tid::from_raw(tid.raw().saturating_add(1)));
                self.shared.cache().put(oid, Record { serial: tid, data: data.clone() }, until);
            }
            if written.len() >= RECORDS_MAX {
                return Err(wrong("more records than a transaction can have"));
            }
            written.push(Written { oid, data_len });
        }
    }
}

/// Transactions in their order.
pub struct Forwards<'s> {
    position: Position<'s>,
    done: u64,
    ended: bool,
}

impl<'s> Forwards<'s> {
    /// Those with `lo < tid <= hi`.
    pub fn new(shared: &'s Arc<Shared>, lo: Tid, hi: Tid) -> Forwards<'s> {
        Forwards { position: Position::new(shared, lo, hi), done: 0, ended: false }
    }
}

impl Iterator for Forwards<'_> {
    type Item = Result<Transaction, ZeoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.position.next_with(|position, on, header| position.whole(on, header));
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose().map(|item| {
            item.map(|mut transaction| {
                transaction.done = self.done;
                let lengths = transaction.records.iter().map(|record| record.data_len + HEADER_BYTES);
                self.done += HEADER_BYTES + lengths.sum::<u64>();
                transaction
            })
        })
    }
}

/// Transactions, newest first.
pub struct Backwards<'s> {
    shared: &'s Shared,
    lo: Tid,
    /// Those after it were given, or are in `piece`.
    hi: Tid,
    span: u64,
    /// What was read and not given, in order.
    piece: Vec<Tid>,
    ended: bool,
}

impl<'s> Backwards<'s> {
    /// Those with `lo < tid <= hi`.
    pub fn new(shared: &'s Arc<Shared>, lo: Tid, hi: Tid) -> Backwards<'s> {
        Backwards { shared, lo, hi, span: SPAN_FIRST, piece: Vec::new(), ended: false }
    }

    /// The tid of the next one.
    pub fn next_tid(&mut self) -> Result<Option<Tid>, ZeoError> {
        while self.piece.is_empty() && self.lo < self.hi {
            let from = Tid::from_raw(self.hi.raw().saturating_sub(self.span)).max(self.lo);
            let mut position = Position::new(self.shared, from, self.hi);
            while let Some(tid) = position.next_with(|_, _, header| Ok(header.tid))? {
                self.piece.push(tid);
            }
            self.hi = from;
            if self.piece.len() < SPAN_FULL {
                self.span = self.span.saturating_mul(4);
            }
        }
        Ok(self.piece.pop())
    }

    fn step(&mut self) -> Result<Option<Transaction>, ZeoError> {
        let Some(tid) = self.next_tid()? else { return Ok(None) };
        let before = Tid::from_raw(tid.raw().saturating_sub(1));
        let mut position = Position::new(self.shared, before, tid);
        position.next_with(|position, on, header| position.whole(on, header))
    }
}

impl Iterator for Backwards<'_> {
    type Item = Result<Transaction, ZeoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.step();
        self.ended = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}
