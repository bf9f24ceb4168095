//! Writes ZODB databases for tests and measurements: a FileStorage as ZODB 5 and later write it, with the objects that
//! wendelin.core keeps in it.
//!
//! [`Writer`] appends transactions to a file, [`records`] has the data of objects, and [`big`] makes large databases
//! quickly. Invariant: what is written here is what ZODB itself would read back; a test of revfs has it read by the real one.
//! Left out on purpose: reading, packing, and locks. It is for files of one's own.

pub mod big;
mod pickle;
pub mod records;
mod writer;

pub use writer::{Write, Writer};
