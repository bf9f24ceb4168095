//! What threads of the change index share without a lock: these types, and nothing else.
//!
//! In tests they are doubles, which let another thread come in between before each access; see `delta/turns`.

#[cfg(not(test))]
pub use std::sync::atomic::{AtomicU32, AtomicU64};

#[cfg(not(test))]
pub use arc_swap::ArcSwap;

#[cfg(test)]
pub use crate::delta::turns::{ArcSwap, AtomicU32, AtomicU64};
