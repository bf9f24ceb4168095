//! A file that appears under its name whole, or not at all.
//!
//! Invariant: until [`AtomicFile::publish`] nothing is seen at the name, or what was there before. Where the
//! filesystem can, the unfinished file has no name at all, so that even a killed process leaves nothing behind.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::env;

/// Mode of a new file, before the umask.
const NEW_FILE_MODE: u32 = 0o666;

/// A file that is being written.
#[derive(Debug)]
pub(super) struct AtomicFile {
    file: File,
    to: PathBuf,
    /// Its name until it is published; `None`: it has none.
    staged: Option<PathBuf>,
    /// Mode of the file that it replaces.
    permissions: Option<Permissions>,
}

impl AtomicFile {
    /// Begins a file that will be at `path`. A symbolic link there is followed, anything but a file refused.
    pub(super) fn create(path: &Path) -> io::Result<AtomicFile> {
        let to = match std::fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        let permissions = match std::fs::metadata(&to) {
            Ok(meta) if meta.is_file() => Some(meta.permissions()),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mode = Mode::from_raw_mode(NEW_FILE_MODE);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let (file, staged) = match rustix::fs::open(folder_of(&to), flags | OFlags::TMPFILE, mode) {
            Ok(file) => (file, None),
            // Not every filesystem has nameless files; other errors come again with a name.
            Err(_) => {
                let name = staging_name(&to);
                let file = rustix::fs::open(&name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
                (file, Some(name))
            }
        };
        Ok(AtomicFile { file: File::from(file), to, staged, permissions })
    }

    /// The file, to be written.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file durable and puts it at its name.
    pub(super) fn publish(mut self) -> io::Result<()> {
        if let Some(permissions) = self.permissions.take() {
            self.file.set_permissions(permissions)?;
        }
        self.file.sync_all()?;
        let name = match &self.staged {
            Some(name) => name.clone(),
            None => {
                let name = staging_name(&self.to);
                let handle = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, handle, CWD, &name, AtFlags::SYMLINK_FOLLOW)?;
                self.staged = Some(name.clone());
                name
            }
        };
        std::fs::rename(name, &self.to)?;
        self.staged = None;
        File::open(folder_of(&self.to))?.sync_all()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(name) = self.staged.take()
            && let Err(error) = std::fs::remove_file(&name)
        {
            ::log::warn!("{}: an unfinished file stays behind: {error}", name.display());
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn staging_name(path: &Path) -> PathBuf {
    folder_of(path).join(format!(".revfs-{:016x}", env::random_u64()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn nothing_is_seen_before_the_file_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let new = AtomicFile::create(&path).unwrap();
        new.file().write_all(b"new").unwrap();
        assert!(!path.exists());
        new.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn a_file_that_is_given_up_leaves_the_old_one_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"old").unwrap();
        let new = AtomicFile::create(&path).unwrap();
        new.file().write_all(b"new").unwrap();
        drop(new);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn mode_and_symbolic_link_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("f"), dir.path().join("link"));
        std::fs::write(&path, b"old").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("f", &link).unwrap();
        let new = AtomicFile::create(&link).unwrap();
        new.file().write_all(b"new").unwrap();
        new.publish().unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_device_is_not_replaced() {
        assert!(AtomicFile::create(Path::new("/dev/null")).is_err());
    }
}
