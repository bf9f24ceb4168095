//! Frames: the lines of a watch link, a stream number and a message.
//!
//! Invariant: parsing borrows and printing fills a fixed buffer, so neither allocates; a [`FrameText`] ends in
//! its only LF and has at most [`FRAME_BYTES_MAX`] bytes, whatever text went in. Only an error takes memory.

use crate::quote::{Quoted, QuotedPart};
use std::fmt::{self, Write};
use std::ops::Deref;
use std::str;

/// Most bytes of a frame of the server, with its LF: room for the longest error text that existing clients compare,
/// that of an epoch. Pins and `ok` are far shorter; a client of WCFS reads 256 bytes, and at least 128 of them at once.
pub const FRAME_BYTES_MAX: usize = 144;

/// Most bytes of a frame of a client, with its LF.
pub const LINE_BYTES_MAX: usize = 256;

/// The stream of what the server says about the link itself; nothing answers on it.
pub const CONTROL_STREAM: u64 = 0;

/// The stream of the first request that a server sends; the next ones are 4, 6, and so on.
pub const FIRST_SERVER_STREAM: u64 = 2;

/// The stream of the first request that a client sends; the next ones are 3, 5, and so on.
pub const FIRST_CLIENT_STREAM: u64 = 1;

/// Who began what is said on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Stream 0: from the server, without answer.
    Control,
    /// Even: a request of the server, and the reply to it.
    Server,
    /// Odd: a request of the client, and the reply to it.
    Client,
}

impl StreamKind {
    /// The kind of a stream.
    pub const fn of(stream: u64) -> StreamKind {
        match stream {
            CONTROL_STREAM => StreamKind::Control,
            _ if stream.is_multiple_of(2) => StreamKind::Server,
            _ => StreamKind::Client,
        }
    }
}

/// One line of a watch link: `stream SP message`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Which stream; see [`StreamKind`].
    pub stream: u64,
    /// What is said, without LF.
    pub message: &'a [u8],
}

/// A line that is not a frame. It shows in the words of WCFS.
#[derive(Clone, PartialEq, Eq)]
pub struct FrameError {
    line: Box<[u8]>, // without LF
    bad_stream: bool,
}

impl<'a> Frame<'a> {
    /// Reads a line without its LF: a decimal number without sign, a space, a message that may be empty.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(line: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        let refused = |bad_stream| FrameError { line: line.into(), bad_stream };
        let space = line.iter().position(|byte| *byte == b' ').ok_or_else(|| refused(false))?;
        let stream = parse_decimal(&line[..space]).ok_or_else(|| refused(true))?;
        Ok(Frame { stream, message: &line[space + 1..] })
    }
}

/// Reads digits as a number; none if there is anything else, nothing at all, or more than 64 bits.
pub(crate) fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Reads exactly 16 hex digits; upper case is taken too, as WCFS takes it.
pub(crate) fn parse_hex(digits: &[u8]) -> Option<u64> {
    if digits.len() != crate::id_text::ID_TEXT_LEN {
        return None;
    }
    digits.iter().try_fold(0u64, |number, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

impl FrameError {
    const BEGIN: &str = "0 error: invalid frame: ";
    const BAD_STREAM: &str = " (invalid stream)";

    fn end(&self) -> &'static str {
        if self.bad_stream { FrameError::BAD_STREAM } else { "" }
    }

    /// The line as it came, with the LF that ended it.
    fn with_lf(&self) -> impl Iterator<Item = u8> + '_ {
        self.line.iter().copied().chain([b'\n'])
    }

    /// `0 error: ` and this error. Of a long line only the beginning is quoted, followed by `...`.
    pub fn to_frame(&self) -> FrameText {
        let room = FRAME_BYTES_MAX - FrameError::BEGIN.len() - self.end().len() - 1;
        let line: Vec<u8> = self.with_lf().collect();
        FrameText::print(format_args!("{}{}{}", FrameError::BEGIN, QuotedPart::of(&line, room), self.end()))
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line: Vec<u8> = self.with_lf().collect();
        write!(f, "invalid frame: {}{}", Quoted(&line), self.end())
    }
}

impl fmt::Debug for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameError({self})")
    }
}

impl std::error::Error for FrameError {}

/// A frame ready to be sent, LF included, in a fixed buffer.
#[derive(Clone, Copy)]
pub struct FrameText {
    bytes: [u8; FRAME_BYTES_MAX],
    len: u8, // at least 1: the LF is always there
}

impl FrameText {
    /// Prints, and ends with LF. What does not fit is cut off between two characters; what would break the
    /// line or a terminal becomes a space.
    pub(crate) fn print(content: fmt::Arguments<'_>) -> FrameText {
        let mut writer = Writer { bytes: [0; FRAME_BYTES_MAX], len: 0 };
        // An error here is the writer's own, and says that the rest was cut off.
        let _cut = writer.write_fmt(content);
        writer.bytes[writer.len] = b'\n';
        // At most FRAME_BYTES_MAX.
        FrameText { bytes: writer.bytes, len: (writer.len + 1) as u8 }
    }

    /// The frame without its LF.
    pub fn line(&self) -> &[u8] {
        &self[..self.len() - 1]
    }
}

/// Collects a frame. One byte is kept for the LF.
struct Writer {
    bytes: [u8; FRAME_BYTES_MAX],
    len: usize,
}

impl Writer {
    fn push(&mut self, text: &[u8]) -> fmt::Result {
        let room = &mut self.bytes[self.len..FRAME_BYTES_MAX - 1];
        room.get_mut(..text.len()).ok_or(fmt::Error)?.copy_from_slice(text);
        self.len += text.len();
        Ok(())
    }
}

impl Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let plain = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if self.len + text.len() < FRAME_BYTES_MAX && plain(text) {
            return self.push(text.as_bytes());
        }
        text.chars().try_for_each(|c| {
            let c = if c.is_control() { ' ' } else { c };
            self.push(c.encode_utf8(&mut [0; 4]).as_bytes())
        })
    }
}

impl Deref for FrameText {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl AsRef<[u8]> for FrameText {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for FrameText {
    fn eq(&self, other: &FrameText) -> bool {
        **self == **other
    }
}

impl Eq for FrameText {}

impl fmt::Debug for FrameText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameText({})", Quoted(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error_of(line: &[u8]) -> FrameError {
        Frame::parse(line).unwrap_err()
    }

    #[test]
    fn a_frame_is_a_stream_and_a_message() {
        for (line, stream, message) in [
            (&b"1 bye"[..], 1, &b"bye"[..]),
            (b"0 error: a b", 0, b"error: a b"),
            (b"18446744073709551615 ", u64::MAX, b""),
            (b"007  x", 7, b" x"),
        ] {
            assert_eq!(Frame::parse(line), Ok(Frame { stream, message }));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_in_the_words_of_wcfs() {
        for (line, shown) in [
            (&b"zzz hello"[..], r#"invalid frame: "zzz hello\n" (invalid stream)"#),
            (b"hello", r#"invalid frame: "hello\n""#),
            (b"", r#"invalid frame: "\n""#),
            (b" x", r#"invalid frame: " x\n" (invalid stream)"#),
            (b"+1 x", r#"invalid frame: "+1 x\n" (invalid stream)"#),
            (b"-1 x", r#"invalid frame: "-1 x\n" (invalid stream)"#),
            (b"1_0 x", r#"invalid frame: "1_0 x\n" (invalid stream)"#),
            (b"18446744073709551616 x", r#"invalid frame: "18446744073709551616 x\n" (invalid stream)"#),
            (b"\xff \"", r#"invalid frame: "\xff \"\n" (invalid stream)"#),
        ] {
            assert_eq!(error_of(line).to_string(), shown);
            assert_eq!(&*error_of(line).to_frame(), format!("0 error: {shown}\n").as_bytes());
        }
    }

    #[test]
    fn a_long_line_is_quoted_in_part_and_keeps_what_is_wrong_with_it() {
        let frame = error_of(&[&[b'x'; 200][..], b" y"].concat()).to_frame();
        let text = str::from_utf8(&frame).unwrap();
        assert_eq!(text.len(), FRAME_BYTES_MAX);
        assert!(text.starts_with("0 error: invalid frame: \"xxx"), "{text}");
        assert!(text.ends_with("xxx\"... (invalid stream)\n"), "{text}");
        let frame = error_of(&[0; 200]).to_frame();
        let text = str::from_utf8(&frame).unwrap();
        assert!(text.ends_with("\\x00\"...\n"), "an escape is not cut: {text}");
    }

    #[test]
    fn streams_are_odd_for_clients_and_even_for_servers() {
        let kinds = [0, 1, 2, 3, u64::MAX - 1, u64::MAX].map(StreamKind::of);
        use StreamKind::{Client, Control, Server};
        assert_eq!(kinds, [Control, Client, Server, Client, Server, Client]);
        assert_eq!(StreamKind::of(CONTROL_STREAM), Control);
        assert_eq!(StreamKind::of(FIRST_CLIENT_STREAM), Client);
        assert_eq!(StreamKind::of(FIRST_SERVER_STREAM), Server);
    }

    #[test]
    fn ids_are_sixteen_digits_of_either_case() {
        assert_eq!(parse_hex(b"0123456789abcdef"), Some(0x0123_4567_89ab_cdef));
        assert_eq!(parse_hex(b"0123456789ABCDEF"), Some(0x0123_4567_89ab_cdef));
        for digits in [&b""[..], b"0", b"0123456789abcde", b"0123456789abcdef0", b"+123456789abcdef"] {
            assert_eq!(parse_hex(digits), None);
        }
    }

    #[test]
    fn a_text_is_cut_between_characters_and_stays_one_line() {
        for (text, expected) in [
            ("a\nb\tc\x1b\u{85}d".to_owned(), "a b c  d\n".to_owned()),
            ("x".repeat(143), "x".repeat(143) + "\n"),
            ("x".repeat(144), "x".repeat(143) + "\n"),
            ("x".repeat(142) + "\u{e9}z", "x".repeat(142) + "\n"),
            ("x".repeat(141) + "\u{e9}z", "x".repeat(141) + "\u{e9}\n"),
            (String::new(), "\n".to_owned()),
        ] {
            let frame = FrameText::print(format_args!("{text}"));
            assert_eq!(str::from_utf8(&frame).unwrap(), expected);
            assert_eq!(frame.line(), &expected.as_bytes()[..expected.len() - 1]);
            assert_eq!(frame, FrameText::print(format_args!("{}", expected.trim_end())));
        }
        let parts = FrameText::print(format_args!("{}{}", "x".repeat(142) + "\u{e9}", "after"));
        assert_eq!(&*parts, ("x".repeat(142) + "\n").as_bytes(), "nothing follows what was cut");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(line: Vec<u8>, near in "[0-9]{0,21} ?[a-z]{0,9}") {
            for line in [&line[..], near.as_bytes()] {
                match Frame::parse(line) {
                    Ok(frame) => {
                        let stream = frame.stream.to_string();
                        let digits = &line[..line.len() - frame.message.len() - 1];
                        prop_assert!(str::from_utf8(digits).unwrap().trim_start_matches('0') == stream.trim_start_matches('0'));
                    }
                    Err(error) => {
                        let frame = error.to_frame();
                        prop_assert!(frame.len() <= FRAME_BYTES_MAX);
                        prop_assert_eq!(frame.iter().filter(|byte| **byte == b'\n').count(), 1);
                        prop_assert!(Frame::parse(frame.line()).unwrap().message.starts_with(b"error: invalid frame: \""));
                    }
                }
            }
        }

        #[test]
        fn any_text_gives_one_line_that_fits(text in "\\PC{0,200}|.{0,200}") {
            let frame = FrameText::print(format_args!("{text}"));
            prop_assert!(frame.len() <= FRAME_BYTES_MAX && frame.ends_with(b"\n"));
            prop_assert!(str::from_utf8(frame.line()).unwrap().chars().all(|c| !c.is_control()));
        }
    }
}
