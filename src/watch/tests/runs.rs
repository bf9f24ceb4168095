//! Runs of pinned blocks against the same rules played block by block; and how many runs and frames there are.
//!
//! Seen to fail: `split` that counts no wait for what it cuts off, `wait` for a whole run, `aim` that forgets the gap behind the
//! last run, `join` of runs that differ in what is wanted or that somebody waits for, pins that are sent without a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use revfs_protocol::{BlockIndex, BlockSpan, FileId, PinTo, Tid};

use super::super::pins::{Pins, Waiter};
use super::super::*;

const BLOCKS: u64 = 12;
const FILE: FileId = FileId::from_raw(0xf);

/// One block, by the rules.
#[derive(Clone, Debug)]
struct Block {
    acked: PinTo,
    owed: Option<PinTo>,
    wanted: Option<PinTo>,
    found_for: Serial,
    waiting: Vec<(u64, PinTo)>,
}

impl Block {
    fn newest(&self) -> PinTo {
        self.wanted.or(self.owed).unwrap_or(self.acked)
    }
}

/// All blocks; who waits is named by a number.
#[derive(Debug, Default)]
struct Model {
    blocks: BTreeMap<u64, Block>,
}

impl Model {
    fn aim(&mut self, span: BlockSpan, to: PinTo, serial: Serial) -> BTreeSet<u64> {
        let mut send = BTreeSet::new();
        for number in span.first.raw()..=span.last.raw() {
            if to == PinTo::Head && !self.blocks.contains_key(&number) {
                continue;
            }
            let block = self.blocks.entry(number).or_insert(Block {
                acked: PinTo::Head,
                owed: None,
                wanted: None,
                found_for: serial,
                waiting: Vec::new(),
            });
            block.found_for = serial;
            if block.newest() == to {
                continue;
            }
            match block.owed {
                None => {
                    block.owed = Some(to);
                    send.insert(number);
                }
                Some(owed) => block.wanted = (owed != to).then_some(to),
            }
        }
        send
    }

    fn wait(&mut self, span: BlockSpan, who: u64) -> bool {
        let numbers = span.first.raw()..=span.last.raw();
        let unsettled = self.blocks.range_mut(numbers).filter(|(_, block)| block.owed.is_some());
        unsettled.map(|(_, block)| block.waiting.push((who, block.newest()))).count() > 0
    }

    fn acked(&mut self, number: u64) -> Option<PinTo> {
        let block = self.blocks.get_mut(&number)?;
        let to = block.owed.take()?;
        (block.acked, block.owed) = (to, block.wanted.take());
        let settled = block.owed.is_none();
        block.waiting.retain(|(_, target)| !settled && *target != to);
        let next = block.owed;
        if settled && to == PinTo::Head {
            self.blocks.remove(&number);
        }
        next
    }

    fn waits(&self) -> BTreeSet<u64> {
        self.blocks.values().flat_map(|block| &block.waiting).map(|(who, _)| *who).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// To a revision, or to head.
    Aim(BlockSpan, u64),
    Wait(BlockSpan),
    WaitForAll,
    /// The ack of one of the frames on their way; of its first block only, if frames are of single blocks.
    Ack(prop::sample::Index),
    /// A later registration.
    Move,
}

fn span() -> impl Strategy<Value = BlockSpan> {
    (0..BLOCKS, 0..BLOCKS)
        .prop_map(|(a, b)| BlockSpan { first: BlockIndex::new(a.min(b)), last: BlockIndex::new(a.max(b)) })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (span(), 0..4u64).prop_map(|(span, to)| Step::Aim(span, to)),
        2 => span().prop_map(Step::Wait),
        1 => Just(Step::WaitForAll),
        6 => any::<prop::sample::Index>().prop_map(Step::Ack),
        1 => Just(Step::Move),
    ]
}

fn numbers(spans: impl IntoIterator<Item = BlockSpan>) -> Vec<u64> {
    spans.into_iter().flat_map(|span| span.blocks().map(BlockIndex::raw)).collect()
}

/// Both side by side.
#[derive(Debug, Default)]
struct Both {
    pins: Pins,
    model: Model,
    frames: Vec<BlockSpan>,
    waits: u64,
    serial: u64,
}

impl Both {
    fn send(&mut self, spans: Vec<BlockSpan>, by_block: bool) {
        match by_block {
            true => {
                self.frames.extend(numbers(spans).into_iter().map(|n| BlockSpan::one(BlockIndex::new(n))))
            }
            false => self.frames.extend(spans),
        }
    }

    fn play(&mut self, step: &Step, by_block: bool) -> Result<(), TestCaseError> {
        let serial = Serial(self.serial);
        match step {
            Step::Aim(span, to) => {
                let to = if *to == 0 { PinTo::Head } else { PinTo::Rev(Tid::from_raw(*to)) };
                let send = self.pins.aim(*span, to, serial);
                let expected: BTreeSet<u64> = self.model.aim(*span, to, serial);
                let mut sent = numbers(send.iter().copied());
                sent.sort_unstable();
                prop_assert_eq!(sent, expected.into_iter().collect::<Vec<_>>());
                self.send(send, by_block);
            }
            Step::Wait(span) => {
                self.waits += 1;
                let waits = self.pins.wait(*span, Waiter::Read(WaitId(self.waits)));
                prop_assert_eq!(waits, self.model.wait(*span, self.waits));
            }
            Step::WaitForAll => {
                self.waits += 1;
                let waits = self.pins.wait_for_all(Waiter::Read(WaitId(self.waits)));
                let all = BlockSpan { first: BlockIndex::ZERO, last: BlockIndex::new(BLOCKS) };
                prop_assert_eq!(waits, self.model.wait(all, self.waits));
            }
            Step::Ack(which) if !self.frames.is_empty() => {
                let frame = self.frames.remove(which.index(self.frames.len()));
                let (before, mut released) = (self.model.waits(), Vec::new());
                let next = self.pins.acked(frame, &mut released);
                let expected: Vec<_> = frame
                    .blocks()
                    .filter_map(|b| self.model.acked(b.raw()).map(|to| (b.raw(), to)))
                    .collect();
                let sent: Vec<_> =
                    next.iter().flat_map(|(span, to)| span.blocks().map(|b| (b.raw(), *to))).collect();
                prop_assert_eq!(sent, expected);
                let after = self.model.waits();
                let released: Vec<u64> = released.iter().map(|waiter| number(*waiter)).collect();
                let gone: BTreeSet<u64> = before.difference(&after).copied().collect();
                prop_assert_eq!(released.len(), gone.len(), "each once");
                prop_assert_eq!(released.into_iter().collect::<BTreeSet<_>>(), gone);
                self.send(next.into_iter().map(|(span, _)| span).collect(), by_block);
            }
            Step::Ack(_) => {}
            Step::Move => self.serial += 1,
        }
        self.compare()
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let (serial, blocks) = (Serial(self.serial), &self.model.blocks);
        prop_assert_eq!(self.pins.len(), blocks.len() as u64);
        let left = |block: &Block| block.found_for != serial && block.newest() != PinTo::Head;
        let expected: Vec<u64> = blocks.iter().filter(|(_, block)| left(block)).map(|(n, _)| *n).collect();
        prop_assert_eq!(numbers(self.pins.left_over(serial)), expected);
        for first in 0..BLOCKS {
            let span = BlockSpan { first: BlockIndex::new(first), last: BlockIndex::new(BLOCKS) };
            let parts = self.pins.targets(span, serial);
            prop_assert_eq!(
                numbers(parts.iter().map(|(part, _)| *part)),
                (first..=BLOCKS).collect::<Vec<_>>()
            );
            for (number, known) in
                parts.iter().flat_map(|(part, known)| part.blocks().map(move |b| (b.raw(), known)))
            {
                let block = blocks.get(&number).filter(|block| block.found_for == serial);
                prop_assert_eq!(*known, block.map(|block| (block.newest(), block.owed.is_none())));
            }
        }
        Ok(())
    }
}

fn number(waiter: Waiter) -> u64 {
    match waiter {
        Waiter::Read(wait) => wait.0,
        Waiter::Setup => panic!("nobody waits so"),
    }
}

proptest! {
    #[test]
    fn runs_are_as_their_blocks(steps in prop::collection::vec(step(), 1..60), by_block: bool) {
        let mut both = Both::default();
        for step in &steps {
            both.play(step, by_block)?;
        }
        let waits: Vec<u64> = both.pins.take_waiters().into_iter().map(number).collect();
        prop_assert_eq!(waits, both.model.waits().into_iter().collect::<Vec<_>>());
    }
}

const FILES: [&str; 2] = ["000000000000000f", "0000000000000010"];
const NOW: Duration = Duration::from_secs(100);

/// A link that watches two files at 1, of which the first has these blocks pinned and the second one.
fn pinned(hello: &str, blocks: BlockSpan) -> Link {
    let mut link = Link::new(LinkOptions::default());
    let mut actions = Vec::new();
    let at = Tid::from_raw(1);
    let watches = FILES.map(|file| format!("1 watch {file} @{at}\n")).concat();
    link.write(NOW, format!("{hello}{watches}").as_bytes(), false, &mut actions);
    for (action, span) in
        actions.into_iter().filter(|a| *a != Action::Readable).zip([blocks, BlockSpan::one(BlockIndex::ZERO)])
    {
        let Action::Setup(request) = action else { panic!("{action:?}") };
        link.setup_start(&request, &mut Vec::new());
        link.setup_move(&request, 0).unwrap();
        link.setup_pin(NOW, &request, &[(span, at)], &mut Vec::new());
    }
    link
}

/// All that is to be read, as lines.
fn hear(link: &mut Link) -> Vec<String> {
    String::from_utf8(link.read(usize::MAX)).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn billions_of_blocks_are_one_run_and_one_frame() {
    let blocks = BlockSpan { first: BlockIndex::new(5), last: BlockIndex::new(u64::MAX - 1) };
    let mut link = pinned("99 hello range\n", blocks);
    assert_eq!(link.stats().pinned, u64::MAX - 5 + 1);
    assert_eq!(
        hear(&mut link)[1..],
        [
            format!("2 pin {} #5-{} @{}", FILES[0], u64::MAX - 1, Tid::from_raw(1)),
            format!("4 pin {} #0 @{}", FILES[1], Tid::from_raw(1)),
        ]
    );
    // A READ in the midst waits for its own blocks, and a later one does not.
    let middle = [(BlockSpan { first: BlockIndex::new(77), last: BlockIndex::new(99) }, Tid::from_raw(9))];
    let need = link.read_begin(FILE, &middle, WaitId(7)).unwrap();
    assert_eq!((need.waits, need.unknown), (1, vec![]));
    let mut actions = Vec::new();
    link.write(NOW, b"2 ack\n", false, &mut actions);
    assert_eq!(
        actions.iter().filter(|action| **action == Action::Release(WaitId(7))).count(),
        1,
        "{actions:?}"
    );
    assert_eq!(link.read_begin(FILE, &middle, WaitId(8)).unwrap().waits, 0);
}

#[test]
fn of_blocks_that_go_one_by_one_only_so_many_are_on_their_way() {
    let blocks = BlockSpan { first: BlockIndex::ZERO, last: BlockIndex::new(1 << 40) };
    let mut link = pinned("", blocks);
    let heard = hear(&mut link);
    assert_eq!((heard.len(), link.stats().owed), (1 << 16, 1 << 16));
    assert!(heard.iter().all(|pin| pin.contains(FILES[0])), "they come in order");
    // One more for each that is acked, in its own time.
    let later = NOW + Duration::from_secs(7);
    link.write(later, b"4 ack\n2 ack\n", false, &mut Vec::new());
    assert_eq!(
        hear(&mut link),
        [(1 << 16), (1 << 16) + 1]
            .map(|block| { format!("{} pin {} #{block} @{}", 2 * block + 2, FILES[0], Tid::from_raw(1)) })
    );
    // Whoever stops a watch hears of its blocks no more, but of those that came behind them.
    link.write(later, format!("3 watch {} -\n", FILES[0]).as_bytes(), false, &mut Vec::new());
    let heard = hear(&mut link);
    assert!(
        heard.iter().any(|line| line.ends_with(&format!(" pin {} #0 @{}", FILES[1], Tid::from_raw(1)))),
        "{heard:?}"
    );
    assert_eq!((heard.len(), link.stats().owed), (3, 1), "{heard:?}");
}

#[test]
fn blocks_that_are_pinned_and_acked_one_by_one_become_one_run() {
    let (serial, rev) = (Serial(1), PinTo::Rev(Tid::from_raw(1)));
    let mut pins = Pins::default();
    for block in (0..100).rev().chain(100..200) {
        let one = BlockSpan::one(BlockIndex::new(block));
        pins.aim(one, rev, serial);
        pins.wait(one, Waiter::Read(WaitId(block)));
        pins.acked(one, &mut Vec::new());
        assert_eq!(pins.runs(), 1, "at {block}");
    }
    let middle = BlockSpan { first: BlockIndex::new(50), last: BlockIndex::new(59) };
    pins.aim(middle, PinTo::Head, serial);
    assert_eq!((pins.runs(), pins.len()), (3, 200));
    pins.acked(middle, &mut Vec::new());
    assert_eq!((pins.runs(), pins.len()), (2, 190));
    // For a later registration: apart until all of them are.
    for (first, last, runs) in [(0, 9, 3), (10, 49, 2)] {
        let span = BlockSpan { first: BlockIndex::new(first), last: BlockIndex::new(last) };
        assert!(pins.aim(span, rev, Serial(2)).is_empty());
        assert_eq!(pins.runs(), runs);
    }
}
