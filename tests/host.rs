//! Module `host` against the real kernel: mounts, servers that die or hang, and the ladder of a stop.
//!
//! Servers run in child processes: this test binary again, with one test `helper` and its part as an argument. So
//! no thread of the test waits for a FUSE answer. Each mount has a guard that aborts its connection and unmounts
//! it, and each test a watchdog that does the same before it ends the process.

#![allow(clippy::unwrap_used)] // also in what the tests share

#[path = "host/tiny.rs"]
mod tiny;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fuser::MountOption;
use revfs::env::{Clock, SystemClock};
use revfs::host::daemon::{DaemonError, ReadyPipe, spawn_background};
use revfs::host::fuse_connection::FuseConnection;
use revfs::host::mount_state::{MountState, mount_state};
use revfs::host::mountinfo::{find_mount, mounts, revfs_mounts};
use revfs::host::process::{Process, start_time};
use revfs::host::runtime::{LockError, MountLock, Removal, RuntimeDir, RuntimeInfo};
use revfs::host::signals::{Signals, StopReason};
use revfs::host::stop::{
    FinalState, RuntimeFiles, StepOutcome, StopLimits, StopPlan, StopProblem, StopReport, StopStep,
    StopTarget, run_stop,
};
use revfs::host::tuning::set_read_ahead;
use revfs::host::umount::{UmountError, clean_dead, umount};
use revfs::host::unmount::UnmountError;
use rustix::mount::UnmountFlags;
use rustix::process::Signal;
use tiny::TinyFs;

const LONG: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);
/// Budget of a stop in these tests, except where a step must have time.
const SHORT: StopLimits = StopLimits { total: Duration::from_secs(4), grace: Duration::from_millis(300) };

// ---- parts played by child processes ----

/// Not a test: what a child process does. Its argument is `part=<name>:<mount point>:<run-time directory>`.
#[test]
fn helper() {
    let part = std::env::args().find_map(|arg| arg.strip_prefix("part=").map(str::to_owned));
    let Some(part) = part else { return };
    let mut fields = part.split(':');
    let (name, mnt, run) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
    let (mnt, run) = (Path::new(mnt), Path::new(run));
    match name {
        // Ends cleanly when asked.
        "obedient" | "daemon" => serve(mnt, run, false, true),
        // Blocks the signals and never looks.
        "deaf" => serve(mnt, run, false, false),
        // Does not answer, and does not look at signals either.
        "stuck" => serve(mnt, run, true, false),
        "lock" => {
            let lock = lock_for(mnt, run, false);
            say_ready_and_wait();
            drop(lock);
        }
        "look" => {
            let lock = lock_for(&beside(mnt), run, false);
            println!("\nstate {:?}", mount_state(mnt, LOOK).unwrap());
            println!("\nready");
            std::mem::forget(lock);
        }
        "user" => as_user(mnt),
        "fail" => {
            let attached = ReadyPipe::from_env().unwrap().failed(7, "cannot: no\nremedy: none");
            assert!(attached);
            std::process::exit(7);
        }
        other => panic!("no part {other}"),
    }
}

fn mount_tiny(mnt: &Path, stuck: bool) -> fuser::BackgroundSession {
    let mut config = fuser::Config::default();
    // As the product does it: `MountOption::Subtype` reaches the kernel through fusermount3 only.
    config.mount_options =
        vec![MountOption::FSName("test store".into()), MountOption::CUSTOM("subtype=revfs".into())];
    if rustix::process::geteuid().is_root() {
        config.acl = fuser::SessionACL::All;
    }
    fuser::spawn_mount(TinyFs { stuck }, mnt, &config).unwrap()
}

fn own_info(mnt: &Path, made_mount_point: bool) -> RuntimeInfo {
    let pid = std::process::id();
    RuntimeInfo {
        pid,
        pid_start: start_time(pid).unwrap(),
        mount_point: mnt.to_owned(),
        store_url: "test store".into(),
        made_mount_point,
        version: "test".into(),
    }
}

fn lock_for(mnt: &Path, run: &Path, made_mount_point: bool) -> MountLock {
    MountLock::acquire(&RuntimeDir::at(run).unwrap(), own_info(mnt, made_mount_point)).unwrap()
}

/// Another mount point, never mounted.
fn beside(mnt: &Path) -> PathBuf {
    mnt.with_file_name("beside")
}

fn say_ready_and_wait() {
    println!("\nready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn serve(mnt: &Path, run: &Path, stuck: bool, obeys: bool) {
    let signals = Signals::install().unwrap();
    let ready = ReadyPipe::from_env().unwrap();
    let mut lock = lock_for(mnt, run, false);
    let made = std::fs::create_dir(mnt).is_ok();
    lock.update(|info| info.made_mount_point = made).unwrap();
    let session = mount_tiny(mnt, stuck);
    let dev = find_mount(mnt).unwrap().unwrap().dev;
    println!("\nready");
    ready.ready();
    if !obeys {
        loop {
            std::thread::park();
        }
    }
    assert!(matches!(signals.wait().unwrap(), StopReason::Terminate { .. }));
    let plan = StopPlan {
        mount_point: mnt.to_owned(),
        dev: Some(dev),
        target: None,
        server: None,
        made_mount_point: made,
        runtime: RuntimeFiles::Own(lock),
        limits: SHORT,
    };
    let report = run_stop(plan, &*SystemClock::shared());
    assert!(report.is_clean(), "{report:?}");
    drop(session);
}

/// Without privileges: unmounts go through fusermount3.
fn as_user(mnt: &Path) {
    let session = mount_tiny(mnt, false);
    let dev = find_mount(mnt).unwrap().unwrap().dev;
    assert!(matches!(mount_state(mnt, LONG).unwrap(), MountState::Alive(_)));
    let file = std::fs::File::open(mnt.join("f")).unwrap();
    let note = set_read_ahead(dev, 2048);
    assert!(note.command.is_some(), "{note:?}");
    let report = run_stop(plan_for(mnt, None), &*SystemClock::shared());
    let outcomes: Vec<_> = report.steps.iter().map(|taken| (taken.step, taken.outcome)).collect();
    assert!(outcomes.contains(&(StopStep::Unmount, StepOutcome::Busy)), "{report:?}");
    assert!(outcomes.contains(&(StopStep::Abort, StepOutcome::Done)), "{report:?}");
    assert_eq!(report.state, FinalState::Detached, "{report:?}");
    drop((file, session));
    println!("\nready");
}

// ---- what tests share ----

/// Cuts off and detaches whatever is mounted at `mnt`, without the code under test.
fn clear(mnt: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if fields.get(4).copied() != mnt.to_str() {
            continue;
        }
        if let Some(minor) = fields[2].strip_prefix("0:") {
            std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").ok();
        }
        rustix::mount::unmount(mnt, UnmountFlags::DETACH).ok();
    }
}

/// Starts something with the signals blocked that ask for a stop: a program inherits that for all its threads, as
/// a main function that calls [`Signals::install`] first would have it. A test cannot: its thread is not the first.
fn with_signals_blocked<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let body = || {
            Signals::install().unwrap();
            start()
        };
        scope.spawn(body).join().unwrap()
    })
}

/// A directory, a mount point in it, a run-time directory, and servers that end with it.
struct Stage {
    mnt: PathBuf,
    run: Arc<RuntimeDir>,
    children: Vec<Child>,
    /// Open until the end: a child whose output is closed complains.
    outputs: Vec<BufReader<ChildStdout>>,
    clock: Arc<dyn Clock>,
    _watchdog: mpsc::Sender<()>,
    temp: tempfile::TempDir,
}

impl Stage {
    /// `None`, with a message, where FUSE cannot be used.
    fn new(test: &'static str) -> Option<Stage> {
        let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
        if !usable || !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED {test}: needs root and /dev/fuse");
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        let mnt = temp.path().canonicalize().unwrap().join("mnt");
        let run = Arc::new(RuntimeDir::at(&temp.path().join("run")).unwrap());
        let (watchdog, ended) = mpsc::channel::<()>();
        let path = mnt.clone();
        let watch = move || {
            if ended.recv_timeout(Duration::from_secs(100)) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("WATCHDOG {test}: hangs");
                clear(&path);
                std::process::abort();
            }
        };
        revfs::env::spawn("watchdog", watch).unwrap();
        let clock = SystemClock::shared();
        Some(Stage { mnt, run, children: Vec::new(), outputs: Vec::new(), clock, _watchdog: watchdog, temp })
    }

    fn part(&self, name: &str) -> [OsString; 6] {
        let part = format!("part={name}:{}:{}", self.mnt.display(), self.run.path().display());
        ["helper", "--exact", "-q", "--nocapture", "--test-threads=1", &part].map(OsString::from)
    }

    /// Starts a child and waits until it is ready; gives what it printed.
    fn start(&mut self, name: &str) -> (u32, String) {
        self.start_as(name, None)
    }

    /// As [`Stage::start`], in the place of the arguments of `wrapper`'s command if there is one.
    fn start_as(&mut self, name: &str, wrapper: Option<&mut Command>) -> (u32, String) {
        let mut own = Command::new(std::env::current_exe().unwrap());
        let command = wrapper.unwrap_or(&mut own);
        command.args(self.part(name)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = with_signals_blocked(|| command.spawn().unwrap());
        let pid = child.id();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        self.children.push(child);
        let mut text = String::new();
        for line in stdout.by_ref().lines() {
            let line = line.unwrap();
            if line == "ready" {
                self.outputs.push(stdout);
                return (pid, text);
            }
            text.push_str(&line);
            text.push('\n');
        }
        panic!("part {name} ended: {text}");
    }

    fn kill(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().unwrap();
        }
    }

    fn state(&self) -> MountState {
        mount_state(&self.mnt, LOOK).unwrap()
    }

    fn umount(&self, limits: StopLimits) -> Result<StopReport, UmountError> {
        umount(&self.run, &self.mnt, limits, &*self.clock, &mut |_| {})
    }

    /// Not mounted, no directory, no run-time file.
    fn assert_nothing_left(&self) {
        assert!(!mounts().unwrap().iter().any(|entry| entry.mount_point == self.mnt), "mounted");
        assert!(!self.mnt.exists(), "the mount point stays");
        let left: Vec<_> = std::fs::read_dir(self.run.path()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        clear(&self.mnt);
        self.kill();
        // Servers in the background are nobody's children.
        for info in self.run.list().unwrap_or_default() {
            let other = info.pid != std::process::id();
            let server = Process::open_started_at(info.pid, info.pid_start).ok().filter(|_| other);
            server.map(|server| server.signal(Signal::KILL).ok());
        }
        clear(&self.mnt);
    }
}

fn plan_for(mnt: &Path, target: Option<Arc<dyn StopTarget>>) -> StopPlan {
    StopPlan {
        mount_point: mnt.to_owned(),
        dev: find_mount(mnt).unwrap().map(|entry| entry.dev),
        target,
        server: None,
        made_mount_point: false,
        runtime: RuntimeFiles::None,
        limits: SHORT,
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let clock = SystemClock::shared();
    while !condition() {
        assert!(clock.monotonic() < LONG, "{what}: not within {LONG:?}");
        revfs::env::sleep(Duration::from_millis(5));
    }
}

#[derive(Default)]
struct Counting {
    refused: AtomicU32,
}

impl StopTarget for Counting {
    fn refuse_opens(&self) {
        self.refused.fetch_add(1, Ordering::SeqCst);
    }
}

// ---- the tests ----

#[test]
fn a_living_server_is_alive_and_ends_by_itself_when_asked() {
    let Some(mut stage) = Stage::new("a_living_server") else { return };
    let (pid, _) = stage.start("obedient");
    let MountState::Alive(entry) = stage.state() else { panic!("{:?}", stage.state()) };
    assert_eq!((entry.source.to_str(), entry.fs_type.as_str()), (Some("test store"), "fuse.revfs"));
    assert!(revfs_mounts().unwrap().contains(&entry));
    assert_eq!(stage.run.list().unwrap().first().map(|info| info.pid), Some(pid));
    assert!(clean_dead(&stage.run, &stage.mnt, SHORT, &*stage.clock).unwrap().is_none());
    let report = stage.umount(StopLimits::default()).unwrap();
    assert_eq!((report.steps[0].step, report.steps[0].outcome), (StopStep::AskServer, StepOutcome::Done));
    assert!(report.is_clean() && report.state == FinalState::Unmounted, "{report:?}");
    let unmount = report.steps.iter().find(|taken| taken.step == StopStep::Unmount).unwrap();
    assert_eq!(unmount.outcome, StepOutcome::NotMounted, "the server did it before: {report:?}");
    assert!(stage.children[0].wait().unwrap().success());
    stage.assert_nothing_left();
    assert!(matches!(stage.umount(SHORT), Err(UmountError::NotMounted { .. })));
}

#[test]
fn a_dead_mount_is_recognised_and_cleaned_by_umount() {
    let Some(mut stage) = Stage::new("a_dead_mount_umount") else { return };
    stage.start("deaf");
    // The kernel remembers these for an hour: they must not count as an answer.
    std::fs::metadata(&stage.mnt).unwrap();
    stage.kill();
    let state = stage.state();
    assert!(matches!(state, MountState::Dead(_)), "{state:?}");
    let report = stage.umount(StopLimits::default()).unwrap();
    assert!(report.is_clean() && !report.took(StopStep::AskServer), "{report:?}");
    stage.assert_nothing_left();
}

#[test]
fn a_dead_mount_is_cleaned_by_the_next_mount_or_status_even_if_in_use() {
    let Some(mut stage) = Stage::new("a_dead_mount_clean") else { return };
    stage.start("deaf");
    let file = std::fs::File::open(stage.mnt.join("f")).unwrap();
    stage.kill();
    let report = clean_dead(&stage.run, &stage.mnt, SHORT, &*stage.clock).unwrap().unwrap();
    assert_eq!(report.state, FinalState::Detached, "{report:?}");
    assert!(!report.took(StopStep::Wait), "who uses a dead mount gets no grace");
    stage.assert_nothing_left();
    drop(file);
    assert!(clean_dead(&stage.run, &stage.mnt, SHORT, &*stage.clock).unwrap().is_none());
}

#[test]
fn a_busy_mount_ends_by_abort_and_lazy_unmount_within_its_budget() {
    let Some(mut stage) = Stage::new("a_busy_mount") else { return };
    stage.start("deaf");
    let mut file = std::fs::File::open(stage.mnt.join("f")).unwrap();
    let target = Arc::new(Counting::default());
    let report = run_stop(plan_for(&stage.mnt, Some(target.clone())), &*stage.clock);
    let steps: Vec<_> = report.steps.iter().map(|taken| (taken.step, taken.outcome)).collect();
    let expected = [
        (StopStep::RefuseOpens, StepOutcome::Done),
        (StopStep::Unmount, StepOutcome::Busy),
        (StopStep::Wait, StepOutcome::Done),
        (StopStep::Abort, StepOutcome::Done),
        (StopStep::UnmountAborted, StepOutcome::Busy),
        (StopStep::UnmountLazily, StepOutcome::Done),
        (StopStep::RemoveRuntimeFiles, StepOutcome::Done),
    ];
    assert_eq!(steps, expected, "{report:?}");
    assert_eq!((report.state, target.refused.load(Ordering::SeqCst)), (FinalState::Detached, 1));
    assert!(report.taken >= SHORT.grace && report.taken < SHORT.total, "{:?}", report.taken);
    assert!(file.read(&mut [0; 10]).is_err(), "cut off");
    assert!(find_mount(&stage.mnt).unwrap().is_none());
}

#[test]
fn a_user_that_lets_go_within_the_grace_is_not_cut_off() {
    let Some(mut stage) = Stage::new("a_user_that_lets_go") else { return };
    stage.start("deaf");
    let file = std::fs::File::open(stage.mnt.join("f")).unwrap();
    let (refused, asked) = mpsc::channel();
    struct Telling(std::sync::Mutex<mpsc::Sender<()>>);
    impl StopTarget for Telling {
        fn refuse_opens(&self) {
            self.0.lock().unwrap().send(()).unwrap();
        }
    }
    let user = move || {
        asked.recv().unwrap();
        drop(file);
    };
    let user = revfs::env::spawn("user", user).unwrap();
    let target = Arc::new(Telling(std::sync::Mutex::new(refused)));
    let plan = StopPlan { limits: StopLimits::default(), ..plan_for(&stage.mnt, Some(target)) };
    let report = run_stop(plan, &*stage.clock);
    user.join().unwrap();
    assert_eq!(report.state, FinalState::Unmounted, "{report:?}");
    assert!(!report.took(StopStep::Abort));
}

#[test]
fn a_stuck_server_is_seen_and_ended_and_who_looked_can_end() {
    let Some(mut stage) = Stage::new("a_stuck_server") else { return };
    let (pid, _) = stage.start("stuck");
    let server = Process::open(pid).unwrap();
    // A child process looks: it says what it saw, and ends although the server never answers.
    let (looker, text) = stage.start("look");
    assert!(text.contains("state Stuck"), "{text}");
    let looker = stage.children.iter().position(|child| child.id() == looker).unwrap();
    let ended = Process::open(stage.children[looker].id());
    assert!(ended.map_or(true, |process| process.wait_exit(LONG)), "the look keeps its process from ending");
    // What it left behind in the mount holds nothing of it: its lock is free.
    assert_eq!(stage.run.remove_stale(&beside(&stage.mnt)).unwrap(), Removal::Removed);
    assert!(matches!(stage.state(), MountState::Stuck(_)));
    let entry = find_mount(&stage.mnt).unwrap().unwrap();
    let connection = FuseConnection::open(entry.dev).unwrap();
    assert!(connection.waiting().unwrap() >= 1);
    assert!(server.is_alive());

    let limits = StopLimits::with_total(Duration::from_secs(4));
    let report = stage.umount(limits).unwrap();
    assert!(report.took(StopStep::AskServer) && report.took(StopStep::EndServer), "{report:?}");
    assert_eq!(report.steps[0].outcome, StepOutcome::Failed, "it does not obey");
    assert!(matches!(report.steps[0].problem, Some(StopProblem::ServerStays { .. })));
    assert!(report.is_clean(), "{report:?}");
    assert!(report.taken <= limits.total + LOOK, "{:?}", report.taken);
    assert!(!server.is_alive());
    stage.assert_nothing_left();
}

#[test]
fn a_lock_is_held_across_processes_until_its_holder_dies() {
    let Some(mut stage) = Stage::new("a_lock_is_held") else { return };
    let (pid, _) = stage.start("lock");
    match MountLock::acquire(&stage.run, own_info(&stage.mnt, false)) {
        Err(error @ LockError::Held { .. }) => {
            assert!(error.to_string().contains(&format!("process {pid}")), "{error}");
        }
        other => panic!("{other:?}"),
    }
    stage.kill();
    let lock = MountLock::acquire(&stage.run, own_info(&stage.mnt, false)).unwrap();
    assert_eq!(stage.run.read_info(&stage.mnt).unwrap().unwrap().pid, std::process::id());
    drop(lock);
    assert_eq!(stage.run.list().unwrap(), vec![]);
}

#[test]
fn a_filesystem_mounted_over_revfs_is_left_alone() {
    let Some(mut stage) = Stage::new("mounted_over") else { return };
    stage.start("deaf");
    let plan = plan_for(&stage.mnt, None);
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &stage.mnt, "tmpfs", flags, None).unwrap();
    assert!(matches!(stage.state(), MountState::Foreign(entry) if entry.fs_type == "tmpfs"));
    assert!(matches!(stage.umount(SHORT), Err(UmountError::Foreign { fs_type, .. }) if fs_type == "tmpfs"));
    let report = run_stop(plan, &*stage.clock);
    assert_eq!(report.state, FinalState::StillMounted, "{report:?}");
    let covered = |taken: &&revfs::host::stop::StepTaken| {
        matches!(taken.problem, Some(StopProblem::Unmount(UnmountError::Covered { .. })))
    };
    assert_eq!(report.steps.iter().filter(covered).count(), 3);
    assert_eq!(find_mount(&stage.mnt).unwrap().unwrap().fs_type, "tmpfs");
    rustix::mount::unmount(&stage.mnt, UnmountFlags::empty()).unwrap();
    assert!(matches!(stage.state(), MountState::Dead(_)));
}

#[test]
fn read_ahead_of_a_mount_is_set_to_what_is_asked() {
    let Some(mut stage) = Stage::new("read_ahead") else { return };
    stage.start("deaf");
    let dev = find_mount(&stage.mnt).unwrap().unwrap().dev;
    for kib in [8192, 2048] {
        let note = set_read_ahead(dev, kib);
        assert_eq!((note.got, note.is_settled()), (Some(kib), true), "{note:?}");
    }
}

#[test]
fn a_command_returns_when_its_background_server_is_ready_or_fails() {
    let Some(stage) = Stage::new("background") else { return };
    let clock = SystemClock::shared();
    // As `flock FILE revfs mount ...` hands the lock down: the server must not hold it for as long as it lives.
    let handed_down = std::fs::File::create(stage.temp.path().join("handed-down")).unwrap();
    rustix::io::fcntl_setfd(&handed_down, rustix::io::FdFlags::empty()).unwrap();
    let background = with_signals_blocked(|| spawn_background(&stage.part("daemon"), LONG, &*clock)).unwrap();
    let server = Process::open(background.pid).unwrap();
    assert!(matches!(stage.state(), MountState::Alive(_)));
    let pid = i32::try_from(background.pid).ok().and_then(rustix::process::Pid::from_raw);
    assert_eq!(rustix::process::getsid(pid).unwrap(), pid.unwrap(), "a session of its own");
    for fd in 0..=2 {
        let target = std::fs::read_link(format!("/proc/{}/fd/{fd}", background.pid)).unwrap();
        assert_eq!(target, Path::new("/dev/null"), "descriptor {fd}");
    }
    let own = format!("/proc/{}/fd", background.pid);
    for entry in std::fs::read_dir(own).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
        assert!(!target.ends_with("handed-down"), "{}", target.display());
    }
    let report = stage.umount(StopLimits::default()).unwrap();
    assert!(report.is_clean() && !server.is_alive(), "{report:?}");
    stage.assert_nothing_left();

    match spawn_background(&stage.part("fail"), LONG, &*clock) {
        Err(DaemonError::Failed { code, text }) => {
            assert_eq!((code, text.as_str()), (7, "cannot: no\nremedy: none"));
        }
        other => panic!("{other:?}"),
    }
}

/// In a mount namespace of its own, with a /dev/fuse that everybody may open, as user nobody.
const AS_NOBODY: &str = r#"set -e
cp -a /dev/fuse "$1" && chmod 666 "$1" && mount --bind "$1" /dev/fuse && shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@""#;

#[test]
fn without_privileges_a_mount_is_stopped_through_fusermount3() {
    let Some(mut stage) = Stage::new("without_privileges") else { return };
    let has = |program: &str| Path::new("/usr/bin").join(program).exists();
    if !["fusermount3", "unshare", "setpriv"].into_iter().all(has) {
        eprintln!("SKIPPED without_privileges: needs fusermount3, unshare and setpriv");
        return;
    }
    const NOBODY: u32 = 65534;
    std::fs::create_dir(&stage.mnt).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(stage.temp.path(), open).unwrap();
    std::os::unix::fs::chown(&stage.mnt, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", AS_NOBODY, "sh"]).arg(stage.temp.path().join("fuse"));
    command.arg(std::env::current_exe().unwrap());
    stage.start_as("user", Some(&mut command));
}

#[test]
fn a_process_handle_turns_readable_when_the_process_ends() {
    let mut child = Command::new("sleep").arg("100").stdout(Stdio::null()).spawn().unwrap();
    let process = Process::open(child.id()).unwrap();
    process.signal(Signal::KILL).unwrap();
    eventually("end", || {
        let mut fds =
            [rustix::event::PollFd::from_borrowed_fd(process.as_fd(), rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1
    });
    child.wait().unwrap();
}
