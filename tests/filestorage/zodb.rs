//! Files that the real ZODB wrote, undid and packed (`tests/filestorage/data/make.py`), and what it read from them.

use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filestorage/data")
}

/// Compares with what ZODB read, line by line; answers how many states were found, absent and packed away.
fn compare(storage: &FileStorage, listed: &str) -> [usize; 3] {
    let oldest = storage.oldest().unwrap().raw();
    let mut counts = [0; 3];
    for line in fs::read_to_string(folder().join(listed)).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [oid, at] = [0, 1].map(|word| u64::from_str_radix(words[word], 16).unwrap());
        let loaded = load(storage, oid, at);
        match words[2..] {
            [serial, len, sum] => {
                let loaded = loaded.unwrap().unwrap();
                let bytes: u64 = loaded.data.iter().map(|byte| u64::from(*byte)).sum();
                let seen =
                    (format!("{:x}", loaded.serial.raw()), loaded.data.len().to_string(), bytes.to_string());
                assert_eq!(seen, (serial.to_owned(), len.to_owned(), sum.to_owned()), "{line}");
                counts[0] += 1;
            }
            // ZODB has no word for what was packed away.
            _ if at < oldest => {
                assert!(matches!(loaded, Err(FileStorageError::Packed { .. })), "{line}: {loaded:?}");
                counts[2] += 1;
            }
            _ => {
                assert_eq!(loaded.unwrap(), None, "{line}");
                counts[1] += 1;
            }
        }
    }
    counts
}

#[test]
fn what_zodb_undid_is_read_as_zodb_reads_it() {
    let bytes = fs::read(folder().join("undo.fs")).unwrap();
    let storage = Place::new(&bytes).open();
    Reference::of(&bytes).same(&storage);
    let [found, absent, packed] = compare(&storage, "undo.txt");
    assert!(found > 50 && absent > 20 && packed == 0, "{found} {absent} {packed}");
}

#[test]
fn what_zodb_packed_is_read_as_zodb_reads_it() {
    let unpacked = fs::read(folder().join("undo.fs")).unwrap();
    let bytes = fs::read(folder().join("packed.fs")).unwrap();
    let place = Place::new(&unpacked);
    let storage = place.open();
    place.replace(&bytes);
    storage.refresh().unwrap();
    assert!(matches!(storage.index_source(), IndexSource::Scanned { .. }));
    fs::copy(folder().join("packed.fs.index"), place.index_path()).unwrap();
    let other = place.open();
    assert_eq!(other.index_source(), IndexSource::Saved { end: bytes.len() as u64 });
    for storage in [storage, other] {
        let [found, absent, packed] = compare(&storage, "packed.txt");
        assert!(found > 20 && absent > 10 && packed > 20, "{found} {absent} {packed}");
        let seen = storage.transactions(Tid::ZERO, Tid::MAX).unwrap().map(|t| t.unwrap().status);
        let (packed, done) = (Status::Packed, Status::Done);
        assert_eq!(seen.collect::<Vec<_>>(), [packed, packed, packed, done, done, done]);
    }
}
