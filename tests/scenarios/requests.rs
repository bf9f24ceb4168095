//! What is asked of a link, and what it answers: errors, waits, ends.

use std::fs;

use crate::live::{Guarded, SOON, end_of, signal_to, wait_until};
use crate::puppet::Puppet;
use crate::stage::{BLOCK, Kind, LONG, Stage, filled};
use revfs::env::SystemClock;
use revfs::protocol::Tid;
use rustix::process::Signal;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The tid right after another one.
fn next(tid: &str) -> String {
    tid.parse::<Tid>().unwrap().next().unwrap().to_string()
}

pub fn a_bad_request_is_an_error_and_the_link_lives(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let file = stage.file();
    let mut link = stage.watching(&t1);
    let cases = [
        ("bla-bla", "bad watch: not a watch request: \"bla-bla\"".to_owned()),
        ("watch", "bad watch: not a watch request: \"watch\"".to_owned()),
        ("watch 1", "bad watch: expected 2 arguments, got 1".to_owned()),
        (&format!("watch {file} @{t1} x"), "bad watch: expected 2 arguments, got 3".to_owned()),
        (&format!("watch xyz @{t1}"), "bad watch: invalid oid".to_owned()),
        (&format!("watch {file} 11"), "bad watch: invalid at".to_owned()),
        (&format!("watch {file} @11"), "bad watch: invalid at".to_owned()),
        (
            &format!("watch 00000000000000ff @{t1}"),
            format!("setup watch f00000000000000ff @{t1}: file not yet known to wcfs or is not a ZBigFile"),
        ),
        (
            &format!("watch {file} @0000000000000001"),
            format!("setup watch f{file} @0000000000000001: going back in history is forbidden"),
        ),
    ];
    for (request, why) in cases {
        let stream = link.request(request);
        assert_eq!(link.hear(), format!("{stream} error {why}"), "{request}");
    }
    // All of it has changed nothing.
    stage.commit(&[1, 2]);
    let reading = stage.reading(1);
    let pin = link.hear();
    assert_eq!(pin, format!("2 pin {file} #1 @{t1}"));
    assert!(reading.waits());
    link.say("2 ack");
    assert_eq!(reading.value(), 2);
    drop(link);
    stage.end();
}

pub fn bye_cancels_a_pin_and_nobody_is_killed(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let mut mute = Puppet::start_on(&stage.live, &stage.name("a"), ("mute", &t1));
    mute.until("heard 1 ok");
    stage.commit(&[1, 2]);
    let reading = stage.reading(1);
    mute.until("heard 2 pin");
    assert!(reading.waits());
    mute.ask("say 3 bye", "end");
    assert_eq!(reading.value(), 2);
    wait_until("its watch is gone", || stage.live.stat("watches") == 0);
    for version in 3..6 {
        stage.commit(&[version, version]);
        assert!(stage.read() == filled(&[version, version]));
    }
    mute.quit();
    stage.end();
}

pub fn a_file_has_no_past_before_it_was_made_and_none_after_it_was_removed(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1]);
    let t2 = stage.commit_to("b", &[2, 2]);
    stage.live.wait(&t2);
    let b = crate::link::file_id(&stage.head("b"));
    let mut link = stage.link();
    let (pins, answer) = link.ask_and_ack(&format!("watch {b} @{t1}"));
    let epoch = |rev: &str, at: &str| {
        format!("error setup watch f{b} @{at}: file epoch detected @{rev} in between (at,head=@{rev}]")
    };
    assert_eq!((pins.len(), answer), (0, epoch(&t2, &t1)));
    assert_eq!(stage.live.stat("watches"), 0, "it is not there after an error");
    assert_eq!(link.ask_and_ack(&format!("watch {b} @{t2}")).1, "ok", "the link is as good as before");
    let t3 = stage.commit_to("b", &[2, 3]);
    stage.live.wait(&t3);
    let reading = crate::stage::Reading::start(&stage.head("b"), BLOCK, 1);
    assert_eq!(link.hear(), format!("2 pin {b} #1 @{t2}"));
    link.say("2 ack");
    assert_eq!(reading.value(), 3);
    let t4 = stage.remove("b");
    stage.live.wait(&t4);
    // A watch cannot be moved past its end, and stays where it was.
    let end = epoch(&t4, &t3);
    let (pins, answer) = link.ask_and_ack(&format!("watch {b} @{t3}"));
    assert_eq!((pins.len(), answer), (0, end));
    assert_eq!((stage.live.stat("watches"), stage.live.stat("pins_owed")), (1, 0));
    drop(link);
    stage.end();
}

pub fn a_set_up_ahead_of_head_waits_for_its_commit_and_holds_up_nothing(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 1]);
    assert!(stage.read() == filled(&[1, 1, 1]));
    let (file, ahead) = (stage.file(), next(&t1));
    let mut link = stage.link();
    let stream = link.request(&format!("watch {file} @{ahead}"));
    wait_until("it waits", || stage.live.stat("setups_waiting") == 1);
    link.expect_quiet();
    assert_eq!((stage.live.stat("watches"), stage.live.at()), (0, t1.clone()));
    assert!(stage.read() == filled(&[1, 1, 1]));
    // A commit is later than what it waits for: its change is pinned.
    let t2 = stage.commit(&[1, 2, 1]);
    assert!(t2 > ahead);
    assert_eq!(link.hear(), format!("2 pin {file} #1 @{t1}"));
    link.expect_quiet();
    link.say("2 ack");
    assert_eq!(link.hear(), format!("{stream} ok"));
    // One that waits is given up with its link.
    let far = link.request(&format!("watch {file} @7fffffffffffffff"));
    wait_until("it waits", || stage.live.stat("setups_waiting") == 1);
    link.say(&format!("5 watch {file} -"));
    let why = "the watch was stopped";
    assert_eq!(link.hear(), format!("{far} error setup watch f{file} @7fffffffffffffff: {why}"));
    assert_eq!(link.hear(), "5 ok");
    drop(link);
    stage.end();
}

/// Kills that are timed. The best counts: others use the machine too.
const KILLS: usize = 5;
/// How much longer than of any other process the end of one may take that reads its link. The server looks for
/// signals every 50 ms, or less often if looking took it long.
const MORE: Duration = Duration::from_millis(300);

/// Kills a process; how long until it is gone.
fn time_to_die(mut process: impl FnMut() -> Duration) -> Duration {
    (0..KILLS).map(|_| process()).min().unwrap()
}

pub fn who_waits_for_frames_dies_of_sigkill_within_300_ms(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let clock = SystemClock::shared();
    let parked = time_to_die(|| {
        let mut client = Puppet::start_on(&stage.live, &stage.name("a"), ("obey", &t1));
        client.until("heard 1 ok");
        wait_until("it waits for a frame", || client.sleeps());
        let start = clock.monotonic();
        signal_to(client.pid(), Signal::KILL);
        assert_eq!(client.ended_by(), Some(Signal::KILL.as_raw()));
        clock.monotonic() - start
    });
    // As long as it takes for a process that waits for something else.
    let other = time_to_die(|| {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut child = Guarded(child);
        let start = clock.monotonic();
        signal_to(child.0.id(), Signal::KILL);
        end_of(&mut child.0, SOON);
        clock.monotonic() - start
    });
    assert!(parked <= other + MORE, "{parked:?}, and another process {other:?}");
    stage.end();
}

pub fn two_files_on_one_link_are_two_watches(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    // Made while the server runs.
    let t2 = stage.commit_to("b", &[5, 5]);
    stage.live.wait(&t2);
    let (a, b) = (stage.file(), crate::link::file_id(&stage.head("b")));
    let read_b = || fs::read(stage.head("b")).unwrap();
    assert!(stage.read() == filled(&[1, 1]) && read_b() == filled(&[5, 5]));
    let mut link = stage.watching(&t1);
    assert_eq!(link.ask_and_ack(&format!("watch {b} @{t2}")).1, "ok");
    let t3 = stage.commit(&[2, 1]);
    let t4 = stage.commit_to("b", &[5, 6]);
    stage.live.wait(&t4);
    let of_a = stage.reading(0);
    assert_eq!(link.hear(), format!("2 pin {a} #0 @{t1}"));
    let of_b = crate::stage::Reading::start(&stage.head("b"), BLOCK, 1);
    assert_eq!(link.hear(), format!("4 pin {b} #1 @{t2}"));
    // Each waits for its own.
    link.say("4 ack");
    assert_eq!(of_b.value(), 6);
    assert!(of_a.waits());
    link.say("2 ack");
    assert_eq!(of_a.value(), 2);
    // One moves on, and the other stays.
    let (pins, answer) = link.ask_and_ack(&format!("watch {a} @{t3}"));
    assert_eq!((pins, answer.as_str()), ([(0, "@head".to_owned())].into(), "ok"));
    assert_eq!(link.ask_and_ack(&format!("watch {a} -")).1, "ok");
    stage.commit(&[3, 3]);
    assert!(stage.read() == filled(&[3, 3]));
    let t5 = stage.commit_to("b", &[7, 7]);
    stage.live.wait(&t5);
    let of_b = crate::stage::Reading::start(&stage.head("b"), 0, 1);
    assert_eq!(link.hear(), format!("8 pin {b} #0 @{t2}"), "of the file that is still watched only");
    link.say("8 ack");
    assert_eq!(of_b.value(), 7);
    link.expect_quiet();
    drop(link);
    stage.end();
}

pub fn a_server_that_knows_no_past_has_the_pins_from_the_store(kind: Kind) {
    let versions: [&[u8]; 4] = [&[1, 1, 1, 0], &[1, 2, 1, 0], &[1, 2, 3, 4], &[5, 2, 3, 4]];
    // With the first options its index begins with head; a watch of head is one of the tail.
    for history in ["1ns", "10m"] {
        let (stage, tids) =
            Stage::on_with(kind, &["--pin-timeout", LONG, "--keep-history", history], &versions);
        let (file, newest) = (stage.file(), tids.last().unwrap().clone());
        let mut at_tail = stage.watching(&newest);
        assert!(stage.read() == filled(versions[3]), "all of it is old data");
        let mut old = stage.link();
        let (pins, answer) = old.ask_and_ack(&format!("watch {file} @{}", tids[1]));
        let to = |tid: &String| format!("@{tid}");
        let expected = [(0, to(&tids[0])), (2, to(&tids[0])), (3, to(&tids[0]))];
        assert_eq!((pins, answer.as_str()), (expected.into(), "ok"), "--keep-history {history}");
        at_tail.expect_quiet();
        let t5 = stage.commit(&[5, 6, 3, 4]);
        let reading = stage.reading(1);
        assert_eq!(at_tail.hear(), format!("2 pin {file} #1 @{}", tids[1]), "of before the server's start");
        assert_eq!(old.hear(), format!("8 pin {file} #1 @{}", tids[1]));
        at_tail.say("2 ack");
        assert!(reading.waits());
        old.say("8 ack");
        assert_eq!(reading.value(), 6);
        let (pins, answer) = old.ask_and_ack(&format!("watch {file} @{newest}"));
        let expected = [0, 2, 3].map(|block| (block, "@head".to_owned()));
        assert_eq!((pins, answer.as_str()), (expected.into(), "ok"), "--keep-history {history}, @{t5}");
        drop((at_tail, old));
        stage.end();
    }
}
