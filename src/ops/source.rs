//! What `commit` reads from: a regular file, or a stream.
//!
//! Invariant: a file that changes while it is read is noticed by size, mtime, ctime or inode, and then nothing
//! is committed. Not noticed: bytes stored through a writable mapping that the kernel has not accounted yet.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags, SeekFrom};

use super::data::shown;

/// Where the bytes of a file to be committed come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A regular file.
    Path(PathBuf),
    /// The standard input, to its end.
    Stdin,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Path(path) => f.write_str(&shown(path.as_os_str().as_encoded_bytes())),
            Source::Stdin => f.write_str("stdin"),
        }
    }
}

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be opened.
    #[error("{path}: cannot be opened: {source}: check the path and its permissions", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a regular file.
    #[error("{path}: is a {kind}, not a regular file: {remedy}", path = path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A read failed.
    #[error(
        "{name}: cannot be read at byte {offset}: {source}; nothing was committed: check the disk it is on"
    )]
    Read {
        /// The source.
        name: Source,
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// Somebody wrote to it meanwhile.
    #[error("{path}: changed while it was read ({what}); nothing was committed: commit again when its writer is done, or commit a copy", path = path.display())]
    ChangedWhileRead {
        /// The file.
        path: PathBuf,
        /// What about it changed.
        what: &'static str,
    },
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    pub(super) size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Stamp {
        Stamp {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// What differs, for people.
    fn differs(&self, now: &Stamp) -> Option<&'static str> {
        match () {
            () if self.inode != now.inode => Some("another file was put in its place"),
            () if self.size != now.size => Some("its size"),
            () if self.mtime != now.mtime => Some("its mtime"),
            () if self.ctime != now.ctime => Some("its ctime"),
            () => None,
        }
    }
}

/// A regular file, open for reading.
#[derive(Debug)]
pub(super) struct SourceFile {
    file: File,
    path: PathBuf,
    pub(super) stamp: Stamp,
}

impl SourceFile {
    /// Opens a regular file; refuses everything else without waiting for it.
    pub(super) fn open(path: &Path) -> Result<SourceFile, SourceError> {
        let open = |source| SourceError::Open { path: path.to_owned(), source };
        // A fifo without a writer would block a plain open for ever.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
        let file = match opened {
            Ok(fd) => File::from(fd),
            // A socket cannot be opened; what it is says more than the errno does.
            Err(errno) => {
                if let Ok(meta) = std::fs::metadata(path) {
                    refuse_others(path, meta.file_type())?;
                }
                return Err(open(errno.into()));
            }
        };
        let meta = file.metadata().map_err(open)?;
        refuse_others(path, meta.file_type())?;
        // Advice only: a filesystem that knows none reads all the same.
        let _advice = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        Ok(SourceFile { file, path: path.to_owned(), stamp: Stamp::of(&meta) })
    }

    /// Fails if the file is not what it was when it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), SourceError> {
        let changed = |what| SourceError::ChangedWhileRead { path: self.path.clone(), what };
        // By path: this sees a replacement too, and the inode tells that it is the file that was read.
        let now = std::fs::metadata(&self.path).map_err(|_| changed("it is gone"))?;
        match self.stamp.differs(&Stamp::of(&now)) {
            Some(what) => Err(changed(what)),
            None => Ok(()),
        }
    }

    /// The file is shorter or longer than its size says.
    pub(super) fn wrong_size(&self) -> SourceError {
        SourceError::ChangedWhileRead { path: self.path.clone(), what: "its size" }
    }

    /// Reads at `offset` until `buffer` is full or the file ends; answers how much.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, SourceError> {
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&self.file, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    let (name, offset) = (Source::Path(self.path.clone()), offset + done as u64);
                    return Err(SourceError::Read { name, offset, source: errno.into() });
                }
            }
        }
        Ok(done)
    }

    /// First byte at or after `offset` that is not in a hole, and the end of that data; `None`: only holes.
    pub(super) fn data_region(&self, offset: u64) -> Option<(u64, u64)> {
        let size = self.stamp.size;
        if offset >= size {
            return None;
        }
        let start = match rustix::fs::seek(self.fd(), SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return None,
            // A filesystem without holes: all is data.
            Err(_) => return Some((offset, size)),
        };
        let end = rustix::fs::seek(self.fd(), SeekFrom::Hole(start)).unwrap_or(size);
        (start < size).then(|| (start, end.clamp(start + 1, size)))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn refuse_others(path: &Path, kind: std::fs::FileType) -> Result<(), SourceError> {
    let (kind, remedy) = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => ("directory", "name each file below it as NAME=PATH"),
        () if kind.is_fifo() => ("fifo", "use NAME=- and redirect it to stdin"),
        () if kind.is_socket() => ("socket", "use NAME=- and pipe its bytes to stdin"),
        () if kind.is_char_device() => ("character device", "use NAME=- and redirect it to stdin"),
        () if kind.is_block_device() => ("block device", "use NAME=- and redirect it to stdin"),
        () => ("special file", "commit a copy of its bytes"),
    };
    Err(SourceError::NotAFile { path: path.to_owned(), kind, remedy })
}

/// Reads from stdin until `buffer` is full or the stream ends; answers how much.
pub(super) fn read_stdin(buffer: &mut [u8], offset: u64) -> Result<usize, SourceError> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                let offset = offset + done as u64;
                return Err(SourceError::Read { name: Source::Stdin, offset, source: errno.into() });
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_directory_and_a_device_are_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let refused = SourceFile::open(dir.path()).unwrap_err().to_string();
        assert!(
            refused.ends_with("is a directory, not a regular file: name each file below it as NAME=PATH")
        );
        let refused = SourceFile::open(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(refused.contains("character device") && refused.contains("NAME=-"), "{refused}");
    }

    #[test]
    fn a_fifo_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(SourceFile::open(&path), Err(SourceError::NotAFile { kind: "fifo", .. })));
    }

    #[test]
    fn each_kind_of_change_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"one").unwrap();
        let source = SourceFile::open(&path).unwrap();
        source.check_unchanged().unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"two").unwrap();
        assert!(source.check_unchanged().unwrap_err().to_string().contains("its size"));
        std::fs::write(dir.path().join("g"), b"one").unwrap();
        std::fs::rename(dir.path().join("g"), &path).unwrap();
        assert!(source.check_unchanged().unwrap_err().to_string().contains("another file"));
        std::fs::remove_file(&path).unwrap();
        assert!(source.check_unchanged().unwrap_err().to_string().contains("it is gone"));
    }

    #[test]
    fn regions_of_data_skip_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 1 << 30).unwrap();
        let source = SourceFile::open(&path).unwrap();
        let (start, end) = source.data_region(0).unwrap();
        assert!(start <= 1 << 30 && end > 1 << 30 && end - start <= 1 << 20, "{start}..{end}");
        assert_eq!(source.data_region(end), None);
        assert_eq!(source.data_region(1 << 40), None);
    }
}
