//! Playing edits of the reference on a transaction of the store.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

use revfs::protocol::FileId;
use revfs::store::native::Transaction;

use super::reference::{Edit, Rng, State, apply, draw};

/// Seeds to run: the one that is asked for, or so many, or many more in the long version.
pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("REVFS_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => vec![seed],
        None if std::env::var_os("REVFS_SLOW").is_some() => (0..count * 50).collect(),
        None => (0..count).collect(),
    }
}

/// Waits for a future.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}

/// Plays an edit on a transaction.
fn play(txn: &mut Transaction, edit: &Edit) -> FileId {
    let file = |txn: &Transaction, name: &[u8]| txn.lookup(name).unwrap().expect("the model has it");
    match edit {
        Edit::Create(name, bytes) => {
            let file = txn.create(name, None).unwrap();
            run(txn.write(file, 0..bytes.len() as u64, bytes)).unwrap();
            file
        }
        Edit::Write(name, at, bytes) => {
            let file = file(txn, name);
            let range = *at..*at + bytes.len() as u64;
            match bytes.len() % 2 {
                0 => run(txn.write(file, range, bytes)).unwrap(),
                _ => run(txn.write_shared(file, range, bytes.clone().into())).unwrap(),
            }
            file
        }
        Edit::Resize(name, size) => {
            let file = file(txn, name);
            run(txn.set_size(file, *size)).unwrap();
            file
        }
        Edit::Rename(name, to) => {
            let file = file(txn, name);
            txn.rename(file, to).unwrap();
            file
        }
        Edit::Delete(name) => {
            let file = file(txn, name);
            txn.delete(file).unwrap();
            file
        }
    }
}

/// Draws edits on `base` and plays them on `txn`; answers them and the state that they make.
pub fn draw_and_play(rng: &mut Rng, txn: &mut Transaction, base: &State) -> (Vec<Edit>, State) {
    let mut state = base.clone();
    let mut edits = Vec::new();
    for _ in 0..=rng.below(4) {
        let edit = draw(rng, &state);
        let file = play(txn, &edit);
        apply(&mut state, &edit, file);
        edits.push(edit);
    }
    (edits, state)
}
