//! What users of isolation meet, through a real mount, with real processes and mappings.
//!
//! Invariant: which frames come is worked out from a model of the history, and that no frame comes is shown by the
//! answer to a later request. Nothing here is a matter of time but the two tests that say so.
//!
//! Shown elsewhere: a page fault that is remapped while it waits, a cut that is pinned before sizes move, a set-up
//! that pins what was read (`isolation.rs`); bad frames, silence, floods, forks, a client that is killed in its own
//! page fault (`faulty.rs`); which pages of head a commit drops (`mounted.rs`); a client against a server that the
//! test plays (`client/tests`).

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "scenarios/cache.rs"]
mod cache;
#[path = "scenarios/child.rs"]
mod child;
#[path = "scenarios/client.rs"]
mod client;
#[path = "scenarios/history.rs"]
mod history;
#[path = "common/link.rs"]
mod link;
#[path = "common/live.rs"]
mod live;
#[path = "common/mapping.rs"]
mod mapping;
#[path = "scenarios/pins.rs"]
mod pins;
#[path = "common/puppet.rs"]
mod puppet;
#[path = "scenarios/requests.rs"]
mod requests;
#[path = "common/stage.rs"]
mod stage;
#[path = "scenarios/stuck.rs"]
mod stuck;
