//! signals: those that ask revfs to stop, received by a thread that waits for them and by no handler.
//!
//! Invariant: [`Signals::install`] runs before any other thread is started; each thread inherits the mask, so no
//! signal can end the process halfway through a stop. Left out on purpose: SIGKILL, which nothing can catch (a
//! mount that it leaves behind is cleaned by the next command), and reloading on SIGHUP.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// Signals that ask for a stop.
const STOP_SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// Why a wait for signals ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// SIGTERM, from `revfs umount`, systemd or an operator.
    Terminate {
        /// How long the stop may take, if the sender said so with the signal; `revfs umount` does.
        within: Option<Duration>,
    },
    /// SIGINT, Ctrl-C.
    Interrupt,
    /// SIGHUP, the terminal is gone.
    Hangup,
    /// SIGQUIT, Ctrl-\.
    Quit,
    /// A [`Waker`] of this process.
    Woken,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StopReason::Terminate { .. } => "SIGTERM",
            StopReason::Interrupt => "SIGINT",
            StopReason::Hangup => "SIGHUP",
            StopReason::Quit => "SIGQUIT",
            StopReason::Woken => "own request",
        })
    }
}

/// The signals of this process that ask for a stop.
#[derive(Debug)]
pub struct Signals {
    signals: SignalFd,
    wake: Arc<OwnedFd>,
}

/// Ends a wait for signals from another thread.
#[derive(Debug, Clone)]
pub struct Waker {
    wake: Arc<OwnedFd>,
}

impl Waker {
    /// Lets [`Signals::wait`] return [`StopReason::Woken`], now or when it is called next.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then it is readable anyway.
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).ok();
    }
}

impl Signals {
    /// Blocks SIGTERM, SIGINT, SIGHUP and SIGQUIT for this thread and those that it starts from now on, and
    /// ignores SIGPIPE for the process. Programs started later inherit this.
    ///
    /// # Errors
    /// What `sigprocmask`, `signalfd` or `eventfd` report: out of descriptors.
    pub fn install() -> io::Result<Signals> {
        // SAFETY: no handler function is installed, so nothing can run in a signal context.
        unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
        let mask: SigSet = STOP_SIGNALS.into_iter().collect();
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Signals { signals, wake: Arc::new(wake) })
    }

    /// What ends [`Signals::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        Waker { wake: self.wake.clone() }
    }

    /// Waits for the next signal or wake-up, without a limit: that is what the main thread of a server does.
    ///
    /// # Errors
    /// What `poll` or `read` report.
    pub fn wait(&self) -> io::Result<StopReason> {
        loop {
            let mut fds =
                [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(self.wake.as_ref(), PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
                Ok(_) => {}
            }
            if let Some(reason) = self.take()? {
                return Ok(reason);
            }
        }
    }

    /// As [`Signals::wait`], for at most `limit`; `None` if nothing came.
    ///
    /// # Errors
    /// As [`Signals::wait`].
    pub fn wait_within(&self, limit: Duration) -> io::Result<Option<StopReason>> {
        // One descriptor for both: an epoll set turns readable with any of its members.
        use rustix::event::epoll;
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&set, &self.signals, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        epoll::add(&set, self.wake.as_ref(), epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
        if !super::wait::readable_within(set.as_fd(), limit)? {
            return Ok(None);
        }
        self.take()
    }

    fn take(&self) -> io::Result<Option<StopReason>> {
        if let Some(info) = self.signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|raw| Signal::try_from(raw).ok());
            return Ok(Some(match signal {
                Some(Signal::SIGINT) => StopReason::Interrupt,
                Some(Signal::SIGHUP) => StopReason::Hangup,
                Some(Signal::SIGQUIT) => StopReason::Quit,
                // The mask lets no other through.
                _ => StopReason::Terminate { within: limit_of(info.ssi_code, info.ssi_int) },
            }));
        }
        match rustix::io::read(self.wake.as_ref(), &mut [0u8; 8]) {
            Ok(_) => Ok(Some(StopReason::Woken)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The limit that came with a signal: its value is in milliseconds, see `Process::terminate_within`. Signals of
/// others carry no value.
fn limit_of(code: i32, value: i32) -> Option<Duration> {
    let ms = u64::try_from(value).ok().filter(|ms| code == nix::libc::SI_QUEUE && *ms > 0)?;
    Some(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_by_signal_and_by_waker() {
        // In a thread of its own, and with signals to that thread: the mask must not reach other tests.
        let body = || {
            let signals = Signals::install().unwrap();
            let terminate = StopReason::Terminate { within: None };
            let expected = [terminate, StopReason::Interrupt, StopReason::Hangup, StopReason::Quit];
            for (signal, reason) in STOP_SIGNALS.into_iter().zip(expected) {
                assert_eq!(signals.wait_within(Duration::ZERO).unwrap(), None);
                nix::sys::signal::raise(signal).unwrap();
                assert_eq!(signals.wait().unwrap(), reason);
            }
            let waker = signals.waker();
            let other = crate::env::spawn("waker", move || waker.wake()).unwrap();
            assert_eq!(signals.wait().unwrap(), StopReason::Woken);
            other.join().unwrap();
            assert_eq!(signals.wait_within(Duration::from_millis(10)).unwrap(), None);
        };
        crate::env::spawn("signals", body).unwrap().join().unwrap();
    }

    #[test]
    fn a_limit_comes_with_a_queued_signal_only() {
        assert_eq!(limit_of(nix::libc::SI_QUEUE, 1500), Some(Duration::from_millis(1500)));
        for (code, value) in [(nix::libc::SI_USER, 1500), (nix::libc::SI_QUEUE, 0), (nix::libc::SI_QUEUE, -1)]
        {
            assert_eq!(limit_of(code, value), None);
        }
    }
}
