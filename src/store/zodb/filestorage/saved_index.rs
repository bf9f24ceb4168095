//! The index that ZODB saves beside the file, `Data.fs.index`, and whether it can be trusted.
//!
//! It is a row of pickles: the position up to which it knows the file; pairs of six bytes that oids share, and a
//! string with the last two bytes of each oid, then six bytes of each position; and None. Only these forms are read,
//! by a reader of its own for the few opcodes that they need. Invariant: an index is only a hint. What does not fit
//! the file is refused, and then the file is read instead; memory goes by what is really in the index.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use revfs_protocol::Tid;

use super::error::FileStorageError;
use super::format::{
    FIRST_TRANSACTION, RECORD_BYTES_MIN, RECORD_HEADER_BYTES, RecordHeader, Status, TRANSACTION_HEADER_BYTES,
};
use super::oid_index::OidIndex;
use super::scan::{Cursor, each_record, previous};
use super::window::{DataFile, Window};
use crate::store::zodb::Oid;

/// Bytes that the oids of one string share.
const PREFIX_BYTES: usize = 6;
/// Bytes of an oid and of a position in a string.
const SUFFIX_BYTES: usize = 2;
const POSITION_BYTES: usize = 6;
/// The longest string, bytes: all oids that share a prefix.
const STRING_BYTES_MAX: u64 = (1 << (8 * SUFFIX_BYTES)) * (SUFFIX_BYTES + POSITION_BYTES) as u64;
/// Most digits of a number that is text, with its sign and ending.
const DIGITS_MAX: usize = 24;
/// Most opcodes of one pickle: a pair with a frame and memos has 12.
const OPCODES_MAX: usize = 32;
/// Last transactions whose records are looked up in an index.
const TRANSACTIONS_CHECKED: usize = 100;
/// Most records of them.
const RECORDS_CHECKED: usize = 10_000;
/// Objects whose records are looked at; spread evenly if there are more.
const OBJECTS_CHECKED: usize = 1024;

/// Why a saved index is not used.
#[derive(Debug, thiserror::Error)]
pub enum SavedIndexError {
    /// There is none.
    #[error("there is none")]
    Absent,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is not in the form that ZODB writes.
    #[error("it is not in a known form: {0}")]
    Form(&'static str),
    /// It is of another file, or of another state of this one.
    #[error("it does not fit the file: {0}")]
    Unfit(&'static str),
    /// The file cannot be read to check it.
    #[error("{0}")]
    File(#[from] FileStorageError),
}

/// Reads the index at `path` and checks it against the file.
///
/// # Errors
/// There is none that can be used; why.
pub fn load(path: &Path, file: &Arc<DataFile>) -> Result<(OidIndex, Cursor), SavedIndexError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(SavedIndexError::Form("it is no file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(SavedIndexError::Absent),
        Err(error) => return Err(error.into()),
    }
    let size = file.size()?;
    let (end, index) = read(BufReader::new(File::open(path)?), size)?;
    let cursor = check(&index, end, file, size)?;
    Ok((index, cursor))
}

/// Reads an index of a file of `size` bytes; answers the position up to which it knows the file, too.
///
/// # Errors
/// It is not in the known form, or knows more than the file can hold.
pub fn read(input: impl Read, size: u64) -> Result<(u64, OidIndex), SavedIndexError> {
    let mut pickles = Pickles { input };
    let Pickled::Int(end) = pickles.next()? else {
        return Err(SavedIndexError::Form("it does not begin with a position"));
    };
    let end = u64::try_from(end).ok().filter(|end| *end <= size);
    let end = end.ok_or(SavedIndexError::Unfit("it ends behind the end of the file"))?;
    let objects_max = end / RECORD_BYTES_MIN;
    let mut index = OidIndex::new();
    loop {
        match pickles.next()? {
            Pickled::None => return Ok((end, index)),
            Pickled::Int(_) => return Err(SavedIndexError::Form("a number is where oids should be")),
            Pickled::Pair(prefix, entries) => {
                let count = entries.len() / (SUFFIX_BYTES + POSITION_BYTES);
                if index.len() as u64 + count as u64 > objects_max {
                    return Err(SavedIndexError::Unfit("it has more objects than the file"));
                }
                add(&mut index, &prefix, &entries)?;
            }
        }
    }
}

/// Adds the objects of one string, which are behind all that are there.
fn add(index: &mut OidIndex, prefix: &[u8], entries: &[u8]) -> Result<(), SavedIndexError> {
    let entry_bytes = SUFFIX_BYTES + POSITION_BYTES;
    if prefix.len() != PREFIX_BYTES || entries.is_empty() || !entries.len().is_multiple_of(entry_bytes) {
        return Err(SavedIndexError::Form("the length of a string of oids is wrong"));
    }
    let (suffixes, positions) = entries.split_at(entries.len() / entry_bytes * SUFFIX_BYTES);
    let mut last = index.last();
    for (suffix, position) in suffixes.chunks(SUFFIX_BYTES).zip(positions.chunks(POSITION_BYTES)) {
        let oid = Oid::from_raw(big_endian(prefix) << (8 * SUFFIX_BYTES) | big_endian(suffix));
        if last.is_some_and(|last| oid <= last) {
            return Err(SavedIndexError::Form("its oids are not ascending"));
        }
        index.set(oid, big_endian(position));
        last = Some(oid);
    }
    Ok(())
}

/// The number that at most 8 bytes are.
fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Checks that an index fits the file: a transaction ends at `end`; the records of the last ones are in the index;
/// and where the index says that an object's record is there is one. Answers the last transaction that it knows.
fn check(index: &OidIndex, end: u64, file: &Arc<DataFile>, size: u64) -> Result<Cursor, SavedIndexError> {
    debug_assert!(end <= size);
    if end == FIRST_TRANSACTION && index.is_empty() {
        return Ok(Cursor::START);
    }
    let mut window = Window::new(file);
    let last = previous(&mut window, end).map_err(unfit)?;
    let mut at = last;
    let mut records = 0;
    for _ in 0..TRANSACTIONS_CHECKED {
        let mut unknown = false;
        each_record(&mut Window::new(file), &at, |record| {
            records += 1;
            let known = index.get(record.header.oid).is_some_and(|pos| pos >= record.pos && pos < end);
            unknown |= !known && at.header.status != Status::Undone;
        })
        .map_err(unfit)?;
        if unknown {
            return Err(SavedIndexError::Unfit("it lacks records of the last transactions"));
        }
        if at.pos == FIRST_TRANSACTION || records >= RECORDS_CHECKED {
            break;
        }
        let earlier = previous(&mut window, at.pos).map_err(unfit)?;
        if earlier.header.tid >= at.header.tid {
            return Err(SavedIndexError::Unfit("the transactions before its end are not in order"));
        }
        at = earlier;
    }
    check_objects(index, end, file, last.header.tid)?;
    Ok(Cursor::after(last))
}

/// Damage of the file where the index says that it is whole: the index is of another.
fn unfit(error: FileStorageError) -> SavedIndexError {
    match error {
        FileStorageError::Damaged { .. } => SavedIndexError::Unfit("no transaction ends where it ends"),
        other => SavedIndexError::File(other),
    }
}

fn check_objects(
    index: &OidIndex,
    end: u64,
    file: &Arc<DataFile>,
    last_tid: Tid,
) -> Result<(), SavedIndexError> {
    let step = index.len().div_ceil(OBJECTS_CHECKED).max(1);
    let mut checked: Vec<(Oid, u64)> = index.iter().step_by(step).chain(index.iter().last()).collect();
    checked.sort_unstable_by_key(|(_, pos)| *pos);
    let unfit = || SavedIndexError::Unfit("an object's record is not where it says");
    let mut window = Window::new(file);
    for (oid, pos) in checked {
        if pos < FIRST_TRANSACTION + TRANSACTION_HEADER_BYTES as u64 || pos > end - RECORD_HEADER_BYTES as u64
        {
            return Err(unfit());
        }
        let header = RecordHeader::parse(&window.bytes(pos)?).map_err(|_| unfit())?;
        let fits = header.oid == oid && header.transaction < pos && header.serial <= last_tid;
        if !fits || header.end_within(pos, end).is_none() {
            return Err(unfit());
        }
    }
    Ok(())
}

/// What one pickle of an index is.
#[derive(Debug, PartialEq, Eq)]
enum Pickled {
    None,
    Int(i64),
    Pair(Vec<u8>, Vec<u8>),
}

/// What is on the stack while a pickle is read.
#[derive(Debug)]
enum Item {
    Mark,
    None,
    Int(i64),
    Bytes(Vec<u8>),
    Pair(Vec<u8>, Vec<u8>),
}

/// Reads pickles of the forms that an index has.
struct Pickles<R> {
    input: R,
}

impl<R: Read> Pickles<R> {
    fn next(&mut self) -> Result<Pickled, SavedIndexError> {
        let mut stack: Vec<Item> = Vec::new();
        for _ in 0..OPCODES_MAX {
            let [opcode] = self.fixed()?;
            match opcode {
                b'.' => return result(stack),
                // PROTO, FRAME, BINPUT, LONG_BINPUT, MEMOIZE: nothing that is asked for later.
                0x80 | b'q' => self.skip::<1>()?,
                0x95 => self.skip::<8>()?,
                b'r' => self.skip::<4>()?,
                0x94 => {}
                b'(' => stack.push(Item::Mark),
                b't' | 0x86 => pair(&mut stack, opcode == b't')?,
                _ => {
                    let item = self.item(opcode)?;
                    stack.push(item);
                }
            }
        }
        Err(SavedIndexError::Form("a pickle has too many opcodes"))
    }

    /// A value without parts.
    fn item(&mut self, opcode: u8) -> Result<Item, SavedIndexError> {
        Ok(match opcode {
            b'N' => Item::None,
            b'K' => Item::Int(i64::from(u8::from_le_bytes(self.fixed()?))),
            b'M' => Item::Int(i64::from(u16::from_le_bytes(self.fixed()?))),
            b'J' => Item::Int(i64::from(i32::from_le_bytes(self.fixed()?))),
            b'I' | b'L' => Item::Int(self.decimal()?),
            0x8a => {
                let [len] = self.fixed()?;
                Item::Int(self.long(u32::from(len))?)
            }
            0x8b => {
                let len = u32::from_le_bytes(self.fixed()?);
                Item::Int(self.long(len)?)
            }
            b'U' | b'C' => {
                let [len] = self.fixed()?;
                Item::Bytes(self.string(u64::from(len))?)
            }
            b'T' | b'B' => {
                let len = u32::from_le_bytes(self.fixed()?);
                Item::Bytes(self.string(u64::from(len))?)
            }
            0x8e => {
                let len = u64::from_le_bytes(self.fixed()?);
                Item::Bytes(self.string(len)?)
            }
            _ => return Err(SavedIndexError::Form("a pickle has an opcode that no index needs")),
        })
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], SavedIndexError> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(cut_off)?;
        Ok(bytes)
    }

    fn skip<const N: usize>(&mut self) -> Result<(), SavedIndexError> {
        self.fixed::<N>().map(|_| ())
    }

    fn string(&mut self, len: u64) -> Result<Vec<u8>, SavedIndexError> {
        if len > STRING_BYTES_MAX {
            return Err(SavedIndexError::Form("a string is too long"));
        }
        let mut bytes = Vec::new();
        // Grows as bytes come, so that a length that lies costs nothing.
        let have = (&mut self.input).take(len).read_to_end(&mut bytes)?;
        match have as u64 == len {
            true => Ok(bytes),
            false => Err(SavedIndexError::Form("it is cut off")),
        }
    }

    /// A little-endian number of `len` bytes.
    fn long(&mut self, len: u32) -> Result<i64, SavedIndexError> {
        if len > 8 {
            return Err(SavedIndexError::Form("a number is too large"));
        }
        let bytes = self.string(u64::from(len))?;
        let negative = bytes.last().is_some_and(|high| high & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; 8];
        number.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
        Ok(i64::from_le_bytes(number))
    }

    /// A number as text, to the end of the line; `L` may stand behind it.
    fn decimal(&mut self) -> Result<i64, SavedIndexError> {
        let mut text = String::new();
        while text.len() < DIGITS_MAX {
            let [byte] = self.fixed()?;
            if byte == b'\n' {
                let digits = text.strip_suffix('L').unwrap_or(&text);
                return digits.parse().map_err(|_| SavedIndexError::Form("a number is not readable"));
            }
            text.push(char::from(byte));
        }
        Err(SavedIndexError::Form("a number is too long"))
    }
}

fn cut_off(error: std::io::Error) -> SavedIndexError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => SavedIndexError::Form("it is cut off"),
        _ => SavedIndexError::Io(error),
    }
}

/// Makes the two strings on the stack a pair; `marked`: there is a mark below them.
fn pair(stack: &mut Vec<Item>, marked: bool) -> Result<(), SavedIndexError> {
    let (second, first) = (stack.pop(), stack.pop());
    let mark_is_there = !marked || matches!(stack.pop(), Some(Item::Mark));
    match (first, second) {
        (Some(Item::Bytes(first)), Some(Item::Bytes(second))) if mark_is_there => {
            stack.push(Item::Pair(first, second));
            Ok(())
        }
        _ => Err(SavedIndexError::Form("a tuple is not a pair of strings")),
    }
}

fn result(mut stack: Vec<Item>) -> Result<Pickled, SavedIndexError> {
    match (stack.pop(), stack.pop()) {
        (Some(Item::None), None) => Ok(Pickled::None),
        (Some(Item::Int(number)), None) => Ok(Pickled::Int(number)),
        (Some(Item::Pair(prefix, entries)), None) => Ok(Pickled::Pair(prefix, entries)),
        _ => Err(SavedIndexError::Form("a pickle is neither a number, a pair of strings nor None")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 40;

    fn entries(list: &[(u16, u64)]) -> Vec<u8> {
        let suffixes = list.iter().flat_map(|(suffix, _)| suffix.to_be_bytes());
        let positions = list.iter().flat_map(|(_, pos)| pos.to_be_bytes()[2..].to_vec());
        suffixes.chain(positions).collect()
    }

    fn got(bytes: &[u8]) -> Result<(u64, Vec<(u64, u64)>), String> {
        let (end, index) = read(bytes, SIZE).map_err(|error| error.to_string())?;
        Ok((end, index.iter().map(|(oid, pos)| (oid.raw(), pos)).collect()))
    }

    /// An index as each Python and protocol writes it: the opcodes before and behind a string, and the position.
    fn index_of(start: &[u8], string: (u8, u8), tuple: (&[u8], &[u8]), list: &[(u16, u64)]) -> Vec<u8> {
        let entries = entries(list);
        let mut bytes = start.to_vec();
        bytes.extend_from_slice(tuple.0);
        bytes.extend_from_slice(&[string.0, 6, 0, 0, 0, 0, 0, 9, string.1]);
        bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&entries);
        bytes.extend_from_slice(tuple.1);
        bytes.extend_from_slice(b"N.");
        bytes
    }

    #[test]
    fn each_form_that_zodb_writes_is_read() {
        let list = [(1, 4096), (2, (1 << 40) - 1), (0xfff0, 77)];
        let whole = vec![(0x9_0001, 4096), (0x9_0002, (1 << 40) - 1), (0x9_fff0, 77)];
        let plain: (&[u8], &[u8]) = (b"(", b"t.");
        let memo: (&[u8], &[u8]) = (b"\x80\x02(", b"q\x01tr\x02\0\0\0.");
        let two: (&[u8], &[u8]) = (b"\x80\x03", b"\x86.");
        for (start, end) in [
            (&b"J\0\0\x01\0."[..], 65536),
            (b"K\x05.", 5),
            (b"M\x05\x01.", 261),
            (b"I1099511627775\n.", SIZE - 1),
            (b"L1099511627775L\n.", SIZE - 1),
            (b"\x80\x03\x8a\x06\xff\xff\xff\xff\xff\0.", SIZE - 1),
            (b"\x80\x04\x95\x03\0\0\0\0\0\0\0\x8b\x02\0\0\0\x05\x01\x94.", 261),
        ] {
            for (string, tuple) in
                [((b'U', b'T'), plain), ((b'U', b'T'), memo), ((b'C', b'B'), two), ((b'U', b'T'), two)]
            {
                let bytes = index_of(start, string, tuple, &list);
                match end >= 3 * RECORD_BYTES_MIN {
                    true => assert_eq!(got(&bytes), Ok((end, whole.clone()))),
                    false => assert!(got(&bytes).unwrap_err().contains("more objects than the file")),
                }
            }
        }
    }

    #[test]
    fn other_forms_are_refused() {
        let start = b"J\0\0\x01\0.";
        let tuple: (&[u8], &[u8]) = (b"(", b"t.");
        let of = |list: &[(u16, u64)]| index_of(start, (b'U', b'T'), tuple, list);
        for (bytes, what) in [
            (b"N.".to_vec(), "does not begin with a position"),
            (b"I-5\n.N.".to_vec(), "ends behind"),
            (b"\x8a\x06\0\0\0\0\0\x02.N.".to_vec(), "ends behind"),
            (b"\x8a\x09".to_vec(), "too large"),
            (b"I12345678901234567890123456789\n.".to_vec(), "too long"),
            (b"I12x\n.".to_vec(), "not readable"),
            (b"I0x10\n.".to_vec(), "not readable"),
            ([&start[..], b"K\x01.N."].concat(), "a number is where oids"),
            ([&start[..], b"(U\x01aK\x02t."].concat(), "not a pair of strings"),
            ([&start[..], b"NN."].concat(), "neither"),
            ([&start[..], b"."].concat(), "neither"),
            ([&start[..], b"}."].concat(), "no index needs"),
            ([&start[..], b"T\xff\xff\xff\x7f"].concat(), "too long"),
            ([&start[..], &[0x94; 40]].concat(), "too many opcodes"),
            (of(&[(2, 100), (1, 100)]), "not ascending"),
            (of(&[(2, 100), (2, 100)]), "not ascending"),
            (of(&[]), "length of a string"),
        ] {
            let error = got(&bytes).unwrap_err();
            assert!(error.contains(what), "{bytes:?}: {error}");
        }
        let mut long = of(&[(1, 100)]);
        let length_at = long.len() - 8 - 4 - 4;
        long[length_at] += 1;
        assert!(got(&long).is_err());
    }

    #[test]
    fn no_cut_and_no_flip_is_a_panic() {
        let list: Vec<(u16, u64)> = (0..40).map(|n| (n * 3, u64::from(n) * 1000)).collect();
        let whole = index_of(b"J\0\0\x01\0.", (b'C', b'B'), (b"\x80\x03", b"\x86."), &list);
        assert_eq!(got(&whole).unwrap().1.len(), 40);
        for end in 0..whole.len() {
            assert!(got(&whole[..end]).is_err(), "cut at {end}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let ascending = |list: &[(u64, u64)]| list.is_sorted_by(|a, b| a.0 < b.0);
            assert!(got(&flipped).is_err() || ascending(&got(&flipped).unwrap().1), "bit {bit}");
        }
    }
}
