//! The ways in which isolation here is better than in its ancestor WCFS, one test for each, named after its number.
//!
//! | row | what a test here shows |
//! |---|---|
//! | 1 | a READ that waits and a commit of its block do not wait for each other |
//! | 2 | lookups wait for nobody, and the server never uses its own mount |
//! | 3 | a pin of a watch that was dropped is owed by nobody, whatever is answered |
//! | 4 | a set-up that fails leaves what was before |
//! | 5 | a client is a process, and not the thread that opened the link |
//! | 6 | a block that becomes a hole has changed |
//! | 7 | reads behind the end of `head/at`, the empty state and nonsense hurt nobody |
//! | 8 | the size is that of the revision, also when the file shrinks |
//! | 9 | an end of one file is told to who watches it, and to nobody else |
//! | 10 | a READ that is given up fails no other |
//! | 11 | revisions that were looked at hold no descriptor (when they are freed is not shown: the kernel decides) |
//! | 12 | an idle watch needs no history in memory |
//! | 13 | history reaches back to before the server's start |
//! | 14 | one server a mount point, any number a store |
//! | 15 | a store that is lost for a while is served on |
//! | 16 | a READ is answered with its range |
//! | 17 | nothing of a changed block is read or kept for nobody |
//! | 18 | pins of neighbours come in one frame, for who can |
//! | 19 | a stop leaves no mount, and tells the clients |
//! | 20 | statistics are there while everything waits |
//!
//! Of 9, handles of a file that was removed go on being read, as those of a local one do, where the design has ESTALE. Of
//! 15, reads wait for no storage that is away: a store is a directory, and one that is away may be so for ever. Of 12,
//! the bound of what was read is in `server/tracking`; of 20, histograms are in `isolation.rs`.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/datafs.rs"]
mod datafs;
#[path = "common/link.rs"]
mod link;
#[path = "common/live.rs"]
mod live;
#[path = "common/mapping.rs"]
mod mapping;
#[path = "common/puppet.rs"]
mod puppet;
#[path = "rows/server.rs"]
mod server;
#[path = "common/stage.rs"]
mod stage;
#[path = "rows/watches.rs"]
mod watches;
