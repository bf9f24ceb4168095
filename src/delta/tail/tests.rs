//! The index against a model that keeps all commits and looks at each of them; in `races` readers against a writer.
//!
//! Chunks and ages are tiny in tests, and entries are numbered from just below 2^32 on, so that chunks are dropped,
//! tables made anew and numbers go round in every run.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use revfs_protocol::{BlockCount, BlockSize};

use super::*;
use crate::delta::{Epoch, EpochKind, SizeChange};
use crate::store::{FileChange, Store};
use common::{Edit, ScriptedStore};

mod interleave;
mod races;

#[path = "../../../tests/common/store.rs"]
#[allow(clippy::duplicate_mod)] // tests of server have it too
mod common;

thread_local! {
    static STEPS: Cell<usize> = const { Cell::new(0) };
}

/// Counts how many entries, or tids of entries, are looked at.
pub fn note_step() {
    STEPS.set(STEPS.get() + 1);
}

fn steps_of<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = STEPS.get();
    let result = work();
    (STEPS.get() - before, result)
}

/// Entries are numbered from here on in tests.
const NUMBER: u32 = u32::MAX - 200;
const SEED: u64 = 0x5eed;
const UNIT: u64 = 4096;

fn numbered(head: Tid, options: TailOptions) -> Tail {
    Tail::numbered_from(NUMBER, SEED, head, options)
}

fn tid(raw: u64) -> Tid {
    Tid::from_raw(raw)
}

fn file(raw: u64) -> FileId {
    FileId::from_raw(raw)
}

fn block(raw: u64) -> BlockIndex {
    BlockIndex::new(raw)
}

/// A context that sees everything.
fn all() -> ReadTxn {
    at(u64::MAX)
}

fn at(raw: u64) -> ReadTxn {
    let scripted = ScriptedStore::new();
    scripted.commit(raw, &[Edit::Put("x", Vec::new())]);
    let _ = scripted.refresh();
    let store: Arc<dyn Store> = scripted;
    ReadTxn::head(&store)
}

/// What a commit does to one file.
#[derive(Clone, Debug)]
enum Deed {
    Write(Vec<(u64, u64)>),
    Resize(u64),
    Create(u64),
    Delete,
    Rename,
}

fn change(number: u64, old_size: u64, deed: &Deed) -> FileChange {
    let mut change = FileChange {
        file: file(number),
        path: Vec::new(),
        renamed_from: None,
        created: false,
        deleted: false,
        replaced: false,
        old_size,
        size: old_size,
        block_size: BlockSize::MIN,
        blocks: Vec::new(),
    };
    match deed {
        Deed::Write(runs) => {
            change.blocks = runs.iter().map(|run| (block(run.0), BlockCount::new(run.1))).collect();
        }
        Deed::Resize(size) => change.size = *size,
        Deed::Create(size) => {
            (change.created, change.old_size, change.size) = (true, 0, *size);
            change.blocks = vec![(block(0), BlockCount::new(size.div_ceil(UNIT)))];
        }
        Deed::Delete => change.deleted = true,
        Deed::Rename => change.renamed_from = Some(Vec::new()),
    }
    change
}

fn commit(raw: u64, files: Vec<FileChange>) -> CommitInfo {
    CommitInfo {
        seq: raw,
        tid: tid(raw),
        base: tid(raw - 1),
        time_unix_ns: 0,
        author: String::new(),
        message: String::new(),
        commit_uuid: uuid::Uuid::nil(),
        files,
        tags: Vec::new(),
        pack_bytes: 0,
    }
}

fn write(raw: u64, number: u64, runs: &[(u64, u64)]) -> CommitInfo {
    commit(raw, vec![change(number, UNIT << 40, &Deed::Write(runs.to_vec()))])
}

/// All that ever happened.
#[derive(Clone, Debug, Default)]
struct Model {
    commits: Vec<CommitInfo>,
    sizes: std::collections::BTreeMap<u64, u64>,
}

impl Model {
    fn add(&mut self, raw: u64, deeds: &[(u64, Deed)]) -> CommitInfo {
        let mut files = Vec::new();
        for (number, deed) in deeds {
            let change = change(*number, self.sizes.get(number).copied().unwrap_or(0), deed);
            self.sizes.insert(*number, if change.deleted { 0 } else { change.size });
            files.push(change);
        }
        self.commits.push(commit(raw, files));
        self.commits[self.commits.len() - 1].clone()
    }

    fn touches(change: &FileChange, block: u64) -> bool {
        let listed = change.blocks.iter().any(|(first, count)| {
            u128::from(first.raw()) <= u128::from(block)
                && u128::from(block) < u128::from(first.raw()) + u128::from(count.raw())
        });
        let is_cut = change.size < change.old_size && block >= change.size / UNIT;
        change.created || change.deleted || listed || is_cut
    }

    fn rev(&self, number: u64, block: u64, at: Tid) -> Option<Tid> {
        let touches = |change: &FileChange| change.file == file(number) && Model::touches(change, block);
        let mut older = self.commits.iter().rev().filter(|commit| commit.tid <= at);
        older.find(|commit| commit.files.iter().any(touches)).map(|commit| commit.tid)
    }

    fn expected(&self, number: u64, block: u64, at: Tid, tail: Tid) -> BlockRev {
        match self.rev(number, block, at).filter(|rev| *rev > tail) {
            Some(rev) => BlockRev { rev, exact: true },
            None => BlockRev { rev: tail, exact: false },
        }
    }

    fn changes(&self, number: u64, lo: Tid, hi: Tid) -> Vec<(Tid, &FileChange)> {
        let within = self.commits.iter().filter(|commit| commit.tid > lo && commit.tid <= hi);
        let pairs = within.flat_map(|commit| commit.files.iter().map(|change| (commit.tid, change)));
        pairs.filter(|(_, change)| change.file == file(number)).collect()
    }

    /// Compares a slice, its blocks only among `probes`.
    fn check_slice(&self, slice: &FileSlice, lo: Tid, hi: Tid, probes: &[u64]) {
        let changes = self.changes(slice.file.raw(), lo, hi);
        for probe in probes {
            let expected = changes.iter().any(|(_, change)| Model::touches(change, *probe));
            assert_eq!(slice.contains(block(*probe)), expected, "block {probe} in ({lo}, {hi}]: {slice:?}");
        }
        let runs: Vec<(u64, u64)> =
            slice.blocks.iter().map(|(first, count)| (first.raw(), first.raw() + count.raw())).collect();
        assert!(runs.iter().all(|run| run.0 < run.1), "{slice:?}");
        assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0), "{slice:?}");
        let end = runs.last().map_or(0, |run| run.1);
        assert!(slice.rest.is_none_or(|rest| end <= rest.raw()), "{slice:?}");
        let mut epochs = Vec::new();
        let mut size: Option<SizeChange> = None;
        for (tid, change) in changes {
            let after = if change.deleted { 0 } else { change.size };
            if change.created || change.deleted {
                let kind = if change.created { EpochKind::Created } else { EpochKind::Deleted };
                epochs.push(Epoch { tid, kind });
            }
            if change.created || change.deleted || change.size != change.old_size {
                let known = size.unwrap_or(SizeChange { before: change.old_size, smallest: after, after });
                size = Some(SizeChange { smallest: known.smallest.min(after), after, ..known });
            }
        }
        assert_eq!((&slice.epochs, slice.size), (&epochs, size));
    }

    /// Compares the slices of all files, which have numbers below 100.
    fn check_slices(&self, slices: &[FileSlice], lo: Tid, hi: Tid) {
        let changed = |number: &u64| {
            let changes = self.changes(*number, lo, hi);
            changes.iter().any(|(_, change)| change.renamed_from.is_none() && !is_idle(change))
        };
        let expected: Vec<u64> = (0..100).filter(changed).collect();
        assert_eq!(slices.iter().map(|slice| slice.file.raw()).collect::<Vec<_>>(), expected);
        slices.iter().for_each(|slice| self.check_slice(slice, lo, hi, &PROBES));
    }
}

fn deed(files: u64) -> impl Strategy<Value = (u64, Deed)> {
    let short = prop::collection::vec((0..40u64, 1..6u64), 1..4);
    let long = (0..40u64, 0..50u32).prop_map(|(first, log2)| vec![(first, 1u64 << log2)]);
    let deed = prop_oneof![
        8 => short.prop_map(Deed::Write),
        2 => long.prop_map(Deed::Write),
        1 => Just(Deed::Write(vec![(33, u64::MAX)])),
        3 => (0..40 * UNIT).prop_map(Deed::Resize),
        1 => (0..20 * UNIT).prop_map(Deed::Create),
        1 => Just(Deed::Delete),
        1 => Just(Deed::Rename),
    ];
    (0..files, deed)
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(u64, Deed)>),
    /// So many tids back from head.
    Forget(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        9 => prop::collection::vec(deed(4), 0..4).prop_map(Step::Commit),
        1 => prop::collection::vec(deed(40), 0..20).prop_map(Step::Commit),
        1 => (0..60u64).prop_map(Step::Forget),
    ];
    prop::collection::vec(step, 1..120)
}

const PROBES: [u64; 12] = [0, 1, 5, 17, 31, 39, 40, 64, 300, 70_000, 1 << 40, (1 << 52) - 1];

/// Everything that can be asked, for some files, blocks and states of the window.
fn check_all(tail: &Tail, model: &Model, txn: &ReadTxn) {
    let (oldest, head) = tail.window();
    let span = head.raw() - oldest.raw();
    let states: BTreeSet<u64> = [0, 1.min(span), span / 2, span.saturating_sub(1), span].into();
    for at in states.iter().map(|back| tid(head.raw() - back)) {
        for number in [0, 1, 3, 17, 39, 99] {
            for probe in PROBES {
                let expected = model.expected(number, probe, at, oldest);
                let found = tail.block_rev_at(txn, file(number), block(probe), at).unwrap();
                assert_eq!(found, expected, "file {number} block {probe} at {at}, tail {oldest}");
            }
        }
        for hi in states.iter().map(|back| tid(head.raw() - back)).filter(|hi| *hi >= at) {
            for number in [0, 3, 99] {
                let slice = tail.changed_blocks(txn, file(number), at, hi).unwrap();
                model.check_slice(&slice, at, hi, &PROBES);
            }
            let slices = tail.changes(txn, at, hi).unwrap();
            model.check_slices(&slices, at, hi);
            for slice in &slices {
                assert_eq!(tail.changed_blocks(txn, slice.file, at, hi).unwrap(), *slice);
            }
        }
    }
}

fn is_idle(change: &FileChange) -> bool {
    !change.created && !change.deleted && change.blocks.is_empty() && change.size == change.old_size
}

fn is_slow() -> bool {
    std::env::var_os("REVFS_SLOW").is_some()
}

fn config() -> ProptestConfig {
    let cases = if is_slow() { 4096 } else { 64 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn all_answers_are_those_of_the_full_history(steps in steps(), every in 3..30usize) {
        let txn = all();
        let tail = numbered(tid(1000), TailOptions::default());
        let mut model = Model::default();
        let mut last = 1000;
        let mut oldest = tid(1000);
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::Commit(deeds) => {
                    last += 1 + number as u64 % 3;
                    tail.update(&model.add(last, deeds)).unwrap();
                }
                Step::Forget(back) => {
                    let cut = tid(last - back);
                    tail.forget_past(cut);
                    oldest = oldest.max(cut);
                }
            }
            prop_assert_eq!(tail.window(), (oldest, tid(last)));
            if number % every == 0 {
                check_all(&tail, &model, &txn);
            }
        }
        check_all(&tail, &model, &txn);
    }

    #[test]
    fn a_full_index_forgets_no_more_than_it_must(
        commits in prop::collection::vec(prop::collection::vec((0..6u64, 0..30u64, 1..5u64), 0..6), 1..200),
        entries_max in 1..60usize,
    ) {
        let txn = all();
        let options = TailOptions { entries_max, ..TailOptions::default() };
        let tail = numbered(tid(1000), options);
        let mut model = Model::default();
        let mut oldest = tid(1000);
        let mut sizes: Vec<(Tid, usize)> = Vec::new();
        for (number, runs) in commits.iter().enumerate() {
            let now = tid(1001 + number as u64);
            let deeds: Vec<(u64, Deed)> =
                runs.iter().map(|run| (run.0, Deed::Write(vec![(run.1, run.2)]))).collect();
            tail.update(&model.add(now.raw(), &deeds)).unwrap();
            sizes.push((now, runs.iter().map(|run| run.2 as usize).sum()));
            while sizes.iter().filter(|size| size.0 > oldest).map(|size| size.1).sum::<usize>() > entries_max {
                // The next commit that takes anything.
                oldest = sizes.iter().find(|size| size.0 > oldest && size.1 > 0).map_or(now, |size| size.0);
            }
            prop_assert_eq!(tail.window(), (oldest, now));
            prop_assert!(tail.stats().entries <= entries_max);
        }
        check_all(&tail, &model, &txn);
    }
}

#[test]
fn at_start_the_window_is_a_point_that_can_be_asked() {
    let (txn, tail) = (all(), Tail::new(tid(7), TailOptions::default()));
    let ask = |at: u64| tail.block_rev_at(&txn, file(1), block(0), tid(at));
    assert_eq!(ask(7).unwrap(), BlockRev { rev: tid(7), exact: false });
    for outside in [6, 8, 0, u64::MAX] {
        let Err(DeltaError::OutsideWindow { at, tail, head }) = ask(outside) else { panic!("{outside}") };
        assert_eq!((at, tail, head), (tid(outside), tid(7), tid(7)));
    }
    assert_eq!(tail.changes(&txn, tid(7), tid(7)).unwrap(), []);
}

#[test]
fn what_is_asked_wrongly_is_an_error_and_changes_nothing() {
    let tail = Tail::new(tid(7), TailOptions::default());
    tail.update(&write(9, 1, &[(0, 1)])).unwrap();
    for stale in [9, 8, 0] {
        let error = tail.update(&write(9, 1, &[(0, 1)]).at(stale)).unwrap_err();
        assert!(matches!(error, DeltaError::NotAscending { head, .. } if head == tid(9)), "{error}");
    }
    let txn = at(8);
    let error = tail.block_rev_at(&txn, file(1), block(0), tid(9)).unwrap_err();
    assert!(matches!(error, DeltaError::TxnTooOld { txn, at } if (txn, at) == (tid(8), tid(9))), "{error}");
    assert!(tail.block_rev_at(&txn, file(1), block(0), tid(8)).is_ok());
    let txn = all();
    let error = tail.changed_blocks(&txn, file(1), tid(9), tid(8)).unwrap_err();
    assert!(matches!(error, DeltaError::BoundsSwapped { .. }), "{error}");
    for (lo, hi) in [(6, 9), (7, 10)] {
        let error = tail.changes(&txn, tid(lo), tid(hi)).unwrap_err();
        assert!(matches!(error, DeltaError::OutsideWindow { .. }), "{error}");
    }
    assert_eq!((tail.window(), tail.stats().entries), ((tid(7), tid(9)), 1));
}

impl CommitInfo {
    fn at(mut self, raw: u64) -> CommitInfo {
        self.tid = tid(raw);
        self
    }
}

#[test]
fn a_commit_above_the_limit_moves_tail_to_itself() {
    let txn = all();
    let tail = Tail::new(tid(1), TailOptions { entries_max: 10, ..TailOptions::default() });
    tail.update(&write(2, 1, &[(0, 3)])).unwrap();
    tail.update(&write(3, 1, &[(0, 11)])).unwrap();
    assert_eq!((tail.window(), tail.stats().entries), ((tid(3), tid(3)), 0));
    let rev = |at: u64| tail.block_rev_at(&txn, file(1), block(0), tid(at)).unwrap();
    assert_eq!(rev(3), BlockRev { rev: tid(3), exact: false });
    tail.update(&write(4, 1, &[(0, 10)])).unwrap();
    assert_eq!(tail.window(), (tid(3), tid(4)));
    assert_eq!(
        [rev(3), rev(4)],
        [(3, false), (4, true)].map(|(rev, exact)| BlockRev { rev: tid(rev), exact })
    );
}

#[test]
fn tail_moves_up_only_and_not_beyond_head() {
    let tail = Tail::new(tid(1), TailOptions::default());
    (2..=9).for_each(|raw| tail.update(&write(raw, 1, &[(raw, 1)])).unwrap());
    for (cut, oldest) in [(0, 1), (4, 4), (3, 4), (u64::MAX, 9)] {
        tail.forget_past(tid(cut));
        assert_eq!(tail.window(), (tid(oldest), tid(9)));
        assert_eq!(tail.stats().entries as u64, 9 - oldest);
    }
}

#[test]
fn a_block_with_many_versions_is_found_in_few_steps() {
    const VERSIONS: u64 = 100_000;
    let (txn, tail) = (all(), numbered(tid(0), TailOptions::default()));
    (1..=VERSIONS).for_each(|raw| tail.update(&write(raw * 2, 1, &[(5, 1)])).unwrap());
    for asked in (1..VERSIONS * 2).step_by(997) {
        let (steps, found) = steps_of(|| tail.block_rev_at(&txn, file(1), block(5), tid(asked)).unwrap());
        // The tid before the first commit has no version.
        assert_eq!(found, BlockRev { rev: tid(asked & !1), exact: asked > 1 });
        assert!(steps < 150, "{steps} steps at {asked}");
    }
}

#[test]
fn the_newest_change_of_a_block_is_told_without_its_entry() {
    let (txn, tail) = (all(), numbered(tid(0), TailOptions::default()));
    (1..=50).for_each(|raw| tail.update(&write(raw * 2, 1, &[(raw, 1)])).unwrap());
    let rev = |number, at| tail.block_rev_at(&txn, file(1), block(number), tid(at)).unwrap();
    for number in 1..=50 {
        for (at, rev_at, exact) in [(number * 2, number * 2, true), (number * 2 - 1, 0, false)] {
            let expected = BlockRev { rev: tid(rev_at), exact };
            assert_eq!(steps_of(|| rev(number, at)), (1, expected));
        }
    }
}

#[test]
fn a_block_below_many_shrinks_is_found_in_few_steps() {
    const SHRINKS: u64 = 50_000;
    let (txn, tail) = (all(), numbered(tid(0), TailOptions::default()));
    // The end comes up to higher and higher blocks, growing in between.
    for raw in 1..=SHRINKS {
        let shrink = change(1, UNIT * (raw + 1000), &Deed::Resize(UNIT * raw));
        let grow = change(1, UNIT * raw, &Deed::Resize(UNIT * (raw + 1001)));
        tail.update(&commit(raw * 2, vec![shrink])).unwrap();
        tail.update(&commit(raw * 2 + 1, vec![grow])).unwrap();
    }
    for asked in (1..SHRINKS).step_by(499) {
        let (steps, found) =
            steps_of(|| tail.block_rev_at(&txn, file(1), block(asked), tid(SHRINKS * 2)).unwrap());
        // The last shrink to an end at or below the block.
        assert_eq!(found, BlockRev { rev: tid(asked * 2), exact: true });
        assert!(steps < 200, "{steps} steps for block {asked}");
    }
}

#[test]
fn memory_is_that_of_the_window_however_long_it_slides() {
    const WINDOW: u64 = 2_000;
    let tail = numbered(tid(0), TailOptions::default());
    let mut most = 0;
    for raw in 1..=20 * WINDOW {
        // Scattered over many blocks and files, so that all tables fill with garbage.
        let runs = [(raw.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20, 1)];
        tail.update(&write(raw, raw / 16, &runs)).unwrap();
        tail.forget_past(tid(raw.saturating_sub(WINDOW)));
        if raw > 2 * WINDOW {
            most = most.max(tail.stats().bytes / tail.stats().entries);
        }
    }
    assert_eq!(tail.stats().entries as u64, WINDOW);
    assert!(most <= 80, "{most} bytes a change");
    tail.forget_past(Tid::MAX);
    assert!(tail.stats().bytes < 20_000, "{}", tail.stats().bytes);
}

#[test]
fn seeding_takes_up_the_span_before_head_and_reaches_it() {
    let store = ScriptedStore::new();
    (1..=3000u64).for_each(|raw| store.commit(raw * 10, &[Edit::Write("x", raw % 7 * UNIT, vec![1])]));
    let _ = store.refresh();
    let id = store.file_id("x");
    let store: Arc<dyn Store> = store;
    let txn = ReadTxn::new(&store, tid(29_995)).unwrap();
    let tail = Tail::seed_from(&txn, tid(9_995), TailOptions::default()).unwrap();
    assert_eq!((tail.window(), tail.stats().entries), ((tid(9_995), tid(29_995)), 2000));
    for raw in 1001..=2999u64 {
        let found = tail.block_rev_at(&txn, id, block(raw % 7), tid(raw * 10 + 3)).unwrap();
        assert_eq!(found, BlockRev { rev: tid(raw * 10), exact: true });
    }
    assert!(tail.update(&commit(29_995, Vec::new())).is_err());
    let tail = Tail::seed_from(&txn, Tid::MAX, TailOptions::default()).unwrap();
    assert_eq!(tail.window(), (tid(29_995), tid(29_995)));
    // Tids so small are long before 1970; the span of one that is not is as long as asked for.
    let tail = Tail::seed(&txn, TailOptions::default()).unwrap();
    assert_eq!(tail.window().1, tid(29_995));
}

#[test]
fn a_span_is_counted_from_head() {
    let store = ScriptedStore::new();
    let minute = |minute: u64| Tid::from_unix_ns(1_700_000_000_000_000_000 + minute * 60_000_000_000).raw();
    (0..30).for_each(|m| store.commit(minute(m), &[Edit::Write("x", 0, vec![1])]));
    let _ = store.refresh();
    let store: Arc<dyn Store> = store;
    let tail = Tail::seed(&ReadTxn::head(&store), TailOptions::default()).unwrap();
    let (oldest, head) = tail.window();
    assert_eq!((head, tail.stats().entries), (tid(minute(29)), 10));
    assert!(oldest.raw() >= minute(19) && oldest.raw() < minute(20));
}
