//! `head/watch` as the kernel sees it: each open is a stream of its own, which is read and written at once.
//!
//! Invariant: a read that finds nothing takes no thread; it is answered when the link has something, has ended, or a
//! signal waits for who reads.

use std::sync::Arc;

use fuser::{Errno, FopenFlags, ReplyData, ReplyWrite};

use super::face::FsError;
use crate::server::{LinkOver, LinkRead, Server, TidStream, WatchLink};

/// A stream: reads and writes of one descriptor do not wait for each other, and there is no position. Nor do writes of
/// different descriptors: all acks of all clients are writes to this one file, and each would else wait with the file locked
/// until its thread got a processor again; one whose bytes lie in a page that waits for a pin would lock out the ack of that.
pub(super) const OPEN_FLAGS: FopenFlags = FopenFlags::FOPEN_DIRECT_IO
    .union(FopenFlags::FOPEN_STREAM)
    .union(FopenFlags::FOPEN_NONSEEKABLE)
    .union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

/// Opens a link for the process of a thread.
pub(super) fn open(server: &Server, thread: u32) -> Result<Arc<WatchLink>, FsError> {
    server.open_link(thread).map_err(|why| {
        log::warn!("an open of head/watch is refused: {why}");
        FsError::ClientRefused
    })
}

fn answer_to(reply: ReplyData) -> impl FnOnce(LinkRead) + Send {
    |read: LinkRead| match read {
        LinkRead::Bytes(bytes) => reply.data(&bytes),
        LinkRead::Interrupted => reply.error(Errno::EINTR),
    }
}

/// Reads a link. `wait`: the descriptor is not in non-blocking mode.
pub(super) fn read(
    server: &Server,
    link: &Arc<WatchLink>,
    (thread, wait): (u32, bool),
    max: usize,
    reply: ReplyData,
) {
    if !wait && !link.is_readable() {
        return reply.error(Errno::EAGAIN);
    }
    server.read_link(link, thread, max, Box::new(answer_to(reply)));
}

/// Reads a stream of tids. `wait`: the descriptor is not in non-blocking mode.
pub(super) fn read_tids(
    server: &Server,
    stream: &Arc<TidStream>,
    (thread, wait): (u32, bool),
    max: usize,
    reply: ReplyData,
) {
    if !wait && !stream.is_readable() {
        return reply.error(Errno::EAGAIN);
    }
    server.read_tids(stream, thread, max, Box::new(answer_to(reply)));
}

/// Writes to a link.
pub(super) fn write(
    server: &Arc<Server>,
    link: &Arc<WatchLink>,
    thread: u32,
    data: &[u8],
    reply: ReplyWrite,
) {
    match server.write_link(link, thread, data) {
        Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
        Err(LinkOver) => reply.error(Errno::ECONNRESET),
    }
}
