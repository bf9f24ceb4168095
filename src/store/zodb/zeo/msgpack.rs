//! MessagePack, as much of it as messages of ZEO have: <https://github.com/msgpack/msgpack/blob/master/spec.md>.
//!
//! Invariant: a length is believed only as far as bytes are there; the number of values is bounded before memory is taken
//! for them, which the crates for this format leave to who uses them.

use bytes::{Buf, Bytes};

use super::value::{DEPTH_MAX, MessageError, VALUES_MAX, Value};

/// Reads one value, which is all of the message.
///
/// # Errors
/// See [`MessageError`].
pub fn read(message: &Bytes) -> Result<Value, MessageError> {
    let mut reader = Reader { rest: message.clone(), left: VALUES_MAX };
    let value = reader.value(0)?;
    match reader.rest.len() {
        0 => Ok(value),
        rest => Err(MessageError::Rest(rest)),
    }
}

struct Reader {
    rest: Bytes,
    /// How many more values are read.
    left: usize,
}

impl Reader {
    /// The recursion is bounded: what lies too deep is an error, unlike in a pickle, where it costs nothing to pass over it.
    fn value(&mut self, depth: usize) -> Result<Value, MessageError> {
        self.left = self.left.checked_sub(1).ok_or(MessageError::TooMany)?;
        if depth > DEPTH_MAX {
            return Err(MessageError::Shape);
        }
        let marker = self.rest.try_get_u8().map_err(|_| MessageError::Cut)?;
        Ok(match marker {
            0x00..=0x7f => Value::Int(i64::from(marker)),
            0x80..=0x8f => self.map(usize::from(marker & 0x0f), depth)?,
            0x90..=0x9f => self.list(usize::from(marker & 0x0f), depth)?,
            0xa0..=0xbf => Value::Text(self.take(usize::from(marker & 0x1f))?),
            0xc0 => Value::None,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4..=0xc6 => Value::Bytes(self.counted(marker - 0xc4)?),
            0xc7..=0xc9 => self.extension(marker - 0xc7)?,
            0xca => self.skip(4)?,
            0xcb => self.skip(8)?,
            0xcc..=0xcf => i64::try_from(self.unsigned(marker - 0xcc)?).map_or(Value::Other, Value::Int),
            0xd0..=0xd3 => Value::Int(self.signed(marker - 0xd0)?),
            0xd4..=0xd8 => self.skip(1 + (1 << (marker - 0xd4)))?,
            0xd9..=0xdb => Value::Text(self.counted(marker - 0xd9)?),
            0xdc | 0xdd => {
                let count = self.length(marker - 0xdc + 1)?;
                self.list(count, depth)?
            }
            0xde | 0xdf => {
                let count = self.length(marker - 0xde + 1)?;
                self.map(count, depth)?
            }
            0xe0..=0xff => Value::Int(i64::from(marker.cast_signed())),
            0xc1 => return Err(MessageError::Marker(marker)),
        })
    }

    fn take(&mut self, len: usize) -> Result<Bytes, MessageError> {
        if len > self.rest.len() {
            return Err(MessageError::Cut);
        }
        Ok(self.rest.split_to(len))
    }

    fn skip(&mut self, len: usize) -> Result<Value, MessageError> {
        self.take(len).map(|_| Value::Other)
    }

    /// An unsigned integer of `1 << width` bytes.
    fn unsigned(&mut self, width: u8) -> Result<u64, MessageError> {
        let bytes = self.take(1 << width)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn signed(&mut self, width: u8) -> Result<i64, MessageError> {
        let unused = 64 - (8 << width);
        Ok((self.unsigned(width)?.cast_signed() << unused) >> unused)
    }

    fn length(&mut self, width: u8) -> Result<usize, MessageError> {
        usize::try_from(self.unsigned(width)?).map_err(|_| MessageError::Cut)
    }

    fn counted(&mut self, width: u8) -> Result<Bytes, MessageError> {
        let len = self.length(width)?;
        self.take(len)
    }

    fn extension(&mut self, width: u8) -> Result<Value, MessageError> {
        let len = self.length(width)?;
        self.skip(len.saturating_add(1))
    }

    fn list(&mut self, count: usize, depth: usize) -> Result<Value, MessageError> {
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(self.value(depth + 1)?);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, count: usize, depth: usize) -> Result<Value, MessageError> {
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push((self.value(depth + 1)?, self.value(depth + 1)?));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<Value, MessageError> {
        read(&Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn each_form_of_a_value_is_read() {
        let text = |text: &'static str| Value::Text(Bytes::from_static(text.as_bytes()));
        let bytes = Value::Bytes(Bytes::from_static(b"ab"));
        let cases: [(&[u8], Value); 22] = [
            (b"\x07", Value::Int(7)),
            (b"\xff", Value::Int(-1)),
            (b"\xcc\xff", Value::Int(255)),
            (b"\xcd\x01\x00", Value::Int(256)),
            (b"\xce\x00\x01\x00\x00", Value::Int(65_536)),
            (b"\xcf\x00\x00\x00\x01\x00\x00\x00\x00", Value::Int(1 << 32)),
            (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", Value::Other),
            (b"\xd0\x80", Value::Int(-128)),
            (b"\xd1\xff\x7f", Value::Int(-129)),
            (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", Value::Int(i64::MIN)),
            (b"\xc0", Value::None),
            (b"\xc3", Value::Bool(true)),
            (b"\xa2ab", text("ab")),
            (b"\xd9\x02ab", text("ab")),
            (b"\xda\x00\x02ab", text("ab")),
            (b"\xc4\x02ab", bytes.clone()),
            (b"\xc6\x00\x00\x00\x02ab", bytes.clone()),
            (b"\xdc\x00\x01\xc0", Value::List(vec![Value::None])),
            (b"\xdf\x00\x00\x00\x01\x01\xc0", Value::Map(vec![(Value::Int(1), Value::None)])),
            (b"\x81\x01\x92\x02\x03", {
                Value::Map(vec![(Value::Int(1), Value::List(vec![Value::Int(2), Value::Int(3)]))])
            }),
            (b"\xcb\x00\x00\x00\x00\x00\x00\x00\x00", Value::Other),
            (b"\xd6\x05abcd", Value::Other),
        ];
        for (message, value) in cases {
            assert_eq!(of(message), Ok(value), "{message:x?}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_believed() {
        let cut = [
            &b""[..],
            b"\xc6\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff\xc0",
            b"\xdf\xff\xff\xff\xff",
            b"\xa5ab",
        ];
        for message in cut {
            assert_eq!(of(message), Err(MessageError::Cut), "{message:x?}");
        }
        assert_eq!(of(b"\xc1"), Err(MessageError::Marker(0xc1)));
        assert_eq!(of(b"\xc0\xc0"), Err(MessageError::Rest(1)));
        assert_eq!(of(&[0x91; 100]), Err(MessageError::Shape));
        let mut many = b"\xdd\x00\x20\x00\x00".to_vec();
        many.resize(many.len() + (1 << 21), 0xc0);
        assert_eq!(of(&many), Err(MessageError::TooMany));
    }
}
