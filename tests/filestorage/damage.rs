//! Files that are cut, flipped, or say what cannot be.

use super::*;
use revfs::store::zodb::filestorage::{BACK_POINTERS_MAX, DATA_BYTES_MAX, Refreshed};

/// Numbers that are the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % limit as u64).unwrap()
    }
}

/// Loads all and walks all; what fails fails.
fn read_all(storage: &FileStorage, reference: &Reference) {
    for at in reference.transactions.iter().map(|transaction| transaction.0) {
        for oid in reference.objects.keys() {
            let _error_or_data = load(storage, *oid, at);
        }
    }
    let _error_or_count = storage.transactions(Tid::ZERO, Tid::MAX).map(Iterator::count);
    let _error_or_count = storage.transactions(Tid::from_raw(0x20), Tid::MAX).map(Iterator::count);
    storage.transactions_back(Tid::ZERO, Tid::MAX).count();
    let _error_or_tid = storage.oldest();
}

fn damage_of(bytes: &[u8]) -> (FileStorage, String) {
    let storage = Place::new(bytes).open();
    let trouble = storage.trouble().unwrap_or_default();
    (storage, trouble)
}

#[test]
fn a_file_that_is_cut_anywhere_has_the_state_of_its_whole_transactions() {
    let whole = rich().bytes;
    let ends: Vec<usize> = Reference::of(&whole).transactions.iter().map(|t| t.1 as usize).collect();
    let place = Place::new(b"");
    for cut in (4..whole.len()).filter(|cut| cut % 7 == 0 || ends.iter().any(|end| cut.abs_diff(*end) < 30)) {
        place.put(&whole[..cut]);
        let storage = place.open();
        let end = ends.iter().copied().filter(|end| *end <= cut).max().unwrap();
        Reference::of(&whole[..end]).same(&storage);
        let tail = if cut == end { Tail::Whole } else { Tail::Unfinished { bytes: (cut - end) as u64 } };
        assert_eq!((storage.tail(), storage.trouble()), (tail, None), "cut at {cut}");
    }
}

#[test]
fn real_databases_that_are_cut_near_the_end() {
    for path in databases() {
        let whole = fs::read(&path).unwrap();
        let reference = Reference::of(&whole);
        let last = reference.transactions.last().unwrap().1 as usize;
        let place = Place::new(&whole);
        let file = fs::OpenOptions::new().write(true).open(place.path()).unwrap();
        let cuts = (last..last + 200).rev().chain((last - 100..=last).rev());
        for cut in (whole.len() - 200..whole.len()).rev().chain(cuts) {
            file.set_len(cut as u64).unwrap();
            let storage = place.open();
            // Whole is what the next one begins behind, or the cut itself.
            let begins = reference.transactions.iter().skip(1).map(|transaction| transaction.1);
            let whole_ones = begins.filter(|begin| *begin <= cut as u64).count();
            let tid = whole_ones.checked_sub(1).map_or(0, |number| reference.transactions[number].0);
            assert_eq!(storage.last_tid().raw(), tid, "{} cut at {cut}", path.display());
            assert!(tid < reference.last_tid() && storage.trouble().is_none());
        }
    }
}

#[test]
fn bits_that_are_flipped_in_lengths_and_ids_give_an_error_or_the_right_data() {
    let whole = rich().bytes;
    let reference = Reference::of(&whole);
    let place = Place::new(&whole);
    let mut wrong = 0;
    for (number, (_, pos, records)) in reference.transactions.iter().enumerate() {
        if records.is_empty() {
            continue; // its id is nowhere else
        }
        let header = (*pos as usize..*pos as usize + 23).collect::<Vec<_>>();
        // Of a record: its serial, the position of its transaction, version and length of data; 8 for 0 makes data of a
        // position, which is as good.
        let fields = records.iter().flat_map(|(_, record)| {
            let record = *record as usize;
            let own_data = whole[record + 34..record + 42] != [0; 8];
            (record + 8..record + 16).chain(record + 24..record + if own_data { 42 } else { 34 })
        });
        for byte in header.into_iter().chain(fields) {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[byte] ^= 1 << bit;
                place.put(&flipped);
                let storage = place.open();
                // The transaction is refused, or waited for, with all that is behind it.
                let kept = &reference.transactions[..number];
                let last = kept.last().map_or(0, |transaction| transaction.0);
                assert_eq!(storage.last_tid().raw(), last, "byte {byte} bit {bit}");
                assert_ne!(storage.tail(), Tail::Whole);
                wrong += usize::from(storage.trouble().is_some());
                for oid in reference.objects.keys() {
                    assert_eq!(load(&storage, *oid, u64::MAX).unwrap(), reference.load(*oid, last));
                }
            }
        }
    }
    assert!(wrong > 1000, "{wrong}");
}

#[test]
fn bits_that_are_flipped_anywhere_are_no_panic() {
    let mut random = Random(3);
    let made = rich().bytes;
    let real = databases().into_iter().find(|path| path.ends_with("deep.fs"));
    let real = real.map(|path| fs::read(path).unwrap());
    for (whole, rounds) in [(Some(made), 2000), (real, 25)] {
        let Some(whole) = whole else { continue };
        let mut reference = Reference::of(&whole);
        reference.transactions.truncate(8);
        let place = Place::new(&whole);
        for _ in 0..rounds {
            let mut flipped = whole.clone();
            for _ in 0..=random.below(4) {
                let bit = random.below(whole.len() * 8);
                flipped[bit / 8] ^= 1 << (bit % 8);
            }
            place.put(&flipped);
            if let Ok(storage) = FileStorage::open(&place.path(), None) {
                read_all(&storage, &reference);
                storage.refresh().unwrap();
            }
        }
    }
}

#[test]
fn headers_that_contradict_themselves_are_named() {
    let mut maker = Maker::new();
    maker.put(0x10, 1, b"one");
    let second = maker.end() as usize;
    let record = maker.put(0x20, 1, b"two") as usize;
    let end = maker.end() as usize;
    // Offsets, the bytes there, and what is said of it.
    for (at, bytes, what) in [
        (second, &[0, 0, 0, 0, 0, 0, 0, 0x10][..], "not above the one before"),
        (second + 8, &[0, 0, 0, 0, 0, 0, 0, 22], "shorter than its header"),
        (second + 16, b"x", "status of a transaction"),
        (second + 17, &[0, 60], "shorter than its header"),
        (end - 1, &[0], "two lengths"),
        (record + 15, &[0x21], "another transaction"),
        (record + 16, &[0xff; 8], "behind it"),
        (record + 31, &[0], "another transaction"),
        (record + 32, &[0, 1], "of a version"),
        (record + 34, &[0xff; 8], "longer than its transaction"),
        (record + 34, &[0, 0, 0, 0, 0, 0, 0, 0], "longer than its transaction"),
        (record + 34, &[0, 0, 0, 0, 0, 0, 0, 1], "ends inside of a record"),
    ] {
        let mut bad = maker.bytes.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        let (storage, trouble) = damage_of(&bad);
        assert!(trouble.contains(what), "{at}: {trouble}");
        assert!(
            trouble.contains("Data.fs is damaged at byte") && trouble.contains("@0000000000000010 is served")
        );
        assert_eq!(text_of(&storage, 1, u64::MAX).as_deref(), Some("10 one"));
        assert_eq!(storage.refresh().unwrap(), Refreshed::Nothing);
        assert!(storage.trouble().is_some());
    }
    // A length that no file can have is waited for, and costs nothing.
    let mut bad = maker.bytes.clone();
    bad[second + 8..second + 16].fill(0xff);
    assert!(matches!(damage_of(&bad).0.tail(), Tail::Unfinished { .. }));
}

#[test]
fn chains_that_lead_astray_are_errors_and_end() {
    let mut maker = Maker::new();
    let other = maker.put(0x10, 2, b"other");
    let one = maker.put(0x20, 1, b"one");
    let two = maker.put(0x30, 1, b"two") as usize;
    let back = maker.commit(0x40, &[(3, Write::Back(0))])[0] as usize;
    let patched = |at: usize, to: u64| {
        let mut bytes = maker.bytes.clone();
        bytes[at..at + 8].copy_from_slice(&to.to_be_bytes());
        Place::new(&bytes).open()
    };
    let error = |storage: &FileStorage, oid, at| load(storage, oid, at).unwrap_err().to_string();
    // Positions of the record before.
    assert!(error(&patched(two + 16, other), 1, 0x20).contains("another object"));
    assert!(error(&patched(two + 16, 3), 1, 0x20).contains("no record can be"));
    assert!(error(&patched(two + 16, one + 1), 1, 0x20).contains("is damaged at byte"));
    assert_eq!(text_of(&patched(two + 16, other), 1, 0x30).as_deref(), Some("30 two"));
    // Positions of the data.
    assert!(error(&patched(back + 42, other), 3, 0x40).contains("another object"));
    assert!(error(&patched(back + 42, back as u64), 3, 0x40).contains("no record can be"));
    assert!(error(&patched(back + 42, u64::MAX), 3, 0x40).contains("no record can be"));

    // A serial that changes after it was read.
    let place = Place::new(&maker.bytes);
    let storage = place.open();
    place.put_at(usize::try_from(one).unwrap() + 8, &0x99u64.to_be_bytes());
    assert!(error(&storage, 1, 0x20).contains("an older record has a newer serial"));

    // A chain that goes on and on.
    let mut long = Maker::new();
    let mut last = long.put(0x10, 1, b"far");
    for tid in 0..=BACK_POINTERS_MAX as u64 {
        last = long.commit(0x20 + tid, &[(1, Write::Back(last))])[0];
    }
    let storage = Place::new(&long.bytes).open();
    assert!(error(&storage, 1, u64::MAX).contains("too many records lead back"));
    let one_less = storage.last_tid().raw() - 1;
    assert!(text_of(&storage, 1, one_less).unwrap().ends_with(" far"));
}

#[test]
fn an_iterator_ends_with_its_first_error() {
    let maker = rich();
    let place = Place::new(&maker.bytes);
    let storage = place.open();
    // The third transaction goes bad after it was read.
    let third = Reference::of(&maker.bytes).transactions[2].1 as usize;
    let mut bad = maker.bytes.clone();
    bad[third + 16] = b'?';
    place.put_at(0, &bad);
    let forward = storage.transactions(Tid::ZERO, Tid::MAX).unwrap().take(20);
    let seen: Vec<bool> = forward.map(|transaction| transaction.is_ok()).collect();
    assert_eq!(seen, [true, true, false]);
    let back = storage.transactions_back(Tid::ZERO, Tid::MAX).take(20);
    let seen: Vec<bool> = back.map(|transaction| transaction.is_ok()).collect();
    assert_eq!(seen, [true, true, true, true, false]);
}

#[test]
fn data_that_no_object_has_are_an_error_and_no_memory() {
    // All of it is a hole of the file but the headers.
    let mut maker = Maker::new();
    maker.put(0x10, 1, b"one");
    let start = maker.end();
    let record = maker.put(0x20, 1, b"") - start;
    let header =
        maker.bytes[usize::try_from(start).unwrap()..][..usize::try_from(record).unwrap() + 42].to_vec();
    let len = record + 42 + DATA_BYTES_MAX + 1;
    let place = Place::new(&maker.bytes[..usize::try_from(start).unwrap()]);
    let at = |offset: u64| usize::try_from(start + offset).unwrap();
    place.put_at(at(0), &header);
    place.put_at(at(8), &len.to_be_bytes());
    place.put_at(at(record + 34), &(DATA_BYTES_MAX + 1).to_be_bytes());
    place.put_at(at(len), &len.to_be_bytes());
    let storage = place.open();
    assert_eq!(storage.last_tid().raw(), 0x20, "{:?}", storage.tail());
    let error = load(&storage, 1, u64::MAX).unwrap_err().to_string();
    assert!(error.contains("it has over 256 MiB of data"), "{error}");
    assert_eq!(text_of(&storage, 1, 0x1f).as_deref(), Some("10 one"));
}
