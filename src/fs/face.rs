//! What a mount shows of itself: the names and texts of `.revfs`, and which error is which errno.
//!
//! Invariant: the errno table is exhaustive without `_`, so that a new error cannot be forgotten in it.

use std::fmt::Debug;
use std::sync::Arc;

use fuser::Errno;

use super::peer::PeerFace;
use super::report;
use crate::server::Server;
use crate::store::ReadError;
use crate::view::ResolveError;

/// The directory of the face in the root.
pub const FACE_DIR: &str = ".revfs";

/// A file in the face's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaceFile {
    /// URL of the store.
    Store,
    /// Version of the program.
    Version,
    /// Process that serves the mount.
    Pid,
    /// Gauges and counters, one a line: name, space, value.
    Stats,
    /// The same and times, in the text format of Prometheus.
    Metrics,
    /// Watch links, one a line as JSON.
    Links,
    /// The last lines of the log.
    Log,
    /// The published head, which `head/at` follows.
    Head,
}

impl FaceFile {
    /// All of them.
    pub const ALL: [FaceFile; 8] = [
        FaceFile::Store,
        FaceFile::Version,
        FaceFile::Pid,
        FaceFile::Stats,
        FaceFile::Metrics,
        FaceFile::Links,
        FaceFile::Log,
        FaceFile::Head,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            FaceFile::Store => "store",
            FaceFile::Version => "version",
            FaceFile::Pid => "pid",
            FaceFile::Stats => "stats",
            FaceFile::Metrics => "metrics",
            FaceFile::Links => "links",
            FaceFile::Log => "log",
            FaceFile::Head => "head",
        }
    }
}

/// What the texts of the face are made from, besides the server.
#[derive(Clone)]
pub struct Face {
    /// Version of the program.
    pub version: String,
    /// The last lines of the log, now.
    pub log: Arc<dyn Fn() -> Vec<u8> + Send + Sync>,
    /// The face of WCFS in place of this one.
    pub peer: Option<PeerFace>,
}

impl Debug for Face {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Face").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Default for Face {
    /// This package's version, and an empty log.
    fn default() -> Face {
        Face { version: env!("CARGO_PKG_VERSION").to_owned(), log: Arc::new(Vec::new), peer: None }
    }
}

impl Face {
    /// The text of a file, now. `inodes` is how many inodes the kernel knows.
    pub fn text(&self, file: FaceFile, server: &Server, inodes: u64) -> Vec<u8> {
        match file {
            FaceFile::Store => format!("{}\n", server.store().info().url).into_bytes(),
            FaceFile::Version => format!("{}\n", self.version).into_bytes(),
            FaceFile::Pid => format!("{}\n", std::process::id()).into_bytes(),
            FaceFile::Stats => report::stats(server, inodes).into_bytes(),
            FaceFile::Metrics => report::metrics(server, &self.version, inodes).into_bytes(),
            FaceFile::Links => report::links(server).into_bytes(),
            FaceFile::Log => (self.log)(),
            FaceFile::Head => format!("{}\n", server.head()).into_bytes(),
        }
    }
}

/// Why a request is not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Nothing has this name or number.
    #[error("no such entry")]
    NotFound,
    /// A name that cannot be.
    #[error("no such name can be")]
    Malformed,
    /// A name that is too long.
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    /// It is no directory.
    #[error("not a directory")]
    NotADirectory,
    /// It is a directory.
    #[error("is a directory")]
    IsADirectory,
    /// It is no symlink.
    #[error("not a symlink")]
    NotALink,
    /// It asks to change something.
    #[error("the tree is read-only: use `revfs commit`")]
    ReadOnly,
    /// A file that became another one while somebody has the one from before.
    #[error("it became another file, and somebody has the one from before open")]
    Stale,
    /// It has no such extended attribute.
    #[error("no such extended attribute")]
    NoSuchAttribute,
    /// An offset at which there is nothing to seek.
    #[error("nothing at or after the offset")]
    BeyondEnd,
    /// A process that the server cannot look after asks for a watch link.
    #[error("the server cannot look after this process: its log says why")]
    ClientRefused,
    /// It is a stream.
    #[error("a stream has no position")]
    NotSeekable,
    /// The handle is not open.
    #[error("bad handle")]
    BadHandle,
    /// A revision means nothing.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl FsError {
    /// Whether it is a failure of the store that somebody has to look at.
    pub fn is_failure(&self) -> bool {
        match self {
            FsError::Read(error) | FsError::Resolve(ResolveError::Read(error)) => {
                !matches!(error, ReadError::AheadOfHead { .. } | ReadError::NoSuchFile { .. })
            }
            _ => false,
        }
    }
}

/// The errno of a request that failed.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Malformed => Errno::EINVAL,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::NotALink => Errno::EINVAL,
        FsError::ReadOnly => Errno::EROFS,
        FsError::Stale => Errno::ESTALE,
        FsError::NoSuchAttribute => Errno::ENODATA,
        FsError::BeyondEnd => Errno::ENXIO,
        FsError::ClientRefused => Errno::EPERM,
        FsError::NotSeekable => Errno::ESPIPE,
        FsError::BadHandle => Errno::EBADF,
        FsError::Resolve(error) => match error {
            ResolveError::Malformed(_) => Errno::EINVAL,
            ResolveError::NoSuchTag { .. }
            | ResolveError::InFuture { .. }
            | ResolveError::AheadOfHead { .. } => Errno::ENOENT,
            ResolveError::Read(error) => read_errno(error),
        },
        FsError::Read(error) => read_errno(error),
    }
}

/// The errno of a read that failed.
pub fn read_errno(error: &ReadError) -> Errno {
    match error {
        // Not yet, or not any more: the same path may work later or at another revision.
        ReadError::AheadOfHead { .. } | ReadError::NoSuchFile { .. } => Errno::ENOENT,
        // The bytes exist and cannot be had: never answered with other bytes.
        ReadError::Damaged { .. }
        | ReadError::Missing { .. }
        | ReadError::Io { .. }
        | ReadError::Object { .. }
        | ReadError::Index { .. } => Errno::EIO,
        // As a file on a server that is not what it was when it was opened.
        ReadError::Database(error) if error.is_packed() => Errno::ESTALE,
        ReadError::Database(_) => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use revfs_protocol::{RevSpec, Tid};

    #[test]
    fn damage_is_eio_what_is_not_there_enoent_and_what_cannot_be_einval() {
        let at = Tid::ZERO;
        let damaged = || ReadError::Damaged { object: "p".to_owned(), offset: 0, what: "x" };
        let malformed = RevSpec::parse("-x").unwrap_err();
        let cases = [
            (FsError::Read(damaged()), Errno::EIO, true),
            (FsError::Resolve(ResolveError::Read(damaged())), Errno::EIO, true),
            (FsError::Read(ReadError::AheadOfHead { at, head: at }), Errno::ENOENT, false),
            (FsError::Resolve(ResolveError::Malformed(malformed)), Errno::EINVAL, false),
            (FsError::ReadOnly, Errno::EROFS, false),
        ];
        for (error, expected, failure) in cases {
            assert_eq!((errno(&error).code(), error.is_failure()), (expected.code(), failure), "{error}");
        }
    }

    #[test]
    fn names_of_the_face_are_distinct() {
        let mut names = FaceFile::ALL.map(FaceFile::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FaceFile::ALL.len());
    }
}
