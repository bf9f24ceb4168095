//! Waits that end: for a descriptor, and for work that may hang.
//!
//! Invariant: no function here returns later than its limit, plus what the scheduler adds. The limit is kept by
//! a timerfd or a channel, not by asking a clock, so an interrupted wait neither starts anew nor ends early.

use std::os::fd::BorrowedFd;
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// Why bounded work has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BoundedError {
    /// It did not end in time and goes on in a thread of its own.
    #[error("no answer within {} ms", limit.as_millis())]
    TimedOut {
        /// How long was waited.
        limit: Duration,
    },
    /// No helper thread could be started.
    #[error("no thread could be started: {source}; raise the limit of processes (ulimit -u)")]
    NoThread {
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs `work` in a helper thread and waits for its result for at most `limit`.
///
/// Work that hangs keeps its thread. So nothing may run here that asks a FUSE server for an answer: a thread that
/// waits for one cannot be killed, and would keep this process from ending (see `mount_state`).
///
/// # Errors
/// [`BoundedError`]: out of time, or out of threads.
pub(crate) fn bounded<T: Send + 'static>(
    name: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BoundedError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let body = move || {
        // The receiver is gone if time is up: nobody wants the result any more.
        sender.send(work()).ok();
    };
    crate::env::spawn(name, body).map_err(|source| BoundedError::NoThread { source })?;
    // A disconnected channel means that the work panicked; its thread has said so.
    receiver.recv_timeout(limit).map_err(|_| BoundedError::TimedOut { limit })
}

/// Waits until `fd` can be read, is closed at the other end or broken (`true`), or `limit` is over (`false`).
///
/// # Errors
/// What `poll` or `timerfd_create` reports.
pub(crate) fn readable_within(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool, Errno> {
    if limit.is_zero() {
        return is_readable(fd);
    }
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let spec = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(limit) };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::new(&timer, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
            Ok(_) => {}
        }
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    loop {
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(Duration::ZERO))) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(!fds[0].revents().is_empty()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn work_that_ends_gives_its_result_and_work_that_hangs_times_out() {
        assert_eq!(bounded("t", Duration::from_secs(10), || 7).unwrap(), 7);
        let (_keep, never) = mpsc::channel::<()>();
        let hung = bounded("t", Duration::from_millis(20), move || never.recv().is_ok());
        assert!(matches!(hung, Err(BoundedError::TimedOut { .. })));
    }

    #[test]
    fn a_descriptor_is_waited_for_until_the_limit() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(!readable_within(reader.as_fd(), Duration::ZERO).unwrap());
        assert!(!readable_within(reader.as_fd(), Duration::from_millis(20)).unwrap());
        drop(writer);
        assert!(readable_within(reader.as_fd(), Duration::from_secs(10)).unwrap());
        assert!(readable_within(reader.as_fd(), Duration::ZERO).unwrap());
    }
}
