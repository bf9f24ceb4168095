//! The isolation protocol as a state machine: frames, acks and time in, actions out.
//!
//! One [`Link`] is one open of `head/watch`. Whoever holds it in a mutex calls it with what happened, lets the mutex
//! go, and then does what the [`Action`]s say. Rule numbers in comments are those of "The head without a
//! stop-the-world lock" in ARCHITECTURE.md.
//!
//! Invariant: frames leave in the order in which the state changed (rule 5), a block has at most one pin on its way
//! and one newest target behind it (rule 7), and pin ids are never used again (rule 13). Left out on purpose: I/O,
//! a clock, and the question which blocks changed; all of these come as arguments.

mod link;
mod outbox;
mod pins;
mod read;
mod setup;

pub use link::{Link, LinkOptions, UNKNOWN_FILE};
pub use read::{Moved, ReadNeed};
pub use setup::{MovedFrom, SetupRequest, SetupStart};

use std::time::Duration;

use revfs_protocol::{FileId, Tid};

/// A READ that waits for acks; the number is the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaitId(pub u64);

/// A registration of a watch; unique within its link. Each set-up has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(pub u64);

/// What is to be done after the link's mutex is let go, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// There is something to read, or nothing will come any more.
    Readable,
    /// Begin this set-up, once `head/at` is there.
    Setup(SetupRequest),
    /// This set-up is not wanted any more.
    GiveUp(SetupRequest),
    /// The client stops watching a file that it does not watch: answer [`Link::unwatch_asked`].
    Unwatch {
        /// The file.
        file: FileId,
        /// The request's number, for the reply.
        stream: u64,
    },
    /// One of the acks that this READ waits for is there.
    Release(WaitId),
    /// The watch under this registration is gone.
    Unregister {
        /// Its file.
        file: FileId,
        /// Its registration.
        serial: Serial,
    },
    /// A pin was acked after this long.
    Acked(Duration),
    /// The client broke the protocol on a pin that it owes: see that it dies, then call [`Link::dead`].
    Kill(Fault),
}

/// How a client broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For the log and the client.
    pub cause: String,
    /// It may just be ending by itself: give it this long before the first signal.
    pub grace: Duration,
}

/// What was done to one watch, for who counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Watches that are set up.
    pub watches: usize,
    /// The oldest state that is watched.
    pub oldest_at: Option<Tid>,
    /// Blocks that the client maps, or is told to map, at a revision.
    pub pinned: u64,
    /// Pins that are sent or queued and not acked.
    pub owed: usize,
    /// Pins queued since the link was opened, unpins included.
    pub pins: u64,
}

/// A link as it is at a moment, for who looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkView {
    /// Its watches, by file.
    pub watches: Vec<WatchView>,
    /// Pins that are sent or queued and not acked.
    pub owed: usize,
    /// How long the oldest of these is owed.
    pub owed_for: Option<Duration>,
    /// The longest that an ack took so far.
    pub slowest: Duration,
    /// Pins queued since the link was opened, unpins included.
    pub pins: u64,
    /// Its client broke the protocol and is to die.
    pub faulted: bool,
}

/// A watch as it is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchView {
    /// Its file.
    pub file: FileId,
    /// The state that it works at; `None`: its first set-up waits or runs.
    pub at: Option<Tid>,
    /// Blocks that the client maps, or is told to map, at a revision.
    pub pinned: u64,
}

#[cfg(test)]
mod tests;
