//! What can go wrong for a client.
//!
//! Invariant: each error names the thing, the cause and, where there is one, the remedy.

use revfs_protocol::{FileId, Tid};
use rustix::io::Errno;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// Why a link to the server ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DownCause {
    /// [`Conn::close`](crate::Conn::close) was called.
    #[error("it was closed")]
    Closed,
    /// The server ended it and said why.
    #[error("the server ended it: {0}")]
    ByServer(Arc<str>),
    /// The server is gone.
    #[error("the server is gone: open a new one when it runs again")]
    ServerGone,
    /// The link could not be read or written.
    #[error("the watch link fails: {0}: open a new one")]
    Io(Errno),
    /// The server said what this client does not understand.
    #[error("the server broke the protocol: {0}: update the client or the server")]
    Protocol(Arc<str>),
}

impl DownCause {
    /// What an error of reading or writing the link means.
    pub(crate) fn of_link(errno: Errno) -> DownCause {
        match errno {
            Errno::NOTCONN | Errno::CONNABORTED | Errno::CONNRESET | Errno::NODEV | Errno::PIPE => {
                DownCause::ServerGone
            }
            _ => DownCause::Io(errno),
        }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// A path of the mount cannot be opened or read.
    #[error("{}: {cause}: is a revfs server mounted there?", .path.display())]
    Path {
        /// The path, relative to the mount unless it is the mount itself.
        path: PathBuf,
        /// What the system said.
        cause: Errno,
    },
    /// `head/at` holds no transaction id.
    #[error("head/at of {} holds no transaction id: give the mount point of a revfs server", .mount.display())]
    NotAMount {
        /// The mount.
        mount: PathBuf,
    },
    /// A name that no file can have.
    #[error(
        "{name:?} is not the name of a file: give it as under head/bigfile, without `.`, `..` and empty parts"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// A file whose identity the server does not tell.
    #[error("head/bigfile/{name}: it has no attribute user.revfs.file: {cause}")]
    NoIdentity {
        /// The name.
        name: String,
        /// What the system said.
        cause: Errno,
    },
    /// A file whose blocks cannot be mapped one by one.
    #[error(
        "file {file} has blocks of {bytes} bytes, which are no whole pages of {page_bytes}: it cannot be mapped here"
    )]
    BlockSize {
        /// The file.
        file: FileId,
        /// Bytes in a block, as the server says.
        bytes: u64,
        /// Bytes in a page of this machine.
        page_bytes: u64,
    },
    /// The server refused to watch a file.
    #[error("the server does not watch file {file} @{at}: {text}")]
    Refused {
        /// The file.
        file: FileId,
        /// The state that was asked for.
        at: Tid,
        /// What the server said.
        text: Arc<str>,
    },
    /// A view can only move forward.
    #[error("cannot go back from @{current} to @{at}: open a new connection at that revision")]
    GoingBack {
        /// The state that was asked for.
        at: Tid,
        /// The state of the view.
        current: Tid,
    },
    /// A block could not be mapped as the server asked, so that the file's mappings fault.
    #[error(
        "file {file} cannot be mapped as of its revision: {cause}: close it, raise vm.max_map_count or the limit of open files, open it again"
    )]
    Remap {
        /// The file.
        file: FileId,
        /// What the system said.
        cause: Errno,
    },
    /// No room for a mapping, or one of more bytes than there are addresses.
    #[error("cannot map {len} bytes of file {file} from {offset}: {cause}")]
    Map {
        /// The file.
        file: FileId,
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// What the system said.
        cause: Errno,
    },
    /// Bytes beyond the end of a mapping were asked for.
    #[error("bytes {offset}..{end} are outside of a mapping of {len} bytes")]
    OutsideMapping {
        /// First byte, from the start of the mapping.
        offset: u64,
        /// The byte after the last.
        end: u64,
        /// Bytes of the mapping.
        len: u64,
    },
    /// Bytes of a file cannot be read.
    #[error("file {file} cannot be read at {offset}: {cause}")]
    Read {
        /// The file.
        file: FileId,
        /// Which byte.
        offset: u64,
        /// What the system said.
        cause: Errno,
    },
    /// The file was closed.
    #[error("file {file} is closed: open it again")]
    FileClosed {
        /// The file.
        file: FileId,
    },
    /// The connection is down.
    #[error("the connection is down: {0}")]
    Down(#[from] DownCause),
    /// This process is a fork of the one that opened the connection.
    #[error("the connection belongs to the parent of this process: open a new one")]
    Forked,
    /// A thread could not be started.
    #[error("cannot start a thread: {cause}: raise the limit of processes")]
    Thread {
        /// What the system said.
        cause: Errno,
    },
}
