//! A FileStorage that is appended to.
//!
//! The layout is that of ZODB's `FileStorage/format.py`: magic, then transactions; a transaction is a header, texts, data
//! records and its length once more. All numbers are big-endian.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use crate::pickle::Pickle;

/// First bytes of a file that Python 3 writes.
const MAGIC: &[u8; 4] = b"FS30";
/// Length of the header of a transaction with its repeated length, bytes.
const TRANSACTION_BYTES: u64 = 23;
/// Length of the header of a data record, bytes.
const RECORD_BYTES: u64 = 42;
/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// What a transaction does to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// It has this data from now on.
    Data(Vec<u8>),
    /// It has the data of the record at this position again, as after an undo.
    Back(u64),
    /// It is no more.
    Deletion,
}

/// A FileStorage that is written.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    out: BufWriter<File>,
    end: u64,
    last_tid: u64,
    newest: BTreeMap<u64, u64>,
}

impl Writer {
    /// Makes the file at `path`, which must not be there.
    ///
    /// # Errors
    /// It is there, or cannot be made.
    pub fn create(path: &Path) -> io::Result<Writer> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        out.write_all(MAGIC)?;
        out.flush()?;
        let end = MAGIC.len() as u64;
        Ok(Writer { path: path.to_owned(), out, end, last_tid: 0, newest: BTreeMap::new() })
    }

    /// Where the next transaction begins, bytes.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The tid of the last transaction; 0: there is none.
    pub fn last_tid(&self) -> u64 {
        self.last_tid
    }

    /// Position of the newest record of an object.
    pub fn newest(&self, oid: u64) -> Option<u64> {
        self.newest.get(&oid).copied()
    }

    /// Appends a transaction; answers where its records begin. Others see it when this returns.
    ///
    /// # Errors
    /// `tid` is not above the last one, an object is written twice, or the file cannot be written.
    pub fn commit(&mut self, tid: u64, writes: &[(u64, Write)]) -> io::Result<Vec<u64>> {
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        if tid <= self.last_tid {
            return Err(wrong(format!("tid {tid:#x} is not above {:#x}", self.last_tid)));
        }
        let lens = writes.iter().map(|(_, write)| match write {
            Write::Data(data) => data.len() as u64,
            Write::Back(_) | Write::Deletion => 8,
        });
        let len = TRANSACTION_BYTES + lens.map(|len| RECORD_BYTES + len).sum::<u64>();
        let begin = self.end;
        self.out.write_all(&tid.to_be_bytes())?;
        self.out.write_all(&len.to_be_bytes())?;
        self.out.write_all(b" \0\0\0\0\0\0")?;
        let mut at = begin + TRANSACTION_BYTES;
        let mut places = Vec::with_capacity(writes.len());
        for (oid, write) in writes {
            let previous = self.newest.insert(*oid, at).unwrap_or(0);
            if previous >= begin {
                return Err(wrong(format!("object {oid:#x} is written twice")));
            }
            let (data_len, data): (u64, &[u8]) = match write {
                Write::Data(data) => (data.len() as u64, data),
                Write::Back(pos) => (0, &pos.to_be_bytes()),
                Write::Deletion => (0, &[0; 8]),
            };
            for number in [*oid, tid, previous, begin] {
                self.out.write_all(&number.to_be_bytes())?;
            }
            self.out.write_all(&[0; 2])?;
            self.out.write_all(&data_len.to_be_bytes())?;
            self.out.write_all(data)?;
            places.push(at);
            at += RECORD_BYTES + data.len() as u64;
        }
        self.out.write_all(&len.to_be_bytes())?;
        self.out.flush()?;
        (self.end, self.last_tid) = (at + 8, tid);
        Ok(places)
    }

    /// Saves the index of the newest records beside the file, as ZODB does when it closes a database.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save_index(&self) -> io::Result<()> {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".index");
        let mut out = BufWriter::new(File::create(Path::new(&name))?);
        let end = i64::try_from(self.end).map_err(io::Error::other)?;
        out.write_all(&Pickle::without_memo().int(end).stop())?;
        let mut buckets: BTreeMap<u64, (Vec<u8>, Vec<u8>)> = BTreeMap::new();
        for (oid, pos) in &self.newest {
            let (oids, places) = buckets.entry(oid >> 16).or_default();
            oids.extend(&oid.to_be_bytes()[6..]);
            places.extend(&pos.to_be_bytes()[2..]);
        }
        for (prefix, (oids, places)) in buckets {
            let entries = [oids, places].concat();
            let pair = Pickle::without_memo().bytes(&prefix.to_be_bytes()[2..]).bytes(&entries);
            out.write_all(&pair.op(b"\x86").stop())?;
        }
        out.write_all(&Pickle::without_memo().op(b"N").stop())?;
        out.flush()
    }
}
