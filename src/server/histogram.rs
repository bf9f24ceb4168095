//! How long things took, counted without a lock.
//!
//! Invariant: an observation is two additions. The sum and the counts may be a moment apart. Left out on purpose:
//! exact values; a bucket tells a time within a factor of two.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets with a bound: 1 us, 2 us, 4 us and so on to 2^25 us, which is longer than the default pin timeout.
pub const BOUNDED_BUCKETS: usize = 26;

/// Counts of times in buckets whose bounds are powers of two of a microsecond.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one has no bound.
    buckets: [AtomicU64; BOUNDED_BUCKETS + 1],
    sum_ns: AtomicU64,
}

/// A histogram as it was at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// Upper bound of each bucket, and how many times were at most that long. Times beyond the last bound are in `count` only.
    pub at_most: Vec<(Duration, u64)>,
    /// All of them.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
}

impl Histogram {
    /// Counts one time.
    pub fn observe(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // The first bound that is not smaller: whole microseconds, rounded up, and then the next power of two.
        let index = ns.div_ceil(1000).max(1).next_power_of_two().trailing_zeros() as usize;
        self.buckets[index.min(BOUNDED_BUCKETS)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What was counted until now.
    pub fn times(&self) -> Times {
        let mut count = 0;
        let mut at_most = Vec::with_capacity(BOUNDED_BUCKETS);
        for (power, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if power < BOUNDED_BUCKETS {
                at_most.push((Duration::from_micros(1 << power), count));
            }
        }
        Times { at_most, count, sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_from_the_first_bound_that_is_not_smaller() {
        let histogram = Histogram::default();
        let times = [0, 1, 1_000, 1_001, 2_000, 33_554_432_000, 33_554_432_001, u64::MAX >> 1];
        for (index, ns) in times.into_iter().enumerate() {
            let before = histogram.times();
            histogram.observe(Duration::from_nanos(ns));
            let after = histogram.times();
            assert_eq!(after.count, index as u64 + 1);
            for ((bound, then), (_, now)) in before.at_most.iter().zip(&after.at_most) {
                let within = u64::from(Duration::from_nanos(ns) <= *bound);
                assert_eq!(now - then, within, "{ns} ns, bound {bound:?}");
            }
        }
        assert_eq!(histogram.times().at_most.len(), BOUNDED_BUCKETS);
        let small = Histogram::default();
        [3, 5].iter().for_each(|ms| small.observe(Duration::from_millis(*ms)));
        assert_eq!(small.times().sum, Duration::from_millis(8));
    }
}
