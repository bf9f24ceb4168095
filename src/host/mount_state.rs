//! mount_state: whether a mount answers, found out without hanging on one that does not.
//!
//! Invariant: the process that asks can always end. A thread that waits for a FUSE server cannot be killed, not
//! even by SIGKILL, once the server has read its request; it would keep the whole process. So the look is taken
//! by a forked child, which may stay behind alone until the connection is aborted.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::mountinfo::{MountEntry, absolute_mount_point, find_mount};

/// How long [`mount_state`] is usually allowed to take: a living server answers in microseconds.
pub const LOOK_LIMIT_MS: u64 = 2_000;

/// What is at a mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountState {
    /// No mount.
    NotMounted,
    /// A mount of revfs whose server answers.
    Alive(MountEntry),
    /// A mount of revfs whose server is gone (ENOTCONN): it only waits to be unmounted.
    Dead(MountEntry),
    /// A mount of revfs whose server gave no answer in time.
    Stuck(MountEntry),
    /// A mount of revfs of another user, at which this one may not look.
    Denied(MountEntry),
    /// A mount of something else, or something else mounted over revfs.
    Foreign(MountEntry),
}

impl MountState {
    /// The mount, if there is one.
    pub fn entry(&self) -> Option<&MountEntry> {
        match self {
            MountState::NotMounted => None,
            MountState::Alive(entry)
            | MountState::Dead(entry)
            | MountState::Stuck(entry)
            | MountState::Denied(entry)
            | MountState::Foreign(entry) => Some(entry),
        }
    }
}

/// Why the state of a mount is not known.
#[derive(Debug, thiserror::Error)]
pub enum MountStateError {
    /// The mount table, or the parent of the mount point, cannot be read.
    #[error("cannot look up the mount at {}: {source}", mount_point.display())]
    Table {
        /// The path as given.
        mount_point: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The look itself failed for a reason of this machine.
    #[error("cannot look at the mount at {}: {source}", mount_point.display())]
    Look {
        /// The mount point.
        mount_point: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What is mounted at `mount_point` and whether its server answers within `limit` ([`LOOK_LIMIT_MS`] is a good
/// one). Asks the server itself: attributes that the kernel still remembers do not count.
///
/// # Errors
/// [`MountStateError`]; never because of the state of the server.
pub fn mount_state(mount_point: &Path, limit: Duration) -> Result<MountState, MountStateError> {
    let table = |source| MountStateError::Table { mount_point: mount_point.to_owned(), source };
    let path = absolute_mount_point(mount_point).map_err(table)?;
    let Some(entry) = find_mount(&path).map_err(table)? else {
        return Ok(MountState::NotMounted);
    };
    if !entry.is_revfs() {
        return Ok(MountState::Foreign(entry));
    }
    match look(&path, limit) {
        Ok(Look::Answered) => Ok(MountState::Alive(entry)),
        Ok(Look::Hung) => Ok(MountState::Stuck(entry)),
        Ok(Look::Failed(Errno::NOTCONN | Errno::CONNABORTED)) => Ok(MountState::Dead(entry)),
        Ok(Look::Failed(Errno::ACCESS | Errno::PERM)) => Ok(MountState::Denied(entry)),
        // The server answered, if only with an error; or the mount went away meanwhile.
        Ok(Look::Failed(errno)) => match find_mount(&path).map_err(table)? {
            Some(now) if now.dev == entry.dev => {
                log::debug!("{}: the server answers a look with: {errno}", path.display());
                Ok(MountState::Alive(now))
            }
            Some(now) if !now.is_revfs() => Ok(MountState::Foreign(now)),
            _ => Ok(MountState::NotMounted),
        },
        Err(source) => Err(MountStateError::Look { mount_point: path, source }),
    }
}

enum Look {
    Answered,
    Failed(Errno),
    Hung,
}

/// What the child ends with if it was killed or never ran: no error number of Linux is that high.
const LOOK_LOST: i32 = 255;

fn look(path: &Path, limit: Duration) -> io::Result<Look> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let (pid, child) = fork_look(&name)?;
    if !super::wait::readable_within(child.as_fd(), limit)? {
        // Enough if the server has not read the request yet. Else the child ends as the connection does.
        rustix::process::pidfd_send_signal(&child, Signal::KILL).ok();
        reap_later(pid, child);
        return Ok(Look::Hung);
    }
    let status = rustix::process::waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED)?;
    match status.and_then(|status| status.exit_status()).unwrap_or(LOOK_LOST) {
        0 => Ok(Look::Answered),
        LOOK_LOST => Err(io::Error::other("the child that looked was killed")),
        errno => Ok(Look::Failed(Errno::from_raw_os_error(errno))),
    }
}

/// Starts the child that asks for attributes of `name` and ends with the error number, 0 if there is none.
fn fork_look(name: &CString) -> io::Result<(Pid, OwnedFd)> {
    // SAFETY: between fork and _exit the child makes system calls only, on memory that was set up before: it
    // neither allocates nor takes a lock that another thread of the parent may have held at the fork.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            // A child that hangs must not hold on to locks and pipes of its parent.
            // SAFETY: no descriptor is used after this; the child ends without running any destructor.
            unsafe { nix::libc::syscall(nix::libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
            let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
            let code = match statx(CWD, name.as_c_str(), flags, StatxFlags::BASIC_STATS) {
                Ok(_) => 0,
                Err(errno) => errno.raw_os_error(),
            };
            // SAFETY: ends the child at once; no handlers or destructors of the parent's copies run.
            unsafe { nix::libc::_exit(code) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let pid = Pid::from_raw(child.as_raw()).ok_or_else(|| io::Error::other("fork gave no pid"))?;
            Ok((pid, rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
        }
    }
}

/// Leaves a hung child to a thread that only waits for it. Such a thread does not keep this process from ending.
fn reap_later(pid: Pid, child: OwnedFd) {
    let body = move || {
        rustix::process::waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED).ok();
    };
    if let Err(error) = crate::env::spawn("revfs-reap", body) {
        log::debug!("process {} stays a zombie until this one ends: {error}", pid.as_raw_nonzero());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_directory_is_not_mounted_and_proc_is_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Duration::from_millis(LOOK_LIMIT_MS);
        assert_eq!(mount_state(dir.path(), limit).unwrap(), MountState::NotMounted);
        assert_eq!(mount_state(&dir.path().join("absent"), limit).unwrap(), MountState::NotMounted);
        assert!(matches!(mount_state(Path::new("/proc"), limit).unwrap(), MountState::Foreign(_)));
        let lost = mount_state(&dir.path().join("no/such"), limit);
        assert!(matches!(lost, Err(MountStateError::Table { .. })));
    }

    #[test]
    fn the_child_reports_what_the_look_found() {
        let limit = Duration::from_secs(20);
        assert!(matches!(look(Path::new("/"), limit).unwrap(), Look::Answered));
        assert!(matches!(look(Path::new("/no/such"), limit).unwrap(), Look::Failed(Errno::NOENT)));
    }
}
