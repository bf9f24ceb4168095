//! Reading the log: records in order, each checked and chained to the one before it.
//!
//! Invariant: the head of the log is its highest number. A gap, a record that cannot be read or one whose hash
//! does not chain is damage: readers stay before it, writers refuse.

use revfs_protocol::Tid;

use super::format::record_object;
use super::index::LogEntry;
use super::objects::Objects;
use super::record::{CommitRecord, RECORD_BYTES_MAX, RecordError};
use crate::store::ReadError;

/// Where the log stops being whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the log is broken at commits/{seq:020}: {what}; the store can be read up to the commit before, and not \
     written: restore the record from a backup"
)]
pub struct Broken {
    /// Number of the first record that is missing or damaged.
    pub seq: u64,
    /// What is wrong with it.
    pub what: String,
}

impl Broken {
    /// That record `seq` is not there though later ones are.
    pub fn missing(seq: u64) -> Broken {
        Broken { seq, what: "it is missing, and later ones exist".to_owned() }
    }

    /// That record `seq` is not there any more though it was read.
    pub fn removed(seq: u64) -> Broken {
        Broken { seq, what: "it was read before and is not there any more".to_owned() }
    }
}

/// A position in the log: the last record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Its number; 0 before the first.
    pub seq: u64,
    /// Its hash; zeros before the first.
    pub hash: [u8; 32],
    /// Its tid.
    pub tid: Tid,
}

/// What comes next in the log.
pub enum Next {
    /// A record.
    Entry(Box<LogEntry>),
    /// Nothing has that number.
    Absent,
    /// Something has, and is no record that follows.
    Broken(Broken),
}

/// Reads the record after `end`.
///
/// # Errors
/// The storage cannot be read; that is not damage.
pub async fn read_next(objects: &Objects, end: &LogEnd) -> Result<Next, ReadError> {
    let seq = end.seq + 1;
    let broken = |what: String| Ok(Next::Broken(Broken { seq, what }));
    let bytes = match objects.get(&record_object(seq), RECORD_BYTES_MAX).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(Next::Absent),
        Err(ReadError::Damaged { what, .. }) => return broken(what.to_owned()),
        Err(other) => return Err(other),
    };
    match check(&bytes, end) {
        Ok(entry) => Ok(Next::Entry(Box::new(entry))),
        Err(what) => broken(what),
    }
}

/// Checks the bytes of the record after `end`.
pub fn check(bytes: &[u8], end: &LogEnd) -> Result<LogEntry, String> {
    let (record, inline_at) = CommitRecord::decode(bytes).map_err(|error: RecordError| error.to_string())?;
    if record.seq != end.seq + 1 {
        return Err(format!("it carries the number {}", record.seq));
    }
    if record.previous != end.hash {
        return Err("it does not follow the record before it (their hashes do not chain)".to_owned());
    }
    if record.tid <= end.tid || record.base > end.tid {
        return Err(format!("its tid {} does not come after {}", record.tid, end.tid));
    }
    let body = CommitRecord::body_of(bytes).unwrap_or_default().to_vec();
    Ok(LogEntry { record, body, hash: *blake3::hash(bytes).as_bytes(), inline_at })
}

/// The first number that is missing below the highest of `seqs`, which were listed and are ascending.
///
/// # Errors
/// The storage cannot be read.
pub async fn first_gap(objects: &Objects, seqs: &[u64]) -> Result<Option<u64>, ReadError> {
    let mut expected = 1;
    for seq in seqs {
        // A listing is not one moment: it may lack what was made while it was taken and yet have what came after.
        // Whoever made a number had read the one before, so that one can be asked for by now.
        while expected < *seq {
            match objects.get(&record_object(expected), RECORD_BYTES_MAX).await {
                Ok(None) => return Ok(Some(expected)),
                Ok(Some(_)) | Err(ReadError::Damaged { .. }) => expected += 1,
                Err(other) => return Err(other),
            }
        }
        expected = expected.max(seq.saturating_add(1));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::PutPayload;
    use std::sync::Arc;

    #[test]
    fn a_record_that_a_listing_missed_is_no_gap_and_one_that_is_gone_is() {
        let objects = Objects::new(Arc::new(object_store::memory::InMemory::new()));
        let gap = |seqs: &[u64]| pollster::block_on(first_gap(&objects, seqs)).unwrap();
        for seq in [1, 2, 3, 5] {
            pollster::block_on(objects.create(&record_object(seq), PutPayload::from_static(b"x"))).unwrap();
        }
        assert_eq!(gap(&[1, 3]), None, "2 was made while the listing was taken");
        assert_eq!(gap(&[3]), None);
        assert_eq!(gap(&[1, 2, 3, 5]), Some(4));
        assert_eq!(gap(&[1, 2, 3]), None);
        assert_eq!(gap(&[]), None);
        assert_eq!(gap(&[1, u64::MAX]), Some(4), "a name that no writer gives");
    }
}
