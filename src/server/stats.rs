//! Counters of what was done, and gauges of what there is now.
//!
//! Invariant: a counter takes no lock, a gauge none that is held for more than a moment. Each is right by itself; two
//! of them may be a moment apart.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Server;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a server has done since it started. Each counts up only.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Stats {
            /// All counters by name, in a fixed order.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
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
    /// Clients killed for breaking the isolation protocol.
    kills,
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
    /// READs that wait for acks.
    pub reads_waiting: usize,
    /// Blocks that were read, which a set-up may have to pin.
    pub tracked_blocks: u64,
}

impl Gauges {
    /// All of them by name, in a fixed order.
    pub fn all(&self) -> [(&'static str, u64); 6] {
        let Gauges { links, watches, setups_waiting, pins_owed, reads_waiting, tracked_blocks } = *self;
        [
            ("links", links as u64),
            ("watches", watches as u64),
            ("setups_waiting", setups_waiting as u64),
            ("pins_owed", pins_owed as u64),
            ("reads_waiting", reads_waiting as u64),
            ("tracked_blocks", tracked_blocks),
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
            reads_waiting: self.parked.count(),
            tracked_blocks: self.tracking.blocks(),
        }
    }
}

impl Stats {
    /// Adds to a counter of this object.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}
