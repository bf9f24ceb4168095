//! The program at work in a folder of its own: stores, mounts and processes that always go away.
//!
//! Invariant: no mount, process or folder outlives its [`Place`], and a command or a test that hangs fails. A
//! process is ended only if its command line names the folder, so nobody else's ever is.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use revfs::env::{SystemClock, sleep};
use revfs::store::native::{INDEX_SCHEMA, NativeStore, OpenOptions};

/// A test that takes longer than this hangs: what it mounted and started is ended, so that it fails instead.
const WATCHDOG: Duration = Duration::from_secs(400);
/// The same for the long versions.
const WATCHDOG_SLOW: Duration = Duration::from_secs(3600);
/// A command that takes longer than this hangs.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long anything may take that is to happen by itself.
pub const SOON: Duration = Duration::from_secs(30);
/// Between two looks at something.
const LOOK: Duration = Duration::from_millis(2);

/// Whether there is no FUSE here; says so.
pub fn no_fuse(test: &str) -> bool {
    let absent = !Path::new("/dev/fuse").exists();
    if absent {
        eprintln!("SKIPPED {test}: there is no /dev/fuse");
    }
    absent
}

/// Whether this is not root; says so.
pub fn no_root(test: &str) -> bool {
    let other = !rustix::process::geteuid().is_root();
    if other {
        eprintln!("SKIPPED {test}: it needs root");
    }
    other
}

/// Whether the long versions of tests are asked for.
pub fn slow() -> bool {
    std::env::var_os("REVFS_SLOW").is_some()
}

/// Looks again and again until `look` answers something.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let clock = SystemClock::shared();
    let end = clock.monotonic() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock.monotonic() < end, "{what}: not within {limit:?}");
        sleep(LOOK);
    }
}

/// Looks again and again until `look` holds.
pub fn wait_until(what: &str, mut look: impl FnMut() -> bool) {
    wait_for(what, SOON, || look().then_some(()));
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub out: Vec<u8>,
    pub err: String,
}

impl Ended {
    /// Exit code; -1 if a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Stdout as text, without the end of its last line.
    pub fn line(&self) -> String {
        String::from_utf8_lossy(&self.out).trim_end().to_owned()
    }
}

/// Waits for a child, kills it if it hangs, and answers how it ended.
pub fn end_of(child: &mut Child, limit: Duration) -> ExitStatus {
    let clock = SystemClock::shared();
    let end = clock.monotonic() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if clock.monotonic() >= end {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("process {} hung for {limit:?} and was killed", child.id());
        }
        sleep(LOOK);
    }
}

/// A child that is killed when it is dropped.
pub struct Guarded(pub Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    pub minor: u32,
    pub path: PathBuf,
    pub fs_type: String,
    pub source: String,
    pub options: String,
}

/// All mounts at or below `root`, the topmost last.
pub fn mounts_below(root: &Path) -> Vec<MountLine> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        Some(MountLine {
            minor: left[2].split_once(':')?.1.parse().ok()?,
            path: PathBuf::from(left[4]),
            fs_type: right[0].to_owned(),
            source: right[1].to_owned(),
            options: left[5].to_owned(),
        })
    };
    table.lines().filter_map(parse).filter(|line| line.path.starts_with(root)).collect()
}

/// Processes of the program whose command line names `root`.
pub fn servers_of(root: &Path) -> Vec<u32> {
    let program = Path::new(env!("CARGO_BIN_EXE_revfs")).file_name().unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let names = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let is_program =
            words.next().is_some_and(|word| Path::new(OsStr::from_bytes(word)).ends_with(program));
        let root = root.as_os_str().as_bytes();
        is_program && words.any(|word| word.windows(root.len()).any(|part| part == root))
    };
    pids.filter(names).collect()
}

/// Run-time files of the program that name `root`.
pub fn runtime_files_of(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/run/revfs") else { return Vec::new() };
    let names = |path: &PathBuf| {
        let text = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(root.to_str().unwrap())
    };
    entries.flatten().map(|entry| entry.path()).filter(names).collect()
}

/// A folder to work in.
pub struct Place {
    dir: tempfile::TempDir,
    root: PathBuf,
    watchdog: Sender<()>,
}

impl Place {
    /// A folder without a store.
    pub fn empty() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (watchdog, done) = channel();
        let of = root.clone();
        let bark = move || {
            let limit = if slow() { WATCHDOG_SLOW } else { WATCHDOG };
            if done.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test hangs: ending what it started in {}", of.display());
                end_all(&of);
            }
        };
        revfs::env::spawn("watchdog", bark).unwrap();
        Place { dir, root, watchdog }
    }

    /// A folder with a store `s` of small blocks.
    pub fn new() -> Place {
        let place = Place::empty();
        place.ok(&["init", "s", "--block-size", "4K"]);
        place
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder of the index's tables of the store `s`.
    pub fn index(&self) -> PathBuf {
        self.path(&format!("s/index/v{INDEX_SCHEMA}"))
    }

    /// The program with these arguments, to be run in the folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_revfs"));
        command.args(args).current_dir(&self.root).stdin(Stdio::null());
        command
    }

    /// Runs any command to its end.
    pub fn run_command(&self, command: &mut Command) -> Ended {
        self.run_into(command, tempfile::tempfile().unwrap())
    }

    /// Runs any command to its end, with stdout to an empty file.
    pub fn run_into(&self, command: &mut Command, out: File) -> Ended {
        let err = tempfile::tempfile().unwrap();
        let streams = (out.try_clone().unwrap(), err.try_clone().unwrap());
        let mut child = command.stdout(streams.0).stderr(streams.1).spawn().unwrap();
        let status = end_of(&mut child, COMMAND_LIMIT);
        let text = |mut file: File| {
            use std::io::{Read, Seek};
            let mut bytes = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        };
        Ended { status, out: text(out), err: String::from_utf8_lossy(&text(err)).into_owned() }
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        self.run_command(&mut self.command(args))
    }

    /// Stdout of a command that succeeds, without the end of its last line.
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code(), 0, "{args:?}: {}", ended.err);
        ended.line()
    }

    /// Bytes that a command prints that succeeds.
    pub fn bytes(&self, args: &[&str]) -> Vec<u8> {
        let ended = self.run(args);
        assert_eq!(ended.code(), 0, "{args:?}: {}", ended.err);
        ended.out
    }

    /// Runs a command that fails with this code, a message that has `text`, and nothing on stdout.
    pub fn fails(&self, args: &[&str], code: i32, text: &str) {
        let ended = self.run(args);
        assert_eq!(ended.code(), code, "{args:?}: {}", ended.err);
        assert!(ended.err.contains("error: ") && ended.err.contains(text), "{args:?}: {}", ended.err);
        assert_eq!(ended.out, b"", "{args:?}");
    }

    /// Commits bytes as one file of the store `s`; answers the tid.
    pub fn commit(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path("source"), bytes).unwrap();
        self.ok(&["commit", "s", &format!("{name}=source")])
    }

    /// The store `s`, opened by this process.
    pub fn open(&self) -> Arc<NativeStore> {
        let options = OpenOptions { sync: false, cache_bytes: 1 << 20, ..OpenOptions::default() };
        NativeStore::open(&self.path("s"), options).unwrap()
    }

    /// Mounts the store `s` at `m`, by a server in the background.
    pub fn mount(&self) -> Live {
        self.mount_at("m")
    }

    /// Mounts the store `s`, by a server in the background.
    pub fn mount_at(&self, name: &str) -> Live {
        self.mount_with(name, &[])
    }

    /// The same, with more options.
    pub fn mount_with(&self, name: &str, options: &[&str]) -> Live {
        self.mount_store("s", name, options)
    }

    /// Mounts a store of any name.
    pub fn mount_store(&self, store: &str, name: &str, options: &[&str]) -> Live {
        self.ok(&[&["mount", store, name, "--log", "server.log"], options].concat());
        Live { root: self.path(name) }
    }

    /// Asserts that nothing is mounted, no server runs and no run-time file is left.
    pub fn expect_nothing_left(&self) {
        wait_until("servers end", || servers_of(&self.root).is_empty());
        assert_eq!(mounts_below(&self.root), []);
        assert_eq!(runtime_files_of(&self.root), Vec::<PathBuf>::new());
    }
}

/// Ends all mounts and servers of a folder, the gentle way first.
fn end_all(root: &Path) {
    for mount in mounts_below(root) {
        if mount.fs_type == "fuse.revfs" {
            let _ = fs::write(format!("/sys/fs/fuse/connections/{}/abort", mount.minor), "1");
        }
    }
    for pid in servers_of(root) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    for mount in mounts_below(root).iter().rev() {
        let _ = rustix::mount::unmount(&mount.path, rustix::mount::UnmountFlags::DETACH);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.watchdog.send(());
        for mount in mounts_below(&self.root).iter().filter(|mount| mount.fs_type == "fuse.revfs") {
            let mut command = self.command(&["umount", "--timeout", "5s"]);
            let child = command.arg(&mount.path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            if let Ok(mut child) = child {
                let clock = SystemClock::shared();
                let end = clock.monotonic() + SOON;
                while clock.monotonic() < end && matches!(child.try_wait(), Ok(None)) {
                    sleep(LOOK);
                }
                drop(Guarded(child));
            }
        }
        end_all(&self.root);
        for file in runtime_files_of(&self.root) {
            let _ = fs::remove_file(file);
        }
        // A second panic would end the whole test program.
        if !std::thread::panicking() {
            assert_eq!(logs_with_panics(&self.root), Vec::<String>::new());
        }
    }
}

/// What servers wrote that panicked: locks that are taken in the wrong order do that in a debug build.
fn logs_with_panics(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let logs = entries.filter(|path| path.extension().is_some_and(|kind| kind == "log"));
    let texts = logs.map(|log| String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned());
    texts.filter(|text| text.contains("panicked")).collect()
}

/// A mounted tree.
pub struct Live {
    root: PathBuf,
}

impl Live {
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// A file of head.
    pub fn head(&self, name: &str) -> PathBuf {
        self.root.join("head/bigfile").join(name)
    }

    /// A file of a revision.
    pub fn rev(&self, tid: &str, name: &str) -> PathBuf {
        self.root.join(format!("@{tid}/bigfile")).join(name)
    }

    /// What `head/at` shows.
    pub fn at(&self) -> String {
        fs::read_to_string(self.path("head/at")).unwrap()
    }

    /// Waits until `head/at` shows `tid` or a later one.
    pub fn wait(&self, tid: &str) {
        wait_until("head/at moves", || self.at().as_str() >= tid);
    }

    /// A gauge or a counter of `.revfs/stats`.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = fs::read_to_string(self.path(".revfs/stats")).unwrap();
        let mut values = stats.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.next().unwrap_or_else(|| panic!("no {name} in {stats}")).parse().unwrap()
    }

    /// Process of the server.
    pub fn pid(&self) -> u32 {
        fs::read_to_string(self.path(".revfs/pid")).unwrap().trim().parse().unwrap()
    }

    /// Sends a signal to the server.
    pub fn signal(&self, signal: rustix::process::Signal) {
        signal_to(self.pid(), signal);
    }
}

/// Sends a signal to a process.
pub fn signal_to(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
