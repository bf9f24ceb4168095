//! Transaction ids: 64 bits that order all commits and carry the moment of each.
//!
//! The high 32 bits count minutes in a calendar whose months all have 31 days and that starts in 1900 (UTC);
//! the low 32 bits are the fraction of the minute. ZODB uses the same form.
//! Invariant: encoding and decoding are monotone and total. Order of ids is order of time, and any 64 bits
//! decode to a moment.

use crate::id_text::{IdKind, ParseIdError, parse_id};
use jiff::civil::Date;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};
use std::fmt;
use std::str::FromStr;

const NS_PER_SECOND: u64 = 1_000_000_000;
const NS_PER_MINUTE: u64 = 60 * NS_PER_SECOND;
const NS_PER_US: u64 = 1_000;
const US_PER_MINUTE: u64 = 60_000_000;
const YEAR_ZERO: u64 = 1900;
const YEAR_UNIX: u64 = 1970;

/// Transaction id, revision: a state of the database is all commits with a tid <= it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(u64);

impl Tid {
    /// The empty state, before any commit.
    pub const ZERO: Tid = Tid(0);
    /// The greatest id.
    pub const MAX: Tid = Tid(u64::MAX);

    /// The id with this number; each of 64 bits is valid.
    pub const fn from_raw(raw: u64) -> Tid {
        Tid(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether this is the empty state.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The id right after this one; none after [`Tid::MAX`].
    pub fn next(self) -> Option<Tid> {
        self.0.checked_add(1).map(Tid)
    }

    /// The stored form: 8 bytes, big-endian, so that byte order is id order.
    pub const fn to_be_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The inverse of [`Tid::to_be_bytes`].
    pub const fn from_be_bytes(bytes: [u8; 8]) -> Tid {
        Tid(u64::from_be_bytes(bytes))
    }

    /// The id of a moment, in nanoseconds since 1970-01-01 UTC, rounded down (one step is about 14 ns).
    ///
    /// Monotone. 64 bits of nanoseconds end in the year 2554 and 32 bits of minutes in 9917, so each moment
    /// has an id; a moment outside the calendar would give [`Tid::MAX`].
    pub fn from_unix_ns(unix_ns: u64) -> Tid {
        Tid::try_from_unix_ns(unix_ns).unwrap_or(Tid::MAX)
    }

    fn try_from_unix_ns(unix_ns: u64) -> Option<Tid> {
        let second = i64::try_from(unix_ns / NS_PER_SECOND).ok()?;
        let at = Offset::UTC.to_datetime(Timestamp::from_second(second).ok()?);
        let year = u64::try_from(at.year()).ok()?.checked_sub(YEAR_ZERO)?;
        let [month, day, hour, minute] =
            [at.month() - 1, at.day() - 1, at.hour(), at.minute()].map(|part| u64::from(part.unsigned_abs()));
        let minutes = (((year * 12 + month) * 31 + day) * 24 + hour) * 60 + minute;
        // Below 60e9 * 2^32, which needs 68 bits; the quotient is below 2^32.
        let fraction = (u128::from(unix_ns % NS_PER_MINUTE) << 32) / u128::from(NS_PER_MINUTE);
        let [high, low] = [u32::try_from(minutes).ok()?, u32::try_from(fraction).ok()?];
        Some(Tid(u64::from(high) << 32 | u64::from(low)))
    }

    /// The moment of this id, in nanoseconds since 1970-01-01 UTC, rounded to the nearest microsecond.
    ///
    /// Monotone and total: moments before 1970 give 0, those after 2554 give `u64::MAX`, and a day that its
    /// month does not have (30 February) gives the first moment of the next month.
    pub fn to_unix_ns(self) -> u64 {
        let minutes = self.0 >> 32;
        let year = minutes / (60 * 24 * 31 * 12) + YEAR_ZERO;
        if year < YEAR_UNIX {
            return 0;
        }
        let [month, day] = [minutes / (60 * 24 * 31) % 12 + 1, minutes / (60 * 24) % 31 + 1];
        let minute_ns = match unix_ns_of_date(year, month, day) {
            Some(day_ns) => day_ns.saturating_add(minutes % (60 * 24) * NS_PER_MINUTE),
            // December has 31 days, so `month + 1` is a month.
            None => return unix_ns_of_date(year, month + 1, 1).unwrap_or(u64::MAX),
        };
        // At most 2^32 * 6e7 + 2^31: below 2^58.
        let us = ((self.0 & 0xffff_ffff) * US_PER_MINUTE + (1 << 31)) >> 32;
        minute_ns.saturating_add(us * NS_PER_US)
    }

    /// The greatest id whose moment, as [`Tid::to_unix_ns`] decodes it, is not after `unix_ns`
    /// (nanoseconds since 1970-01-01 UTC).
    ///
    /// All ids that decode to the same microsecond are in or out together. To ask for all that is before an
    /// exclusive end, give `end - 1`.
    pub fn newest_at_unix_ns(unix_ns: u64) -> Tid {
        // Id 0 decodes to moment 0, so there is always one; decoding is monotone, so bisect on it.
        let [mut yes, mut no] = [0u128, 1u128 << 64];
        while no - yes > 1 {
            let middle = yes + (no - yes) / 2;
            match u64::try_from(middle).is_ok_and(|raw| Tid(raw).to_unix_ns() <= unix_ns) {
                true => yes = middle,
                false => no = middle,
            }
        }
        u64::try_from(yes).map_or(Tid::MAX, Tid)
    }
}

/// The first nanosecond of a day since 1970; none if there is no such day or it is out of 64 bits.
///
/// A day after 2554 saturates to `u64::MAX`: it exists, and is only too late to count.
fn unix_ns_of_date(year: u64, month: u64, day: u64) -> Option<u64> {
    let date =
        Date::new(i16::try_from(year).ok()?, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()?;
    let since: SignedDuration = date.duration_since(Date::constant(1970, 1, 1));
    Some(u64::try_from(since.as_secs()).ok()?.saturating_mul(NS_PER_SECOND))
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tid({self})")
    }
}

impl FromStr for Tid {
    type Err = ParseIdError;

    /// Reads exactly 16 lower-case hex digits; anything else is a [`ParseIdError`].
    fn from_str(text: &str) -> Result<Tid, ParseIdError> {
        parse_id(IdKind::Tid, text).map(Tid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw_of(year: u64, month: u64, day: u64, minute_of_day: u64, low: u64) -> u64 {
        ((((year - 1900) * 12 + month - 1) * 31 + day - 1) * 24 * 60 + minute_of_day) << 32 | low
    }

    fn shown(raw: u64) -> String {
        let ns = i128::from(Tid::from_raw(raw).to_unix_ns());
        format!("{:.6}", Timestamp::from_nanosecond(ns).unwrap())
    }

    #[test]
    fn ids_that_zodb_wrote_decode_to_their_moments() {
        assert_eq!(shown(0x0285_cbac_258b_f266), "1979-01-03T21:00:08.800000Z");
        assert_eq!(shown(0x0285_cbad_27ae_14e6), "1979-01-03T21:01:09.300001Z");
        assert_eq!(shown(0x0379_69f7_22a5_3488), "2008-10-24T05:11:08.120000Z");
        assert_eq!(shown(0x03b8_4285_d71c_57dd), "2016-07-01T09:41:50.416574Z");
        assert_eq!(shown(0x03ca_a842_75fc_1166), "2018-10-01T16:34:27.652650Z");
    }

    #[test]
    fn the_first_and_the_last_moment_have_ids() {
        assert_eq!(Tid::from_unix_ns(0).raw(), raw_of(1970, 1, 1, 0, 0));
        assert_eq!(Tid::from_unix_ns(NS_PER_MINUTE - 1).raw(), raw_of(1970, 1, 1, 0, 0xffff_ffff));
        assert_eq!(Tid::from_unix_ns(NS_PER_MINUTE).raw(), raw_of(1970, 1, 1, 1, 0));
        assert_eq!(Tid::from_unix_ns(u64::MAX).raw() >> 32, raw_of(2554, 7, 21, 23 * 60 + 34, 0) >> 32);
    }

    #[test]
    fn moments_outside_of_64_bits_are_clamped() {
        assert_eq!(Tid::ZERO.to_unix_ns(), 0);
        assert_eq!(Tid::from_raw(raw_of(1969, 12, 31, 1439, 0xffff_ffff)).to_unix_ns(), 0);
        assert_eq!(Tid::from_raw(raw_of(2555, 1, 1, 0, 0)).to_unix_ns(), u64::MAX);
        assert_eq!(Tid::from_raw(raw_of(2555, 2, 31, 0, 0)).to_unix_ns(), u64::MAX);
        assert_eq!(Tid::MAX.to_unix_ns(), u64::MAX);
    }

    #[test]
    fn a_day_that_a_month_lacks_is_the_start_of_the_next_month() {
        let march = Tid::from_raw(raw_of(2026, 3, 1, 0, 0)).to_unix_ns();
        for (day, minute, low) in [(29, 0, 0), (30, 77, 5), (31, 1439, 0xffff_ffff)] {
            assert_eq!(Tid::from_raw(raw_of(2026, 2, day, minute, low)).to_unix_ns(), march);
        }
        assert!(Tid::from_raw(raw_of(2026, 2, 28, 1439, 0xf000_0000)).to_unix_ns() < march);
        assert_eq!(shown(raw_of(2024, 2, 29, 0, 0)), "2024-02-29T00:00:00.000000Z");
        assert_eq!(shown(raw_of(2026, 4, 31, 7, 7)), "2026-05-01T00:00:00.000000Z");
    }

    #[test]
    fn newest_at_includes_all_ids_of_the_microsecond_and_none_after() {
        let us = 1_795_000_000_123_456_000;
        let newest = Tid::newest_at_unix_ns(us);
        assert!(newest > Tid::from_unix_ns(us) && newest > Tid::from_unix_ns(us + 450));
        assert_eq!(newest.to_unix_ns(), us);
        assert_eq!(newest.next().unwrap().to_unix_ns(), us + 1000);
        assert_eq!(Tid::newest_at_unix_ns(us + 999), newest);
        assert!(Tid::newest_at_unix_ns(us - 1) < Tid::from_unix_ns(us));
        assert_eq!(Tid::newest_at_unix_ns(u64::MAX), Tid::MAX);
        assert_eq!(Tid::newest_at_unix_ns(0).next().unwrap().to_unix_ns(), 1000);
    }

    #[test]
    fn text_order_and_next() {
        assert_eq!(Tid::ZERO.to_string(), "0000000000000000");
        assert_eq!(format!("{:?}", Tid::from_raw(255)), "Tid(00000000000000ff)");
        assert_eq!(Tid::ZERO.next(), Some(Tid::from_raw(1)));
        assert_eq!(Tid::MAX.next(), None);
        assert!(Tid::default().is_zero() && !Tid::MAX.is_zero());
    }

    proptest! {
        #[test]
        fn text_and_bytes_round_trip(raw: u64) {
            let tid = Tid::from_raw(raw);
            prop_assert_eq!(tid.to_string().parse(), Ok(tid));
            prop_assert_eq!(Tid::from_be_bytes(tid.to_be_bytes()), tid);
        }

        #[test]
        fn encoding_is_monotone(a: u64, step in prop_oneof![0..100u64, 0..NS_PER_MINUTE * 5, any::<u64>()]) {
            prop_assert!(Tid::from_unix_ns(a) <= Tid::from_unix_ns(a.saturating_add(step)));
        }

        #[test]
        fn decoding_is_monotone(
            a in prop_oneof![any::<u64>(), raw_of(1969, 1, 1, 0, 0)..raw_of(2556, 1, 1, 0, 0)], step in prop_oneof![0..100_000u64, 0..50_000u64 << 32, any::<u64>()]) {
            prop_assert!(Tid::from_raw(a).to_unix_ns() <= Tid::from_raw(a.saturating_add(step)).to_unix_ns());
        }

        // Ends of months, where days that do not exist are.
        #[test]
        fn decoding_is_monotone_at_the_end_of_a_month(
            year in 1965..2560u64, month in 1..=12u64, minute in 0..1440u64, low in 0..1u64 << 32,
        ) {
            let days = (26..=31).map(|day| Tid::from_raw(raw_of(year, month, day, minute, low)).to_unix_ns());
            prop_assert!(days.collect::<Vec<_>>().is_sorted());
        }

        #[test]
        fn a_moment_survives_within_a_microsecond(ns in 0..u64::MAX - NS_PER_SECOND) {
            prop_assert!(Tid::from_unix_ns(ns).to_unix_ns().abs_diff(ns) < NS_PER_US);
            let us = ns / NS_PER_US * NS_PER_US;
            prop_assert_eq!(Tid::from_unix_ns(us).to_unix_ns(), us);
        }

        #[test]
        fn newest_at_is_the_last_that_decodes_to_no_later(ns: u64) {
            let newest = Tid::newest_at_unix_ns(ns);
            prop_assert!(newest.to_unix_ns() <= ns);
            prop_assert!(newest.next().is_none_or(|after| after.to_unix_ns() > ns));
        }
    }
}
