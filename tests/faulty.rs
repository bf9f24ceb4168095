//! Clients that break the isolation protocol in each way, through a real mount.
//!
//! Invariant: in each test a client that behaves and a plain reader go on beside the faulty one; both are served in
//! the end and nobody signals them. `kills` is exact, and afterwards nothing of any link is left in the server. Where
//! something is to be prompt the pin timeout is far longer than the patience of the test.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/live.rs"]
mod live;
#[path = "common/puppet.rs"]
mod puppet;

use std::fs;
use std::process::{Command, Stdio};
use std::thread::ScopedJoinHandle;

use live::{Guarded, Live, Place, SOON, end_of, no_fuse, signal_to, wait_until};
use puppet::Puppet;
use rustix::process::Signal;

const BLOCK: usize = 64 << 10;
/// No test is as patient.
const LONG: &str = "1h";
/// Short, but enough for who behaves on a busy machine.
const SHORT: &str = "3s";

/// When the faulty client gets its pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// At once: blocks were read and changed before it came.
    SetUp,
    /// When somebody reads a block that changed since.
    Access,
}

const MOMENTS: [Moment; 2] = [Moment::SetUp, Moment::Access];

/// How a faulty client ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By a signal of the server.
    Signal(Signal),
    /// It exits with 0.
    Exit,
}

/// A mount with a file `a` of four blocks that were all read.
struct Scene {
    live: Live,
    t1: String,
    place: Place,
}

/// Bytes of a file whose blocks are each filled with one value.
fn filled(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|value| vec![*value; BLOCK]).collect()
}

impl Scene {
    fn new(pin_timeout: &str) -> Scene {
        let place = Place::new();
        let t1 = commit(&place, &[1, 1, 1, 1]);
        let live = place.mount_with("m", &["--pin-timeout", pin_timeout]);
        let scene = Scene { live, t1, place };
        assert_eq!(scene.read(), filled(&[1, 1, 1, 1]));
        scene
    }

    /// Commits and waits until head shows it.
    fn commit(&self, values: &[u8]) -> String {
        let tid = commit(&self.place, values);
        self.live.wait(&tid);
        tid
    }

    fn read(&self) -> Vec<u8> {
        fs::read(self.live.head("a")).unwrap()
    }

    fn start(&self, mode: &str) -> Puppet {
        Puppet::start(&self.live, mode, &self.t1)
    }

    /// A client that behaves, with its watch set up.
    fn good(&self) -> Puppet {
        let mut good = self.start("obey");
        good.until("heard 1 ok");
        good
    }

    /// Two clients, before or after blocks 1 and 3 change.
    fn clients(&self, mode: &str, moment: Moment) -> (Puppet, Puppet) {
        if moment == Moment::SetUp {
            self.commit(&[1, 2, 1, 2]);
        }
        let good = self.good();
        let bad = self.start(mode);
        if moment == Moment::Access {
            let watches = if mode.contains("--second") { 3 } else { 2 };
            wait_until("the watches are set up", || self.live.stat("watches") == watches);
            self.commit(&[1, 2, 1, 2]);
        }
        (good, bad)
    }

    /// Lets a client that does not answer wait in a page fault for a pin that it owes itself.
    fn fault_in(&self, bad: &mut Puppet, moment: Moment) {
        if moment == Moment::SetUp {
            bad.until("heard 2 pin");
        }
        bad.ask("touch 1", "touching");
        wait_until("its READ waits", || self.live.stat("reads_waiting") > 0);
    }

    /// All is as it has to be after a test: who behaved lives and sees its revision, and nothing is left.
    fn expect_end(&self, mut good: Puppet, kills: u64) {
        assert_eq!(good.ask("look", "sees"), "sees 1 1 1 1");
        good.quit();
        assert_eq!(self.live.stat("kills"), kills);
        for gauge in ["links", "watches", "setups_waiting", "pins_owed", "reads_waiting"] {
            wait_until(gauge, || self.live.stat(gauge) == 0);
        }
        let log = fs::read_to_string(self.place.path("server.log")).unwrap();
        assert!(!log.contains("panicked") && !log.contains("error:"), "{log}");
        self.place.ok(&["umount", "m"]);
        self.place.expect_nothing_left();
    }
}

fn commit(place: &Place, values: &[u8]) -> String {
    fs::write(place.path("source"), filled(values)).unwrap();
    place.ok(&["commit", "s", "a=source", "--block-size", "64K"])
}

/// The end of a plain reader of head.
fn served(reader: ScopedJoinHandle<'_, Vec<u8>>, values: &[u8]) {
    assert_eq!(reader.join().unwrap(), filled(values));
}

/// One faulty client in its whole life.
fn play(mode: &str, moment: Moment, pin_timeout: &str, end: End) {
    eprintln!("{mode}, {moment:?}");
    let scene = Scene::new(pin_timeout);
    let (good, mut bad) = scene.clients(mode, moment);
    std::thread::scope(|scope| served(scope.spawn(|| scene.read()), &[1, 2, 1, 2]));
    match end {
        End::Signal(signal) => assert_eq!(bad.ended_by(), Some(signal.as_raw()), "{mode}, {moment:?}"),
        End::Exit => {
            // Nobody has waited for it yet.
            wait_until("it ends", || bad.is_zombie());
            assert_eq!(scene.live.stat("kills"), 0, "{mode}, {moment:?}");
            assert_eq!(bad.ended().code(), Some(0));
        }
    }
    scene.expect_end(good, u64::from(matches!(end, End::Signal(_))));
}

#[test]
fn who_does_not_answer_in_time_is_killed() {
    if no_fuse("who_does_not_answer_in_time_is_killed") {
        return;
    }
    for moment in MOMENTS {
        play("deaf", moment, SHORT, End::Signal(Signal::BUS));
        play("mute", moment, SHORT, End::Signal(Signal::BUS));
    }
}

#[test]
fn who_does_not_die_of_sigbus_is_killed_by_sigkill() {
    if no_fuse("who_does_not_die_of_sigbus_is_killed_by_sigkill") {
        return;
    }
    for moment in MOMENTS {
        play("stop", moment, SHORT, End::Signal(Signal::KILL));
        play("stubborn", moment, SHORT, End::Signal(Signal::KILL));
    }
}

#[test]
fn a_process_with_two_links_at_fault_is_killed_once() {
    if no_fuse("a_process_with_two_links_at_fault_is_killed_once") {
        return;
    }
    for moment in MOMENTS {
        play("mute --second", moment, SHORT, End::Signal(Signal::BUS));
    }
}

#[test]
fn a_wrong_answer_to_a_pin_is_death_at_once() {
    if no_fuse("a_wrong_answer_to_a_pin_is_death_at_once") {
        return;
    }
    for moment in MOMENTS {
        for mode in ["nak", "garbage", "stray", "long", "close"] {
            play(mode, moment, LONG, End::Signal(Signal::BUS));
        }
    }
}

#[test]
fn who_exits_on_a_pin_is_not_killed() {
    if no_fuse("who_exits_on_a_pin_is_not_killed") {
        return;
    }
    for moment in MOMENTS {
        play("exit", moment, LONG, End::Exit);
    }
}

#[test]
fn unusual_ways_to_behave_are_fine() {
    if no_fuse("unusual_ways_to_behave_are_fine") {
        return;
    }
    for moment in MOMENTS {
        for mode in ["bytes", "halves", "bundle", "twice", "late"] {
            eprintln!("{mode}, {moment:?}");
            let scene = Scene::new(LONG);
            let (good, mut odd) = scene.clients(mode, moment);
            let last = if mode == "late" { "heard 5 ok" } else { "heard 1 ok" };
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| scene.read());
                odd.until(last);
                served(reader, &[1, 2, 1, 2]);
            });
            assert_eq!(odd.ask("look", "sees"), "sees 1 1 1 1", "{mode}, {moment:?}");
            // It is as good a client as any, also later.
            scene.commit(&[3, 2, 1, 2]);
            std::thread::scope(|scope| served(scope.spawn(|| scene.read()), &[3, 2, 1, 2]));
            assert_eq!(odd.ask("look", "sees"), "sees 1 1 1 1", "{mode}, {moment:?}");
            odd.quit();
            scene.expect_end(good, 0);
        }
    }
}

#[test]
fn nonsense_of_who_owes_nothing_ends_its_link_and_no_more() {
    if no_fuse("nonsense_of_who_owes_nothing_ends_its_link") {
        return;
    }
    let scene = Scene::new(LONG);
    let good = scene.good();
    let cases = [
        ("nak", "heard 0 error: 2: reply on unexpected stream"),
        ("stray", "heard 0 error: 102: reply on unexpected stream"),
        ("garbage", "heard 0 error: invalid frame: \"zzz hello\\n\" (invalid stream)"),
        ("long", "heard 0 error: "),
    ];
    for (mode, expected) in cases {
        let mut bad = scene.start(mode);
        bad.until("heard 1 ok");
        let mut neighbour = scene.good();
        let heard = bad.ask("fault", "heard 0 ");
        assert!(heard.starts_with(expected), "{mode}: {heard}");
        bad.until("end");
        assert!(bad.ask("say 3 hello", "error").contains("reset"), "{mode}: nothing more is taken");
        bad.quit();
        neighbour.quit();
    }
    let mut leaves = scene.start("leave");
    leaves.until("closed");
    wait_until("its link ends", || scene.live.stat("links") == 1);
    leaves.quit();
    scene.commit(&[1, 2, 1, 2]);
    assert_eq!(scene.read(), filled(&[1, 2, 1, 2]));
    scene.expect_end(good, 0);
}

#[test]
fn a_client_is_its_process_and_not_the_thread_that_opened_the_link() {
    if no_fuse("a_client_is_its_process_and_not_the_thread") {
        return;
    }
    for moment in MOMENTS {
        let scene = Scene::new(SHORT);
        let (good, mut bad) = scene.clients("mute --thread --until-turn", moment);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| scene.read());
            bad.until("heard 1 ok");
            served(reader, &[1, 2, 1, 2]);
        });
        assert_eq!(bad.ask("look", "sees"), "sees 1 1 1 1", "{moment:?}: still isolated");
        assert_eq!(scene.live.stat("kills"), 0);
        bad.ask("turn", "turned");
        scene.commit(&[3, 2, 1, 2]);
        std::thread::scope(|scope| served(scope.spawn(|| scene.read()), &[3, 2, 1, 2]));
        assert_eq!(bad.ended_by(), Some(Signal::BUS.as_raw()), "{moment:?}");
        scene.expect_end(good, 1);
    }
}

#[test]
fn a_link_ends_with_its_opener_though_others_have_it() {
    if no_fuse("a_link_ends_with_its_opener_though_others_have_it") {
        return;
    }
    for moment in MOMENTS {
        let scene = Scene::new(LONG);
        let (good, mut opener) = scene.clients("bequeath", moment);
        let refused = opener.until("heard 101 ").pop().unwrap();
        assert_eq!(
            refused, "heard 101 error setup watch: only the process that opened the link may watch",
            "nobody gets another process killed"
        );
        std::thread::scope(|scope| served(scope.spawn(|| scene.read()), &[1, 2, 1, 2]));
        assert_eq!(opener.ended().code(), Some(0), "{moment:?}");
        let heard = opener.until("heir end");
        assert!(heard.contains(&"heir heard 0 error: opener exited".to_owned()), "{moment:?}: {heard:?}");
        scene.expect_end(good, 0);
    }
}

#[test]
fn who_is_killed_by_others_in_its_own_page_fault_dies_at_once() {
    if no_fuse("who_is_killed_by_others_in_its_own_page_fault") {
        return;
    }
    for (moment, mode) in MOMENTS.into_iter().flat_map(|moment| [(moment, "mute"), (moment, "mute --random")])
    {
        let scene = Scene::new(LONG);
        let (good, mut bad) = scene.clients(mode, moment);
        scene.fault_in(&mut bad, moment);
        std::thread::scope(|scope| {
            // Waits for the same page as the fault.
            let reader = scope.spawn(|| scene.read());
            signal_to(bad.pid(), Signal::KILL);
            assert_eq!(bad.ended_by(), Some(Signal::KILL.as_raw()), "{moment:?}");
            served(reader, &[1, 2, 1, 2]);
        });
        scene.expect_end(good, 0);
    }
}

#[test]
fn a_victim_in_its_own_page_fault_dies_of_the_servers_signal() {
    if no_fuse("a_victim_in_its_own_page_fault_dies") {
        return;
    }
    for (moment, mode) in MOMENTS.into_iter().flat_map(|moment| [(moment, "mute"), (moment, "mute --random")])
    {
        let scene = Scene::new(SHORT);
        let (good, mut bad) = scene.clients(mode, moment);
        scene.fault_in(&mut bad, moment);
        std::thread::scope(|scope| served(scope.spawn(|| scene.read()), &[1, 2, 1, 2]));
        assert_eq!(bad.ended_by(), Some(Signal::BUS.as_raw()), "{moment:?}");
        scene.expect_end(good, 1);
    }
}

#[test]
fn signals_reach_who_waits_to_read_its_link() {
    if no_fuse("signals_reach_who_waits_to_read_its_link") {
        return;
    }
    let scene = Scene::new(LONG);
    let good = scene.good();
    let mut bad = scene.good();
    // Again and again: one that comes before it reads finds nothing to interrupt.
    wait_until("it is interrupted", || {
        signal_to(bad.pid(), Signal::USR1);
        bad.has_said("interrupted")
    });
    scene.commit(&[1, 2, 1, 2]);
    assert_eq!(scene.read(), filled(&[1, 2, 1, 2]));
    assert_eq!(bad.ask("look", "sees"), "sees 1 1 1 1", "it goes on as before");
    signal_to(bad.pid(), Signal::KILL);
    assert_eq!(bad.ended_by(), Some(Signal::KILL.as_raw()));
    scene.expect_end(good, 0);
}

#[test]
fn a_flood_of_requests_ends_its_link_and_takes_little_memory() {
    if no_fuse("a_flood_of_requests_ends_its_link") {
        return;
    }
    let scene = Scene::new(LONG);
    let good = scene.good();
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", scene.live.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    for mode in ["flood", "flood-watches"] {
        let mut bad = scene.start(mode);
        assert!(bad.until("refused").pop().unwrap().contains("reset"), "{mode}");
        bad.quit();
    }
    let mut churns = scene.start("churn");
    churns.until("churned");
    assert_eq!(scene.live.stat("setups_waiting"), 0, "a set-up ends with its watch");
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more");
    // It reads all, and is a client as any.
    scene.commit(&[1, 2, 1, 2]);
    assert_eq!(scene.read(), filled(&[1, 2, 1, 2]));
    assert_eq!(churns.ask("look", "sees"), "sees 1 1 1 1");
    churns.quit();
    scene.expect_end(good, 0);
}

#[test]
fn a_stop_ends_though_pins_are_owed_and_shows_nobody_another_revision() {
    if no_fuse("a_stop_ends_though_pins_are_owed") {
        return;
    }
    for moment in MOMENTS {
        let scene = Scene::new(LONG);
        let (mut good, mut bad) = scene.clients("mute", moment);
        scene.fault_in(&mut bad, moment);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| fs::read(scene.live.head("a")));
            let stop = scene.place.run(&["umount", "m", "--timeout", "10s"]);
            assert_eq!(stop.code(), 0, "{moment:?}: {}", stop.err);
            // It is served or refused.
            if let Ok(bytes) = reader.join().unwrap() {
                assert_eq!(bytes, filled(&[1, 2, 1, 2]), "{moment:?}");
            }
        });
        // Its page fault fails; it is not answered with the newest data.
        assert_eq!(bad.ended_by(), Some(Signal::BUS.as_raw()), "{moment:?}");
        good.until("heard 0 error: shutting down");
        good.until("end");
        good.quit();
        scene.place.expect_nothing_left();
    }
}

/// The kernel tries a page fault again when its READ was answered, and from then on holds the lock that the client
/// needs to map anything. A commit that drops the page in between makes that fault READ once more, and that READ must
/// need no pin: the pin comes before the page is dropped.
#[test]
fn a_page_fault_whose_page_was_dropped_before_it_was_mapped_kills_nobody() {
    if no_fuse("a_page_fault_whose_page_was_dropped") {
        return;
    }
    for readers in 1..=2 {
        let scene = Scene::new(SHORT);
        let first = scene.good();
        let mut slow = scene.start("mute");
        slow.until("heard 1 ok");
        let t2 = scene.commit(&[1, 2, 1, 1]);
        let mut good: Vec<Puppet> = (0..readers).map(|_| Puppet::start(&scene.live, "obey", &t2)).collect();
        good.iter_mut().for_each(|good| drop(good.until("heard 1 ok")));
        // Their READ waits for the other client, and needs no pin of theirs.
        good.iter_mut().for_each(|good| drop(good.ask("touch 1", "touching")));
        wait_until("the READ waits", || scene.live.stat("reads_waiting") > 0);
        let t3 = commit(&scene.place, &[1, 3, 1, 1]);
        good.iter_mut().for_each(|good| drop(good.until("said 2 ack")));
        slow.tell("say 2 ack");
        for good in &mut good {
            good.until("touched 1 2");
            assert_eq!(good.ask("look", "sees"), "sees 1 2 1 1");
            good.quit();
        }
        scene.live.wait(&t3);
        slow.quit();
        scene.expect_end(first, 0);
    }
}

#[test]
fn a_server_that_is_killed_while_everything_waits_can_be_cleaned_away() {
    if no_fuse("a_server_that_is_killed_while_everything_waits") {
        return;
    }
    let scene = Scene::new(LONG);
    // Who has files of the mount open are processes of their own: with a dead server even a close waits.
    let mut mute = scene.start("mute");
    mute.until("heard 1 ok");
    scene.commit(&[1, 2, 1, 1]);
    let mut reader = Command::new("dd");
    reader.arg(format!("if={}", scene.live.head("a").display())).args(["bs=64K", "skip=1", "count=1"]);
    let mut reader = Guarded(reader.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    mute.until("heard 2 pin");
    let t3 = commit(&scene.place, &[1, 3, 1, 1]);
    wait_until("it is published", || fs::metadata(scene.live.rev(&t3, "a")).is_ok());
    scene.live.signal(Signal::KILL);
    scene.place.ok(&["umount", "m", "--timeout", "5s"]);
    assert!(!end_of(&mut reader.0, SOON).success());
    drop(mute);
    scene.place.expect_nothing_left();
    let again = scene.place.mount();
    assert_eq!(fs::read(again.head("a")).unwrap(), filled(&[1, 3, 1, 1]));
    scene.place.ok(&["umount", "m"]);
    scene.place.expect_nothing_left();
}
