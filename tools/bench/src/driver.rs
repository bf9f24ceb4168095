//! The command `revfs`, driven as a user would: every step has an end, and a mount has a guard.
//!
//! Invariant: a [`Mounted`] that is dropped leaves no mount, whatever became of its server.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::clock::{now, timed};
use crate::error::{BenchError, Named, Result};
use crate::{scratch, system};

/// How long a command may take that moves no bulk data.
const QUICK: Duration = Duration::from_secs(60);
/// How long a commit of bulk data may take.
const BULK: Duration = Duration::from_secs(600);
/// How long a server has to end after its mount is gone.
const END: Duration = Duration::from_secs(10);
/// Bytes of a command's stderr that errors show.
const SHOWN_BYTES_MAX: usize = 500;

/// Where the command is, and where it may leave its output.
#[derive(Debug)]
pub struct Revfs {
    binary: PathBuf,
    output: PathBuf,
}

impl Revfs {
    /// The command named by REVFS_BIN, or the one beside this program. Whether it exists shows at its first use.
    pub fn new(scratch: &Path) -> Revfs {
        let beside = || {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name("revfs")
        };
        let binary = std::env::var_os("REVFS_BIN").map_or_else(beside, PathBuf::from);
        Revfs { binary, output: scratch.to_owned() }
    }

    /// Whether the command is there; cargo does not build it along with this program.
    ///
    /// # Errors
    /// It is not; rows that run it will fail with the same.
    pub fn check(&self) -> Result<()> {
        if self.binary.is_file() {
            return Ok(());
        }
        Err(BenchError::NotPossible {
            what: format!("{}: the command to measure is not there", self.binary.display()),
            remedy: "build it first with `cargo build --release`, or name another one in REVFS_BIN",
        })
    }

    /// What it says of its version, or why it cannot.
    pub fn version(&self) -> String {
        let mut command = self.command();
        command.arg("--version");
        match self.run(command, QUICK) {
            Ok(_) => fs::read_to_string(self.output.join("stdout")).unwrap_or_default().trim().to_owned(),
            Err(error) => format!("unknown ({error})"),
        }
    }

    /// `revfs init STORE`.
    ///
    /// # Errors
    /// It fails.
    pub fn init(&self, store: &Path) -> Result<()> {
        let mut command = self.command();
        command.arg("init").arg(store);
        self.run(command, QUICK).map(drop)
    }

    /// `revfs commit STORE NAME=PATH`; answers how long it took.
    ///
    /// # Errors
    /// It fails.
    pub fn commit(&self, store: &Path, name: &str, path: &Path) -> Result<Duration> {
        let mut assignment = OsStr::new(name).to_owned();
        assignment.push("=");
        assignment.push(path);
        let mut command = self.command();
        command.arg("commit").arg(store).arg(assignment);
        self.run(command, BULK)
    }

    /// `revfs mount STORE MNT OPTIONS...`, and how long it took until the tree answered.
    ///
    /// # Errors
    /// It fails, or does not end.
    pub fn mount(&self, store: &Path, point: &Path, options: &[&str]) -> Result<(Mounted<'_>, Duration)> {
        let mut command = self.command();
        command.arg("mount").args(options).arg(store).arg(point);
        // Built first: a mount that fails half-way is undone as well.
        let mut mounted = Mounted { revfs: self, point: point.to_owned(), server: None };
        let took = self.run(command, QUICK)?;
        let pid = fs::read_to_string(point.join(".revfs/pid")).named(point.join(".revfs/pid").display())?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        let pid =
            pid.ok_or_else(|| BenchError::Wrong(format!("{}/.revfs/pid has no pid", point.display())))?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).named("pidfd_open of the server")?;
        mounted.server = Some((pid, handle));
        Ok((mounted, took))
    }

    fn command(&self) -> Command {
        Command::new(&self.binary)
    }

    /// Runs a command to its end; answers how long that took. Its output goes to files, for a server that it
    /// leaves behind would keep a pipe open.
    fn run(&self, mut command: Command, limit: Duration) -> Result<Duration> {
        scratch::check_not_stopping();
        self.check()?;
        let (stdout, stderr) = (self.output.join("stdout"), self.output.join("stderr"));
        let file = |path: &Path| File::create(path).named(path.display());
        command.stdin(Stdio::null()).stdout(file(&stdout)?).stderr(file(&stderr)?);
        let (took, ended) = timed(|| {
            let mut child = command.spawn().named(self.binary.display())?;
            wait(&mut child, limit)
        });
        let status = ended?;
        if status.is_some_and(|status| status.success()) {
            return Ok(took);
        }
        let mut words = vec![command.get_program().to_string_lossy()];
        words.extend(command.get_args().map(OsStr::to_string_lossy));
        let command = words.join(" ");
        let bytes = fs::read(&stderr).unwrap_or_default();
        let output = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]).trim().to_owned();
        Err(match status {
            Some(status) => BenchError::Command { command, status: status.to_string(), output },
            None => BenchError::TimedOut { command, seconds: limit.as_secs(), output },
        })
    }
}

/// Waits for a child; one that takes longer than `limit` is killed, and answered as `None`.
///
/// # Errors
/// The system refuses to wait.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).named("pidfd_open")?;
    if !has_ended(handle.as_fd(), limit) {
        child.kill().named("kill")?;
        child.wait().named("wait")?;
        return Ok(None);
    }
    child.wait().named("wait").map(Some)
}

/// Whether a process ends within `limit`.
fn has_ended(process: BorrowedFd<'_>, limit: Duration) -> bool {
    let end = now() + limit;
    loop {
        let left = end.saturating_duration_since(now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// A store that is mounted, until this is dropped.
#[derive(Debug)]
pub struct Mounted<'r> {
    revfs: &'r Revfs,
    point: PathBuf,
    server: Option<(Pid, OwnedFd)>,
}

impl Mounted<'_> {
    /// A path in the mount.
    pub fn join(&self, path: &str) -> PathBuf {
        self.point.join(path)
    }

    /// Bytes that the server keeps, by a field of its `/proc/PID/status`.
    ///
    /// # Errors
    /// The server has ended.
    pub fn server_bytes(&self, field: &str) -> Result<u64> {
        let Some((pid, _)) = &self.server else { return Ok(0) };
        system::status_bytes(pid.as_raw_nonzero().get(), field)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let is_here = || {
            let mounts = system::mounts().unwrap_or_default();
            mounts.into_iter().rev().find(|mount| mount.point == self.point)
        };
        if is_here().is_some() {
            let mut command = self.revfs.command();
            command.arg("umount").arg(&self.point);
            if let Err(error) = self.revfs.run(command, QUICK) {
                eprintln!("bench: {error}; ending the mount by force");
            }
        }
        if let Some(mount) = is_here() {
            system::force_unmount(&mount);
        }
        if let Some((pid, handle)) = &self.server
            && !has_ended(handle.as_fd(), END)
        {
            eprintln!("bench: server {} did not end after its mount: killing it", pid.as_raw_nonzero());
            let _ = pidfd_send_signal(handle, Signal::KILL);
        }
    }
}
