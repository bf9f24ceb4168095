//! Time: the one place that asks for it.

use std::time::{Duration, Instant};

/// This moment.
pub fn now() -> Instant {
    #[allow(clippy::disallowed_methods)]
    // a tool that measures wants the machine's time, and nothing turns it
    Instant::now()
}

/// How long `work` took, and its result.
pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = now();
    let result = work();
    (start.elapsed(), result)
}
