//! Many clients at revisions of their own and one that misbehaves, while a writer commits: every byte is checked, only
//! who is guilty is killed, and the server takes no more memory and descriptors in the end than before.
//!
//! The long version lasts a minute, or `REVFS_SOAK_SECONDS`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use revfs::env::{SystemClock, sleep};
use revfs::protocol::{FileId, Tid};
use revfs::store::native::NativeStore;
use revfs_client::Conn;

use super::datafs::DataFs;
use super::live::{Live, Place, slow, wait_until};
use super::puppet::Puppet;

const BLOCK: usize = 16 << 10;
const BLOCKS: usize = 64;
/// Blocks that one commit changes, at most.
const CHANGED_MAX: usize = 8;
/// How long a client waits for the writer to write down what it has just committed.
const PATIENCE: Duration = Duration::from_secs(60);
/// From one commit to the next, if the machine is as fast.
const PACE: Duration = Duration::from_millis(5);
/// Enough for who behaves, also on a busy machine, where each of many threads of one process waits for a processor.
const PIN_TIMEOUT: &str = "5s";
/// Within this who misbehaves is killed: four times that, for a server that is short of processors, and the kill.
const END: Duration = Duration::from_secs(60);
/// How the one that misbehaves does it in each of its lives; the server kills it each time.
const FAULTS: [&str; 5] = ["mute", "nak", "stop", "deaf", "stubborn"];
/// What the server's memory may vary by, KiB.
const SLACK_KIB: u64 = 32 << 10;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// What was committed: for each tid, the word that fills each block.
#[derive(Default)]
struct Model {
    states: Mutex<BTreeMap<Tid, Arc<Vec<u32>>>>,
    grown: Condvar,
}

impl Model {
    fn add(&self, tid: Tid, words: &[u32]) {
        self.states.lock().unwrap().insert(tid, Arc::new(words.to_vec()));
        self.grown.notify_all();
    }

    /// A client may see a commit before its writer has written it down.
    fn at(&self, tid: Tid) -> Arc<Vec<u32>> {
        let states = self.states.lock().unwrap();
        let missing = |states: &mut BTreeMap<Tid, Arc<Vec<u32>>>| !states.contains_key(&tid);
        let (states, late) = self.grown.wait_timeout_while(states, PATIENCE, missing).unwrap();
        assert!(!late.timed_out(), "@{tid} was never committed");
        Arc::clone(&states[&tid])
    }

    fn some(&self, random: &mut Random) -> Tid {
        let states = self.states.lock().unwrap();
        *states.keys().rev().nth(random.below(states.len().min(20))).unwrap()
    }
}

/// What is committed to.
enum Target {
    Native(Arc<NativeStore>, FileId),
    Zodb(DataFs),
}

impl Target {
    /// A store with a file of blocks of the word 0; the tid of that.
    fn native(place: &Place) -> (Target, Tid) {
        let store = place.open();
        let mut txn = store.begin(None).unwrap();
        let file = txn.create(b"a", Some(revfs::protocol::BlockSize::new(BLOCK as u64).unwrap())).unwrap();
        let zeros = vec![0; BLOCK * BLOCKS];
        pollster::block_on(txn.write(file, 0..zeros.len() as u64, &zeros)).unwrap();
        let tid = pollster::block_on(txn.commit()).unwrap().tid;
        (Target::Native(store, file), tid)
    }

    /// The same of a database.
    fn zodb(place: &Place) -> (Target, Tid) {
        let mut data = DataFs::create(&place.path("Data.fs"));
        let zeros = (0..BLOCKS as u64).map(|block| (block, Some(vec![0; BLOCK]))).collect();
        let tid = data.write("a", BLOCK as u64, zeros);
        (Target::Zodb(data), tid)
    }

    /// Names of the store, and of the file in a mount.
    fn names(&self) -> (&'static str, String) {
        match self {
            Target::Native(..) => ("s", "a".to_owned()),
            Target::Zodb(data) => ("Data.fs", data.name("a")),
        }
    }

    /// Commits blocks of a file, each with its word.
    fn commit(&mut self, changed: &BTreeMap<usize, u32>) -> Tid {
        let bytes = |word: &u32| word.to_le_bytes().repeat(BLOCK / 4);
        match self {
            Target::Native(store, file) => {
                let mut txn = store.begin(None).unwrap();
                for (block, word) in changed {
                    let start = (block * BLOCK) as u64;
                    let range = start..start + BLOCK as u64;
                    pollster::block_on(txn.write(*file, range, &bytes(word))).unwrap();
                }
                pollster::block_on(txn.commit()).unwrap().tid
            }
            Target::Zodb(data) => {
                let blocks = changed.iter().map(|(block, word)| (*block as u64, Some(bytes(word))));
                data.write("a", BLOCK as u64, blocks.collect())
            }
        }
    }
}

fn write(target: &mut Target, model: &Model, words: &mut [u32], random: &mut Random) {
    let mut changed = BTreeMap::new();
    for _ in 0..=random.below(CHANGED_MAX) {
        let block = random.below(BLOCKS);
        words[block] = random.below(u32::MAX as usize) as u32;
        changed.insert(block, words[block]);
    }
    let tid = target.commit(&changed);
    model.add(tid, words);
}

/// Works at one revision after the other; every byte is that of the model.
fn client((root, name): (&Path, &str), model: &Model, done: &AtomicBool, seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut rounds = 0;
    while !done.load(Ordering::SeqCst) || rounds == 0 {
        let conn = Conn::open(root, Some(model.some(&mut random))).unwrap();
        let file = conn.file(name.as_bytes()).unwrap();
        let mapping = file.map(0, (BLOCK * BLOCKS) as u64).unwrap();
        for _ in 0..4 {
            for _ in 0..3 {
                let words = model.at(conn.at());
                let start = random.below(BLOCKS);
                let check = |bytes: &[u8]| {
                    for block in (0..BLOCKS).map(|block| (block + start) % BLOCKS) {
                        let expected = words[block].to_le_bytes();
                        let seen = bytes[block * BLOCK..][..BLOCK].chunks(4);
                        let wrong = seen.enumerate().find(|(_, word)| **word != expected);
                        assert!(wrong.is_none(), "seed {seed}: block {block} @{}: {wrong:?}", conn.at());
                    }
                };
                mapping.with_bytes(check).unwrap();
                rounds += 1;
            }
            let newest = *model.states.lock().unwrap().last_key_value().unwrap().0;
            conn.resync(newest.max(conn.at())).unwrap();
        }
        drop(mapping);
        conn.close().unwrap();
    }
    rounds
}

/// Comes again and again, and never goes by itself.
fn vandal((live, name): (&Live, &str), model: &Model, done: &AtomicBool, kills: &AtomicU64) {
    for mode in FAULTS.iter().cycle() {
        let newest = *model.states.lock().unwrap().last_key_value().unwrap().0;
        let mut puppet = Puppet::start_on(live, name, (mode, &newest.to_string()));
        assert!(puppet.ended_within(END).is_some(), "{mode}");
        kills.fetch_add(1, Ordering::SeqCst);
        if done.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// What the server takes.
#[derive(Clone, Copy, Debug)]
struct Usage {
    anonymous_kib: u64,
    /// Without those of packs and records, of which it keeps some for the next read.
    descriptors: usize,
}

impl Usage {
    fn of(pid: u32) -> Usage {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let anonymous_kib = line.trim().trim_end_matches(" kB").parse().unwrap();
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        // One may be closed meanwhile.
        let targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_data = |target: &String| ["/s/packs/", "/s/commits/"].iter().any(|part| target.contains(part));
        let others =
            targets.map(|target| target.to_string_lossy().into_owned()).filter(|target| !is_data(target));
        Usage { anonymous_kib, descriptors: others.count() }
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

pub fn native() {
    let place = Place::new();
    let (target, tid) = Target::native(&place);
    soak(&place, target, tid);
}

pub fn zodb() {
    let place = Place::empty();
    let (target, tid) = Target::zodb(&place);
    soak(&place, target, tid);
}

fn soak(place: &Place, mut target: Target, first: Tid) {
    let seconds: u64 = std::env::var("REVFS_SOAK_SECONDS").map_or(60, |text| text.parse().unwrap());
    let per_second = (1000 / PACE.as_millis()) as u64;
    let (clients, commits) = if slow() { (64, seconds * per_second) } else { (8, 150) };
    let model = Model::default();
    let mut words = vec![0u32; BLOCKS];
    let mut random = Random::new(1);
    model.add(first, &words);
    let (store, name) = target.names();
    let live = place.mount_store(store, "m", &["--pin-timeout", PIN_TIMEOUT, "--cache", "16M"]);
    let before = Usage::of(live.pid());
    let done = AtomicBool::new(false);
    let (rounds, kills) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut usages = Vec::new();
    let clock = SystemClock::shared();
    let begin = clock.monotonic();
    let mut committed = 0u32;
    std::thread::scope(|scope| {
        for seed in 1..=clients {
            let (file, model, done, rounds) = ((live.root(), name.as_str()), &model, &done, &rounds);
            scope.spawn(move || rounds.fetch_add(client(file, model, done, seed), Ordering::SeqCst));
        }
        let vandal = scope.spawn(|| vandal((&live, &name), &model, &done, &kills));
        // It is killed only for what is committed.
        while !vandal.is_finished() {
            write(&mut target, &model, &mut words, &mut random);
            committed += 1;
            if u64::from(committed) == commits {
                done.store(true, Ordering::SeqCst);
            }
            if u64::from(committed) % per_second == 0 {
                usages.push(Usage::of(live.pid()));
            }
            sleep((begin + PACE * committed).saturating_sub(clock.monotonic()));
        }
    });
    let took = clock.monotonic() - begin;
    let (rounds, kills) = (rounds.into_inner(), kills.into_inner());
    println!("{rounds} rounds of {clients} clients over {committed} commits in {took:?}; {kills} kills");
    assert_eq!(live.stat("kills"), kills, "only who misbehaved");
    for gauge in ["links", "watches", "pins_owed", "reads_waiting"] {
        wait_until(gauge, || live.stat(gauge) == 0);
    }
    wait_until("descriptors go", || Usage::of(live.pid()).descriptors <= before.descriptors + 2);
    if slow() {
        let part = |from: usize, to: usize| {
            let some = &usages[usages.len() * from / 4..usages.len() * to / 4];
            median(some.iter().map(|usage| usage.anonymous_kib).collect())
        };
        let (early, late) = (part(1, 2), part(3, 4));
        println!("memory of the server: {before:?}, then {early} KiB, at last {late} KiB");
        assert!(late <= early + SLACK_KIB, "memory grows");
    }
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}
