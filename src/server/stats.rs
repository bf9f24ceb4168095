//! Counters of what was done, and gauges of what there is now.
//!
//! Invariant: a counter takes no lock, a gauge none that is held for more than a moment. Each is right by itself; two
//! of them may be a moment apart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Server;
use super::histogram::Histogram;
use super::links::LinkId;
use crate::watch::LinkView;

/// A number with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Lower-case letters and `_`.
    pub name: &'static str,
    /// What it counts, in a sentence.
    pub help: &'static str,
    /// The number.
    pub value: u64,
}

macro_rules! counters {
    ($($(#[doc = $help:literal])* $name:ident,)*) => {
        /// What a server has done since it started. Each counts up only.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[doc = $help])* pub $name: AtomicU64,)*
            /// Times, besides.
            pub times: Latencies,
        }

        impl Stats {
            /// All counters, in a fixed order.
            pub fn all(&self) -> Vec<Figure> {
                let figure = |name, help: &'static str, value: &AtomicU64| {
                    Figure { name, help: help.trim(), value: value.load(Ordering::Relaxed) }
                };
                vec![$(figure(stringify!($name), concat!($($help)*), &self.$name),)*]
            }
        }
    };
}

/// How long things took.
#[derive(Debug, Default)]
pub struct Latencies {
    /// From a READ of file data to its reply, what it waited for included.
    pub read: Histogram,
    /// From a pin to its ack.
    pub pin: Histogram,
    /// From the publication of a head to the moment at which `head/at` shows it.
    pub show: Histogram,
}

impl Latencies {
    /// All of them, with name and help.
    pub fn all(&self) -> [(&'static str, &'static str, &Histogram); 3] {
        [
            (
                "read_seconds",
                "From a READ of file data to its reply, what it waited for included.",
                &self.read,
            ),
            ("pin_seconds", "From a pin to its ack.", &self.pin),
            (
                "show_seconds",
                "From the publication of a head to the moment at which head/at shows it.",
                &self.show,
            ),
        ]
    }
}

/// Counts the time until it is dropped as that of a READ.
#[derive(Debug)]
pub(super) struct ReadTimer {
    server: Arc<Server>,
    since: Duration,
}

impl ReadTimer {
    pub(super) fn start(server: &Arc<Server>) -> ReadTimer {
        ReadTimer { server: Arc::clone(server), since: server.options.clock.monotonic() }
    }
}

impl Drop for ReadTimer {
    fn drop(&mut self) {
        let took = self.server.options.clock.monotonic().saturating_sub(self.since);
        self.server.stats.times.read.observe(took);
    }
}

/// A watch link, for who looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// Its number.
    pub id: LinkId,
    /// The process that opened it.
    pub pid: u32,
    /// Name of that process, on one line.
    pub process: String,
    /// What it has.
    pub view: LinkView,
}

counters! {
    /// Lookups of a name.
    lookups,
    /// Files opened.
    opens,
    /// READs of file data.
    reads,
    /// READs that waited for a slow storage.
    pending_reads,
    /// READs that waited for a client to map a block elsewhere.
    parked_reads,
    /// Watch links opened.
    links_opened,
    /// Pins sent to clients, those back to head included.
    pins,
    /// Clients killed for breaking the isolation protocol.
    kills,
    /// Milliseconds with open watch links that do not count for acks, as the server was too busy or did not run.
    behind_ms,
    /// Bytes that READs were answered with.
    read_bytes,
    /// READs that failed.
    read_errors,
    /// Requests, other than READs, that failed for damage or I/O.
    request_errors,
    /// Commits that were applied.
    commits,
    /// Times that a new head was published.
    heads,
    /// Times that the store could not be followed.
    follow_errors,
    /// Ranges of file data dropped from the kernel's cache.
    invalidated_ranges,
    /// Attributes dropped from the kernel's cache.
    invalidated_attributes,
    /// Names dropped from the kernel's cache.
    invalidated_entries,
    /// Notifications that the kernel refused.
    notify_errors,
}

/// What a server has now, besides what it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauges {
    /// Watch links that are open, or whose client is to die.
    pub links: usize,
    /// Watches that are set up.
    pub watches: usize,
    /// Set-ups that wait for `head/at`.
    pub setups_waiting: usize,
    /// Pins that are queued or sent and not acked.
    pub pins_owed: usize,
    /// Blocks that are pinned, or about to be.
    pub pinned_blocks: u64,
    /// READs that wait for acks.
    pub reads_waiting: usize,
    /// Blocks that were read, which a set-up may have to pin.
    pub tracked_blocks: u64,
}

impl Gauges {
    /// All of them, in a fixed order.
    pub fn all(&self) -> [Figure; 7] {
        let Gauges {
            links,
            watches,
            setups_waiting,
            pins_owed,
            pinned_blocks,
            reads_waiting,
            tracked_blocks,
        } = *self;
        let figure = |name, help, value| Figure { name, help, value };
        [
            figure("links", "Watch links that are open, or whose client is to die.", links as u64),
            figure("watches", "Watches that are set up.", watches as u64),
            figure("setups_waiting", "Set-ups that wait for head/at.", setups_waiting as u64),
            figure("pins_owed", "Pins that are queued or sent and not acked.", pins_owed as u64),
            figure("pinned_blocks", "Blocks that are pinned, or about to be.", pinned_blocks),
            figure("reads_waiting", "READs that wait for acks.", reads_waiting as u64),
            figure(
                "tracked_blocks",
                "Blocks that were read, which a set-up may have to pin.",
                tracked_blocks,
            ),
        ]
    }
}

impl Server {
    /// What it has now. Takes each lock for a moment, one after the other: two numbers may be a moment apart.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            links: self.links.count(),
            watches: self.links.watches(),
            setups_waiting: self.setups.count(),
            pins_owed: self.links.all().iter().map(|link| link.stats().owed).sum(),
            pinned_blocks: self
                .links
                .all()
                .iter()
                .map(|link| link.stats().pinned)
                .fold(0, u64::saturating_add),
            reads_waiting: self.parked.count(),
            tracked_blocks: self.tracking.blocks(),
        }
    }
}

impl Server {
    /// All watch links by number, as they are now.
    pub fn link_status(&self) -> Vec<LinkStatus> {
        let now = self.options.clock.monotonic();
        let mut links: Vec<LinkStatus> = self.links.all().iter().map(|link| link.status(now)).collect();
        links.sort_by_key(|link| link.id);
        links
    }
}

impl Stats {
    /// Adds to a counter of this object.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}
