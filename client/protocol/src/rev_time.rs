//! Times in the text of a revision: a prefix of `YYYY-MM-DDThh:mm:ss.fffffffff`, in UTC.
//!
//! Invariant: a time is an interval, the whole unit that its last part names. Each day of the years 1 to 9999 is one;
//! its ends are clamped to 64 bits of nanoseconds since 1970 (to the year 2554), so a unit within them is not empty,
//! one before them ends at 0, and one after them begins at the greatest number. No zones but `Z`, on purpose.

use jiff::civil::Date;

const NS_PER_SECOND: i128 = 1_000_000_000;
const NS_PER_DAY: i128 = 24 * 3600 * NS_PER_SECOND;
const FRACTION_DIGITS_MAX: usize = 9;

/// The unit that a time names, in nanoseconds since 1970: from `start_unix_ns` to before `end_unix_ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeUnit {
    pub(crate) start_unix_ns: u64,
    pub(crate) end_unix_ns: u64,
}

/// The same before it is clamped.
#[derive(Clone, Copy)]
struct Unit {
    start_ns: i128,
    end_ns: i128,
}

impl Unit {
    fn clamped(self) -> TimeUnit {
        // What is left is in range, or above it.
        let clamp = |ns: i128| u64::try_from(ns.max(0)).unwrap_or(u64::MAX);
        TimeUnit { start_unix_ns: clamp(self.start_ns), end_unix_ns: clamp(self.end_ns) }
    }
}

/// Whether a text is meant as a time: 4 digits, then nothing or `-`.
pub(crate) fn looks_like_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 4 && bytes[..4].iter().all(u8::is_ascii_digit) && matches!(bytes.get(4), None | Some(b'-'))
}

/// Reads a time; the error says which part is wrong.
pub(crate) fn parse_time(text: &str) -> Result<TimeUnit, &'static str> {
    let Some((date, clock)) = text.split_once('T') else {
        return Ok(parse_date(text)?.0.clamped());
    };
    let (day, names_day) = parse_date(date)?;
    if !names_day {
        return Err("a time of day needs a full date");
    }
    Ok(parse_clock(day.start_ns, clock.strip_suffix('Z').unwrap_or(clock))?.clamped())
}

/// Reads `YYYY`, `YYYY-MM` or `YYYY-MM-DD`; also whether it names a day.
fn parse_date(text: &str) -> Result<(Unit, bool), &'static str> {
    const NO_DATE: &str = "there is no such date";
    let mut parts = text.split('-');
    let year = number(parts.next(), 4)?.ok_or("a year has 4 digits")?;
    let month = number(parts.next(), 2)?;
    let day = number(parts.next(), 2)?;
    if parts.next().is_some() {
        return Err("a date has at most a year, a month and a day");
    }
    if year == 0 {
        return Err("the year is not from 0001 to 9999");
    }
    let date = |month: i128, day: i128| {
        let [month, day] = [month, day].map(i8::try_from);
        let year = i16::try_from(year).map_err(|_| NO_DATE)?;
        Date::new(year, month.map_err(|_| NO_DATE)?, day.map_err(|_| NO_DATE)?).map_err(|_| NO_DATE)
    };
    let first = date(month.unwrap_or(1), day.unwrap_or(1))?;
    let last = match (month, day) {
        (None, _) => first.last_of_year(),
        (Some(_), None) => first.last_of_month(),
        (Some(_), Some(_)) => first,
    };
    Ok((Unit { start_ns: ns_of(first), end_ns: ns_of(last) + NS_PER_DAY }, day.is_some()))
}

/// When a day begins, in nanoseconds since 1970.
fn ns_of(day: Date) -> i128 {
    day.duration_since(Date::constant(1970, 1, 1)).as_nanos()
}

/// Reads `hh`, `hh:mm`, `hh:mm:ss` or `hh:mm:ss.f` within the day that starts at `day_ns`.
fn parse_clock(day_ns: i128, text: &str) -> Result<Unit, &'static str> {
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
    let start_ns = day_ns + seconds * NS_PER_SECOND + fraction_ns;
    Ok(Unit { start_ns, end_ns: start_ns + unit_ns })
}

/// Reads the digits after the point of a second: their nanoseconds, and those of the last digit's unit.
fn parse_fraction(digits: &str) -> Result<(i128, i128), &'static str> {
    if digits.len() > FRACTION_DIGITS_MAX {
        return Err("a fraction of a second has 1 to 9 digits");
    }
    let count = number(Some(digits), digits.len())?.ok_or("a fraction of a second has 1 to 9 digits")?;
    let unit_ns = (digits.len()..FRACTION_DIGITS_MAX).fold(1, |unit, _| unit * 10);
    Ok((count * unit_ns, unit_ns))
}

/// Reads a part of exactly `len` digits (1 to 9); none if the part is not there.
fn number(part: Option<&str>, len: usize) -> Result<Option<i128>, &'static str> {
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
            ("2554-07-20", "2554-07-20T00:00Z", "2554-07-21T00:00Z"),
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
            "0000",
            "0000-01-01",
            "9999-02-29",
            "9999-12-31T24",
            "1900-02-29",
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

    #[test]
    fn each_year_of_the_calendar_is_a_time() {
        let unit = |text: String| parse_time(&text).unwrap_or_else(|reason| panic!("{text}: {reason}"));
        let mut before = unit("0001".to_owned());
        assert_eq!(before, TimeUnit { start_unix_ns: 0, end_unix_ns: 0 });
        for year in 2..=9999 {
            let whole = unit(format!("{year:04}"));
            assert_eq!(whole.start_unix_ns, before.end_unix_ns, "{year}");
            let (first, last) =
                (unit(format!("{year:04}-01-01T00")), unit(format!("{year:04}-12-31T23:59:59.9")));
            assert_eq!(
                (first.start_unix_ns, last.end_unix_ns),
                (whole.start_unix_ns, whole.end_unix_ns),
                "{year}"
            );
            assert_eq!(whole.end_unix_ns == 0, year < 1970, "{year}");
            assert_eq!(whole.start_unix_ns == u64::MAX, year > 2554, "{year}");
            before = whole;
        }
    }

    #[test]
    fn the_ends_of_64_bits_cut_a_unit() {
        for (text, start, end) in [
            ("1969-12-31T23:59:59.999999999", 0, 0),
            ("1970-01-01T00:00:00.000000000", 0, 1),
            ("2554", ns("2554-01-01T00:00Z"), u64::MAX),
            ("2554-07-21T23:34:33", 18_446_744_073_000_000_000, u64::MAX),
            ("2554-07-21T23:34:34", u64::MAX, u64::MAX),
            ("9999-12-31T23:59:59.999999999", u64::MAX, u64::MAX),
        ] {
            assert_eq!(parse_time(text), Ok(TimeUnit { start_unix_ns: start, end_unix_ns: end }), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_unit_within_64_bits_is_empty(
            text in "\\PC*",
            near in "(00|19|20|25|99)[0-9]{2}(-[0-9]{2}){0,3}(T[0-9]{2}(:[0-9]{2}){0,3})?(\\.[0-9]{0,10})?Z?",
        ) {
            for text in [text, near] {
                if let Ok(unit) = parse_time(&text) {
                    let outside = unit.end_unix_ns == 0 || unit.start_unix_ns == u64::MAX;
                    prop_assert!(unit.start_unix_ns < unit.end_unix_ns || outside);
                    prop_assert!(looks_like_time(&text));
                }
            }
        }
    }
}
