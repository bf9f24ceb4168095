//! Files of a revfs mount, mapped into memory so that they stay at one revision while others commit.
//!
//! A [`Conn`] is a view of the mount at one revision; a [`FileHandle`] is a file in that view; a [`Mapping`] shows
//! a part of it. A mapping shows `head/`, whose pages all processes share; the blocks that changed since are
//! mapped from `@<rev>/` instead, when the server asks for it on the watch link: a thread of the `Conn` does that
//! while the thread that needs the bytes waits in its page fault. [`Conn::resync`] moves the view forward.
//!
//! ```no_run
//! # fn main() -> Result<(), revfs_client::ClientError> {
//! let conn = revfs_client::Conn::open("/mnt/data".as_ref(), None)?;
//! let file = conn.file(b"prices.bin")?;
//! let mapping = file.map(0, file.size_at())?;
//! let sum = mapping.with_bytes(|bytes| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>())?;
//! println!("{sum} at {}", conn.at());
//! # Ok(())
//! # }
//! ```
//!
//! # The rule of the pinner
//!
//! A thread that waits in a page fault of a mapping goes on only after a pinner thread has mapped a block and said
//! so. Hence a pinner thread **waits for nothing that such a thread may hold, and touches no mapping**:
//!
//! * No lock of this crate is held while mapped memory is touched. What [`Mapping::with_bytes`] holds is an entry
//!   in a gate, which only `resync` and `close` wait for, on the caller's thread.
//! * A pinner thread logs nothing while the link is up: a thread that prints mapped bytes may be in a page fault
//!   with standard error locked.
//! * What a pinner thread allocates, it allocates from the global allocator, which must not lie in a mapping.
//! * A signal handler must not touch a mapping: it might run on a pinner thread.
//!
//! # After fork
//!
//! The child has no mappings: touching one is a SIGSEGV, and all calls give [`ClientError::Forked`]. Nothing that
//! the child does or drops reaches the parent's link. Invariant: Linux only; `unsafe` stands in `region.rs` alone.

mod conn;
mod error;
mod file;
mod gate;
mod link;
mod mount_dir;
mod open_file;
mod pin_map;
mod pinner;
mod region;
mod shared;

pub use conn::Conn;
pub use error::{ClientError, DownCause};
pub use file::{FileHandle, Mapping};
pub use revfs_protocol::{BlockSize, FileId, Tid};
