//! The folder of an index: who may wipe it, and whether it survived the last end of the machine.
//!
//! A shared flock on `lock` is held while the index is open; wiping takes it exclusively. The file `unsynced`
//! holds the boot id under which the tables were written without sync; it is made, durably, before the first
//! such write and removed after a sync. Invariant: tables that lie beside an `unsynced` of another boot are
//! never read.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::IndexError;

/// An entered folder.
#[derive(Debug)]
pub struct Home {
    folder: PathBuf,
    lock: File,
}

impl Home {
    /// Enters `folder`, wiping what another boot left unsynced. Waits for a process that is wiping.
    pub fn enter(folder: &Path) -> Result<Home, IndexError> {
        let path = folder.join("lock");
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| IndexError::Io { path, source }
        };
        loop {
            let lock = File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
                .map_err(io(&path))?;
            let home = Home { folder: folder.to_owned(), lock };
            flock(&home.lock, FlockOperation::LockShared).map_err(|e| io(&path)(e.into()))?;
            if !home.is_in_place() {
                continue; // deleted between open and flock
            }
            if !home.is_stale()? {
                return Ok(home);
            }
            flock(&home.lock, FlockOperation::Unlock).map_err(|e| io(&path)(e.into()))?;
            flock(&home.lock, FlockOperation::LockExclusive).map_err(|e| io(&path)(e.into()))?;
            if home.is_stale()? {
                for name in ["data.mdb", "lock.mdb", "unsynced"] {
                    remove(&folder.join(name))?;
                }
            }
            flock(&home.lock, FlockOperation::LockShared).map_err(|e| io(&path)(e.into()))?;
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the folder still is the one that was entered.
    pub fn is_in_place(&self) -> bool {
        let here = std::fs::metadata(self.folder.join("lock"));
        match (here, self.lock.metadata()) {
            (Ok(now), Ok(ours)) => now.ino() == ours.ino() && now.dev() == ours.dev(),
            _ => false,
        }
    }

    /// Whether there are tables already.
    pub fn has_tables(&self) -> bool {
        self.folder.join("data.mdb").exists()
    }

    fn is_stale(&self) -> Result<bool, IndexError> {
        let path = self.folder.join("unsynced");
        match std::fs::read_to_string(&path) {
            Ok(boot) => Ok(boot != boot_id()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(IndexError::Io { path, source }),
        }
    }

    /// To be called under LMDB's write lock, before a commit without sync; or before there are tables at all.
    pub fn mark_dirty(&self) -> Result<(), IndexError> {
        let path = self.folder.join("unsynced");
        if path.exists() {
            return Ok(());
        }
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(boot_id().as_bytes())?;
            file.sync_all()?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| IndexError::Io { path: path.clone(), source })
    }

    /// To be called under LMDB's write lock, after a sync.
    pub fn mark_clean(&self) -> Result<(), IndexError> {
        remove(&self.folder.join("unsynced"))
    }
}

fn remove(path: &Path) -> Result<(), IndexError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(IndexError::Io { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Identity of this run of the machine. Where the kernel does not say, each process counts as another boot,
/// which costs a rebuild and is never wrong.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| crate::env::random_uuid().to_string(), |id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_boot_left_unsynced_is_wiped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data.mdb"), b"half written").unwrap();
        std::fs::write(dir.path().join("unsynced"), b"another boot").unwrap();
        drop(Home::enter(dir.path()).unwrap());
        assert!(!dir.path().join("data.mdb").exists());
    }

    #[test]
    fn what_this_boot_wrote_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::enter(dir.path()).unwrap();
        home.mark_dirty().unwrap();
        std::fs::write(dir.path().join("data.mdb"), b"tables").unwrap();
        drop(home);
        drop(Home::enter(dir.path()).unwrap());
        assert!(dir.path().join("data.mdb").exists());
    }
}
