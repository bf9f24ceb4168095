//! Records of real ZODB databases: all are read, their blocks are what the manifests say, and broken ones do no harm.
//!
//! Invariant: of a record that was cut or changed comes an error or a well-formed object, never a panic, and never
//! more memory than its size allows. `REVFS_SLOW=1` cuts each record at each byte, and changes more of them.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "zodb_objects/database.rs"]
mod database;
#[path = "zodb_objects/memory.rs"]
mod memory;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::process::Command;

use database::{Database, Record, folder};
use revfs::protocol::Tid;
use revfs::store::zodb::Oid;
use revfs::store::zodb::objects::{Bucket, Class, Node, Object, Tree, decode};
use revfs::store::zodb::pickle::{OPCODES_MAX, PickleError, Pickles, Reference, Value};

/// How many records of each class a database has.
type Counts = &'static [(Class, usize)];

const DEEP: Counts = &[
    (Class::BigFile, 4),
    (Class::Blk0, 285),
    (Class::Blk1, 291),
    (Class::Data, 492),
    (Class::LongTree, 218),
    (Class::LongBucket, 391),
    (Class::IntTree, 229),
    (Class::Other, 91),
];
const PLAIN: Counts = &[
    (Class::BigFile, 4),
    (Class::Blk0, 94),
    (Class::Blk1, 97),
    (Class::Data, 646),
    (Class::LongTree, 34),
    (Class::IntTree, 86),
    (Class::Other, 33),
];
const ZBLK: Counts = &[
    (Class::BigFile, 1),
    (Class::Blk0, 1),
    (Class::Blk1, 1),
    (Class::Data, 64),
    (Class::LongTree, 1),
    (Class::IntTree, 1),
    (Class::IntBucket, 2),
    (Class::Other, 2),
];

#[test]
fn every_record_is_read() {
    let Some(folder) = folder("every_record_is_read") else { return };
    for database in Database::all(&folder) {
        let mut counts = HashMap::<Class, usize>::new();
        for record in &database.records {
            let object = decode(database.data(record))
                .unwrap_or_else(|e| panic!("{} {} {}: {e}", database.name, record.oid, record.tid));
            *counts.entry(object.class()).or_default() += 1;
            check_form(&object);
            follow_all(&database, record, &object);
            // All of the state is read here, also of other classes.
            let mut pickles = Pickles::new(database.data(record));
            pickles.read_next().and_then(|_| pickles.read_next()).unwrap();
            assert!(pickles.is_at_end());
        }
        let expected = match database.name.as_str() {
            "deep.fs" => DEEP,
            "plain.fs" => PLAIN,
            _ => ZBLK,
        };
        assert_eq!(counts, expected.iter().copied().collect(), "{}", database.name);
    }
}

/// What a record refers to is of the class that the reference says, at that moment.
fn follow_all(database: &Database, record: &Record, object: &Object<'_>) {
    let (targets, more) = match object {
        Object::LongTree(Tree::Node(node)) | Object::IntTree(Tree::Node(node)) => {
            (node.children.clone(), node.first_bucket)
        }
        Object::LongBucket(bucket)
        | Object::IntBucket(bucket)
        | Object::LongTree(Tree::Inlined(bucket))
        | Object::IntTree(Tree::Inlined(bucket)) => {
            (bucket.entries.iter().map(|(_, value)| *value).collect(), bucket.next)
        }
        _ => return,
    };
    for target in targets.into_iter().chain(more) {
        assert!(target.class.is_some(), "{target:?}");
        database.follow(target, record.tid);
    }
}

/// Keys ascend, and there are as many as there should be.
fn check_form(object: &Object<'_>) {
    match object {
        Object::BigFile { block_size, .. } => assert!(*block_size > 0),
        Object::LongTree(Tree::Node(Node { keys, children, .. }))
        | Object::IntTree(Tree::Node(Node { keys, children, .. })) => {
            assert!(keys.is_sorted_by(|a, b| a < b) && keys.len() + 1 == children.len());
        }
        Object::LongBucket(Bucket { entries, .. })
        | Object::IntBucket(Bucket { entries, .. })
        | Object::LongTree(Tree::Inlined(Bucket { entries, .. }))
        | Object::IntTree(Tree::Inlined(Bucket { entries, .. })) => {
            assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
        }
        _ => {}
    }
}

#[test]
fn the_root_names_the_files() {
    let Some(folder) = folder("the_root_names_the_files") else { return };
    let database = Database::read(&folder.join("deep.fs"));
    let root = database.newest(Oid::ROOT, Tid::MAX).unwrap();
    let mut pickles = Pickles::new(database.data(root));
    let state = pickles.read_next().and_then(|_| pickles.read_next()).unwrap();
    let (_, mapping) = pickles.dict(state).unwrap().next().unwrap();
    let named: BTreeMap<&[u8], (Oid, Class)> = pickles
        .dict(mapping)
        .unwrap()
        .map(|(name, reference)| {
            let Value::Text(name) = pickles.value(name) else { panic!("a name is no text") };
            let Some(Reference::Strong { oid, class: Some(class) }) = pickles.reference(reference) else {
                panic!("{} is no reference", name.escape_ascii());
            };
            (name, (oid, Class::of(class)))
        })
        .collect();
    let manifest = fs::read_to_string(folder.join("deep.fs.manifest")).unwrap();
    let mut seen = 0;
    for line in manifest.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["file", name, oid, ..] => {
                let expected = (oid.parse().unwrap(), Class::BigFile);
                assert_eq!(named.get(name.as_bytes()), Some(&expected), "{name}");
            }
            ["notfile", oid] => {
                assert!(named.values().any(|found| *found == (oid.parse().unwrap(), Class::Other)), "{oid}");
            }
            _ => continue,
        }
        seen += 1;
    }
    assert_eq!(seen, 5);
}

#[test]
fn an_index_of_zodb_is_pickles_too() {
    let Some(folder) = folder("an_index_of_zodb_is_pickles_too") else { return };
    for name in ["plain.fs", "deep.fs"] {
        let database = Database::read(&folder.join(name));
        let index = fs::read(folder.join(format!("{name}.index"))).unwrap();
        let mut pickles = Pickles::new(&index);
        let end = pickles.read_next().unwrap();
        assert_eq!(pickles.value(end), Value::Int(i64::try_from(database.len()).unwrap()));
        let mut places = HashMap::new();
        loop {
            let next = pickles.read_next().unwrap();
            if pickles.value(next) == Value::None {
                break;
            }
            let [high, low] = pickles.tuple(next).unwrap() else { panic!("{:?}", pickles.value(next)) };
            let [high, low] = [*high, *low].map(|id| pickles.bytes(id).unwrap());
            // Two bytes of each oid, then six bytes of where its newest record is.
            let (oids, ends) = low.split_at(low.len() / 8 * 2);
            for (oid, place) in oids.chunks(2).zip(ends.chunks(6)) {
                let oid: [u8; 8] = [&high, oid].concat().try_into().unwrap();
                places.insert(Oid::from_be_bytes(oid), database::number(place, 0, 6));
            }
        }
        assert!(pickles.is_at_end());
        let newest = |record: &Record| database.newest(record.oid, Tid::MAX).unwrap().place() as u64;
        let expected = database.records.iter().map(|record| (record.oid, newest(record)));
        assert_eq!(places, expected.collect(), "{name}");
    }
}

/// The bytes that the sample databases begin with: numbers of 32 bits, big-endian.
fn numbers(len: usize) -> Vec<u8> {
    (0..u32::try_from(len / 4).unwrap()).flat_map(u32::to_be_bytes).collect()
}

#[test]
fn blocks_of_the_sample_databases_are_what_they_should_be() {
    let Some(folder) = folder("blocks_of_the_sample_databases_are_what_they_should_be") else { return };
    let mut samples = 0;
    for database in Database::all(&folder) {
        if !database.name.starts_with("zblk-") {
            continue;
        }
        samples += 1;
        let (block_size, blocks) = database.file(Oid::from_raw(1), Tid::MAX).unwrap();
        assert_eq!(block_size, 2 << 20);
        assert_eq!(blocks.keys().copied().collect::<Vec<_>>(), [1, 3], "{}", database.name);
        for oid in [2, 3] {
            let newest = database.newest(Oid::from_raw(oid), Tid::MAX).unwrap();
            assert_eq!(newest.tid.to_string(), "0285cbac3851eb99");
        }
        let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        assert!(blocks[&1][..16384] == numbers(16384) && zero(&blocks[&1][16384..]), "{}", database.name);
        let (start, end) = (numbers(131_072), numbers(131_072).into_iter().rev().collect::<Vec<_>>());
        let block = &blocks[&3];
        let middle = &block[131_072..block.len() - 131_072];
        assert!(block.starts_with(&start) && block.ends_with(&end) && zero(middle), "{}", database.name);
    }
    assert_eq!(samples, 4);
}

/// What a manifest says, up to one revision.
#[derive(Default)]
struct Manifest {
    hole: String,
    files: BTreeMap<String, Oid>,
    sizes: HashMap<String, usize>,
    blocks: HashMap<(String, i64), String>,
}

impl Manifest {
    /// Takes a line; answers the revision that begins with it, if one does.
    fn take(&mut self, line: &str) -> Option<Tid> {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["hole", sha] => self.hole = sha.to_owned(),
            ["file", name, oid, ..] => {
                self.files.insert(name.to_owned(), oid.parse().unwrap());
            }
            ["notfile", _] => {}
            ["tid", _, tid] => return Some(tid.parse().unwrap()),
            ["size", _, name, size] => {
                self.sizes.insert(name.to_owned(), size.parse().unwrap());
            }
            ["blk", _, name, block, sha] => {
                self.blocks.insert((name.to_owned(), block.parse().unwrap()), sha.to_owned());
            }
            _ => panic!("{line}"),
        }
        None
    }
}

/// Blocks whose content is to be compared, each content once.
#[derive(Default)]
struct Contents {
    numbers: HashMap<Vec<u8>, usize>,
    expected: Vec<(usize, String, String)>,
}

impl Contents {
    fn expect(&mut self, content: Vec<u8>, sha: &str, what: String) {
        let next = self.numbers.len();
        let number = *self.numbers.entry(content).or_insert(next);
        self.expected.push((number, sha.to_owned(), what));
    }

    /// Compares them all, and answers how many there were.
    fn check(&self) -> usize {
        let dir = tempfile::tempdir().unwrap();
        for (content, number) in &self.numbers {
            fs::write(dir.path().join(format!("{number:06}")), content).unwrap();
        }
        let mut names: Vec<String> = (0..self.numbers.len()).map(|number| format!("{number:06}")).collect();
        names.insert(0, "--".to_owned());
        let output = Command::new("sha256sum").args(&names).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let sums: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(sums.len(), self.numbers.len());
        for (number, sha, what) in &self.expected {
            assert_eq!(sums[*number], sha, "{what}");
        }
        self.expected.len()
    }
}

/// Compares each file of a database with its manifest, as of each revision.
fn check_manifest(name: &str, revisions: usize, test: &str) {
    let Some(folder) = folder(test) else { return };
    let database = Database::read(&folder.join(name));
    let text = fs::read_to_string(folder.join(format!("{name}.manifest"))).unwrap();
    let (mut manifest, mut contents) = (Manifest::default(), Contents::default());
    let mut seen = 0;
    let mut now = None;
    for line in text.lines().map(Some).chain([None]) {
        let next = line.and_then(|line| manifest.take(line));
        if next.is_none() && line.is_some() {
            continue;
        }
        if let Some(at) = now {
            seen += 1;
            check_revision(&database, &manifest, &mut contents, at);
        }
        now = next;
    }
    assert_eq!(seen, revisions);
    let compared = contents.check();
    assert!(compared > 1000, "only {compared} blocks");
}

fn check_revision(database: &Database, manifest: &Manifest, contents: &mut Contents, at: Tid) {
    for (name, oid) in &manifest.files {
        let (block_size, mut blocks) = database.file(*oid, at).unwrap();
        let size = blocks.last_key_value().map_or(0, |(last, _)| (*last as usize + 1) * block_size);
        assert_eq!(size, manifest.sizes.get(name).copied().unwrap_or(0), "{name} at {at}");
        for block in 0..i64::try_from(size / block_size).unwrap() {
            let sha = manifest.blocks.get(&(name.clone(), block)).unwrap_or(&manifest.hole);
            let content = blocks.remove(&block).unwrap_or_else(|| vec![0; block_size]);
            contents.expect(content, sha, format!("block {block} of {name} at {at}"));
        }
        assert!(blocks.is_empty(), "{name} at {at} has {:?}", blocks.keys());
    }
}

#[test]
fn flat_trees_have_the_blocks_of_the_manifest() {
    check_manifest("plain.fs", 15, "flat_trees_have_the_blocks_of_the_manifest");
}

#[test]
fn deep_trees_have_the_blocks_of_the_manifest() {
    check_manifest("deep.fs", 44, "deep_trees_have_the_blocks_of_the_manifest");
}

fn is_slow() -> bool {
    std::env::var_os("REVFS_SLOW").is_some()
}

#[test]
fn a_record_that_is_cut_is_an_error() {
    let Some(folder) = folder("a_record_that_is_cut_is_an_error") else { return };
    // Long records are long strings: their ends are all tried, what lies between now and then.
    let step = if is_slow() { 1 } else { 61 };
    for database in Database::all(&folder) {
        for record in &database.records {
            let data = database.data(record);
            let is_other = decode(data).unwrap().class() == Class::Other;
            let near_an_end = |cut: &usize| *cut < 400 || *cut + 100 > data.len() || cut.is_multiple_of(step);
            for cut in (0..data.len()).filter(near_an_end) {
                let (result, peak) = memory::peak(|| decode(&data[..cut]));
                assert!(peak <= most_memory(cut), "{} {} {cut}: {peak} bytes", database.name, record.oid);
                match result {
                    Err(_) => {}
                    // Only the class is read of these.
                    Ok(Object::Other(_)) if is_other => {}
                    Ok(object) => panic!("{} {} {cut}: {object:?}", database.name, record.oid),
                }
            }
        }
    }
}

/// The most memory that a record may take to read: by its size, and for what it memorises in far places.
fn most_memory(len: usize) -> usize {
    200 * len + 4 * OPCODES_MAX * size_of::<u32>()
}

/// Numbers at random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}

#[test]
fn a_record_that_is_changed_is_an_error_or_well_formed() {
    let Some(folder) = folder("a_record_that_is_changed_is_an_error_or_well_formed") else { return };
    let rounds = if is_slow() { 500 } else { 10 };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut refused, mut read) = (0, 0);
    for database in Database::all(&folder) {
        for record in &database.records {
            let whole = database.data(record);
            for round in 0..rounds {
                let mut data = whole.to_vec();
                // Mostly near the start: what is far from it is the bytes of blocks.
                let end = if round % 3 == 0 { data.len() } else { data.len().min(160) };
                let flips: Vec<(usize, u8)> = (0..=random.below(4))
                    .map(|_| (random.below(end), u8::try_from(random.below(256)).unwrap()))
                    .collect();
                for (at, byte) in &flips {
                    data[*at] = *byte;
                }
                let (result, peak) = memory::peak(|| decode(&data));
                let what = || format!("{} {} {} {flips:?}", database.name, record.oid, record.tid);
                assert!(peak <= most_memory(data.len()), "{}: {peak} bytes", what());
                match result {
                    Ok(object) => {
                        check_form(&object);
                        read += 1;
                    }
                    Err(error) => {
                        assert!(error.to_string().len() < 300, "{}: {error}", what());
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(refused > 1000 && read > 1000, "{refused} refused, {read} read");
}

#[test]
fn hostile_pickles_take_little_memory() {
    let repeated = |head: &[u8], piece: &[u8]| {
        let times = (OPCODES_MAX - 10) / piece.len().max(1);
        [head, &piece.repeat(times)].concat()
    };
    for (what, data) in [
        ("empty lists", repeated(b"", b"]")),
        ("marks", repeated(b"", b"(")),
        ("the same value over and over", repeated(b"N", b"2")),
        ("tuples of tuples", repeated(b"N", b"\x85")),
        ("lists of lists", repeated(b"]q\x00", b"h\x00a")),
        ("calls", repeated(b"N", b"2R")),
        ("objects", repeated(b"", b"(No")),
        ("references", repeated(b"N", b"Q")),
        ("lines of classes", repeated(b"", b"c\n\n")),
        ("a far place of the memo", b"Nr\xff\xff\x03\x00".to_vec()),
        ("a length of 4 GiB", b"B\xff\xff\xff\xff".to_vec()),
        ("a length of 16 EiB", b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()),
        ("an integer of 2 GiB", b"\x8b\xff\xff\xff\x7f".to_vec()),
    ] {
        let (result, peak) = memory::peak(|| Pickles::new(&data).read_next());
        assert!(matches!(result, Err(PickleError::Cut { .. })), "{what}: {result:?}");
        assert!(peak <= 40 << 20, "{what}: {peak} bytes");
    }
}

#[test]
fn a_text_that_many_calls_share_is_decoded_for_none_of_them() {
    // One text of 1 MiB, and calls that would each make bytes of it.
    let text = [&b"X\0\0\x10\0"[..], &vec![b'a'; 1 << 20]].concat();
    let head = [&b"(c_codecs\nencode\nq\x00"[..], &text, b"q\x01X\x06\0\0\0latin1q\x02"].concat();
    let data = [&head[..], &b"h\x00h\x01h\x02\x86R".repeat(64), b"t."].concat();
    let (calls, peak) = memory::peak(|| {
        let mut pickles = Pickles::new(&data);
        let all = pickles.read_next().unwrap();
        pickles.tuple(all).unwrap().iter().filter(|id| pickles.call(**id).is_some()).count()
    });
    assert_eq!(calls, 64);
    assert!(peak < 1 << 20, "{peak} bytes");
}
