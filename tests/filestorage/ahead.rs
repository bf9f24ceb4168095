//! Records that the kernel is told to read ahead.

use super::*;
use crate::mapping::{Mapping, PAGE};
use revfs::env::SystemClock;
use rustix::fs::{Advice, fadvise};
use std::time::Duration;

#[test]
fn what_is_read_ahead_is_in_the_page_cache_and_nothing_else() {
    const OBJECTS: u64 = 40;
    const LEN: usize = 200_000;
    let mut maker = Maker::new();
    let writes: Vec<_> = (1..=OBJECTS).map(|oid| (oid, Write::Data(vec![1; LEN]))).collect();
    maker.commit(0x10, &writes);
    maker.put(0x20, 7, b"again");
    // A folder for temporary files is often in memory, where there is nothing to be read.
    let place = Place { folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
    place.put(&maker.bytes);
    let storage = place.open();
    let file = fs::File::open(place.path()).unwrap();
    file.sync_all().unwrap();
    let map = Mapping::new(&place.path(), maker.bytes.len());
    let position =
        |oid: u64| storage.position(Oid::from_raw(oid), Tid::MAX).unwrap().unwrap() as usize / PAGE;
    // Looked up before the cache is emptied.
    let (wanted, other) = ([20, 4, 7, 5].map(position), position(30));
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    if map.cached().iter().all(|cached| *cached) {
        eprintln!("what_is_read_ahead: SKIPPED, {} is in memory only", place.path().display());
        return;
    }
    assert!(wanted.iter().all(|page| !map.cached()[*page]), "it is not read yet");
    let clock = SystemClock::shared();
    let end = clock.monotonic() + Duration::from_secs(60);
    loop {
        // Again and again, for pages may be taken for something else at any time. One has no record at all.
        storage.read_ahead(&[20, 4, 7, 99, 5].map(Oid::from_raw));
        let cached = map.cached();
        if wanted.iter().all(|page| cached[*page]) {
            assert!(!cached[other], "what nobody asked for is read");
            break;
        }
        assert!(clock.monotonic() < end, "{wanted:?}");
        std::thread::yield_now();
    }
}
