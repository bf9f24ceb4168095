//! Time, randomness and threads: the only module that asks the operating system for them.
//!
//! Invariant: everything above takes time from a [`Clock`] that it was given, so that a test can stop it or
//! turn it back. `clippy.toml` bans the direct calls elsewhere. Left out on purpose: a global clock.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where time comes from.
pub trait Clock: Send + Sync + Debug {
    /// Wall-clock time in nanoseconds since 1970-01-01T00:00:00 UTC. It may jump, back too.
    fn now_unix_ns(&self) -> u64;
    /// Time since some fixed moment of this process; never goes back.
    fn monotonic(&self) -> Duration;
}

/// Processors that this process may use, at least 1.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The clock of the machine.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that reads the machine's time.
    pub fn shared() -> Arc<dyn Clock> {
        #[allow(clippy::disallowed_methods)] // the one place
        Arc::new(SystemClock { start: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn now_unix_ns(&self) -> u64 {
        #[allow(clippy::disallowed_methods)] // the one place
        let now = SystemTime::now();
        now.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that stands still until it is told to move; for tests.
#[derive(Debug)]
pub struct ManualClock {
    unix_ns: AtomicU64,
    mono_ns: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `unix_ns` (nanoseconds since 1970, UTC).
    pub fn at(unix_ns: u64) -> Arc<ManualClock> {
        Arc::new(ManualClock { unix_ns: AtomicU64::new(unix_ns), mono_ns: AtomicU64::new(0) })
    }

    /// Sets the wall clock, in either direction. Monotonic time does not move.
    pub fn set_unix_ns(&self, unix_ns: u64) {
        self.unix_ns.store(unix_ns, Ordering::SeqCst);
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.unix_ns.fetch_add(ns, Ordering::SeqCst);
        self.mono_ns.fetch_add(ns, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_unix_ns(&self) -> u64 {
        self.unix_ns.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.mono_ns.load(Ordering::SeqCst))
    }
}

/// 64 random bits from the operating system's generator.
pub fn random_u64() -> u64 {
    // A version 4 UUID has six fixed bits; hashing it spreads the 122 random ones.
    let hash = blake3::hash(uuid::Uuid::new_v4().as_bytes());
    hash.as_bytes().first_chunk::<8>().map_or(0, |low| u64::from_le_bytes(*low))
}

/// A fresh random UUID.
pub fn random_uuid() -> uuid::Uuid {
    uuid::Uuid::new_v4()
}

/// Starts a named thread. Names of over 15 bytes are cut by the kernel.
///
/// # Errors
/// What `pthread_create` reports, usually that the limit of processes is reached.
pub fn spawn<F: FnOnce() + Send + 'static>(
    name: &str,
    body: F,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    #[allow(clippy::disallowed_methods)] // the one place
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

/// Lets this thread sleep.
pub fn sleep(duration: Duration) {
    #[allow(clippy::disallowed_methods)] // the one place
    std::thread::sleep(duration);
}

/// Passes some microseconds. Others that wait for the processor get it; a sleep would end some tens of microseconds late, on a
/// processor that has to be woken.
pub fn linger(duration: Duration) {
    let clock = SystemClock::shared();
    let end = clock.monotonic() + duration;
    while clock.monotonic() < end {
        std::thread::yield_now();
    }
}

/// From now on waits of this thread end when they should, not up to 50 us later, as the kernel has it otherwise.
pub fn wake_precisely() {
    // Later is as right.
    let _late = rustix::thread::set_current_timer_slack(Some(std::num::NonZeroU64::MIN));
}
