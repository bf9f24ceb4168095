//! A file that grows while it is served.

use super::*;
use revfs::store::zodb::filestorage::Refreshed;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// How long a test waits for what is to come; only if something is wrong does it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a follower waits: longer, so that being woken is what ends it.
const TICK: Duration = Duration::from_secs(90);

/// Ends a follower when the test ends, whichever way.
struct Stop<'s>(&'s AtomicBool, &'s FileStorage);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        self.1.wake_follower();
    }
}

#[test]
fn a_file_that_grows_byte_by_byte_shows_whole_transactions_only() {
    let whole = rich().bytes;
    let reference = Reference::of(&whole);
    let place = Place::new(&whole[..4]);
    let storage = place.open();
    let mut last = 0;
    for end in 5..=whole.len() {
        place.put_tail(&whole[..end]);
        let done =
            reference.transactions.iter().filter(|transaction| transaction_end(&whole, transaction.1) <= end);
        let tid = done.map(|transaction| transaction.0).max().unwrap_or(0);
        let refreshed = storage.refresh().unwrap();
        let grown = Refreshed::Grown { from: Tid::from_raw(last), to: Tid::from_raw(tid) };
        assert_eq!(refreshed, if tid == last { Refreshed::Nothing } else { grown }, "{end} bytes");
        assert_eq!(storage.trouble(), None);
        last = tid;
    }
    reference.same(&storage);
}

fn transaction_end(bytes: &[u8], pos: u64) -> usize {
    let pos = usize::try_from(pos).unwrap();
    pos + 8 + usize::try_from(u64::from_be_bytes(bytes[pos + 8..pos + 16].try_into().unwrap())).unwrap()
}

#[test]
fn a_real_database_that_grows_in_pieces() {
    let Some(path) = databases().into_iter().find(|path| path.ends_with("deep.fs")) else { return };
    let whole = fs::read(&path).unwrap();
    let reference = Reference::of(&whole);
    let mut random = damage::Random(11);
    let mut end = usize::try_from(reference.transactions[5].1).unwrap();
    let place = Place::new(&whole[..end]);
    let storage = place.open();
    let mut from = storage.last_tid();
    let mut told = 0;
    while end < whole.len() {
        end = (end + random.below(40_000)).min(whole.len());
        place.put_tail(&whole[..end]);
        if let Refreshed::Grown { from: before, to } = storage.refresh().unwrap() {
            assert_eq!(before, from);
            told += storage.transactions(before, to).unwrap().map(Result::unwrap).count();
            from = to;
        }
    }
    assert_eq!(told, reference.transactions.len() - 5);
    reference.same(&storage);
}

#[test]
fn a_transaction_in_progress_is_waited_for_and_may_be_taken_back() {
    let mut maker = rich();
    let place = Place::new(&maker.bytes);
    let storage = place.open();
    let committed = maker.clone();
    // As ZODB does it: written with status 'c', whole; then cut off again.
    maker.append(0x80, b'c', &[(1, data("never"))]);
    for end in committed.bytes.len() + 1..=maker.bytes.len() {
        place.put_tail(&maker.bytes[..end]);
        assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
        let bytes = (end - committed.bytes.len()) as u64;
        assert_eq!((storage.tail(), storage.trouble()), (Tail::Unfinished { bytes }, None));
    }
    fs::OpenOptions::new().write(true).open(place.path()).unwrap().set_len(committed.end()).unwrap();
    assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
    assert_eq!(storage.tail(), Tail::Whole);
    // Another one takes its place, and is committed by its status alone.
    let mut maker = committed;
    let start = maker.bytes.len();
    let from = storage.last_tid();
    maker.append(0x81, b'c', &[(1, data("now"))]);
    place.put_tail(&maker.bytes);
    assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
    assert_ne!(text_of(&storage, 1, u64::MAX).as_deref(), Some("81 now"));
    maker.bytes[start + 16] = b' ';
    place.put_at(start + 16, b" ");
    assert_eq!(storage.refresh().unwrap(), Refreshed::Grown { from, to: Tid::from_raw(0x81) });
    assert_eq!(text_of(&storage, 1, u64::MAX).as_deref(), Some("81 now"));
    Reference::of(&maker.bytes).same(&storage);
}

#[test]
fn a_tail_that_is_damaged_is_named_and_taken_up_when_it_is_mended() {
    let mut maker = rich();
    let place = Place::new(&maker.bytes);
    let storage = place.open();
    let from = storage.last_tid();
    let at = maker.bytes.len();
    maker.put(0x80, 1, b"new");
    let mut bad = maker.bytes.clone();
    bad[at + 16] = b'!';
    place.put_tail(&bad);
    assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
    let trouble = storage.trouble().unwrap();
    assert!(trouble.contains(&format!("damaged at byte {at}: the status of a transaction")), "{trouble}");
    assert!(matches!(storage.tail(), Tail::Damaged(damage) if damage.pos == at as u64));
    // A storage that is opened now says the same, and serves the same.
    let other = place.open();
    assert_eq!((other.trouble(), other.last_tid()), (Some(trouble), from));
    place.put_at(at + 16, b" ");
    assert_eq!(storage.refresh().unwrap(), Refreshed::Grown { from, to: Tid::from_raw(0x80) });
    assert_eq!(storage.trouble(), None);
}

#[test]
fn who_waits_for_commits_is_woken_by_each_kind_of_change() {
    let mut maker = rich();
    let place = Place::new(&maker.bytes);
    let storage = place.open();
    let (seen, changes) = mpsc::channel();
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (storage, stopped) = (&storage, &stopped);
        let _stop = Stop(stopped, storage);
        scope.spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                storage.wait_for_commits(TICK);
                match storage.refresh().unwrap() {
                    // Woken in the middle of a change, or after one that was seen already.
                    Refreshed::Nothing => {}
                    refreshed => drop(seen.send(refreshed)), // who listens may be gone, if the test failed
                }
            }
        });
        let next = || changes.recv_timeout(PATIENCE).expect("the follower is woken");
        maker.put(0x80, 1, b"new");
        place.put_tail(&maker.bytes);
        let grown = |from, to| Refreshed::Grown { from: Tid::from_raw(from), to: Tid::from_raw(to) };
        assert_eq!(next(), grown(0x70, 0x80));
        place.replace(&maker.bytes);
        assert!(matches!(next(), Refreshed::Reopened { .. }));
        // The file in its place is watched, too.
        maker.put(0x90, 1, b"newer");
        place.put_tail(&maker.bytes);
        assert_eq!(next(), grown(0x80, 0x90));
    });
}

#[test]
fn a_wait_ends_when_it_is_told_to() {
    let place = Place::new(&rich().bytes);
    let storage = place.open();
    let (ended, end) = mpsc::channel();
    std::thread::scope(|scope| {
        let storage = &storage;
        scope.spawn(move || {
            // The first ends by itself. Who listens may be gone, if the test failed.
            storage.wait_for_commits(TICK);
            let _gone = ended.send(());
            storage.wait_for_commits(TICK);
            let _gone = ended.send(());
        });
        assert!(end.recv_timeout(PATIENCE).is_ok());
        storage.wake_follower();
        assert!(end.recv_timeout(PATIENCE).is_ok());
    });
}
