//! umount: takes a mount down from outside: asks its server, and does without it when it has to.
//!
//! Invariant: a mount that is not of revfs is never touched, and no process gets a signal unless the run-time
//! file names it with the start time that it has. The server has the same limits as this process, a little less of
//! them, so that it ends its mount and itself in order before this process does it by force. Left out on purpose:
//! bind mounts of the tree elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::mount_state::{LOOK_LIMIT_MS, MountState, MountStateError, mount_state};
use super::mountinfo::{absolute_mount_point, find_mount};
use super::process::{Process, ProcessError};
use super::runtime::{RuntimeDir, RuntimeError, RuntimeInfo};
use super::stop::{
    FinalState, RuntimeFiles, StepOutcome, StopLimits, StopPlan, StopProblem, StopReport, StopStep,
    continue_stop,
};
use super::users::{MountUser, users_of};
use super::wait::bounded;
use crate::env::Clock;

/// What a server gets of the total, in order to end by itself. Of the 30 s of `revfs umount` that is all of its own
/// default.
const SERVER_SHARE: (u32, u32) = (5, 6);
/// A mount that is still there so long after its server was asked is waited for, even if it is not known for whom.
const BUSY_AFTER: Duration = Duration::from_secs(1);
/// How long it may take to find out who uses a mount, at most; a short total gives a tenth of it.
const USERS_LIMIT: Duration = Duration::from_secs(1);
/// How long a server may take to end once its mount is dead.
const ENDING_LIMIT: Duration = Duration::from_secs(2);

/// Why there is nothing that could be unmounted.
#[derive(Debug, thiserror::Error)]
pub enum UmountError {
    /// No mount, and no trace of a server.
    #[error("{} is not mounted; `revfs status` lists the mounts", mount_point.display())]
    NotMounted {
        /// The path.
        mount_point: PathBuf,
    },
    /// Another filesystem.
    #[error("{} is a mount of type {fs_type}, not of revfs; use: umount {}", mount_point.display(),
            mount_point.display())]
    Foreign {
        /// The path.
        mount_point: PathBuf,
        /// Its type.
        fs_type: String,
    },
    /// The mount cannot be looked up.
    #[error(transparent)]
    State(#[from] MountStateError),
    /// The run-time directory cannot be used.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// That a mount is in use, or seems to be, told before the wait for its users begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// Who uses it, as far as this user may know. If nobody, it is only known that the mount stays.
    pub users: Vec<MountUser>,
    /// How long they have to let go of it.
    pub grace: Duration,
}

/// Unmounts `mount_point` within `limits.total`: its server is asked by SIGTERM and has five sixths of that; then,
/// or if there is no server to ask, this process takes the steps of the ladder itself. A dead mount is cleaned. If
/// the mount is in use, `in_use` is called once, before the wait.
///
/// # Errors
/// [`UmountError`] if nothing was done; else see the report.
pub fn umount(
    dir: &Arc<RuntimeDir>,
    mount_point: &Path,
    limits: StopLimits,
    clock: &dyn Clock,
    in_use: &mut dyn FnMut(&InUse),
) -> Result<StopReport, UmountError> {
    let start = clock.monotonic();
    let found = Found::at(dir, mount_point)?;
    if found.plan_is_empty() {
        return Err(UmountError::NotMounted { mount_point: found.path });
    }
    let mut report = StopReport { steps: Vec::new(), state: FinalState::StillMounted, taken: Duration::ZERO };
    let mut ladder_limits = limits;
    if let Some(server) = &found.server {
        let result = ask(server, &found, (start, limits.total), clock, in_use);
        // A server that may not be asked has had no grace yet.
        if !matches!(result, Err(StopProblem::Process(_))) {
            ladder_limits = ladder_limits.without_grace();
        }
        report.record(clock.monotonic().saturating_sub(start), StopStep::AskServer, result);
    } else if is_dead(&found.path)? {
        ladder_limits = ladder_limits.without_grace();
    } else if let users @ [_, ..] = &*found.users(limits.total) {
        in_use(&InUse { users: users.to_vec(), grace: ladder_limits.grace });
    }
    ladder_limits.total = limits.total.saturating_sub(clock.monotonic().saturating_sub(start));
    Ok(continue_stop(found.into_plan(dir, ladder_limits), clock, start, report))
}

/// Cleans `mount_point` if its server is gone: unmounts it if dead, removes run-time files and a directory that
/// the server made. `None` if there is nothing to clean, or a server lives. For `mount` and `status`.
///
/// # Errors
/// [`UmountError`], but a foreign mount or none is no error here.
pub fn clean_dead(
    dir: &Arc<RuntimeDir>,
    mount_point: &Path,
    limits: StopLimits,
    clock: &dyn Clock,
) -> Result<Option<StopReport>, UmountError> {
    let mut found = match Found::at(dir, mount_point) {
        Ok(found) => found,
        Err(UmountError::Foreign { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    if found.plan_is_empty() || (found.dev.is_some() && !is_dead(&found.path)?) {
        return Ok(None);
    }
    if let Some(server) = found.server.take() {
        // A server whose mount is dead, or whose lock is free, is about to end: killed, its memory takes the kernel a
        // while. One that starts, or stops in order, holds its lock.
        let ending = found.dev.is_some() || !dir.is_held(&found.path)?;
        if !ending || !server.wait_exit(ENDING_LIMIT) {
            return Ok(None);
        }
    }
    log::info!("{}: its server is gone, cleaning up", found.path.display());
    let report = StopReport { steps: Vec::new(), state: FinalState::StillMounted, taken: Duration::ZERO };
    let start = clock.monotonic();
    let plan = found.into_plan(dir, limits.without_grace());
    Ok(Some(continue_stop(plan, clock, start, report)))
}

fn is_dead(path: &Path) -> Result<bool, UmountError> {
    let state = mount_state(path, Duration::from_millis(LOOK_LIMIT_MS))?;
    Ok(matches!(state, MountState::Dead(_)))
}

/// What there is at a mount point.
struct Found {
    path: PathBuf,
    dev: Option<super::mountinfo::MountDev>,
    info: Option<RuntimeInfo>,
    server: Option<Process>,
}

impl Found {
    fn at(dir: &RuntimeDir, mount_point: &Path) -> Result<Found, UmountError> {
        let table = |source| MountStateError::Table { mount_point: mount_point.to_owned(), source };
        let path = absolute_mount_point(mount_point).map_err(table)?;
        let entry = find_mount(&path).map_err(table)?;
        if let Some(other) = entry.as_ref().filter(|entry| !entry.is_revfs()) {
            return Err(UmountError::Foreign { mount_point: path, fs_type: other.fs_type.clone() });
        }
        let info = dir.read_info(&path)?;
        let server = info.as_ref().and_then(|info| {
            let opened = Process::open_started_at(info.pid, info.pid_start);
            opened.map_err(|error| log::debug!("{}: {error}", path.display())).ok()
        });
        Ok(Found { path, dev: entry.map(|entry| entry.dev), info, server })
    }

    /// Who uses the mount, in a stop that has `total`. Its own server does not count.
    fn users(&self, total: Duration) -> Vec<MountUser> {
        let own = self.info.as_ref().map(|info| info.pid);
        let Some(dev) = self.dev else { return Vec::new() };
        let path = self.path.clone();
        // A process that hangs in a fault may keep its own list of mappings locked.
        let mut users = bounded("revfs-users", USERS_LIMIT.min(total / 10), move || users_of(&path, dev))
            .unwrap_or_else(|error| {
                log::warn!("who uses {} is not known: {error}", self.path.display());
                Vec::new()
            });
        users.retain(|user| Some(user.pid) != own);
        users
    }

    fn is_still_mounted(&self) -> bool {
        let now = find_mount(&self.path);
        now.is_ok_and(|entry| entry.is_some_and(|entry| Some(entry.dev) == self.dev))
    }

    fn plan_is_empty(&self) -> bool {
        self.dev.is_none() && self.info.is_none()
    }

    fn into_plan(self, dir: &Arc<RuntimeDir>, limits: StopLimits) -> StopPlan {
        StopPlan {
            made_mount_point: self.info.is_some_and(|info| info.made_mount_point),
            mount_point: self.path,
            dev: self.dev,
            target: None,
            server: self.server,
            runtime: RuntimeFiles::LeftIn(dir.clone()),
            limits,
        }
    }
}

/// Asks a server to stop within its share of `total`, which began at `start`, and waits for its end.
fn ask(
    server: &Process,
    found: &Found,
    (start, total): (Duration, Duration),
    clock: &dyn Clock,
    in_use: &mut dyn FnMut(&InUse),
) -> Result<StepOutcome, StopProblem> {
    let limit = total.saturating_mul(SERVER_SHARE.0) / SERVER_SHARE.1;
    let end = start.saturating_add(limit);
    // Whatever takes long here, as a look at who uses the mount may, the steps after it keep their time.
    let left = || end.saturating_sub(clock.monotonic());
    let mut users = found.users(total);
    let asked_for = left();
    let grace = StopLimits::default().within(asked_for).grace;
    match server.terminate_within(asked_for) {
        Ok(()) => {}
        Err(ProcessError::Gone { .. }) => return Ok(StepOutcome::Done),
        Err(error) => return Err(error.into()),
    }
    if users.is_empty() {
        // Processes of others, at which this user may not look, keep the server waiting as well.
        if server.wait_exit(BUSY_AFTER.min(left())) {
            return Ok(StepOutcome::Done);
        }
        users = found.users(total);
    }
    // A server whose mount is gone is only closing its store.
    if grace > asked_for.saturating_sub(left()) && found.is_still_mounted() {
        in_use(&InUse { users, grace });
    }
    if server.wait_exit(left()) {
        return Ok(StepOutcome::Done);
    }
    Err(StopProblem::ServerStays { pid: server.pid(), limit })
}
