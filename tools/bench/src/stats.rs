//! What a row is, and what its pairs say.
//!
//! Invariant: a row is judged by the median over its pairs of one number a pair; never by the ratio of two
//! medians, which drift of the machine would move.

/// Unit of a row's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 10^9 bytes a second.
    GigabytesPerSecond,
    /// Commits or files a second.
    PerSecond,
    /// 10^6 lookups a second.
    MillionsPerSecond,
    /// 10^-6 s.
    Microseconds,
    /// 10^-3 s.
    Milliseconds,
    /// 2^20 bytes.
    Mebibytes,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// As shown.
    pub fn symbol(self) -> &'static str {
        match self {
            Unit::GigabytesPerSecond => "GB/s",
            Unit::PerSecond => "/s",
            Unit::MillionsPerSecond => "M/s",
            Unit::Microseconds => "us",
            Unit::Milliseconds => "ms",
            Unit::Mebibytes => "MiB",
            Unit::Bytes => "B",
        }
    }
}

/// What one pair says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Ours divided by the baseline.
    Ratio,
    /// Ours less the baseline.
    Difference,
    /// Ours; the baseline is only shown, if there is one.
    Ours,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The median is to be this or more.
    AtLeast(f64),
    /// The median is to be this or less.
    AtMost(f64),
    /// The median is to be less than this.
    Below(f64),
    /// Nothing: the row is for information.
    None,
}

impl Target {
    /// Whether a median meets it; `None` if there is nothing to meet.
    pub fn is_met(self, median: f64) -> Option<bool> {
        match self {
            Target::AtLeast(least) => Some(median >= least),
            Target::AtMost(most) => Some(median <= most),
            Target::Below(most) => Some(median < most),
            Target::None => None,
        }
    }
}

/// A row of the table, before it is measured.
#[derive(Clone, Copy, Debug)]
pub struct RowSpec {
    /// Its short name.
    pub key: &'static str,
    /// What is measured.
    pub what: &'static str,
    /// The baseline.
    pub against: &'static str,
    /// Unit of both.
    pub unit: Unit,
    /// What one pair says.
    pub compare: Compare,
    /// What is to be reached.
    pub target: Target,
}

/// Ours and the baseline, measured directly after each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Ours, in the row's unit.
    pub ours: f64,
    /// The baseline, in the row's unit.
    pub baseline: Option<f64>,
}

impl Pair {
    /// What this pair says.
    pub fn value(self, compare: Compare) -> f64 {
        let baseline = self.baseline.unwrap_or(f64::NAN);
        match compare {
            Compare::Ratio => self.ours / baseline,
            Compare::Difference => self.ours - baseline,
            Compare::Ours => self.ours,
        }
    }
}

/// Five numbers that describe many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Least.
    pub min: f64,
    /// A quarter is below.
    pub q1: f64,
    /// Half is below.
    pub median: f64,
    /// A quarter is above.
    pub q3: f64,
    /// Greatest.
    pub max: f64,
}

impl Summary {
    /// Of these numbers; `None` if there are none, or if one is not a number.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        if sorted.is_empty() || sorted.iter().any(|number| number.is_nan()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        // Between neighbours by how near the place is to each; what most tools call type 7.
        let at = |part: f64| {
            let place = part * (sorted.len() - 1) as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            sorted[low] + (sorted[high] - sorted[low]) * (place - place.floor())
        };
        Some(Summary { min: at(0.0), q1: at(0.25), median: at(0.5), q3: at(0.75), max: at(1.0) })
    }
}

/// Median of these numbers; 0 if there are none.
pub fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    Summary::of(numbers).map_or(0.0, |summary| summary.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_known_numbers() {
        let summary = Summary::of([9.0, 1.0, 5.0, 3.0, 7.0]).unwrap();
        assert_eq!(summary, Summary { min: 1.0, q1: 3.0, median: 5.0, q3: 7.0, max: 9.0 });
        assert_eq!(Summary::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Summary::of([1.0, 2.0]).unwrap().q1, 1.25);
        assert_eq!(Summary::of([4.0]).unwrap().q3, 4.0);
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([1.0, f64::NAN]), None);
    }

    #[test]
    fn pairs_are_compared_as_the_row_says() {
        let pair = Pair { ours: 6.0, baseline: Some(4.0) };
        assert_eq!(pair.value(Compare::Ratio), 1.5);
        assert_eq!(pair.value(Compare::Difference), 2.0);
        assert_eq!(pair.value(Compare::Ours), 6.0);
        assert!(Pair { ours: 6.0, baseline: None }.value(Compare::Ratio).is_nan());
    }

    #[test]
    fn a_target_is_met_at_its_very_value_unless_it_must_be_below() {
        assert_eq!(Target::AtLeast(0.9).is_met(0.9), Some(true));
        assert_eq!(Target::AtLeast(0.9).is_met(0.89), Some(false));
        assert_eq!(Target::AtMost(1.5).is_met(1.5), Some(true));
        assert_eq!(Target::Below(64.0).is_met(64.0), Some(false));
        assert_eq!(Target::None.is_met(1.0), None);
    }
}
