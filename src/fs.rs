//! The tree in the kernel: inodes, names, attributes and requests of one mount.
//!
//! Invariant: only this module names fuser's types, and within it only the glue does: [`tree`] and [`inodes`] say
//! what a name, an attribute or a directory is and could be served by something else. No request waits for a
//! commit, a notifier or another request. Left out on purpose: writing; every request for it is answered EROFS.

pub mod face;
mod glue;
mod handles;
pub mod inodes;
mod kernel;
mod links;
mod mount;
pub mod peer;
mod report;
mod requests;
pub mod tree;

pub use mount::{DiskSpace, MountError, MountOptions, Mounted, mount, threads_default};
