//! What a message of a server says, read from a pickle or from MessagePack.
//!
//! Invariant: a value is a tree of bounded depth ([`DEPTH_MAX`]) and size ([`VALUES_MAX`]), whatever the message was; bytes
//! are parts of the message and copied nowhere. Nothing in it was run. Left out on purpose: classes and calls, which mean
//! nothing here; they are [`Value::Other`].

use bytes::Bytes;
use revfs_protocol::Tid;

use crate::store::zodb::Oid;
use crate::store::zodb::pickle::{self, PickleError, Pickles, ValueId};

/// Deepest nesting that is read; what lies deeper is [`Value::Other`]. What servers say has five levels.
pub const DEPTH_MAX: usize = 8;
/// Most values in one message. A commit of so many objects is told in one.
pub const VALUES_MAX: usize = 1 << 20;

/// Why a message cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is no pickle.
    #[error("a message is no pickle that is read here: {0}")]
    Pickle(#[from] PickleError),
    /// It ends too early.
    #[error("a message ends within a value")]
    Cut,
    /// It is no MessagePack.
    #[error("a message has the byte 0x{0:02x} where MessagePack has a value")]
    Marker(u8),
    /// Something is behind the value.
    #[error("a message has {0} bytes behind its value")]
    Rest(usize),
    /// More than is read here.
    #[error("a message has more than {VALUES_MAX} values")]
    TooMany,
    /// It is a value, but no message.
    #[error("a message is not made of a number, a flag, a name and a value")]
    Shape,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// Bytes.
    Bytes(Bytes),
    /// Text as UTF-8, not checked.
    Text(Bytes),
    /// A tuple or a list.
    List(Vec<Value>),
    /// A dict.
    Map(Vec<(Value, Value)>),
    /// Anything else.
    Other,
}

impl Value {
    /// Whether it is `None`.
    pub fn is_none(&self) -> bool {
        matches!(self, Value::None)
    }

    /// An integer; a truth value is one in Python.
    pub fn int(&self) -> Option<i64> {
        match self {
            Value::Int(int) => Some(*int),
            Value::Bool(bool) => Some(i64::from(*bool)),
            _ => None,
        }
    }

    /// Bytes, or text as what it is in UTF-8.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Value::Bytes(bytes) | Value::Text(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Text for people.
    pub fn text(&self) -> Option<String> {
        self.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The items of a tuple or list.
    pub fn list(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// What a dict has under a name. Of equal keys the last one counts.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let Value::Map(entries) = self else { return None };
        let found = entries.iter().rfind(|(key, _)| key.bytes().is_some_and(|key| key == name.as_bytes()));
        found.map(|(_, value)| value)
    }

    /// A transaction's id: 8 bytes.
    pub fn tid(&self) -> Option<Tid> {
        self.number().map(Tid::from_raw)
    }

    /// An object's id: 8 bytes.
    pub fn oid(&self) -> Option<Oid> {
        self.number().map(Oid::from_raw)
    }

    fn number(&self) -> Option<u64> {
        let bytes: &[u8] = self.bytes()?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }
}

/// Reads a pickle, all of it.
///
/// # Errors
/// See [`MessageError`].
pub fn from_pickle(message: &Bytes) -> Result<Value, MessageError> {
    let mut pickles = Pickles::with_opcodes_max(message, VALUES_MAX);
    let root = pickles.read_next()?;
    if !pickles.is_at_end() {
        return Err(MessageError::Rest(message.len() - pickles.at()));
    }
    let mut left = VALUES_MAX;
    convert(message, &pickles, root, 0, &mut left)
}

/// The recursion is bounded by [`DEPTH_MAX`], and what is named many times by `left`.
fn convert(
    message: &Bytes,
    pickles: &Pickles<'_>,
    id: ValueId,
    depth: usize,
    left: &mut usize,
) -> Result<Value, MessageError> {
    *left = left.checked_sub(1).ok_or(MessageError::TooMany)?;
    if depth > DEPTH_MAX {
        return Ok(Value::Other);
    }
    let mut inner = |ids: &[ValueId]| -> Result<Vec<Value>, MessageError> {
        ids.iter().map(|id| convert(message, pickles, *id, depth + 1, left)).collect()
    };
    Ok(match pickles.value(id) {
        pickle::Value::None => Value::None,
        pickle::Value::Bool(bool) => Value::Bool(bool),
        pickle::Value::Int(int) => Value::Int(int),
        pickle::Value::Text(text) => Value::Text(message.slice_ref(text)),
        pickle::Value::Bytes(bytes) | pickle::Value::Str(bytes) => Value::Bytes(message.slice_ref(bytes)),
        pickle::Value::Tuple(_) => Value::List(inner(pickles.tuple(id).unwrap_or_default())?),
        pickle::Value::List(_) => Value::List(inner(pickles.list(id).unwrap_or_default())?),
        pickle::Value::Dict(_) => {
            let mut entries = Vec::new();
            for (key, value) in pickles.dict(id).into_iter().flatten() {
                let pair = inner(&[key, value])?;
                if let Ok([key, value]) = <[Value; 2]>::try_from(pair) {
                    entries.push((key, value));
                }
            }
            Value::Map(entries)
        }
        _ => match pickles.bytes(id) {
            Some(bytes) => Value::Bytes(Bytes::from(bytes.into_owned())),
            None => Value::Other,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pickle_of_a_reply_is_read_and_its_bytes_are_parts_of_the_message() {
        let message = Bytes::from_static(
            b"\x80\x03(K\x07K\x00X\x06\x00\x00\x00.replyC\x02ab\x88}X\x01\x00\x00\x00kK\x01s\x87t.",
        );
        let value = from_pickle(&message).unwrap();
        let items = value.list().unwrap();
        assert_eq!(
            (items[0].int(), items[1].int(), items[2].text()),
            (Some(7), Some(0), Some(".reply".into()))
        );
        let args = items[3].list().unwrap();
        assert_eq!(args[0].bytes().unwrap().as_ptr(), message[20..].as_ptr());
        assert_eq!(args[2].get("k"), Some(&Value::Int(1)));
        assert_eq!(args[2].get("x"), None);
    }

    #[test]
    fn what_is_named_again_and_again_is_counted_each_time() {
        // ((x, x), (x, x)) ... 2^30 values by 60 opcodes.
        let mut message = b"\x80\x03K\x01".to_vec();
        for _ in 0..7 {
            for _ in 0..9 {
                message.extend(b"2");
            }
            message.splice(message.len() - 9.., b"(".iter().chain(&[b'2'; 0]).copied());
            message.extend(b"t");
        }
        message.extend(b".");
        // However it is put together, it ends with an error or a small value.
        drop(from_pickle(&Bytes::from(message)));
        let mut list = b"\x80\x03]q\x00".to_vec();
        for _ in 0..200 {
            list.extend(b"h\x00a");
        }
        list.extend(b".");
        // A list of itself 200 times: 200^8 values.
        assert_eq!(from_pickle(&Bytes::from(list)), Err(MessageError::TooMany));
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for bytes in [&b""[..], b"\x80\x03", b"\x80\x03N.N", b"garbage", b"\x80\x03C\xffab."] {
            assert!(from_pickle(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
        let deep: Vec<u8> = b"\x80\x03N".iter().chain(&[b'\x85'; 1000]).chain(b".").copied().collect();
        let mut value = from_pickle(&Bytes::from(deep)).unwrap();
        let mut depth = 0;
        while let Value::List(items) = value {
            value = items.into_iter().next().unwrap();
            depth += 1;
        }
        assert_eq!((depth, value), (DEPTH_MAX + 1, Value::Other));
    }
}
