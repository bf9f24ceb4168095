//! A reader and the writer in the midst of each other: at each access to what they share, and by random schedules.
//!
//! Each answer has to be that of the full history for one of the windows that were published between the moment when
//! the question was asked and the moment when it was answered; and nobody may wait for who is interrupted. The accesses
//! are those of the real index, see `delta/turns`.
//!
//! What was done wrong on purpose, and failed here:
//!
//! | step | done wrong |
//! |---|---|
//! | a tail that moved | readers do not look at it; it is not noted; it is noted before the state is published |
//! | an entry | a slot, a link of a file or of its events leads there before it is written |
//! | chunks | new ones of blocks, of events, or what is forgotten for them, are not published before an entry is made |
//! | the new head | it is published before the entries are made |
//! | a slot | it says that there is no older version; a reader looks at bits of later entries |
//!
//! A table that is made anew need not be published before it is written to: who has the old one finds in it all that he counts.

use super::*;
use crate::delta::turns::{Who, play};

/// What the writer does.
#[derive(Clone, Debug)]
enum Op {
    Commit(Vec<(u64, Deed)>),
    /// So many tids back from head.
    Forget(u64),
    /// So many tids on.
    Reach(u64),
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// `block_rev_at` as of `hi`.
    Rev,
    /// `changed_blocks`.
    Slice,
    /// `changes`.
    Slices,
}

/// What a reader asks.
#[derive(Clone, Copy, Debug)]
struct Question {
    what: What,
    file: u64,
    block: u64,
    lo: Tid,
    hi: Tid,
}

#[derive(Debug)]
enum Answer {
    Rev(BlockRev),
    Slice(FileSlice),
    Slices(Vec<FileSlice>),
}

impl Question {
    fn ask(&self, tail: &Tail, txn: &ReadTxn) -> Result<Answer, DeltaError> {
        match self.what {
            What::Rev => tail.block_rev_at(txn, file(self.file), block(self.block), self.hi).map(Answer::Rev),
            What::Slice => tail.changed_blocks(txn, file(self.file), self.lo, self.hi).map(Answer::Slice),
            What::Slices => tail.changes(txn, self.lo, self.hi).map(Answer::Slices),
        }
    }

    fn states(&self) -> [Tid; 2] {
        let Question { what, lo, hi, .. } = *self;
        if matches!(what, What::Rev) { [hi, hi] } else { [lo, hi] }
    }

    /// Fails if the answer is that of none of these windows.
    fn check(&self, answer: &Result<Answer, DeltaError>, model: &Model, windows: &[Span]) {
        let covers = |window: &Span, at: &Tid| window.0 <= *at && *at <= window.1;
        let covering: Vec<&Span> =
            windows.iter().filter(|window| self.states().iter().all(|at| covers(window, at))).collect();
        match answer {
            Err(DeltaError::OutsideWindow { at, tail, head }) => {
                assert!(self.states().contains(at) && !covers(&(*tail, *head), at), "{answer:?}");
                assert!(windows.contains(&(*tail, *head)), "{answer:?}");
            }
            Err(error) => panic!("{error}"),
            Ok(_) if covering.is_empty() => panic!("{answer:?} outside of {windows:?}"),
            Ok(Answer::Rev(found)) => {
                let expected = |window: &&Span| model.expected(self.file, self.block, self.hi, window.0);
                let expected: Vec<BlockRev> = covering.iter().map(expected).collect();
                assert!(expected.contains(found), "{found:?} is none of {expected:?}");
            }
            Ok(Answer::Slice(slice)) => {
                assert_eq!(slice.file, file(self.file));
                model.check_slice(slice, self.lo, self.hi, &PROBES);
            }
            Ok(Answer::Slices(slices)) => model.check_slices(slices, self.lo, self.hi),
        }
    }
}

type Span = (Tid, Tid);

const START: u64 = 1000;

#[derive(Clone, Debug)]
struct Scene {
    /// Of hashes.
    seed: u64,
    entries_max: usize,
    /// Done before the reader comes.
    past: Vec<Op>,
    /// Done while he is there.
    ops: Vec<Op>,
}

/// An [`Op`] with its tids.
enum Act {
    Commit(CommitInfo),
    Forget(Tid),
    Reach(Tid),
}

impl Act {
    fn on(&self, tail: &Tail) {
        match self {
            Act::Commit(commit) => tail.update(commit).unwrap(),
            Act::Forget(cut) => tail.forget_past(*cut),
            Act::Reach(head) => tail.reach(*head),
        }
    }
}

/// A scene with all that follows from it.
struct Staged {
    model: Model,
    past: Vec<Act>,
    acts: Vec<Act>,
    seed: u64,
    entries_max: usize,
    /// Windows that are published while the reader is there, the one before included.
    windows: Vec<Span>,
}

impl Scene {
    fn staged(&self) -> Staged {
        let (mut model, mut head) = (Model::default(), START);
        let mut act = |op: &Op| match op {
            Op::Commit(deeds) => {
                head += 1 + head % 3;
                Act::Commit(model.add(head, deeds))
            }
            Op::Forget(back) => Act::Forget(tid(head.saturating_sub(*back))),
            Op::Reach(on) => {
                head += on;
                Act::Reach(tid(head))
            }
        };
        let past = self.past.iter().map(&mut act).collect();
        let acts = self.ops.iter().map(&mut act).collect();
        let Scene { seed, entries_max, .. } = *self;
        let mut staged = Staged { model, past, acts, seed, entries_max, windows: Vec::new() };
        let tail = staged.tail();
        staged.windows.push(tail.window());
        for act in &staged.acts {
            let (_, head) = tail.window();
            act.on(&tail);
            let after = tail.window();
            // What is forgotten to make room is published first, with the head from before.
            if after.0 <= head {
                staged.windows.push((after.0, head));
            }
            staged.windows.push(after);
        }
        staged
    }
}

impl Staged {
    /// The index at the moment when the reader comes.
    fn tail(&self) -> Tail {
        let options = TailOptions { entries_max: self.entries_max, ..TailOptions::default() };
        let tail = Tail::numbered_from(NUMBER, self.seed, tid(START), options);
        self.past.iter().for_each(|act| act.on(&tail));
        tail
    }

    /// Plays one question; answers how many accesses the reader and the writer made.
    fn play(&self, txn: &ReadTxn, question: &Question, legs: &[(Who, usize)]) -> [usize; 2] {
        let _told = Told(question, legs);
        let tail = self.tail();
        let reader = || (tail.window(), question.ask(&tail, txn), tail.window());
        let writer = || self.acts.iter().for_each(|act| act.on(&tail));
        let (made, (before, answer, after)) = play(legs, reader, writer);
        let first = self.windows.iter().position(|window| *window == before).unwrap();
        let last = self.windows.iter().rposition(|window| *window == after).unwrap();
        question.check(&answer, &self.model, &self.windows[first..=last]);
        assert_eq!(tail.window(), self.windows[self.windows.len() - 1]);
        made
    }
}

/// Tells of which run it was that failed.
struct Told<'a>(&'a Question, &'a [(Who, usize)]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {:?}, schedule {:?}", self.0, self.1);
        }
    }
}

/// Changes of file 1, a commit each; the last so many of them make entries come to another place of their chunks.
fn past(more: u64) -> Vec<Op> {
    let write = |runs: &[(u64, u64)]| Op::Commit(vec![(1, Deed::Write(runs.to_vec()))]);
    let resize = |blocks: u64| Op::Commit(vec![(1, Deed::Resize(blocks * UNIT))]);
    let first =
        [write(&[(7, 1)]), write(&[(0, 3)]), resize(40), write(&[(5, 1)]), resize(17), write(&[(5, 1)])];
    let more = (0..more).flat_map(|number| [write(&[(number, 1)]), resize(18 + number)]);
    first.into_iter().chain(more).collect()
}

/// Questions as of the ends of these two windows, and between them.
fn questions(first: Span, last: Span) -> Vec<Question> {
    let states = BTreeSet::from([first.0, first.1, last.0, last.1]);
    let mut questions = Vec::new();
    for hi in &states {
        let question = |what, block, lo| Question { what, file: 1, block, lo, hi: *hi };
        questions.extend([5, 7].map(|block| question(What::Rev, block, *hi)));
        for lo in states.iter().filter(|lo| *lo < hi && [first.1, last.1].contains(hi)) {
            questions.extend([What::Slice, What::Slices].map(|what| question(what, 0, *lo)));
        }
    }
    questions
}

/// Schedules for so many accesses of reader and writer: all in which one of them is interrupted once, and of those in which
/// both are, one of `thin`.
fn schedules([reads, writes]: [usize; 2], thin: usize) -> impl Iterator<Item = Vec<(Who, usize)>> {
    const END: usize = usize::MAX;
    use Who::{Reader, Writer};
    let read_once = (0..=reads).map(|read| vec![(Reader, read), (Writer, END)]);
    let written_once = (0..=writes).map(|write| vec![(Writer, write), (Reader, END)]);
    let pairs = (0..=reads).flat_map(move |read| (0..=writes).map(move |write| (read, write)));
    let both = pairs.step_by(thin).flat_map(|(read, write)| {
        let reader_first = vec![(Reader, read), (Writer, write), (Reader, END)];
        [reader_first, vec![(Writer, write), (Reader, read), (Writer, END)]]
    });
    read_once.chain(written_once).chain(both)
}

#[test]
fn each_question_in_the_midst_of_each_change_and_the_other_way_round() {
    let txn = all();
    let (mores, thin) = if is_slow() { (0..8, 11) } else { (0..2, 97) };
    let again = || Op::Commit(vec![(1, Deed::Write(vec![(5, 1), (7, 1)]))]);
    let cut = || Op::Commit(vec![(1, Deed::Resize(5 * UNIT))]);
    let flood = || Op::Commit(vec![(1, Deed::Write((0..20).map(|block| (2 * block + 1, 1)).collect()))]);
    let new = || Op::Commit(vec![(0, Deed::Create(3 * UNIT))]);
    // With room for how many entries more.
    let scenes: [(usize, Vec<Op>); 8] = [
        (100, vec![again(), again(), again()]),
        (100, vec![cut(), cut()]),
        (100, vec![Op::Forget(3), again()]),
        (100, vec![Op::Forget(0), cut(), new()]),
        (0, vec![again(), cut(), again()]),
        (2, vec![flood(), again()]),
        (100, vec![flood()]),
        (100, vec![Op::Reach(3), Op::Forget(4)]),
    ];
    let scenes = scenes.into_iter().flat_map(|scene| mores.clone().map(move |more| (scene.clone(), more)));
    for ((room, ops), more) in scenes {
        let mut scene = Scene { seed: SEED, entries_max: ENTRIES_LIMIT, past: past(more), ops };
        scene.entries_max = scene.staged().tail().stats().entries + room;
        let staged = scene.staged();
        let (first, last) = (staged.windows[0], staged.windows[staged.windows.len() - 1]);
        for question in questions(first, last) {
            let made = staged.play(&txn, &question, &[]);
            for legs in schedules(made, thin) {
                staged.play(&txn, &question, &legs);
            }
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => prop::collection::vec(deed(4), 1..3).prop_map(Op::Commit),
        1 => prop::collection::vec(deed(40), 0..8).prop_map(Op::Commit),
        2 => (0..30u64).prop_map(Op::Forget),
        1 => (1..4u64).prop_map(Op::Reach),
    ]
}

fn scene() -> impl Strategy<Value = Scene> {
    let (past, ops) = (prop::collection::vec(op(), 0..40), prop::collection::vec(op(), 1..5));
    (any::<u64>(), 5..120usize, past, ops).prop_map(|(seed, entries_max, past, ops)| Scene {
        seed,
        entries_max,
        past,
        ops,
    })
}

/// What is asked, of which file and block, and the states in thousandths of all that there will be.
fn wish() -> impl Strategy<Value = (What, u64, u64, [u64; 2])> {
    let what = prop_oneof![Just(What::Rev), Just(What::Slice), Just(What::Slices)];
    let state = || prop_oneof![Just(0u64), 0..200u64, 0..1000u64, 900..=1000u64];
    (what, 0..4u64, prop::sample::select(PROBES.to_vec()), [state(), state()])
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_schedules(
        scene in scene(),
        wishes in prop::collection::vec((wish(), prop::collection::vec(schedule(), 4)), 24),
    ) {
        let (txn, staged) = (all(), scene.staged());
        let (first, last) = (staged.windows[0], staged.windows[staged.windows.len() - 1]);
        let from = first.0.raw() - 1;
        let state = |thousandths: u64| tid(from + (last.1.raw() + 1 - from) * thousandths / 1000);
        for ((what, file, block, states), schedules) in wishes {
            let [lo, hi] = states.map(state);
            let question = Question { what, file, block, lo: lo.min(hi), hi: lo.max(hi) };
            let made = staged.play(&txn, &question, &[]);
            for schedule in schedules {
                let leg = |(who, thousandths): (Who, usize)| (who, made[who as usize] * thousandths / 1000);
                let legs: Vec<(Who, usize)> = schedule.into_iter().map(leg).collect();
                staged.play(&txn, &question, &legs);
            }
        }
    }
}

/// Legs, in thousandths of the accesses that each makes.
fn schedule() -> impl Strategy<Value = Vec<(Who, usize)>> {
    let who = prop_oneof![Just(Who::Reader), Just(Who::Writer)];
    prop::collection::vec((who, 0..600usize), 0..6)
}
