//! Records written by hand, one for each form of each class.

use super::*;

const FILE: &[u8] = b"cwendelin.bigfile.file_zodb\nZBigFile\n";
const BLK0: &[u8] = b"cwendelin.bigfile.file_zodb\nZBlk0\n";
const BLK1: &[u8] = b"cwendelin.bigfile.file_zodb\nZBlk1\n";
const DATA: &[u8] = b"cwendelin.bigfile.file_zodb\nZData\n";
const LONG_TREE: &[u8] = b"cBTrees.LOBTree\nLOBTree\n";
const LONG_BUCKET: &[u8] = b"cBTrees.LOBTree\nLOBucket\n";
const INT_TREE: &[u8] = b"cBTrees.IOBTree\nIOBTree\n";
const INT_BUCKET: &[u8] = b"cBTrees.IOBTree\nIOBucket\n";
const MAPPING: &[u8] = b"cpersistent.mapping\nPersistentMapping\n";

/// A record of protocol 3, from the opcodes of its class and of its state.
fn record(class: &[u8], state: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x03", class, b".\x80\x03", &state.concat(), b"."].concat()
}

/// A reference to an object of a class.
fn to(oid: u8, class: &[u8]) -> Vec<u8> {
    [b"(C\x08\0\0\0\0\0\0\0", &[oid][..], class, b"tQ"].concat()
}

/// A reference that does not name the class.
fn bare(oid: u8) -> Vec<u8> {
    [b"C\x08\0\0\0\0\0\0\0", &[oid][..], b"Q"].concat()
}

fn target(oid: u64, class: impl Into<Option<Class>>) -> Target {
    Target { oid: Oid::from_raw(oid), class: class.into() }
}

#[track_caller]
fn check(class: &[u8], state: &[&[u8]], expected: Result<Object<'_>, ObjectError>) {
    let record = record(class, state);
    assert_eq!(decode(&record), expected, "{}", record.escape_ascii());
}

#[test]
fn files_have_a_block_size_and_a_tree() {
    let file = |block_size| Ok(Object::BigFile { block_size, tree: Oid::from_raw(7) });
    check(FILE, &[b"M\0\x20", &to(7, LONG_TREE), b"\x86"], file(8192));
    check(FILE, &[b"L2097152L\n", &bare(7), b"\x86"], file(2 << 20));
    let class = Class::BigFile;
    let number = |number| Err(ObjectError::Number { class, what: "the block size", number });
    check(FILE, &[b"K\0", &to(7, LONG_TREE), b"\x86"], number(0));
    check(FILE, &[b"J\xff\xff\xff\xff", &to(7, LONG_TREE), b"\x86"], number(-1));
    let state = |what| Err(ObjectError::State { class, what });
    check(FILE, &[b"\x88", &to(7, LONG_TREE), b"\x86"], state("the block size"));
    check(FILE, &[b"L9223372036854775808L\n", &to(7, LONG_TREE), b"\x86"], state("the block size"));
    check(FILE, &[b"N"], state("the state"));
    check(FILE, &[b"K\x01", &to(7, LONG_TREE), b"N\x87"], state("the state"));
    let wrong = |found| Err(ObjectError::WrongTarget { class, what: "the tree of blocks", found });
    check(FILE, &[b"K\x01N\x86"], wrong("no reference"));
    let other = "a reference to an object of the wrong class";
    check(FILE, &[b"K\x01", &to(7, INT_TREE), b"\x86"], wrong(other));
    check(FILE, &[b"K\x01](U\x01wC\x08\0\0\0\0\0\0\0\x07\x85eQ\x86"], wrong("a weak reference"));
    check(
        FILE,
        &[b"K\x01](U\x01nU\x02dbC\x08\0\0\0\0\0\0\0\x07\x86eQ\x86"],
        wrong("a reference to another database"),
    );
}

#[test]
fn blocks_have_bytes_or_a_tree() {
    for class in [BLK0, b"cwendelin.bigfile.file_zodb\nZBlk\n"] {
        check(class, &[b"C\x02a\xff"], Ok(Object::Blk0(Cow::Borrowed(b"a\xff"))));
        check(class, &[b"C\0"], Ok(Object::Blk0(Cow::Borrowed(b""))));
        check(class, &[b"U\x02a\xff"], Ok(Object::Blk0(Cow::Borrowed(b"a\xff"))));
    }
    check(DATA, &[b"B\x02\0\0\0a\xff"], Ok(Object::Data(Cow::Borrowed(b"a\xff"))));
    let encoded = b"c_codecs\nencode\nX\x03\0\0\0a\xc3\xbfX\x06\0\0\0latin1\x86R";
    check(DATA, &[encoded], Ok(Object::Data(Cow::Borrowed(b"a\xff"))));
    check(BLK1, &[&to(9, INT_TREE)], Ok(Object::Blk1 { tree: Oid::from_raw(9) }));
    let state = |class, what| Err(ObjectError::State { class, what });
    check(BLK0, &[b"N"], state(Class::Blk0, "the bytes"));
    check(DATA, &[b"X\x01\0\0\0a"], state(Class::Data, "the bytes"));
    let other = "a reference to an object of the wrong class";
    let (class, what) = (Class::Blk1, "the tree of chunks");
    check(BLK1, &[&to(9, LONG_TREE)], Err(ObjectError::WrongTarget { class, what, found: other }));
    check(BLK1, &[b"N"], Err(ObjectError::WrongTarget { class, what, found: "no reference" }));
}

#[test]
fn bytes_of_a_block_are_not_copied() {
    let record = record(BLK0, &[b"B\0\0\x20\0", &vec![7; 2 << 20]]);
    let Ok(Object::Blk0(Cow::Borrowed(bytes))) = decode(&record) else { panic!("not borrowed") };
    assert!(record.as_ptr_range().contains(&bytes.as_ptr()));
    assert_eq!(bytes.len(), 2 << 20);
}

#[test]
fn trees_have_three_forms() {
    check(LONG_TREE, &[b"N"], Ok(Object::LongTree(Tree::Empty)));
    check(INT_TREE, &[b"N"], Ok(Object::IntTree(Tree::Empty)));
    let entries = vec![(-3, target(1, Class::Blk0)), (8, target(2, Class::Blk1))];
    let inlined = Tree::Inlined(Bucket { entries, next: None });
    let items: &[&[u8]] = &[b"(J\xfd\xff\xff\xff", &to(1, BLK0), b"K\x08", &to(2, BLK1), b"t\x85\x85\x85"];
    check(LONG_TREE, items, Ok(Object::LongTree(inlined)));
    let empty = Tree::Inlined(Bucket::default());
    check(INT_TREE, &[b")\x85\x85\x85"], Ok(Object::IntTree(empty)));
    let node = Node {
        keys: vec![5, 1 << 40],
        children: vec![target(1, Class::LongTree), target(2, Class::LongBucket), target(3, None)],
        first_bucket: Some(target(4, Class::LongBucket)),
    };
    let [one, two, first] = [to(1, LONG_TREE), to(2, LONG_BUCKET), to(4, LONG_BUCKET)];
    let state: &[&[u8]] =
        &[b"(", &one, b"K\x05", &two, b"\x8a\x06\0\0\0\0\0\x01", &bare(3), b"t", &first, b"\x86"];
    check(LONG_TREE, state, Ok(Object::LongTree(Tree::Node(node))));
    // A root with one child that has a record of its own.
    let node = Node {
        keys: vec![],
        children: vec![target(1, Class::IntBucket)],
        first_bucket: Some(target(1, None)),
    };
    check(
        INT_TREE,
        &[&to(1, INT_BUCKET), b"\x85", &bare(1), b"\x86"],
        Ok(Object::IntTree(Tree::Node(node.clone()))),
    );
    let node = Node { first_bucket: None, ..node };
    check(INT_TREE, &[&to(1, INT_BUCKET), b"\x85\x85"], Ok(Object::IntTree(Tree::Node(node))));
}

#[test]
fn buckets_have_entries_and_a_next_one() {
    let entries = vec![(0, target(1, Class::Data)), (4096, target(2, None))];
    let state: &[&[u8]] = &[b"(K\0", &to(1, DATA), b"M\0\x10", &bare(2), b"t"];
    let bucket = Bucket { entries, next: None };
    check(INT_BUCKET, &[state, &[b"\x85"]].concat(), Ok(Object::IntBucket(bucket.clone())));
    let bucket = Bucket { next: Some(target(3, Class::IntBucket)), ..bucket };
    let next = to(3, INT_BUCKET);
    check(INT_BUCKET, &[state, &[&next, b"\x86"]].concat(), Ok(Object::IntBucket(bucket)));
    check(LONG_BUCKET, &[b")\x85"], Ok(Object::LongBucket(Bucket::default())));
    // What a key leads to is told to be wrong when it is loaded: the others are right.
    let odd = Bucket { entries: vec![(1, target(1, Class::Other))], next: None };
    check(LONG_BUCKET, &[b"K\x01", &to(1, MAPPING), b"\x86\x85"], Ok(Object::LongBucket(odd)));
    let ends = [(i64::MIN, target(1, None)), (i64::MAX, target(2, None))];
    let [low, high] = [b"\x8a\x08\0\0\0\0\0\0\0\x80", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"];
    let bucket = Bucket { entries: ends.to_vec(), next: None };
    check(LONG_BUCKET, &[b"(", low, &bare(1), high, &bare(2), b"t\x85"], Ok(Object::LongBucket(bucket)));
}

#[test]
fn trees_of_another_form_are_refused() {
    let class = Class::LongTree;
    let state = |what| Err(ObjectError::State { class, what });
    let wrong = |what, found| Err(ObjectError::WrongTarget { class, what, found });
    let [one, two] = [to(1, LONG_BUCKET), to(2, LONG_BUCKET)];
    check(LONG_TREE, &[b")"], state("the state"));
    check(LONG_TREE, &[b"K\x01"], state("the state"));
    check(LONG_TREE, &[b"K\x01\x85"], state("the children"));
    check(LONG_TREE, &[b")\x85"], state("the list of children"));
    check(LONG_TREE, &[&one, &two, b"\x86", &one, b"\x86"], state("the list of children"));
    check(LONG_TREE, &[&one, b"N", &two, b"\x87", &one, b"\x86"], state("a key"));
    check(LONG_TREE, &[&one, b"\x88", &two, b"\x87", &one, b"\x86"], state("a key"));
    let huge = b"L9223372036854775808L\n";
    check(LONG_TREE, &[&one, huge, &two, b"\x87", &one, b"\x86"], state("a key"));
    check(LONG_TREE, &[&one, b"K\x01N\x87", &one, b"\x86"], wrong("a child", "no reference"));
    check(LONG_TREE, &[&one, b"\x85N\x86"], wrong("the first bucket", "no reference"));
    let other = "a reference to an object of the wrong class";
    check(LONG_TREE, &[&to(1, INT_TREE), b"\x85", &one, b"\x86"], wrong("a child", other));
    check(LONG_TREE, &[&one, b"\x85", &to(1, LONG_TREE), b"\x86"], wrong("the first bucket", other));
    // Only a tree with a single leaf has it inlined.
    check(LONG_TREE, &[b")\x85\x85", &one, b"\x86"], wrong("a child", "no reference"));
    check(LONG_TREE, &[b")\x85\x85\x85\x85"], state("the list of entries"));
}

#[test]
fn buckets_of_another_form_are_refused() {
    let class = Class::IntBucket;
    let state = |what| Err(ObjectError::State { class, what });
    check(INT_BUCKET, &[b"N"], state("the state of a bucket"));
    check(INT_BUCKET, &[b")"], state("the state of a bucket"));
    check(INT_BUCKET, &[b"]\x85"], state("the list of entries"));
    check(INT_BUCKET, &[b"K\x01\x85\x85"], state("the list of entries"));
    check(INT_BUCKET, &[&bare(1), &bare(2), b"\x86\x85"], state("a key"));
    let wrong = |what, found| Err(ObjectError::WrongTarget { class, what, found });
    check(INT_BUCKET, &[b"K\x01K\x02\x86\x85"], wrong("a value", "no reference"));
    check(INT_BUCKET, &[b")N\x86"], wrong("the next bucket", "no reference"));
    let other = "a reference to an object of the wrong class";
    check(INT_BUCKET, &[b")", &to(1, LONG_BUCKET), b"\x86"], wrong("the next bucket", other));
}

#[test]
fn keys_ascend() {
    let [one, two] = [to(1, LONG_BUCKET), bare(2)];
    for (later, key) in [(b"K\x05", 5), (b"K\x04", 4)] {
        let order = |class| Err(ObjectError::KeyOrder { class, previous: 5, key });
        let tree: &[&[u8]] = &[b"(", &one, b"K\x05", &one, later, &one, b"t", &one, b"\x86"];
        check(LONG_TREE, tree, order(Class::LongTree));
        let bucket: &[&[u8]] = &[b"(K\x05", &two, later, &two, b"t\x85"];
        check(LONG_BUCKET, bucket, order(Class::LongBucket));
        check(INT_BUCKET, bucket, order(Class::IntBucket));
        check(INT_TREE, &[bucket, &[b"\x85\x85"]].concat(), order(Class::IntTree));
    }
}

#[test]
fn the_class_has_several_forms() {
    let empty = Ok(Object::LongTree(Tree::Empty));
    check(&[LONG_TREE, b"N\x86"].concat(), &[b"N"], empty.clone());
    check(&[LONG_TREE, b")\x86"].concat(), &[b"N"], empty.clone());
    check(b"U\x0eBTrees.LOBTreeU\x07LOBTree\x86N\x86", &[b"N"], empty.clone());
    check(b"X\x0e\0\0\0BTrees.LOBTreeX\x07\0\0\0LOBTree\x86N\x86", &[b"N"], empty);
    let other = Object::Other(ClassName { module: "persistent.mapping", name: "PersistentMapping" });
    // The state of other classes is not looked at.
    check(MAPPING, &[b"\xff"], Ok(other.clone()));
    assert_eq!(decode(&[MAPPING, b"."].concat()), Ok(other.clone()));
    assert_eq!(other.class(), Class::Other);
    for class in [&b"N"[..], b"N\x85", b"NN\x86", b"K\x01K\x01\x86N\x86", b"U\x01aU\x01b\x86"] {
        check(class, &[b"N"], Err(ObjectError::NoClass));
    }
    check(&[LONG_TREE, b"\x85"].concat(), &[b"N"], Err(ObjectError::NoClass));
    check(&[LONG_TREE, b"NN\x87"].concat(), &[b"N"], Err(ObjectError::NoClass));
    let unknown = Object::Other(ClassName { module: "wendelin.bigfile.file_zodb", name: "ZBlk2" });
    check(b"cwendelin.bigfile.file_zodb\nZBlk2\n", &[b"N"], Ok(unknown));
    check(
        b"cBTrees.LOBTree\nLOSet\n",
        &[b"N"],
        Ok(Object::Other(ClassName { module: "BTrees.LOBTree", name: "LOSet" })),
    );
}

#[test]
fn a_record_is_two_whole_pickles_and_no_more() {
    let whole = record(LONG_TREE, &[b"N"]);
    for end in 0..whole.len() {
        assert!(matches!(decode(&whole[..end]), Err(ObjectError::Pickle { .. })), "{end}");
    }
    let longer = [&whole[..], b"N"].concat();
    assert_eq!(decode(&longer), Err(ObjectError::Trailing { at: whole.len() }));
}

#[test]
fn errors_name_the_class_and_the_cause() {
    let record = record(LONG_BUCKET, &[b"(K\x05", &bare(1), b"K\x05", &bare(2), b"t\x85"]);
    assert_eq!(decode(&record).unwrap_err().to_string(), "key 5 of this LOBucket comes after key 5");
    let cut = decode(&record[..30]).unwrap_err().to_string();
    assert_eq!(
        cut,
        "the record is no pickle of the kind that ZODB writes: it ends within a pickle (byte 30)"
    );
}
