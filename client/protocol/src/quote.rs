//! Text of a peer in quotes, as Go's `%q` shows it: tests of existing clients compare it.
//!
//! Invariant: what is shown has no control character, whatever the bytes are, and is valid UTF-8.

use std::fmt::{self, Write};
use std::str;

/// Bytes that show in quotes.
pub(crate) struct Quoted<'a>(pub(crate) &'a [u8]);

/// The beginning of some bytes, in quotes, followed by `...` if there is more.
pub(crate) struct QuotedPart<'a> {
    part: &'a [u8],
    cut: bool,
}

const DOTS: &str = "...";
const QUOTES_BYTES: usize = 2;

impl<'a> QuotedPart<'a> {
    /// As much of `bytes` as shows in `room` bytes, quotes and dots included.
    pub(crate) fn of(bytes: &'a [u8], room: usize) -> QuotedPart<'a> {
        let room = room.saturating_sub(QUOTES_BYTES);
        let [mut shown, mut taken, mut taken_with_dots] = [0; 3];
        for unit in units(bytes) {
            shown += unit.shown_len();
            if shown > room {
                return QuotedPart { part: &bytes[..taken_with_dots], cut: true };
            }
            taken += unit.source_len();
            if shown + DOTS.len() <= room {
                taken_with_dots = taken;
            }
        }
        QuotedPart { part: bytes, cut: false }
    }
}

impl fmt::Display for QuotedPart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Quoted(self.part).fmt(f)?;
        f.write_str(if self.cut { DOTS } else { "" })
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        units(self.0).try_for_each(|unit| unit.show(f))?;
        f.write_char('"')
    }
}

/// What is quoted as one: a character, or a byte that belongs to none.
#[derive(Clone, Copy)]
enum Unit {
    Char(char),
    Byte(u8),
}

fn units(bytes: &[u8]) -> impl Iterator<Item = Unit> + '_ {
    bytes.utf8_chunks().flat_map(|chunk| {
        let bytes = chunk.invalid().iter().copied();
        chunk.valid().chars().map(Unit::Char).chain(bytes.map(Unit::Byte))
    })
}

impl Unit {
    fn source_len(self) -> usize {
        match self {
            Unit::Char(c) => c.len_utf8(),
            Unit::Byte(_) => 1,
        }
    }

    fn shown_len(self) -> usize {
        let mut count = Count(0);
        // Counting cannot fail.
        let _ = self.show(&mut count);
        count.0
    }

    fn show(self, f: &mut impl Write) -> fmt::Result {
        let c = match self {
            Unit::Char(c) => c,
            Unit::Byte(byte) => return write!(f, "\\x{byte:02x}"),
        };
        match c {
            '"' => f.write_str("\\\""),
            '\\' => f.write_str("\\\\"),
            '\x07' => f.write_str("\\a"),
            '\x08' => f.write_str("\\b"),
            '\x0c' => f.write_str("\\f"),
            '\n' => f.write_str("\\n"),
            '\r' => f.write_str("\\r"),
            '\t' => f.write_str("\\t"),
            '\x0b' => f.write_str("\\v"),
            ' '..='~' => f.write_char(c),
            '\0'..='\x7f' => write!(f, "\\x{:02x}", u32::from(c)),
            _ if is_printable(c) => f.write_char(c),
            '\u{80}'..='\u{ffff}' => write!(f, "\\u{:04x}", u32::from(c)),
            _ => write!(f, "\\U{:08x}", u32::from(c)),
        }
    }
}

/// Whether a character beyond ASCII is one that is seen: no control, format, space or unassigned one.
fn is_printable(c: char) -> bool {
    // `str::escape_debug` knows; it escapes a combining mark only where there is nothing to combine with.
    let mut text = [b'a'; 5];
    let end = 1 + c.encode_utf8(&mut text[1..]).len();
    str::from_utf8(&text[..end]).is_ok_and(|text| text.escape_debug().count() == 2)
}

/// Counts bytes.
struct Count(usize);

impl Write for Count {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_are_those_of_go() {
        for (bytes, expected) in [
            (&b""[..], r#""""#),
            (b"zzz hello\n", r#""zzz hello\n""#),
            (b"a\"b\\c", r#""a\"b\\c""#),
            (b"\x07\x08\x0c\n\r\t\x0b", r#""\a\b\f\n\r\t\v""#),
            (b"\0\x1b\x7f", r#""\x00\x1b\x7f""#),
            (b"\xff\xc3(", r#""\xff\xc3(""#),
            (b"\xe2\x82", r#""\xe2\x82""#),
            ("\u{e9}\u{20ac}\u{1f600}".as_bytes(), "\"\u{e9}\u{20ac}\u{1f600}\""),
            ("\u{a0}\u{2028}\u{feff}\u{85}".as_bytes(), r#""\u00a0\u2028\ufeff\u0085""#),
            ("a\u{301}\u{e000}\u{10ffff}".as_bytes(), "\"a\u{301}\\ue000\\U0010ffff\""),
        ] {
            assert_eq!(Quoted(bytes).to_string(), expected);
        }
    }

    #[test]
    fn a_part_says_that_it_is_one() {
        for (room, expected) in
            [(9, r#""abcd\ne""#), (8, r#""abc"..."#), (7, r#""ab"..."#), (6, r#""a"..."#), (5, r#"""..."#)]
        {
            assert_eq!(QuotedPart::of(b"abcd\ne", room).to_string(), expected, "{room}");
        }
    }

    proptest! {
        #[test]
        fn a_part_fits_its_room(bytes: Vec<u8>, room in 5usize..60) {
            let shown = QuotedPart::of(&bytes, room).to_string();
            prop_assert!(shown.len() <= room, "{shown}");
            prop_assert!(shown.chars().all(|c| !c.is_control()));
            let whole = Quoted(&bytes).to_string();
            prop_assert_eq!(shown == whole, whole.len() <= room);
        }
    }
}
