//! revfs: every committed revision of big files as a filesystem.
//!
//! The library behind the command `revfs`. Modules stand here from the ground floor up: each may import only
//! modules above it in this list (`tests/tidy.rs` reads the sources and fails on an import that climbs).

pub use revfs_protocol as protocol;

pub mod cli;
pub mod env;
pub mod ops;
pub mod store;
pub mod view;
