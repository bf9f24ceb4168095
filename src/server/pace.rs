//! Whether this server keeps up: only then who owes it an ack has the time for which it is late.
//!
//! Invariant: a client needs answers to map a block: of OPEN, of reads and writes of its link. While they do not come
//! because this server finds no processor, or has more requests than it can answer, the time for acks goes slower, and
//! while it does not run at all, that time stands still. It never stands still for who runs: a client that never answers
//! is killed however busy the server is.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Server, Stats};

/// What is left of time while the server is behind: a part in so many.
const BEHIND_PART: u32 = 4;
/// A thread of a server that keeps up waits for a processor at most one part in so many of the time,
const WAIT_PART: u32 = 2;
/// and requests wait to be taken at most at one look in so many.
const CROWDED_PART: u32 = 2;

/// So much time at least is judged at once: who waits for a processor is told of as it gets one.
const WINDOW: Duration = Duration::from_millis(250);

/// What was seen since some look of the watchdog.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When that was, or when there was somebody to look after again; `None`: there is nobody.
    since: Option<Duration>,
    /// How long each thread of the server had waited for a processor then, ns; not later than then.
    waits: BTreeMap<u32, u64>,
    looks: u32,
    /// Looks at which requests waited to be taken.
    crowded: u32,
}

impl Pace {
    /// There is nobody to look after.
    pub(super) fn rest(&mut self) {
        self.since = None;
    }

    /// There is somebody, since then; what is known from before goes on.
    pub(super) fn begin(&mut self, since: Duration) {
        if self.since.is_none() {
            (self.since, self.looks, self.crowded) = (Some(since), 0, 0);
        }
    }

    /// How much time up to this look does not count for acks, besides what was said before.
    pub(super) fn lost(&mut self, server: &Server, now: Duration) -> Duration {
        let Some(since) = self.since else {
            *self = Pace::begun(server, now);
            return Duration::ZERO;
        };
        self.looks += 1;
        self.crowded += u32::from(server.kernel_cache().is_some_and(|kernel| kernel.has_requests()));
        let passed = now.saturating_sub(since);
        if passed < WINDOW {
            return Duration::ZERO;
        }
        let before = std::mem::replace(self, Pace::begun(server, now));
        // Who was not there had not waited; the time since it came is less.
        let waited =
            |(thread, now): (&u32, &u64)| now.saturating_sub(before.waits.get(thread).copied().unwrap_or(0));
        let waited = Duration::from_nanos(self.waits.iter().map(waited).max().unwrap_or(0));
        let behind = waited > passed / WAIT_PART || before.crowded > before.looks / CROWDED_PART;
        let ran = passed.min(server.options.look_gap_max);
        let lost = passed - if behind { ran / BEHIND_PART } else { ran };
        Stats::add(&server.stats.behind_ms, u64::try_from(lost.as_millis()).unwrap_or(u64::MAX));
        lost
    }

    fn begun(server: &Server, now: Duration) -> Pace {
        let waits = server.processes().map(|processes| processes.own_waits()).unwrap_or_default();
        Pace { since: Some(now), waits, looks: 0, crowded: 0 }
    }
}
