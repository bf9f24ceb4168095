//! Paths of a mount, opened relative to its root.
//!
//! Invariant: nothing here waits for a pin; the server answers LOOKUP, GETATTR and OPEN at once, so pinner threads
//! may call it. Files of `@<rev>` are kept open and shared, so that neighbouring blocks of one revision become one
//! mapping of the kernel.

use crate::error::ClientError;
use crate::shared::lock;
use revfs_protocol::{FileId, Tid};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, fgetxattr, openat, statx};
use rustix::io::{Errno, pread, retry_on_intr};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing_mutex::stdsync::Mutex;

/// Most files of revisions that are kept open in one connection; others are opened again when they are needed.
const REV_FILES_MAX: usize = 64;

const TID_TEXT_BYTES: usize = 16;
const XATTR_FILE: &str = "user.revfs.file";

/// The root of a mount.
#[derive(Debug)]
pub(crate) struct MountDir {
    path: PathBuf,
    root: OwnedFd,
    by_id: &'static str,        // the directory whose names are file ids
    rev_files: Mutex<RevFiles>, // leaf; never held across a system call
}

/// Files that are kept open, the oldest first.
type RevFiles = VecDeque<((FileId, Tid), Arc<RevFile>)>;

/// A file as of a revision.
#[derive(Debug)]
pub(crate) struct RevFile {
    /// Opened for reading.
    pub(crate) fd: OwnedFd,
    /// Bytes; they never change.
    pub(crate) size: u64,
}

impl MountDir {
    pub(crate) fn open(path: &Path) -> Result<MountDir, ClientError> {
        let failed = |cause| ClientError::Path { path: path.to_owned(), cause };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
        // Where names are ids there is no second way to them.
        let by_id = match openat(&root, "head/by-id", flags, Mode::empty()) {
            Ok(_) => "by-id",
            Err(_) => "bigfile",
        };
        Ok(MountDir { path: path.to_owned(), root, by_id, rev_files: Mutex::default() })
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, ClientError> {
        let opened = retry_on_intr(|| openat(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty()));
        opened.map_err(|cause| ClientError::Path { path: path.to_owned(), cause })
    }

    /// What `head/at` shows.
    pub(crate) fn head_at(&self) -> Result<Tid, ClientError> {
        let path = Path::new("head/at");
        let file = self.open_at(path, OFlags::RDONLY)?;
        let mut text = [0; TID_TEXT_BYTES + 1];
        let len = retry_on_intr(|| pread(&file, &mut text, 0))
            .map_err(|cause| ClientError::Path { path: path.to_owned(), cause })?;
        let tid = str::from_utf8(&text[..len]).ok().and_then(|text| text.parse().ok());
        tid.ok_or_else(|| ClientError::NotAMount { mount: self.path.clone() })
    }

    /// A new watch link.
    pub(crate) fn open_watch(&self) -> Result<OwnedFd, ClientError> {
        self.open_at(Path::new("head/watch"), OFlags::RDWR)
    }

    /// A file of head by its name.
    pub(crate) fn open_name(&self, name: &[u8]) -> Result<(OwnedFd, FileId), ClientError> {
        let shown = || String::from_utf8_lossy(name).into_owned();
        let bad_part = |part: &[u8]| part.is_empty() || part == b"." || part == b"..";
        if name.split(|byte| *byte == b'/').any(bad_part) || name.contains(&0) {
            return Err(ClientError::BadName { name: shown() });
        }
        let path = Path::new("head/bigfile").join(path_of(name));
        let fd = self.open_at(&path, OFlags::RDONLY)?;
        let mut text = [0; TID_TEXT_BYTES + 1];
        let file = match fgetxattr(&fd, XATTR_FILE, &mut text) {
            Ok(len) => str::from_utf8(&text[..len]).ok().and_then(|text| text.parse().ok()),
            // Where names are ids there is no attribute that says them.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {
                str::from_utf8(name).ok().and_then(|text| text.parse().ok())
            }
            Err(cause) => return Err(ClientError::NoIdentity { name: shown(), cause }),
        };
        let file = file.ok_or_else(|| ClientError::NoIdentity { name: shown(), cause: Errno::INVAL })?;
        Ok((fd, file))
    }

    /// A file of head by its identity.
    pub(crate) fn open_id(&self, file: FileId) -> Result<OwnedFd, ClientError> {
        self.open_at(Path::new(&format!("head/{}/{file}", self.by_id)), OFlags::RDONLY)
    }

    /// Whether a file as of a revision is open already.
    pub(crate) fn has_open(&self, file: FileId, rev: Tid) -> bool {
        lock(&self.rev_files).iter().any(|(known, _)| *known == (file, rev))
    }

    /// A file as of a revision.
    pub(crate) fn rev_file(&self, file: FileId, rev: Tid) -> Result<Arc<RevFile>, ClientError> {
        let key = (file, rev);
        if let Some((_, found)) = lock(&self.rev_files).iter().find(|(known, _)| *known == key) {
            return Ok(Arc::clone(found));
        }
        let path = PathBuf::from(format!("@{rev}/{}/{file}", self.by_id));
        let fd = match self.open_at(&path, OFlags::RDONLY) {
            // Those that are kept open only save time; there may be no room for them.
            Err(ClientError::Path { cause: Errno::MFILE | Errno::NFILE, .. }) => {
                drop(std::mem::take(&mut *lock(&self.rev_files)));
                self.open_at(&path, OFlags::RDONLY)?
            }
            opened => opened?,
        };
        let size = attributes(&fd).map_err(|cause| ClientError::Path { path, cause })?.size;
        let opened = Arc::new(RevFile { fd, size });
        let mut known = lock(&self.rev_files);
        if let Some((_, found)) = known.iter().find(|(known, _)| *known == key) {
            return Ok(Arc::clone(found)); // another thread was faster; one file for all
        }
        known.push_back((key, Arc::clone(&opened)));
        let oldest = if known.len() > REV_FILES_MAX { known.pop_front() } else { None };
        drop(known); // closing `oldest` is a system call
        drop(oldest);
        Ok(opened)
    }
}

fn path_of(name: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name))
}

/// What the server says of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes {
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes in a block.
    pub(crate) block_bytes: u64,
}

/// Asks the server for a file's attributes, so that the kernel knows them too: it faults beyond the size that it
/// knows without asking.
pub(crate) fn attributes(fd: &OwnedFd) -> Result<Attributes, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let found = retry_on_intr(|| statx(fd, "", flags, StatxFlags::SIZE))?;
    Ok(Attributes { size: found.stx_size, block_bytes: u64::from(found.stx_blksize) })
}
