//! The rows about watches, pins and clients.

use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use crate::link::{Movable, Pins, WatchFile, file_id};
use crate::live::{Guarded, SOON, end_of, signal_to, wait_until};
use crate::mapping::PAGE;
use crate::puppet::Puppet;
use crate::stage::{BLOCK, Kind, LONG, PAGES, Reading, Stage, filled};
use rustix::process::Signal;

pub fn row_01_a_read_that_waits_and_a_commit_of_its_block_do_not_wait_for_each_other(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 1]);
    let mut link = stage.watching(&t1);
    let t2 = stage.commit(&[1, 2, 1]);
    let reading = stage.reading(1);
    let pin = link.hear();
    // The page is locked until the READ is answered, so it cannot be dropped.
    let t3 = stage.commit_to("a", &[1, 3, 3]);
    let published = || std::fs::read_to_string(stage.live.path(".revfs/head")).unwrap();
    wait_until("the commit is published", || published().trim() == t3);
    let t4 = stage.commit_to("b", &[4]);
    wait_until("the next one too", || published().trim() == t4);
    assert_eq!(stage.live.at(), t2, "the old page may still be there");
    let other = stage.reading(2);
    let second = link.hear();
    assert_eq!(second, format!("4 pin {} #2 @{t1}", stage.file()), "other blocks are served");
    link.say("4 ack");
    assert_eq!(other.value(), 3);
    assert!(reading.waits(), "{pin}");
    link.say("2 ack");
    assert!([2, 3].contains(&reading.value()), "of one state or the other");
    stage.live.wait(&t4);
    assert!(stage.read() == filled(&[1, 3, 3]));
    link.expect_quiet();
    drop(link);
    stage.end();
}

pub fn row_03_a_pin_of_a_dropped_watch_is_owed_by_nobody(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let (file, mut link) = (stage.file(), stage.watching(&t1));
    let t2 = stage.commit(&[1, 2]);
    let reading = stage.reading(1);
    assert_eq!(link.hear(), format!("2 pin {file} #1 @{t1}"));
    assert!(reading.waits());
    assert_eq!(link.ask_and_ack(&format!("watch {file} -")), (Pins::new(), "ok".to_owned()));
    assert_eq!(reading.value(), 2, "nobody waits for the ack");
    for answer in ["nak", "ack", "what?", "ack"] {
        link.say(&format!("2 {answer}"));
    }
    link.expect_quiet();
    assert_eq!(link.ask_and_ack(&format!("watch {file} @{t2}")).1, "ok", "the link lives");
    stage.commit(&[1, 3]);
    let reading = stage.reading(1);
    assert_eq!(link.hear(), format!("4 pin {file} #1 @{t2}"), "no number is used again");
    link.say("4 ack");
    assert_eq!(reading.value(), 3);
    drop(link);
    stage.end();
}

pub fn row_04_a_set_up_that_fails_leaves_what_was_before(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let file = stage.file();
    let t2 = stage.commit(&[1, 2]);
    let t3 = stage.commit_to("b", &[9, 9]);
    stage.live.wait(&t3);
    let b = file_id(&stage.head("b"));
    let mut link = stage.watching(&t2);
    // A new watch, before its file was made; and one that would go back.
    for request in [format!("watch {b} @{t2}"), format!("watch {file} @{t1}")] {
        let (pins, answer) = link.ask_and_ack(&request);
        assert!(pins.is_empty() && answer.starts_with("error setup watch f"), "{answer}");
        assert_eq!(stage.live.stat("watches"), 1);
    }
    let t4 = stage.commit(&[4, 2]);
    let t5 = stage.commit_to("b", &[8, 8]);
    stage.live.wait(&t5);
    assert_eq!(Reading::start(&stage.head("b"), BLOCK, 1).value(), 8, "there is no watch to be told @{t4}");
    let reading = stage.reading(0);
    assert_eq!(link.hear(), format!("2 pin {file} #0 @{t1}"), "the watch is where it was");
    link.say("2 ack");
    assert_eq!(reading.value(), 4);
    // As after the end of the file's history.
    let t6 = stage.remove("a");
    stage.live.wait(&t6);
    let (pins, answer) = link.ask_and_ack(&format!("watch {file} @{t5}"));
    assert!(pins.is_empty() && answer.contains("file epoch detected"), "{answer}");
    assert_eq!((stage.live.stat("watches"), stage.live.stat("pins_owed")), (1, 0));
    link.expect_quiet();
    drop(link);
    stage.end();
}

pub fn row_05_a_client_is_a_process_and_not_the_thread_that_opened_the_link(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    // The opener ends, and the process is a client as before: told, waited for and not killed.
    let root = stage.live.root().to_owned();
    let (sender, opened) = channel();
    let open = move || sender.send(WatchFile::open(&root)).unwrap();
    revfs::env::spawn("opener", open).unwrap().join().unwrap();
    let mut link = opened.recv().unwrap();
    let file = stage.file();
    assert_eq!(link.ask_and_ack(&format!("watch {file} @{t1}")).1, "ok");
    stage.commit(&[1, 2]);
    let reading = stage.reading(1);
    assert_eq!(link.hear(), format!("2 pin {file} #1 @{t1}"));
    assert!(reading.waits());
    link.say("2 ack");
    assert_eq!(reading.value(), 2);
    // A process that ends takes its link with it, though another one has it; that one may not watch.
    let mut opener = Puppet::start_on(&stage.live, &stage.name("a"), ("bequeath", &t1));
    let refused = opener.until("heard 101 ").pop().unwrap();
    assert!(refused.ends_with("only the process that opened the link may watch"), "{refused}");
    assert_eq!(opener.ended().code(), Some(0));
    assert!(opener.until("heir end").contains(&"heir heard 0 error: opener exited".to_owned()));
    link.expect_quiet();
    drop(link);
    stage.end();
}

pub fn row_06_a_block_that_becomes_a_hole_has_changed(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 1]);
    let file = stage.file();
    assert_eq!(stage.touch(2), 1);
    let map = Movable::new(stage.live.root(), &stage.name("a"), BLOCK, 3);
    let mut link = stage.watching(&t1);
    stage.commit(&[1, 0, 0]);
    let reading = stage.reading(1);
    let pin = link.hear();
    assert_eq!(pin, format!("2 pin {file} #1 @{t1}"), "on access");
    assert!(reading.waits());
    link.say(&map.obey(&pin));
    assert_eq!(reading.value(), 0);
    let mut late = stage.link();
    let pins = [1, 2].map(|block| (block, format!("@{t1}")));
    assert_eq!(late.ask_and_ack(&format!("watch {file} @{t1}")), (pins.into(), "ok".to_owned()), "at set-up");
    assert_eq!(map.first_byte(1), 1);
    drop((map, link, late));
    stage.end();
}

pub fn row_08_the_size_is_that_of_the_revision(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let (file, t2) = (stage.file(), stage.commit(&[1, 1, 2, 2]));
    let mut link = stage.link();
    assert_eq!(link.ask_and_ack("hello size range").1, "ok range size");
    let size = |blocks: usize| format!("ok size={}", blocks * BLOCK);
    assert_eq!(link.ask_and_ack(&format!("watch {file} @{t1}")).1, size(2), "and not that of head");
    assert_eq!(link.ask_and_ack(&format!("watch {file} @{t2}")).1, size(4));
    let map = Movable::new(stage.live.root(), &stage.name("a"), BLOCK, 4);
    let t3 = stage.commit_to("a", &[1]);
    // Read or not: behind the end there would be a signal, and nobody would be asked.
    let pin = link.hear();
    assert_eq!(pin, format!("2 pin {file} #1 @{t1}"));
    assert_eq!(link.hear(), format!("4 pin {file} #2-3 @{t2}"));
    let told = std::fs::metadata(stage.head("a")).unwrap().len();
    assert_eq!((told, stage.live.at()), (4 * BLOCK as u64, t2.clone()), "until all is mapped");
    map.follow(1, &format!("@{t1}"));
    map.follow(2, &format!("@{t2}"));
    map.follow(3, &format!("@{t2}"));
    link.say("2 ack\n4 ack");
    stage.live.wait(&t3);
    assert_eq!(std::fs::metadata(stage.head("a")).unwrap().len(), BLOCK as u64);
    assert_eq!((0..4).map(|block| map.first_byte(block)).collect::<Vec<_>>(), [1, 1, 2, 2]);
    drop((map, link));
    stage.end();
}

pub fn row_10_a_read_that_is_given_up_fails_no_other(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let mut link = stage.watching(&t1);
    stage.commit(&[1, 2]);
    // It reads a page; others wait for that page, and for READs of their own, which the kernel does not try again.
    let path = stage.head("a");
    let mut command = Command::new("dd");
    command.arg(format!("if={}", path.display())).args(["bs=4K", "skip=16", "count=1", "status=none"]);
    let mut first = Guarded(command.stdout(Stdio::null()).spawn().unwrap());
    assert_eq!(link.hear(), format!("2 pin {} #1 @{t1}", stage.file()));
    wait_until("it waits", || stage.live.stat("reads_waiting") > 0);
    let own = |page: usize| Reading::start_direct(&path, BLOCK + page * PAGE, PAGE);
    let readers = [stage.reading(1), stage.reading(1), own(PAGES / 2), own(PAGES - 1)];
    wait_until("others do", || stage.live.stat("reads_waiting") == 3);
    signal_to(first.0.id(), Signal::KILL);
    end_of(&mut first.0, SOON);
    link.say("2 ack");
    readers.into_iter().for_each(|reading| assert_eq!(reading.value(), 2));
    link.expect_quiet();
    drop(link);
    stage.end();
}

pub fn row_18_pins_of_neighbours_come_in_one_frame_for_who_can(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1; 6]);
    assert!(stage.read() == filled(&[1; 6]));
    let file = stage.file();
    stage.commit(&[2, 2, 2, 1, 2, 2]);
    let mut able = stage.link();
    assert_eq!(able.ask("1 hello size range nonsense"), "1 ok range size");
    assert_eq!(able.ask(&format!("3 watch {file} @{t1}")), format!("2 pin {file} #0-2 @{t1}"));
    assert_eq!(able.hear(), format!("4 pin {file} #4-5 @{t1}"));
    able.say("4 ack\n2 ack");
    assert_eq!(able.hear(), format!("3 ok size={}", 6 * BLOCK));
    let mut plain = stage.link();
    plain.say(&format!("3 watch {file} @{t1}"));
    for (stream, block) in [(2, 0), (4, 1), (6, 2), (8, 4), (10, 5)] {
        assert_eq!(plain.hear(), format!("{stream} pin {file} #{block} @{t1}"), "all before the first ack");
    }
    for stream in [10, 2, 6, 4, 8] {
        plain.expect_quiet();
        plain.say(&format!("{stream} ack"));
    }
    assert_eq!(plain.hear(), "3 ok");
    drop((able, plain));
    stage.end();
}

pub fn row_12_an_idle_watch_needs_no_history_in_memory(kind: Kind) {
    let (stage, tids) =
        Stage::on_with(kind, &["--pin-timeout", LONG, "--keep-history", "1ns"], &[&[1, 1, 1], &[1, 1, 2]]);
    let (file, mut idle) = (stage.file(), stage.watching(&tids[1]));
    for value in 2..8 {
        stage.commit(&[value, 1, 2]);
        stage.commit(&[value, 1, value + 1]);
    }
    let reading = stage.reading(2);
    assert_eq!(idle.hear(), format!("2 pin {file} #2 @{}", tids[1]));
    idle.say("2 ack");
    assert_eq!(reading.value(), 8);
    // It moves by as much as it was behind, and so does who begins there.
    let (pins, answer) = idle.ask_and_ack(&format!("watch {file} @{}", stage.live.at()));
    assert_eq!((pins, answer.as_str()), ([(2, "@head".to_owned())].into(), "ok"));
    let mut new = stage.link();
    let (pins, answer) = new.ask_and_ack(&format!("watch {file} @{}", tids[1]));
    assert_eq!((pins, answer.as_str()), ([(2, format!("@{}", tids[1]))].into(), "ok"));
    drop((idle, new));
    stage.end();
}

pub fn row_13_history_reaches_back_to_before_the_servers_start(kind: Kind) {
    let versions: [&[u8]; 3] = [&[1, 1, 1], &[1, 2, 1], &[1, 3, 3]];
    let (stage, tids) = Stage::on_with(kind, &["--pin-timeout", LONG], &versions);
    let watch = |live: &crate::live::Live| {
        assert!(stage.read() == filled(versions[2]));
        let mut link = WatchFile::open(live.root());
        let file = file_id(&live.head(&stage.name("a")));
        let (pins, answer) = link.ask_and_ack(&format!("watch {file} @{}", tids[1]));
        let expected = [(1, format!("@{}", tids[1])), (2, format!("@{}", tids[0]))];
        assert_eq!((pins, answer.as_str()), (expected.into(), "ok"));
    };
    watch(&stage.live);
    stage.place.ok(&["umount", "m"]);
    watch(&stage.mount_again());
    stage.end();
}
