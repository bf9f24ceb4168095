//! revfs: every committed revision of big files as a filesystem.
//!
//! The library behind the command `revfs`. Modules stand here from the ground floor up: each may import only
//! modules above it in this list (`tests/tidy.rs` reads the sources and fails on an import that climbs).

// The store double of tests/common is compiled into unit tests too, and names this crate from outside.
#[cfg(test)]
extern crate self as revfs;

pub use revfs_protocol as protocol;

pub mod env;
pub mod store;
pub mod delta;
pub mod view;
pub mod ops;
pub mod watch;
pub mod server;
pub mod host;
pub mod fs;
pub mod cli;
