//! What a server says on a watch link: pins, replies, and the end of the link.
//!
//! ```text
//! S: 2 pin 000000000000002a #7 @03caa84275fc1166     map that block as of the revision, then say ack
//! S: 4 pin 000000000000002a #3-9 @head               blocks 3 to 9: back to head; only after `hello range`
//! S: 1 ok   S: 1 ok size=4096   S: 1 ok range size   the reply; to a watch with its size; to hello
//! S: 3 error bad watch: invalid at                   the request failed, the link stays
//! S: 0 error: ...   S: 0 fatal: ...                  the link ends; with fatal, so does the client
//! ```
//!
//! Invariant: a message that is cut at any byte of an id, a block or a keyword is no message. Unknown words in
//! an `ok` are ignored, so that a server can grow.

use crate::frame::{CONTROL_STREAM, FrameText, StreamKind, parse_decimal, parse_hex};
use crate::quote::Quoted;
use crate::{BlockCount, BlockIndex, FileId, Tid};
use std::fmt;
use std::str;
use thiserror::Error;

/// Where a block is to be mapped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PinTo {
    /// The file as of a revision: `@` and its 16 hex digits.
    Rev(Tid),
    /// The latest state, as before any pin: `@head`.
    Head,
}

impl fmt::Display for PinTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PinTo::Rev(rev) => write!(f, "@{rev}"),
            PinTo::Head => f.write_str("@head"),
        }
    }
}

/// Blocks that follow each other; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSpan {
    /// The first of them.
    pub first: BlockIndex,
    /// The last of them; not before `first`.
    pub last: BlockIndex,
}

impl BlockSpan {
    /// One block.
    pub const fn one(block: BlockIndex) -> BlockSpan {
        BlockSpan { first: block, last: block }
    }

    /// From `first` to `last`, which is included; none if they are the wrong way round.
    pub fn new(first: BlockIndex, last: BlockIndex) -> Option<BlockSpan> {
        (first <= last).then_some(BlockSpan { first, last })
    }

    /// How many blocks; all that 64 bits can name count as one less.
    pub const fn count(self) -> BlockCount {
        BlockCount::new((self.last.raw() - self.first.raw()).saturating_add(1))
    }

    /// Whether `block` is one of them.
    pub fn contains(self, block: BlockIndex) -> bool {
        self.first <= block && block <= self.last
    }

    /// Each of them, from the first on.
    pub fn blocks(self) -> impl DoubleEndedIterator<Item = BlockIndex> {
        (self.first.raw()..=self.last.raw()).map(BlockIndex::new)
    }
}

impl fmt::Display for BlockSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.first)?;
        if self.first == self.last { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

/// The reply to a request that succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OkReply {
    /// To a watch, if sizes were granted: bytes of the file as of the state that is watched.
    pub size: Option<u64>,
    /// To `hello`: pins may name several blocks.
    pub range: bool,
    /// To `hello`: replies to a watch say the size.
    pub size_granted: bool,
}

impl fmt::Display for OkReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ok")?;
        f.write_str(if self.range { " range" } else { "" })?;
        f.write_str(if self.size_granted { " size" } else { "" })?;
        self.size.map_or(Ok(()), |size| write!(f, " size={size}"))
    }
}

/// Why the server ends the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing<'a> {
    /// The client is left alone.
    Error(&'a str),
    /// The client did not do what a pin asked for, and is killed.
    Fatal(&'a str),
}

impl fmt::Display for Closing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closing::Error(text) => write!(f, "error: {text}"),
            Closing::Fatal(text) => write!(f, "fatal: {text}"),
        }
    }
}

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerMessage<'a> {
    /// On an even stream: map these blocks from there, and say `ack`.
    Pin {
        /// Of which file.
        file: FileId,
        /// Which of its blocks.
        blocks: BlockSpan,
        /// Where from.
        to: PinTo,
    },
    /// On the stream of a request: it succeeded.
    Ok(OkReply),
    /// On the stream of a request: it failed, and this is why.
    Error(&'a str),
    /// On stream 0: the link ends.
    Closing(Closing<'a>),
}

/// A message of a server that a client cannot take.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// On stream 0, neither `error: ` nor `fatal: `.
    #[error("{} on the control stream: expected `error: ` or `fatal: `", Quoted(.message))]
    NotClosing {
        /// The message.
        message: Box<[u8]>,
    },
    /// On an even stream, no pin.
    #[error("{} on stream {stream}: expected `pin <file> #<block> @<rev>` or `... @head`", Quoted(.message))]
    NotPin {
        /// The stream.
        stream: u64,
        /// The message.
        message: Box<[u8]>,
    },
    /// On an odd stream, neither `ok` nor `error `.
    #[error("{} on stream {stream}: expected `ok` or `error `", Quoted(.message))]
    NotReply {
        /// The stream.
        stream: u64,
        /// The message.
        message: Box<[u8]>,
    },
}

impl<'a> ServerMessage<'a> {
    /// The frame of this message on `stream`: even for a pin, odd for a reply, [`CONTROL_STREAM`] for the end.
    ///
    /// A text that is too long for a frame is cut, and line feeds in it become spaces.
    pub fn to_frame(&self, stream: u64) -> FrameText {
        debug_assert_eq!(StreamKind::of(stream), self.stream_kind(), "{self:?} on stream {stream}");
        FrameText::print(format_args!("{stream} {self}"))
    }

    /// On which streams this may be said.
    pub const fn stream_kind(&self) -> StreamKind {
        match self {
            ServerMessage::Pin { .. } => StreamKind::Server,
            ServerMessage::Ok(_) | ServerMessage::Error(_) => StreamKind::Client,
            ServerMessage::Closing(_) => StreamKind::Control,
        }
    }

    /// Reads what a server said on `stream`. Of a text that is not UTF-8 the part before that is kept.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(stream: u64, message: &'a [u8]) -> Result<ServerMessage<'a>, MessageError> {
        let copy = || message.into();
        match StreamKind::of(stream) {
            StreamKind::Control => {
                parse_closing(message).ok_or_else(|| MessageError::NotClosing { message: copy() })
            }
            StreamKind::Server => {
                parse_pin(message).ok_or_else(|| MessageError::NotPin { stream, message: copy() })
            }
            StreamKind::Client => {
                parse_reply(message).ok_or_else(|| MessageError::NotReply { stream, message: copy() })
            }
        }
    }
}

impl Closing<'_> {
    /// The frame of this, on [`CONTROL_STREAM`].
    pub fn to_frame(&self) -> FrameText {
        ServerMessage::Closing(*self).to_frame(CONTROL_STREAM)
    }
}

impl fmt::Display for ServerMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerMessage::Pin { file, blocks, to } => write!(f, "pin {file} {blocks} {to}"),
            ServerMessage::Ok(reply) => reply.fmt(f),
            ServerMessage::Error(text) => write!(f, "error {text}"),
            ServerMessage::Closing(closing) => closing.fmt(f),
        }
    }
}

fn parse_closing(message: &[u8]) -> Option<ServerMessage<'_>> {
    let closing = match (message.strip_prefix(b"error: "), message.strip_prefix(b"fatal: ")) {
        (Some(text), _) => Closing::Error(text_of(text)),
        (None, Some(text)) => Closing::Fatal(text_of(text)),
        (None, None) => return None,
    };
    Some(ServerMessage::Closing(closing))
}

fn parse_pin(message: &[u8]) -> Option<ServerMessage<'_>> {
    let mut words = message.strip_prefix(b"pin ")?.split(|byte| *byte == b' ');
    let file = FileId::from_raw(parse_hex(words.next()?)?);
    let blocks = parse_span(words.next()?.strip_prefix(b"#")?)?;
    let to = match words.next()?.strip_prefix(b"@")? {
        b"head" => PinTo::Head,
        rev => PinTo::Rev(Tid::from_raw(parse_hex(rev)?)),
    };
    words.next().is_none().then_some(ServerMessage::Pin { file, blocks, to })
}

/// `7` or `3-9`.
fn parse_span(text: &[u8]) -> Option<BlockSpan> {
    let (first, last) = match text.iter().position(|byte| *byte == b'-') {
        Some(dash) => (&text[..dash], &text[dash + 1..]),
        None => (text, text),
    };
    BlockSpan::new(parse_block(first)?, parse_block(last)?)
}

/// A block number, which must fit 63 bits: existing clients read it as a signed number.
fn parse_block(digits: &[u8]) -> Option<BlockIndex> {
    let number = parse_decimal(digits)?;
    i64::try_from(number).ok().map(|_| BlockIndex::new(number))
}

fn parse_reply(message: &[u8]) -> Option<ServerMessage<'_>> {
    if let Some(text) = message.strip_prefix(b"error ") {
        return Some(ServerMessage::Error(text_of(text)));
    }
    let mut words = message.split(|byte| *byte == b' ');
    if words.next() != Some(b"ok") {
        return None;
    }
    let mut reply = OkReply::default();
    for word in words {
        match word {
            b"range" => reply.range = true,
            b"size" => reply.size_granted = true,
            _ => {
                if let Some(digits) = word.strip_prefix(b"size=") {
                    reply.size = Some(parse_decimal(digits)?);
                }
            }
        }
    }
    Some(ServerMessage::Ok(reply))
}

/// The beginning of `bytes` that is UTF-8: texts are for people, and must not end a link by themselves.
fn text_of(bytes: &[u8]) -> &str {
    bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}
