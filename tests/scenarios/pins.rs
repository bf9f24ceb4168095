//! Which pins come: at set-ups, on access, and when none does.

use std::collections::BTreeSet;

use crate::history::History;
use crate::link::{Movable, Pins, WatchFile};
use crate::live::{SOON, wait_for, wait_until};
use crate::mapping::PAGE;
use crate::stage::{BLOCK, Kind, LONG, Reading, Stage};
use revfs::protocol::Tid;

/// Eight blocks over six revisions. The file begins with a hole, and grows; each block changes at other times, one
/// never.
const VERSIONS: [&[u8]; 6] = [
    &[1, 1, 1, 1, 1, 1, 0],
    &[2, 1, 1, 1, 1, 1, 0],
    &[2, 3, 1, 1, 3, 1, 0],
    &[2, 4, 4, 1, 3, 1, 4, 4],
    &[5, 4, 4, 5, 3, 1, 4, 4],
    &[5, 6, 4, 5, 6, 1, 4, 6],
];

/// Blocks that are read when a version is head: some before they change, some between, some after. Block 4 never is.
const READS: [&[usize]; 6] = [&[0, 6], &[], &[1], &[], &[3, 5], &[2, 7]];

pub fn set_ups_in_any_sequence_pin_what_was_read_and_differs_and_no_more(kind: Kind) {
    let mut history = History::new(kind);
    let (stage, tids) = Stage::on_with(kind, &["--pin-timeout", LONG], &VERSIONS[..1]);
    let mut states = tids.clone();
    history.add(tids[0].clone(), VERSIONS[0]);
    let mut read = BTreeSet::new();
    for (version, blocks) in READS.iter().enumerate() {
        if version > 0 {
            let tid = stage.commit(VERSIONS[version]);
            history.add(tid.clone(), VERSIONS[version]);
            states.push(tid);
        }
        for block in *blocks {
            assert_eq!(stage.touch(*block), VERSIONS[version][*block]);
            read.insert(*block);
        }
    }
    // A state between two commits is one as any.
    let between = states[2].parse::<Tid>().unwrap().next().unwrap().to_string();
    states.insert(3, between);
    let file = stage.file();
    for choice in 1..1u32 << states.len() {
        let chosen = || states.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1).map(|(_, at)| at);
        let mut link = stage.link();
        if choice % 2 == 0 {
            assert_eq!(link.ask_and_ack("hello range").1, "ok range");
        }
        let mut have = Pins::new();
        for at in chosen() {
            let request = format!("watch {file} @{at}");
            let (told, answer) = link.ask_and_ack(&request);
            assert_eq!(answer, "ok", "{:?}", chosen().collect::<Vec<_>>());
            have = history.told(&have, &told, (&read, at));
            let again = link.ask_and_ack(&request);
            assert_eq!(again, (Pins::new(), "ok".to_owned()), "{:?}", chosen().collect::<Vec<_>>());
            expect_bytes(&stage, &history, &have, at);
        }
        link.expect_quiet();
    }
    stage.end();
}

/// What pins lead to is what the blocks were at the client's revision.
fn expect_bytes(stage: &Stage, history: &History, pins: &Pins, at: &str) {
    for (block, to) in pins {
        let expected = history.value_at(usize::try_from(*block).unwrap(), at);
        assert_eq!(stage.value_at(to, *block), expected, "block {block} {to}, for @{at}");
    }
}

/// A client in the model's terms.
struct Client {
    link: WatchFile,
    at: String,
    pins: Pins,
}

/// Reads a block that is not in the page cache: each client that has to is told, and nobody else is.
fn read_block(stage: &Stage, history: &History, clients: &mut [Client], block: usize, value: u8) {
    stage.evict();
    let reading = stage.reading(block);
    let is_to_pin = |client: &&mut Client| {
        history.is_changed(block, &client.at) && !client.pins.contains_key(&(block as u64))
    };
    let told_of = |told: &Pins, client: &Client| {
        assert!(told.keys().all(|key| *key == block as u64 && !client.pins.contains_key(key)), "{told:?}");
        history.expect_enough(told, (&[block].into(), &client.at));
    };
    for client in clients.iter_mut().filter(is_to_pin) {
        let frame = client.link.hear();
        assert!(reading.waits(), "block {block}: {frame}");
        let mut told = Pins::new();
        client.link.ack(&frame, &mut told);
        told_of(&told, client);
        client.pins.extend(told);
    }
    // Others are not told, unless they may be.
    let bytes = wait_for("the read ends", SOON, || {
        for client in clients.iter_mut().filter(|client| history.may_pin_more(&client.at)) {
            let mut told = Pins::new();
            client.link.ack_waiting(&mut told);
            if !told.is_empty() {
                told_of(&told, client);
                client.pins.extend(told);
            }
        }
        reading.ended()
    });
    assert!(bytes == [value; PAGE], "block {block}");
    clients.iter_mut().for_each(|client| client.link.expect_quiet());
}

pub fn on_access_each_link_is_told_once_what_differs_from_its_revision(kind: Kind) {
    let mut history = History::new(kind);
    let (stage, tids) = Stage::on_with(kind, &["--pin-timeout", LONG], &VERSIONS);
    for (tid, values) in tids.iter().zip(VERSIONS) {
        history.add(tid.clone(), values);
    }
    let file = stage.file();
    let mut clients: Vec<Client> = [0, 1, 2, 4, 5]
        .map(|at| Client { link: stage.watching(&tids[at]), at: tids[at].clone(), pins: Pins::new() })
        .into();
    // Twice: what is pinned is not pinned again, though the page is gone and read again.
    for _ in 0..2 {
        for (block, value) in VERSIONS[5].iter().enumerate() {
            read_block(&stage, &history, &mut clients, block, *value);
        }
    }
    let all = (0..8).collect();
    for client in &clients {
        history.expect_enough(&client.pins, (&all, &client.at));
        expect_bytes(&stage, &history, &client.pins, &client.at);
    }
    // Who stopped, and who left, is told nothing; who moved on has no pins and gets new ones.
    let mut stopped = clients.remove(0);
    assert_eq!(stopped.link.ask_and_ack(&format!("watch {file} -")), (Pins::new(), "ok".to_owned()));
    drop(clients.remove(0));
    let moved = &mut clients[0];
    moved.at.clone_from(&tids[5]);
    let (told, answer) = moved.link.ask_and_ack(&format!("watch {file} @{}", tids[5]));
    assert_eq!(answer, "ok");
    moved.pins = history.told(&moved.pins, &told, (&all, &tids[5]));
    assert_eq!(moved.pins, Pins::new(), "it is as others see it");
    let last: &[u8] = &[9, 6, 4, 5, 9, 9, 9, 6];
    history.add(stage.commit(last), last);
    for (block, value) in last.iter().enumerate() {
        read_block(&stage, &history, &mut clients, block, *value);
    }
    for client in &clients {
        history.expect_enough(&client.pins, (&all, &client.at));
        expect_bytes(&stage, &history, &client.pins, &client.at);
    }
    stopped.link.expect_quiet();
    drop((stopped, clients));
    stage.end();
}

pub fn a_read_that_straddles_two_blocks_waits_for_both_pins(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 1, 1]);
    let (file, mut link) = (stage.file(), stage.watching(&t1));
    stage.commit(&[1, 2, 3, 1]);
    let reads = stage.live.stat("reads");
    let reading = Reading::start(&stage.head("a"), 2 * BLOCK - PAGE, 2 * PAGE);
    let (first, second) = (link.hear(), link.hear());
    assert_eq!(first, format!("2 pin {file} #1 @{t1}"));
    assert_eq!(second, format!("4 pin {file} #2 @{t1}"), "before either is acked");
    wait_until("it waits", || stage.live.stat("reads_waiting") == 1);
    link.say("4 ack");
    link.expect_quiet();
    assert_eq!((stage.live.stat("reads_waiting"), stage.live.stat("pins_owed")), (1, 1));
    assert!(reading.waits());
    link.say("2 ack");
    assert!(reading.bytes() == [[2; PAGE], [3; PAGE]].concat());
    // Not by how many were parked: one that is acked before its thread has come to park it is not.
    assert_eq!(stage.live.stat("reads"), reads + 1, "it was one READ");
    link.expect_quiet();
    drop(link);
    stage.end();
}

pub fn no_block_is_pinned_twice_whatever_drops_it_from_the_page_cache(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 1]);
    let map = Movable::new(stage.live.root(), &stage.name("a"), BLOCK, 3);
    let mut link = stage.watching(&t1);
    stage.commit(&[1, 2, 1]);
    let reading = stage.reading(1);
    let pin = link.hear();
    assert!(reading.waits());
    link.say(&map.obey(&pin));
    assert_eq!(reading.value(), 2);
    let reads = stage.live.stat("reads");
    stage.evict();
    assert_eq!(stage.touch(1), 2);
    assert!(stage.live.stat("reads") > reads, "the server was asked again");
    link.expect_quiet();
    // A commit of it, then one of its neighbour, and of it again.
    for values in [[1, 3, 1], [1, 3, 4], [1, 5, 4]] {
        stage.commit(&values);
        assert_eq!(stage.touch(1), values[1]);
        link.expect_quiet();
    }
    let reading = stage.reading(2);
    let pin = link.hear();
    assert_eq!(pin, format!("4 pin {} #2 @{t1}", stage.file()));
    assert!(reading.waits());
    link.say(&map.obey(&pin));
    assert_eq!(reading.value(), 4);
    assert_eq!((0..3).map(|block| map.first_byte(block)).collect::<Vec<_>>(), [1, 1, 1]);
    // Only at a revision that has another one of it.
    let t6 = stage.commit(&[1, 6, 4]);
    let (told, answer) = link.ask_and_ack(&format!("watch {} @{t6}", stage.file()));
    assert_eq!((told.len(), answer.as_str()), (2, "ok"), "{told:?}");
    drop((map, link));
    stage.end();
}
