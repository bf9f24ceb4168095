//! The mounted tree, from outside: names, bytes, attributes, errors, and head as it moves.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::mount::TestMount;
use common::store::{BLOCK, Edit, ScriptedStore};
use live::no_fuse;
use revfs::store::Store;
use revfs_protocol::Tid;
use rustix::io::Errno;

mod common {
    pub mod mount;
    pub mod store;
}
#[path = "common/live.rs"]
mod live;

/// 2020-05-05T10:00 and on, one second apart.
fn tid(second: u64) -> u64 {
    Tid::from_unix_ns((1_588_672_800 + second) * 1_000_000_000).raw()
}

fn hex(tid: u64) -> String {
    format!("{tid:016x}")
}

fn mounted(commits: &[(u64, Vec<Edit>)]) -> (Arc<ScriptedStore>, TestMount) {
    let store = ScriptedStore::new();
    for (tid, edits) in commits {
        store.commit(*tid, edits);
    }
    let _ = store.refresh();
    let mount = TestMount::new(Arc::clone(&store) as Arc<dyn Store>);
    (store, mount)
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_mul(31).wrapping_add(i >> 8).wrapping_add(seed) % 251) as u8)
        .collect()
}

fn blocks(byte: u8, count: u64) -> Vec<u8> {
    vec![byte; usize::try_from(count * BLOCK).unwrap()]
}

/// Names in a directory, with what the listing says that they are.
fn names(dir: &Path) -> BTreeMap<String, char> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let kind = |entry: &fs::DirEntry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => 'd',
        kind if kind.is_symlink() => 'l',
        kind if kind.is_file() && !kind.is_fifo() => 'f',
        _ => '?',
    };
    entries.map(|entry| (entry.file_name().into_string().unwrap(), kind(&entry))).collect()
}

fn expect_names(dir: &Path, expected: &[(&str, char)]) {
    let expected: BTreeMap<String, char> =
        expected.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
    assert_eq!(names(dir), expected, "{}", dir.display());
}

fn errno_of<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_io_error(&result.unwrap_err()).unwrap()
}

#[test]
fn the_tree_has_exactly_the_names_of_the_product() {
    if no_fuse("the_tree_has_exactly_the_names_of_the_product") {
        return;
    }
    let tag = Edit::Tag("release-1", Tid::from_raw(tid(0)));
    let (store, mount) = mounted(&[
        (tid(0), vec![Edit::Put("a", pattern(1, 10)), Edit::Put("dir/sub/b", pattern(2, 5000))]),
        (tid(9), vec![Edit::Write("a", 0, vec![9]), tag]),
    ]);
    let file = store.file_id("a");
    expect_names(mount.root(), &[("head", 'd'), (".revfs", 'd'), ("@release-1", 'l')]);
    expect_names(&mount.path("head"), &[("at", 'f'), ("watch", 'f'), ("bigfile", 'd'), ("by-id", 'd')]);
    expect_names(&mount.path("head/bigfile"), &[("a", 'f'), ("dir", 'd')]);
    expect_names(&mount.path("head/bigfile/dir/sub"), &[("b", 'f')]);
    expect_names(&mount.path("head/by-id"), &[]);
    let face = [
        ("store", 'f'),
        ("version", 'f'),
        ("pid", 'f'),
        ("stats", 'f'),
        ("metrics", 'f'),
        ("links", 'f'),
        ("log", 'f'),
        ("head", 'f'),
    ];
    expect_names(&mount.path(".revfs"), &face);
    let rev = format!("@{}", hex(tid(0)));
    expect_names(&mount.path(&rev), &[("bigfile", 'd'), ("by-id", 'd')]);
    expect_names(&mount.path(&rev).join("bigfile"), &[("a", 'f'), ("dir", 'd')]);

    assert_eq!(fs::read(mount.path("head/at")).unwrap(), hex(tid(9)).as_bytes());
    assert_eq!(fs::metadata(mount.path("head/at")).unwrap().len(), 16);
    assert_eq!(fs::read_to_string(mount.path(".revfs/store")).unwrap(), "scripted,store\n");
    assert_eq!(fs::read_to_string(mount.path(".revfs/pid")).unwrap(), format!("{}\n", std::process::id()));
    let stats = fs::read_to_string(mount.path(".revfs/stats")).unwrap();
    assert!(stats.starts_with(&format!("head {}\nat {0}\n", hex(tid(9)))), "{stats}");
    // By id, under head and under a revision.
    assert_eq!(fs::read(mount.path(&format!("head/by-id/{file}"))).unwrap()[0], 9);
    assert_eq!(fs::read(mount.path(&rev).join(format!("by-id/{file}"))).unwrap(), pattern(1, 10));
    // A revision at which nothing was committed, one between, and the empty state.
    let between = mount.path(&format!("@{}/bigfile/a", hex(tid(5))));
    assert_eq!(fs::read(between).unwrap(), pattern(1, 10));
    expect_names(&mount.path("@0000000000000000/bigfile"), &[]);
    expect_names(&mount.path(&format!("@{}/bigfile", hex(1))), &[]);
}

#[test]
fn at_names_are_links_and_what_means_nothing_has_the_right_errno() {
    if no_fuse("at_names_are_links_and_what_means_nothing_has_the_right_errno") {
        return;
    }
    let tag = Edit::Tag("release-1", Tid::from_raw(tid(0)));
    let (store, mount) = mounted(&[(tid(0), vec![Edit::Put("a", vec![1])]), (tid(60), vec![tag])]);
    let link =
        |name: &str| fs::read_link(mount.path(name)).map(|to| to.into_os_string().into_string().unwrap());
    assert_eq!(link("@release-1").unwrap(), format!("@{}", hex(tid(0))));
    assert_eq!(link("@2020-05-05T10:00").unwrap(), format!("@{}", hex(tid(0))));
    assert_eq!(link("@1999").unwrap(), "@0000000000000000");
    assert_eq!(fs::read(mount.path("@release-1/bigfile/a")).unwrap(), [1]);
    let error = |name: &str| errno_of(fs::symlink_metadata(mount.path(name)));
    assert_eq!(error("@unknown"), Errno::NOENT);
    assert_eq!(error("@2500-01-01"), Errno::NOENT);
    assert_eq!(error(&format!("@{}", hex(tid(61)))), Errno::NOENT);
    for malformed in ["@", "@2026-13", "@-5y", "@XYZ@", "@03CAA84275FC1166", "@@head"] {
        assert_eq!(error(malformed), Errno::INVAL, "{malformed}");
    }
    for missing in ["x", "head/x", "head/bigfile/x", "head/by-id/x", "head/bigfile/@head", ".revfs/x"] {
        assert_eq!(error(missing), Errno::NOENT, "{missing}");
    }
    assert_eq!(error(&format!("head/bigfile/{}", "x".repeat(256))), Errno::NAMETOOLONG);
    assert_eq!(error("head/bigfile/a/b"), Errno::NOTDIR);

    // What was not there is not remembered, and a moved tag is followed.
    store.commit(tid(61), &[Edit::Tag("release-1", Tid::from_raw(tid(60))), Edit::Tag("unknown", Tid::ZERO)]);
    mount.wait(tid(61));
    assert_eq!(link("@release-1").unwrap(), format!("@{}", hex(tid(60))));
    assert_eq!(link("@unknown").unwrap(), "@0000000000000000");
    assert!(mount.path(&format!("@{}", hex(tid(61)))).is_dir());
    assert_eq!(names(mount.root()).len(), 4);
}

#[test]
fn bytes_and_attributes_are_those_of_the_revision() {
    if no_fuse("bytes_and_attributes_are_those_of_the_revision") {
        return;
    }
    let whole = pattern(3, 300_001);
    let (store, mount) = mounted(&[
        (tid(0), vec![Edit::Put("a", whole.clone()), Edit::Put("sparse", vec![1])]),
        (tid(1), vec![Edit::Write("a", 100_000, blocks(7, 3)), Edit::Size("sparse", 0)]),
        (tid(2), vec![Edit::Size("sparse", 1 << 40), Edit::Write("sparse", 1 << 30, blocks(5, 1))]),
    ]);
    let mut newer = whole.clone();
    newer[100_000..100_000 + 3 * BLOCK as usize].fill(7);
    for slow in [false, true] {
        store.slow.store(slow, Ordering::SeqCst);
        let old = mount.path(&format!("@{}/bigfile/a", hex(tid(0))));
        assert_eq!(fs::read(if slow { mount.path("head/bigfile/a") } else { old }).unwrap(), {
            if slow { newer.clone() } else { whole.clone() }
        });
    }
    let file = fs::File::open(mount.path("head/bigfile/a")).unwrap();
    let mut part = vec![0; 5000];
    assert_eq!(file.read_at(&mut part, 298_000).unwrap(), 2001);
    assert_eq!(part[..2001], newer[298_000..]);
    assert_eq!(file.read_at(&mut part, 1 << 50).unwrap(), 0);

    let meta = file.metadata().unwrap();
    assert_eq!((meta.size(), meta.blksize(), meta.nlink()), (300_001, BLOCK, 1));
    assert_eq!((meta.mtime(), meta.ctime(), meta.mtime_nsec()), (1_588_672_801, 1_588_672_801, 0));
    assert_eq!(meta.permissions().mode() & 0o7777, 0o444);
    assert_eq!(fs::metadata(mount.path("head")).unwrap().permissions().mode() & 0o7777, 0o555);

    let sparse = fs::File::open(mount.path("head/bigfile/sparse")).unwrap();
    assert_eq!((sparse.metadata().unwrap().size(), sparse.metadata().unwrap().blocks()), (1 << 40, 8));
    let seek = |from| rustix::fs::seek(&sparse, from);
    use rustix::fs::SeekFrom;
    assert_eq!(seek(SeekFrom::Data(0)), Ok(1 << 30));
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek(SeekFrom::Hole(1 << 30)), Ok((1 << 30) + BLOCK));
    assert_eq!(seek(SeekFrom::Data((1 << 30) + BLOCK)), Err(Errno::NXIO));
    assert_eq!(seek(SeekFrom::Hole(1 << 40)), Err(Errno::NXIO));
}

#[test]
fn extended_attributes_name_the_file_and_its_revision() {
    if no_fuse("extended_attributes_name_the_file_and_its_revision") {
        return;
    }
    let (store, mount) = mounted(&[(tid(0), vec![Edit::Put("a", vec![1])]), (tid(3), vec![])]);
    let path = mount.path("head/bigfile/a");
    let get = |name: &str, len: usize| {
        let mut value = vec![0u8; len];
        rustix::fs::getxattr(&path, name, &mut value[..]).map(|len| {
            value.truncate(len);
            String::from_utf8(value).unwrap()
        })
    };
    assert_eq!(get("user.revfs.tid", 16), Ok(hex(tid(0))));
    assert_eq!(get("user.revfs.file", 100), Ok(store.file_id("a").to_string()));
    assert_eq!(get("user.revfs.tid", 15), Err(Errno::RANGE));
    assert_eq!(get("user.other", 15), Err(Errno::NODATA));
    let mut list = [0u8; 64];
    let len = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    assert_eq!(&list[..len], b"user.revfs.tid\0user.revfs.file\0");
}

#[test]
fn an_extended_attribute_that_cannot_be_read_is_an_error_and_not_absent() {
    if no_fuse("an_extended_attribute_that_cannot_be_read_is_an_error_and_not_absent") {
        return;
    }
    let (store, mount) = mounted(&[(tid(0), vec![Edit::Put("a", vec![1])])]);
    let file = fs::File::open(mount.path("head/bigfile/a")).unwrap();
    file.metadata().unwrap(); // the kernel has its attributes, and asks for nothing but the extended one
    store.commit(tid(1), &[]);
    mount.wait(tid(1));
    store.unreadable.store(true, Ordering::SeqCst);
    let mut value = [0u8; 16];
    assert_eq!(rustix::fs::fgetxattr(&file, "user.revfs.tid", &mut value[..]), Err(Errno::IO));
    assert_eq!(rustix::fs::flistxattr(&file, &mut value[..]), Err(Errno::IO));
    assert_eq!(rustix::fs::fgetxattr(&file, "user.other", &mut value[..]), Err(Errno::NODATA));
    let head = fs::File::open(mount.path("head")).unwrap();
    assert_eq!(rustix::fs::fgetxattr(&head, "user.revfs.tid", &mut value[..]), Err(Errno::NODATA));
    assert_eq!(rustix::fs::flistxattr(&head, &mut value[..]), Ok(0));
}

#[test]
fn nothing_can_be_changed() {
    if no_fuse("nothing_can_be_changed") {
        return;
    }
    let (_store, mount) = mounted(&[(tid(0), vec![Edit::Put("a", vec![1])])]);
    let (a, b) = (mount.path("head/bigfile/a"), mount.path("head/bigfile/b"));
    let errors = [
        errno_of(fs::OpenOptions::new().write(true).open(&a)),
        errno_of(fs::write(&b, "x")),
        errno_of(fs::remove_file(&a)),
        errno_of(fs::create_dir(&b)),
        errno_of(fs::rename(&a, &b)),
        errno_of(fs::hard_link(&a, &b)),
        errno_of(std::os::unix::fs::symlink(&a, &b)),
        errno_of(fs::remove_dir(mount.path("head/bigfile"))),
        errno_of(fs::set_permissions(&a, fs::Permissions::from_mode(0o600))),
        rustix::fs::setxattr(&a, "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap_err(),
        rustix::fs::removexattr(&a, "user.revfs.tid").unwrap_err(),
    ];
    assert_eq!(errors, [Errno::ROFS; 11]);
}

#[test]
fn versions_are_shared_by_the_revisions_that_show_them_and_head_is_apart() {
    if no_fuse("versions_are_shared_by_the_revisions_that_show_them_and_head_is_apart") {
        return;
    }
    let (_store, mount) = mounted(&[
        (tid(0), vec![Edit::Put("a", vec![1]), Edit::Put("b", vec![1])]),
        (tid(5), vec![Edit::Write("b", 0, vec![2]), Edit::Rename("a", "c")]),
    ]);
    let held: Vec<fs::File> = [
        format!("@{}/bigfile/a", hex(tid(0))),
        format!("@{}/bigfile/a", hex(tid(4))),
        format!("@{}/bigfile/c", hex(tid(5))),
        "head/bigfile/c".to_owned(),
        format!("@{}/bigfile/b", hex(tid(4))),
        format!("@{}/bigfile/b", hex(tid(5))),
    ]
    .iter()
    .map(|path| fs::File::open(mount.path(path)).unwrap())
    .collect();
    let inos: Vec<u64> = held.iter().map(|file| file.metadata().unwrap().ino()).collect();
    assert_eq!((inos[0], inos[0]), (inos[1], inos[2]), "one inode a version");
    assert!(inos[3] != inos[0] && inos[4] != inos[5], "{inos:?}");
}

#[test]
fn head_shows_each_commit_once_head_at_does() {
    if no_fuse("head_shows_each_commit_once_head_at_does") {
        return;
    }
    let (store, mount) = mounted(&[(
        tid(0),
        vec![Edit::Put("a", blocks(1, 40)), Edit::Put("d/x", vec![1]), Edit::Put("gone", blocks(4, 2))],
    )]);
    let a = fs::File::open(mount.path("head/bigfile/a")).unwrap();
    let gone = fs::File::open(mount.path("head/bigfile/gone")).unwrap();
    let mut bytes = Vec::new();
    (&a).read_to_end(&mut bytes).unwrap();
    assert_eq!((bytes, a.metadata().unwrap().size()), (blocks(1, 40), 40 * BLOCK));
    assert_eq!(fs::read(mount.path("head/bigfile/d/x")).unwrap(), [1]);
    let mut byte = [0u8; 1];
    gone.read_exact_at(&mut byte, 0).unwrap();

    // Every page is cached now. Change one block, grow, rename a directory away, delete an open file.
    store.commit(
        tid(1),
        &[
            Edit::Write("a", 20 * BLOCK, blocks(2, 1)),
            Edit::Write("a", 40 * BLOCK, blocks(3, 2)),
            Edit::Rename("d/x", "e/x"),
            Edit::Delete("gone"),
            Edit::Put("new", vec![8]),
        ],
    );
    mount.wait(tid(1));
    assert_eq!(fs::read(mount.path("head/at")).unwrap(), hex(tid(1)).as_bytes());
    let expected = [blocks(1, 20), blocks(2, 1), blocks(1, 19), blocks(3, 2)].concat();
    assert_eq!(a.metadata().unwrap().size(), 42 * BLOCK);
    assert_eq!(fs::read(mount.path("head/bigfile/a")).unwrap(), expected);
    expect_names(&mount.path("head/bigfile"), &[("a", 'f'), ("e", 'd'), ("new", 'f')]);
    assert_eq!(fs::read(mount.path("head/bigfile/e/x")).unwrap(), [1]);
    assert_eq!(errno_of(fs::metadata(mount.path("head/bigfile/d"))), Errno::NOENT);
    assert_eq!(errno_of(fs::metadata(mount.path("head/bigfile/gone"))), Errno::NOENT);
    // The deleted file is still read by who has it open, also where nothing was cached.
    gone.read_exact_at(&mut byte, BLOCK + 5).unwrap();
    assert_eq!((byte, gone.metadata().unwrap().nlink()), ([4], 0));

    store.commit(tid(2), &[Edit::Size("a", 10 * BLOCK)]);
    mount.wait(tid(2));
    assert_eq!(a.metadata().unwrap().size(), 10 * BLOCK);
    assert_eq!(fs::read(mount.path("head/bigfile/a")).unwrap(), blocks(1, 10));
    store.commit(tid(3), &[Edit::Size("a", 30 * BLOCK)]);
    mount.wait(tid(3));
    assert_eq!(fs::read(mount.path("head/bigfile/a")).unwrap(), [blocks(1, 10), blocks(0, 20)].concat());
}

#[test]
fn a_mapping_of_head_follows_head_and_one_of_a_revision_does_not() {
    if no_fuse("a_mapping_of_head_follows_head_and_one_of_a_revision_does_not") {
        return;
    }
    let (store, mount) = mounted(&[(tid(0), vec![Edit::Put("a", blocks(1, 8))])]);
    let map = |path: &str| {
        let file = fs::File::open(mount.path(path)).unwrap();
        let len = usize::try_from(8 * BLOCK).unwrap();
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: a new mapping, which nothing else in this process knows.
        unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0) }
            .unwrap()
            .cast::<u8>()
    };
    let (head, rev) = (map("head/bigfile/a"), map(&format!("@{}/bigfile/a", hex(tid(0)))));
    // SAFETY: inside of the mappings, which stay; other code changes them, so each byte is read volatile.
    let at = |map: *mut u8, block: u64| unsafe { map.add((block * BLOCK) as usize + 7).read_volatile() };
    let scan = |map| (0..8).map(|block| at(map, block)).collect::<Vec<u8>>();
    assert_eq!((scan(head), scan(rev)), (vec![1; 8], vec![1; 8]));
    for round in 2..30u8 {
        let second = u64::from(round);
        store.commit(tid(second), &[Edit::Write("a", second % 8 * BLOCK, blocks(round, 1))]);
        mount.wait(tid(second));
        assert_eq!(at(head, second % 8), round);
    }
    assert_eq!((scan(head), scan(rev)), (vec![24, 25, 26, 27, 28, 29, 22, 23], vec![1; 8]));
    for map in [head, rev] {
        // SAFETY: made above, and not used any more.
        unsafe { rustix::mm::munmap(map.cast(), usize::try_from(8 * BLOCK).unwrap()) }.unwrap();
    }
}

#[test]
fn readers_never_see_a_block_older_than_head_at_nor_a_torn_page() {
    if no_fuse("readers_never_see_a_block_older_than_head_at_nor_a_torn_page") {
        return;
    }
    let (store, mount) = mounted(&[(1, vec![Edit::Put("a", blocks(1, 64))])]);
    let last = 201u64;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2u64 {
            let (mount, done) = (&mount, &done);
            scope.spawn(move || {
                let file = fs::File::open(mount.path("head/bigfile/a")).unwrap();
                let mut page = blocks(0, 1);
                let mut turn = reader;
                while !done.load(Ordering::SeqCst) {
                    let shown = u64::from_str_radix(&fs::read_to_string(mount.path("head/at")).unwrap(), 16);
                    turn = (turn * 7 + 3) % 64;
                    file.read_exact_at(&mut page, turn * BLOCK).unwrap();
                    assert!(page.iter().all(|byte| *byte == page[0]), "torn");
                    assert!(u64::from(page[0]) >= shown.unwrap(), "older than head/at");
                }
            });
        }
        for tid in 2..=last {
            store.commit(tid, &[Edit::Write("a", 0, blocks(u8::try_from(tid).unwrap(), 64))]);
            if tid % 10 == 0 {
                mount.wait(tid);
            }
        }
        mount.wait(last);
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(fs::read(mount.path("head/bigfile/a")).unwrap(), blocks(201, 64));
}

#[test]
fn a_directory_with_a_hundred_thousand_names_is_listed_whole_and_as_of_its_opening() {
    if no_fuse("a_directory_with_a_hundred_thousand_names_is_listed_whole_and_as_of_its_opening") {
        return;
    }
    let edits: Vec<Edit> = (0..100_000)
        .map(|i| Edit::Put(Box::leak(format!("many/{i:06}").into_boxed_str()), Vec::new()))
        .collect();
    let (store, mount) = mounted(&[(tid(0), edits)]);
    let mut open = fs::read_dir(mount.path("head/bigfile/many")).unwrap();
    let first = open.next().unwrap().unwrap();
    assert_eq!(first.file_name().to_str(), Some("000000"));
    store.commit(tid(1), &[Edit::Delete("many/099999")]);
    mount.wait(tid(1));
    let rest: Vec<_> = open.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!((rest.len(), rest.last().unwrap().to_str()), (99_999, Some("099999")));
    assert_eq!(fs::read_dir(mount.path("head/bigfile/many")).unwrap().count(), 99_999);
}

#[test]
fn the_mount_is_named_after_the_store_and_goes_away() {
    if no_fuse("the_mount_is_named_after_the_store_and_goes_away") {
        return;
    }
    let (_store, mount) = mounted(&[]);
    let root = mount.root().to_owned();
    let line = || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().find(|line| line.contains(root.to_str().unwrap())).map(str::to_owned)
    };
    let found = line().unwrap();
    assert!(found.contains("fuse.revfs scripted,store") && found.contains("nosuid,nodev"), "{found}");
    assert_eq!(fs::read_to_string(mount.path("head/at")).unwrap(), "0".repeat(16));
    expect_names(&mount.path("head/bigfile"), &[]);
    drop(mount);
    assert_eq!(line(), None);
    assert_eq!(fs::metadata(&root).unwrap_err().kind(), ErrorKind::NotFound);
}
