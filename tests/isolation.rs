//! Isolation through a real mount: clients that map head and say as of which revision they work.
//!
//! Invariant: what is expected of the wire is written down frame by frame. A test that could be killed by the server
//! as a faulty client does its faults in a process of its own.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/datafs.rs"]
mod datafs;
#[path = "common/link.rs"]
mod link;
#[path = "common/live.rs"]
mod live;
#[path = "common/puppet.rs"]
mod puppet;
#[path = "isolation/soak.rs"]
mod soak;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use datafs::DataFs;
use link::{Movable, WatchFile, file_id, read};
use live::{Guarded, Live, Place, SOON, end_of, no_fuse, signal_to, wait_until};
use revfs::env::sleep;

const BLOCK: usize = 64 << 10;

/// Bytes of a file whose blocks are each filled with one value.
fn filled(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|value| vec![*value; BLOCK]).collect()
}

/// Commits a file `a` of such blocks.
fn commit(place: &Place, values: &[u8]) -> String {
    fs::write(place.path("source"), filled(values)).unwrap();
    place.ok(&["commit", "s", "a=source", "--block-size", "64K"])
}

/// Commits and waits until head shows it.
fn commit_shown(place: &Place, live: &Live, values: &[u8]) -> String {
    let tid = commit(place, values);
    live.wait(&tid);
    tid
}

#[test]
fn a_watched_mapping_keeps_its_revision_while_others_see_the_newest() {
    if no_fuse("a_watched_mapping_keeps_its_revision") {
        return;
    }
    let place = Place::new();
    let t1 = commit(&place, &[1, 1, 1, 1]);
    let live = place.mount();
    assert_eq!(
        read(live.root(), "head", "a"),
        filled(&[1, 1, 1, 1]),
        "all of it is read, so all may be pinned"
    );
    let file = file_id(&live.head("a"));
    let map = Movable::new(live.root(), "a", BLOCK, 4);
    let mut link = WatchFile::open(live.root());
    assert_eq!(link.ask(&format!("1 watch {file} @{t1}")), "1 ok");
    let t2 = commit_shown(&place, &live, &[1, 2, 1, 2]);
    std::thread::scope(|scope| {
        // A page fault of this process waits until this process has mapped the block elsewhere.
        let faulting = scope.spawn(|| map.first_byte(1));
        let pin = link.hear();
        assert_eq!(pin, format!("2 pin {file} #1 @{t1}"));
        assert!(!faulting.is_finished());
        link.say(&map.obey(&pin));
        assert_eq!(faulting.join().unwrap(), 1, "as of @{t1}");
    });
    let (all, pin) = std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(live.root(), "head", "a"));
        let pin = link.hear();
        link.say(&map.obey(&pin));
        (reading.join().unwrap(), pin)
    });
    assert_eq!(pin, format!("4 pin {file} #3 @{t1}"));
    assert_eq!(all, filled(&[1, 2, 1, 2]), "who does not watch sees @{t2}");
    assert_eq!((0..4).map(|block| map.first_byte(block)).collect::<Vec<_>>(), [1, 1, 1, 1]);
    // Moving on takes the pins back, and then says so.
    link.say(&format!("3 watch {file} @{t2}"));
    for stream in [6, 8] {
        let unpin = link.hear();
        assert!(unpin.starts_with(&format!("{stream} pin {file} #")) && unpin.ends_with(" @head"), "{unpin}");
        link.say(&map.obey(&unpin));
    }
    assert_eq!(link.hear(), "3 ok");
    assert_eq!((0..4).map(|block| map.first_byte(block)).collect::<Vec<_>>(), [1, 2, 1, 2]);
    link.say("5 bye");
    assert_eq!(link.hear(), "");
    // Else the mount is busy.
    drop((map, link));
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn a_set_up_pins_what_was_read_and_changed_and_nothing_else() {
    if no_fuse("a_set_up_pins_what_was_read_and_changed") {
        return;
    }
    let place = Place::new();
    let t1 = commit(&place, &[1, 1, 1, 1, 1, 1]);
    let live = place.mount();
    let file = file_id(&live.head("a"));
    let map = Movable::new(live.root(), "a", BLOCK, 6);
    let page = |block: usize| {
        let opened = fs::File::open(live.head("a")).unwrap();
        rustix::fs::fadvise(&opened, 0, None, rustix::fs::Advice::Random).unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&opened, &mut byte, (block * BLOCK) as u64).unwrap();
    };
    page(1);
    page(4);
    let t2 = commit_shown(&place, &live, &[1, 2, 2, 1, 1, 2]);
    let mut link = WatchFile::open(live.root());
    // Blocks 2 and 5 changed too, but nobody has read them, and block 4 was read and did not change.
    let pin = link.ask(&format!("1 watch {file} @{t1}"));
    assert_eq!(pin, format!("2 pin {file} #1 @{t1}"));
    link.say(&map.obey(&pin));
    assert_eq!(link.hear(), "1 ok");
    assert_eq!(link.ask(&format!("3 watch {file} @{t1}")), "3 ok", "no pin twice");
    assert_eq!(
        link.ask("5 watch 00000000000000ff @0000000000000000"),
        "5 error setup watch f00000000000000ff @0000000000000000: file not yet known to wcfs or is not a ZBigFile"
    );
    let unpin = link.ask(&format!("7 watch {file} @{t2}"));
    assert_eq!(unpin, format!("4 pin {file} #1 @head"));
    link.say(&map.obey(&unpin));
    assert_eq!(link.hear(), "7 ok");
    assert_eq!(
        link.ask(&format!("9 watch {file} @{t1}")),
        format!("9 error setup watch f{file} @{t1}: going back in history is forbidden")
    );
    assert_eq!(link.ask(&format!("11 watch {file} -")), "11 ok");
}

#[test]
fn a_write_that_waits_for_a_pin_does_not_lock_out_its_ack() {
    if no_fuse("a_write_that_waits_for_a_pin") {
        return;
    }
    let place = Place::new();
    let t1 = commit(&place, &[1, 2]);
    // If it did, this process would be killed after the time for a pin.
    let live = place.mount_with("m", &["--pin-timeout", "20s"]);
    let file = file_id(&live.head("a"));
    let mut link = WatchFile::open(live.root());
    assert_eq!(link.ask(&format!("1 watch {file} @{t1}")), "1 ok", "nothing was read");
    commit_shown(&place, &live, &[b'\n', 2]);
    let map = Movable::new(live.root(), "a", BLOCK, 2);
    let mut other = WatchFile::open(live.root());
    std::thread::scope(|scope| {
        // Its bytes are those of head, which are read after the pin, and are no frame.
        let (other, map) = (&mut other, &map);
        let writer = scope.spawn(move || other.say_from(map, 0));
        assert_eq!(link.hear(), format!("2 pin {file} #0 @{t1}"));
        assert!(!writer.is_finished());
        link.say("2 ack");
        writer.join().unwrap();
    });
    assert!(other.hear().contains("error"), "an empty line is no frame");
}

#[test]
fn a_server_that_did_not_run_blames_nobody() {
    if no_fuse("a_server_that_did_not_run") {
        return;
    }
    let place = Place::new();
    let t1 = commit(&place, &[1, 1]);
    let live = place.mount_with("m", &["--pin-timeout", "4s"]);
    let file = file_id(&live.head("a"));
    let mut link = WatchFile::open(live.root());
    assert_eq!(link.ask(&format!("1 watch {file} @{t1}")), "1 ok", "nothing was read");
    commit_shown(&place, &live, &[1, 2]);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(live.root(), "head", "a"));
        assert_eq!(link.hear(), format!("2 pin {file} #1 @{t1}"));
        // Nobody can do what it is told while nothing is answered. If it counted, this process would be killed.
        let pid = live.pid();
        signal_to(pid, rustix::process::Signal::STOP);
        sleep(Duration::from_secs(6));
        signal_to(pid, rustix::process::Signal::CONT);
        wait_until("it looks who is late", || live.stat("behind_ms") > 0);
        link.say("2 ack");
        assert_eq!(reading.join().unwrap(), filled(&[1, 2]));
    });
    assert_eq!(live.stat("kills"), 0);
}

#[test]
fn every_byte_that_clients_see_is_that_of_their_revision() {
    if no_fuse("every_byte_that_clients_see") {
        return;
    }
    soak::native();
}

#[test]
fn every_byte_that_clients_see_of_a_zodb_is_that_of_their_revision() {
    if no_fuse("every_byte_that_clients_see_of_a_zodb") {
        return;
    }
    soak::zodb();
}

#[test]
fn a_file_that_shrinks_is_pinned_before_anybody_learns_its_size() {
    if no_fuse("a_file_that_shrinks_is_pinned") {
        return;
    }
    let place = Place::new();
    let t1 = commit(&place, &[1, 2, 3, 4, 5]);
    let live = place.mount();
    let size = || fs::metadata(live.head("a")).unwrap().len();
    let file = file_id(&live.head("a"));
    let map = Movable::new(live.root(), "a", BLOCK, 5);
    let mut link = WatchFile::open(live.root());
    assert_eq!(link.ask(&format!("1 watch {file} @{t1}")), "1 ok", "nothing was read");
    // Cut within block 2.
    fs::write(place.path("source"), &filled(&[1, 2, 3])[..2 * BLOCK + BLOCK / 2]).unwrap();
    let t2 = place.ok(&["commit", "s", "a=source"]);
    for (stream, block) in [(2, 2), (4, 3), (6, 4)] {
        let pin = link.hear();
        assert_eq!(pin, format!("{stream} pin {file} #{block} @{t1}"));
        assert_eq!((size(), live.at()), (5 * BLOCK as u64, t1.clone()), "until all is acked");
        let ack = map.obey(&pin);
        assert_eq!(map.first_byte(block), block as u8 + 1, "no SIGBUS");
        link.say(&ack);
    }
    live.wait(&t2);
    assert_eq!(size(), 2 * BLOCK as u64 + BLOCK as u64 / 2);
    assert_eq!((0..5).map(|block| map.first_byte(block)).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    // Who comes later and works before the cut is told the same.
    let late = Movable::new(live.root(), "a", BLOCK, 5);
    let mut other = WatchFile::open(live.root());
    other.say(&format!("1 watch {file} @{t1}"));
    for block in 2..5 {
        let pin = other.hear();
        assert!(pin.ends_with(&format!("pin {file} #{block} @{t1}")), "{pin}");
        other.say(&late.obey(&pin));
    }
    assert_eq!(other.hear(), "1 ok");
    assert_eq!((2..5).map(|block| late.first_byte(block)).collect::<Vec<_>>(), [3, 4, 5]);
    // And who works after it is not.
    let mut after = WatchFile::open(live.root());
    assert_eq!(after.ask(&format!("1 hello size\n3 watch {file} @{t2}")), "1 ok size");
    assert_eq!(after.hear(), format!("3 ok size={}", 2 * BLOCK + BLOCK / 2));
}

#[test]
fn a_file_that_gets_another_block_size_stays_what_it_was_for_who_has_it() {
    if no_fuse("a_file_that_gets_another_block_size") {
        return;
    }
    const HALF: usize = BLOCK / 2;
    let place = Place::empty();
    let mut data = DataFs::create(&place.path("Data.fs"));
    let whole = |value: u8| Some(vec![value; BLOCK]);
    let t1 = data.write("a", BLOCK as u64, vec![(0, whole(1)), (1, whole(1))]);
    data.write("b", BLOCK as u64, vec![(0, whole(7))]);
    let (name, other) = (data.name("a"), data.name("b"));
    let live = place.mount_store("Data.fs", "m", &[]);
    let file = file_id(&live.head(&name));
    let map = Movable::new(live.root(), &name, BLOCK, 2);
    // The kernel keeps the name by which it was found.
    let opened = fs::File::open(live.path("head/by-id").join(&file)).unwrap();
    let mut link = WatchFile::open(live.root());
    assert_eq!(link.ask(&format!("1 watch {file} @{t1}")), "1 ok");
    let t2 = data.write("a", BLOCK as u64, vec![(1, whole(2))]);
    live.wait(&t2.to_string());
    let t3 = data.remake("a", HALF as u64, &[9, 8, 7, 4].map(|value| vec![value; HALF]));
    live.wait(&t3.to_string());
    // The mapping goes on at its revision, in its own blocks.
    assert_eq!(map.first_byte(0), 1);
    std::thread::scope(|scope| {
        let faulting = scope.spawn(|| map.first_byte(1));
        let pin = link.hear();
        assert_eq!(pin, format!("2 pin {file} #1 @{t1}"));
        link.say(&map.obey(&pin));
        assert_eq!(faulting.join().unwrap(), 1);
    });
    // And who has it open sees it as it was last.
    let last = |opened: &fs::File| {
        let mut bytes = vec![0; 2 * BLOCK + 1];
        let len = std::os::unix::fs::FileExt::read_at(opened, &mut bytes, 0).unwrap();
        bytes.truncate(len);
        bytes
    };
    assert_eq!(last(&opened), filled(&[1, 2]));
    assert_eq!(opened.metadata().unwrap().len(), 2 * BLOCK as u64);
    // Its names are refused until all have let go of it, other files and revisions are not.
    let stale = |path: PathBuf| fs::read(path).unwrap_err().raw_os_error();
    let estale = Some(rustix::io::Errno::STALE.raw_os_error());
    assert_eq!(stale(live.head(&name)), estale);
    assert_eq!(fs::read(live.head(&other)).unwrap(), filled(&[7]));
    let halves = |values: &[u8]| filled(values).chunks(2).map(|pair| pair[0]).collect::<Vec<u8>>();
    assert_eq!(read(live.root(), &format!("@{t3}"), &name), halves(&[9, 8, 7, 4]));
    assert_eq!(read(live.root(), &format!("@{t2}"), &name), filled(&[1, 2]));
    for (stream, at) in [(3, t2), (5, t3)] {
        assert!(link.ask(&format!("{stream} watch {file} @{at}")).starts_with(&format!("{stream} error ")));
    }
    // What becomes of the new one concerns nobody who has the old one.
    let t4 = data.remake("a", HALF as u64, &[vec![6; HALF], vec![6; HALF], vec![6; HALF]]);
    live.wait(&t4.to_string());
    link.expect_quiet();
    assert_eq!((map.first_byte(0), map.first_byte(1)), (1, 1));
    assert_eq!(last(&opened), filled(&[1, 2]));
    drop((map, link));
    assert_eq!(stale(live.head(&name)), estale);
    assert_eq!(stale(live.path("head/by-id").join(&file)), estale);
    drop(opened);
    wait_until("it is the new one", || fs::read(live.head(&name)).is_ok_and(|now| now == halves(&[6; 3])));
    // That one is watched in blocks of its own.
    let t5 = data.write("a", HALF as u64, vec![(2, Some(vec![5; HALF]))]);
    live.wait(&t5.to_string());
    assert_eq!(read(live.root(), "head", &name), halves(&[6, 6, 5]));
    let mut link = WatchFile::open(live.root());
    assert_eq!(link.ask(&format!("1 watch {file} @{t4}")), format!("2 pin {file} #2 @{t4}"));
    assert_eq!(link.ask("2 ack"), "1 ok");
}

#[test]
fn a_file_that_is_made_anew_with_another_block_size_is_another_one() {
    if no_fuse("a_file_that_is_made_anew") {
        return;
    }
    for at_once in [false, true] {
        let place = Place::empty();
        let mut data = DataFs::create(&place.path("Data.fs"));
        data.write("a", BLOCK as u64, vec![(0, Some(vec![1; BLOCK])), (1, Some(vec![2; BLOCK]))]);
        let name = data.name("a");
        let live = place.mount_store("Data.fs", "m", &[]);
        let opened = fs::File::open(live.head(&name)).unwrap();
        let map = Movable::new(live.root(), &name, BLOCK, 2);
        let server = live.pid();
        if at_once {
            // Both become one head.
            signal_to(server, rustix::process::Signal::STOP);
        }
        let gone = data.remove("a");
        if !at_once {
            live.wait(&gone.to_string());
        }
        let anew = data.remake("a", BLOCK as u64 / 2, &[vec![9; BLOCK / 2]]);
        signal_to(server, rustix::process::Signal::CONT);
        live.wait(&anew.to_string());
        assert_eq!((map.first_byte(0), map.first_byte(1)), (1, 2));
        let mut bytes = vec![0; 2 * BLOCK];
        std::os::unix::fs::FileExt::read_exact_at(&opened, &mut bytes, 0).unwrap();
        assert_eq!(bytes, filled(&[1, 2]));
        let refused = fs::read(live.head(&name)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::STALE.raw_os_error()));
        drop((map, opened));
        wait_until("it is the new one", || {
            fs::read(live.head(&name)).is_ok_and(|now| now == vec![9; BLOCK / 2])
        });
    }
}

#[test]
fn the_command_watch_shows_pins_as_they_come() {
    if no_fuse("the_command_watch_shows_pins") {
        return;
    }
    let place = Place::new();
    let t1 = commit(&place, &[1, 1, 1, 1]);
    place.ok(&["tag", "s", "start"]);
    let live = place.mount();
    read(live.root(), "head", "a");
    commit_shown(&place, &live, &[2, 1, 2, 2]);
    let mut command = place.command(&["watch", "m", "a", "--at", "start"]);
    let mut child = Guarded(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), format!("pin  block 0  @{t1}"));
    assert_eq!(next(), format!("pin  blocks 2-3  @{t1}"));
    assert_eq!(next(), format!("ok  @{t1}  {} bytes", 4 * BLOCK));
    commit_shown(&place, &live, &[2, 3, 2, 2]);
    read(live.root(), "head", "a");
    assert_eq!(next(), format!("pin  block 1  @{t1}"));
    // Not SIGINT: what a shell runs in the background ignores it.
    signal_to(child.0.id(), rustix::process::Signal::TERM);
    end_of(&mut child.0, SOON);
    place.fails(&["watch", "m", "nothing"], 3, "m/head/bigfile/nothing: No such file");
    place.fails(&["watch", "m", "a", "--at", "nothing"], 3, "m/@nothing: No such file");
    for not_mounted in ["s", "source", "none"] {
        let why = format!("{not_mounted}: nothing is mounted there, or not by revfs: `revfs status` lists");
        place.fails(&["watch", not_mounted, "a"], 3, &why);
    }
    let before = "setup watch";
    place.fails(&["watch", "m", "a", "--at", "0000000000000001"], 3, before);
    live.signal(rustix::process::Signal::KILL);
    wait_until("the mount is dead", || fs::metadata(live.path("head/at")).is_err());
    place.fails(&["watch", "m", "a"], 1, "m: its server is gone: `revfs umount m` cleans what it left");
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn more_pins_than_the_mount_allows_become_fewer_or_are_refused() {
    if no_fuse("more_pins_than_the_mount_allows") {
        return;
    }
    let place = Place::new();
    let values = |changed: &[usize], new: u8| -> Vec<u8> {
        (0..8).map(|block| if changed.contains(&block) { new } else { 1 }).collect()
    };
    commit(&place, &[1; 8]);
    let t2 = commit(&place, &values(&[1, 4], 2));
    let live = place.mount_with("m", &["--pins", "2"]);
    // What is cut off cannot be refused.
    let mut child = place.command(&["watch", "m", "a"]);
    let mut child = Guarded(child.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), format!("ok  @{t2}  {} bytes", 8 * BLOCK));
    commit_shown(&place, &live, &[1]);
    assert_eq!(lines.next().unwrap().unwrap(), format!("pin  blocks 1-7  @{t2}"));
    drop(child);
    commit_shown(&place, &live, &[3; 8]);
    read(live.root(), "head", "a");
    let watch = |at: &str| {
        let mut child = place.command(&["watch", "m", "a", "--at", at]);
        let mut child = Guarded(child.stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        [lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap()]
    };
    // Blocks of two revisions by turns would be five pins.
    assert_eq!(watch(&t2), [format!("pin  blocks 0-7  @{t2}"), format!("ok  @{t2}  {} bytes", 8 * BLOCK)]);
    // Nothing is between these.
    let t3 = live.at();
    let shown = [3, 4, 3, 4, 3, 4, 3, 3];
    commit_shown(&place, &live, &shown);
    read(live.root(), "head", "a");
    place.fails(
        &["watch", "m", "a", "--at", &t3],
        3,
        "too many pins: 3 > 2; watch a later state, or mount with more --pins: see `revfs log",
    );
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn a_file_of_very_many_blocks_that_shrinks_takes_no_memory_for_each() {
    if no_fuse("a_file_of_very_many_blocks_that_shrinks") {
        return;
    }
    let place = Place::empty();
    place.ok(&["init", "s", "--block-size", "4K"]);
    let commit_sized = |size: u64| {
        let file = fs::File::create(place.path("source")).unwrap();
        file.set_len(size).unwrap();
        place.ok(&["commit", "s", "a=source"])
    };
    let size = 1 << 40;
    let t1 = commit_sized(size);
    let live = place.mount();
    let mut child = place.command(&["watch", "m", "a", "--at", &t1]);
    let mut child = Guarded(child.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), format!("ok  @{t1}  {size} bytes"));
    let t2 = commit_sized(4096);
    assert_eq!(next(), format!("pin  blocks 1-{}  @{t1}", size / 4096 - 1));
    wait_until("it is shown", || live.at() == t2);
    assert_eq!(live.stat("pinned_blocks"), size / 4096 - 1);
    // One byte for each block would be 256M.
    let status = fs::read_to_string(format!("/proc/{}/status", live.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(peak < 200 << 10, "{peak} kB");
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

/// Value of each sample of a text in the format of Prometheus; each has to be announced before.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut announced = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(announced.insert(name.to_owned(), kind.to_owned()), None, "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            let kind = |name: &str| announced.get(name).map(String::as_str);
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|end| name.strip_suffix(end))
                .any(|name| kind(name) == Some("histogram"));
            assert!(of_histogram || matches!(kind(name), Some("gauge" | "counter")), "{line}");
            assert_eq!(samples.insert(key.to_owned(), value.parse().unwrap()), None, "{key} twice");
        }
    }
    samples
}

#[test]
fn status_and_metrics_show_who_watches_and_who_is_slow() {
    if no_fuse("status_and_metrics_show_who_watches") {
        return;
    }
    let place = Place::new();
    let t1 = commit(&place, &[1, 1]);
    let live = place.mount();
    assert_eq!(read(live.root(), "head", "a"), filled(&[1, 1]));
    let file = file_id(&live.head("a"));
    let mut link = WatchFile::open(live.root());
    assert_eq!(link.ask(&format!("1 watch {file} @{t1}")), "1 ok");
    commit_shown(&place, &live, &[1, 2]);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(live.root(), "head", "a"));
        let pin = link.hear();
        assert_eq!(pin, format!("2 pin {file} #1 @{t1}"));
        let status = place.ok(&["status", "m"]);
        let client = status.lines().find(|line| line.starts_with("  client  ")).unwrap();
        assert!(
            client.contains(&format!("({}): watches 1 file, oldest at @{t1}", std::process::id())),
            "{client}"
        );
        assert!(client.contains(", 1 block pinned, owes 1 ack for "), "{client}");
        let json: serde_json::Value = serde_json::from_str(&place.ok(&["status", "m", "--json"])).unwrap();
        assert_eq!(json["links"][0]["watches"][0]["file"], *file);
        assert!(json["links"][0]["owed_for"].as_f64().unwrap() > 0.0);
        link.say("2 ack");
        assert_eq!(reading.join().unwrap(), filled(&[1, 2]));
    });
    let status = place.ok(&["status", "m"]);
    let slowest = status
        .lines()
        .find_map(|line| line.split_once(", 1 block pinned, slowest ack ")?.1.strip_suffix(" s"));
    assert!(
        slowest.is_some_and(|seconds| seconds.parse::<f64>().is_ok_and(|seconds| seconds > 0.0)),
        "{status}"
    );
    let metrics = || fs::read_to_string(live.path(".revfs/metrics")).unwrap();
    // How long a READ took is known after its answer.
    wait_until("its READs are counted", || samples(&metrics())["revfs_read_seconds_count"] >= 2.0);
    let text = metrics();
    let samples = samples(&text);
    for (name, value) in [
        ("links", 1.0),
        ("watches", 1.0),
        ("kills_total", 0.0),
        ("following", 1.0),
        ("pin_seconds_count", 1.0),
    ] {
        assert_eq!(samples[&format!("revfs_{name}")], value, "{name}: {text}");
    }
    for name in ["read", "pin", "show"] {
        let bucket = |bound: &str| samples[&format!("revfs_{name}_seconds_bucket{{le=\"{bound}\"}}")];
        assert!(bucket("0.000001") <= bucket("33.554432") && bucket("33.554432") <= bucket("+Inf"), "{text}");
        assert_eq!(bucket("+Inf"), samples[&format!("revfs_{name}_seconds_count")]);
    }
    assert!(samples["revfs_at_timestamp_seconds"] > 1.7e9, "{text}");
    drop(link);
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}
