//! Records that a server sent, by object and the states that they are of.
//!
//! Invariant: a record is given only for a state in which the server said, or is known not to have said otherwise, that it is
//! the one: from its serial to the next one, or to the last transaction that was heard of. So the order counts in which records
//! and commits are put in, and one thread does both, in the order in which the server sent them. What does not fit is let
//! go, least lately used first, about.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use revfs_protocol::Tid;

use crate::store::zodb::Oid;

/// What a record takes besides its data, about, bytes.
const RECORD_OVERHEAD_BYTES: u64 = 160;

/// A record of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The tid at which it was written.
    pub serial: Tid,
    /// Its data.
    pub data: Bytes,
}

/// The states up to which a record is current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The state before this tid, at least.
    Before(Tid),
    /// As far as anything is known.
    Known,
}

#[derive(Debug)]
struct Entry {
    serial: Tid,
    until: Until,
    data: Bytes,
    /// It was asked for since the hand came by.
    used: bool,
}

/// The records.
#[derive(Debug)]
pub struct RecordCache {
    objects: HashMap<Oid, Vec<Entry>>,
    /// All entries, in the order in which they are looked at to be let go.
    order: VecDeque<(Oid, Tid)>,
    bytes: u64,
    bytes_max: u64,
    /// The last transaction that was heard of.
    known: Tid,
}

fn weight(data: &Bytes) -> u64 {
    RECORD_OVERHEAD_BYTES + data.len() as u64
}

impl RecordCache {
    /// One that keeps so many bytes, and one record in any case.
    pub fn new(bytes_max: u64) -> RecordCache {
        RecordCache { objects: HashMap::new(), order: VecDeque::new(), bytes: 0, bytes_max, known: Tid::ZERO }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The record of an object as of `at`, if it is known.
    pub fn get(&mut self, oid: Oid, at: Tid) -> Option<Record> {
        let known = self.known;
        let entries = self.objects.get_mut(&oid)?.iter_mut();
        let is_current = |until| match until {
            Until::Before(end) => at < end,
            Until::Known => at <= known,
        };
        let mut found = entries.filter(|entry| entry.serial <= at && is_current(entry.until));
        let entry = found.next()?;
        entry.used = true;
        Some(Record { serial: entry.serial, data: entry.data.clone() })
    }

    /// Keeps a record. Said again it is kept for as long as one of both said.
    pub fn put(&mut self, oid: Oid, record: Record, until: Until) {
        let entries = self.objects.entry(oid).or_default();
        if let Some(there) = entries.iter_mut().find(|entry| entry.serial == record.serial) {
            there.until = match (there.until, until) {
                (Until::Before(one), Until::Before(other)) => Until::Before(one.max(other)),
                // A commit since then may have ended it; who says it now has heard of all.
                (_, Until::Known) | (Until::Known, _) => Until::Known,
            };
            return;
        }
        self.bytes += weight(&record.data);
        self.order.push_back((oid, record.serial));
        entries.push(Entry { serial: record.serial, until, data: record.data, used: false });
        self.shrink((oid, record.serial));
    }

    /// A transaction wrote these objects, and the ones before it are all known.
    pub fn committed(&mut self, tid: Tid, oids: &[Oid]) {
        for oid in oids {
            self.end(*oid, tid);
        }
        self.known = self.known.max(tid);
    }

    /// Transactions were missed, up to `tid`: they wrote these objects, or it is not known which (`None`).
    pub fn missed(&mut self, tid: Tid, oids: Option<&[Oid]>) {
        let Some(end) = self.known.next() else { return };
        match oids {
            Some(oids) => oids.iter().for_each(|oid| self.end(*oid, end)),
            None => {
                for entry in self.objects.values_mut().flatten().filter(|entry| entry.until == Until::Known) {
                    entry.until = Until::Before(end);
                }
            }
        }
        self.known = self.known.max(tid);
    }

    fn end(&mut self, oid: Oid, end: Tid) {
        for entry in self.objects.get_mut(&oid).into_iter().flatten() {
            if entry.until == Until::Known {
                entry.until = Until::Before(end);
            }
        }
    }

    fn shrink(&mut self, new: (Oid, Tid)) {
        while self.bytes > self.bytes_max && self.order.len() > 1 {
            let Some((oid, serial)) = self.order.pop_front() else { return };
            let Some(entries) = self.objects.get_mut(&oid) else { continue };
            let Some(index) = entries.iter().position(|entry| entry.serial == serial) else { continue };
            // Each is passed over once at most before it is asked for again, so this ends at the new one.
            if std::mem::take(&mut entries[index].used) || (oid, serial) == new {
                self.order.push_back((oid, serial));
                continue;
            }
            self.bytes -= weight(&entries.swap_remove(index).data);
            if entries.is_empty() {
                self.objects.remove(&oid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Oid = Oid::from_raw(1);
    const B: Oid = Oid::from_raw(2);

    fn tid(raw: u64) -> Tid {
        Tid::from_raw(raw)
    }

    fn record(serial: u64) -> Record {
        Record { serial: tid(serial), data: Bytes::from(vec![serial as u8; 100]) }
    }

    fn serial(cache: &mut RecordCache, oid: Oid, at: u64) -> Option<u64> {
        cache.get(oid, tid(at)).map(|record| record.serial.raw())
    }

    #[test]
    fn a_record_is_given_for_the_states_that_it_is_of() {
        let mut cache = RecordCache::new(1 << 20);
        cache.committed(tid(10), &[]);
        cache.put(A, record(3), Until::Known);
        cache.put(B, record(2), Until::Before(tid(5)));
        let at = |cache: &mut RecordCache, oid| [1, 2, 3, 4, 5, 10, 11].map(|at| serial(cache, oid, at));
        assert_eq!(at(&mut cache, A), [None, None, Some(3), Some(3), Some(3), Some(3), None]);
        assert_eq!(at(&mut cache, B), [None, Some(2), Some(2), Some(2), None, None, None]);
        // Another object changes: it stays current. It changes itself: only up to there.
        cache.committed(tid(20), &[B]);
        assert_eq!(serial(&mut cache, A, 20), Some(3));
        cache.committed(tid(30), &[A]);
        assert_eq!([29, 30, 31].map(|at| serial(&mut cache, A, at)), [Some(3), None, None]);
        cache.put(A, record(30), Until::Known);
        assert_eq!([3, 29, 30, 31].map(|at| serial(&mut cache, A, at)), [Some(3), Some(3), Some(30), None]);
    }

    #[test]
    fn after_a_gap_only_what_did_not_change_is_current() {
        for oids in [Some(&[A][..]), None] {
            let mut cache = RecordCache::new(1 << 20);
            cache.committed(tid(10), &[]);
            cache.put(A, record(3), Until::Known);
            cache.put(B, record(4), Until::Known);
            cache.missed(tid(20), oids);
            assert_eq!([10, 11, 20].map(|at| serial(&mut cache, A, at)), [Some(3), None, None], "{oids:?}");
            let b = if oids.is_some() { Some(4) } else { None };
            assert_eq!([10, 11, 20].map(|at| serial(&mut cache, B, at)), [Some(4), b, b], "{oids:?}");
        }
    }

    #[test]
    fn it_keeps_what_fits_and_rather_what_is_used() {
        let mut cache = RecordCache::new(10 * (100 + RECORD_OVERHEAD_BYTES));
        cache.committed(tid(1000), &[]);
        cache.put(A, record(1), Until::Known);
        for number in 2..500 {
            assert_eq!(serial(&mut cache, A, 1000), Some(1), "used each time");
            cache.put(Oid::from_raw(number), record(number), Until::Known);
            assert!(cache.bytes() <= cache.bytes_max && cache.order.len() <= 10);
        }
        assert_eq!(cache.objects.len(), 10);
        assert_eq!(serial(&mut cache, Oid::from_raw(499), 1000), Some(499));
        // One that is larger than all there is room for is kept alone.
        let large = Record { serial: tid(7), data: Bytes::from(vec![0; 1 << 20]) };
        cache.put(B, large, Until::Known);
        assert_eq!((serial(&mut cache, B, 1000), cache.order.len()), (Some(7), 1));
        cache.put(A, record(9), Until::Known);
        assert_eq!((serial(&mut cache, A, 1000), cache.order.len()), (Some(9), 1));
    }
}
