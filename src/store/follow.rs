//! Noticing the commits of others: inotify on files and directories, and a slow poll by the caller's time-out.
//!
//! Invariant: [`Follower::wait`] may end early for nothing, and never waits longer than told; so a lost event
//! costs a delay and no commit.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;
pub use rustix::fs::inotify::WatchFlags;

/// What is watched, for [`Follower::unwatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched(i32);

/// Waits for new records.
#[derive(Debug)]
pub struct Follower {
    notify: Option<OwnedFd>,
    wake: Option<OwnedFd>,
}

impl Follower {
    /// One that watches nothing yet: only the time-out and [`Follower::wake`] end a wait.
    pub fn new() -> Follower {
        let notify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC);
        let notify =
            notify.map_err(|error| log::warn!("no inotify ({error}): commits are noticed by polling")).ok();
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).ok();
        Follower { notify, wake }
    }

    /// Watches a file or a directory for `events`, if the kernel has a watch left; else only the time-out remains.
    pub fn watch(&self, path: &Path, events: WatchFlags) -> Option<Watched> {
        match inotify::add_watch(self.notify.as_ref()?, path, events) {
            Ok(watched) => Some(Watched(watched)),
            Err(error) => {
                log::warn!("no inotify on {} ({error}): commits are noticed by polling", path.display());
                None
            }
        }
    }

    /// Ends a watch. One of a file that is gone has ended by itself.
    pub fn unwatch(&self, watched: Watched) {
        if let Some(notify) = &self.notify {
            let _gone_is_fine = inotify::remove_watch(notify, watched.0);
        }
    }

    /// Waits until something happened to what is watched, [`Follower::wake`] was called or the time is over.
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
            // Drained until empty; what the events say does not matter, all is looked at anyway.
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

impl Default for Follower {
    fn default() -> Follower {
        Follower::new()
    }
}
