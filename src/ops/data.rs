//! Values of the answers: names that need not be UTF-8, tids, moments, ranges.
//!
//! Invariant: what is shown of a name is printable and on one line; `name_hex` is there exactly if `name` is not
//! the name's own bytes.

use std::fmt::{Display, Write};

use jiff::Timestamp;
use revfs_protocol::Tid;
use serde::{Serialize, Serializer};

/// A name of a file. In JSON: `name`, and `name_hex` where it is not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Name {
    #[serde(skip)]
    bytes: Vec<u8>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
}

impl Name {
    /// The name with these bytes.
    pub fn new(bytes: &[u8]) -> Name {
        let name_hex = std::str::from_utf8(bytes).is_err().then(|| hex(bytes));
        Name { bytes: bytes.to_vec(), name: String::from_utf8_lossy(bytes).into_owned(), name_hex }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&shown(&self.bytes))
    }
}

/// A name as people see it: control characters and what is not UTF-8 are escaped as `\x0a`, `\` as `\\`.
pub fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                control if control.is_control() => {
                    control.to_string().bytes().for_each(|b| escape(&mut text, b))
                }
                plain => text.push(plain),
            }
        }
        chunk.invalid().iter().for_each(|byte| escape(&mut text, *byte));
    }
    text
}

fn escape(text: &mut String, byte: u8) {
    // Writing to a String does not fail.
    let _infallible = write!(text, "\\x{byte:02x}");
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String does not fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// Bytes from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

/// A moment as `2026-11-21T10:15:00.500000Z`.
pub fn time_text(unix_ns: u64) -> String {
    let moment = Timestamp::from_nanosecond(i128::from(unix_ns)).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{moment:.6}")
}

/// The moment of a tid; nothing for the empty state, which has none.
pub fn tid_time(tid: Tid) -> Option<String> {
    (!tid.is_zero()).then(|| time_text(tid.to_unix_ns()))
}

/// Serialises by the text form.
pub(crate) fn text<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

/// Serialises by the text form, or null.
pub(crate) fn text_or_null<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_hex_exactly_if_it_is_not_utf8() {
        let json = |bytes: &[u8]| serde_json::to_string(&Name::new(bytes)).unwrap();
        assert_eq!(json(b"a/b"), r#"{"name":"a/b"}"#);
        assert_eq!(json(b"a\xff"), "{\"name\":\"a\u{fffd}\",\"name_hex\":\"61ff\"}");
    }

    #[test]
    fn what_is_shown_of_a_name_is_one_printable_line() {
        assert_eq!(shown("na\u{ef}ve".as_bytes()), "na\u{ef}ve");
        assert_eq!(shown(b"a\nb\\\xff\x1b"), "a\\x0ab\\\\\\xff\\x1b");
        assert_eq!(shown("\u{85}".as_bytes()), "\\xc2\\x85");
    }

    #[test]
    fn times_are_utc_to_the_microsecond() {
        assert_eq!(time_text(1_500_000_000_123_456_789), "2017-07-14T02:40:00.123456Z");
        assert_eq!(tid_time(Tid::ZERO), None);
    }
}
