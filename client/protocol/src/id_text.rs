//! The one text form of 64-bit ids: exactly 16 lower-case hex digits.
//!
//! Invariant: an id has one text only, so that equal ids have equal names in the tree and in frames.
//! Upper-case digits, signs, `0x` and short forms are refused on purpose.

use std::fmt;
use thiserror::Error;

/// Length of the text of an id, in bytes.
pub(crate) const ID_TEXT_LEN: usize = 16;

/// How much of a refused text an error keeps, in characters: a peer chooses the text, we bound its cost.
const QUOTED_CHARS_MAX: usize = 64;

/// Which id was asked for; names it in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdKind {
    /// A [`Tid`](crate::Tid).
    Tid,
    /// A [`FileId`](crate::FileId).
    File,
}

impl fmt::Display for IdKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IdKind::Tid => "transaction id",
            IdKind::File => "file id",
        })
    }
}

/// A text that is not an id.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not a {kind}: give exactly 16 lower-case hex digits, as in 03caa84275fc1166")]
pub struct ParseIdError {
    /// What was asked for.
    pub kind: IdKind,
    /// The refused text, cut to its first 64 characters.
    pub text: String,
}

/// Reads 16 lower-case hex digits.
pub(crate) fn parse_id(kind: IdKind, text: &str) -> Result<u64, ParseIdError> {
    let refused = || ParseIdError { kind, text: quoted(text) };
    if text.len() != ID_TEXT_LEN {
        return Err(refused());
    }
    text.bytes().try_fold(0u64, |raw, byte| match byte {
        b'0'..=b'9' => Ok(raw << 4 | u64::from(byte - b'0')),
        b'a'..=b'f' => Ok(raw << 4 | u64::from(byte - b'a' + 10)),
        _ => Err(refused()),
    })
}

/// The beginning of a refused text, for an error that shows it.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_sixteen_lower_case_hex_digits_are_an_id() {
        assert_eq!(parse_id(IdKind::Tid, "0123456789abcdef"), Ok(0x0123_4567_89ab_cdef));
        assert_eq!(parse_id(IdKind::Tid, "ffffffffffffffff"), Ok(u64::MAX));
        for text in [
            "",
            "0",
            "0123456789ABCDEF",
            "+123456789abcdef",
            "0x23456789abcdef",
            "0123456789abcdeg",
            "00000000000000000",
        ] {
            assert_eq!(
                parse_id(IdKind::File, text),
                Err(ParseIdError { kind: IdKind::File, text: text.to_owned() })
            );
        }
    }

    #[test]
    fn an_error_names_the_kind_and_bounds_the_text() {
        let error = parse_id(IdKind::Tid, &"x".repeat(100_000)).unwrap_err();
        assert_eq!(error.text.len(), QUOTED_CHARS_MAX);
        assert!(error.to_string().contains("is not a transaction id"), "{error}");
        assert!(
            parse_id(IdKind::File, "\n").unwrap_err().to_string().starts_with("\"\\n\" is not a file id")
        );
    }

    proptest! {
        #[test]
        fn text_and_number_are_one_to_one(raw: u64) {
            prop_assert_eq!(parse_id(IdKind::Tid, &format!("{raw:016x}")), Ok(raw));
        }

        #[test]
        fn no_text_panics_and_an_accepted_one_is_canonical(text in "\\PC{0,20}") {
            if let Ok(raw) = parse_id(IdKind::Tid, &text) {
                prop_assert_eq!(format!("{raw:016x}"), text);
            }
        }
    }
}
