//! A pack: another file takes the place of the one that is served.

use super::*;
use revfs::store::zodb::filestorage::{Refreshed, ReopenCause};
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends the readers when the test ends, whichever way.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Before: three revisions of object 1, two of object 2; object 3 is deleted, object 4 cannot be reached any more.
fn before() -> Maker {
    let mut maker = Maker::new();
    maker.commit(0x10, &[(0, data("root")), (1, data("a")), (2, data("b")), (3, data("c")), (4, data("d"))]);
    maker.commit(0x20, &[(1, data("a2"))]);
    maker.commit(0x30, &[(1, data("a3")), (3, Write::Back(0))]);
    maker.commit(0x40, &[(2, data("b4"))]);
    maker.commit(0x50, &[(1, data("a5"))]);
    maker
}

/// After a pack at 0x4f: what was current then stays, in transactions that are marked.
fn after() -> Maker {
    let mut maker = Maker::new();
    maker.append(0x10, b'p', &[(0, data("root"))]);
    maker.append(0x30, b'p', &[(1, data("a3"))]);
    maker.append(0x40, b'p', &[(2, data("b4"))]);
    maker.commit(0x50, &[(1, data("a5"))]);
    maker
}

fn reopened(from: u64, to: u64, cause: ReopenCause) -> Refreshed {
    Refreshed::Reopened { from: Tid::from_raw(from), to: Tid::from_raw(to), cause }
}

fn packed(storage: &FileStorage, oid: u64, at: u64) -> bool {
    match load(storage, oid, at) {
        Err(FileStorageError::Packed { at: told, oldest, .. }) => {
            assert_eq!((told.raw(), oldest.raw()), (at, 0x40));
            true
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn states_after_a_pack_are_right_and_older_ones_have_an_error_of_their_own() {
    let mut maker = after();
    let place = Place::new(&before().bytes);
    fs::write(place.index_path(), before().index()).unwrap();
    let storage = place.open();
    let old: Vec<_> = [0, 1, 2].map(|oid| text_of(&storage, oid, 0x50)).to_vec();
    let running = storage.transactions(Tid::ZERO, Tid::MAX).unwrap();
    place.replace(&maker.bytes);
    assert_eq!(storage.refresh().unwrap(), reopened(0x50, 0x50, ReopenCause::Replaced));
    assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
    // What had begun goes on with the file that it began with.
    assert_eq!(running.map(Result::unwrap).count(), 5);

    assert_eq!(storage.oldest().unwrap().raw(), 0x40);
    assert_eq!([0, 1, 2].map(|oid| text_of(&storage, oid, 0x50)).to_vec(), old);
    assert_eq!([0, 1, 2].map(|oid| text_of(&storage, oid, 0x45).unwrap()), ["10 root", "30 a3", "40 b4"]);
    // What was kept is what was current, also for an older state; what is not there may have been.
    assert_eq!(text_of(&storage, 1, 0x35).as_deref(), Some("30 a3"));
    assert!(packed(&storage, 1, 0x2f) && packed(&storage, 2, 0x3f) && packed(&storage, 4, 0x10));
    assert_eq!(text_of(&storage, 4, 0x40), None);
    assert_eq!(text_of(&storage, 4, 0x50), None);
    let error = load(&storage, 1, 0x2f).unwrap_err().to_string();
    assert!(error.contains("@000000000000002f was packed away") && error.contains("@0000000000000040"));

    // And it goes on in the new file.
    maker.put(0x60, 1, b"a6");
    place.put(&maker.bytes);
    let grown = Refreshed::Grown { from: Tid::from_raw(0x50), to: Tid::from_raw(0x60) };
    assert_eq!(storage.refresh().unwrap(), grown);
    assert_eq!(text_of(&storage, 1, 0x60).as_deref(), Some("60 a6"));
}

#[test]
fn commits_right_after_a_pack_are_there_when_it_is_noticed() {
    let place = Place::new(&before().bytes);
    let storage = place.open();
    let mut maker = after();
    maker.put(0x60, 2, b"b6");
    place.replace(&maker.bytes);
    assert_eq!(storage.refresh().unwrap(), reopened(0x50, 0x60, ReopenCause::Replaced));
    let new: Vec<u64> = storage
        .transactions(Tid::from_raw(0x50), Tid::MAX)
        .unwrap()
        .map(|transaction| transaction.unwrap().tid.raw())
        .collect();
    assert_eq!(new, [0x60]);
}

#[test]
fn between_the_two_renames_of_a_pack_the_old_file_is_served() {
    let mut maker = before();
    let place = Place::new(&maker.bytes);
    let storage = place.open();
    let aside = place.path().with_extension("fs.old");
    fs::rename(place.path(), &aside).unwrap();
    assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
    assert!(storage.trouble().unwrap().contains("is gone"));
    assert_eq!(text_of(&storage, 1, 0x20).as_deref(), Some("20 a2"));
    // The last commit before the pack is taken up from there, too.
    maker.put(0x51, 9, b"late");
    fs::write(&aside, &maker.bytes).unwrap();
    assert_eq!(
        storage.refresh().unwrap(),
        Refreshed::Grown { from: Tid::from_raw(0x50), to: Tid::from_raw(0x51) }
    );
    place.put(&after().bytes);
    assert_eq!(storage.refresh().unwrap(), reopened(0x51, 0x50, ReopenCause::Replaced));
    assert_eq!(storage.trouble(), None);
}

#[test]
fn a_file_that_is_written_over_is_read_anew() {
    let place = Place::new(&before().bytes);
    let storage = place.open();
    // Shorter.
    place.put(&after().bytes);
    assert_eq!(storage.refresh().unwrap(), reopened(0x50, 0x50, ReopenCause::Rewritten));
    // Longer, with another transaction at the same place.
    let mut kept = after().bytes;
    kept.truncate(usize::try_from(Reference::of(&kept).transactions[3].1).unwrap());
    let newest = Reference::of(&kept).newest;
    let mut other = Maker::of(kept, newest);
    other.put(0x4f, 1, b"else");
    other.put(0x70, 1, b"more");
    place.put(&other.bytes);
    assert_eq!(storage.refresh().unwrap(), reopened(0x50, 0x70, ReopenCause::Rewritten));
    assert_eq!(text_of(&storage, 1, 0x4f).as_deref(), Some("4f else"));
    // The length behind the last transaction alone.
    place.put_at(other.bytes.len() - 1, b"?");
    assert_eq!(storage.refresh().unwrap(), reopened(0x70, 0x4f, ReopenCause::Rewritten));
    place.put(&other.bytes);
    assert_eq!(
        storage.refresh().unwrap(),
        Refreshed::Grown { from: Tid::from_raw(0x4f), to: Tid::from_raw(0x70) }
    );
    // A copy into place that has only begun.
    for begun in [&b""[..], b"FS"] {
        place.put(begun);
        assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
        assert_eq!(storage.last_tid().raw(), 0x70);
    }
    place.put(&before().bytes[..200]);
    assert_eq!(storage.refresh().unwrap(), reopened(0x70, 0, ReopenCause::Rewritten));
    place.put(&before().bytes);
    assert_eq!(storage.refresh().unwrap(), Refreshed::Grown { from: Tid::ZERO, to: Tid::from_raw(0x50) });
    Reference::of(&before().bytes).same(&storage);
    // Something else.
    place.put(b"not a database at all");
    assert!(matches!(storage.refresh(), Err(FileStorageError::NotFileStorage { .. })));
    place.put(&before().bytes);
    assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
}

#[test]
fn readers_see_right_data_while_the_file_grows_and_is_packed() {
    let mut maker = before();
    let place = Place::new(&maker.bytes);
    let storage = place.open();
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = Stop(&stopped);
        let reader = || {
            let mut seen = 0u64;
            while !stopped.load(Ordering::SeqCst) || seen < 100 {
                assert_eq!(text_of(&storage, 1, 0x50).as_deref(), Some("50 a5"));
                assert_eq!(text_of(&storage, 2, 0x45).as_deref(), Some("40 b4"));
                assert_eq!(text_of(&storage, 0, u64::MAX).as_deref(), Some("10 root"));
                // The newest is one that was written whole.
                let newest = load(&storage, 1, u64::MAX).unwrap().unwrap();
                let tid = newest.serial.raw();
                assert!(tid == 0x50 || newest.data == format!("a{tid:x}").into_bytes());
                seen += 1;
            }
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for round in 0..50u64 {
            for tid in (0x100 + round * 0x10..).take(5) {
                maker.put(tid, 1, format!("a{tid:x}").as_bytes());
                place.put_tail(&maker.bytes);
                storage.refresh().unwrap();
                assert_eq!(storage.last_tid().raw(), tid);
            }
            place.replace(&maker.bytes);
            assert!(matches!(storage.refresh().unwrap(), Refreshed::Reopened { .. }));
        }
        drop(stop);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
