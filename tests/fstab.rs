//! `mount -t revfs` and lines of fstab: the program under the name `mount.revfs`, as mount(8) calls it.
//!
//! Invariant: the directory of mount helpers is replaced only in a mount namespace of the test.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/live.rs"]
mod live;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use live::{Ended, Place, no_fuse, no_root};

/// A folder with a store `s` and the program as `mount.revfs`.
fn helped() -> Place {
    let place = Place::new();
    place.commit("a", b"1");
    symlink(env!("CARGO_BIN_EXE_revfs"), place.path("mount.revfs")).unwrap();
    place
}

fn helper(place: &Place, args: &[&str]) -> Ended {
    let mut command = Command::new(place.path("mount.revfs"));
    place.run_command(command.args(args).current_dir(place.root()).stdin(Stdio::null()))
}

#[test]
fn under_the_name_mount_revfs_it_takes_what_mount_passes() {
    if no_fuse("under_the_name_mount_revfs") {
        return;
    }
    let place = helped();
    let options = "rw,nofail,_netdev,x-systemd.automount,cache=64M,uid=7,noexec,log=server.log";
    let ended = helper(&place, &["s", "m", "-sn", "-o", options, "-t", "revfs"]);
    assert_eq!((ended.code(), &*ended.err, ended.line()), (0, "", String::new()));
    assert_eq!(fs::read(place.path("m/head/bigfile/a")).unwrap(), b"1");
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(place.path("m/head/bigfile/a")).unwrap()),
        7
    );
    assert!(place.path("server.log").exists());
    let mounts = live::mounts_below(place.root());
    assert!(mounts[0].options.split(',').any(|option| option == "noexec"), "{mounts:?}");
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
    // Only tried (`mount --fake`): nothing is mounted.
    assert_eq!(helper(&place, &["s", "m", "-f", "-o", "rw"]).code(), 0);
    assert_eq!(live::mounts_below(place.root()), []);
}

#[test]
fn what_it_does_not_know_is_refused_by_name() {
    let place = helped();
    for (args, text) in [
        (&["s", "m", "-o", "rw,cach=4G"][..], "mount.revfs: cach=4G: is not an option of a mount of revfs"),
        (&["s", "m", "-o", "remount"], "remount: "),
        (&["s", "m", "-o", "cache"], "cache: "),
        (&["s", "m", "-o", "create=1"], "create=1: "),
        (&["s", "m", "-o", "threads=0"], "0 is not in 1..=256"),
        (&["s", "m", "-q"], "-q: "),
        (&["s", "m", "-o"], "-o: "),
        (&["s"], "mount.revfs STORE MNT"),
        (&["s", "m", "n"], "n: "),
    ] {
        let ended = helper(&place, args);
        assert_eq!(ended.code(), 2, "{args:?}: {}", ended.err);
        assert!(ended.err.starts_with("error: ") && ended.err.contains(text), "{args:?}: {}", ended.err);
    }
    // Sloppy: what is not known is left out. That the store is none is still told.
    let ended = helper(&place, &["none", "m", "-s", "-o", "cach=4G"]);
    assert_eq!(ended.code(), 3, "{}", ended.err);
    assert!(ended.err.contains("no such store"), "{}", ended.err);
    assert!(!place.path("m").exists());
    place.expect_nothing_left();
}

#[test]
fn mount_and_a_line_of_fstab_serve_a_store() {
    const TEST: &str = "mount_and_a_line_of_fstab_serve_a_store";
    if no_fuse(TEST) || no_root(TEST) {
        return;
    }
    if !["/usr/bin/unshare", "/usr/bin/mount"].iter().all(|program| Path::new(program).exists()) {
        eprintln!("SKIPPED {TEST}: no unshare or mount here");
        return;
    }
    let place = helped();
    fs::create_dir(place.path("helpers")).unwrap();
    fs::rename(place.path("mount.revfs"), place.path("helpers/mount.revfs")).unwrap();
    fs::create_dir(place.path("m")).unwrap();
    let root = place.root().display();
    let line = format!("{root}/s {root}/m revfs allow_other,threads=2,nofail,user 0 0\n");
    fs::write(place.path("fstab"), line).unwrap();
    let possible = place.run_command(Command::new("unshare").args(["--mount", "true"]).stdin(Stdio::null()));
    if possible.code() != 0 {
        eprintln!("SKIPPED {TEST}: no namespaces here: {}", possible.err);
        return;
    }
    let script = "set -e; mount --bind helpers \"$(readlink -f /sbin)\"
        for args in \"-t revfs -o ro $PWD/s $PWD/m\" \"-T $PWD/fstab $PWD/m\"; do
            mount $args; cat m/head/bigfile/a; findmnt -n -o FSTYPE,OPTIONS $PWD/m; \"$REVFS\" umount m
        done";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "bash", "-c", script]).current_dir(place.root()).stdin(Stdio::null());
    let ended = place.run_command(command.env("REVFS", env!("CARGO_BIN_EXE_revfs")));
    assert_eq!(ended.code(), 0, "{}{}", ended.line(), ended.err);
    let lines: Vec<String> = ended.line().lines().map(str::to_owned).collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line.starts_with("1fuse.revfs ")), "{lines:?}");
    // `user` of fstab means nosuid, nodev and noexec.
    assert!(lines[1].contains("allow_other") && lines[1].contains("noexec"), "{lines:?}");
    assert!(!lines[0].contains("noexec"), "{lines:?}");
    place.expect_nothing_left();
}
