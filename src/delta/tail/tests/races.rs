//! Readers against the writer: at random, and where a reader is overtaken.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[test]
fn a_reader_that_was_overtaken_by_forgetting_starts_again() {
    for made in [write(5, 1, &[(7, 1)]), commit(5, vec![change(1, 9 * UNIT, &Deed::Resize(UNIT))])] {
        let tail = numbered(tid(0), TailOptions::default());
        [3, 4].into_iter().for_each(|raw| tail.update(&made.clone().at(raw)).unwrap());
        let tries = Cell::new(0);
        let answer = tail.ask(|state| {
            tries.set(tries.get() + 1);
            if tries.get() == 1 {
                tail.forget_past(tid(4));
                tail.update(&made).unwrap();
            }
            let slice = state.slice(file(1), tid(3), tid(4))?;
            Ok(Ok((state.tail, state.block_rev(file(1), block(7), tid(4))?, slice.is_unchanged())))
        });
        let expected = (tid(4), BlockRev { rev: tid(4), exact: false }, true);
        assert_eq!((answer.unwrap(), tries.get()), (expected, 2), "{made:?}");
    }
}

/// Commits of the race: so that each answer can be had from the number of the commit alone.
const RACE_COMMITS: u64 = 30_000;
const RACE_FILES: u64 = 5;

fn race_model() -> Model {
    let mut model = Model::default();
    let mut draw = 1u64;
    let mut below = |bound: u64| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (draw >> 33) % bound
    };
    for raw in 1..=RACE_COMMITS {
        let number = below(RACE_FILES);
        let deed = match below(20) {
            0 => Deed::Resize(below(60) * UNIT),
            1 => Deed::Write(vec![(below(64), 1 << below(20))]),
            2 if below(20) == 0 => Deed::Create(0),
            _ => Deed::Write((0..3).map(|i| (i * 20 + below(15), 1 + below(4))).collect()),
        };
        model.add(raw, &[(number, deed)]);
    }
    model
}

/// Asks at random until the writer is done; answers how often it got an answer.
fn race_reader(tail: &Tail, model: &Model, seed: u64, done: &AtomicBool) -> u64 {
    let txn = all();
    let mut draw = seed;
    let mut below = |bound: u64| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (draw >> 33) % bound
    };
    let mut answers = 0;
    while !done.load(Ordering::Relaxed) {
        let before = tail.window();
        let at = tid(before.1.raw().saturating_sub(below(before.1.raw() - before.0.raw() + 3)));
        let (number, probe) = (below(RACE_FILES), below(70));
        let found = tail.block_rev_at(&txn, file(number), block(probe), at);
        let slice = tail.changed_blocks(&txn, file(number), at, before.1);
        let after = tail.window();
        let truth = recent_rev(model, number, probe, at);
        match found {
            Ok(BlockRev { rev, exact: true }) => assert!(Some(rev) == truth && rev > before.0),
            Ok(BlockRev { rev, exact: false }) => {
                assert!(before.0 <= rev && rev <= after.0 && truth.is_none_or(|truth| truth <= rev));
            }
            Err(DeltaError::OutsideWindow { tail, head, .. }) => {
                assert!(at < tail && tail <= after.0 && head >= before.1);
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        answers += 1;
        let Ok(slice) = slice else { continue };
        let changed = recent_rev(model, number, probe, before.1).is_some_and(|rev| rev > at);
        assert_eq!(slice.contains(block(probe)), changed, "file {number} block {probe} ({at}, {}]", before.1);
    }
    answers
}

/// As `Model::rev`; commits are numbered by their tids.
fn recent_rev(model: &Model, number: u64, probe: u64, at: Tid) -> Option<Tid> {
    let older = model.commits[..at.raw() as usize].iter().rev();
    let touches = |change: &FileChange| change.file == file(number) && Model::touches(change, probe);
    older.clone().find(|commit| commit.files.iter().any(touches)).map(|commit| commit.tid)
}

#[test]
fn readers_that_race_the_writer_get_the_answers_of_their_moment() {
    let tail = numbered(tid(0), TailOptions { entries_max: 3_000, ..TailOptions::default() });
    let (model, done) = (race_model(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (tail, model, done) = (&tail, &model, &done);
        #[allow(clippy::disallowed_methods)] // scoped, so that they may borrow
        let readers: Vec<_> =
            (1..=3).map(|seed| scope.spawn(move || race_reader(tail, model, seed, done))).collect();
        for (number, commit) in model.commits.iter().enumerate() {
            if tail.update(commit).is_err() {
                break;
            }
            if number % 50 == 0 {
                tail.forget_past(tid(commit.tid.raw().saturating_sub(number as u64 % 400)));
            }
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert_eq!(tail.window().1, tid(RACE_COMMITS));
}
