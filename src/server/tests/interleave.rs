//! One request in the midst of another: at each access of the first to the store or the kernel's cache, in turn.
//!
//! The server, its threads and its links are the real ones; the kernel's page cache, the clients and the store are doubles.
//! Invariant: the first does nothing while the second runs, and the second has come to its end before the first goes
//! on, so a run is told by its name: state, first, second, access. What is promised has to hold at each moment.
//!
//! Rules that were broken on purpose in the server, and what then failed first here. `revfs` keeps 4 to 7, 10 and 13 in
//! the links: see `watch/tests`; 11 is row 4 of `tests/rows`, 14 and 15 are in `tests/scenarios`, 16 in `tests/faulty`, 22 in
//! `tests/isolation`. 3 is not here: that a READ keeps its head is hidden by rule 24, which pins before a page is dropped.
//!
//! | rule | done wrong | run that fails |
//! |---|---|---|
//! | 2, 4 | a READ tracks its blocks after it took the head and asked | `Watch(10)` in `Read(0)` |
//! | 2 | a commit drops some of what it changed | `Watch(30)` in `Read(0)` |
//! | 6 | a READ is answered before the acks | `Watch(10)` in `Read(0)` |
//! | 8 | a set-up does not wait for `head/at` | `Watch(30)` in `Read(0)` |
//! | 9 | the pins of a set-up are those found before the move; or blocks read meanwhile do not count | `Read(0)` in `Watch(10)` |
//! | 17 | what changed is dropped before the head is published | `Watch(20)` in `Read(0)` |
//! | 18 | `head/at` moves before it is dropped | `Watch(30)` in `Read(0)` |
//! | 24 | nobody is asked before pages are dropped | `what_was_read_a_moment_ago...`, beside this file |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Condvar;

use revfs_protocol::{BlockIndex, FRAME_BYTES_MAX, Frame, LineBuffer, PinTo, ServerMessage};

use super::*;

/// Blocks of the one file.
const BLOCKS: u64 = 4;
/// Each commit and the blocks that it changes to its own number.
const HISTORY: [(u64, &[u64]); 3] = [(10, &[0, 1, 2, 3]), (20, &[0, 1, 2]), (30, &[0, 1, 3])];
/// A thread that only reads.
const READER: u32 = 1;

/// What is asked of the server. Requests about watches are those of one client; it has one at 10 already, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    /// A page fault of somebody who does not watch.
    Read(u64),
    /// The client asks for a state, for the first time or to move.
    Watch(u64),
    /// The client stops its watch.
    Unwatch,
    /// Commit 30.
    Commit,
}

/// The last commit up to `at` that changed a block.
fn rev(block: u64, at: u64) -> u64 {
    let changes = HISTORY.iter().filter(|(tid, blocks)| *tid <= at && blocks.contains(&block));
    changes.map(|(tid, _)| *tid).next_back().unwrap()
}

#[derive(Debug, Default)]
struct World {
    locked: BTreeSet<u64>,
    /// Pages that the kernel has, with their revision.
    pages: BTreeMap<u64, u64>,
    /// Blocks that the client maps elsewhere, and where.
    pins: BTreeMap<u64, u64>,
    watching: bool,
    /// Requests without an answer.
    asked: BTreeMap<u64, Op>,
    stream: u64,
    promised: Option<u64>,
    wrong: Vec<String>,
}

impl World {
    fn check(&mut self) {
        let Some(at) = self.promised else { return };
        for block in 0..BLOCKS {
            let seen = self.pins.get(&block).or_else(|| self.pages.get(&block));
            if let Some(seen) = seen.filter(|seen| **seen != rev(block, at)) {
                self.wrong.push(format!("block {block} shows {seen} to who works at {at}"));
            }
        }
    }
}

/// The kernel and the client.
#[derive(Default)]
struct Outside {
    world: Mutex<World>,
    moved: Condvar,
}

impl Outside {
    fn change<R>(&self, change: impl FnOnce(&mut World) -> R) -> R {
        let mut world = self.world.lock().unwrap();
        let result = change(&mut world);
        world.check();
        self.moved.notify_all();
        result
    }

    /// Waits until `until` holds; a wait that does not end is noted as wrong.
    fn wait(&self, what: &str, until: impl Fn(&World) -> bool) {
        let world = self.world.lock().unwrap();
        let (mut world, late) =
            self.moved.wait_timeout_while(world, PATIENCE, |world| !until(world)).unwrap();
        if late.timed_out() {
            world.wrong.push(format!("{what}: never"));
        }
    }
}

struct Cache {
    outside: Arc<Outside>,
    store: Arc<ScriptedStore>,
}

impl KernelCache for Cache {
    fn invalidate_data(&self, _file: FileId, offset: u64, len: u64) {
        self.store.accessed();
        for block in offset / BLOCK..offset.saturating_add(len).div_ceil(BLOCK).min(BLOCKS) {
            self.outside.wait("an invalidation", |world| !world.locked.contains(&block));
            self.outside.change(|world| world.pages.remove(&block));
        }
    }
    fn invalidate_attributes(&self, _file: FileId) {
        self.store.accessed();
    }
    fn invalidate_entry(&self, _dir: DirId, _name: &[u8]) {}
    fn invalidate_number(&self, _file: FileId) {}
    fn invalidate_directory(&self, _dir: DirId) {}
    fn invalidate_root(&self) {}
}

/// The threads of the client.
const CLIENT: u32 = 2;

#[derive(Clone)]
struct Stand {
    store: Arc<ScriptedStore>,
    server: Arc<Server>,
    outside: Arc<Outside>,
    link: Arc<WatchLink>,
    file: FileId,
}

impl Stand {
    /// Sees to it that `op` comes to its end, if it can.
    fn play(&self, op: Op) {
        match op {
            Op::Read(block) => self.read(block),
            Op::Commit => {
                let (tid, changed) = HISTORY[2];
                let edits = changed.iter().map(|block| Edit::Write("a", block * BLOCK, blocks(tid as u8, 1)));
                self.store.commit(tid, &edits.collect::<Vec<_>>());
                let clock = env::SystemClock::shared();
                let end = clock.monotonic() + PATIENCE;
                while self.server.head().raw() < tid && clock.monotonic() < end {
                    std::thread::yield_now();
                }
            }
            Op::Watch(_) | Op::Unwatch => {
                let (frame, stream) = self.outside.change(|world| {
                    world.stream += 2;
                    let stream = world.stream + 1;
                    world.asked.insert(stream, op);
                    world.promised = None;
                    world.watching = op != Op::Unwatch;
                    if !world.watching {
                        world.pins.clear();
                    }
                    let to = match op {
                        Op::Watch(at) => format!("@{}", Tid::from_raw(at)),
                        _ => "-".to_owned(),
                    };
                    (format!("{stream} watch {} {to}\n", self.file), stream)
                });
                self.server.write_link(&self.link, CLIENT, frame.as_bytes()).unwrap();
                // One of the future waits for it, and one behind another for that.
                let waits = |world: &World| world.asked.range(..stream).any(|(_, op)| *op != Op::Unwatch);
                let is_late = matches!(op, Op::Watch(at) if at > self.server.shown().raw());
                if op == Op::Unwatch || !(is_late || self.outside.change(|world| waits(world))) {
                    self.outside.wait("a set-up", |world| !world.asked.contains_key(&stream));
                }
            }
        }
    }

    /// A page fault, to its end.
    fn read(&self, block: u64) {
        let before = self.server.head().raw();
        if !self.outside.change(|world| !world.pages.contains_key(&block) && world.locked.insert(block)) {
            return;
        }
        let stand = self.clone();
        self.server.read_head(self.file, (block * BLOCK, BLOCK as usize), READER, move |bytes| {
            let seen = bytes.map(|bytes| u64::from(bytes[0]));
            stand.outside.change(|world| {
                world.locked.remove(&block);
                match seen {
                    Ok(seen) if [before, 30].iter().any(|at| seen == rev(block, *at)) => {
                        world.pages.insert(block, seen);
                    }
                    other => world.wrong.push(format!("block {block} is read as {other:?}")),
                }
            });
        });
        self.outside.wait("a READ", |world| !world.locked.contains(&block));
    }

    /// The client's pinner, to the end of its link.
    fn obey(&self) {
        let mut lines = LineBuffer::new(FRAME_BYTES_MAX);
        loop {
            let (reply, answer) = channel();
            let reply = move |read| reply.send(read).unwrap();
            self.server.read_link(&self.link, CLIENT, 4096, Box::new(reply));
            let LinkRead::Bytes(bytes) = answer.recv().unwrap() else { panic!("no signal was sent") };
            if bytes.is_empty() {
                return;
            }
            let mut input = bytes.as_slice();
            while let Some(line) = lines.next_line(&mut input) {
                self.heard(line.unwrap());
            }
        }
    }

    fn heard(&self, line: &[u8]) {
        let frame = Frame::parse(line).unwrap();
        let text = String::from_utf8_lossy(line).into_owned();
        match ServerMessage::parse(frame.stream, frame.message).unwrap() {
            ServerMessage::Pin { blocks, to, .. } => {
                self.outside.change(|world| {
                    for block in blocks.blocks().map(BlockIndex::raw).filter(|_| world.watching) {
                        match to {
                            PinTo::Rev(rev) => world.pins.insert(block, rev.raw()),
                            PinTo::Head => world.pins.remove(&block),
                        };
                    }
                });
                let ack = format!("{} ack\n", frame.stream);
                self.server.write_link(&self.link, CLIENT, ack.as_bytes()).unwrap();
            }
            ServerMessage::Ok(_) => self.outside.change(|world| match world.asked.remove(&frame.stream) {
                Some(Op::Watch(at)) if world.asked.is_empty() => world.promised = Some(at),
                Some(_) => {}
                None => world.wrong.push(text),
            }),
            ServerMessage::Error(why) => self.outside.change(|world| {
                world.asked.remove(&frame.stream);
                let given_up = !world.watching && why.ends_with("the watch was stopped");
                if !given_up && !why.ends_with("going back in history is forbidden") {
                    world.wrong.push(text);
                }
            }),
            ServerMessage::Closing(_) => {}
        }
    }
}

/// Plays `second` in the midst of `first`; whether `first` has so many accesses. `read`: blocks that are cached before.
fn run(watched: bool, read: &[u64], (first, second): (Op, Op), access: usize) -> bool {
    let name = format!("watched {watched}, read {read:?}, {second:?} at access {access} of {first:?}");
    let (put, write) = (HISTORY[0], HISTORY[1]);
    let store = ScriptedStore::new();
    store.commit(put.0, &[Edit::Put("a", blocks(put.0 as u8, BLOCKS))]);
    let _ = store.refresh();
    let runtime = runtime();
    let options = options(&runtime, &ManualClock::at(START), Some(Arc::new(people::Everybody::default())));
    let server = Server::new(Arc::clone(&store) as Arc<dyn Store>, options);
    let outside = Arc::new(Outside::default());
    let cache = Cache { outside: Arc::clone(&outside), store: Arc::clone(&store) };
    assert!(server.set_kernel_cache(Arc::new(cache)));
    let threads = server.start().unwrap();
    // Once it is shown, no thread of the server does anything by itself.
    store.commit(write.0, &[Edit::Write("a", 0, blocks(write.0 as u8, write.1.len() as u64))]);
    assert!(server.wait_shown(Tid::from_raw(write.0), PATIENCE));
    let link = server.open_link(CLIENT).unwrap();
    let file = store.file_id("a");
    let stand = Stand { store, server, outside, link, file };
    let pinner = {
        let stand = stand.clone();
        env::spawn("pinner", move || stand.obey()).unwrap()
    };
    if watched {
        stand.play(Op::Watch(10));
    }
    read.iter().for_each(|block| stand.play(Op::Read(*block)));
    let intruder = {
        let stand = stand.clone();
        move || stand.play(second)
    };
    stand.store.intrude(access, Box::new(intruder));
    stand.play(first);
    // What is asked of the future goes on when it is there.
    if [first, second].contains(&Op::Watch(30)) && second != Op::Commit && stand.server.head().raw() < 30 {
        stand.play(Op::Commit);
    }
    let shown = |stand: &Stand| stand.server.wait_shown(stand.server.head(), PATIENCE);
    let mut is_shown = shown(&stand);
    stand.outside.wait("an answer", |world| world.asked.is_empty());
    let came = stand.store.is_intruded();
    stand.store.intrude(usize::MAX, Box::new(|| {}));
    is_shown &= shown(&stand);
    // It holds for all that is read later.
    let newest = stand.server.head().raw();
    stand.outside.change(|world| {
        for (block, seen) in &world.pages {
            if *seen != rev(*block, newest) {
                world.wrong.push(format!("head/at is {newest}, and block {block} of {seen} is cached"));
            }
        }
        world.pages.clear();
    });
    (0..BLOCKS).for_each(|block| stand.read(block));
    stand.server.close_link(&stand.link);
    pinner.join().unwrap();
    threads.stop();
    let wrong = std::mem::take(&mut stand.outside.world.lock().unwrap().wrong);
    assert!(is_shown && wrong.is_empty(), "{name}: {is_shown}, {wrong:?}");
    assert_eq!(stand.server.kills(), 0, "{name}");
    came
}

#[test]
fn whatever_comes_in_the_midst_of_whatever_everybody_sees_the_revision_promised() {
    let ops =
        [Op::Read(0), Op::Read(1), Op::Watch(10), Op::Watch(20), Op::Watch(30), Op::Unwatch, Op::Commit];
    let mut runs = 0;
    for watched in [false, true] {
        for read in [&[][..], &[1], &[0, 1, 2]] {
            for (first, second) in ops.iter().flat_map(|first| ops.map(|second| (*first, second))) {
                let is_possible = first != second
                    && (watched || ![first, second].contains(&Op::Unwatch))
                    && (first, second) != (Op::Watch(30), Op::Commit);
                let mut access = 0;
                while is_possible && run(watched, read, (first, second), access) {
                    (access, runs) = (access + 1, runs + 1);
                }
            }
        }
    }
    println!("{runs} runs");
    assert!(runs > 400, "{runs}");
}
