//! Sizes in bytes as people write and read them.
//!
//! Invariant: units are binary (K = 1024); a text that does not fit 64 bits is an error, never a wrapped number.
//! `KB` is refused on purpose, because half of its readers mean 1000.

use crate::id_text::quoted;
use thiserror::Error;

/// A text that is not a size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// No digits, or a unit that is not known.
    #[error("{text:?} is not a size: give digits and a binary unit, as in 4096, 64K, 2M, 1GiB")]
    Malformed {
        /// The refused text, cut to its first 64 characters.
        text: String,
    },
    /// More bytes than 64 bits can count.
    #[error("size {text:?} is 16 EiB or more: give a smaller one")]
    TooLarge {
        /// The refused text, cut to its first 64 characters.
        text: String,
    },
}

const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];

/// Reads a size in bytes: digits, then nothing, `B`, or one of K M G T P E, which `iB` may follow.
///
/// Units may be in lower case; there is no sign, fraction or space. Errors: [`SizeError`].
///
/// ```
/// assert_eq!(revfs_protocol::parse_size("64K"), Ok(65536));
/// assert_eq!(revfs_protocol::parse_size("1GiB"), Ok(1 << 30));
/// ```
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed { text: quoted(text) };
    let too_large = || SizeError::TooLarge { text: quoted(text) };
    let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits_len);
    if digits.is_empty() {
        return Err(malformed());
    }
    let scale = unit_scale(unit).ok_or_else(malformed)?;
    let count: u64 = digits.parse().map_err(|_| too_large())?;
    count.checked_mul(scale).ok_or_else(too_large)
}

/// Bytes in one unit; none if there is no such unit.
fn unit_scale(unit: &str) -> Option<u64> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("B") {
        return Some(1);
    }
    let upper = unit.to_ascii_uppercase();
    let letter = upper.strip_suffix("IB").unwrap_or(&upper);
    let power = (1..).zip(UNITS).find(|(_, name)| *name == letter)?.0;
    Some(1 << (10 * power))
}

/// Shows a size in bytes for people: `812 B`, `2 MiB`, `1.5 GiB`; at most one decimal, rounded to nearest.
pub fn format_size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let tenths_of = |power: u32| (u128::from(bytes) * 10 + (1 << (10 * power)) / 2) >> (10 * power);
    let mut power = 1;
    let mut tenths = tenths_of(power);
    // What rounds up to 1024 of a unit is one of the next.
    for next in 2..=UNITS.len() as u32 {
        if tenths < 10 * 1024 {
            break;
        }
        (power, tenths) = (next, tenths_of(next));
    }
    let unit = UNITS[power as usize - 1];
    match tenths % 10 {
        0 => format!("{} {unit}iB", tenths / 10),
        tenth => format!("{}.{tenth} {unit}iB", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_with_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("2M", 2 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1T", 1 << 40),
            ("3P", 3 << 50),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_malformed() {
        for text in ["", "K", "-1", "+1", " 1", "1 K", "1.5G", "1KB", "1iB", "1KK", "1Ki", "0x10", "1\u{e9}"]
        {
            assert_eq!(parse_size(text), Err(SizeError::Malformed { text: text.to_owned() }));
        }
    }

    #[test]
    fn what_overflows_is_too_large() {
        for text in ["16E", "18446744073709551616", "16777216T", "99999999999999999999999K"] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge { text: text.to_owned() }));
        }
    }

    #[test]
    fn sizes_are_shown_with_one_decimal_at_most() {
        for (bytes, text) in [
            (0, "0 B"),
            (812, "812 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536 << 20, "1.5 GiB"),
            (2 << 20, "2 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            ((1 << 20) - 52, "1023.9 KiB"),
            (10_737_418_240, "10 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*", digits in "[0-9]{0,25}[A-Za-z]{0,4}") {
            let _ = parse_size(&text);
            let _ = parse_size(&digits);
        }

        #[test]
        fn plain_digits_are_bytes(bytes: u64) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        }

        #[test]
        fn a_shown_size_is_within_half_a_tenth(bytes: u64) {
            let text = format_size(bytes);
            let (number, unit) = text.split_once(' ').unwrap();
            let shown = number.parse::<f64>().unwrap() * unit_scale(unit).unwrap() as f64;
            prop_assert!((shown - bytes as f64).abs() <= unit_scale(unit).unwrap() as f64 * 0.0501);
        }
    }
}
