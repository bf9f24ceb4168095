//! Bytes, attributes and revisions as a reader sees them: what a file is as of a [`ReadTxn`].
//!
//! Invariant: each answer is a function of the read transaction and the arguments; nothing here remembers
//! anything, locks or waits. Left out on purpose: a block cache, which is the store's, below [`Store::read`].
//!
//! [`ReadTxn`]: crate::store::ReadTxn
//! [`Store::read`]: crate::store::Store::read

pub mod attributes;
pub mod holes;
pub mod read;
pub mod resolve;

pub use attributes::FileAttributes;
pub use holes::{Seek, seek};
pub use read::{plan, read, read_range};
pub use resolve::{ResolveError, resolve, resolve_within};
