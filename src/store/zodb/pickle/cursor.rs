//! A place in the bytes of a record, from which whole pieces are taken.
//!
//! Invariant: a piece is inside the record or an error; a length is compared with what is left before anything else is
//! done with it, and nothing is allocated here.

use super::{LINE_BYTES_MAX, PickleError};

/// What is left of a record.
pub struct Cursor<'a> {
    record: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// All of a record.
    pub fn new(record: &'a [u8]) -> Cursor<'a> {
        Cursor { record, at: 0 }
    }

    /// How many bytes were taken.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What was not taken yet.
    pub fn rest(&self) -> &'a [u8] {
        self.record.get(self.at..).unwrap_or_default()
    }

    /// The next `len` bytes; `what` names them in an error.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], PickleError> {
        let Some((piece, _)) = self.rest().split_at_checked(len) else {
            return Err(PickleError::Cut { at: self.at, what });
        };
        self.at += len;
        Ok(piece)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], PickleError> {
        let Some((piece, _)) = self.rest().split_first_chunk() else {
            return Err(PickleError::Cut { at: self.at, what });
        };
        self.at += N;
        Ok(*piece)
    }

    /// The next byte.
    pub fn byte(&mut self, what: &'static str) -> Result<u8, PickleError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// Bytes behind their own length, which has 1 byte.
    pub fn short(&mut self, what: &'static str) -> Result<&'a [u8], PickleError> {
        let len = self.byte(what)?;
        self.take(usize::from(len), what)
    }

    /// Bytes behind their own length, which has `N` bytes, little-endian, without a sign.
    pub fn counted<const N: usize>(&mut self, what: &'static str) -> Result<&'a [u8], PickleError> {
        let at = self.at;
        let raw = self.array::<N>(what)?;
        let wide = raw.iter().rev().fold(0u64, |len, byte| len << 8 | u64::from(*byte));
        match usize::try_from(wide) {
            Ok(len) => self.take(len, what),
            Err(_) => Err(PickleError::Cut { at, what }),
        }
    }

    /// Bytes behind their own length, which has 4 bytes and a sign.
    pub fn signed(&mut self, what: &'static str) -> Result<&'a [u8], PickleError> {
        let at = self.at;
        match usize::try_from(i32::from_le_bytes(self.array(what)?)) {
            Ok(len) => self.take(len, what),
            Err(_) => Err(PickleError::Malformed { at, what: "a length is negative" }),
        }
    }

    /// Bytes up to the next line feed, which is taken too.
    pub fn line(&mut self, what: &'static str) -> Result<&'a [u8], PickleError> {
        let rest = self.rest();
        let near = rest.get(..=LINE_BYTES_MAX).unwrap_or(rest);
        match near.iter().position(|byte| *byte == b'\n') {
            Some(len) => {
                let line = self.take(len, what)?;
                self.at += 1;
                Ok(line)
            }
            None if near.len() < rest.len() => {
                Err(PickleError::TooMany { at: self.at, what: "bytes of a line", max: LINE_BYTES_MAX })
            }
            None => Err(PickleError::Cut { at: self.at, what }),
        }
    }
}
