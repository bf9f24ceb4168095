//! Frames that were broken at random, in any state of a link.
//!
//! Invariant: whatever is written, a link says nothing but messages of the protocol, accuses only who owes a pin, and
//! is over at the latest when it says so. A run is told by its seed.

use revfs_protocol::{FRAME_BYTES_MAX, Frame};

use super::*;

/// Writes of one run.
const WRITES: usize = 40;

/// A frame that makes sense, or nearly.
fn frame(random: &mut Random, stream: &mut u64, owed: &[u64]) -> String {
    *stream += 2;
    let at = random.below(9);
    let file = [FILE, FileId::from_raw(7)][random.below(2)];
    match random.below(10) {
        0 => format!("{stream} hello range size\n"),
        1..=3 => format!("{stream} watch {file} @{at:016x}\n"),
        4 => format!("{stream} watch {file} -\n"),
        5 if random.once_in(20) => format!("{stream} bye\n"),
        6 => format!("{} nak: cannot\n", owed.last().unwrap_or(&2)),
        _ => format!("{} ack\n", owed.get(random.below(owed.len().max(1))).unwrap_or(&4)),
    }
}

/// Breaks bytes in one of the usual ways, or not.
fn spoil(random: &mut Random, bytes: &mut Vec<u8>) {
    let place = random.below(bytes.len());
    match random.below(12) {
        0 => bytes[place] ^= 1 << random.below(8),
        1 => drop(bytes.remove(place)),
        2 => bytes.insert(place, random.below(256) as u8),
        3 => bytes.truncate(place),
        4 => bytes.extend_from_within(place..),
        5 if random.once_in(8) => bytes.splice(place..place, vec![b'9'; 300]).for_each(drop),
        _ => {}
    }
}

/// Does what a server does on a set-up.
fn set_up(random: &mut Random, link: &mut Link, request: &SetupRequest, actions: &mut Vec<Action>) {
    if link.setup_start(request, actions) == SetupStart::Over {
        return;
    }
    if random.once_in(5) {
        return link.setup_refuse(request, "it is not there", actions);
    }
    if link.setup_move(request, 4096).is_some() {
        let pins: Vec<_> = (0..random.below(4)).map(|block| (one(block * 2), request.at)).collect();
        link.setup_pin(Duration::ZERO, request, &pins, actions);
    }
}

fn run_one(seed: u64) -> (usize, usize) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut link = Link::new(LinkOptions::default());
    let (mut stream, mut owed, mut said) = (1, Vec::new(), Vec::new());
    for _ in 0..WRITES {
        let mut bytes = frame(&mut random, &mut stream, &owed).into_bytes();
        spoil(&mut random, &mut bytes);
        let owes = link.stats().owed > 0;
        let mut actions = Vec::new();
        link.write(Duration::ZERO, &bytes, random.once_in(30), &mut actions);
        // What follows may owe more, and is followed by nothing that could be a fault.
        let accused = actions.iter().any(|action| matches!(action, Action::Kill(_)));
        let mut at = 0;
        while at < actions.len() {
            if let Action::Setup(request) = actions[at] {
                set_up(&mut random, &mut link, &request, &mut actions);
            }
            at += 1;
        }
        assert!(owes || !accused, "seed {seed}: it owed nothing: {:?}", String::from_utf8_lossy(&bytes));
        said.extend(link.read(random.below(100)));
        while let Some(end) = said.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = said.drain(..=end).collect();
            assert!(line.len() <= FRAME_BYTES_MAX, "seed {seed}: {line:?}");
            let frame = Frame::parse(&line[..end]).unwrap();
            match ServerMessage::parse(frame.stream, frame.message).unwrap() {
                ServerMessage::Pin { .. } => owed.push(frame.stream),
                ServerMessage::Closing(_) => assert!(link.is_over() || link.is_faulted(), "seed {seed}"),
                ServerMessage::Ok(_) | ServerMessage::Error(_) => {}
            }
        }
        if accused {
            return (1, 0);
        }
        if link.is_over() {
            return (0, 1);
        }
    }
    (0, 0)
}

/// Replays one run: `REVFS_NOISE_SEED=<seed> cargo test broken_frames`.
#[test]
fn broken_frames_give_replies_or_the_end_of_their_link_and_accuse_only_who_owes() {
    if let Some(seed) = std::env::var("REVFS_NOISE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        run_one(seed);
        return;
    }
    let count = if std::env::var_os("REVFS_SLOW").is_some() { 2_000_000 } else { 50_000 };
    let ends = (1..=count).map(run_one).fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    println!("{count} links: {} accused, {} over", ends.0, ends.1);
    assert!(ends.0 * 50 > count as usize && ends.1 * 50 > count as usize, "each end is met: {ends:?}");
}
