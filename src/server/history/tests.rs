//! The index and the store as one: both tell the same, also while the window moves in the midst of a question.

use super::*;
use crate::delta::turns::{Who, play};
use crate::env::SystemClock;
use crate::server::tests::common::{Edit, ScriptedStore};
use crate::store::Store;
use crate::store::native::{InitOptions, NativeStore, OpenOptions};
use revfs_protocol::BlockSize;
use std::collections::{BTreeMap, BTreeSet};

/// Each block of runs with its revision.
fn by_block(pins: &[(BlockSpan, Tid)]) -> BTreeMap<BlockIndex, Tid> {
    pins.iter().flat_map(|(span, rev)| span.blocks().map(|block| (block, *rev))).collect()
}

#[test]
fn the_index_and_the_store_tell_the_same() {
    const BLOCK: u64 = 4096;
    const BLOCKS: u64 = 12;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let init =
        InitOptions { sync: false, block_size: BlockSize::new(BLOCK).unwrap(), ..InitOptions::default() };
    NativeStore::init(&root, &init, &*SystemClock::shared()).unwrap();
    let store = NativeStore::open(&root, OpenOptions { sync: false, ..OpenOptions::default() }).unwrap();
    let mut state = 3u64;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut tids = Vec::new();
    let mut file = None;
    for round in 0..60u8 {
        let mut txn = store.begin(None).unwrap();
        let id = *file.get_or_insert_with(|| txn.create(b"f", None).unwrap());
        if below(5) == 0 {
            pollster::block_on(txn.set_size(id, below(BLOCKS * BLOCK))).unwrap();
        }
        for _ in 0..1 + below(3) {
            let (first, count) = (below(BLOCKS), 1 + below(3));
            let bytes = vec![round + 1; (count * BLOCK) as usize];
            let start = first * BLOCK;
            pollster::block_on(txn.write(id, start..start + count * BLOCK, &bytes)).unwrap();
        }
        tids.push(pollster::block_on(txn.commit()).unwrap().tid);
    }
    let file = file.unwrap();
    let shared = store.as_store();
    let view = |at: Tid| {
        let txn = ReadTxn::new(&shared, at).unwrap();
        let meta = txn.file(file).unwrap().unwrap();
        FileView { txn, meta: Arc::new(meta) }
    };
    let newest = *tids.last().unwrap();
    let (indexed, plain) = (
        History::new(
            newest,
            TailOptions { span: Duration::from_secs(3600), ..TailOptions::default() },
            false,
            false,
        ),
        History::new(newest, TailOptions::default(), false, false),
    );
    indexed.seed(&view(newest).txn);
    assert!(indexed.window().0.0 < tids[0], "the index has all of it");
    // It answers for the window, but has not read it yet.
    let unread = History::new(newest, TailOptions::default(), false, true);
    let all = || vec![span(0, BLOCKS + 4)];
    for (older, at) in tids.iter().enumerate() {
        let found = by_block(&indexed.pins_at(&view(*at), span(0, BLOCKS + 4)).unwrap());
        for (block, rev) in by_block(&plain.pins_at(&view(*at), span(0, BLOCKS + 4)).unwrap()) {
            // A shrink counts as a change of holes too; that is as good.
            let same = |rev: &Tid| view(*rev).txn.blocks(file, block, BlockCount::new(1)).unwrap()[0].data;
            assert!(found[&block] >= rev && found[&block] <= *at, "block {block} @{at}");
            assert_eq!(same(&found[&block]), same(at), "block {block} @{at}");
        }
        for (block, rev) in by_block(&unread.pins_at(&view(*at), span(0, BLOCKS + 4)).unwrap()) {
            let same = |rev: &Tid| view(*rev).txn.blocks(file, block, BlockCount::new(1)).unwrap()[0].data;
            assert!(rev <= *at && same(&rev) == same(at), "block {block} @{at} is pinned @{rev}");
        }
        for head in &tids[older..] {
            let blocks =
                |spans: Vec<BlockSpan>| -> BTreeSet<_> { spans.iter().flat_map(|s| s.blocks()).collect() };
            let by_index = blocks(indexed.changed(&view(*head), *at, all()).unwrap());
            let by_store = blocks(plain.changed(&view(*head), *at, all()).unwrap());
            assert!(by_index.is_superset(&by_store), "@{at} to @{head}: {by_index:?} {by_store:?}");
            let by_unread = blocks(unread.changed(&view(*head), *at, all()).unwrap());
            assert!(by_unread.is_superset(&by_store), "@{at} to @{head}: {by_unread:?} {by_store:?}");
            for block in by_index.difference(&by_store) {
                let data = |at: &Tid| view(*at).txn.blocks(file, *block, BlockCount::new(1)).unwrap()[0].data;
                assert_eq!(data(at), data(head), "more than what changed is told for holes only");
            }
        }
    }
}

fn span(first: u64, last: u64) -> BlockSpan {
    BlockSpan { first: BlockIndex::new(first), last: BlockIndex::new(last) }
}

#[test]
fn what_is_common_is_what_both_have() {
    let mut state = 7u64;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for _ in 0..2000 {
        let mut runs = |most: u64| {
            let (mut next, mut runs) = (below(4), Vec::new());
            for _ in 0..below(most) {
                let count = 1 + below(4);
                runs.push((next, count));
                next += count + 1 + below(4);
            }
            runs
        };
        let (spans, changed) = (runs(6), runs(6));
        let rest = below(3).checked_sub(1).map(|_| BlockIndex::new(below(30)));
        let before_rest = |first: u64, count: u64| match rest {
            Some(rest) if first >= rest.raw() => 0,
            Some(rest) => count.min(rest.raw() - first),
            None => count,
        };
        let kept = changed.iter().map(|(first, count)| (*first, before_rest(*first, *count)));
        let kept = kept.filter(|(_, count)| *count > 0);
        let blocks = kept.map(|(first, count)| (BlockIndex::new(first), BlockCount::new(count))).collect();
        let slice = FileSlice { blocks, rest, ..FileSlice::unchanged(FileId::from_raw(1)) };
        let spans: Vec<_> = spans.iter().map(|(first, count)| span(*first, first + count - 1)).collect();
        let all = spans.iter().flat_map(|span| span.blocks());
        let expected: BTreeSet<_> = all.filter(|block| slice.contains(*block)).collect();
        let found: BTreeSet<_> = common(&spans, &slice).iter().flat_map(|span| span.blocks()).collect();
        assert_eq!(found, expected, "{spans:?} {slice:?}");
    }
}

/// A file of four blocks, and a window of a minute that begins after it was made. Block 0 changes in the second that the third
/// commit is made in, block 1 in the next one.
struct Moving {
    store: Arc<dyn Store>,
    file: FileId,
    commits: Vec<CommitInfo>,
    entries_max: usize,
}

const SECOND: u64 = 1_000_000_000;
const MADE: u64 = 1_700_000_000 * SECOND;
const BEGUN: u64 = MADE + 1000 * SECOND;

fn second(number: u64) -> Tid {
    Tid::from_unix_ns(BEGUN + number * SECOND)
}

impl Moving {
    fn new(entries_max: usize) -> Moving {
        let store = ScriptedStore::new();
        let unit = BlockSize::MIN.bytes();
        let changed = |block: u64| vec![Edit::Write("a", block * unit, vec![block as u8 + 2; unit as usize])];
        store.commit(Tid::from_unix_ns(MADE).raw(), &[Edit::Put("a", vec![1; 4 * unit as usize])]);
        for (number, edits) in
            [changed(3), changed(0), changed(1), [changed(2), changed(3)].concat()].iter().enumerate()
        {
            store.commit(second(number as u64).raw(), edits);
        }
        let _ = store.refresh();
        let commits = store.commits(second(0), Tid::MAX, 100).unwrap();
        let file = store.file_id("a");
        Moving { store, file, commits, entries_max }
    }

    fn view(&self, at: Tid) -> FileView {
        let txn = ReadTxn::new(&self.store, at).unwrap();
        let meta = Arc::new(txn.file(self.file).unwrap().unwrap());
        FileView { txn, meta }
    }

    /// As of the commit of block 1; of a store that tells by file, the file was opened as of the commit of block 3.
    fn history(&self, by_file: bool) -> History {
        let options = TailOptions { span: WINDOW_SPAN_MIN, entries_max: self.entries_max };
        let history = History::new(second(0), options, by_file, true);
        history.opened.note(self.file);
        history.seed(&self.view(second(0)).txn);
        history.update(&self.commits[..2], &self.view(second(2)).txn);
        history
    }
}

/// What is asked of block 0 as of the commit of block 1 has a right answer, at whatever place the window moves.
fn ask_while_the_window_moves(entries_max: usize, by_file: bool, move_on: impl Fn(&Moving, &History)) {
    let moving = Moving::new(entries_max);
    let view = moving.view(second(2));
    let ask = |legs: &[(Who, usize)]| {
        let history = moving.history(by_file);
        let question =
            || (history.pins_at(&view, span(0, 0)).unwrap(), history.revs(&view, span(0, 0)).unwrap());
        let (made, (pins, revs)) = play(legs, question, || move_on(&moving, &history));
        let shown = |at: Tid| {
            moving.view(at).txn.blocks(moving.file, BlockIndex::ZERO, BlockCount::new(1)).unwrap()[0].data
        };
        assert_eq!(shown(pins[0].1), shown(second(2)), "{pins:?}, schedule {legs:?}");
        // More than it is costs a pin, less would spare one that is needed.
        assert!(revs[0].1 >= second(1), "{revs:?}, schedule {legs:?}");
        made
    };
    let [reads, writes] = ask(&[]);
    for read in 0..=reads {
        ask(&[(Who::Reader, read), (Who::Writer, usize::MAX)]);
        for write in 0..=writes {
            ask(&[(Who::Reader, read), (Who::Writer, write), (Who::Reader, usize::MAX)]);
            ask(&[(Who::Writer, write), (Who::Reader, read), (Who::Writer, usize::MAX)]);
        }
    }
}

#[test]
fn what_is_forgotten_while_it_is_asked_for_is_asked_of_the_store() {
    let later = second(1).to_unix_ns() + SECOND / 2 + WINDOW_SPAN_MIN.as_nanos() as u64;
    for by_file in [false, true] {
        ask_while_the_window_moves(100, by_file, |_, history| history.forget(second(2), second(2), later));
    }
}

#[test]
fn what_has_no_place_any_more_while_it_is_asked_for_is_asked_of_the_store() {
    for by_file in [false, true] {
        ask_while_the_window_moves(3, by_file, |moving, history| {
            history.update(&moving.commits[2..], &moving.view(second(3)).txn);
        });
    }
}

#[test]
fn what_had_no_place_before_a_file_was_opened_is_asked_of_the_store() {
    let moving = Moving::new(1);
    let options = TailOptions { span: WINDOW_SPAN_MIN, entries_max: moving.entries_max };
    let history = History::new(second(2), options, true, true);
    history.opened.note(moving.file);
    let view = moving.view(second(2));
    let revs = |found: Vec<(BlockSpan, Tid)>| by_block(&found).into_values().collect::<Vec<_>>();
    assert_eq!(revs(history.pins_at(&view, span(0, 1)).unwrap()), [second(1), second(2)]);
    let bounds = revs(history.revs(&view, span(0, 1)).unwrap());
    assert!(bounds[0] >= second(1) && bounds[1] >= second(2), "{bounds:?}");
}

#[test]
fn whether_a_block_may_differ_is_told_while_a_head_is_published() {
    let moving = Moving::new(100);
    let history = Arc::new(moving.history(true));
    let (sender, told) = std::sync::mpsc::channel();
    let (asked, head, file) = (Arc::clone(&history), moving.view(second(2)).txn, moving.file);
    let ask = move || {
        for at in [1, 2].map(second) {
            sender.send(asked.may_differ(&head, (file, second(0)), BlockIndex::new(1), at)).unwrap();
        }
    };
    let published = history.opened.publish(second(3), &history.opened.files(), || {
        drop(crate::env::spawn("asker", ask).unwrap());
        let patience = Duration::from_secs(30);
        assert_eq!([(); 2].map(|()| told.recv_timeout(patience).unwrap()), [true, false]);
    });
    published.unwrap();
}
