//! Databases that are none, or that hold what cannot be served: a clear error for that object, and all else is served.
//!
//! Invariant: each error names the object, its state and where its record is, on stderr or in the log of the server.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "import/hand.rs"]
mod hand;
#[path = "common/live.rs"]
mod live;
#[path = "filestorage/maker.rs"]
mod maker;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt;

use hand::{block, file, record, reference, root, tree};
use live::{Live, Place, no_fuse, wait_until};
use maker::{Maker, Write};
use rustix::io::Errno;

/// Tid of all that is made here, but for the last record.
const TID: u64 = 0x10;
const HUGE_TID: u64 = 0x20;
/// One more than is read of a record.
const HUGE_BYTES: u64 = (256 << 20) + 1;
const BLOCK: usize = 4096;

fn name(oid: u64) -> String {
    format!("{oid:016x}")
}

/// A thing of a class that nobody knows.
fn thing(oid: u64) -> (u64, Write) {
    (oid, record("app.model Thing", b"}."))
}

/// A file, a tree with one block, and what this block is.
fn with_block(oid: u64, block: Option<(u64, Write)>) -> Vec<(u64, Write)> {
    [file(oid, BLOCK as u32, oid + 1), tree(oid + 1, &[(0, oid + 2)])].into_iter().chain(block).collect()
}

/// Files that cannot be served, and what is said of each: when it is listed, or only when it is read.
const UNLISTED: [(u64, &str); 6] = [
    (0x10, "object 0000000000000011 @0000000000000010 is a object of another class"),
    (
        0x20,
        "object 0000000000000021 @0000000000000010: a value of this LOBTree is a reference to another database",
    ),
    (
        0x30,
        "object 0000000000000030 @0000000000000010: the tree of blocks of this ZBigFile is a weak reference",
    ),
    (0x70, "file 0000000000000070 @0000000000000010 has blocks of 3000 bytes"),
    (0x80, "object 0000000000000080 @0000000000000010: the record is no pickle"),
    (0xa0, "object 00000000000000a1 does not exist at @"),
];
const UNREAD: [(u64, &str); 4] = [
    (0x40, "it has over 256 MiB of data"),
    (0x50, "object 0000000000000053 @0000000000000010: the record is no pickle"),
    (0x60, "object 0000000000000062 @0000000000000020: it does not exist, and a file has it as a block"),
    (0x90, "object 0000000000000092 @0000000000000010 is a ZBigFile"),
];

/// Of these nothing is wrong but that a block is not there.
const NO_RECORD: u64 = 0x60;

/// A database with a file that is right, and one for each thing that can be wrong.
fn make(place: &Place) {
    let mut writes = vec![root(), thing(0x99)];
    writes.extend(with_block(1, Some(block(3, b"right"))));
    writes.extend([file(0x10, BLOCK as u32, 0x11), thing(0x11)]);
    let foreign = b"](U\x01nU\x02dbC\x08\0\0\0\0\0\0\0\x07\x86eQ";
    let leaf = [b"(K\0", &foreign[..], b"t\x85\x85\x85"].concat();
    writes.extend([file(0x20, BLOCK as u32, 0x21), (0x21, record("BTrees.LOBTree LOBTree", &leaf))]);
    let weak = b"M\0\x10](U\x01wC\x08\0\0\0\0\0\0\0\x07\x85eQ\x86";
    writes.push((0x30, record("wendelin.bigfile.file_zodb ZBigFile", weak)));
    writes.extend(with_block(0x40, Some(block(0x42, b"small"))));
    writes.extend([
        file(0x50, BLOCK as u32, 0x51),
        tree(0x51, &[(0, 0x52), (1, 0x53)]),
        block(0x52, b"fine"),
    ]);
    writes.push((0x53, record("wendelin.bigfile.file_zodb ZBlk0", b"\xff")));
    writes.extend(with_block(0x60, None));
    writes.extend([file(0x70, 3000, 0x71), tree(0x71, &[])]);
    writes.push((0x80, record("wendelin.bigfile.file_zodb ZBigFile", b"\xff")));
    writes.extend(with_block(0x90, Some(file(0x92, BLOCK as u32, 0x91))));
    writes.push(file(0xa0, BLOCK as u32, 0xa1));
    let mut maker = Maker::new();
    maker.commit(TID, &writes);
    let previous = maker.newest[&0x42];
    let path = place.path("Data.fs");
    fs::write(&path, &maker.bytes).unwrap();
    // A record that is nearly all hole of its file, so that it costs nothing.
    let mut output = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let start = maker.end();
    let len = 23 + 42 + HUGE_BYTES;
    let mut header = [HUGE_TID.to_be_bytes(), len.to_be_bytes()].concat();
    header.extend_from_slice(b" \0\0\0\0\0\0");
    for field in [0x42, HUGE_TID, previous, start] {
        header.extend_from_slice(&field.to_be_bytes());
    }
    header.extend_from_slice(&[0, 0]);
    header.extend_from_slice(&HUGE_BYTES.to_be_bytes());
    let Write::Data(begin) = block(0x42, b"").1 else { panic!() };
    header.extend_from_slice(&begin);
    output.write_all(&header).unwrap();
    output.set_len(start + len).unwrap();
    // Opened to append, so that it goes behind the hole.
    output.write_all(&len.to_be_bytes()).unwrap();
}

#[test]
fn each_bad_object_is_told_and_all_else_is_served() {
    let place = Place::empty();
    make(&place);
    let listed = place.run(&["ls", "Data.fs"]);
    assert_eq!(listed.code(), 7, "{}", listed.err);
    let out = listed.line();
    let there: Vec<&str> = out.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(there, [1, 0x40, 0x50, 0x60, 0x90, 0x92].map(name));
    for (oid, text) in UNLISTED {
        assert!(listed.err.contains(text), "{text}: {}", listed.err);
        place.fails(&["cat", "Data.fs", &name(oid)], 7, text);
    }
    // Where the record is, unless there is none.
    assert_eq!(listed.err.matches("its record is at byte ").count(), UNLISTED.len(), "{}", listed.err);
    assert_eq!(place.bytes(&["cat", "Data.fs", &name(1)])[..6], *b"right\0");
    for (oid, text) in UNREAD {
        let ended = place.run(&["cat", "Data.fs", &name(oid)]);
        assert_eq!(ended.code(), 7, "{oid:x}: {}", ended.err);
        assert!(ended.err.contains(text), "{text}: {}", ended.err);
        assert!(ended.err.contains("byte ") || oid == NO_RECORD, "{}", ended.err);
    }
    // The other block of the same file; and what was there before the record that is too large.
    assert_eq!(place.bytes(&["cat", "Data.fs", &name(0x50), "--range", "..4K"])[..5], *b"fine\0");
    assert_eq!(place.bytes(&["cat", "Data.fs", &name(0x40), "--at", &name(TID)])[..6], *b"small\0");
    // What is no file.
    for oid in [0, 2, 3, 0x99, 0x7777] {
        place.fails(&["cat", "Data.fs", &name(oid)], 3, "does not exist at @");
    }
    for command in ["log", "tags"] {
        place.ok(&[command, "Data.fs"]);
    }
    assert_eq!(place.run(&["du", "Data.fs"]).code(), 7);
    let compared = place.run(&["diff", "Data.fs", &name(TID), "head"]);
    assert_eq!(compared.code(), 7, "{}", compared.err);
    assert!(compared.err.contains(UNLISTED[0].1) && compared.err.contains(UNREAD[0].1), "{}", compared.err);
    let verified = place.run(&["verify", "Data.fs"]);
    assert_eq!(verified.code(), 7);
    for (_, text) in UNREAD {
        assert!(verified.line().contains(text), "{text}: {}", verified.line());
    }
}

/// What reading a file of a mount fails with.
fn failure(live: &Live, oid: u64) -> Option<Errno> {
    let read = fs::read(live.path(&format!("head/bigfile/{}", name(oid))));
    read.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn a_mount_fails_what_is_bad_and_serves_all_else() {
    if no_fuse("a_mount_fails_what_is_bad") {
        return;
    }
    let place = Place::empty();
    make(&place);
    let live = place.mount_store("Data.fs", "m", &[]);
    let listed: BTreeSet<String> = fs::read_dir(live.path("head/bigfile"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let all = [1, 0x92].into_iter().chain(UNLISTED.iter().chain(&UNREAD).map(|(oid, _)| *oid));
    assert_eq!(listed, all.map(name).collect());
    let log = || fs::read_to_string(place.path("server.log")).unwrap();
    for (oid, text) in UNLISTED.iter().chain(&UNREAD) {
        assert_eq!(failure(&live, *oid), Some(Errno::IO), "{oid:x}");
        let is_it = |line: &str| line.contains(text) && (line.contains("byte ") || *oid == NO_RECORD);
        wait_until(text, || log().lines().any(is_it));
    }
    for oid in [0, 2, 0x99, 0x7777] {
        assert_eq!(failure(&live, oid), Some(Errno::NOENT), "{oid:x}");
    }
    assert_eq!(fs::read(live.path(&format!("head/bigfile/{}", name(1)))).unwrap()[..6], *b"right\0");
    let half = fs::File::open(live.path(&format!("head/bigfile/{}", name(0x50)))).unwrap();
    let mut bytes = [0; 5];
    half.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"fine\0");
    drop(half);
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn what_is_no_database_is_refused() {
    let place = Place::empty();
    for (content, code) in
        [(&b""[..], 6), (b"FS", 6), (b"FS3", 6), (b"SQLite format 3\0", 6), (b"FS20more", 6)]
    {
        fs::write(place.path("Data.fs"), content).unwrap();
        for command in
            [&["ls", "Data.fs"][..], &["log", "Data.fs"], &["verify", "Data.fs"], &["mount", "Data.fs", "m"]]
        {
            fs::create_dir_all(place.path("m")).unwrap();
            place.fails(command, code, "Data.fs: is a file, and not a store");
        }
    }
    place.fails(&["ls", "neo://cluster@host"], 6, "NEO");
    place.expect_nothing_left();
}

#[test]
fn an_empty_database_has_nothing_in_it() {
    let place = Place::empty();
    fs::write(place.path("Data.fs"), b"FS30").unwrap();
    let listed = place.run(&["ls", "Data.fs"]);
    assert_eq!((listed.code(), listed.line().as_str()), (0, ""));
    assert!(listed.err.contains("has no ZBigFile at @0000000000000000"), "{}", listed.err);
    assert_eq!(place.ok(&["log", "Data.fs"]), "");
    assert_eq!(place.ok(&["tags", "Data.fs"]), "");
    assert!(place.ok(&["verify", "Data.fs"]).starts_with("whole: 0 transactions and 0 records, 0 files"));
    place.ok(&["diff", "Data.fs", "head", "head"]);
    place.fails(&["cat", "Data.fs", &name(1)], 3, "does not exist");
    place.ok(&["init", "s"]);
    assert!(place.ok(&["import", "Data.fs", "s", "--verify"]).starts_with("imported 0 commits"));
    if no_fuse("an_empty_database_has_nothing_in_it") {
        return;
    }
    let live = place.mount_store("Data.fs", "m", &[]);
    assert_eq!(live.at(), "0000000000000000");
    assert_eq!(fs::read_dir(live.path("head/bigfile")).unwrap().count(), 0);
    // Until something is in it.
    let mut maker = Maker::new();
    maker.commit(TID, &[root()]);
    maker.commit(HUGE_TID, &with_block(1, Some(block(3, b"right"))));
    let more = fs::OpenOptions::new().append(true).open(place.path("Data.fs"));
    more.unwrap().write_all(&maker.bytes[4..]).unwrap();
    live.wait(&name(HUGE_TID));
    assert_eq!(fs::read(live.path(&format!("head/bigfile/{}", name(1)))).unwrap()[..6], *b"right\0");
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn a_database_without_files_and_one_that_is_written_elsewhere() {
    let place = Place::empty();
    let mut maker = Maker::new();
    maker.commit(TID, &[root(), thing(0x99)]);
    fs::write(place.path("Data.fs"), &maker.bytes).unwrap();
    let listed = place.run(&["ls", "Data.fs"]);
    assert_eq!((listed.code(), listed.line().as_str()), (0, ""));
    assert!(listed.err.contains("has no ZBigFile at @0000000000000010"), "{}", listed.err);
    fs::write(place.path("f"), b"x").unwrap();
    for command in [
        &["commit", "Data.fs", "a=f"][..],
        &["rm", "Data.fs", "a"],
        &["mv", "Data.fs", "a", "b"],
        &["tag", "Data.fs", "t"],
        &["tag", "Data.fs", "t", "--delete"],
        &["init", "Data.fs"],
    ] {
        place.fails(command, 6, "Data.fs: is a ZODB database, which is written through ZODB");
    }
    assert_eq!(fs::read(place.path("Data.fs")).unwrap(), maker.bytes);
}

#[test]
fn files_are_found_by_the_keys_that_lead_to_them() {
    let place = Place::empty();
    let mut maker = Maker::new();
    let mapping = |items: &[(&str, u64, &str)]| {
        let items: Vec<u8> = (items.iter())
            .flat_map(|(key, oid, class)| {
                let key = [b"X", &(key.len() as u32).to_le_bytes()[..], key.as_bytes()].concat();
                [key, reference(*oid, class)].concat()
            })
            .collect();
        record("persistent.mapping PersistentMapping", &[b"}X\x04\0\0\0data}(", &items[..], b"us"].concat())
    };
    let (class, mappings) = ("wendelin.bigfile.file_zodb ZBigFile", "persistent.mapping PersistentMapping");
    let mut writes = vec![(0, mapping(&[("one", 1, class), ("more", 8, mappings)]))];
    writes.push((8, mapping(&[("two", 0x10, class), ("up", 0, mappings), ("again", 1, class)])));
    writes.extend(with_block(1, Some(block(3, b"first"))));
    writes.extend(with_block(0x10, Some(block(0x12, b"second"))));
    writes.extend(with_block(0x20, Some(block(0x22, b"nowhere"))));
    maker.commit(TID, &writes);
    maker.commit(HUGE_TID, &[(0, mapping(&[("renamed", 1, class)]))]);
    fs::write(place.path("Data.fs"), &maker.bytes).unwrap();
    let paths = |at: &str| -> Vec<(String, Option<String>)> {
        let text = place.ok(&["ls", "Data.fs", at, "--json"]);
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        lines.map(|line| (text(&line["name"]).unwrap(), text(&line["root_path"]))).collect()
    };
    let path = |path: &str| Some(path.to_owned());
    let expected = [(name(1), path("one")), (name(0x10), path("more/two")), (name(0x20), None)];
    assert_eq!(paths(&name(TID)), expected);
    assert_eq!(paths("head"), [(name(1), path("renamed")), (name(0x10), None), (name(0x20), None)]);
    let table = place.ok(&["ls", "Data.fs", &name(TID)]);
    assert!(table.lines().next().unwrap().ends_with("NAME              ROOT PATH"), "{table}");
    assert!(table.lines().last().unwrap().ends_with(&format!("{}  -", name(0x20))), "{table}");
    // By that path, as of the state that is asked for.
    assert_eq!(place.bytes(&["cat", "Data.fs", "more/two", "--at", &name(TID)])[..7], *b"second\0");
    assert_eq!(place.bytes(&["cat", "Data.fs", "renamed"])[..6], *b"first\0");
    place.fails(&["cat", "Data.fs", "one"], 3, "one: does not exist at @");
    place.fails(&["cat", "Data.fs", "more"], 3, "more: does not exist at @");
    assert_eq!(place.ok(&["log", "Data.fs", "renamed", "--json"]).lines().count(), 1);
    assert!(place.ok(&["du", "Data.fs", "renamed"]).contains(&name(1)));
}

#[test]
fn a_packed_database_is_told_as_far_as_it_goes() {
    let place = Place::new();
    let mut maker = Maker::new();
    maker.append(TID, b'p', &[vec![root()], with_block(1, Some(block(3, b"old")))].concat());
    maker.commit(HUGE_TID, &[block(3, b"new")]);
    maker.commit(0x30, &[file(1, 8192, 2)]);
    fs::write(place.path("Data.fs"), &maker.bytes).unwrap();
    let logged = place.run(&["log", "Data.fs"]);
    let out = logged.line();
    assert_eq!(logged.code(), 0, "{}", logged.err);
    assert!(out.contains(&name(0x30)) && out.contains(&name(HUGE_TID)) && !out.contains(&name(TID)), "{out}");
    assert!(logged.err.contains("note: what was committed up to @0000000000000010 was packed away"));
    // Not as many blocks as there could be.
    assert!(out.contains("1 block of 8K") || out.contains("2 blocks of 8K"), "{out}");
    assert_eq!(place.run(&["log", "Data.fs", "--limit", "1"]).err, "");
    assert_eq!(place.ok(&["log", "Data.fs", &name(1), "--json"]).lines().count(), 2);
    place.fails(&["ls", "Data.fs", &name(TID - 1)], 3, "was packed away from");
    assert!(place.ok(&["ls", "Data.fs", &name(TID)]).contains(&name(1)));
    assert!(!place.ok(&["du", "Data.fs"]).contains("on disk"));
    // The state that was left whole is one commit, and what came after follows.
    place.ok(&["import", "Data.fs", "s", "--verify"]);
    let log = place.ok(&["log", "s"]);
    assert!(log.contains("the oldest state that a pack of the source left whole"), "{log}");
    for (at, text) in [(TID, b"old"), (HUGE_TID, b"new"), (0x30, b"new")] {
        assert_eq!(place.bytes(&["cat", "s", &name(1), "--at", &name(at)])[..3], *text);
    }
}
