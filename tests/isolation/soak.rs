//! Many clients at revisions of their own, while a writer commits as fast as it can: every byte is checked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use revfs::protocol::{FileId, Tid};
use revfs::store::native::NativeStore;
use revfs_client::Conn;

use super::live::{Place, slow};

const BLOCK: usize = 16 << 10;
const BLOCKS: usize = 64;
/// Blocks that one commit changes, at most.
const CHANGED_MAX: usize = 8;
/// How long a client waits for the writer to write down what it has just committed.
const PATIENCE: Duration = Duration::from_secs(60);

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

fn write(store: &Arc<NativeStore>, file: FileId, model: &Model, words: &mut [u32], random: &mut Random) {
    let mut txn = store.begin(None).unwrap();
    for _ in 0..=random.below(CHANGED_MAX) {
        let block = random.below(BLOCKS);
        words[block] = random.below(u32::MAX as usize) as u32;
        let bytes = words[block].to_le_bytes().repeat(BLOCK / 4);
        let start = (block * BLOCK) as u64;
        pollster::block_on(txn.write(file, start..start + BLOCK as u64, &bytes)).unwrap();
    }
    let tid = pollster::block_on(txn.commit()).unwrap().tid;
    model.add(tid, words);
}

/// Works at one revision after the other; every byte is that of the model.
fn client(root: &std::path::Path, model: &Model, done: &AtomicBool, seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut rounds = 0;
    while !done.load(Ordering::SeqCst) || rounds == 0 {
        let conn = Conn::open(root, Some(model.some(&mut random))).unwrap();
        let file = conn.file(b"f").unwrap();
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

pub fn soak() {
    let (clients, commits) = if slow() { (64, 6000) } else { (8, 150) };
    let place = Place::new();
    let store = place.open();
    let model = Model::default();
    let mut words = vec![0u32; BLOCKS];
    let mut random = Random::new(1);
    let mut txn = store.begin(None).unwrap();
    let file = txn.create(b"f", Some(revfs::protocol::BlockSize::new(BLOCK as u64).unwrap())).unwrap();
    let zeros = vec![0; BLOCK * BLOCKS];
    pollster::block_on(txn.write(file, 0..zeros.len() as u64, &zeros)).unwrap();
    model.add(pollster::block_on(txn.commit()).unwrap().tid, &words);
    let live = place.mount();
    let done = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 1..=clients {
            let (root, model, done, rounds) = (live.root(), &model, &done, &rounds);
            scope.spawn(move || rounds.fetch_add(client(root, model, done, seed), Ordering::SeqCst));
        }
        for _ in 0..commits {
            write(&store, file, &model, &mut words, &mut random);
        }
        done.store(true, Ordering::SeqCst);
    });
    println!("{} rounds of {clients} clients over {commits} commits", rounds.load(Ordering::SeqCst));
    let stats = std::fs::read_to_string(live.path(".revfs/stats")).unwrap();
    assert!(stats.contains("\nkills 0\n"), "{stats}");
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}
