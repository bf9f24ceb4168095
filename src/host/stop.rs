//! stop: the ladder down from a mounted filesystem to nothing, which always ends.
//!
//! ```text
//! ask the server (umount only) -> refuse new opens -> unmount -> busy: wait and unmount again until the grace is
//! over -> abort the FUSE connection -> unmount -> still busy: unmount lazily -> end the server (umount only) ->
//! remove the mount point if the server made it -> remove run-time files
//! ```
//!
//! [`StopLadder`] decides and does nothing: outcomes and the time go in, steps with limits come out.
//! [`run_stop`] does them. Invariant: the limits of all steps add up to at most the total, and the number of
//! steps is bounded even if the clock stands still. Left out for now: telling the watch links before the wait;
//! its place is marked in [`StopLadder::next`].

use std::time::Duration;

mod run;

pub(crate) use run::continue_stop;
pub use run::{RuntimeFiles, StepTaken, StopPlan, StopProblem, StopReport, StopTarget, run_stop};

/// Time that a stop may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopLimits {
    /// For everything.
    pub total: Duration,
    /// For those who use the mount to let go of it, counted from the start; at most 60 % of `total` is used.
    pub grace: Duration,
}

impl Default for StopLimits {
    fn default() -> StopLimits {
        StopLimits { total: Duration::from_secs(25), grace: Duration::from_secs(15) }
    }
}

impl StopLimits {
    /// Limits with the given total, and all the grace that goes with it.
    pub fn with_total(total: Duration) -> StopLimits {
        StopLimits { total, grace: total.saturating_mul(GRACE_PERMILLE_MAX) / 1000 }
    }

    /// These limits, cut down to a total of at most `total`.
    pub fn within(self, total: Duration) -> StopLimits {
        let cut = StopLimits::with_total(total.min(self.total));
        StopLimits { grace: cut.grace.min(self.grace), ..cut }
    }

    /// The same without a wait for users.
    pub fn without_grace(self) -> StopLimits {
        StopLimits { grace: Duration::ZERO, ..self }
    }

    fn share(&self, permille: u32) -> Duration {
        self.total.saturating_mul(permille) / 1000
    }
}

// Shares of the total. The last unmount of the grace may begin just before its end, hence
// 600 + 100 + 50 + 100 + 50 + 50 + 25 + 25 = 1000.
const GRACE_PERMILLE_MAX: u32 = 600;
const REFUSE_PERMILLE: u32 = 50;
const UNMOUNT_PERMILLE: u32 = 100;
const ABORT_PERMILLE: u32 = 50;
const LAZY_PERMILLE: u32 = 50;
const END_SERVER_PERMILLE: u32 = 50;
const MOUNT_POINT_PERMILLE: u32 = 25;
const RUNTIME_PERMILLE: u32 = 25;
/// Of all steps after the mount is dealt with.
const LAST_PERMILLE: u32 = END_SERVER_PERMILLE + MOUNT_POINT_PERMILLE + RUNTIME_PERMILLE;

/// First wait between two unmounts, in milliseconds; each next one is twice as long.
const BACK_OFF_FIRST_MS: u64 = 10;
/// Longest wait between two unmounts, in milliseconds.
const BACK_OFF_MAX_MS: u64 = 500;

/// A step of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopStep {
    /// Ask the server's process to stop, and wait for it. Taken by `umount` before the ladder.
    AskServer,
    /// Let the server refuse new opens.
    RefuseOpens,
    /// Unmount if nobody uses it.
    Unmount,
    /// Wait for users before the next unmount.
    Wait,
    /// Abort the FUSE connection.
    Abort,
    /// Unmount after the abort, if nobody uses it.
    UnmountAborted,
    /// Unmount lazily.
    UnmountLazily,
    /// Wait for the server's process, and kill it if it stays.
    EndServer,
    /// Remove the directory of the mount point.
    RemoveMountPoint,
    /// Remove lock and run-time files.
    RemoveRuntimeFiles,
}

impl std::fmt::Display for StopStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StopStep::AskServer => "ask the server to stop",
            StopStep::RefuseOpens => "refuse new opens",
            StopStep::Unmount => "unmount",
            StopStep::Wait => "wait for users of the mount",
            StopStep::Abort => "abort the FUSE connection",
            StopStep::UnmountAborted => "unmount after the abort",
            StopStep::UnmountLazily => "unmount lazily",
            StopStep::EndServer => "end the server",
            StopStep::RemoveMountPoint => "remove the mount point",
            StopStep::RemoveRuntimeFiles => "remove run-time files",
        })
    }
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// It is done.
    Done,
    /// An unmount found users.
    Busy,
    /// An unmount found no mount.
    NotMounted,
    /// It could not be done.
    Failed,
}

/// How the mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalState {
    /// Unmounted, with nobody cut off; or it was not mounted.
    Unmounted,
    /// Unmounted after the connection was aborted: users got errors.
    Aborted,
    /// Out of the tree, while somebody still holds an open file of it that gives errors.
    Detached,
    /// Still mounted: the report says why.
    StillMounted,
}

/// The next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopAction {
    /// Do the step within the limit, then report its outcome. For [`StopStep::Wait`] the limit is how long to wait.
    Do {
        /// The step.
        step: StopStep,
        /// Its limit.
        limit: Duration,
    },
    /// All is done.
    Finish(FinalState),
}

/// Which optional steps there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StopParts {
    /// The server runs in this process and can refuse opens.
    pub refuse_opens: bool,
    /// The server runs in another process that has to end.
    pub end_server: bool,
    /// The server made the directory of the mount point.
    pub remove_mount_point: bool,
}

/// Decides what a stop does next. Takes no lock, does no I/O and reads no clock.
#[derive(Debug)]
pub struct StopLadder {
    limits: StopLimits,
    parts: StopParts,
    start: Duration,
    /// The step whose outcome is awaited; `None` before the first.
    current: Option<StopStep>,
    back_off: Duration,
    /// Sum of the waits handed out: bounds the steps even if the clock stands still.
    waited: Duration,
    aborted: bool,
    state: FinalState,
}

impl StopLadder {
    /// A ladder that starts at monotonic time `now`.
    pub fn new(limits: StopLimits, parts: StopParts, now: Duration) -> StopLadder {
        let grace = limits.grace.min(limits.share(GRACE_PERMILLE_MAX));
        StopLadder {
            limits: StopLimits { grace, ..limits },
            parts,
            start: now,
            current: None,
            back_off: Duration::from_millis(BACK_OFF_FIRST_MS),
            waited: Duration::ZERO,
            aborted: false,
            state: FinalState::StillMounted,
        }
    }

    /// Takes the outcome of the step handed out last (any, at the first call) and says what is next.
    pub fn next(&mut self, now: Duration, outcome: StepOutcome) -> StopAction {
        let next = match self.current {
            None if self.parts.refuse_opens => Some(StopStep::RefuseOpens),
            None | Some(StopStep::AskServer | StopStep::RefuseOpens | StopStep::Wait) => {
                Some(StopStep::Unmount)
            }
            Some(StopStep::Unmount) => match outcome {
                StepOutcome::Done | StepOutcome::NotMounted => self.off(FinalState::Unmounted),
                // Here, before the first wait, the watch links will be told.
                StepOutcome::Busy if self.wait_before_next(now) > Duration::ZERO => Some(StopStep::Wait),
                StepOutcome::Busy | StepOutcome::Failed => Some(StopStep::Abort),
            },
            Some(StopStep::Abort) => {
                self.aborted = outcome == StepOutcome::Done;
                Some(StopStep::UnmountAborted)
            }
            Some(StopStep::UnmountAborted) => match outcome {
                StepOutcome::Done | StepOutcome::NotMounted => self.off(self.after_abort()),
                StepOutcome::Busy | StepOutcome::Failed => Some(StopStep::UnmountLazily),
            },
            Some(StopStep::UnmountLazily) => match outcome {
                StepOutcome::Done => self.off(FinalState::Detached),
                StepOutcome::NotMounted => self.off(self.after_abort()),
                StepOutcome::Busy | StepOutcome::Failed => self.off(FinalState::StillMounted),
            },
            Some(StopStep::EndServer) => self.after_server(),
            Some(StopStep::RemoveMountPoint) => Some(StopStep::RemoveRuntimeFiles),
            Some(StopStep::RemoveRuntimeFiles) => None,
        };
        let Some(step) = next else { return StopAction::Finish(self.state) };
        self.current = Some(step);
        StopAction::Do { step, limit: self.limit_of(step, now) }
    }

    /// The mount is dealt with, one way or another: on to what remains of the server.
    fn off(&mut self, state: FinalState) -> Option<StopStep> {
        self.state = state;
        if self.parts.end_server { Some(StopStep::EndServer) } else { self.after_server() }
    }

    fn after_server(&self) -> Option<StopStep> {
        // The directory below a mount that is still there cannot be removed, and should not be tried.
        if self.parts.remove_mount_point && self.state != FinalState::StillMounted {
            return Some(StopStep::RemoveMountPoint);
        }
        Some(StopStep::RemoveRuntimeFiles)
    }

    fn after_abort(&self) -> FinalState {
        if self.aborted { FinalState::Aborted } else { FinalState::Unmounted }
    }

    /// How long to wait before the next unmount; zero if the grace is over.
    fn wait_before_next(&self, now: Duration) -> Duration {
        let elapsed = now.saturating_sub(self.start).max(self.waited);
        self.back_off.min(self.limits.grace.saturating_sub(elapsed))
    }

    fn limit_of(&mut self, step: StopStep, now: Duration) -> Duration {
        let left = self.limits.total.saturating_sub(now.saturating_sub(self.start));
        match step {
            StopStep::Wait => {
                let wait = self.wait_before_next(now);
                self.waited = self.waited.saturating_add(wait);
                self.back_off = self.back_off.saturating_mul(2).min(Duration::from_millis(BACK_OFF_MAX_MS));
                wait
            }
            // A large process takes a while to end: it gets what the steps before it left over.
            StopStep::EndServer => {
                let kept = self.limits.share(MOUNT_POINT_PERMILLE + RUNTIME_PERMILLE);
                left.saturating_sub(kept).max(self.limits.share(END_SERVER_PERMILLE))
            }
            StopStep::AskServer | StopStep::RefuseOpens => self.limits.share(REFUSE_PERMILLE),
            StopStep::Unmount => self.limits.share(UNMOUNT_PERMILLE),
            // The last steps get what is left as well: a share of a short total is too little on a busy machine.
            StopStep::Abort => {
                let kept = UNMOUNT_PERMILLE + LAZY_PERMILLE + LAST_PERMILLE;
                left.saturating_sub(self.limits.share(kept)).max(self.limits.share(ABORT_PERMILLE))
            }
            StopStep::UnmountAborted => left
                .saturating_sub(self.limits.share(LAZY_PERMILLE + LAST_PERMILLE))
                .max(self.limits.share(UNMOUNT_PERMILLE)),
            StopStep::UnmountLazily => {
                left.saturating_sub(self.limits.share(LAST_PERMILLE)).max(self.limits.share(LAZY_PERMILLE))
            }
            StopStep::RemoveMountPoint => left
                .saturating_sub(self.limits.share(RUNTIME_PERMILLE))
                .max(self.limits.share(MOUNT_POINT_PERMILLE)),
            StopStep::RemoveRuntimeFiles => left.max(self.limits.share(RUNTIME_PERMILLE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: StopParts = StopParts { refuse_opens: true, end_server: true, remove_mount_point: true };

    /// Runs a ladder; `answer` gives the outcome and the time taken, of the limit.
    fn walk(
        limits: StopLimits,
        parts: StopParts,
        mut answer: impl FnMut(StopStep, Duration) -> (StepOutcome, Duration),
    ) -> (Vec<StopStep>, FinalState, Duration) {
        let start = Duration::from_secs(1_000);
        let mut now = start;
        let mut ladder = StopLadder::new(limits, parts, now);
        let (mut steps, mut outcome) = (Vec::new(), StepOutcome::Done);
        loop {
            match ladder.next(now, outcome) {
                StopAction::Finish(state) => return (steps, state, now - start),
                StopAction::Do { step, limit } => {
                    let taken;
                    (outcome, taken) = answer(step, limit);
                    now += taken;
                    steps.push(step);
                    assert!(steps.len() < 10_000, "it never ends");
                }
            }
        }
    }

    #[test]
    fn a_mount_that_nobody_uses_goes_without_an_abort() {
        let (steps, state, _) = walk(StopLimits::default(), ALL, |_, _| (StepOutcome::Done, Duration::ZERO));
        let expected = [
            StopStep::RefuseOpens,
            StopStep::Unmount,
            StopStep::EndServer,
            StopStep::RemoveMountPoint,
            StopStep::RemoveRuntimeFiles,
        ];
        assert_eq!((steps.as_slice(), state), (expected.as_slice(), FinalState::Unmounted));
    }

    #[test]
    fn a_busy_mount_is_retried_through_the_grace_then_aborted_then_detached() {
        let (steps, state, taken) =
            walk(StopLimits::default(), StopParts::default(), |step, limit| match step {
                StopStep::Unmount | StopStep::UnmountAborted => (StepOutcome::Busy, Duration::ZERO),
                StopStep::Wait => (StepOutcome::Done, limit),
                _ => (StepOutcome::Done, Duration::ZERO),
            });
        let tail = [
            StopStep::Unmount,
            StopStep::Abort,
            StopStep::UnmountAborted,
            StopStep::UnmountLazily,
            StopStep::RemoveRuntimeFiles,
        ];
        assert!(steps.ends_with(&tail), "{steps:?}");
        assert_eq!((state, taken), (FinalState::Detached, Duration::from_secs(15)));
        let waits = steps.iter().filter(|step| **step == StopStep::Wait).count();
        assert!((20..50).contains(&waits), "{waits}");
    }

    #[test]
    fn users_that_let_go_in_time_are_not_cut_off() {
        let mut tries = 0;
        let (steps, state, _) = walk(StopLimits::default(), ALL, |step, limit| match step {
            StopStep::Unmount => {
                tries += 1;
                (if tries > 5 { StepOutcome::Done } else { StepOutcome::Busy }, Duration::ZERO)
            }
            _ => (StepOutcome::Done, limit),
        });
        assert!(!steps.contains(&StopStep::Abort));
        assert_eq!(state, FinalState::Unmounted);
    }

    #[test]
    fn what_cuts_users_off_has_the_time_that_is_left() {
        let mut limits = Vec::new();
        let total = Duration::from_secs(10);
        walk(StopLimits::with_total(total).without_grace(), ALL, |step, limit| {
            limits.push((step, limit.as_millis()));
            (StepOutcome::Failed, if step == StopStep::RefuseOpens { limit } else { Duration::ZERO })
        });
        // Of 9.5 s: what the steps after it are sure of is kept.
        let expected =
            [(StopStep::Abort, 7_000), (StopStep::UnmountAborted, 8_000), (StopStep::UnmountLazily, 8_500)];
        assert_eq!(limits[2..5], expected);
    }

    #[test]
    fn a_mount_that_stays_keeps_its_directory() {
        let (steps, state, _) =
            walk(StopLimits::default(), ALL, |_, _| (StepOutcome::Failed, Duration::ZERO));
        assert!(!steps.contains(&StopStep::RemoveMountPoint) && !steps.contains(&StopStep::Wait));
        assert!(steps.contains(&StopStep::EndServer) && steps.contains(&StopStep::RemoveRuntimeFiles));
        assert_eq!(state, FinalState::StillMounted);
    }

    #[test]
    fn limits_are_cut_down_and_never_extended() {
        let limits = StopLimits::default();
        assert_eq!(limits.within(Duration::from_secs(100)), limits);
        let (total, grace) = (Duration::from_secs(5), Duration::from_secs(3));
        assert_eq!(limits.within(total), StopLimits { total, grace });
        assert_eq!(limits.without_grace().within(total).grace, Duration::ZERO);
    }

    #[test]
    fn any_course_ends_within_the_total() {
        let outcomes = [StepOutcome::Done, StepOutcome::Busy, StepOutcome::NotMounted, StepOutcome::Failed];
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for round in 0..5_000 {
            let parts = StopParts {
                refuse_opens: random(2) == 0,
                end_server: random(2) == 0,
                remove_mount_point: random(2) == 0,
            };
            let limits = StopLimits {
                total: Duration::from_millis(random(30_000)),
                grace: Duration::from_millis(random(60_000)),
            };
            let busy = random(2) == 0;
            let (_, _, taken) = walk(limits, parts, |_, limit| {
                let outcome = if busy { StepOutcome::Busy } else { outcomes[random(4) as usize] };
                (outcome, if random(2) == 0 { limit } else { limit * random(100) as u32 / 100 })
            });
            // A course in which every step uses up its limit still fits.
            assert!(taken <= limits.total, "round {round}: {taken:?} of {limits:?}");
        }
    }

    #[test]
    fn a_clock_that_stands_still_does_not_keep_it_from_ending() {
        let (_, state, _) = walk(StopLimits::default(), ALL, |_, _| (StepOutcome::Busy, Duration::ZERO));
        assert_eq!(state, FinalState::StillMounted);
    }
}
