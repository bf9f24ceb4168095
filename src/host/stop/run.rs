//! Does what the ladder says, and keeps the record.
//!
//! Invariant: each step runs bounded by its limit, in a helper thread if it could hang.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::{FinalState, StepOutcome, StopAction, StopLadder, StopLimits, StopParts, StopStep};
use crate::env::Clock;
use crate::host::fuse_connection::{FuseConnection, FuseConnectionError};
use crate::host::mountinfo::{MountDev, mounts};
use crate::host::process::{Process, ProcessError};
use crate::host::runtime::{MountLock, Removal, RuntimeDir, RuntimeError};
use crate::host::unmount::{UnmountError, UnmountMode, UnmountOutcome, unmount};
use crate::host::wait::{BoundedError, bounded};

/// The server, as a stop sees it.
pub trait StopTarget: Send + Sync {
    /// From now on each open and each new watch link is refused. Called once, before the first unmount.
    fn refuse_opens(&self);
}

/// What a stop removes at its end.
#[derive(Debug)]
pub enum RuntimeFiles {
    /// Nothing.
    None,
    /// The lock that this process holds.
    Own(MountLock),
    /// The file that another server left in the directory.
    LeftIn(Arc<RuntimeDir>),
}

/// All that a stop has to know.
pub struct StopPlan {
    /// Where it is mounted, absolute as in mountinfo.
    pub mount_point: PathBuf,
    /// The mounted filesystem; `None` if it is not mounted (any more).
    pub dev: Option<MountDev>,
    /// The server, if it runs in this process.
    pub target: Option<Arc<dyn StopTarget>>,
    /// The server, if it runs in another process that has to end too.
    pub server: Option<Process>,
    /// The server made the directory of the mount point.
    pub made_mount_point: bool,
    /// Lock and run-time files.
    pub runtime: RuntimeFiles,
    /// Time for it.
    pub limits: StopLimits,
}

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum StopProblem {
    /// The mount cannot be unmounted.
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    /// The connection cannot be aborted.
    #[error(transparent)]
    Connection(#[from] FuseConnectionError),
    /// The server's process cannot be ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The server's process did not end in time, or not even when killed.
    #[error("process {pid} did not end within {} ms", limit.as_millis())]
    ServerStays {
        /// Its number.
        pid: u32,
        /// How long was waited.
        limit: Duration,
    },
    /// The directory of the mount point cannot be removed.
    #[error("cannot remove the mount point {}: {source}", mount_point.display())]
    MountPoint {
        /// The directory.
        mount_point: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Lock or run-time files cannot be removed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The run-time file is still held by a server.
    #[error("the run-time file of {} is held by a process that has not ended", mount_point.display())]
    RuntimeHeld {
        /// The mount point.
        mount_point: PathBuf,
    },
    /// The step did not end in time.
    #[error("the step did not end within {} ms", limit.as_millis())]
    TimedOut {
        /// Its limit.
        limit: Duration,
    },
    /// The step could not be started.
    #[error("{source}")]
    NotStarted {
        /// Why.
        source: io::Error,
    },
}

impl From<BoundedError> for StopProblem {
    fn from(error: BoundedError) -> StopProblem {
        match error {
            BoundedError::TimedOut { limit } => StopProblem::TimedOut { limit },
            BoundedError::NoThread { source } => StopProblem::NotStarted { source },
        }
    }
}

/// A step that was taken.
#[derive(Debug)]
pub struct StepTaken {
    /// Which.
    pub step: StopStep,
    /// What came of it.
    pub outcome: StepOutcome,
    /// How often it was taken with that outcome.
    pub times: u32,
    /// When it first ended so, since the start of the stop.
    pub at: Duration,
    /// Why it failed.
    pub problem: Option<StopProblem>,
}

/// What a stop did.
#[derive(Debug)]
pub struct StopReport {
    /// Its steps, in order.
    pub steps: Vec<StepTaken>,
    /// How the mount ended.
    pub state: FinalState,
    /// How long it took.
    pub taken: Duration,
}

impl StopReport {
    /// Whether a step was taken, with whatever outcome.
    pub fn took(&self, step: StopStep) -> bool {
        self.steps.iter().any(|taken| taken.step == step)
    }

    /// Whether nothing is left: not mounted, no process, no directory, no file.
    pub fn is_clean(&self) -> bool {
        let end = [StopStep::EndServer, StopStep::RemoveMountPoint, StopStep::RemoveRuntimeFiles];
        let failed = |taken: &StepTaken| taken.outcome == StepOutcome::Failed && end.contains(&taken.step);
        self.state != FinalState::StillMounted && !self.steps.iter().any(failed)
    }

    pub(crate) fn record(&mut self, at: Duration, step: StopStep, result: StepResult) {
        let (outcome, problem) = match result {
            Ok(outcome) => (outcome, None),
            Err(problem) => (StepOutcome::Failed, Some(problem)),
        };
        if let Some(same) = self.steps.iter_mut().find(|old| old.step == step && old.outcome == outcome) {
            same.times += 1;
            return;
        }
        // Each step once: an operator reads the ladder in the log, not every try.
        match &problem {
            Some(problem) => log::warn!("stop: {step}: {problem}"),
            None => log::info!("stop: {step}: {outcome:?}"),
        }
        self.steps.push(StepTaken { step, outcome, times: 1, at, problem });
    }
}

/// What a step comes to.
pub(crate) type StepResult = Result<StepOutcome, StopProblem>;

/// Runs the ladder to its end, within `plan.limits.total`.
pub fn run_stop(plan: StopPlan, clock: &dyn Clock) -> StopReport {
    let report = StopReport { steps: Vec::new(), state: FinalState::StillMounted, taken: Duration::ZERO };
    continue_stop(plan, clock, clock.monotonic(), report)
}

/// As [`run_stop`], for a stop that began at `start` and has a record already.
pub(crate) fn continue_stop(
    mut plan: StopPlan,
    clock: &dyn Clock,
    start: Duration,
    mut report: StopReport,
) -> StopReport {
    let parts = StopParts {
        refuse_opens: plan.target.is_some(),
        end_server: plan.server.is_some(),
        remove_mount_point: plan.made_mount_point,
    };
    let mut ladder = StopLadder::new(plan.limits, parts, clock.monotonic());
    let mut outcome = StepOutcome::Done;
    loop {
        match ladder.next(clock.monotonic(), outcome) {
            StopAction::Do { step, limit } => {
                let result = take(&mut plan, step, limit);
                outcome = *result.as_ref().unwrap_or(&StepOutcome::Failed);
                report.record(clock.monotonic().saturating_sub(start), step, result);
            }
            StopAction::Finish(state) => {
                report.state = if is_mounted(&plan) { FinalState::StillMounted } else { state };
                report.taken = clock.monotonic().saturating_sub(start);
                log::info!("stop: {}: {:?}", plan.mount_point.display(), report.state);
                return report;
            }
        }
    }
}

/// What the mount table says in the end, whatever the steps reported.
fn is_mounted(plan: &StopPlan) -> bool {
    let Some(dev) = plan.dev else { return false };
    let Ok(all) = mounts() else { return false };
    all.iter().any(|entry| entry.dev == dev && entry.is_revfs() && entry.mount_point == plan.mount_point)
}

fn take(plan: &mut StopPlan, step: StopStep, limit: Duration) -> StepResult {
    match step {
        // Not the ladder's: `umount` takes it.
        StopStep::AskServer => Ok(StepOutcome::Done),
        StopStep::Wait => {
            crate::env::sleep(limit);
            Ok(StepOutcome::Done)
        }
        StopStep::RefuseOpens => {
            if let Some(target) = plan.target.clone() {
                bounded("revfs-refuse", limit, move || target.refuse_opens())?;
            }
            Ok(StepOutcome::Done)
        }
        StopStep::Unmount | StopStep::UnmountAborted => unmount_step(plan, UnmountMode::Plain, limit),
        StopStep::UnmountLazily => unmount_step(plan, UnmountMode::Lazy, limit),
        StopStep::Abort => abort(plan, limit),
        StopStep::EndServer => end_server(plan, limit),
        StopStep::RemoveMountPoint => remove_mount_point(plan, limit),
        StopStep::RemoveRuntimeFiles => remove_runtime_files(plan, limit),
    }
}

fn unmount_step(plan: &StopPlan, mode: UnmountMode, limit: Duration) -> StepResult {
    let Some(dev) = plan.dev else { return Ok(StepOutcome::NotMounted) };
    match unmount(&plan.mount_point, dev, mode, limit) {
        UnmountOutcome::Done => Ok(StepOutcome::Done),
        UnmountOutcome::Busy => Ok(StepOutcome::Busy),
        UnmountOutcome::NotMounted => Ok(StepOutcome::NotMounted),
        UnmountOutcome::Failed(error) => Err(error.into()),
    }
}

fn abort(plan: &StopPlan, limit: Duration) -> StepResult {
    // The kernel gives numbers of unmounted filesystems again: never abort by a number that is not ours.
    let Some(dev) = plan.dev.filter(|_| is_mounted(plan)) else { return Ok(StepOutcome::NotMounted) };
    bounded("revfs-abort", limit, move || FuseConnection::open(dev).and_then(|found| found.abort()))??;
    Ok(StepOutcome::Done)
}

fn end_server(plan: &StopPlan, limit: Duration) -> StepResult {
    let Some(server) = &plan.server else { return Ok(StepOutcome::Done) };
    // It has been asked before. Cut off from its mount, it may still end by itself.
    if server.wait_exit(limit / 2) {
        return Ok(StepOutcome::Done);
    }
    log::warn!("stop: process {} does not end: it gets SIGKILL", server.pid());
    match server.signal(Signal::KILL) {
        Ok(()) | Err(ProcessError::Gone { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    if server.wait_exit(limit / 2) {
        return Ok(StepOutcome::Done);
    }
    Err(StopProblem::ServerStays { pid: server.pid(), limit })
}

fn remove_mount_point(plan: &StopPlan, limit: Duration) -> StepResult {
    let path = plan.mount_point.clone();
    // Only an empty directory: what somebody put there since the unmount is theirs.
    match bounded("revfs-rmdir", limit, move || std::fs::remove_dir(&path))? {
        Ok(()) => Ok(StepOutcome::Done),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(StepOutcome::Done),
        Err(source) => Err(StopProblem::MountPoint { mount_point: plan.mount_point.clone(), source }),
    }
}

fn remove_runtime_files(plan: &mut StopPlan, limit: Duration) -> StepResult {
    match std::mem::replace(&mut plan.runtime, RuntimeFiles::None) {
        RuntimeFiles::None => Ok(StepOutcome::Done),
        RuntimeFiles::Own(lock) => {
            bounded("revfs-unlock", limit, move || lock.remove())??;
            Ok(StepOutcome::Done)
        }
        RuntimeFiles::LeftIn(dir) => {
            let path = plan.mount_point.clone();
            match bounded("revfs-unlock", limit, move || dir.remove_stale(&path))?? {
                Removal::Removed | Removal::Absent => Ok(StepOutcome::Done),
                Removal::Held => Err(StopProblem::RuntimeHeld { mount_point: plan.mount_point.clone() }),
            }
        }
    }
}
