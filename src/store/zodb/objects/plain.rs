//! Objects whose state is bytes, as their records hold them in one piece: where that is, without reading it.

use std::ops::Range;

use super::{Class, class_of};
use crate::store::zodb::pickle::Pickles;

/// The class and where the bytes are of an object that is nothing else, by the beginning of its record and the length
/// of the whole. `None` if it is another one, or written in another form: then all of it is to be read.
pub fn plain_bytes(start: &[u8], len: u64) -> Option<(Class, Range<u64>)> {
    PlainBytes::default().find(start, len)
}

/// Finds the bytes of many such objects, one after the other; quicker if they are of one class.
#[derive(Debug, Default)]
pub struct PlainBytes {
    /// The first pickle of the last one, and its class.
    known: Option<(Vec<u8>, Class)>,
}

impl PlainBytes {
    /// As [`plain_bytes`].
    pub fn find(&mut self, start: &[u8], len: u64) -> Option<(Class, Range<u64>)> {
        // A pickle ends itself: what begins like it has the same first one.
        if let Some((pickle, class)) = &self.known
            && start.starts_with(pickle)
        {
            return Some((*class, bytes_behind(start, pickle.len(), len)?));
        }
        let mut pickles = Pickles::new(start);
        let first = pickles.read_next().ok()?;
        let class = Class::of(class_of(&pickles, first)?);
        if !matches!(class, Class::Blk0 | Class::Data) {
            return None;
        }
        let at = pickles.at();
        self.known = Some((start.get(..at)?.to_vec(), class));
        Some((class, bytes_behind(start, at, len)?))
    }
}

/// Where the bytes are in a pickle at `at` that is nothing else and ends at `len`.
fn bytes_behind(start: &[u8], mut at: usize, len: u64) -> Option<Range<u64>> {
    let mut rest = start.get(at..)?;
    // PROTO.
    if let [0x80, protocol, behind @ ..] = rest {
        if *protocol > 3 {
            return None;
        }
        (at, rest) = (at + 2, behind);
    }
    // Bytes, or a string of Python 2, with a short length or a long one.
    let (header, count) = match rest {
        [b'C' | b'U', count, ..] => (2, u64::from(*count)),
        [b'B', a, b, c, d, ..] => (5, u64::from(u32::from_le_bytes([*a, *b, *c, *d]))),
        // The length of a string has a sign.
        [b'T', a, b, c, d, ..] => (5, u64::try_from(i32::from_le_bytes([*a, *b, *c, *d])).ok()?),
        _ => return None,
    };
    let from = (at + header) as u64;
    let end = from.checked_add(count)?;
    // Behind them STOP, and before that maybe BINPUT or LONG_BINPUT.
    let is_whole = [1, 3, 6].contains(&len.checked_sub(end)?);
    is_whole.then_some(from..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::zodb::objects::{Object, decode};
    use zodb_writer::records;

    #[test]
    fn bytes_are_where_a_whole_reading_finds_them() {
        for len in [0, 1, 254, 255, 256, 70_000] {
            let bytes = vec![7; len];
            for (class, record) in
                [(Class::Blk0, records::blk0(&bytes)), (Class::Data, records::data(&bytes))]
            {
                let start = &record[..record.len().min(4000)];
                let (found, range) = plain_bytes(start, record.len() as u64).unwrap();
                assert_eq!((found, &record[range.start as usize..range.end as usize]), (class, &bytes[..]));
                let (Object::Blk0(whole) | Object::Data(whole)) = decode(&record).unwrap() else { panic!() };
                assert_eq!(*whole, bytes);
                // Another length is another form.
                assert_eq!(plain_bytes(start, record.len() as u64 + 1), None);
                assert_eq!(plain_bytes(start, record.len() as u64 - 1), None);
                for cut in 0..40.min(start.len()) {
                    assert_eq!(plain_bytes(&start[..cut], record.len() as u64), None);
                }
            }
        }
        for other in [records::big_file(4096, 1), records::blk1(3), records::empty_tree(records::Kind::Long)]
        {
            assert_eq!(plain_bytes(&other, other.len() as u64), None);
        }
    }
}
