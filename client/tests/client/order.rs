//! What happens before what: pins before replies, looks before moves.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use crate::fake::{BLOCK, FILE, Fake, LIMIT, Plan, blocks, span, tid};
use crate::{map_blocks, shown};
use revfs_client::Tid;
use revfs_protocol::PinTo;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long to look whether something happens that must not.
const MUST_NOT_HAPPEN: Duration = Duration::from_millis(200);

/// A revision that cannot be opened until `let_go`: a pin to it takes that long. It has no bytes.
struct Slow(PathBuf);

impl Slow {
    fn new(fake: &Fake, rev: Tid) -> Slow {
        let path = fake.rev_path(FILE, rev);
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        Slow(path)
    }

    fn let_go(&self) {
        drop(OpenOptions::new().write(true).open(&self.0).unwrap());
    }
}

#[test]
fn a_reply_counts_after_all_pins_before_it() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"ab"));
    let slow = Slow::new(&fake, tid(15));
    fake.plan(FILE, tid(10), Plan::size(2 * BLOCK));
    let mut plan = Plan::size(2 * BLOCK).pin(1, 1, PinTo::Rev(tid(15)));
    plan.at_once = true;
    fake.plan(FILE, tid(20), plan);
    let conn = fake.connect(tid(10));
    let file = conn.file_by_id(FILE).unwrap();
    let mapping = map_blocks(&file, 2);
    thread::scope(|scope| {
        let (moved, is_moved) = mpsc::channel();
        scope.spawn(move || moved.send(conn.resync(tid(20))).unwrap());
        let early = is_moved.recv_timeout(MUST_NOT_HAPPEN);
        slow.let_go();
        assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
        is_moved.recv_timeout(LIMIT).unwrap().unwrap();
    });
    assert_eq!(shown(&mapping), blocks(b"a\0"));
}

#[test]
fn a_slow_pin_holds_up_no_other_block() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"abcd"));
    fake.write_rev(FILE, tid(3), &blocks(b"ABCD"));
    let slow = [1, 2].map(|rev| Slow::new(&fake, tid(rev)));
    fake.plan(FILE, tid(10), Plan::size(4 * BLOCK));
    let file = fake.connect(tid(10)).file_by_id(FILE).unwrap();
    let mapping = map_blocks(&file, 4);
    let pin = |block, rev| (span(block, block), PinTo::Rev(tid(rev)));
    let streams = fake.send_pins(FILE, &[pin(0, 1), pin(1, 2), pin(2, 3), pin(3, 3)]);
    fake.wait_acks(&streams[2..]);
    slow.iter().for_each(Slow::let_go);
    fake.wait_acks(&streams);
    assert_eq!(shown(&mapping), blocks(b"\0\0CD"));
}

#[test]
fn the_link_is_read_while_a_pin_is_slow() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"ab"));
    fake.write_rev(FILE, tid(3), &blocks(b"AB"));
    let slow = Slow::new(&fake, tid(1));
    fake.plan(FILE, tid(10), Plan::size(2 * BLOCK));
    let unread = fake.unread();
    let file = fake.connect(tid(10)).file_by_id(FILE).unwrap();
    let mapping = map_blocks(&file, 2);
    let first = fake.send_pins(FILE, &[(span(0, 0), PinTo::Rev(tid(1)))]);
    while unread() > 0 {
        thread::yield_now();
    }
    let second = fake.send_pins(FILE, &[(span(1, 1), PinTo::Rev(tid(3)))]);
    fake.wait_acks(&second);
    slow.let_go();
    fake.wait_acks(&first);
    assert_eq!(shown(&mapping), blocks(b"\0B"));
}

#[test]
fn pins_of_one_block_are_carried_out_in_order() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"abcd"));
    fake.write_rev(FILE, tid(3), &blocks(b"ABCD"));
    let slow = Slow::new(&fake, tid(1));
    fake.plan(FILE, tid(10), Plan::size(4 * BLOCK));
    let file = fake.connect(tid(10)).file_by_id(FILE).unwrap();
    let mapping = map_blocks(&file, 4);
    let streams = fake.send_pins(
        FILE,
        &[(span(1, 2), PinTo::Rev(tid(1))), (span(2, 3), PinTo::Rev(tid(3))), (span(3, 3), PinTo::Head)],
    );
    slow.let_go();
    fake.wait_acks(&streams);
    assert_eq!(shown(&mapping), blocks(b"a\0Cd"));
    let acks: Vec<String> = fake.said().into_iter().filter(|said| said.ends_with(" ack")).collect();
    assert_eq!(acks, ["2 ack", "4 ack", "6 ack"]);
}

#[test]
fn frames_may_come_in_pieces() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"ab"));
    fake.write_rev(FILE, tid(3), &blocks(b"AB"));
    fake.plan(FILE, tid(10), Plan::size(2 * BLOCK));
    let file = fake.connect(tid(10)).file_by_id(FILE).unwrap();
    let mapping = map_blocks(&file, 2);
    let streams = fake.owe_pins(FILE, &[(span(0, 0), PinTo::Rev(tid(3))), (span(1, 1), PinTo::Rev(tid(3)))]);
    for byte in &streams.1 {
        fake.say(&[*byte]);
    }
    fake.wait_acks(&streams.0);
    assert_eq!(shown(&mapping), blocks(b"AB"));
}

#[test]
fn a_move_waits_for_those_who_look() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"ab"));
    fake.plan(FILE, tid(10), Plan::size(2 * BLOCK));
    fake.plan(FILE, tid(20), Plan::size(2 * BLOCK));
    let conn = fake.connect(tid(10));
    let file = conn.file_by_id(FILE).unwrap();
    let mapping = map_blocks(&file, 2);
    let (moved, is_moved) = mpsc::channel();
    thread::scope(|scope| {
        let look = mapping.with_bytes(|_| {
            scope.spawn(|| moved.send(conn.resync(tid(20))).unwrap());
            let early = is_moved.recv_timeout(MUST_NOT_HAPPEN);
            assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
            assert_eq!(conn.at(), tid(10));
            mapping.with_bytes(|bytes| bytes[0]).unwrap() // a look within a look does not wait for the move
        });
        assert_eq!(look.unwrap(), b'a');
        is_moved.recv_timeout(LIMIT).unwrap().unwrap();
    });
    assert_eq!(conn.at(), tid(20));
}

/// Commits blocks one after the other while threads look, and now and then the view moves: who looks always sees
/// the bytes as of the view, by each way to look.
#[test]
fn who_looks_sees_one_revision_while_others_commit() {
    const BLOCKS: usize = 8;
    const COMMITS: u64 = 240;
    let fill = |rev: u64, block: usize| (rev / 8 * 8 + if rev % 8 >= block as u64 { 8 } else { 0 }) as u8;
    // Commit `rev` changes block `rev % 8`; so as of rev, block b was last changed at most 8 commits ago.
    let content = |rev: u64| blocks(&std::array::from_fn::<u8, BLOCKS, _>(|block| fill(rev, block)));
    let fake = Fake::new();
    fake.write_head(FILE, &content(0));
    for rev in 0..COMMITS {
        fake.write_rev(FILE, tid(rev), &content(rev));
    }
    fake.plan(FILE, tid(0), Plan::size(BLOCKS * BLOCK));
    let conn = fake.connect(tid(0));
    let file = conn.file_by_id(FILE).unwrap();
    let mapping = map_blocks(&file, BLOCKS);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looks = [0, 1].map(|way| {
            let (conn, mapping, over) = (&conn, &mapping, &over);
            scope.spawn(move || {
                let mut looks = 0u64;
                while !over.load(Ordering::Relaxed) || looks == 0 {
                    let mut read = vec![0; BLOCKS * BLOCK];
                    let before = conn.at();
                    let (at, bytes) = match way {
                        0 => mapping.with_bytes(|bytes| (conn.at(), bytes.to_vec())).unwrap(),
                        _ => {
                            mapping.read(0, &mut read).unwrap();
                            (conn.at(), read)
                        }
                    };
                    // `read` does not say at which revision; if the view moved around it, nothing is known.
                    let known = way == 0 || before == at;
                    assert!(!known || bytes == content(at.raw()), "way {way}: torn at {at}");
                    looks += 1;
                }
                looks
            })
        });
        for rev in 1..COMMITS {
            let block = rev % BLOCKS as u64;
            let at = conn.at();
            fake.pin(FILE, block, block, PinTo::Rev(at));
            fake.write_head(FILE, &content(rev));
            if rev % 13 == 0 {
                fake.plan(FILE, tid(rev), Plan::size(BLOCKS * BLOCK).pin(0, BLOCKS as u64 - 1, PinTo::Head));
                conn.resync(tid(rev)).unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
        for look in looks {
            look.join().unwrap();
        }
    });
}
