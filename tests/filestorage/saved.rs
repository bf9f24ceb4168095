//! The index that ZODB saves: right, old, of another file, damaged.

use super::*;
use revfs::store::zodb::filestorage::{IndexSource, Refreshed, ReopenCause};

fn source(storage: &FileStorage) -> &'static str {
    match storage.index_source() {
        IndexSource::Saved { .. } => "saved",
        IndexSource::Scanned { .. } => "scanned",
    }
}

#[test]
fn an_index_is_used_and_completed() {
    let mut maker = rich();
    let place = Place::new(&maker.bytes);
    fs::write(place.index_path(), maker.index()).unwrap();
    let saved_at = maker.end();
    maker.put(0x80, 1, b"newer");
    maker.put(0x90, 9, b"new");
    place.put(&maker.bytes);
    let storage = place.open();
    Reference::of(&maker.bytes).same(&storage);
    assert_eq!(storage.index_source(), IndexSource::Saved { end: saved_at });
}

#[test]
fn an_index_of_another_file_is_not_used() {
    let maker = rich();
    let place = Place::new(&maker.bytes);
    // Same length and same oids, but the records are elsewhere.
    let mut other = Maker::new();
    other.commit(0x10, &[(1, data("one")), (0, data("root"))]);
    let index = other.index();
    fs::write(place.index_path(), index).unwrap();
    let storage = place.open();
    assert_eq!(source(&storage), "scanned");
    Reference::of(&maker.bytes).same(&storage);

    // One object elsewhere, all else right.
    let mut wrong = maker.clone();
    wrong.newest.insert(0x1_0002, wrong.newest[&0]);
    fs::write(place.index_path(), wrong.index()).unwrap();
    assert_eq!(source(&place.open()), "scanned");

    // One object is lacking, of the last transactions.
    let mut wrong = maker.clone();
    wrong.newest.remove(&7);
    fs::write(place.index_path(), wrong.index()).unwrap();
    assert_eq!(source(&place.open()), "scanned");

    // An older record of an object.
    let mut wrong = maker.clone();
    wrong.newest.insert(0, maker.newest[&0]);
    wrong.newest.insert(1, 4 + 42);
    fs::write(place.index_path(), wrong.index()).unwrap();
    assert_eq!(source(&place.open()), "scanned");

    // It knows more than there is.
    fs::write(place.index_path(), maker.index()).unwrap();
    assert_eq!(source(&place.open()), "saved");
    let start = Reference::of(&maker.bytes).transactions.last().unwrap().1;
    place.put(&maker.bytes[..usize::try_from(start).unwrap()]);
    assert_eq!(source(&place.open()), "scanned");
}

#[test]
fn real_indexes_of_each_other_are_not_used() {
    let with_index: Vec<PathBuf> =
        databases().into_iter().filter(|path| path.with_extension("fs.index").exists()).collect();
    for path in &with_index {
        let bytes = fs::read(path).unwrap();
        let place = Place::new(&bytes);
        for other in with_index.iter().filter(|other| *other != path) {
            fs::copy(other.with_extension("fs.index"), place.index_path()).unwrap();
            let storage = place.open();
            assert_eq!(source(&storage), "scanned");
            Reference::of(&bytes).same_newest(&storage);
        }
    }
}

#[test]
fn a_real_index_that_is_cut_or_flipped_does_no_harm() {
    let Some(path) = databases().into_iter().find(|path| path.ends_with("plain.fs")) else { return };
    let bytes = fs::read(&path).unwrap();
    let index = fs::read(path.with_extension("fs.index")).unwrap();
    let reference = Reference::of(&bytes);
    let place = Place::new(&bytes);
    for end in (0..index.len()).step_by(331).chain(index.len() - 8..index.len()) {
        fs::write(place.index_path(), &index[..end]).unwrap();
        let storage = place.open();
        assert_eq!(source(&storage), "scanned", "cut at {end}");
        reference.same_newest(&storage);
    }
    let mut bits = damage::Random(7);
    for _ in 0..150 {
        let bit = bits.below(index.len() * 8);
        let mut flipped = index.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(place.index_path(), flipped).unwrap();
        let storage = place.open();
        reference.same_newest(&storage);
        assert_eq!(storage.last_tid().raw(), reference.last_tid(), "bit {bit}");
    }
}

#[test]
fn an_index_of_many_objects_that_lies_about_one_is_found_out_by_a_load() {
    // More objects than are looked at when it is opened, and more transactions than are read.
    let mut maker = Maker::new();
    let objects: Vec<(u64, Write)> = (0..9000).map(|oid| (oid, data("x"))).collect();
    maker.commit(0x10, &objects);
    for tid in 0..150 {
        maker.put(0x100 + tid, 9000, b"y");
    }
    let place = Place::new(&maker.bytes);
    // Each ninth is looked at: there are not quite nine times as many.
    let mut wrong = maker.clone();
    wrong.newest.insert(9, maker.newest[&10]);
    fs::write(place.index_path(), wrong.index()).unwrap();
    assert_eq!(source(&place.open()), "scanned");
    let mut wrong = maker.clone();
    wrong.newest.insert(4001, maker.newest[&4002]);
    fs::write(place.index_path(), wrong.index()).unwrap();
    let storage = place.open();
    assert_eq!(source(&storage), "saved", "or the test shows nothing");
    let error = load(&storage, 4001, u64::MAX).unwrap_err();
    assert!(error.damage().is_some_and(|damage| damage.oid == Some(Oid::from_raw(4001))), "{error}");
    // The next look reads the file instead.
    let tid = Tid::from_raw(0x100 + 149);
    let reopened = Refreshed::Reopened { from: tid, to: tid, cause: ReopenCause::WrongIndex };
    assert_eq!(storage.refresh().unwrap(), reopened);
    assert_eq!(text_of(&storage, 4001, u64::MAX).as_deref(), Some("10 x"));
    assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
}
