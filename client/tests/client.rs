//! The client against a server that the test plays: what mappings show, and when it says what.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

#[path = "client/fake.rs"]
mod fake;
#[path = "client/failures.rs"]
mod failures;
#[path = "client/order.rs"]
mod order;

use fake::{BLOCK, FILE, Fake, Plan, blocks, tid};
use revfs_client::{BlockSize, ClientError, FileHandle, FileId, Mapping};
use revfs_protocol::PinTo;
use std::sync::Arc;

/// What a mapping shows; the same by both ways to look.
fn shown(mapping: &Mapping) -> Vec<u8> {
    let seen = mapping.with_bytes(<[u8]>::to_vec).unwrap();
    let mut read = vec![0xee; mapping.len()];
    mapping.read(0, &mut read).unwrap();
    assert!(seen == read, "read and with_bytes differ");
    seen
}

fn map_blocks(file: &Arc<FileHandle>, count: usize) -> Mapping {
    file.map(0, (count * BLOCK) as u64).unwrap()
}

/// How the memory at an address may be used, as `r--s`.
fn access_of(address: *const u8) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let found = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|digits| usize::from_str_radix(digits, 16).unwrap());
        (start..end).contains(&address.addr()).then(|| rest[..4].to_owned())
    });
    found.unwrap_or_default()
}

#[test]
fn pinned_blocks_show_their_revision_and_all_others_head() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"abcd"));
    fake.write_rev(FILE, tid(5), &blocks(b"ABCD"));
    fake.plan(FILE, tid(10), Plan::size(4 * BLOCK).pin(1, 1, PinTo::Rev(tid(5))));
    let conn = fake.connect(tid(10));
    let file = conn.file_by_id(FILE).unwrap();
    assert_eq!((file.id(), file.size_at(), conn.at()), (FILE, 4 * BLOCK as u64, tid(10)));
    assert_eq!(file.block_size(), BlockSize::new(BLOCK as u64).unwrap());
    let mapping = map_blocks(&file, 4);
    assert_eq!(shown(&mapping), blocks(b"aBcd"), "a pin from before the mapping");
    fake.write_rev(FILE, tid(7), &blocks(b"__cd"));
    fake.pin(FILE, 2, 3, PinTo::Rev(tid(7)));
    fake.write_head(FILE, &blocks(b"axyz"));
    assert_eq!(shown(&mapping), blocks(b"aBcd"), "pins from after");
    let part = file.map(BLOCK as u64 + 7, 2 * BLOCK as u64).unwrap();
    assert_eq!(shown(&part), blocks(b"aBcd")[BLOCK + 7..3 * BLOCK + 7], "of any bytes");
    fake.pin(FILE, 1, 2, PinTo::Head);
    assert_eq!(shown(&mapping), blocks(b"axyd"));
    assert_eq!(fake.said()[..2], ["hello range size".to_owned(), format!("watch {FILE} @{}", tid(10))]);
}

#[test]
fn a_mapping_is_shared_cannot_be_written_and_lies_as_huge_pages_do() {
    const HUGE: usize = 2 << 20;
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"abcd"));
    fake.plan(FILE, tid(10), Plan::size(4 * BLOCK));
    let file = fake.connect(tid(10)).file_by_id(FILE).unwrap();
    for offset in [0, BLOCK, HUGE, HUGE + 3 * BLOCK + 5] {
        let mapping = file.map(offset as u64, BLOCK as u64).unwrap();
        assert_eq!(mapping.as_ptr().addr() % HUGE, offset % HUGE);
        assert_eq!(access_of(mapping.as_ptr()), if offset < HUGE { "r--s" } else { "r--p" });
    }
}

#[test]
fn beyond_the_end_there_are_zeros_whatever_head_has_grown_to() {
    let fake = Fake::new();
    let size = 2 * BLOCK + 100;
    fake.write_head(FILE, &blocks(b"abcdef"));
    fake.write_rev(FILE, tid(9), &blocks(b"ABC")[..size]);
    fake.plan(FILE, tid(10), Plan::size(size).pin(2, 99, PinTo::Rev(tid(9))));
    let file = fake.connect(tid(10)).file_by_id(FILE).unwrap();
    let mapping = map_blocks(&file, 600);
    let mut expected = blocks(b"ab");
    expected.extend_from_slice(&[b'C'; 100]);
    expected.resize(600 * BLOCK, 0);
    assert!(shown(&mapping) == expected);
    let beyond = file.map(1 << 40, BLOCK as u64).unwrap();
    assert_eq!(shown(&beyond), blocks(&[0]));
    let empty = file.map(5, 0).unwrap();
    assert!(empty.is_empty() && shown(&empty).is_empty());
}

#[test]
fn a_block_that_its_revision_does_not_have_is_zeros() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"abcd"));
    fake.write_rev(FILE, tid(3), &blocks(b"A"));
    fake.write_rev(FILE, tid(0), b"");
    fake.plan(
        FILE,
        tid(10),
        Plan::size(4 * BLOCK).pin(0, 1, PinTo::Rev(tid(3))).pin(3, 3, PinTo::Rev(tid(0))),
    );
    let file = fake.connect(tid(10)).file_by_id(FILE).unwrap();
    assert_eq!(shown(&map_blocks(&file, 4)), blocks(b"A\0c\0"));
}

#[test]
fn resync_moves_all_mappings_and_their_ends() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"abcdef"));
    fake.write_rev(FILE, tid(8), &blocks(b"A"));
    fake.plan(FILE, tid(10), Plan::size(2 * BLOCK).pin(0, 0, PinTo::Rev(tid(8))));
    fake.plan(FILE, tid(20), Plan::size(5 * BLOCK).pin(0, 0, PinTo::Head).pin(3, 3, PinTo::Rev(tid(15))));
    fake.write_rev(FILE, tid(15), &blocks(b"___D"));
    fake.plan(FILE, tid(30), Plan::size(BLOCK + 1));
    let conn = fake.connect(tid(10));
    let file = conn.file_by_id(FILE).unwrap();
    let mapping = map_blocks(&file, 6);
    let beyond = file.map(4 * BLOCK as u64, 2 * BLOCK as u64).unwrap();
    assert_eq!(shown(&mapping), blocks(b"Ab\0\0\0\0"));
    assert_eq!(shown(&beyond), blocks(b"\0\0"));
    conn.resync(tid(20)).unwrap();
    assert_eq!((conn.at(), file.size_at()), (tid(20), 5 * BLOCK as u64));
    assert_eq!(shown(&mapping), blocks(b"abcDe\0"), "it has grown, and a pin came with it");
    assert_eq!(shown(&beyond), blocks(b"e\0"), "also one that began beyond the old end");
    fake.write_head(FILE, &blocks(b"ab")[..BLOCK + 1]);
    conn.resync(tid(30)).unwrap();
    assert_eq!(shown(&mapping)[BLOCK..BLOCK + 2], *b"b\0", "it has shrunk");
    assert_eq!(shown(&mapping)[BLOCK + 1..], [0].repeat(5 * BLOCK - 1));
    conn.resync(tid(30)).unwrap();
    let back = conn.resync(tid(29)).unwrap_err();
    assert_eq!(back, ClientError::GoingBack { at: tid(29), current: tid(30) });
    assert_eq!(fake.said().iter().filter(|said| said.starts_with("watch")).count(), 3, "neither was asked");
}

#[test]
fn a_server_without_hello_is_served_too() {
    let fake = Fake::that_knows_hello(false);
    fake.write_head(FILE, &blocks(b"abcd"));
    fake.write_rev(FILE, tid(10), &blocks(b"ABC"));
    fake.plan(FILE, tid(10), Plan::size(0));
    let file = fake.connect(tid(10)).file_by_id(FILE).unwrap();
    assert_eq!(file.size_at(), 3 * BLOCK as u64, "the size is that of the file as of the view, not of head");
    assert_eq!(shown(&map_blocks(&file, 4)), blocks(b"abc\0"));
}

#[test]
fn a_name_leads_to_the_file_that_has_it() {
    let fake = Fake::new();
    let folder = fake.path().join("head/bigfile/sub");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("named"), blocks(b"n")).unwrap();
    let conn = fake.connect(tid(10));
    for name in ["", ".", "..", "../by-id/x", "/sub/named", "sub//named", "sub/./named", "sub/named/", "a\0b"]
    {
        let error = conn.file(name.as_bytes()).unwrap_err();
        assert_eq!(error, ClientError::BadName { name: name.to_owned() });
    }
    assert!(matches!(conn.file(b"sub/none").unwrap_err(), ClientError::Path { .. }));
    assert!(matches!(conn.file(b"sub/named").unwrap_err(), ClientError::NoIdentity { .. }));
    let id = FILE.to_string();
    let file = std::fs::File::open(folder.join("named")).unwrap();
    let attribute =
        rustix::fs::fsetxattr(&file, "user.revfs.file", id.as_bytes(), rustix::fs::XattrFlags::empty());
    if let Err(errno) = attribute {
        eprintln!("the rest is left out: no extended attributes here: {errno}");
        return;
    }
    fake.plan(FILE, tid(10), Plan::size(BLOCK));
    let file = conn.file(b"sub/named").unwrap();
    assert_eq!((file.id(), shown(&map_blocks(&file, 1))), (FILE, blocks(b"n")));
}

#[test]
fn the_newest_view_is_that_of_head_at() {
    let fake = Fake::new();
    fake.set_head(tid(77));
    let conn = fake.connect_at(None);
    assert_eq!(conn.at(), tid(77));
    std::fs::write(fake.path().join("head/at"), "no tid").unwrap();
    let (link, _server) = std::os::unix::net::UnixStream::pair().unwrap();
    let error = revfs_client::Conn::open_with_link(fake.path(), link.into(), None).unwrap_err();
    assert_eq!(error, ClientError::NotAMount { mount: fake.path().to_owned() });
    let error = revfs_client::Conn::open(&fake.path().join("none"), None).unwrap_err();
    assert!(matches!(error, ClientError::Path { .. }));
}

#[test]
fn one_file_has_one_handle_until_it_is_closed() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"ab"));
    fake.plan(FILE, tid(10), Plan::size(2 * BLOCK));
    let conn = fake.connect(tid(10));
    let file = conn.file_by_id(FILE).unwrap();
    let again = conn.file_by_id(FILE).unwrap();
    assert!(Arc::ptr_eq(&file, &again));
    let mapping = map_blocks(&file, 2);
    file.close().unwrap();
    file.close().unwrap();
    let closed = ClientError::FileClosed { file: FILE };
    assert_eq!(again.map(0, 1).unwrap_err(), closed);
    assert_eq!(mapping.with_bytes(|_| ()).unwrap_err(), closed);
    assert_eq!(mapping.read(0, &mut [0]).unwrap_err(), closed);
    assert_eq!(access_of(mapping.as_ptr()), "---p", "its addresses fault");
    let new = conn.file_by_id(FILE).unwrap();
    assert_eq!(shown(&map_blocks(&new, 2)), blocks(b"ab"));
    assert_eq!(access_of(mapping.as_ptr()), "---p", "old mappings stay dead");
    drop((file, again, mapping));
    assert_eq!(
        shown(&map_blocks(&new, 2)),
        blocks(b"ab"),
        "what is left of the old one does not end the new one"
    );
    drop(new);
    conn.file_by_id(FILE).unwrap();
    let [watch, unwatch] = [format!("watch {FILE} @{}", tid(10)), format!("watch {FILE} -")];
    let said = fake.said();
    assert_eq!(said[1..6], [&watch, &unwatch, &watch, &unwatch, &watch].map(String::clone));
}

#[test]
fn reads_stay_within_the_mapping() {
    let fake = Fake::new();
    fake.write_head(FILE, &blocks(b"ab"));
    fake.plan(FILE, tid(10), Plan::size(2 * BLOCK));
    let file = fake.connect(tid(10)).file_by_id(FILE).unwrap();
    let mapping = file.map(BLOCK as u64 - 1, 3).unwrap();
    let mut two = [0; 2];
    mapping.read(0, &mut two).unwrap();
    assert_eq!(&two, b"ab");
    for (offset, end) in [(2, 4), (u64::MAX, u64::MAX)] {
        let error = mapping.read(offset, &mut two).unwrap_err();
        assert_eq!(error, ClientError::OutsideMapping { offset, end, len: 3 });
    }
    let error = file.map(u64::MAX - 10, 100).unwrap_err();
    assert!(matches!(error, ClientError::Map { .. }), "{error}");
    let error = file.map(0, 1 << 62).unwrap_err();
    assert!(matches!(error, ClientError::Map { .. }), "{error}");
}

#[test]
fn two_files_move_together() {
    let other = FileId::from_raw(7);
    let fake = Fake::new();
    for (file, text) in [(FILE, b"ab"), (other, b"xy")] {
        fake.write_head(file, &blocks(text));
        fake.write_rev(file, tid(10), &blocks(&text.to_ascii_uppercase()));
        fake.plan(file, tid(10), Plan::size(2 * BLOCK).pin(0, 1, PinTo::Rev(tid(10))));
        fake.plan(file, tid(20), Plan::size(2 * BLOCK).pin(0, 1, PinTo::Head));
    }
    let conn = fake.connect(tid(10));
    let mappings = [FILE, other].map(|file| map_blocks(&conn.file_by_id(file).unwrap(), 2));
    assert_eq!(mappings.each_ref().map(shown), [blocks(b"AB"), blocks(b"XY")]);
    conn.resync(tid(20)).unwrap();
    assert_eq!(mappings.each_ref().map(shown), [blocks(b"ab"), blocks(b"xy")]);
}
