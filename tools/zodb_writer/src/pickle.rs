//! Pickles of protocol 3, with the opcodes that `zodbpickle` chooses.

use std::collections::BTreeMap;

/// Longest bytes that an opcode with a short length takes.
const SHORT_BYTES_MAX: usize = 255;

/// Pickles that are being written, one behind the other. Like those of one record they share a memo.
#[derive(Clone, Debug)]
pub struct Pickle {
    out: Vec<u8>,
    /// Numbers of remembered globals, and of the next value; `None`: nothing is remembered.
    memo: Option<(BTreeMap<&'static str, u32>, u32)>,
}

impl Pickle {
    /// The first pickle of a record.
    pub fn new() -> Pickle {
        Pickle { out: b"\x80\x03".to_vec(), memo: Some((BTreeMap::new(), 0)) }
    }

    /// A pickle that remembers nothing, as those of a saved index.
    pub fn without_memo() -> Pickle {
        Pickle { out: b"\x80\x03".to_vec(), memo: None }
    }

    /// Ends the last pickle.
    pub fn stop(mut self) -> Vec<u8> {
        self.out.push(b'.');
        self.out
    }

    /// Ends a pickle and begins the next one.
    pub fn next(mut self) -> Pickle {
        self.out.extend(b".\x80\x03");
        self
    }

    /// Opcodes without anything to remember.
    pub fn op(mut self, opcodes: &[u8]) -> Pickle {
        self.out.extend(opcodes);
        self
    }

    /// Remembers the value that the last opcode made.
    pub fn put(mut self) -> Pickle {
        let Some((_, next)) = &mut self.memo else { return self };
        let number = *next;
        *next += 1;
        self.numbered(b'q', b'r', number)
    }

    fn numbered(mut self, short: u8, long: u8, number: u32) -> Pickle {
        match u8::try_from(number) {
            Ok(number) => self.out.extend([short, number]),
            Err(_) => {
                self.out.push(long);
                self.out.extend(number.to_le_bytes());
            }
        }
        self
    }

    /// A number.
    pub fn int(mut self, number: i64) -> Pickle {
        if let Ok(number) = u8::try_from(number) {
            self.out.extend([b'K', number]);
        } else if let Ok(number) = u16::try_from(number) {
            self.out.push(b'M');
            self.out.extend(number.to_le_bytes());
        } else if let Ok(number) = i32::try_from(number) {
            self.out.push(b'J');
            self.out.extend(number.to_le_bytes());
        } else {
            let bytes = number.to_le_bytes();
            // As few bytes as keep the sign.
            let fits = |len: usize| number << (64 - 8 * len) >> (64 - 8 * len) == number;
            let len = (5..8).find(|len| fits(*len)).unwrap_or(8);
            self.out.extend([0x8a, len as u8]);
            self.out.extend(&bytes[..len]);
        }
        self
    }

    /// Bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Pickle {
        if bytes.len() <= SHORT_BYTES_MAX {
            self.out.extend([b'C', bytes.len() as u8]);
        } else {
            self.out.push(b'B');
            self.out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
        self.out.extend(bytes);
        self.put()
    }

    /// Text.
    pub fn text(mut self, text: &str) -> Pickle {
        self.out.push(b'X');
        self.out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.out.extend(text.as_bytes());
        self.put()
    }

    /// A class, by `module\nname\n`.
    pub fn class(mut self, name: &'static str) -> Pickle {
        let Some((known, next)) = &mut self.memo else { return self.op(name.as_bytes()) };
        if let Some(number) = known.get(name) {
            let number = *number;
            return self.numbered(b'h', b'j', number);
        }
        known.insert(name, *next);
        self.out.push(b'c');
        self.out.extend(name.as_bytes());
        self.put()
    }

    /// A reference to another object.
    pub fn reference(self, oid: u64, class: &'static str) -> Pickle {
        self.bytes(&oid.to_be_bytes()).class(class).op(b"\x86").put().op(b"Q")
    }

    /// What `items` write, as a tuple of `len`.
    pub fn tuple(mut self, len: usize, items: impl FnOnce(Pickle) -> Pickle) -> Pickle {
        if len > 3 {
            self.out.push(b'(');
        }
        let done = items(self);
        match len {
            0 => done.op(b")"),
            1 => done.op(b"\x85").put(),
            2 => done.op(b"\x86").put(),
            3 => done.op(b"\x87").put(),
            _ => done.op(b"t").put(),
        }
    }
}
