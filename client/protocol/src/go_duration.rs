//! Durations as Go programs read and print them: WCFS takes `-pintimeout 1m30.5s` and says how far back a state is.
//!
//! Invariant: what [`format_go_duration`] writes is what Go's `Duration.String` writes, and [`parse_go_duration`] reads it
//! back; parts below a nanosecond are cut off, negative ones refused. Written from the documentation of Go's package `time`.

use crate::id_text::quoted;
use std::time::Duration;
use thiserror::Error;

const SECOND_NS: u64 = 1_000_000_000;
/// Units that Go reads, and their lengths in nanoseconds. Micro comes in three spellings.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND_NS),
    ("m", 60 * SECOND_NS),
    ("h", 3600 * SECOND_NS),
];

/// A text that is no Go duration, or one below zero or over 584 years.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not a duration: give numbers with units (ns us ms s m h), as in 3.0s, 500ms, 1m30s")]
pub struct GoDurationError {
    /// The refused text, cut to its first 64 characters.
    pub text: String,
}

/// Reads a duration as Go's `time.ParseDuration` does: parts of a decimal number and a unit, or `0`.
///
/// # Errors
/// [`GoDurationError`].
pub fn parse_go_duration(text: &str) -> Result<Duration, GoDurationError> {
    let refused = || GoDurationError { text: quoted(text) };
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut sum_ns: u64 = 0;
    if rest.is_empty() {
        return Err(refused());
    }
    while !rest.is_empty() {
        let (part, behind) = take_part(rest).ok_or_else(refused)?;
        sum_ns = sum_ns.checked_add(part).ok_or_else(refused)?;
        rest = behind;
    }
    Ok(Duration::from_nanos(sum_ns))
}

/// The first part in nanoseconds, and what follows it.
fn take_part(text: &str) -> Option<(u64, &str)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at(digits(text));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(behind) => behind.split_at(digits(behind)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let unit_len = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_len);
    let (_, unit_ns) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    // Digit by digit: what is below a nanosecond is cut off.
    let (mut part, mut scale) = (0u64, unit_ns);
    for digit in fraction.bytes() {
        scale /= 10;
        part += u64::from(digit - b'0') * scale;
    }
    Some((whole.checked_mul(unit_ns)?.checked_add(part)?, rest))
}

/// Prints nanoseconds as Go's `Duration.String` does: `0s`, `1.5ms`, `3s`, `1h0m0.25s`.
pub fn format_go_duration(ns: u64) -> String {
    if ns < SECOND_NS {
        let (name, unit_ns) = match ns {
            0 => return "0s".to_owned(),
            1..1_000 => ("ns", 1),
            1_000..1_000_000 => ("\u{b5}s", 1_000),
            _ => ("ms", 1_000_000),
        };
        return format!("{}{name}", decimal(ns, unit_ns));
    }
    let (minutes, seconds_ns) = (ns / (60 * SECOND_NS), ns % (60 * SECOND_NS));
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let seconds = decimal(seconds_ns, SECOND_NS);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// A number of units with as many decimals as it takes.
fn decimal(ns: u64, unit_ns: u64) -> String {
    let width = unit_ns.ilog10() as usize;
    let text = format!("{}.{:0width$}", ns / unit_ns, ns % unit_ns);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_print_as_in_go() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (10_000_000_000, "10s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (3_600_000_000_000, "1h0m0s"),
            (480_000_000_001, "8m0.000000001s"),
        ];
        for (ns, text) in cases {
            assert_eq!(format_go_duration(ns), text);
            assert_eq!(parse_go_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_in_go() {
        let ms = Duration::from_millis;
        let read = [("3.0s", ms(3000)), ("+5s", ms(5000)), (".5s", ms(500)), ("1.s", ms(1000)), ("0", ms(0))];
        for (text, duration) in read {
            assert_eq!(parse_go_duration(text), Ok(duration), "{text}");
        }
        assert_eq!(parse_go_duration("1h15m30.918273645s"), Ok(Duration::new(4530, 918_273_645)));
        for text in ["", "3", "-3s", "s", ".s", "3 s", "1x", "+", "9999999999h", "1.2.3s", "\u{e9}"] {
            assert!(parse_go_duration(text).is_err(), "{text}");
        }
    }
}
