//! Messages of protocol 5 of ZEO, as bytes: frames, requests, and what comes back.
//!
//! A frame is a length of 4 bytes, big-endian, and so many bytes. The first frame each way names the coding and the
//! protocol; each later one is (number, flag, name, arguments), in a pickle or in MessagePack. Invariant: memory is taken for
//! bytes that came, never for a length that was promised, and no frame is longer than [`MESSAGE_BYTES_MAX`].

use bytes::{Buf, Bytes, BytesMut};

use super::msgpack;
use super::value::{self, MessageError, Value};
use crate::store::zodb::filestorage::DATA_BYTES_MAX;

/// Most bytes of one message: a record, and what is around it.
pub const MESSAGE_BYTES_MAX: usize = DATA_BYTES_MAX as usize + (64 << 10);
/// Bytes of the length of a frame.
const LENGTH_BYTES: usize = 4;
/// A larger buffer is given back once it is empty, bytes.
const BUFFER_BYTES_KEPT: usize = 4 << 20;
/// The name of what answers a request.
pub const REPLY: &str = ".reply";

/// How messages are spelt; the server says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Pickles of protocol 3.
    Pickle,
    /// MessagePack.
    MessagePack,
}

impl Coding {
    /// The coding that the first message of a server names; None if it speaks another protocol.
    pub fn of_greeting(greeting: &[u8]) -> Option<Coding> {
        match greeting {
            b"Z5" => Some(Coding::Pickle),
            b"M5" => Some(Coding::MessagePack),
            _ => None,
        }
    }

    /// What the client says to that.
    pub fn answer(self) -> &'static [u8] {
        match self {
            Coding::Pickle => b"Z5",
            Coding::MessagePack => b"M5",
        }
    }
}

/// An argument of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Arg>),
}

impl From<[u8; 8]> for Arg {
    fn from(id: [u8; 8]) -> Arg {
        Arg::Bytes(id.to_vec())
    }
}

/// A message that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The number of the request that it answers.
    pub id: i64,
    /// Of an answer: 0, or 2 if the request failed.
    pub flag: i64,
    /// What it is about.
    pub name: Bytes,
    /// What it says.
    pub args: Value,
}

/// A request as a message. Without an answer if `is_async`.
pub fn request(coding: Coding, id: i64, is_async: bool, name: &str, args: &[Arg]) -> Vec<u8> {
    let message = [Arg::Int(id), Arg::Bool(is_async), Arg::Text(name.to_owned())];
    match coding {
        Coding::Pickle => {
            let mut out = b"\x80\x03(".to_vec();
            message.iter().for_each(|arg| pickle(arg, &mut out));
            out.push(b'(');
            args.iter().for_each(|arg| pickle(arg, &mut out));
            out.extend(b"tt.");
            out
        }
        Coding::MessagePack => {
            let mut out = vec![0x94];
            message.iter().for_each(|arg| pack(arg, &mut out));
            pack_length(0xdd, args.len(), &mut out);
            args.iter().for_each(|arg| pack(arg, &mut out));
            out
        }
    }
}

/// Reads a message.
///
/// # Errors
/// It is none.
pub fn message(coding: Coding, bytes: &Bytes) -> Result<Message, MessageError> {
    let value = match coding {
        Coding::Pickle => value::from_pickle(bytes)?,
        Coding::MessagePack => msgpack::read(bytes)?,
    };
    let Value::List(items) = value else { return Err(MessageError::Shape) };
    let [id, flag, name, args] = <[Value; 4]>::try_from(items).map_err(|_| MessageError::Shape)?;
    match (id.int(), flag.int(), name.bytes()) {
        (Some(id), Some(flag), Some(name)) => Ok(Message { id, flag, name: name.clone(), args }),
        _ => Err(MessageError::Shape),
    }
}

/// A length fits: requests are short.
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

fn pickle(arg: &Arg, out: &mut Vec<u8>) {
    let counted = |opcode: u8, bytes: &[u8], out: &mut Vec<u8>| {
        out.push(opcode);
        let mut len = length(bytes.len());
        len.reverse();
        out.extend(len);
        out.extend(bytes);
    };
    match arg {
        Arg::None => out.push(b'N'),
        Arg::Bool(true) => out.push(0x88),
        Arg::Bool(false) => out.push(0x89),
        Arg::Int(int) => {
            out.extend([0x8a, 8]);
            out.extend(int.to_le_bytes());
        }
        Arg::Bytes(bytes) => counted(b'B', bytes, out),
        Arg::Text(text) => counted(b'X', text.as_bytes(), out),
        Arg::List(items) => {
            out.extend(b"](");
            items.iter().for_each(|item| pickle(item, out));
            out.push(b'e');
        }
    }
}

fn pack_length(marker: u8, len: usize, out: &mut Vec<u8>) {
    out.push(marker);
    out.extend(length(len));
}

fn pack(arg: &Arg, out: &mut Vec<u8>) {
    match arg {
        Arg::None => out.push(0xc0),
        Arg::Bool(false) => out.push(0xc2),
        Arg::Bool(true) => out.push(0xc3),
        Arg::Int(int) => {
            out.push(0xd3);
            out.extend(int.to_be_bytes());
        }
        Arg::Bytes(bytes) => {
            pack_length(0xc6, bytes.len(), out);
            out.extend(bytes);
        }
        Arg::Text(text) => {
            pack_length(0xdb, text.len(), out);
            out.extend(text.as_bytes());
        }
        Arg::List(items) => {
            pack_length(0xdd, items.len(), out);
            items.iter().for_each(|item| pack(item, out));
        }
    }
}

/// Adds a message to what is to be sent.
pub fn add_frame(message: &[u8], out: &mut Vec<u8>) {
    out.extend(length(message.len()));
    out.extend(message);
}

/// A frame is longer than any that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message has {0} bytes, more than {MESSAGE_BYTES_MAX}")]
pub struct FrameError(pub usize);

/// Bytes that came, and are to be taken apart into messages.
#[derive(Debug, Default)]
pub struct Frames {
    have: BytesMut,
}

impl Frames {
    /// Adds what came.
    pub fn add(&mut self, bytes: &[u8]) {
        self.have.extend_from_slice(bytes);
    }

    /// The next whole message.
    ///
    /// # Errors
    /// It is too long. Nothing behind it can be read then.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.have.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if len > MESSAGE_BYTES_MAX {
            return Err(FrameError(len));
        }
        if self.have.len() - LENGTH_BYTES < len {
            return Ok(None);
        }
        // A copy: what is kept of a message is not to keep the bytes of others too.
        let message =
            Bytes::copy_from_slice(self.have.get(LENGTH_BYTES..LENGTH_BYTES + len).unwrap_or_default());
        self.have.advance(LENGTH_BYTES + len);
        if self.have.is_empty() && self.have.capacity() > BUFFER_BYTES_KEPT {
            self.have = BytesMut::new();
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_in_both_codings() {
        let args = [
            Arg::from([1; 8]),
            Arg::None,
            Arg::Bool(true),
            Arg::Int(-5),
            Arg::Text("1".to_owned()),
            Arg::List(vec![Arg::Int(1 << 40)]),
        ];
        for coding in [Coding::Pickle, Coding::MessagePack] {
            let bytes = Bytes::from(request(coding, 3, true, "register", &args));
            let message = message(coding, &bytes).unwrap();
            assert_eq!((message.id, message.flag, &message.name[..]), (3, 1, &b"register"[..]));
            let expected = Value::List(vec![
                Value::Bytes(Bytes::from_static(&[1; 8])),
                Value::None,
                Value::Bool(true),
                Value::Int(-5),
                Value::Text(Bytes::from_static(b"1")),
                Value::List(vec![Value::Int(1 << 40)]),
            ]);
            assert_eq!(message.args, expected, "{coding:?}");
        }
    }

    #[test]
    fn frames_are_put_together_from_pieces_of_any_size() {
        let mut sent = Vec::new();
        let messages: Vec<Vec<u8>> = [0, 1, 3, 1000].iter().map(|len| vec![*len as u8; *len]).collect();
        messages.iter().for_each(|message| add_frame(message, &mut sent));
        for step in [1, 2, 3, 7, 2000] {
            let (mut frames, mut got) = (Frames::default(), Vec::new());
            for piece in sent.chunks(step) {
                frames.add(piece);
                while let Some(message) = frames.next_message().unwrap() {
                    got.push(message.to_vec());
                }
            }
            assert_eq!(got, messages, "{step}");
        }
    }

    #[test]
    fn a_promised_length_takes_no_memory() {
        let mut frames = Frames::default();
        frames.add(&u32::try_from(MESSAGE_BYTES_MAX).unwrap().to_be_bytes());
        frames.add(b"x");
        assert_eq!(frames.next_message(), Ok(None));
        assert!(frames.have.capacity() < 4096);
        let mut frames = Frames::default();
        frames.add(b"\xff\xff\xff\xff");
        assert_eq!(frames.next_message(), Err(FrameError(u32::MAX as usize)));
    }
}
