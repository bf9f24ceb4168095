//! process: a handle on one process that never turns into another one.
//!
//! Invariant: a [`Process`] holds a pidfd, so signals and waits reach the process that it was opened for or
//! nobody, also after its pid was given again. The start time tells the same across restarts of revfs, on disk.
//! Left out on purpose: processes of other pid namespaces (their pid reads as 0).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::wait::readable_within;

/// Why a process cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no such process, or it has ended.
    #[error("process {pid} is gone")]
    Gone {
        /// Its number.
        pid: u32,
    },
    /// The number now belongs to a process that started at another time.
    #[error("process {pid} is another one: it started at {found} clock ticks after boot, not at {wanted}")]
    Reused {
        /// The number.
        pid: u32,
        /// Start time of the process that was meant, clock ticks since boot.
        wanted: u64,
        /// Start time of the one found, clock ticks since boot.
        found: u64,
    },
    /// The system refused.
    #[error("cannot {doing} process {pid}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Its number.
        pid: u32,
        /// What the system said; `PermissionDenied` for another user's process: become that user or root.
        source: io::Error,
    },
}

/// One process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start: u64,
    fd: OwnedFd,
}

impl Process {
    /// The process with number `pid`, which must be a process and not one of its threads.
    ///
    /// # Errors
    /// [`ProcessError::Gone`] or [`ProcessError::System`].
    pub fn open(pid: u32) -> Result<Process, ProcessError> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ProcessError::Gone { pid })?;
        let fd =
            pidfd_open(number, PidfdFlags::empty()).map_err(|errno| system("open", pid, errno.into()))?;
        let start = start_time(pid)?;
        let process = Process { pid, start, fd };
        // Alive after the start time was read: so it was this process's own.
        if process.is_alive() { Ok(process) } else { Err(ProcessError::Gone { pid }) }
    }

    /// The process with number `pid` if it started at `start` (clock ticks since boot, as [`start_time`] tells).
    ///
    /// # Errors
    /// As [`Process::open`], and [`ProcessError::Reused`].
    pub fn open_started_at(pid: u32, start: u64) -> Result<Process, ProcessError> {
        let process = Process::open(pid)?;
        if process.start != start {
            return Err(ProcessError::Reused { pid, wanted: start, found: process.start });
        }
        Ok(process)
    }

    /// The process to which thread `tid` belongs: a FUSE request names the thread.
    ///
    /// # Errors
    /// As [`Process::open`].
    pub fn of_thread(tid: u32) -> Result<Process, ProcessError> {
        let process = Process::open(process_of_thread(tid)?)?;
        // The number may have been given again while the process was opened.
        if process_of_thread(tid)? == process.pid {
            Ok(process)
        } else {
            Err(ProcessError::Gone { pid: tid })
        }
    }

    /// This process.
    ///
    /// # Errors
    /// As [`Process::open`], when `/proc` is not mounted.
    pub fn current() -> Result<Process, ProcessError> {
        Process::open(std::process::id())
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in clock ticks since boot.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Whether it still runs. One that ended and was not waited for yet does not.
    pub fn is_alive(&self) -> bool {
        !self.wait_exit(Duration::ZERO)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`ProcessError::Gone`], or [`ProcessError::System`] with `PermissionDenied`.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        pidfd_send_signal(&self.fd, signal).map_err(|errno| system("signal", self.pid, errno.into()))
    }

    /// Whether this process may signal it.
    ///
    /// # Errors
    /// What the system says to a signal that does nothing: `PERM` for another user's process.
    pub fn may_signal(&self) -> Result<(), Errno> {
        // SAFETY: signal 0 is checked and not sent; without an info pointer nothing is read or written.
        let answer = unsafe {
            let (call, none) = (nix::libc::SYS_pidfd_send_signal, std::ptr::null::<nix::libc::siginfo_t>());
            nix::libc::syscall(call, self.fd.as_raw_fd(), 0, none, 0u32)
        };
        match answer {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
        }
    }

    /// Sends SIGTERM, and with it how long the stop may take (whole milliseconds, at least one).
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn terminate_within(&self, limit: Duration) -> Result<(), ProcessError> {
        let ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1);
        match send_with_value(self.fd.as_fd(), Signal::TERM, ms) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(ProcessError::Gone { pid: self.pid }),
            // Some sandboxes refuse values; a plain SIGTERM stops it too, in its own time.
            Err(_) => self.signal(Signal::TERM),
        }
    }

    /// Waits for its end, for at most `limit`; true if it has ended.
    pub fn wait_exit(&self, limit: Duration) -> bool {
        readable_within(self.fd.as_fd(), limit).unwrap_or_else(|errno| {
            log::warn!("cannot wait for process {}: {errno}", self.pid);
            false
        })
    }
}

impl AsFd for Process {
    /// The pidfd: it turns readable as the process ends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the kernel reads of a queued signal: the start of its `siginfo_t`, padded to all of it.
#[repr(C)]
struct QueuedSignal {
    number: i32,
    errno: i32,
    code: i32,
    // The kernel puts it where pointers are aligned.
    queued: Queued,
    rest: [usize; 16],
}

#[repr(C)]
struct Queued {
    pid: i32,
    uid: u32,
    value: QueuedValue,
}

#[repr(C)]
union QueuedValue {
    number: i32,
    pointer: usize,
}

const _: () = assert!(size_of::<QueuedSignal>() >= size_of::<nix::libc::siginfo_t>());

/// Sends a signal with a number, as sigqueue(3) does, but to the process of a pidfd.
fn send_with_value(pidfd: BorrowedFd<'_>, signal: Signal, number: i32) -> Result<(), Errno> {
    let mut value = QueuedValue { pointer: 0 };
    value.number = number;
    let queued = Queued {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        uid: rustix::process::getuid().as_raw(),
        value,
    };
    let code = nix::libc::SI_QUEUE;
    let info = QueuedSignal { number: signal.as_raw(), errno: 0, code, queued, rest: [0; 16] };
    // SAFETY: the call reads a `siginfo_t` at the pointer, which `info` is at least as large as, and writes nothing.
    let sent = unsafe {
        let call = nix::libc::SYS_pidfd_send_signal;
        nix::libc::syscall(call, pidfd.as_raw_fd(), signal.as_raw(), &raw const info, 0u32)
    };
    if sent == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

/// When process `pid` started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
///
/// # Errors
/// [`ProcessError::Gone`], or [`ProcessError::System`] if `/proc` cannot be read.
pub fn start_time(pid: u32) -> Result<u64, ProcessError> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).map_err(|source| system("look at", pid, source))?;
    start_time_in(&stat).ok_or_else(|| {
        let cause = io::Error::new(io::ErrorKind::InvalidData, "its stat file has no start time");
        ProcessError::System { doing: "look at", pid, source: cause }
    })
}

/// The number of the process that thread `tid` belongs to.
///
/// # Errors
/// [`ProcessError::Gone`], or [`ProcessError::System`] if `/proc` cannot be read.
pub fn process_of_thread(tid: u32) -> Result<u32, ProcessError> {
    let status =
        std::fs::read(format!("/proc/{tid}/status")).map_err(|source| system("look at", tid, source))?;
    let group = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Tgid:"));
    let number =
        group.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.trim().parse().ok());
    number.ok_or(ProcessError::Gone { pid: tid })
}

fn system(doing: &'static str, pid: u32, source: io::Error) -> ProcessError {
    // ESRCH is what /proc says when the process ends while its file is read.
    let srch = rustix::io::Errno::SRCH.raw_os_error();
    if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(srch) {
        return ProcessError::Gone { pid };
    }
    ProcessError::System { doing, pid, source }
}

// The name stands in parentheses and may contain spaces and parentheses: fields are counted from the last one.
fn start_time_in(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    // After the name comes field 3.
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["cat", "a b", "x) S 1 2", "((", ")", "\u{fffd}"] {
            assert_eq!(start_time_in(format!("12 ({name}) {rest}\n").as_bytes()), Some(4711), "{name}");
        }
        assert_eq!(start_time_in(b"12 (\xff\xfe) S 1"), None);
        assert_eq!(start_time_in(b"12 (cat"), None);
        assert_eq!(start_time_in(b""), None);
    }

    #[test]
    fn a_process_is_alive_until_it_ends_and_gets_signals() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(process.is_alive());
        assert!(!process.wait_exit(Duration::from_millis(10)));
        assert!(Process::open_started_at(child.id(), process.start()).is_ok());
        let other = Process::open_started_at(child.id(), process.start() + 1);
        assert!(matches!(other, Err(ProcessError::Reused { .. })));
        process.signal(Signal::TERM).unwrap();
        assert!(process.wait_exit(Duration::from_secs(20)));
        assert!(!process.is_alive(), "ended, though nobody has waited for it");
        child.wait().unwrap();
        assert!(matches!(process.signal(Signal::TERM), Err(ProcessError::Gone { .. })));
        assert!(matches!(Process::open(0), Err(ProcessError::Gone { .. })));
        assert!(matches!(Process::open(u32::MAX), Err(ProcessError::Gone { .. })));
    }

    #[test]
    fn a_thread_leads_to_its_process() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = crate::env::spawn("t", move || {
            sender.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            stopped.recv().ok();
        })
        .unwrap();
        let tid = u32::try_from(receiver.recv().unwrap()).unwrap();
        assert_ne!(tid, std::process::id());
        assert_eq!(Process::of_thread(tid).unwrap().pid(), std::process::id());
        assert_eq!(Process::current().unwrap().start(), start_time(std::process::id()).unwrap());
        drop(stop);
        thread.join().unwrap();
    }
}
