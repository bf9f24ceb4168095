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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FRAME_BYTES_MAX, Frame, LineBuffer};
    use proptest::prelude::*;

    const FILE: FileId = FileId::from_raw(0x2a);
    const REV: Tid = Tid::from_raw(0x03ca_a842_75fc_1166);

    fn span(first: u64, last: u64) -> BlockSpan {
        BlockSpan::new(BlockIndex::new(first), BlockIndex::new(last)).unwrap()
    }

    fn shown(message: &ServerMessage<'_>, stream: u64) -> String {
        String::from_utf8(message.to_frame(stream).to_vec()).unwrap()
    }

    #[test]
    fn messages_look_as_the_protocol_says() {
        let pin = |blocks, to| ServerMessage::Pin { file: FILE, blocks, to };
        let ok = |size, range, size_granted| ServerMessage::Ok(OkReply { size, range, size_granted });
        for (message, stream, expected) in [
            (pin(span(7, 7), PinTo::Rev(REV)), 2, "2 pin 000000000000002a #7 @03caa84275fc1166\n"),
            (pin(span(3, 9), PinTo::Head), 4, "4 pin 000000000000002a #3-9 @head\n"),
            (ok(None, false, false), 1, "1 ok\n"),
            (ok(Some(123), false, false), 3, "3 ok size=123\n"),
            (ok(None, true, true), 1, "1 ok range size\n"),
            (ok(Some(0), true, true), 1, "1 ok range size size=0\n"),
            (ServerMessage::Error("bad watch: invalid at"), 5, "5 error bad watch: invalid at\n"),
            (ServerMessage::Closing(Closing::Error("unexpected EOF")), 0, "0 error: unexpected EOF\n"),
            (ServerMessage::Closing(Closing::Fatal("pin #7 @head: x")), 0, "0 fatal: pin #7 @head: x\n"),
        ] {
            assert_eq!(shown(&message, stream), expected);
            let line = expected.trim_end().as_bytes();
            let frame = Frame::parse(line).unwrap();
            assert_eq!(frame.stream, stream);
            assert_eq!(ServerMessage::parse(stream, frame.message), Ok(message));
        }
        assert_eq!(Closing::Error("x").to_frame(), ServerMessage::Closing(Closing::Error("x")).to_frame(0));
    }

    #[test]
    fn the_longest_pin_and_reply_are_not_cut() {
        let all = BlockSpan { first: BlockIndex::new(u64::MAX - 1), last: BlockIndex::new(u64::MAX) };
        let pin =
            ServerMessage::Pin { file: FileId::from_raw(u64::MAX), blocks: all, to: PinTo::Rev(Tid::MAX) };
        let ok = ServerMessage::Ok(OkReply { size: Some(u64::MAX), range: true, size_granted: true });
        for (message, stream) in [(pin, u64::MAX - 1), (ok, u64::MAX)] {
            let text = shown(&message, stream);
            assert_eq!(text, format!("{stream} {message}\n"));
            assert!(text.len() < FRAME_BYTES_MAX, "a text that is cut fills the frame");
        }
    }

    #[test]
    fn what_is_no_pin_is_refused() {
        for message in [
            "pin",
            "pin ",
            "pin 2a #7 @head",
            "pin 000000000000002a 7 @head",
            "pin 000000000000002a # @head",
            "pin 000000000000002a #+7 @head",
            "pin 000000000000002a #-7 @head",
            "pin 000000000000002a #9-3 @head",
            "pin 000000000000002a #3- @head",
            "pin 000000000000002a #3-4-5 @head",
            "pin 000000000000002a #9223372036854775808 @head",
            "pin 000000000000002a #7 head",
            "pin 000000000000002a #7 @",
            "pin 000000000000002a #7 @hea",
            "pin 000000000000002a #7 @1",
            "pin 000000000000002a #7 @head ",
            "pin 000000000000002a  #7 @head",
            " pin 000000000000002a #7 @head",
            "ok",
            "",
        ] {
            let error = ServerMessage::parse(2, message.as_bytes()).unwrap_err();
            assert_eq!(error, MessageError::NotPin { stream: 2, message: message.as_bytes().into() });
        }
        let upper = ServerMessage::parse(2, b"pin 000000000000002A #3-3 @03CAA84275FC1166");
        let pin = ServerMessage::Pin { file: FILE, blocks: span(3, 3), to: PinTo::Rev(REV) };
        assert_eq!(upper, Ok(pin));
    }

    #[test]
    fn replies_may_hold_words_of_later_versions_but_no_broken_ones() {
        let ok = |size, range, size_granted| Ok(ServerMessage::Ok(OkReply { size, range, size_granted }));
        assert_eq!(ServerMessage::parse(1, b"ok new size=7 a=b range"), ok(Some(7), true, false));
        assert_eq!(ServerMessage::parse(1, b"ok "), ok(None, false, false));
        for message in ["", "o", "okay", "error", "errors x", "ok size=", "ok size=-1", "ok size=7x", "pin"] {
            let error = ServerMessage::parse(1, message.as_bytes()).unwrap_err();
            assert_eq!(error, MessageError::NotReply { stream: 1, message: message.as_bytes().into() });
        }
        assert_eq!(ServerMessage::parse(1, b"error "), Ok(ServerMessage::Error("")));
        assert_eq!(ServerMessage::parse(1, b"error a\xffb"), Ok(ServerMessage::Error("a")));
        for message in ["", "error", "error:x", "fatal", "ok", "error x"] {
            let error = ServerMessage::parse(0, message.as_bytes()).unwrap_err();
            assert_eq!(error, MessageError::NotClosing { message: message.as_bytes().into() });
        }
        let error = ServerMessage::parse(1, b"\x1bno").unwrap_err();
        assert_eq!(error.to_string(), r#""\x1bno" on stream 1: expected `ok` or `error `"#);
    }

    #[test]
    fn spans_count_their_ends() {
        assert_eq!(span(3, 9).count(), BlockCount::new(7));
        assert_eq!(span(0, u64::MAX).count(), BlockCount::new(u64::MAX));
        assert_eq!(BlockSpan::one(BlockIndex::new(3)), span(3, 3));
        assert_eq!(span(3, 5).blocks().map(BlockIndex::raw).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(BlockSpan::new(BlockIndex::new(4), BlockIndex::new(3)), None);
        let contained: Vec<u64> = (0..9).filter(|raw| span(3, 5).contains(BlockIndex::new(*raw))).collect();
        assert_eq!(contained, [3, 4, 5]);
    }

    fn any_span() -> impl Strategy<Value = BlockSpan> {
        let max = u64::try_from(i64::MAX).unwrap();
        (0..=max, 0..=max).prop_map(|(a, b)| span(a.min(b), a.max(b)))
    }

    fn any_to() -> impl Strategy<Value = PinTo> {
        prop_oneof![Just(PinTo::Head), any::<u64>().prop_map(|raw| PinTo::Rev(Tid::from_raw(raw)))]
    }

    proptest! {
        #[test]
        fn pins_round_trip_and_no_part_of_one_is_a_message(
            raw: u64, blocks in any_span(), to in any_to(), stream: u64,
        ) {
            let stream = stream.max(2) & !1;
            let pin = ServerMessage::Pin { file: FileId::from_raw(raw), blocks, to };
            let frame = pin.to_frame(stream);
            let parsed = Frame::parse(frame.line()).unwrap();
            prop_assert_eq!(parsed.stream, stream);
            prop_assert_eq!(ServerMessage::parse(stream, parsed.message), Ok(pin));
            for end in 0..parsed.message.len() {
                prop_assert!(ServerMessage::parse(stream, &parsed.message[..end]).is_err());
            }
            for end in 0..frame.len() {
                let mut buffer = LineBuffer::new(FRAME_BYTES_MAX);
                prop_assert_eq!(buffer.next_line(&mut &frame[..end]), None);
            }
        }

        #[test]
        fn replies_round_trip(size: Option<u64>, range: bool, size_granted: bool, stream: u64) {
            let stream = stream | 1;
            let ok = ServerMessage::Ok(OkReply { size, range, size_granted });
            let frame = ok.to_frame(stream);
            let parsed = Frame::parse(frame.line()).unwrap();
            prop_assert_eq!(ServerMessage::parse(parsed.stream, parsed.message), Ok(ok));
        }

        #[test]
        fn texts_round_trip_if_they_fit(text in "\\PC{0,20}") {
            for (message, stream) in [
                (ServerMessage::Error(&text), 1),
                (ServerMessage::Closing(Closing::Error(&text)), 0),
                (ServerMessage::Closing(Closing::Fatal(&text)), 0),
            ] {
                let frame = message.to_frame(stream);
                let parsed = Frame::parse(frame.line()).unwrap();
                prop_assert_eq!(ServerMessage::parse(stream, parsed.message), Ok(message));
            }
        }

        #[test]
        fn no_bytes_panic(stream: u64, message: Vec<u8>, near in "(pin |ok |error)[0-9a-f #@=-]{0,40}") {
            for message in [&message[..], near.as_bytes()] {
                for stream in [stream, 0, 1, 2] {
                    match ServerMessage::parse(stream, message) {
                        Ok(parsed) => prop_assert_eq!(parsed.stream_kind(), StreamKind::of(stream)),
                        Err(error) => prop_assert!(!error.to_string().contains('\n')),
                    }
                }
            }
        }
    }
}
