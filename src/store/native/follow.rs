//! Noticing the commits of others: inotify on `commits/`, and a slow poll by the caller's time-out.
//!
//! Invariant: [`Follower::wait`] may end early for nothing, and never waits longer than told; so a lost event
//! costs a delay and no commit.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;

/// Waits for new records.
#[derive(Debug)]
pub struct Follower {
    notify: Option<OwnedFd>,
    wake: Option<OwnedFd>,
}

impl Follower {
    /// Watches a directory, if there is one and the kernel has a watch left; else only the time-out remains.
    pub fn new(commits: Option<PathBuf>) -> Follower {
        let notify = commits.and_then(|dir| {
            let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
            let fd = inotify::init(flags).ok()?;
            // A record appears by a hard link (IN_CREATE) or a rename (IN_MOVED_TO).
            let events = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
            match inotify::add_watch(&fd, &dir, events) {
                Ok(_) => Some(fd),
                Err(error) => {
                    log::warn!("no inotify on {} ({error}): commits are noticed by polling", dir.display());
                    None
                }
            }
        });
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).ok();
        Follower { notify, wake }
    }

    /// Waits until something happened in the directory, [`Follower::wake`] was called or the time is over.
    pub fn wait(&self, timeout: Duration) {
        let fds: Vec<&OwnedFd> = [&self.notify, &self.wake].into_iter().flatten().collect();
        let mut polled: Vec<PollFd> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)).collect();
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        if polled.is_empty() {
            crate::env::sleep(Duration::from_millis(50));
            return;
        }
        if poll(&mut polled, Some(&timeout)).is_err() {
            return; // interrupted: as good as an event
        }
        let mut scratch = [0; 4096];
        for fd in fds {
            // Drained until empty; what the events say does not matter, the log is looked at anyway.
            while rustix::io::read(fd, &mut scratch).is_ok_and(|count| count > 0) {}
        }
    }

    /// Ends a wait.
    pub fn wake(&self) {
        if let Some(fd) = &self.wake {
            // Fails only if the counter is full, and then the waiter wakes anyway.
            let _full_is_fine = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }
}
