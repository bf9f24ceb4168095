//! Durations as people write and read them: `3s`, `500ms`, `1h30m`.
//!
//! Invariant: each number has a unit, so nobody guesses; the sum fits 64 bits of nanoseconds (584 years) or is
//! an error. What [`format_duration`] writes, [`parse_duration`] reads back exactly.

use crate::id_text::quoted;
use std::time::Duration;
use thiserror::Error;

/// A text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DurationError {
    /// No digits, no unit, or a unit that is not known.
    #[error(
        "{text:?} is not a duration: give numbers with units (ns us ms s m h d w), as in 3s, 500ms, 1h30m"
    )]
    Malformed {
        /// The refused text, cut to its first 64 characters.
        text: String,
    },
    /// More nanoseconds than 64 bits can count.
    #[error("duration {text:?} is over 584 years: give a shorter one")]
    TooLong {
        /// The refused text, cut to its first 64 characters.
        text: String,
    },
}

/// A name of a unit and its length in nanoseconds.
pub(crate) type Unit = (&'static str, u64);

const NS_PER_SECOND: u64 = 1_000_000_000;
const DAY_S: u64 = 24 * 60 * 60;

/// Units of a span of history: nothing below a second is useful there.
pub(crate) const SPAN_UNITS: &[Unit] = &[
    ("s", NS_PER_SECOND),
    ("sec", NS_PER_SECOND),
    ("m", 60 * NS_PER_SECOND),
    ("min", 60 * NS_PER_SECOND),
    ("h", 3600 * NS_PER_SECOND),
    ("d", DAY_S * NS_PER_SECOND),
    ("w", 7 * DAY_S * NS_PER_SECOND),
];

const SUBSECOND_UNITS: &[Unit] = &[("ns", 1), ("us", 1_000), ("ms", 1_000_000)];

/// Why a sum of parts could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartsProblem {
    Malformed,
    TooLong,
}

/// Sums one or more parts of digits and unit, in any order, in nanoseconds.
pub(crate) fn sum_parts(text: &str, units: &[&[Unit]]) -> Result<u64, PartsProblem> {
    let mut rest = text;
    let mut sum_ns: u64 = 0;
    if rest.is_empty() {
        return Err(PartsProblem::Malformed);
    }
    while !rest.is_empty() {
        let digits = split_while(&mut rest, |byte| byte.is_ascii_digit());
        let unit = split_while(&mut rest, |byte| byte.is_ascii_alphabetic());
        if digits.is_empty() {
            return Err(PartsProblem::Malformed);
        }
        let known = units.iter().copied().flatten().find(|(name, _)| *name == unit);
        let (_, unit_ns) = known.ok_or(PartsProblem::Malformed)?;
        let count: u64 = digits.parse().map_err(|_| PartsProblem::TooLong)?;
        let part_ns = count.checked_mul(*unit_ns).ok_or(PartsProblem::TooLong)?;
        sum_ns = sum_ns.checked_add(part_ns).ok_or(PartsProblem::TooLong)?;
    }
    Ok(sum_ns)
}

/// Cuts the longest run of matching ASCII bytes off the front of `rest`.
fn split_while<'a>(rest: &mut &'a str, matches: impl Fn(&u8) -> bool) -> &'a str {
    let len = rest.bytes().take_while(|byte| byte.is_ascii() && matches(byte)).count();
    let (run, after) = rest.split_at(len);
    *rest = after;
    run
}

/// Reads a duration: parts of digits and unit, added up. Units: ns us ms s sec m min h d w.
///
/// There is no sign, fraction, space or bare number. Errors: [`DurationError`].
///
/// ```
/// use std::time::Duration;
/// assert_eq!(revfs_protocol::parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    match sum_parts(text, &[SPAN_UNITS, SUBSECOND_UNITS]) {
        Ok(ns) => Ok(Duration::from_nanos(ns)),
        Err(PartsProblem::Malformed) => Err(DurationError::Malformed { text: quoted(text) }),
        Err(PartsProblem::TooLong) => Err(DurationError::TooLong { text: quoted(text) }),
    }
}

/// Shows a duration exactly, in the form that [`parse_duration`] reads: `0s`, `500ms`, `1h30m`, `2d`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let ns = duration.subsec_nanos();
    let parts = [
        (seconds / DAY_S, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(ns / 1_000_000), "ms"),
        (u64::from(ns / 1_000 % 1_000), "us"),
        (u64::from(ns % 1_000), "ns"),
    ];
    let text: String =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_with_units() {
        for (text, ns) in [
            ("3s", 3_000_000_000),
            ("3sec", 3_000_000_000),
            ("10m", 600_000_000_000),
            ("10min", 600_000_000_000),
            ("500ms", 500_000_000),
            ("7us", 7_000),
            ("9ns", 9),
            ("1h30m", 5_400_000_000_000),
            ("2d", 172_800_000_000_000),
            ("1w", 604_800_000_000_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_malformed() {
        for text in ["", "3", "s", "-3s", "3 s", "3s ", "1.5s", "3S", "3y", "1h30", "h1", "3\u{3bc}s"] {
            assert_eq!(parse_duration(text), Err(DurationError::Malformed { text: text.to_owned() }));
        }
    }

    #[test]
    fn what_overflows_is_too_long() {
        for text in ["99999999999999999999s", "30501w", "18446744073709551615ns1ns"] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong { text: text.to_owned() }));
        }
        assert_eq!(parse_duration("18446744073709551615ns"), Ok(Duration::from_nanos(u64::MAX)));
    }

    #[test]
    fn durations_are_shown_in_parts() {
        assert_eq!(format_duration(Duration::ZERO), "0s");
        assert_eq!(format_duration(Duration::from_millis(500)), "500ms");
        assert_eq!(format_duration(Duration::from_secs(5400)), "1h30m");
        assert_eq!(format_duration(Duration::from_secs(2 * DAY_S)), "2d");
        assert_eq!(format_duration(Duration::from_micros(1_000_001)), "1s1us");
        assert!(format_duration(Duration::MAX).ends_with("999ns"));
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(ns: u64) {
            let duration = Duration::from_nanos(ns);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "\\PC*", near in "([0-9]{0,21}[a-z]{0,3}){0,4}") {
            let _ = parse_duration(&text);
            let _ = parse_duration(&near);
        }
    }
}
