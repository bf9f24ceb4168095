//! Pickles as ZODB writes them, read as inert data.
//!
//! Invariant: nothing in a pickle is ever run. A class is a pair of names, and a call is a value that says what would
//! be called with what; who knows a form gives it its meaning ([`Pickles::bytes`], [`Pickles::reference`]). Time and
//! memory are linear in the record, and bounded by [`OPCODES_MAX`]. Bytes are borrowed from the record. Values lie in an
//! arena and name each other by number: they may form circles, and neither reading nor dropping them recurses.

mod arena;
mod cursor;
mod machine;
mod number;
mod opcode;
mod reference;

use std::borrow::Cow;
use std::num::NonZeroU32;

use arena::Arena;
use cursor::Cursor;
pub use reference::{ClassName, Reference};

/// Most opcodes in one record; a node of a tree needs seven for each child.
pub const OPCODES_MAX: usize = 1 << 18;
/// Longest line of an opcode that is followed by text, and longest name of a class or module, bytes.
pub const LINE_BYTES_MAX: usize = 4096;
/// Newest protocol that is read.
pub const PROTOCOL_MAX: u8 = 5;

/// Why bytes are not a pickle that is read here. Positions are bytes from the first of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// The record ends too early.
    #[error("it ends within {what} (byte {at})")]
    Cut {
        /// Where the piece begins that is not whole.
        at: usize,
        /// What is not whole.
        what: &'static str,
    },
    /// An opcode that no pickle has, or that is not read here.
    #[error("it has the unknown opcode 0x{opcode:02x} (byte {at})")]
    Opcode {
        /// Where.
        at: usize,
        /// The opcode.
        opcode: u8,
    },
    /// Opcodes that do not go together.
    #[error("{what} (byte {at})")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// More of something than is read here.
    #[error("it has more than {max} {what} (byte {at})")]
    TooMany {
        /// Where.
        at: usize,
        /// Of what.
        what: &'static str,
        /// How many are read.
        max: usize,
    },
}

/// The number of a value in the [`Pickles`] that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueId(NonZeroU32);

/// A value. Numbers of containers and calls mean something to the [`Pickles`] that read it alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of 64 bits with a sign.
    Int(i64),
    /// An integer of 64 bits that is more than [`Value::Int`] can hold.
    Uint(u64),
    /// Any other integer, as the pickle spells it: decimal digits, or two's complement, little-endian.
    BigInt(&'a [u8]),
    /// A float.
    Float(f64),
    /// Bytes (of Python 3; of Python 2 if they were marked as such).
    Bytes(&'a [u8]),
    /// A `str` of Python 2: bytes, or text in an encoding that is not said.
    Str(&'a [u8]),
    /// Text as UTF-8. It was not checked, and may have lone surrogates.
    Text(&'a [u8]),
    /// A tuple.
    Tuple(arena::Span),
    /// A list.
    List(arena::ListId),
    /// A dict: keys and values in turn, as they were set.
    Dict(arena::ListId),
    /// A set, as it was filled.
    Set(arena::ListId),
    /// A class or function by its names.
    Class(arena::ClassId),
    /// What a call would give, and the state that it would be given.
    Call(arena::CallId),
    /// A reference to another object, made from this value.
    Persistent(ValueId),
}

/// A call that a pickle asks for, and that nobody makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// What would be called, or the class that would be made.
    pub callable: ValueId,
    /// With what: mostly a tuple.
    pub args: ValueId,
    /// The state that what comes of it would be given.
    pub state: Option<ValueId>,
}

/// How bytes are spelt.
#[derive(Clone, Copy)]
enum Spelling<'a> {
    /// As they are.
    Plain(&'a [u8]),
    /// As the text that they are in Latin-1.
    Latin1(&'a [u8]),
}

/// The pickles of one record, one behind the other. They share what they memorised.
pub struct Pickles<'a> {
    cursor: Cursor<'a>,
    arena: Arena<'a>,
    memo: Vec<Option<ValueId>>,
    memorised: usize,
    stack: Vec<ValueId>,
    marks: Vec<usize>,
    opcodes: usize,
    opcodes_max: usize,
}

impl<'a> Pickles<'a> {
    /// The pickles of `record`; none is read yet.
    pub fn new(record: &'a [u8]) -> Pickles<'a> {
        Pickles::with_opcodes_max(record, OPCODES_MAX)
    }

    /// The same, for what may have another number of opcodes than a record.
    pub fn with_opcodes_max(record: &'a [u8], opcodes_max: usize) -> Pickles<'a> {
        Pickles {
            cursor: Cursor::new(record),
            arena: Arena::default(),
            memo: Vec::new(),
            memorised: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            opcodes: 0,
            opcodes_max,
        }
    }

    /// Where the next pickle begins, if there is one: bytes from the first of the record.
    pub fn at(&self) -> usize {
        self.cursor.at()
    }

    /// Whether all of the record was read.
    pub fn is_at_end(&self) -> bool {
        self.cursor.rest().is_empty()
    }

    /// A value; `None` for a number that another `Pickles` gave.
    pub fn value(&self, id: ValueId) -> Value<'a> {
        self.arena.value(id)
    }

    /// The items of a tuple.
    pub fn tuple(&self, id: ValueId) -> Option<&[ValueId]> {
        match self.value(id) {
            Value::Tuple(span) => Some(self.arena.span(span)),
            _ => None,
        }
    }

    /// The items of a list.
    pub fn list(&self, id: ValueId) -> Option<&[ValueId]> {
        match self.value(id) {
            Value::List(list) => Some(self.arena.list(list)),
            _ => None,
        }
    }

    /// The keys and values of a dict, as they were set: of equal keys the last one counts.
    pub fn dict(&self, id: ValueId) -> Option<impl Iterator<Item = (ValueId, ValueId)> + '_> {
        match self.value(id) {
            Value::Dict(list) => {
                let (pairs, _) = self.arena.list(list).as_chunks::<2>();
                Some(pairs.iter().map(|[key, value]| (*key, *value)))
            }
            _ => None,
        }
    }

    /// The names of a class or function.
    pub fn class(&self, id: ValueId) -> Option<ClassName<'a>> {
        match self.value(id) {
            Value::Class(class) => self.arena.class(class),
            _ => None,
        }
    }

    /// A call.
    pub fn call(&self, id: ValueId) -> Option<Call> {
        match self.value(id) {
            Value::Call(call) => self.arena.call(call),
            _ => None,
        }
    }

    /// The bytes that a value stands for, in each form in which Python 2 and 3 pickle bytes. Text is none.
    ///
    /// They are borrowed from the record, but for those that were pickled as text.
    pub fn bytes(&self, id: ValueId) -> Option<Cow<'a, [u8]>> {
        match self.spelling(id)? {
            Spelling::Plain(bytes) => Some(Cow::Borrowed(bytes)),
            Spelling::Latin1(text) => latin1(text).map(Cow::Owned),
        }
    }

    fn spelling(&self, id: ValueId) -> Option<Spelling<'a>> {
        if let Some(bytes) = self.plain_bytes(id) {
            return Some(Spelling::Plain(bytes));
        }
        let call = self.call(id).filter(|call| call.state.is_none())?;
        let callable = self.class(call.callable)?;
        match (callable.module, callable.name, self.tuple(call.args)?) {
            // Bytes of Python 3, for a protocol that has no opcode for them.
            ("_codecs", "encode", [text, encoding]) => {
                let Value::Text(text) = self.value(*text) else { return None };
                matches!(self.name(*encoding)?, b"latin1" | b"latin-1").then_some(Spelling::Latin1(text))
            }
            // Python 3 writes no bytes in this way.
            (module, name, []) if is_bytes_class(module, name) => Some(Spelling::Plain(&[])),
            (module, name, [bytes]) if is_bytes_class(module, name) => {
                self.plain_bytes(*bytes).map(Spelling::Plain)
            }
            // The same as an object of a class of its own: of this class, filled as that class is.
            ("copy_reg" | "copyreg", "_reconstructor", [class, base, bytes]) => {
                let [class, base] = [self.class(*class)?, self.class(*base)?];
                let known = [class, base].iter().all(|class| is_bytes_class(class.module, class.name));
                known.then(|| self.plain_bytes(*bytes)).flatten().map(Spelling::Plain)
            }
            _ => None,
        }
    }

    fn plain_bytes(&self, id: ValueId) -> Option<&'a [u8]> {
        match self.value(id) {
            Value::Bytes(bytes) | Value::Str(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The bytes of a name: text, or a `str` of Python 2.
    fn name(&self, id: ValueId) -> Option<&'a [u8]> {
        match self.value(id) {
            Value::Text(name) | Value::Str(name) => Some(name),
            _ => None,
        }
    }
}

/// Whether objects of this class are bytes and nothing else.
fn is_bytes_class(module: &str, name: &str) -> bool {
    matches!(
        (module, name),
        ("__builtin__" | "builtins", "bytes")
            | ("__builtin__", "str")
            | ("zodbpickle" | "zodbpickle.binary", "binary")
    )
}

/// The bytes that a text (as UTF-8) is in Latin-1; `None` if it is not UTF-8 or has other characters.
fn latin1(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        bytes.push(u8::try_from(u32::from(character)).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
