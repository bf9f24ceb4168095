//! Counters.
//!
//! Invariant: no lock. A counter is right by itself; two of them may be a moment apart.

use std::sync::atomic::{AtomicU64, Ordering};

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

impl Stats {
    /// Adds to a counter of this object.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}
