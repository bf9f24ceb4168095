//! fuse_mount: mounts a FUSE descriptor as root, with the filesystem type that revfs is recognised by.
//!
//! Invariant: the mount has type [`REVFS_FS_TYPE`]. The FUSE library names a mount so only when fusermount3 makes
//! it; its own direct mount, which it prefers as root, has the bare type `fuse`. Left out on purpose: mounts of
//! other users, which need fusermount3 and which the library does right.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::mountinfo::REVFS_FS_TYPE;

const FUSE_DEVICE: &str = "/dev/fuse";

/// Why a mount as root failed.
#[derive(Debug, thiserror::Error)]
pub enum FuseMountError {
    /// The kernel's side of FUSE cannot be opened.
    #[error("cannot open {FUSE_DEVICE}: {source}; load the kernel module with: modprobe fuse")]
    Device {
        /// What the system said.
        source: io::Error,
    },
    /// The mount was refused.
    #[error("cannot mount at {}: {source}", mount_point.display())]
    Mount {
        /// The mount point.
        mount_point: PathBuf,
        /// What the system said; `PermissionDenied`: not root, or root of a container that may not mount.
        source: io::Error,
    },
}

/// How a tree is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseMountOptions {
    /// What the mount table shows as its source: the store's URL.
    pub source: OsString,
    /// Let users other than the one who mounts in.
    pub allow_other: bool,
    /// Let the kernel check mode bits.
    pub default_permissions: bool,
}

/// Mounts at the directory `mount_point`, without devices and set-user-id files. The descriptor is the server's
/// side: a FUSE session is made from it, and when its last copy closes the mount is dead.
///
/// # Errors
/// [`FuseMountError`].
pub fn mount_fuse(mount_point: &Path, options: &FuseMountOptions) -> Result<OwnedFd, FuseMountError> {
    let refused = |source| FuseMountError::Mount { mount_point: mount_point.to_owned(), source };
    let device = rustix::fs::open(FUSE_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| FuseMountError::Device { source: errno.into() })?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if options.default_permissions {
        data.push_str(",default_permissions");
    }
    let data = CString::new(data).map_err(|error| refused(error.into()))?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount(options.source.as_os_str(), mount_point, REVFS_FS_TYPE, flags, data.as_c_str())
        .map_err(|errno| refused(errno.into()))?;
    Ok(device)
}
