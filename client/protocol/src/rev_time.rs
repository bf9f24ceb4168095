//! Times in the text of a revision: a prefix of `YYYY-MM-DDThh:mm:ss.fffffffff`, in UTC.
//!
//! Invariant: a time is an interval, the whole unit that its last part names, and it is never empty.
//! Years are 1970 to 2553, so that each end fits 64 bits of nanoseconds. No zones but `Z`, on purpose.

use crate::tid::unix_ns_of_date;

const NS_PER_SECOND: u64 = 1_000_000_000;
const YEARS: std::ops::RangeInclusive<u64> = 1970..=2553;
const FRACTION_DIGITS_MAX: usize = 9;

/// The unit that a time names, in nanoseconds since 1970: from `start_unix_ns` to before `end_unix_ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeUnit {
    pub(crate) start_unix_ns: u64,
    pub(crate) end_unix_ns: u64,
}

/// Whether a text is meant as a time: 4 digits, then nothing or `-`.
pub(crate) fn looks_like_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 4 && bytes[..4].iter().all(u8::is_ascii_digit) && matches!(bytes.get(4), None | Some(b'-'))
}

/// Reads a time; the error says which part is wrong.
pub(crate) fn parse_time(text: &str) -> Result<TimeUnit, &'static str> {
    let Some((date, clock)) = text.split_once('T') else {
        return Ok(parse_date(text)?.0);
    };
    let (day, names_day) = parse_date(date)?;
    if !names_day {
        return Err("a time of day needs a full date");
    }
    parse_clock(day.start_unix_ns, clock.strip_suffix('Z').unwrap_or(clock))
}

/// Reads `YYYY`, `YYYY-MM` or `YYYY-MM-DD`; also whether it names a day.
fn parse_date(text: &str) -> Result<(TimeUnit, bool), &'static str> {
    const NO_DATE: &str = "there is no such date";
    let mut parts = text.split('-');
    let year = number(parts.next(), 4)?.ok_or("a year has 4 digits")?;
    let month = number(parts.next(), 2)?;
    let day = number(parts.next(), 2)?;
    if parts.next().is_some() {
        return Err("a date has at most a year, a month and a day");
    }
    if !YEARS.contains(&year) {
        return Err("the year is not from 1970 to 2553");
    }
    let start = unix_ns_of_date(year, month.unwrap_or(1), day.unwrap_or(1)).ok_or(NO_DATE)?;
    let end = match (month, day) {
        (None, _) | (Some(12), None) => unix_ns_of_date(year + 1, 1, 1),
        (Some(month), None) => unix_ns_of_date(year, month + 1, 1),
        (Some(_), Some(_)) => start.checked_add(24 * 3600 * NS_PER_SECOND),
    };
    Ok((TimeUnit { start_unix_ns: start, end_unix_ns: end.ok_or(NO_DATE)? }, day.is_some()))
}

/// Reads `hh`, `hh:mm`, `hh:mm:ss` or `hh:mm:ss.f` within the day that starts at `day_ns`.
fn parse_clock(day_ns: u64, text: &str) -> Result<TimeUnit, &'static str> {
    let mut parts = text.split(':');
    let hour = number(parts.next(), 2)?.ok_or("an hour has 2 digits")?;
    let minute = number(parts.next(), 2)?;
    let (second, fraction) = match parts.next().map(|part| part.split_once('.').ok_or(part)) {
        None => (None, None),
        Some(Err(whole)) => (number(Some(whole), 2)?, None),
        Some(Ok((whole, fraction))) => (number(Some(whole), 2)?, Some(fraction)),
    };
    if parts.next().is_some() {
        return Err("a time of day has at most hours, minutes and seconds");
    }
    if hour > 23 || minute.is_some_and(|minute| minute > 59) || second.is_some_and(|second| second > 59) {
        return Err("there is no such time of day");
    }
    let (fraction_ns, fraction_unit_ns) = fraction.map_or(Ok((0, NS_PER_SECOND)), parse_fraction)?;
    let unit_ns = match (minute, second) {
        (None, _) => 3600 * NS_PER_SECOND,
        (Some(_), None) => 60 * NS_PER_SECOND,
        (Some(_), Some(_)) => fraction_unit_ns,
    };
    let seconds = hour * 3600 + minute.unwrap_or(0) * 60 + second.unwrap_or(0);
    // Years end in 2553, half a year before 64 bits do.
    let start_unix_ns = day_ns + seconds * NS_PER_SECOND + fraction_ns;
    Ok(TimeUnit { start_unix_ns, end_unix_ns: start_unix_ns + unit_ns })
}

/// Reads the digits after the point of a second: their nanoseconds, and those of the last digit's unit.
fn parse_fraction(digits: &str) -> Result<(u64, u64), &'static str> {
    if digits.len() > FRACTION_DIGITS_MAX {
        return Err("a fraction of a second has 1 to 9 digits");
    }
    let count = number(Some(digits), digits.len())?.ok_or("a fraction of a second has 1 to 9 digits")?;
    let unit_ns = (digits.len()..FRACTION_DIGITS_MAX).fold(1, |unit, _| unit * 10);
    Ok((count * unit_ns, unit_ns))
}

/// Reads a part of exactly `len` digits (1 to 9); none if the part is not there.
fn number(part: Option<&str>, len: usize) -> Result<Option<u64>, &'static str> {
    const NOT_DIGITS: &str = "a part of it does not have its 2 (year: 4) digits";
    let Some(part) = part else {
        return Ok(None);
    };
    if part.len() != len || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NOT_DIGITS);
    }
    part.parse().map(Some).map_err(|_| NOT_DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn ns(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_nanosecond()).unwrap()
    }

    #[test]
    fn a_time_is_the_unit_that_it_names() {
        for (text, start, end) in [
            ("2026", "2026-01-01T00:00Z", "2027-01-01T00:00Z"),
            ("2026-11", "2026-11-01T00:00Z", "2026-12-01T00:00Z"),
            ("2026-12", "2026-12-01T00:00Z", "2027-01-01T00:00Z"),
            ("2026-11-21", "2026-11-21T00:00Z", "2026-11-22T00:00Z"),
            ("2024-02-29", "2024-02-29T00:00Z", "2024-03-01T00:00Z"),
            ("2026-11-21T10", "2026-11-21T10:00Z", "2026-11-21T11:00Z"),
            ("2026-11-21T23", "2026-11-21T23:00Z", "2026-11-22T00:00Z"),
            ("2026-11-21T10:15", "2026-11-21T10:15Z", "2026-11-21T10:16Z"),
            ("2026-11-21T10:15:30", "2026-11-21T10:15:30Z", "2026-11-21T10:15:31Z"),
            ("2026-11-21T10:15:30.5", "2026-11-21T10:15:30.5Z", "2026-11-21T10:15:30.6Z"),
            (
                "2026-11-21T10:15:30.123456789",
                "2026-11-21T10:15:30.123456789Z",
                "2026-11-21T10:15:30.12345679Z",
            ),
            ("1970", "1970-01-01T00:00Z", "1971-01-01T00:00Z"),
            ("2553-12-31T23:59:59", "2553-12-31T23:59:59Z", "2554-01-01T00:00Z"),
        ] {
            let unit = TimeUnit { start_unix_ns: ns(start), end_unix_ns: ns(end) };
            assert_eq!(parse_time(text), Ok(unit), "{text}");
            if text.contains('T') {
                assert_eq!(parse_time(&format!("{text}Z")), Ok(unit), "{text}Z");
            }
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "26",
            "1969",
            "2554",
            "9999-01-01",
            "2026-",
            "2026-1",
            "2026-13",
            "2026-00",
            "2026-02-29",
            "2026-11-31",
            "2026-11-21-1",
            "2026-11-21Z",
            "2026T10",
            "2026-11T10",
            "2026-11-21T",
            "2026-11-21TZ",
            "2026-11-21T24",
            "2026-11-21T10:",
            "2026-11-21T10:60",
            "2026-11-21T10:15:60",
            "2026-11-21T10.5",
            "2026-11-21T10:15.5",
            "2026-11-21T10:15:30.",
            "2026-11-21T10:15:30.1234567890",
            "2026-11-21T10:15:30.5ZZ",
            "2026-11-21T10:15:30+01",
            "2026-11-21t10",
            "2026-11-21 10",
            "2026-+1-21",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_unit_is_empty(
            text in "\\PC*",
            near in "(19|20|25)[0-9]{2}(-[0-9]{2}){0,3}(T[0-9]{2}(:[0-9]{2}){0,3})?(\\.[0-9]{0,10})?Z?",
        ) {
            for text in [text, near] {
                if let Ok(unit) = parse_time(&text) {
                    prop_assert!(unit.start_unix_ns < unit.end_unix_ns);
                    prop_assert!(looks_like_time(&text));
                }
            }
        }
    }
}
