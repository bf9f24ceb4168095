//! Records by hand: each form of each container, circles, keys that are no names.

use super::*;

const FILE: &[u8] = b"cwendelin.bigfile.file_zodb\nZBigFile\n";
const MAPPING: &[u8] = b"cpersistent.mapping\nPersistentMapping\n";

/// A record of protocol 3, from the opcodes of its class and of its state.
fn record(class: &[u8], state: &[u8]) -> Vec<u8> {
    [b"\x80\x03", class, b".\x80\x03", state, b"."].concat()
}

/// A reference to an object of a class.
fn to(oid: u8, class: &[u8]) -> Vec<u8> {
    [b"(C\x08\0\0\0\0\0\0\0", &[oid][..], class, b"tQ"].concat()
}

/// A text of Python 3.
fn text(name: &str) -> Vec<u8> {
    [b"X", &(name.len() as u32).to_le_bytes()[..], name.as_bytes()].concat()
}

/// A dict.
fn dict(items: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [&key[..], value].concat()).collect();
    [b"}(", &items[..], b"u"].concat()
}

fn walk() -> Walk {
    Walk {
        found: BTreeMap::new(),
        taken: HashSet::new(),
        seen: HashSet::from([Oid::ROOT]),
        ahead: VecDeque::new(),
        values: 0,
    }
}

/// What a record leads to, from the path `at`.
#[track_caller]
fn check(class: &[u8], state: &[u8], expected: &[(u64, &str)]) {
    let record = record(class, state);
    let mut walk = walk();
    walk.record(Oid::ROOT, "at", &record).unwrap();
    let mut ahead: Vec<(u64, String)> = walk.ahead.into_iter().map(|(oid, path)| (oid.raw(), path)).collect();
    ahead.sort();
    let expected: Vec<(u64, String)> =
        expected.iter().map(|(oid, path)| (*oid, (*path).to_owned())).collect();
    assert_eq!(ahead, expected, "{}", record.escape_ascii());
}

#[test]
fn mappings_and_lists_have_a_dict_or_a_list_in_their_state() {
    let inner = dict(&[(text("a"), to(1, FILE)), (text("b"), to(2, MAPPING))]);
    let both: &[(u64, &str)] = &[(1, "at/a"), (2, "at/b")];
    check(MAPPING, &dict(&[(text("data"), inner.clone())]), both);
    check(b"cPersistentMapping\nPersistentMapping\n", &dict(&[(b"U\x0a_container".to_vec(), inner)]), both);
    let list = [b"](", &to(1, FILE)[..], &to(2, FILE), b"e"].concat();
    let items: &[(u64, &str)] = &[(1, "at/0"), (2, "at/1")];
    check(b"cpersistent.list\nPersistentList\n", &dict(&[(text("data"), list.clone())]), items);
    // Plain ones inside.
    let nested = dict(&[(text("x"), dict(&[(b"K\x07".to_vec(), list)]))]);
    check(MAPPING, &dict(&[(text("data"), nested)]), &[(1, "at/x/7/0"), (2, "at/x/7/1")]);
    check(MAPPING, b"N", &[]);
    check(MAPPING, &dict(&[(text("other"), to(1, FILE))]), &[]);
}

#[test]
fn trees_have_their_entries_inside_or_below() {
    let tree: &[u8] = b"cBTrees.OOBTree\nOOBTree\n";
    let bucket: &[u8] = b"cBTrees.OOBTree\nOOBucket\n";
    let entries = [b"(", &text("a")[..], &to(1, FILE), &text("b"), &to(2, FILE), b"t"].concat();
    let both: &[(u64, &str)] = &[(1, "at/a"), (2, "at/b")];
    check(tree, &[&entries[..], b"\x85\x85\x85"].concat(), both);
    check(bucket, &[&entries[..], b"\x85"].concat(), both);
    check(bucket, &[&entries[..], &to(9, bucket), b"\x86"].concat(), both);
    // Children have the path of the tree.
    let children =
        [b"(", &to(3, bucket)[..], &text("k"), &to(4, bucket), b"t", &to(3, bucket), b"\x86"].concat();
    check(tree, &children, &[(3, "at"), (4, "at")]);
    check(tree, &[&to(3, bucket)[..], b"\x85", &to(3, bucket), b"\x86"].concat(), &[(3, "at")]);
    check(tree, b"N", &[]);
    let numbers = [b"(K\x05", &to(1, FILE)[..], b"t\x85"].concat();
    check(b"cBTrees.LOBTree\nLOBucket\n", &numbers, &[(1, "at/5")]);
    // Sets, and trees whose values are no objects.
    check(b"cBTrees.OOBTree\nOOTreeSet\n", &children, &[]);
    check(b"cBTrees.OIBTree\nOIBTree\n", &children, &[]);
}

#[test]
fn what_is_no_name_is_passed_by() {
    let keys: &[Vec<u8>] = &[
        text("a/b"),
        text(""),
        text(".."),
        text("x\0"),
        b"N".to_vec(),
        b"U\x01\xff".to_vec(),
        b"\x88".to_vec(),
    ];
    let items: Vec<(Vec<u8>, Vec<u8>)> = keys.iter().map(|key| (key.clone(), to(1, FILE))).collect();
    check(MAPPING, &dict(&[(text("data"), dict(&items))]), &[]);
    // Other classes are not loaded, references to other databases and weak ones not followed.
    let other = to(1, b"capp\nThing\n");
    let foreign = b"](U\x01nU\x02dbC\x08\0\0\0\0\0\0\0\x07\x86eQ".to_vec();
    let weak = b"](U\x01wC\x08\0\0\0\0\0\0\0\x07\x85eQ".to_vec();
    let items = [(text("o"), other), (text("f"), foreign), (text("w"), weak)];
    check(MAPPING, &dict(&[(text("data"), dict(&items))]), &[]);
}

#[test]
fn circles_end_and_depth_is_bounded() {
    // A list that holds itself.
    check(MAPPING, &dict(&[(text("data"), dict(&[(text("l"), b"]q\x01(h\x01h\x01e".to_vec())]))]), &[]);
    // Two mappings that hold each other: each is seen once.
    let mut walk = walk();
    let state =
        dict(&[(text("data"), dict(&[(text("up"), to(0, MAPPING)), (text("self"), to(3, MAPPING))]))]);
    let record = record(MAPPING, &state);
    for _ in 0..3 {
        walk.record(Oid::from_raw(3), "x", &record).unwrap();
    }
    assert_eq!(walk.ahead.len(), 1, "{:?}", walk.ahead);
    let deep = vec!["d"; DEPTH_MAX].join("/");
    assert_eq!(join(&deep, "e"), None);
    assert!(join(&deep[2..], "e").is_some());
}

#[test]
fn a_file_has_the_first_path_and_a_path_one_file() {
    let mut walk = walk();
    let file = record(FILE, b"N");
    for (oid, path) in [(1, "a"), (1, "b"), (2, "a"), (3, "")] {
        walk.record(Oid::from_raw(oid), path, &file).unwrap();
    }
    assert_eq!(walk.found, BTreeMap::from([(Oid::from_raw(1), "a".to_owned())]));
}
