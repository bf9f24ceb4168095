//! fuse_connection: the kernel's handle of a FUSE mount, through which it is cut off from its server.
//!
//! Invariant: it is named by device number, which the kernel gives again after an unmount. So whoever aborts
//! looks the number up in mountinfo right before. Left out on purpose: `max_background` (the server sets it).

use std::io;
use std::path::{Path, PathBuf};

use super::mountinfo::MountDev;

/// Where the control filesystem of FUSE is mounted.
pub const FUSECTL_DIR: &str = "/sys/fs/fuse/connections";

/// Why a connection cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum FuseConnectionError {
    /// The device is not one of a FUSE filesystem without a block device.
    #[error("device {dev} has a major number: it belongs to a disk, not to a mount of revfs")]
    NotAnonymous {
        /// The device.
        dev: MountDev,
    },
    /// The kernel knows no such connection: it is not FUSE, or it was unmounted.
    #[error("no FUSE connection {}: it is unmounted, or fusectl is not mounted; as root: mount -t fusectl \
             fusectl {FUSECTL_DIR}", dir.display())]
    Absent {
        /// Where it should be.
        dir: PathBuf,
    },
    /// One of its files cannot be used.
    #[error("{}: {source}; only root and the user who mounted may use it", file.display())]
    Io {
        /// The control file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The connection of one FUSE filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseConnection {
    dir: PathBuf,
}

impl FuseConnection {
    /// The connection behind device `dev`. As root it mounts the control filesystem if that is missing.
    ///
    /// # Errors
    /// [`FuseConnectionError::NotAnonymous`] or [`FuseConnectionError::Absent`].
    pub fn open(dev: MountDev) -> Result<FuseConnection, FuseConnectionError> {
        // The kernel names the directory by its own device number, which is the minor when the major is 0.
        if dev.major != 0 {
            return Err(FuseConnectionError::NotAnonymous { dev });
        }
        let dir = Path::new(FUSECTL_DIR).join(dev.minor.to_string());
        if !dir.is_dir() {
            mount_fusectl();
        }
        if !dir.is_dir() {
            return Err(FuseConnectionError::Absent { dir });
        }
        Ok(FuseConnection { dir })
    }

    /// Cuts the connection: each waiting request fails with ECONNABORTED, each later one with ENOTCONN, and the
    /// server reads ENODEV. The mount stays until it is unmounted.
    ///
    /// # Errors
    /// [`FuseConnectionError::Io`]; `NotFound` inside if it was unmounted meanwhile.
    pub fn abort(&self) -> Result<(), FuseConnectionError> {
        let file = self.dir.join("abort");
        let opened = std::fs::OpenOptions::new().write(true).open(&file);
        opened
            .and_then(|mut control| io::Write::write_all(&mut control, b"1"))
            .map_err(|source| FuseConnectionError::Io { file, source })
    }

    /// How many requests wait to be read or answered by the server.
    ///
    /// # Errors
    /// [`FuseConnectionError::Io`]; `NotFound` inside if it was unmounted meanwhile.
    pub fn waiting(&self) -> Result<u64, FuseConnectionError> {
        let file = self.dir.join("waiting");
        std::fs::read_to_string(&file)
            .and_then(|text| text.trim().parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)))
            .map_err(|source| FuseConnectionError::Io { file, source })
    }
}

/// Mounts fusectl where distributions do. Not root, or no such directory: nothing happens, and the caller's
/// [`FuseConnectionError::Absent`] says what to do.
fn mount_fusectl() {
    let mounted = super::mountinfo::mounts().map(|all| {
        all.iter().any(|entry| entry.fs_type == "fusectl" && entry.mount_point == Path::new(FUSECTL_DIR))
    });
    if !matches!(mounted, Ok(false)) || !rustix::process::geteuid().is_root() {
        return;
    }
    use rustix::mount::{MountFlags, mount};
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("fusectl", FUSECTL_DIR, "fusectl", flags, None) {
        Ok(()) => log::info!("mounted fusectl at {FUSECTL_DIR}"),
        Err(errno) => log::debug!("cannot mount fusectl at {FUSECTL_DIR}: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_no_fuse_mount_has_no_connection() {
        let disk = FuseConnection::open(MountDev { major: 8, minor: 1 });
        assert!(matches!(disk, Err(FuseConnectionError::NotAnonymous { .. })));
        let none = FuseConnection::open(MountDev { major: 0, minor: u32::MAX });
        assert!(matches!(none, Err(FuseConnectionError::Absent { .. })));
    }
}
