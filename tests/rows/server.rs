//! The rows about the server and its mount.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::link::file_id;
use crate::live::wait_until;
use crate::mapping::{Mapping, PAGE};
use crate::stage::{BLOCK, Kind, Stage, filled};
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use rustix::process::Signal;

/// What the server has open.
fn open_files(stage: &Stage) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{}/fd", stage.live.pid())).unwrap().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

pub fn row_02_lookups_wait_for_nobody_and_the_server_never_uses_its_own_mount(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let (file, mut link) = (stage.file(), stage.watching(&t1));
    stage.commit(&[1, 2]);
    stage.commit_to("gone", &[1]);
    let gone = stage.name("gone");
    // Only a native store has folders, and names that change.
    let t3 = stage.commit_to(if kind == Kind::Native { "d/kept" } else { "kept" }, &[1]);
    stage.live.wait(&t3);
    assert!(fs::metadata(stage.live.head(&gone)).is_ok());
    // A READ waits, and with it a commit whose pages it locks; names vanish, and the kernel forgets their files.
    let reading = stage.reading(1);
    assert_eq!(link.hear(), format!("2 pin {file} #1 @{t1}"));
    let t4 = stage.remove("gone");
    stage.live.wait(&t4);
    let t5 = stage.commit_to("a", &[1, 3]);
    let (t6, last) = match kind {
        Kind::Native => (stage.place.ok(&["mv", "s", "d", "e"]), "e/kept".to_owned()),
        Kind::Zodb => (stage.commit_to("last", &[1]), stage.name("last")),
    };
    let rev = |tid: &str, name: &str| fs::metadata(stage.live.path(&format!("@{tid}/{name}")));
    wait_until("it is published", || rev(&t6, &format!("bigfile/{last}")).is_ok());
    // What a client opens to obey a pin, and names of all kinds, also new ones.
    for tid in [&t1, &t3, &t4, &t5] {
        assert_eq!(rev(tid, &format!("by-id/{file}")).unwrap().len(), 2 * BLOCK as u64);
    }
    let was_there = [&t3, &t4].map(|tid| rev(tid, &format!("bigfile/{gone}")).is_ok());
    assert_eq!(was_there, [true, false]);
    assert!(fs::metadata(stage.live.head(&gone)).is_err() && fs::metadata(stage.head("a")).is_ok());
    let names = fs::read_dir(stage.live.path(&format!("@{t6}/bigfile"))).unwrap().count();
    assert_eq!(names, if kind == Kind::Native { 2 } else { 3 });
    assert!(reading.waits());
    let own: Vec<_> =
        open_files(&stage).into_iter().filter(|path| path.starts_with(stage.live.root())).collect();
    assert_eq!(own, [] as [PathBuf; 0]);
    link.say("2 ack");
    assert!([2, 3].contains(&reading.value()));
    stage.live.wait(&t6);
    drop(link);
    stage.end();
}

pub fn row_07_no_path_and_no_offset_hurts_the_server(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1]);
    let at = File::open(stage.live.path("head/at")).unwrap();
    let mut buffer = [0; 32];
    for (offset, count) in [(0, 16), (15, 1), (16, 0), (17, 0), (100, 0), (1 << 62, 0)] {
        assert_eq!(at.read_at(&mut buffer, offset).unwrap(), count, "{offset}");
    }
    let empty = stage.live.path("@0000000000000000");
    assert_eq!(fs::read_dir(empty.join("bigfile")).unwrap().count(), 0);
    let errno = |path: PathBuf| Errno::from_io_error(&fs::metadata(path).unwrap_err()).unwrap();
    let [name, id] = [format!("bigfile/{}", stage.name("a")), format!("by-id/{}", stage.file())];
    for below in [&name, &id, "head", "at", "watch"] {
        assert_eq!(errno(empty.join(below)), Errno::NOENT, "{below}");
    }
    let mut link = stage.link();
    let (pins, answer) = link.ask_and_ack(&format!("watch {} @0000000000000000", stage.file()));
    assert!(pins.is_empty() && answer.contains(&format!("file epoch detected @{t1}")), "{answer}");
    for name in
        ["@", "@x", "@000000000000000", "@00000000000000000", "@ffffffffffffffff", "head/at/x", "\u{ff}"]
    {
        assert!(
            [Errno::INVAL, Errno::NOENT, Errno::NOTDIR].contains(&errno(stage.live.path(name))),
            "{name}"
        );
    }
    link.expect_quiet();
    assert!(stage.read() == filled(&[1]));
    drop((at, link));
    stage.end();
}

pub fn row_09_an_end_of_one_file_is_told_to_who_watches_it_and_to_nobody_else(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let t2 = stage.commit_to("b", &[2]);
    stage.live.wait(&t2);
    let (gone, b) = (stage.file(), file_id(&stage.head("b")));
    let mut link = stage.watching(&t1);
    let (pins, answer) = link.ask_and_ack(&format!("watch {b} @{t2}"));
    assert_eq!((pins.len(), answer.as_str()), (0, "ok"));
    let old = File::open(stage.head("a")).unwrap();
    // Removed, and made anew under the same name: another file.
    stage.remove("a");
    let t4 = stage.commit(&[4, 4]);
    assert_ne!(stage.file(), gone);
    let (pins, answer) = link.ask_and_ack(&format!("watch {gone} @{t4}"));
    assert_eq!(pins.len(), 0);
    assert!(answer.starts_with("error setup watch"), "{answer}");
    let (pins, answer) = link.ask_and_ack(&format!("watch {b} @{t4}"));
    assert_eq!((pins.len(), answer.as_str()), (0, "ok"), "the link and its other watches live");
    // Who has the old one open goes on reading it, as on a local disk.
    let mut first = [0; 1];
    old.read_exact_at(&mut first, BLOCK as u64).unwrap();
    assert_eq!((first[0], stage.read() == filled(&[4, 4])), (1, true));
    drop((link, old));
    stage.end();
}

pub fn row_15_a_store_that_is_lost_for_a_while_is_served_on(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let t2 = stage.commit_to("b", &[2, 2]);
    stage.live.wait(&t2);
    assert!(stage.read() == filled(&[1, 1]));
    let [there, away] = [stage.store(), "away"].map(|name| stage.place.path(name));
    fs::rename(&there, &away).unwrap();
    // What is cached stays, and what is not is an error if nobody has it open: never other bytes, and the server lives.
    assert!(stage.read() == filled(&[1, 1]));
    let read = fs::read(stage.head("b")).map_err(|error| Errno::from_io_error(&error));
    let trouble = || stage.place.run(&["status", "m"]).line().contains("is gone: put it back");
    match kind {
        Kind::Native => assert_eq!(read, Err(Some(Errno::IO))),
        Kind::Zodb => {
            assert!(read == Ok(filled(&[2, 2])));
            wait_until("it is told", trouble);
        }
    }
    assert_eq!(stage.live.at(), t2);
    fs::rename(&away, &there).unwrap();
    wait_until("it is well again", || !trouble());
    assert!(fs::read(stage.head("b")).unwrap() == filled(&[2, 2]));
    stage.commit(&[1, 3]);
    assert!(stage.read() == filled(&[1, 3]));
    assert!(fs::read(stage.rev(&t1, "a")).unwrap() == filled(&[1, 1]));
    stage.place.ok(&["umount", "m"]);
    stage.place.expect_nothing_left();
}

pub fn row_17_nothing_of_a_changed_block_is_read_or_kept_for_nobody(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    assert!(stage.read() == filled(&[1, 1]));
    let reads = stage.live.stat("reads");
    stage.commit(&[1, 2]);
    assert_eq!(stage.live.stat("reads"), reads);
    let old = Mapping::new(&stage.rev(&t1, "a"), 2 * BLOCK);
    assert!(old.cached().iter().all(|cached| !cached), "nobody asked for it");
    assert_eq!((old.at(BLOCK), stage.touch(1)), (1, 2));
    drop(old);
    stage.end();
}

pub fn row_11_revisions_that_were_looked_at_hold_no_descriptor(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1]);
    stage.commit(&[2]);
    let first: u64 = u64::from_str_radix(&t1, 16).unwrap();
    let read = |tid: u64| fs::read(stage.rev(&format!("{tid:016x}"), "a")).unwrap()[0];
    assert_eq!(read(first), 1);
    let before = open_files(&stage).len();
    for tid in first..first + 500 {
        assert_eq!(read(tid), 1);
    }
    let after = open_files(&stage).len();
    assert!(after <= before + 5, "{before} before, {after} after 500 revisions");
    stage.end();
}

pub fn row_14_one_server_a_mount_point_and_any_number_a_store(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let pid = stage.live.pid();
    stage.place.fails(&["mount", stage.store(), "m"], 10, "is served by process");
    assert_eq!(stage.live.pid(), pid, "the first one goes on");
    let other = stage.place.mount_store(stage.store(), "n", &[]);
    assert_ne!(other.pid(), pid);
    // Clients of one are of no concern to the other.
    let mut link = stage.watching(&t1);
    let t2 = stage.commit(&[1, 2]);
    other.wait(&t2);
    assert!(fs::read(other.head(&stage.name("a"))).unwrap() == filled(&[1, 2]));
    link.expect_quiet();
    stage.place.ok(&["umount", "n"]);
    drop(link);
    stage.end();
}

pub fn row_16_a_read_is_answered_with_its_range(kind: Kind) {
    let (stage, _) = Stage::on(kind, &[1]);
    let large = 2 << 20;
    let tid = stage.commit_blocks("large", large, &[7, 7]);
    stage.live.wait(&tid);
    let file = File::open(stage.head("large")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::blksize(&file.metadata().unwrap()), large as u64);
    fadvise(&file, 0, None, Advice::Random).unwrap();
    let before = stage.live.stat("read_bytes");
    let mut page = [0; PAGE];
    for offset in [5 * PAGE, large + 9 * PAGE] {
        file.read_exact_at(&mut page, offset as u64).unwrap();
        assert_eq!(page, [7; PAGE]);
    }
    assert_eq!(stage.live.stat("read_bytes") - before, 2 * PAGE as u64, "and not blocks of 2 MiB");
    drop(file);
    stage.end();
}

pub fn row_19_a_stop_leaves_no_mount_and_tells_the_clients(kind: Kind) {
    for signal in [Signal::TERM, Signal::INT] {
        let (stage, t1) = Stage::on(kind, &[1]);
        let mut link = stage.watching(&t1);
        stage.live.signal(signal);
        assert_eq!(link.hear(), "0 error: shutting down", "{signal:?}");
        assert_eq!(link.hear(), "", "{signal:?}");
        drop(link);
        stage.place.expect_nothing_left();
        assert!(!stage.place.path("m").exists(), "{signal:?}");
    }
}

pub fn row_20_statistics_are_there_while_everything_waits(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let (file, mut link) = (stage.file(), stage.watching(&t1));
    stage.commit(&[1, 2]);
    let reading = stage.reading(1);
    assert_eq!(link.hear(), format!("2 pin {file} #1 @{t1}"));
    // A commit whose page is locked, a set-up that waits for it, and one that waits for acks.
    let t3 = stage.commit_to("a", &[1, 3]);
    let (mut ahead, mut asked) = (stage.link(), stage.link());
    let stream = ahead.request(&format!("watch {file} @{t3}"));
    asked.request(&format!("watch {file} @{t1}"));
    assert_eq!(asked.hear(), format!("2 pin {file} #1 @{t1}"));
    wait_until("all of it waits", || stage.live.stat("setups_waiting") == 1);
    let gauges =
        ["links", "watches", "pins_owed", "reads_waiting", "kills"].map(|name| stage.live.stat(name));
    assert_eq!(gauges, [3, 2, 2, 1, 0]);
    let status = stage.place.ok(&["status", "m"]);
    assert!(status.contains("serving"), "{status}");
    assert!(reading.waits());
    link.say("2 ack");
    asked.say("2 ack");
    assert!([2, 3].contains(&reading.value()));
    assert_eq!(ahead.hear(), format!("{stream} ok"));
    drop((link, ahead, asked));
    stage.end();
}
