//! The tool as a whole: every row runs on tiny files, and nothing is left behind, whatever happens.
//!
//! Rows that mount need root, /dev/fuse and the command `revfs`; without them this says so and runs the others.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use revfs::env::sleep;
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_bench");
const TINY: [&str; 4] = ["--scale", "0.002", "--pairs", "1"];

fn bench(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BENCH);
    command.args(["--json", "--dir"]).arg(dir).args(arguments);
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    bench(dir, arguments).args(TINY).output().expect("bench starts")
}

/// Whether rows can mount here; says loudly why not.
fn can_mount() -> bool {
    let beside = || PathBuf::from(BENCH).with_file_name("revfs");
    let revfs = std::env::var_os("REVFS_BIN").map_or_else(beside, PathBuf::from);
    let lacks = if !rustix::process::geteuid().is_root() {
        "root"
    } else if !Path::new("/dev/fuse").exists() {
        "/dev/fuse"
    } else if !revfs.exists() {
        "the command revfs (cargo build)"
    } else {
        return true;
    };
    eprintln!("SKIPPED: rows of bench that mount: {lacks} is missing");
    false
}

/// Keys of all rows, in order.
fn listed(dir: &Path) -> Vec<String> {
    let output = bench(dir, &["--list"]).output().expect("bench starts");
    let text = String::from_utf8(output.stdout).expect("keys are ASCII");
    // Groups stand at the margin.
    let rows = text.lines().filter_map(|line| line.strip_prefix("  "));
    rows.filter_map(|row| row.split_whitespace().next()).map(str::to_owned).collect()
}

/// Held by the one test on the machine that runs all rows: they drop its caches and look at the memory that is left. It is a
/// lock of the folder for temporary files, which leaves nothing there.
fn alone() -> File {
    let folder = File::open(std::env::temp_dir()).expect("there is a folder for temporary files");
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive).expect("flock");
    folder
}

fn mounts_below(dir: &Path) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is there");
    mounts.lines().filter(|line| line.contains(&*dir.to_string_lossy())).count()
}

fn assert_clean(dir: &Path) {
    let left: Vec<_> =
        std::fs::read_dir(dir).expect("the folder stays").flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty() && mounts_below(dir) == 0, "left behind: {left:?}");
}

#[test]
fn every_row_runs_and_nothing_is_left() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let only: &[&str] = if can_mount() {
        &[]
    } else {
        &["--only", "lookups", "--only", "small", "--only", "change", "--only", "block-rev"]
    };
    let output = run(dir.path(), only);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["valid"], false);
    let rows = report["rows"].as_array().unwrap();
    for row in rows {
        assert!(row["error"].is_null() && row["median"].is_number() && row["met"].is_null(), "{row}");
    }
    if only.is_empty() {
        let measured: Vec<&str> = rows.iter().filter_map(|row| row["key"].as_str()).collect();
        assert_eq!(measured, listed(dir.path()));
    }
    assert_clean(dir.path());
}

#[test]
fn a_command_that_fails_leaves_rows_out_and_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    for (binary, remedy) in
        [("/bin/false", ""), ("/nowhere/revfs", "build it first with `cargo build --release`")]
    {
        let mut command = bench(dir.path(), &["--only", "small", "--only", "getattr"]);
        let output = command.args(TINY).env("REVFS_BIN", binary).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = report["rows"].as_array().unwrap();
        let failed: Vec<_> = rows.iter().filter(|row| row["error"].is_string()).collect();
        assert!(failed.len() == 1 && failed[0]["key"] == "getattr", "{report}");
        let error = failed[0]["error"].as_str().unwrap();
        assert!(error.contains(binary) && error.contains(remedy), "{report}");
        // Told at the start as well, before rows that take their time.
        let said = String::from_utf8_lossy(&output.stderr);
        let first = said.lines().position(|line| line.contains(remedy) && line.contains(binary));
        let row = said.lines().position(|line| line.contains("small-commits: "));
        assert!(first.is_some() && (remedy.is_empty() || first < row), "{said}");
    }
    assert_clean(dir.path());
}

#[test]
fn wrong_usage_and_a_disk_without_room_are_told() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["--only", "no such row"][..], &["--pairs", "4000000000"]] {
        let output = bench(dir.path(), arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("error: "));
    }
    assert_eq!(run(&dir.path().join("absent"), &[]).status.code(), Some(2));
    assert_clean(dir.path());
}

/// A child that does not outlive a failed test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ctrl_c_unmounts_and_removes() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let child = bench(dir.path(), &["--only", "getattr", "--pairs", "1000", "--scale", "0.002"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    // Its store and the filesystem that only answers.
    for _ in 0..600 {
        if mounts_below(dir.path()) == 2 {
            break;
        }
        sleep(Duration::from_millis(50));
    }
    assert_eq!(mounts_below(dir.path()), 2);
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(130));
    assert_clean(dir.path());
}
