//! unmount: takes one mount away, as root directly and else through fusermount3.
//!
//! Invariant: only the mount that was meant goes: the topmost one at the path must have the given device, so a
//! filesystem that somebody mounted over it, or after it, stays. Left out on purpose: MNT_FORCE (see
//! `fuse_connection` for the abort, which says what it does).

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use super::mountinfo::{MountDev, find_mount};
use super::process::Process;
use super::wait::{BoundedError, bounded};

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmountMode {
    /// Only if nobody uses it.
    Plain,
    /// Out of the tree at once; the filesystem itself goes when its last user does.
    Lazy,
}

/// What came of an unmount.
#[derive(Debug)]
pub enum UnmountOutcome {
    /// It is unmounted.
    Done,
    /// Somebody uses it: an open file, a mapping, a working directory.
    Busy,
    /// It was not mounted (any more).
    NotMounted,
    /// It cannot be unmounted.
    Failed(UnmountError),
}

/// Why an unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Something else is mounted over it.
    #[error("{} is covered by a mount of type {fs_type}; unmount that first", mount_point.display())]
    Covered {
        /// The mount point.
        mount_point: PathBuf,
        /// Type of what is on top.
        fs_type: String,
    },
    /// The system refused.
    #[error("cannot unmount {}: {source}", mount_point.display())]
    System {
        /// The mount point.
        mount_point: PathBuf,
        /// What the system said; `PermissionDenied`: only root and the user who mounted may unmount.
        source: io::Error,
    },
    /// The command that unmounts for users failed.
    #[error("cannot unmount {}: fusermount3 said: {text}", mount_point.display())]
    Helper {
        /// The mount point.
        mount_point: PathBuf,
        /// The output of the command.
        text: String,
    },
    /// It gave no answer in time.
    #[error("unmounting {} did not end within {} ms", mount_point.display(), limit.as_millis())]
    TimedOut {
        /// The mount point.
        mount_point: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
}

/// Unmounts the filesystem `dev` from `mount_point` (absolute, as mountinfo shows it) within `limit`.
pub fn unmount(mount_point: &Path, dev: MountDev, mode: UnmountMode, limit: Duration) -> UnmountOutcome {
    let path = mount_point.to_owned();
    match bounded("revfs-unmount", limit, move || unmount_unbounded(&path, dev, mode, limit)) {
        Ok(outcome) => outcome,
        Err(BoundedError::TimedOut { limit }) => {
            UnmountOutcome::Failed(UnmountError::TimedOut { mount_point: mount_point.to_owned(), limit })
        }
        Err(error @ BoundedError::NoThread { .. }) => failed(mount_point, io::Error::other(error)),
    }
}

fn unmount_unbounded(path: &Path, dev: MountDev, mode: UnmountMode, limit: Duration) -> UnmountOutcome {
    match find_mount(path) {
        Err(source) => return failed(path, source),
        Ok(None) => return UnmountOutcome::NotMounted,
        Ok(Some(top)) if top.dev != dev => return covered_or_gone(path, dev, top.fs_type),
        Ok(Some(_)) => {}
    }
    let flags = match mode {
        UnmountMode::Plain => UnmountFlags::NOFOLLOW,
        UnmountMode::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(path, flags) {
        Ok(()) => UnmountOutcome::Done,
        Err(Errno::BUSY) => UnmountOutcome::Busy,
        Err(Errno::INVAL | Errno::NOENT) => UnmountOutcome::NotMounted,
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => fusermount(path, dev, mode, limit),
        Err(errno) => failed(path, errno.into()),
    }
}

/// On top is another filesystem: ours is below it, or is gone.
fn covered_or_gone(path: &Path, dev: MountDev, fs_type: String) -> UnmountOutcome {
    match super::mountinfo::mounts() {
        Err(source) => failed(path, source),
        Ok(all) if all.iter().any(|entry| entry.dev == dev && entry.mount_point == path) => {
            UnmountOutcome::Failed(UnmountError::Covered { mount_point: path.to_owned(), fs_type })
        }
        Ok(_) => UnmountOutcome::NotMounted,
    }
}

fn fusermount(path: &Path, dev: MountDev, mode: UnmountMode, limit: Duration) -> UnmountOutcome {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if mode == UnmountMode::Lazy {
        command.arg("-z");
    }
    // Its messages are read: they must not be translated.
    command.arg("--").arg(path).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = match command.spawn() {
        Ok(child) => child,
        Err(source) => {
            let text = format!("{source}; install the package fuse3, or unmount as root");
            return helper_failed(path, text);
        }
    };
    match Process::open(child.id()) {
        Ok(process) if !process.wait_exit(limit) => {
            process.signal(Signal::KILL).ok();
        }
        _ => {}
    }
    let output = match child.wait_with_output() {
        Ok(output) => output,
        Err(source) => return helper_failed(path, source.to_string()),
    };
    if output.status.success() {
        return UnmountOutcome::Done;
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match find_mount(path) {
        Ok(Some(top)) if top.dev == dev && text.contains("busy") => UnmountOutcome::Busy,
        Ok(Some(top)) if top.dev == dev => helper_failed(path, text),
        Ok(_) => UnmountOutcome::NotMounted,
        Err(source) => failed(path, source),
    }
}

fn failed(path: &Path, source: io::Error) -> UnmountOutcome {
    UnmountOutcome::Failed(UnmountError::System { mount_point: path.to_owned(), source })
}

fn helper_failed(path: &Path, text: String) -> UnmountOutcome {
    UnmountOutcome::Failed(UnmountError::Helper { mount_point: path.to_owned(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mount_that_was_meant_is_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let dev = MountDev { major: 0, minor: u32::MAX };
        let limit = Duration::from_secs(10);
        assert!(matches!(unmount(&path, dev, UnmountMode::Plain, limit), UnmountOutcome::NotMounted));
        // Another filesystem at the path stays, even if a lazy unmount is asked for.
        assert!(matches!(
            unmount(Path::new("/proc"), dev, UnmountMode::Lazy, limit),
            UnmountOutcome::NotMounted
        ));
        assert!(find_mount(Path::new("/proc")).unwrap().is_some());
    }
}
