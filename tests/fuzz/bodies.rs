//! What each fuzz target does with its input: everything that a reader of hostile bytes offers, and what must hold
//! whatever they are.
//!
//! Invariant: plain functions of bytes, so that the targets of `tools/fuzz` and the test of the corpus run the same. A
//! panic is a finding; an error never is.

use std::path::Path;
use std::sync::Arc;

use revfs::store::zodb::filestorage::{FileStorage, Refreshed, read_saved_index};
use revfs::store::zodb::objects::{self, Bucket, Object, Tree};
use revfs::store::zodb::pickle::{Pickles, Value, ValueId};
use revfs::store::zodb::{Database, DatabaseOptions, Oid};
use revfs::store::{BufferPool, ReadTxn, Store};
use revfs::view;
use revfs_protocol::{
    BlockCount, BlockIndex, ClientRequest, FRAME_BYTES_MAX, FileId, Frame, LINE_BYTES_MAX, LineBuffer,
    ServerMessage, StreamKind, Tid, is_ack,
};

/// Values of a pickle that are looked at: they may form circles.
const VALUES_MAX: usize = 10_000;
/// Blocks of a file that are asked for, and bytes of it that are read.
const BLOCKS_ASKED: u64 = 64;
const BYTES_READ: usize = 64 << 10;
/// Size of the file that a saved index is told to be of, bytes.
const INDEXED_BYTES: u64 = 1 << 40;

/// The pickles of a record, and each value in them.
pub fn pickle(bytes: &[u8]) {
    let mut pickles = Pickles::new(bytes);
    let mut seen = 0;
    while !pickles.is_at_end() {
        let before = pickles.at();
        let Ok(value) = pickles.read_next() else { return };
        assert!(pickles.at() > before && pickles.at() <= bytes.len());
        seen += look(&pickles, value, bytes.len());
        if seen > VALUES_MAX {
            return;
        }
    }
}

/// Looks at a value and all that it leads to; answers how many those were.
fn look(pickles: &Pickles<'_>, value: ValueId, len: usize) -> usize {
    let mut ahead = vec![value];
    let mut seen = 0;
    while let Some(id) = ahead.pop().filter(|_| seen < VALUES_MAX) {
        seen += 1;
        assert!(pickles.bytes(id).is_none_or(|bytes| bytes.len() <= len));
        let _names = pickles.class_name(id).map(|class| class.to_string());
        let _leads_to = pickles.reference(id);
        ahead.extend(pickles.tuple(id).unwrap_or_default());
        ahead.extend(pickles.list(id).unwrap_or_default());
        ahead.extend(pickles.dict(id).into_iter().flatten().flat_map(|(key, value)| [key, value]));
        if let Some(call) = pickles.call(id) {
            ahead.extend([Some(call.callable), Some(call.args), call.state].into_iter().flatten());
        }
        if let Value::Persistent(named) = pickles.value(id) {
            ahead.push(named);
        }
    }
    seen
}

/// The record of an object.
pub fn objects(bytes: &[u8]) {
    let class = objects::class_of_start(bytes);
    let Ok(object) = objects::decode(bytes) else { return };
    assert_eq!(class, Ok(object.class()));
    match &object {
        Object::BigFile { block_size, .. } => assert!(*block_size > 0),
        Object::Blk0(data) | Object::Data(data) => assert!(data.len() <= bytes.len()),
        Object::LongTree(tree) | Object::IntTree(tree) => check_tree(tree, bytes.len()),
        Object::LongBucket(leaf) | Object::IntBucket(leaf) => check_leaf(leaf, bytes.len()),
        Object::Blk1 { .. } | Object::Other(_) => {}
    }
}

fn check_tree(tree: &Tree, len: usize) {
    match tree {
        Tree::Empty => {}
        Tree::Inlined(leaf) => check_leaf(leaf, len),
        Tree::Node(node) => {
            assert_eq!(node.keys.len() + 1, node.children.len());
            assert!(node.children.len() <= len && node.keys.is_sorted_by(|one, next| one < next));
        }
    }
}

fn check_leaf(leaf: &Bucket, len: usize) {
    assert!(leaf.entries.len() <= len && leaf.entries.is_sorted_by(|one, next| one.0 < next.0));
}

/// An index as ZODB saves it.
pub fn saved_index(bytes: &[u8]) {
    let Ok((end, index)) = read_saved_index(bytes, INDEXED_BYTES) else { return };
    assert!(end <= INDEXED_BYTES && index.len() <= bytes.len());
    let mut last: Option<Oid> = None;
    for (oid, pos) in index.iter() {
        assert!(last.is_none_or(|last| last < oid) && index.get(oid) == Some(pos));
        last = Some(oid);
    }
    assert_eq!(last, index.last());
}

/// A whole FileStorage, in a folder where it may be put: every object at every state, then as a store of files.
pub fn filestorage(folder: &Path, bytes: &[u8]) {
    let path = folder.join("Data.fs");
    // A new file each time would cost more than all the rest.
    std::fs::write(&path, bytes).expect("the folder can be written");
    let Ok(storage) = FileStorage::open(&path, None) else { return };
    let mut states = vec![Tid::ZERO];
    let ascending = storage.transactions(Tid::ZERO, Tid::MAX).into_iter().flatten();
    let transactions: Vec<_> = ascending.map_while(Result::ok).collect();
    for transaction in &transactions {
        assert!(transaction.tid > states[states.len() - 1] && transaction.tid <= storage.last_tid());
        states.push(transaction.tid);
        for record in &transaction.records {
            check_state(&storage, record.oid, transaction.tid);
            check_state(&storage, record.oid, Tid::from_raw(transaction.tid.raw() - 1));
        }
    }
    let back: Vec<_> = storage.transactions_back(Tid::ZERO, Tid::MAX).map_while(Result::ok).collect();
    assert!(back.is_sorted_by(|newer, older| newer.tid > older.tid));
    for oid in storage.oids() {
        let _class = storage.peek_last(oid);
        let _first = storage.oldest_serial(oid);
        check_state(&storage, oid, storage.last_tid());
    }
    let _trouble = storage.trouble();
    if let Ok(refreshed) = storage.refresh() {
        assert!(matches!(refreshed, Refreshed::Nothing | Refreshed::Reopened { .. }), "{refreshed:?}");
    }
    database(&path, &states);
}

fn check_state(storage: &FileStorage, oid: Oid, at: Tid) {
    let (loaded, peeked) = (storage.load(oid, at), storage.peek(oid, at));
    if let (Ok(Some(loaded)), Ok(Some(peeked))) = (&loaded, &peeked) {
        assert!(loaded.serial <= at && loaded.serial == peeked.serial);
        assert_eq!(loaded.data.len() as u64, peeked.len);
        assert!(loaded.data.starts_with(&peeked.start));
        objects(&loaded.data);
    }
    assert!(!matches!((loaded, peeked), (Ok(Some(_)), Ok(None)) | (Ok(None), Ok(Some(_)))));
}

fn database(path: &Path, states: &[Tid]) {
    let Ok(database) = Database::open(path, DatabaseOptions::default()) else { return };
    let database = Arc::new(database);
    if let Ok(report) = database.verify(false, 100.0, &mut |_, _| {}) {
        assert!(report.transactions as usize <= states.len());
    }
    let store: Arc<dyn Store> = database;
    let _told = store.commits(Tid::ZERO, store.head(), states.len());
    let _told_back = store.commits_back(Tid::ZERO, store.head(), 3);
    let pool = BufferPool::new(1, 1);
    for at in states.iter().copied().filter(|at| *at <= store.head()) {
        let Ok(txn) = ReadTxn::new(&store, at) else { continue };
        for (_, file) in txn.walk(revfs::store::DirId::ROOT).unwrap_or_default() {
            read_file(&txn, file, &pool);
        }
    }
}

fn read_file(txn: &ReadTxn, file: FileId, pool: &Arc<BufferPool>) {
    let Ok(Some(meta)) = txn.file(file) else { return };
    assert!(meta.size.is_multiple_of(meta.block_size.bytes()) && meta.size <= i64::MAX as u64);
    if let Ok(runs) = txn.blocks(file, BlockIndex::new(0), BlockCount::new(BLOCKS_ASKED)) {
        let mut next = 0;
        for run in runs {
            assert!(run.first.raw() == next && run.count > 0 && run.rev <= txn.at());
            next += run.count;
        }
        assert_eq!(next, BLOCKS_ASKED);
    }
    for offset in [0, meta.size.saturating_sub(BYTES_READ as u64)] {
        let read = pollster::block_on(view::read(txn, &meta, offset, BYTES_READ, pool).wait());
        if let Ok(bytes) = read {
            assert!(bytes.len() as u64 == (meta.size - offset).min(BYTES_READ as u64));
        }
    }
}

/// What comes over a watch link, from either side, in pieces.
pub fn link(bytes: &[u8]) {
    // In one piece, and byte by byte: the same lines.
    let whole = lines(bytes, bytes.len().max(1));
    assert_eq!(whole, lines(bytes, 1));
    for line in whole {
        match Frame::parse(&line) {
            Ok(frame) => message(&frame),
            Err(error) => {
                let answer = error.to_frame();
                assert!(answer.len() <= FRAME_BYTES_MAX && answer.ends_with(b"\n"));
                assert!(!answer.line().contains(&b'\n'));
                let _text = error.to_string();
            }
        }
    }
}

fn lines(bytes: &[u8], step: usize) -> Vec<Vec<u8>> {
    let mut buffer = LineBuffer::new(LINE_BYTES_MAX);
    let mut lines = Vec::new();
    for mut input in bytes.chunks(step) {
        while let Some(line) = buffer.next_line(&mut input) {
            match line {
                Ok(line) => lines.push(line.to_vec()),
                Err(_) => return lines,
            }
        }
    }
    lines
}

fn message(frame: &Frame<'_>) {
    let _is_done = is_ack(frame.message);
    match ClientRequest::parse(frame.message) {
        Ok(request) if StreamKind::of(frame.stream) == StreamKind::Client => {
            let text = request.to_frame(frame.stream);
            let again = Frame::parse(text.line()).expect("what is written can be read");
            assert_eq!((again.stream, ClientRequest::parse(again.message)), (frame.stream, Ok(request)));
        }
        Ok(_) => {}
        Err(error) => drop(error.to_string()),
    }
    match ServerMessage::parse(frame.stream, frame.message) {
        Ok(said) => {
            let text = said.to_frame(frame.stream);
            assert!(text.len() <= FRAME_BYTES_MAX && text.ends_with(b"\n") && !text.line().contains(&b'\n'));
            if matches!(said, ServerMessage::Pin { .. }) {
                let again = Frame::parse(text.line()).expect("what is written can be read");
                assert_eq!(ServerMessage::parse(again.stream, again.message), Ok(said));
            }
        }
        Err(error) => drop(error.to_string()),
    }
}
