//! The end of a mount, wanted or not: nothing is left of it, and the next command works.
//!
//! Invariant: after each end there is no mount, no server, no run-time file, and no directory that the server
//! made. Tests that list all mounts, or leave a dead one for a while, take turns.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/link.rs"]
mod link;
#[path = "common/live.rs"]
mod live;
#[path = "common/mapping.rs"]
mod mapping;
#[path = "common/noise.rs"]
mod noise;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use link::{WatchFile, file_id};
use live::{
    Guarded, Live, Place, mounts_below, no_fuse, no_root, runtime_files_of, servers_of, signal_to, wait_for,
    wait_until,
};
use mapping::Mapping;
use noise::noise;
use revfs::env::SystemClock;
use rustix::io::Errno;
use rustix::process::Signal;

/// `revfs status` without MNT cleans all dead mounts of the user.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn served() -> (Place, Live) {
    let place = Place::new();
    place.commit("a", &noise(300_000, 1));
    let live = place.mount();
    (place, live)
}

fn errno_of<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_io_error(&result.unwrap_err()).unwrap()
}

/// A process that has its working directory in the mount.
fn sitting_in(dir: &Path) -> Guarded {
    let mut command = Command::new("cat");
    let child = command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    Guarded(child)
}

#[test]
fn umount_sigterm_and_sigint_leave_nothing() {
    if no_fuse("umount_sigterm_and_sigint_leave_nothing") {
        return;
    }
    for way in [None, Some(Signal::TERM), Some(Signal::INT)] {
        for made_before in [false, true] {
            let (place, live) = served();
            if made_before {
                place.ok(&["umount", "m"]);
                fs::create_dir(place.path("m")).unwrap();
                place.mount();
            }
            assert!(!runtime_files_of(place.root()).is_empty());
            match way {
                None => drop(place.ok(&["umount", "m"])),
                Some(signal) => live.signal(signal),
            }
            place.expect_nothing_left();
            assert_eq!(place.path("m").exists(), made_before, "{way:?}");
            // The index was closed in order: it survives the machine.
            assert!(place.index().join("data.mdb").exists() && !place.index().join("unsynced").exists());
            let again = place.mount();
            assert!(fs::read(again.head("a")).unwrap() == noise(300_000, 1));
        }
    }
}

#[test]
fn a_server_in_the_foreground_says_when_it_is_ready_and_ends_by_sigint() {
    if no_fuse("a_server_in_the_foreground") {
        return;
    }
    use std::io::BufRead;
    let place = Place::new();
    let tid = place.commit("a", b"x");
    let mut command = place.command(&["mount", "-f", "s", "m"]);
    let mut child = Guarded(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut line = String::new();
    std::io::BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains(&tid) && line.starts_with("serving "), "{line}");
    assert_eq!(fs::read(place.path("m/head/bigfile/a")).unwrap(), b"x");
    signal_to(child.0.id(), Signal::INT);
    assert_eq!(live::end_of(&mut child.0, Duration::from_secs(30)).code(), Some(0));
    place.expect_nothing_left();
    assert!(!place.path("m").exists());
}

#[test]
fn a_busy_mount_is_taken_from_its_users_when_the_time_is_up() {
    if no_fuse("a_busy_mount_is_taken_from_its_users") {
        return;
    }
    for by_cwd in [false, true] {
        let (place, live) = served();
        let file = (!by_cwd).then(|| File::open(live.head("a")).unwrap());
        let _sitting = by_cwd.then(|| sitting_in(&live.path("head")));
        let clock = SystemClock::shared();
        let start = clock.monotonic();
        place.ok(&["umount", "m", "--timeout", "4s"]);
        let taken = clock.monotonic() - start;
        assert!(taken < Duration::from_secs(8), "{taken:?}");
        place.expect_nothing_left();
        assert!(!place.path("m").exists());
        if let Some(file) = file {
            let mut byte = [0];
            let error = errno_of(file.read_at(&mut byte, 200_000));
            assert!([Errno::NOTCONN, Errno::CONNABORTED, Errno::IO].contains(&error), "{error}");
        }
    }
}

#[test]
fn umount_says_at_once_who_uses_the_mount_and_how_long_it_waits() {
    if no_fuse("umount_says_at_once_who_uses_the_mount") {
        return;
    }
    use std::io::BufRead;
    for (timeout, waits) in [("30s", "up to 15 s"), ("10s", "up to 5 s")] {
        let (place, live) = served();
        // By an open file, and by a mapping of one that is closed.
        let file = (timeout == "30s").then(|| File::open(live.head("a")).unwrap());
        let mapping = file.is_none().then(|| Mapping::new(&live.head("a"), 4096));
        let sitting = sitting_in(&live.path("head"));
        let mut command = place.command(&["umount", "m", "--timeout", timeout]);
        let mut umount = Guarded(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        std::io::BufReader::new(umount.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("note: ") && line.contains(waits), "{line}");
        for user in [format!("cat ({})", sitting.0.id()), format!("({})", std::process::id())] {
            assert!(line.contains(&user), "{user}: {line}");
        }
        assert!(umount.0.try_wait().unwrap().is_none(), "it waits for them");
        drop((file, mapping, sitting));
        assert_eq!(live::end_of(&mut umount.0, Duration::from_secs(30)).code(), Some(0));
        place.expect_nothing_left();
    }
    // Nobody uses it: nothing is said.
    let (place, _live) = served();
    assert_eq!(place.run(&["umount", "m"]).err, "");
}

#[test]
fn a_short_timeout_is_kept_by_the_server_itself_which_ends_in_order() {
    if no_fuse("a_short_timeout_is_kept_by_the_server") {
        return;
    }
    let (place, live) = served();
    let _sitting = sitting_in(&live.path("head"));
    place.ok(&["umount", "m", "--timeout", "6s"]);
    place.expect_nothing_left();
    // Its own last words, after which it closed the index: SIGKILL leaves neither.
    let log = fs::read_to_string(place.path("server.log")).unwrap();
    assert!(log.contains("stop: unmount lazily: Done") && log.contains(": Detached"), "{log}");
    assert!(place.index().join("data.mdb").exists());
    assert!(!place.index().join("unsynced").exists(), "{log}");
}

#[test]
fn a_server_that_stops_waits_for_users_that_let_go_and_takes_no_new_ones() {
    if no_fuse("a_server_that_stops_waits_for_users") {
        return;
    }
    let (place, live) = served();
    let file = File::open(live.head("a")).unwrap();
    live.signal(Signal::TERM);
    let refused = || File::open(live.head("a")).err();
    let error = wait_for("opens are refused", live::SOON, refused);
    assert!(servers_of(place.root()).len() == 1, "it waits: {error}");
    // Who is in goes on: nothing is cut off.
    let mut bytes = vec![0; 300_000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == noise(300_000, 1));
    drop(file);
    place.expect_nothing_left();
    assert!(!place.path("m").exists());
}

/// It may be in the midst of obeying a pin when the server begins to stop.
#[test]
fn a_server_that_stops_opens_files_for_its_clients_alone() {
    if no_fuse("a_server_that_stops_opens_files_for_its_clients_alone") {
        return;
    }
    let (place, live) = served();
    let at = live.at();
    let mut client = WatchFile::open(&live.path(""));
    assert_eq!(client.ask_and_ack(&format!("watch {} @{at}", file_id(&live.head("a")))).1, "ok");
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| place.run(&["umount", "m", "--timeout", "20s"]));
        assert_eq!(client.hear(), "0 error: shutting down");
        assert_eq!(fs::read(live.rev(&at, "a")).unwrap(), noise(300_000, 1));
        assert_eq!(
            errno_of(File::options().read(true).write(true).open(live.path("head/watch"))),
            Errno::SHUTDOWN
        );
        let other = Command::new("cat").arg(live.rev(&at, "a")).stderr(Stdio::piped()).output().unwrap();
        assert!(!other.status.success());
        drop(client);
        let stop = stop.join().unwrap();
        assert_eq!(stop.code(), 0, "{}", stop.err);
    });
    place.expect_nothing_left();
}

#[test]
fn an_unmount_by_somebody_else_ends_the_server() {
    const TEST: &str = "an_unmount_by_somebody_else_ends_the_server";
    if no_fuse(TEST) || no_root(TEST) {
        return;
    }
    let unmount = |live: &Live, lazily: bool| {
        let mut command = Command::new("umount");
        command.args(lazily.then_some("-l")).arg(live.root());
        assert!(command.status().unwrap().success());
    };
    for lazily in [false, true] {
        let (place, live) = served();
        unmount(&live, lazily);
        place.expect_nothing_left();
        assert!(!place.path("m").exists());
    }
    // Detached with a user: that one goes on, and the server ends when it lets go.
    let (place, live) = served();
    let file = File::open(live.head("a")).unwrap();
    unmount(&live, true);
    let mut bytes = vec![0; 300_000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == noise(300_000, 1));
    drop(file);
    place.expect_nothing_left();
}

/// Kills the server, and waits until the kernel has noticed.
fn kill(place: &Place, live: &Live) {
    signal_to(live.pid(), Signal::KILL);
    wait_until("the server dies", || servers_of(place.root()).is_empty());
    wait_until("the mount is dead", || {
        fs::metadata(live.path("head/at")).is_err_and(|error| errno_of::<()>(Err(error)) == Errno::NOTCONN)
    });
}

/// A mount whose server was killed.
fn dead(made_before: bool) -> Place {
    let place = Place::new();
    place.commit("a", b"1");
    if made_before {
        fs::create_dir(place.path("m")).unwrap();
    }
    let live = place.mount();
    kill(&place, &live);
    assert_eq!(mounts_below(place.root()).len(), 1);
    place
}

#[test]
fn what_a_killed_server_left_is_cleaned_by_the_next_command() {
    if no_fuse("what_a_killed_server_left") {
        return;
    }
    let _turn = turn();
    for made_before in [false, true] {
        let place = dead(made_before);
        place.fails(&["status", "m"], 3, "is not mounted");
        place.expect_nothing_left();
        assert_eq!(place.path("m").exists(), made_before);

        let place = dead(made_before);
        let ended = place.run(&["status"]);
        assert_eq!(ended.code(), 0, "{}", ended.err);
        assert!(ended.err.contains("what it left is cleaned"), "{}", ended.err);
        place.expect_nothing_left();
        assert_eq!(place.path("m").exists(), made_before);

        let place = dead(made_before);
        place.ok(&["umount", "m"]);
        place.expect_nothing_left();
        assert_eq!(place.path("m").exists(), made_before);
        place.fails(&["umount", "m"], 3, "is not mounted");

        let place = dead(made_before);
        let live = place.mount();
        assert_eq!(fs::read(live.head("a")).unwrap(), b"1");
        live.wait(&place.commit("a", b"2"));
        assert_eq!(fs::read(live.head("a")).unwrap(), b"2");
        place.ok(&["umount", "m"]);
        place.expect_nothing_left();
    }
}

#[test]
fn status_cleans_what_a_killed_server_left_whose_mount_is_gone() {
    const TEST: &str = "status_cleans_what_a_killed_server_left_whose_mount_is_gone";
    if no_fuse(TEST) || no_root(TEST) {
        return;
    }
    let _turn = turn();
    for made_before in [false, true] {
        let place = dead(made_before);
        assert!(Command::new("umount").arg(place.path("m")).status().unwrap().success());
        let ended = place.run(&["status"]);
        assert_eq!(ended.code(), 0, "{}", ended.err);
        assert!(ended.err.contains(": its server was gone"), "{}", ended.err);
        place.expect_nothing_left();
        assert_eq!(place.path("m").exists(), made_before);
    }
    // Gone with the folder that it was in: only the run-time file is left.
    let place = Place::new();
    fs::create_dir(place.path("in")).unwrap();
    let live = place.mount_at("in/m");
    kill(&place, &live);
    assert!(Command::new("umount").arg(live.root()).status().unwrap().success());
    fs::remove_dir_all(place.path("in")).unwrap();
    let ended = place.run(&["status"]);
    assert_eq!(ended.code(), 0, "{}", ended.err);
    place.expect_nothing_left();
}

#[test]
fn a_killed_server_loses_no_commit() {
    if no_fuse("a_killed_server_loses_no_commit") {
        return;
    }
    let _turn = turn();
    let place = Place::new();
    for round in 0..5u8 {
        let live = place.mount();
        let tid = place.commit("a", &[round; 5000]);
        kill(&place, &live);
        let live = place.mount();
        assert_eq!(live.at(), tid);
        assert_eq!(fs::read(live.rev(&tid, "a")).unwrap(), [round; 5000]);
        kill(&place, &live);
    }
    place.ok(&["umount", "m"]);
    place.ok(&["verify", "s"]);
}

#[test]
fn status_shows_what_is_served() {
    if no_fuse("status_shows_what_is_served") {
        return;
    }
    let _turn = turn();
    let (place, live) = served();
    let text = place.ok(&["status", "m"]);
    let json: serde_json::Value = serde_json::from_str(&place.ok(&["status", "m", "--json"])).unwrap();
    assert!(text.contains("serving") && text.contains(&live.at()), "{text}");
    assert_eq!(json["mount_point"].as_str(), live.root().to_str());
    assert_eq!(json["store"].as_str(), place.path("s").to_str());
    assert_eq!((json["pid"].as_u64(), json["head"].as_str()), (Some(live.pid().into()), Some(&*live.at())));
    assert!(place.ok(&["status"]).contains(live.root().to_str().unwrap()));
    place.fails(&["status", "s"], 3, "is not mounted");
}

/// What `status` says of the mount at `m`.
fn trouble(place: &Place) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(&place.ok(&["status", "m", "--json"])).unwrap();
    json["trouble"].as_str().map(str::to_owned)
}

#[test]
fn status_shows_that_the_log_is_broken_until_it_is_whole_again() {
    if no_fuse("status_shows_that_the_log_is_broken") {
        return;
    }
    let _turn = turn();
    let (place, live) = served();
    let record = |store: &str, seq: u32| place.path(&format!("{store}/commits/{seq:020}"));
    // What is to come, from a copy of the store.
    let copied = Command::new("cp").arg("-r").arg(place.path("s")).arg(place.path("t")).status().unwrap();
    assert!(copied.success());
    fs::remove_dir_all(place.path("t/index")).unwrap();
    fs::write(place.path("source"), b"2").unwrap();
    let tids = ["b", "c"].map(|name| place.ok(&["commit", "t", &format!("{name}=source")]));
    let first = live.at();
    assert_eq!(trouble(&place), None);
    // A gap: the third is there, and the second is not.
    fs::copy(record("t", 3), record("s", 3)).unwrap();
    wait_until("the gap is told", || trouble(&place).is_some_and(|text| text.contains("it is missing")));
    let text = place.ok(&["status", "m"]);
    assert!(text.contains("  trouble  the log is broken at commits/00000000000000000002: "), "{text}");
    assert_eq!(live.at(), first);
    fs::copy(record("t", 2), record("s", 2)).unwrap();
    live.wait(&tids[1]);
    wait_until("the log is whole", || trouble(&place).is_none());
    // A record that is none.
    fs::write(record("s", 4), b"no record").unwrap();
    wait_until("the damage is told", || trouble(&place).is_some_and(|text| text.contains("000004: ")));
    assert_eq!(live.at(), tids[1]);
    assert!(place.ok(&["status"]).contains("  trouble  "));
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn a_fuse_device_that_is_closed_to_the_user_is_named_with_the_remedy() {
    const TEST: &str = "a_fuse_device_that_is_closed_to_the_user";
    if no_fuse(TEST) || no_root(TEST) {
        return;
    }
    let place = Place::empty();
    fs::copy(env!("CARGO_BIN_EXE_revfs"), place.path("revfs")).unwrap();
    fs::create_dir(place.path("run")).unwrap();
    for name in [".", "run"] {
        std::os::unix::fs::chown(place.path(name), Some(65534), Some(65534)).unwrap();
    }
    // In a mount namespace of its own the device is closed, whatever the machine has.
    let namespace = "mknod fuse c 10 229 && chmod 600 fuse && mount --bind fuse /dev/fuse \
        && exec setpriv --reuid=65534 --regid=65534 --clear-groups -- \"$@\"";
    let run = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", namespace, "sh"]).args(words).current_dir(place.root());
        command.env("XDG_RUNTIME_DIR", place.path("run")).env("HOME", place.root()).stdin(Stdio::null());
        let ended = place.run_command(&mut command);
        let _ = fs::remove_file(place.path("fuse"));
        ended
    };
    let possible = run(&["true"]);
    if possible.code() != 0 {
        eprintln!("SKIPPED {TEST}: no namespaces or setpriv here: {}", possible.err);
        return;
    }
    let ended = run(&["./revfs", "mount", "--create", "s", "m"]);
    assert_eq!(ended.code(), 1, "{}", ended.err);
    for part in ["error: ", "/dev/fuse: Permission denied", "chmod 666 /dev/fuse", "as root"] {
        assert!(ended.err.contains(part), "{part}: {}", ended.err);
    }
    place.expect_nothing_left();
    assert!(!place.path("m").exists());
}

#[test]
fn two_mounts_of_one_store_live_and_end_apart() {
    if no_fuse("two_mounts_of_one_store") {
        return;
    }
    let (place, first) = served();
    let second = place.mount_at("n");
    let tid = place.commit("a", b"2");
    for live in [&first, &second] {
        live.wait(&tid);
        assert_eq!(fs::read(live.head("a")).unwrap(), b"2");
    }
    place.ok(&["umount", "m"]);
    assert!(!place.path("m").exists());
    let tid = place.commit("a", b"3");
    second.wait(&tid);
    assert_eq!(fs::read(second.head("a")).unwrap(), b"3");
    place.ok(&["umount", "n"]);
    place.expect_nothing_left();
}

#[test]
fn a_second_mount_at_one_point_is_refused_and_the_first_goes_on() {
    if no_fuse("a_second_mount_at_one_point") {
        return;
    }
    let (place, live) = served();
    place.ok(&["init", "t"]);
    for store in ["s", "t"] {
        place.fails(&["mount", store, "m"], 10, "m");
        place.fails(&["mount", store, "m/"], 10, "m");
        place.fails(&["mount", "-f", store, "./m"], 10, "m");
    }
    assert_eq!((mounts_below(place.root()).len(), servers_of(place.root()).len()), (1, 1));
    assert!(fs::read(live.head("a")).unwrap() == noise(300_000, 1));
    // Of two that start at once, one wins.
    place.ok(&["umount", "m"]);
    for _ in 0..5 {
        let start = || place.command(&["mount", "s", "m"]).stderr(Stdio::null()).spawn().unwrap();
        let mut both = [Guarded(start()), Guarded(start())];
        let limit = Duration::from_secs(30);
        let mut codes = both.each_mut().map(|child| live::end_of(&mut child.0, limit).code());
        codes.sort_unstable();
        assert_eq!(codes, [Some(0), Some(10)]);
        assert_eq!(mounts_below(place.root()).len(), 1);
        place.ok(&["umount", "m"]);
        place.expect_nothing_left();
        assert!(!place.path("m").exists());
    }
}

#[test]
fn a_mount_point_that_cannot_be_one_is_refused_and_left_as_it_is() {
    if no_fuse("a_mount_point_that_cannot_be_one") {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/mine"), b"x").unwrap();
    fs::write(place.path("file"), b"y").unwrap();
    fs::create_dir(place.path("empty")).unwrap();
    for foreground in [&["mount"][..], &["mount", "-f"]] {
        let mount = |store: &'static str, at: &'static str| [foreground, &[store, at]].concat();
        place.fails(&mount("s", "full"), 2, "is not empty");
        place.fails(&mount("s", "file"), 2, "is not a directory");
        place.fails(&mount("s", "none/m"), 3, "none/m: cannot be a mount point: ");
        place.fails(&mount("s", "file/m"), 1, "file/m: cannot be a mount point: ");
        place.fails(&mount("none", "m"), 3, "no such store");
        place.fails(&mount("full", "m"), 6, "is not a revfs store");
        place.fails(&mount("none", "empty"), 3, "no such store");
        place.fails(&mount("s", "/proc"), 10, "a filesystem of type proc is mounted there");
    }
    assert_eq!(fs::read(place.path("full/mine")).unwrap(), b"x");
    assert_eq!(fs::read(place.path("file")).unwrap(), b"y");
    assert!(!place.path("none").exists() && !place.path("m").exists() && place.path("empty").exists());
    place.expect_nothing_left();
    place.fails(&["umount", "empty"], 3, "is not mounted");
    place.fails(&["umount", "none/m"], 3, "none/m");
    place.fails(&["status", "none/m"], 3, "none/m");
    place.fails(&["umount", "/proc"], 1, "is a mount of type proc, not of revfs");
}

#[test]
fn create_makes_the_store_or_takes_the_one_that_is_there() {
    if no_fuse("create_makes_the_store") {
        return;
    }
    let place = Place::empty();
    place.ok(&["mount", "--create", "s", "m"]);
    let tid = place.commit("a", b"1");
    place.ok(&["umount", "m"]);
    place.ok(&["mount", "--create", "s", "m"]);
    assert_eq!(fs::read(place.path(&format!("m/@{tid}/bigfile/a"))).unwrap(), b"1");
    place.ok(&["umount", "m"]);
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/mine"), b"x").unwrap();
    let ended = place.run(&["mount", "--create", "full", "m"]);
    assert_ne!(ended.code(), 0);
    assert_eq!(fs::read_dir(place.path("full")).unwrap().count(), 1);
    place.expect_nothing_left();
    assert!(!place.path("m").exists());
}

#[test]
fn a_store_that_is_deleted_while_it_is_served_gives_errors_and_the_server_stops_in_order() {
    if no_fuse("a_store_that_is_deleted") {
        return;
    }
    let (place, live) = served();
    let tid = live.at();
    fs::remove_dir_all(place.path("s")).unwrap();
    // Never other bytes: either all of them, from what was open, or an error.
    for path in [live.head("a"), live.rev(&tid, "a")] {
        match fs::read(&path) {
            Ok(bytes) => assert!(bytes == noise(300_000, 1)),
            Err(error) => assert!([Errno::IO, Errno::NOENT].contains(&errno_of::<()>(Err(error)))),
        }
    }
    assert_eq!(live.at(), tid);
    assert!(place.ok(&["status", "m"]).contains("serving"));
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
    assert!(!place.path("m").exists() && !place.path("s").exists());
}
