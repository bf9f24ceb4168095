//! Byte ranges as `--range` takes them: `A..B`, B excluded.
//!
//! Invariant: `start <= end` in each [`ByteRange`] that [`parse_range`] returns.

use crate::id_text::quoted;
use crate::size::{SizeError, parse_size};
use thiserror::Error;

/// Bytes from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// First byte that is not in the range; none means up to the end of the file.
    pub end: Option<u64>,
}

/// A text that is not a byte range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RangeError {
    /// There is no `..`.
    #[error("{text:?} is not a range of bytes: give A..B, A.. or ..B, as in 4K..1M (B is excluded)")]
    Malformed {
        /// The refused text, cut to its first 64 characters.
        text: String,
    },
    /// One side is not a size.
    #[error("range {text:?}: {cause}")]
    Side {
        /// The refused text, cut to its first 64 characters.
        text: String,
        /// What is wrong with the side.
        #[source]
        cause: SizeError,
    },
    /// The end is before the start.
    #[error("range {start}..{end} ends before it starts: give the smaller offset first")]
    Reversed {
        /// Start that was asked for, in bytes.
        start: u64,
        /// End that was asked for, in bytes.
        end: u64,
    },
}

/// Reads `A..B`, `A..`, `..B` or `..`, where A and B are sizes in the form of [`parse_size`].
///
/// B is excluded and may equal A (no bytes). Errors: [`RangeError`].
///
/// ```
/// let range = revfs_protocol::parse_range("4K..1M").unwrap();
/// assert_eq!((range.start, range.end), (4096, Some(1 << 20)));
/// ```
pub fn parse_range(text: &str) -> Result<ByteRange, RangeError> {
    let Some((left, right)) = text.split_once("..") else {
        return Err(RangeError::Malformed { text: quoted(text) });
    };
    let side = |part: &str| match part {
        "" => Ok(None),
        _ => parse_size(part).map(Some).map_err(|cause| RangeError::Side { text: quoted(text), cause }),
    };
    let (start, end) = (side(left)?.unwrap_or(0), side(right)?);
    match end {
        Some(end) if end < start => Err(RangeError::Reversed { start, end }),
        _ => Ok(ByteRange { start, end }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn either_side_may_be_left_out() {
        for (text, start, end) in [
            ("0..10", 0, Some(10)),
            ("4K..1M", 4096, Some(1 << 20)),
            ("5..", 5, None),
            ("..5", 0, Some(5)),
            ("..", 0, None),
            ("7..7", 7, Some(7)),
        ] {
            assert_eq!(parse_range(text), Ok(ByteRange { start, end }), "{text}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "5", "1-2", "."] {
            assert_eq!(parse_range(text), Err(RangeError::Malformed { text: text.to_owned() }));
        }
        for text in ["a..b", "1..2..3", "1...2", "1.. 2", "-1..2", "1..16E", "0..=5"] {
            assert!(matches!(parse_range(text), Err(RangeError::Side { .. })), "{text}");
        }
        assert_eq!(parse_range("2K..1K"), Err(RangeError::Reversed { start: 2048, end: 1024 }));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_ranges_are_ordered(text in "\\PC*", near in "[0-9]{0,3}K?\\.{1,3}[0-9]{0,3}") {
            for text in [text, near] {
                if let Ok(ByteRange { start, end }) = parse_range(&text) {
                    prop_assert!(end.is_none_or(|end| start <= end));
                }
            }
        }
    }
}
