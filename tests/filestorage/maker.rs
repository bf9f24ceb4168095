//! Writes FileStorage files and saved indexes byte by byte, right ones and wrong ones.
//!
//! Invariant: independent of the code that reads them.

#![allow(dead_code)] // each test program uses a part

use std::collections::BTreeMap;

/// What a record holds.
#[derive(Clone, Debug)]
pub enum Write {
    Data(Vec<u8>),
    /// The data are those of the record at this position; 0: the object is deleted.
    Back(u64),
}

/// A FileStorage that grows.
#[derive(Clone, Debug)]
pub struct Maker {
    pub bytes: Vec<u8>,
    /// The position of each object's newest record.
    pub newest: BTreeMap<u64, u64>,
}

impl Maker {
    pub fn new() -> Maker {
        Maker { bytes: b"FS30".to_vec(), newest: BTreeMap::new() }
    }

    /// Goes on with the bytes of a file; `newest` says what was in it.
    pub fn of(bytes: Vec<u8>, newest: BTreeMap<u64, u64>) -> Maker {
        Maker { bytes, newest }
    }

    /// Where the next transaction will begin.
    pub fn end(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Appends a committed transaction; answers the positions of its records.
    pub fn commit(&mut self, tid: u64, writes: &[(u64, Write)]) -> Vec<u64> {
        self.append(tid, b' ', writes)
    }

    /// Appends a committed transaction that gives one object some bytes.
    pub fn put(&mut self, tid: u64, oid: u64, data: &[u8]) -> u64 {
        self.commit(tid, &[(oid, Write::Data(data.to_vec()))])[0]
    }

    /// Appends a transaction with a status; answers the positions of its records.
    pub fn append(&mut self, tid: u64, status: u8, writes: &[(u64, Write)]) -> Vec<u64> {
        let start = self.end();
        let (user, description, extension) = (format!("user {tid:x}"), format!("why {tid:x}"), "}.");
        let mut records = Vec::new();
        let mut positions = Vec::new();
        let header = 23 + user.len() + description.len() + extension.len();
        for (oid, write) in writes {
            let pos = start + (header + records.len()) as u64;
            positions.push(pos);
            let previous = self.newest.get(oid).copied().unwrap_or(0);
            for field in [*oid, tid, previous, start] {
                records.extend_from_slice(&field.to_be_bytes());
            }
            records.extend_from_slice(&[0, 0]);
            match write {
                Write::Data(data) => {
                    records.extend_from_slice(&(data.len() as u64).to_be_bytes());
                    records.extend_from_slice(data);
                }
                Write::Back(back) => {
                    records.extend_from_slice(&0u64.to_be_bytes());
                    records.extend_from_slice(&back.to_be_bytes());
                }
            }
        }
        if status != b'u' && status != b'c' {
            self.newest.extend(writes.iter().map(|(oid, _)| *oid).zip(positions.iter().copied()));
        }
        let len = (header + records.len()) as u64;
        self.bytes.extend_from_slice(&tid.to_be_bytes());
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.push(status);
        for text in [&user[..], &description, extension] {
            self.bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
        }
        for text in [&user[..], &description, extension] {
            self.bytes.extend_from_slice(text.as_bytes());
        }
        self.bytes.extend_from_slice(&records);
        self.bytes.extend_from_slice(&len.to_be_bytes());
        positions
    }

    /// The index that ZODB would save now.
    pub fn index(&self) -> Vec<u8> {
        let mut bytes = b"\x80\x03\x8a\x08".to_vec();
        bytes.extend_from_slice(&self.end().to_le_bytes());
        bytes.push(b'.');
        let mut strings: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for (oid, pos) in &self.newest {
            strings.entry(oid >> 16).or_default().push((*oid, *pos));
        }
        for (prefix, entries) in strings {
            bytes.extend_from_slice(b"\x80\x03C\x06");
            bytes.extend_from_slice(&prefix.to_be_bytes()[2..]);
            bytes.push(b'B');
            bytes.extend_from_slice(&(entries.len() as u32 * 8).to_le_bytes());
            bytes.extend(entries.iter().flat_map(|(oid, _)| oid.to_be_bytes()[6..].to_vec()));
            bytes.extend(entries.iter().flat_map(|(_, pos)| pos.to_be_bytes()[2..].to_vec()));
            bytes.extend_from_slice(b"\x86.");
        }
        bytes.extend_from_slice(b"\x80\x03N.");
        bytes
    }
}
