//! The file, and a window over it for reading many small headers in order.
//!
//! Invariant: all reads are by position (`pread`) and never through a mapping: a file that shrinks under a mapping
//! would kill the process. An end of the file where bytes were promised is told apart from a failed read.

use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use revfs_protocol::Tid;
use rustix::fs::Advice;

use super::error::{Damage, FileStorageError};
use super::format::{FIRST_TRANSACTION, MAGICS};
use crate::store::buffer::{BUFFER_ALIGN, BufferPool, ReadBuffer};
use crate::store::zodb::Oid;

/// Bytes read at once where reading goes on in order.
const WINDOW_BYTES: usize = 256 << 10;
/// A jump over less than this is still reading in order: to skip so little costs more than to read it.
const GAP_BYTES: u64 = 32 << 10;
/// Bytes read at once after a jump over data, which likely is followed by another.
const JUMP_BYTES: usize = 4 << 10;

/// Reads of fewer bytes go through the page cache, which reads ahead and keeps what is read again.
const DIRECT_BYTES_MIN: usize = 128 << 10;
/// Buffers that are kept for reuse.
const BUFFERS_KEPT: usize = 16;

/// The same file once more, for reads past the page cache.
fn open_direct(file: &File) -> Option<File> {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
    // By its number: what has its name may be another file already.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
}

/// Reads at `pos` until at least `wanted` bytes are there, in whole sectors but at the end of the file. `false`: it cannot.
fn fill(file: &File, pos: u64, buffer: &mut [u8], wanted: usize) -> bool {
    let mut have = 0;
    while have < wanted {
        match file.read_at(&mut buffer[have..], pos + have as u64) {
            Ok(count) if count > 0 && (count.is_multiple_of(BUFFER_ALIGN) || have + count >= wanted) => {
                have += count
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The end, or an error: the way through the page cache tells which.
            _ => return false,
        }
    }
    true
}

/// What tells one file from another that takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// That of the file with this metadata.
    pub fn of(metadata: &Metadata) -> FileIdentity {
        FileIdentity { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// An open FileStorage file. It stays readable as it is when a pack puts another in its place.
#[derive(Debug)]
pub struct DataFile {
    file: File,
    /// The same, opened for reads past the page cache; none where the filesystem has no such reads.
    direct: Option<File>,
    pool: Arc<BufferPool>,
    path: PathBuf,
    identity: FileIdentity,
    /// The oldest state that is whole; found out when it is asked for.
    pub(super) oldest: OnceLock<Tid>,
}

impl DataFile {
    /// Opens a file and looks at its first bytes.
    ///
    /// # Errors
    /// It cannot be opened, or is no FileStorage.
    pub fn open(path: &Path) -> Result<DataFile, FileStorageError> {
        let open = |source| FileStorageError::Open { path: path.to_owned(), source };
        // Looked at first: opening a fifo would wait for who writes it.
        if !std::fs::metadata(path).map_err(open)?.is_file() {
            return Err(FileStorageError::NotFileStorage { path: path.to_owned(), what: "it is no file" });
        }
        let file = File::open(path).map_err(open)?;
        let identity = FileIdentity::of(&file.metadata().map_err(open)?);
        let data = DataFile {
            direct: open_direct(&file),
            pool: BufferPool::new(BUFFERS_KEPT, 0),
            file,
            path: path.to_owned(),
            identity,
            oldest: OnceLock::new(),
        };
        data.check_magic()?;
        Ok(data)
    }

    /// Checks the first bytes.
    ///
    /// # Errors
    /// They are others.
    pub fn check_magic(&self) -> Result<(), FileStorageError> {
        let mut magic = [0; FIRST_TRANSACTION as usize];
        let have = self.read_up_to(0, &mut magic)?;
        if MAGICS.contains(&magic) {
            return Ok(());
        }
        let path = self.path.clone();
        let begun = MAGICS.iter().any(|other| magic[..have] == other[..have]);
        match begun {
            true => Err(FileStorageError::Unbegun { path, bytes: have as u64 }),
            false => {
                let what = "it does not begin with FS21 or FS30";
                Err(FileStorageError::NotFileStorage { path, what })
            }
        }
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Its size now, bytes.
    ///
    /// # Errors
    /// The operating system fails it.
    pub fn size(&self) -> Result<u64, FileStorageError> {
        Ok(self.file.metadata().map_err(|source| self.io(0, source))?.len())
    }

    /// Reads until the buffer is full or the file ends; answers how many bytes it read.
    ///
    /// # Errors
    /// The operating system fails the read.
    pub fn read_up_to(&self, pos: u64, buffer: &mut [u8]) -> Result<usize, FileStorageError> {
        let mut have = 0;
        while have < buffer.len() {
            match self.file.read_at(&mut buffer[have..], pos.saturating_add(have as u64)) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io(pos, source)),
            }
        }
        Ok(have)
    }

    /// Has the kernel read some bytes into its cache, beside others that it is asked for: who reads them next does not wait for
    /// one after the other.
    pub fn read_ahead(&self, pos: u64, len: u64) {
        // Only a hint: the read that follows tells what is wrong.
        if let Err(error) = rustix::fs::fadvise(&self.file, pos, NonZeroU64::new(len), Advice::WillNeed) {
            log::debug!("fadvise on {}: {error}", self.path.display());
        }
    }

    /// `len` bytes at `pos`, past the page cache if that is worth it.
    ///
    /// # Errors
    /// The operating system fails the read, or the file ends before.
    pub fn read_piece(&self, pos: u64, len: usize) -> Result<ReadBuffer, FileStorageError> {
        let skip = usize::try_from(pos % BUFFER_ALIGN as u64).unwrap_or(0);
        let mut buffer = self.pool.take((skip + len).next_multiple_of(BUFFER_ALIGN));
        let direct = self.direct.as_ref().filter(|_| len >= DIRECT_BYTES_MIN);
        let read = direct.is_some_and(|file| fill(file, pos - skip as u64, &mut buffer, skip + len));
        buffer.skip(skip);
        buffer.truncate(len);
        if !read {
            self.read_exact(pos, &mut buffer)?;
        }
        Ok(buffer)
    }

    /// Fills the buffer.
    ///
    /// # Errors
    /// The operating system fails the read, or the file ends before.
    pub fn read_exact(&self, pos: u64, buffer: &mut [u8]) -> Result<(), FileStorageError> {
        match self.read_up_to(pos, buffer)? {
            have if have == buffer.len() => Ok(()),
            _ => Err(self.damaged(pos, None, "the file ends inside of a transaction")),
        }
    }

    /// That a place is damaged.
    pub fn damaged(&self, pos: u64, oid: Option<Oid>, what: &'static str) -> FileStorageError {
        FileStorageError::Damaged { path: self.path.clone(), damage: Damage { pos, oid, what } }
    }

    fn io(&self, pos: u64, source: io::Error) -> FileStorageError {
        FileStorageError::Io { path: self.path.clone(), pos, source }
    }
}

/// Bytes of a file around the place that is read.
#[derive(Debug)]
pub struct Window {
    file: Arc<DataFile>,
    start: u64,
    buffer: Vec<u8>,
}

impl Window {
    /// A window over `file` that has nothing read yet.
    pub fn new(file: &Arc<DataFile>) -> Window {
        Window { file: Arc::clone(file), start: 0, buffer: Vec::new() }
    }

    /// The file.
    pub fn file(&self) -> &Arc<DataFile> {
        &self.file
    }

    /// The `N` bytes at `pos`, which are at most a page.
    ///
    /// # Errors
    /// The operating system fails the read, or the file ends before.
    pub fn bytes<const N: usize>(&mut self, pos: u64) -> Result<[u8; N], FileStorageError> {
        const { assert!(N <= JUMP_BYTES) };
        if let Some(bytes) = self.at_hand(pos) {
            return Ok(bytes);
        }
        let end = self.start + self.buffer.len() as u64;
        let in_order = (self.start..=end + GAP_BYTES).contains(&pos);
        self.buffer.resize(if in_order { WINDOW_BYTES } else { JUMP_BYTES }, 0);
        self.start = pos;
        let read = self.file.read_up_to(pos, &mut self.buffer);
        self.buffer.truncate(read.as_ref().map_or(0, |have| *have));
        read?;
        self.at_hand(pos).ok_or_else(|| self.file.damaged(pos, None, "the file ends inside of a transaction"))
    }

    fn at_hand<const N: usize>(&self, pos: u64) -> Option<[u8; N]> {
        let from = usize::try_from(pos.checked_sub(self.start)?).ok()?;
        self.buffer.get(from..)?.first_chunk().copied()
    }
}
