//! daemon: a command that returns when its server in the background is ready, and the notes for systemd.
//!
//! `revfs mount` starts its own program again with `-f`, with a pipe as its output:
//!
//! ```text
//! child: ready\n                the tree answers; the parent exits with 0
//! child: error <code> <text>    the parent prints the text and exits with the code
//! child: (end)                  it died: the parent prints whatever else it wrote, and how it ended
//! ```
//!
//! Invariant: until it takes the pipe, the child's messages, a panic too, go into it, so none gets lost; from then
//! on it holds nothing of the parent's terminal. The parent returns within its limit, and leaves no child that
//! is not ready. As the child is ready it leaves the folder of its parent, which may be unmounted or removed then: it
//! looks up no relative path any more. Left out on purpose: pid files (`runtime` has them).

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::Signal;

use super::process::Process;
use super::wait::readable_within;
use crate::env::Clock;

/// Name under which the server runs.
const PROGRAM: &str = "revfs";
/// Names the descriptor of the pipe to the child. It is 1, its standard output.
const READY_FD: &str = "REVFS_READY_FD";
/// No message of a child is longer.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// What a child that is late gets after SIGTERM, to unmount, before SIGKILL.
const LATE_CHILD_GRACE_MS: u64 = 2_000;

/// Why there is no server in the background.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It could not be started.
    #[error("cannot start the server in the background: {source}")]
    Start {
        /// What the system said.
        source: io::Error,
    },
    /// It said why it cannot serve.
    #[error("{text}")]
    Failed {
        /// The exit code that goes with it.
        code: u8,
        /// The message for the user.
        text: String,
    },
    /// It ended without a word, or with words that were not meant for the parent.
    #[error("the server ended before it was ready ({status}){}", after_colon(text))]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        text: String,
    },
    /// It was not ready in time and has been stopped.
    #[error("the server was not ready within {} s and has been stopped{}; start it with -f to see what it does",
            limit.as_secs(), after_colon(text))]
    TimedOut {
        /// How long was waited.
        limit: Duration,
        /// What it wrote.
        text: String,
    },
}

fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// A server that is ready, in a session of its own.
#[derive(Debug)]
pub struct Background {
    /// Its process.
    pub pid: u32,
}

/// Starts this program again with `args` and waits until it is ready, for at most `limit`.
///
/// # Errors
/// [`DaemonError`]; there is no child left then.
pub fn spawn_background(
    args: &[OsString],
    limit: Duration,
    clock: &dyn Clock,
) -> Result<Background, DaemonError> {
    let mut command = Command::new("/proc/self/exe");
    command.args(args);
    // Listed where the user knows the program to be, but never under the name of a mount helper, which is called
    // with other arguments.
    if let Some(name) = std::env::args_os().next() {
        let name = Path::new(&name).with_file_name(PROGRAM);
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    spawn_command(command, limit, clock)
}

fn spawn_command(
    mut command: Command,
    limit: Duration,
    clock: &dyn Clock,
) -> Result<Background, DaemonError> {
    let start = |source| DaemonError::Start { source };
    let (mut reader, writer) = io::pipe().map_err(start)?;
    let errors = writer.try_clone().map_err(start)?;
    command.env(READY_FD, "1").stdin(Stdio::null()).stdout(writer).stderr(errors);
    close_inherited_at_exec().map_err(start)?;
    let child = command.spawn().map_err(start)?;
    // The command holds our ends of the pipe: without this its end would never show.
    drop(command);
    let deadline = clock.monotonic().saturating_add(limit);
    let mut message = Vec::new();
    loop {
        let left = deadline.saturating_sub(clock.monotonic());
        if !readable_within(reader.as_fd(), left).map_err(|errno| start(errno.into()))? {
            stop_late(child);
            return Err(DaemonError::TimedOut { limit, text: plain_text(&message) });
        }
        let mut buffer = [0; 4096];
        let count = reader.read(&mut buffer).map_err(start)?;
        message.extend_from_slice(&buffer[..count.min(MESSAGE_BYTES_MAX.saturating_sub(message.len()))]);
        if has_ready_line(&message) {
            return Ok(Background { pid: child.id() });
        }
        if count == 0 {
            return Err(ended(child, &message, deadline.saturating_sub(clock.monotonic())));
        }
    }
}

/// Marks everything but the standard streams to be closed in children.
///
/// What a shell handed down, say the lock of `flock` or a pipe that somebody reads to its end, would else be held
/// for as long as the server lives.
fn close_inherited_at_exec() -> io::Result<()> {
    // SAFETY: closes nothing; it sets a flag that counts only when this process starts another program.
    let marked = unsafe {
        nix::libc::syscall(nix::libc::SYS_close_range, 3u32, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC)
    };
    match marked {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // Before Linux 5.11 it cannot be had in one go, and no harm comes to the server itself.
            error if [Some(nix::libc::ENOSYS), Some(nix::libc::EINVAL)].contains(&error.raw_os_error()) => {
                log::debug!("the server inherits open files: {error}");
                Ok(())
            }
            error => Err(error),
        },
    }
}

fn has_ready_line(message: &[u8]) -> bool {
    message.starts_with(b"ready\n") || message.windows(7).any(|part| part == b"\nready\n")
}

/// The child closed the pipe: it failed, or died.
fn ended(mut child: Child, message: &[u8], left: Duration) -> DaemonError {
    let text = plain_text(message);
    let failed = error_line(&text);
    if let Ok(process) = Process::open(child.id())
        && !process.wait_exit(left.max(Duration::from_millis(LATE_CHILD_GRACE_MS)))
    {
        process.signal(Signal::KILL).ok();
    }
    match (failed, child.wait()) {
        (Some(failed), _) => failed,
        (None, Ok(status)) => DaemonError::Died { status, text },
        (None, Err(source)) => DaemonError::Start { source },
    }
}

fn error_line(text: &str) -> Option<DaemonError> {
    let at = if text.starts_with("error ") { 0 } else { text.find("\nerror ")? + 1 };
    let (code, reason) = text.get(at..)?.strip_prefix("error ")?.split_once(' ')?;
    Some(DaemonError::Failed { code: code.parse().ok()?, text: reason.to_owned() })
}

fn plain_text(message: &[u8]) -> String {
    String::from_utf8_lossy(message).trim_end().to_owned()
}

/// First a request, so that it unmounts what it may have mounted.
fn stop_late(mut child: Child) {
    if let Ok(process) = Process::open(child.id()) {
        process.signal(Signal::TERM).ok();
        if !process.wait_exit(Duration::from_millis(LATE_CHILD_GRACE_MS)) {
            process.signal(Signal::KILL).ok();
        }
        if !process.wait_exit(Duration::from_millis(LATE_CHILD_GRACE_MS)) {
            log::warn!("process {} does not end, not even by SIGKILL", child.id());
            return;
        }
    }
    child.wait().ok();
}

/// The child's end: where it says that it is ready, or why not.
#[derive(Debug)]
pub struct ReadyPipe {
    pipe: Option<OwnedFd>,
}

impl ReadyPipe {
    /// Takes the pipe if a parent waits at its other end. Then this process gets a session of its own, and
    /// `/dev/null` as output. Without a parent, as with `-f` in a terminal, the other calls do nothing.
    ///
    /// # Errors
    /// What `dup`, `open` or `setsid` report.
    pub fn from_env() -> io::Result<ReadyPipe> {
        let named = std::env::var_os(READY_FD).is_some_and(|value| value == "1");
        if !named || !is_pipe(rustix::stdio::stdout()) {
            return Ok(ReadyPipe { pipe: None });
        }
        let pipe = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        // Fails only for the leader of a group, which a child that was just started is not.
        rustix::process::setsid()?;
        Ok(ReadyPipe { pipe: Some(pipe) })
    }

    /// Whether a parent waits.
    pub fn is_attached(&self) -> bool {
        self.pipe.is_some()
    }

    /// Tells the parent, and systemd if it waits, that the tree answers.
    pub fn ready(self) {
        if self.is_attached()
            && let Err(error) = std::env::set_current_dir("/")
        {
            log::warn!("the folder in which this server was started stays in use: {error}");
        }
        self.say(b"ready\n");
        notify_systemd("READY=1");
    }

    /// Tells the parent why it will not; the parent prints `text` and exits with `code`. True if there is a
    /// parent; else the caller prints it.
    pub fn failed(self, code: u8, text: &str) -> bool {
        let attached = self.is_attached();
        self.say(format!("error {code} {text}\n").as_bytes());
        attached
    }

    fn say(self, message: &[u8]) {
        if let Some(pipe) = self.pipe
            && let Err(error) = std::fs::File::from(pipe).write_all(message)
        {
            // The parent gave up: nobody to tell.
            log::debug!("the command that started this server is gone: {error}");
        }
    }
}

fn is_pipe(fd: impl AsFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

/// Tells systemd that the stop has begun, if it wants to know.
pub fn notify_stopping() {
    notify_systemd("STOPPING=1");
}

/// Sends a state to the socket that `NOTIFY_SOCKET` names (`Type=notify`, see sd_notify(3)); nothing if unset.
fn notify_systemd(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send_state(name.as_bytes(), state) {
        log::warn!("cannot tell systemd {state} at {}: {error}", name.to_string_lossy());
    }
}

fn send_state(socket: &[u8], state: &str) -> io::Result<()> {
    let address = match socket {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor an abstract name")),
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemClock;

    fn shell(script: &str, limit: Duration) -> Result<Background, DaemonError> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        spawn_command(command, limit, &*SystemClock::shared())
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn the_parent_goes_on_when_the_child_is_ready() {
        let ready = shell("echo noise; echo ready; exec >/dev/null 2>&1; exec sleep 100", LONG).unwrap();
        let child = Process::open(ready.pid).unwrap();
        assert!(child.is_alive());
        child.signal(Signal::KILL).unwrap();
        assert!(child.wait_exit(LONG));
    }

    #[test]
    fn an_error_comes_with_its_code_and_all_its_lines() {
        match shell("echo warning >&2; printf 'error 7 cannot a:\\n b\\n'; exit 1", LONG) {
            Err(DaemonError::Failed { code: 7, text }) => assert_eq!(text, "cannot a:\n b"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_child_that_dies_is_reported_with_what_it_wrote() {
        match shell("echo panicked >&2; exit 101", LONG) {
            Err(DaemonError::Died { status, text }) => {
                assert_eq!((status.code(), text.as_str()), (Some(101), "panicked"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_child_that_is_late_is_stopped() {
        let error = shell("echo working; echo $$; exec sleep 100", Duration::from_millis(200)).unwrap_err();
        let DaemonError::TimedOut { text, .. } = error else { panic!("{error:?}") };
        let pid: u32 = text.lines().last().unwrap().parse().unwrap();
        assert!(Process::open(pid).is_err());
    }

    #[test]
    fn systemd_is_told_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        send_state(path.as_os_str().as_bytes(), "READY=1").unwrap();
        let name = format!("revfs-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send_state(format!("@{name}").as_bytes(), "STOPPING=1").unwrap();
        let mut buffer = [0; 64];
        let count = by_path.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"READY=1");
        let count = by_name.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"STOPPING=1");
        assert!(send_state(b"vsock:1:2", "READY=1").is_err());
    }
}
