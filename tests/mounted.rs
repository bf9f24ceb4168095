//! The program, a store and a mount as users have them: bytes, attributes and errors of every revision, and
//! head as it moves.
//!
//! Invariant: once `head/at` shows a tid, each look shows what was committed, at once: only `head/at` is waited
//! for. Seeds of the model are printed; `REVFS_SEED=n` replays one, `REVFS_SLOW=1` runs many more.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "mounted/child.rs"]
mod child;
#[path = "common/live.rs"]
mod live;
#[path = "common/mapping.rs"]
mod mapping;
#[path = "common/noise.rs"]
mod noise;
#[path = "mounted/model.rs"]
mod model;
#[path = "model/play.rs"]
mod play;
#[path = "model/reference.rs"]
#[allow(dead_code)] // the rules of conflict are for `tests/model.rs`
mod reference;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use child::MappingChild;
use live::{Live, Place, no_fuse, no_root, wait_until};
use mapping::{Mapping, PAGE};
use noise::noise;
use revfs::protocol::Tid;
use rustix::io::Errno;

const BLOCK: usize = 4096;
/// Larger blocks, of several pages.
const LARGE: usize = 64 << 10;
const LARGE_PAGES: usize = LARGE / PAGE;

fn errno_of<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_io_error(&result.unwrap_err()).unwrap()
}

fn tid_of(text: &str) -> Tid {
    Tid::from_raw(u64::from_str_radix(text, 16).unwrap())
}

fn sorted_names(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn sha256(path: &std::path::Path) -> String {
    let output = Command::new("sha256sum").arg("--").arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

#[test]
fn each_revision_of_each_file_has_the_sha_256_of_what_was_committed() {
    if no_fuse("each_revision_of_each_file") {
        return;
    }
    let place = Place::new();
    let mut versions = Vec::new();
    let mut bytes = noise((3 << 20) + 17, 1);
    for version in 0..6u64 {
        let at = (version as usize * 777_777) % bytes.len();
        match version {
            2 => bytes.truncate(1 << 20),
            3 => bytes.extend(vec![0; 2 << 20]),
            4 => bytes.extend(noise(100_001, 4)),
            _ => bytes.iter_mut().skip(at).take(5000).for_each(|byte| *byte = version as u8),
        }
        let copy = place.path(&format!("copy{version}"));
        fs::write(&copy, &bytes).unwrap();
        let tid = place.commit("dir/big.bin", &bytes);
        versions.push((tid, sha256(&copy)));
    }
    let live = place.mount();
    for (tid, expected) in &versions {
        assert_eq!(sha256(&live.rev(tid, "dir/big.bin")), *expected, "@{tid}");
    }
    assert_eq!(sha256(&live.head("dir/big.bin")), versions[5].1);
    assert!(live.at() == versions[5].0 && fs::read(live.head("dir/big.bin")).unwrap() == bytes);
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn a_mounted_store_behaves_as_the_model() {
    if no_fuse("a_mounted_store_behaves_as_the_model") {
        return;
    }
    for seed in play::seeds(4) {
        println!("seed {seed}");
        model::scenario(seed, 30);
    }
}

/// A mounted file `a` of large blocks, all of it in the page cache through the mapping.
fn mapped(place: &Place, blocks: usize) -> (Live, Mapping, Vec<u8>) {
    let bytes = noise(blocks * LARGE, 7);
    fs::write(place.path("source"), &bytes).unwrap();
    place.ok(&["commit", "s", "a=source", "--block-size", "64K"]);
    let live = place.mount();
    let mapping = Mapping::new(&live.head("a"), bytes.len());
    assert!(mapping.bytes() == bytes);
    assert_eq!(mapping.blocks_not_cached(LARGE_PAGES), [0usize; 0]);
    (live, mapping, bytes)
}

#[test]
fn only_blocks_that_changed_leave_the_page_cache() {
    if no_fuse("only_blocks_that_changed_leave_the_page_cache") {
        return;
    }
    let place = Place::new();
    let (live, mapping, mut bytes) = mapped(&place, 40);
    for changed in [vec![7], vec![0, 20, 21], vec![39]] {
        for block in &changed {
            bytes[block * LARGE + 70] ^= 1;
        }
        let tid = place.commit("a", &bytes);
        live.wait(&tid);
        assert_eq!(mapping.blocks_not_cached(LARGE_PAGES), changed);
        assert!(mapping.bytes() == bytes);
        assert_eq!(mapping.blocks_not_cached(LARGE_PAGES), [0usize; 0]);
    }
    // Growth keeps all pages; so does a commit of another file, and a rename.
    bytes.extend(noise(3 * LARGE, 8));
    let tid = place.commit("a", &bytes);
    live.wait(&tid);
    assert_eq!(mapping.blocks_not_cached(LARGE_PAGES), [0usize; 0]);
    let tid = place.commit("other", b"x");
    live.wait(&tid);
    live.wait(&place.ok(&["mv", "s", "a", "b"]));
    assert_eq!(mapping.blocks_not_cached(LARGE_PAGES), [0usize; 0]);
    assert!(fs::read(live.head("b")).unwrap() == bytes);
}

#[test]
fn sizes_and_names_follow_before_head_at_does() {
    if no_fuse("sizes_and_names_follow_before_head_at_does") {
        return;
    }
    let place = Place::new();
    let first = place.commit("d/a", &noise(10_000, 1));
    place.commit("gone", b"1");
    let live = place.mount();
    let open = File::open(live.head("d/a")).unwrap();
    for size in [1usize, 0, 50_000, 4096, 4095, 1 << 20] {
        // All is asked for before, so that the kernel has an answer that it could give again.
        assert_eq!(fs::metadata(live.head("d/a")).unwrap().len(), open.metadata().unwrap().len());
        let new = format!("new{size}");
        assert_eq!(errno_of(fs::metadata(live.head(&new))), Errno::NOENT);
        sorted_names(&live.head(""));
        fs::write(place.path("x"), noise(size, 2)).unwrap();
        let tid = place.ok(&["commit", "s", "d/a=x", &format!("{new}=x")]);
        live.wait(&tid);
        assert_eq!(open.metadata().unwrap().len(), size as u64);
        assert_eq!(fs::metadata(live.head("d/a")).unwrap().mtime(), open.metadata().unwrap().mtime());
        assert!(fs::read(live.head(&new)).unwrap() == noise(size, 2));
        assert!(sorted_names(&live.head("")).contains(&new));
    }
    live.wait(&place.ok(&["mv", "s", "d", "e/f"]));
    assert_eq!(errno_of(fs::metadata(live.head("d/a"))), Errno::NOENT);
    assert_eq!(errno_of(fs::metadata(live.head("d"))), Errno::NOENT);
    assert!(fs::read(live.head("e/f/a")).unwrap() == noise(1 << 20, 2));
    assert_eq!(fs::read(live.head("gone")).unwrap(), b"1");
    live.wait(&place.ok(&["rm", "s", "gone"]));
    assert_eq!(errno_of(fs::metadata(live.head("gone"))), Errno::NOENT);
    assert!(!sorted_names(&live.head("")).contains(&"gone".to_owned()));
    assert_eq!(sorted_names(&live.rev(&first, "")), ["d"]);
    live.wait(&place.commit("gone", b"again"));
    assert_eq!(fs::read(live.head("gone")).unwrap(), b"again");
}

#[test]
fn a_file_that_shrinks_under_a_mapping_is_as_a_local_file() {
    if no_fuse("a_file_that_shrinks_under_a_mapping") {
        return;
    }
    let place = Place::new();
    let (live, _, bytes) = mapped(&place, 8);
    let local = place.path("local");
    fs::write(&local, &bytes).unwrap();
    let left = 2 * LARGE + 100;
    // What is left is read, and zeros up to the end of the last page; beyond it is a SIGBUS.
    let reads = [0, left - 1, left, (left - 1) / PAGE * PAGE + PAGE - 1, left.next_multiple_of(PAGE)];
    for (path, is_local) in [(live.head("a"), false), (local.clone(), true)] {
        let mut child = MappingChild::start(&path, bytes.len());
        assert!(child.touch_all());
        if is_local {
            File::options().write(true).open(&local).unwrap().set_len(left as u64).unwrap();
        } else {
            let tid = place.commit("a", &bytes[..left]);
            live.wait(&tid);
        }
        let found: Vec<Option<u8>> = reads.iter().map(|offset| child.read(*offset)).collect();
        let expected = [Some(bytes[0]), Some(bytes[left - 1]), Some(0), Some(0), None];
        assert_eq!(found, expected, "{}", path.display());
        assert_eq!(child.ended_by(), Some(7), "SIGBUS, {}", path.display());
    }
    // It grows again: the same mapping shows the new bytes. The kernel asks for the size at a look or a read, and
    // not at a page fault, so somebody has to look first.
    let mut child = MappingChild::start(&live.head("a"), bytes.len());
    live.wait(&place.commit("a", &noise(bytes.len(), 99)));
    assert_eq!(fs::metadata(live.head("a")).unwrap().len(), bytes.len() as u64);
    assert_eq!(child.read(bytes.len() - 1), noise(bytes.len(), 99).last().copied());
}

#[test]
fn a_file_that_is_deleted_under_a_mapping_stays_readable() {
    if no_fuse("a_file_that_is_deleted_under_a_mapping") {
        return;
    }
    let place = Place::new();
    let bytes = noise(8 * LARGE, 3);
    place.commit("a", &bytes);
    let live = place.mount();
    let open = File::open(live.head("a")).unwrap();
    let mapping = Mapping::new(&live.head("a"), bytes.len());
    assert_eq!(mapping.at(0), bytes[0]);
    live.wait(&place.ok(&["rm", "s", "a"]));
    assert_eq!(errno_of(fs::metadata(live.head("a"))), Errno::NOENT);
    assert!(mapping.bytes() == bytes, "also where nothing was cached");
    assert_eq!((open.metadata().unwrap().nlink(), open.metadata().unwrap().len()), (0, bytes.len() as u64));
    live.wait(&place.commit("a", b"another file"));
    assert!(mapping.bytes() == bytes);
    assert_eq!(fs::read(live.head("a")).unwrap(), b"another file");
}

#[test]
fn mappings_of_a_revision_never_change_while_commits_go_on() {
    if no_fuse("mappings_of_a_revision_never_change") {
        return;
    }
    let place = Place::new();
    let mut bytes = noise(60 * BLOCK + 5, 1);
    let mut maps = Vec::new();
    let tid = place.commit("a", &bytes);
    let live = place.mount();
    maps.push((Mapping::new(&live.rev(&tid, "a"), bytes.len()), bytes.clone()));
    for round in 0..20usize {
        let at = round * 7 % 60 * BLOCK;
        bytes[at..at + 3000].fill(round as u8);
        if round == 9 {
            bytes.truncate(30 * BLOCK);
            bytes.resize(60 * BLOCK + 5, 9);
        }
        let tid = place.commit("a", &bytes);
        live.wait(&tid);
        // Half of them is looked at before the next commits, half only afterwards.
        let map = Mapping::new(&live.rev(&tid, "a"), bytes.len());
        assert!(round % 2 == 0 || map.bytes() == bytes);
        maps.push((map, bytes.clone()));
        for (map, expected) in maps.iter().step_by(5) {
            assert!(map.bytes() == *expected);
        }
    }
    place.ok(&["rm", "s", "a"]);
    for (number, (map, expected)) in maps.iter().enumerate() {
        assert!(map.bytes() == *expected, "version {number}");
    }
}

#[test]
fn revisions_that_show_one_version_share_its_inode_and_pages() {
    if no_fuse("revisions_that_show_one_version_share") {
        return;
    }
    let place = Place::new();
    let bytes = noise(100 * BLOCK, 5);
    let first = place.commit("a", &bytes);
    let second = place.commit("other", b"x");
    let third = place.ok(&["mv", "s", "a", "d/b"]);
    let fourth = place.commit("d/b", &noise(BLOCK, 6));
    let live = place.mount();
    let paths = [live.rev(&first, "a"), live.rev(&second, "a"), live.rev(&third, "d/b")];
    let held: Vec<File> = paths.iter().map(|path| File::open(path).unwrap()).collect();
    let ino = |file: &File| file.metadata().unwrap().ino();
    assert_eq!((ino(&held[0]), ino(&held[0])), (ino(&held[1]), ino(&held[2])));
    assert_ne!(ino(&held[0]), ino(&File::open(live.rev(&fourth, "d/b")).unwrap()));
    assert_ne!(ino(&held[0]), ino(&File::open(live.head("d/b")).unwrap()));
    let through = Mapping::new(&paths[2], bytes.len());
    assert!(through.cached().iter().all(|cached| !cached), "nobody has read it");
    assert!(fs::read(&paths[0]).unwrap() == bytes);
    assert!(through.cached().iter().all(|cached| *cached), "read by another name");
}

#[test]
fn attributes_are_those_of_the_version() {
    if no_fuse("attributes_are_those_of_the_version") {
        return;
    }
    let place = Place::new();
    let dense = [noise(8 * BLOCK, 1), vec![0; 4 * BLOCK], noise(BLOCK, 2), noise(100, 3)].concat();
    let first = place.commit("a", &dense);
    place.commit("other", b"x");
    let second = place.commit("a", &dense[..BLOCK]);
    let third = place.commit("other", b"y");
    let live = place.mount();
    let check = |path: std::path::PathBuf, tid: &str, size: usize, blocks: std::ops::RangeInclusive<u64>| {
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.len(), meta.blksize(), meta.nlink()), (size as u64, BLOCK as u64, 1));
        let time = u64::try_from(meta.mtime() * 1_000_000_000 + meta.mtime_nsec()).unwrap();
        assert_eq!(time, tid_of(tid).to_unix_ns(), "{}", path.display());
        assert_eq!((meta.ctime(), meta.ctime_nsec()), (meta.mtime(), meta.mtime_nsec()));
        assert!(blocks.contains(&meta.blocks()), "{} blocks", meta.blocks());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o444);
        assert_eq!((meta.uid(), meta.gid()), (rustix::process::getuid().as_raw(), 0));
        let mut value = [0u8; 32];
        let len = rustix::fs::getxattr(&path, "user.revfs.tid", &mut value[..]).unwrap();
        assert_eq!(&value[..len], tid.as_bytes());
        let len = rustix::fs::getxattr(&path, "user.revfs.file", &mut value[..]).unwrap();
        let id = std::str::from_utf8(&value[..len]).unwrap().to_owned();
        let by_id = path.parent().unwrap().parent().unwrap().join("by-id").join(id);
        assert_eq!(fs::metadata(by_id).unwrap().ino(), meta.ino());
    };
    // Nine blocks and a part of one are stored, the hole is not.
    check(live.rev(&first, "a"), &first, dense.len(), 9 * 8 + 1..=10 * 8);
    check(live.rev(&second, "a"), &second, BLOCK, 8..=8);
    check(live.rev(&third, "a"), &second, BLOCK, 8..=8);
    check(live.head("a"), &second, BLOCK, 8..=8);
    let (ours, disk) =
        (rustix::fs::statvfs(live.root()).unwrap(), rustix::fs::statvfs(place.root()).unwrap());
    assert_eq!(ours.f_blocks * ours.f_frsize, disk.f_blocks * disk.f_frsize);
    assert_eq!((ours.f_namemax, ours.f_frsize > 0), (255, true));
}

#[test]
fn owner_of_all_files_is_who_the_options_name() {
    if no_fuse("owner_of_all_files") {
        return;
    }
    let place = Place::new();
    place.commit("a", b"x");
    place.ok(&["mount", "s", "m", "--uid", "12", "--gid", "34", "--allow-other"]);
    for name in ["m", "m/head/at", "m/head/bigfile/a", "m/head/bigfile", "m/.revfs"] {
        let meta = fs::metadata(place.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12, 34), "{name}");
    }
}

#[test]
fn what_cannot_be_has_the_right_errno() {
    if no_fuse("what_cannot_be_has_the_right_errno") {
        return;
    }
    let place = Place::new();
    let live = place.mount();
    // Before the first commit.
    assert_eq!(live.at(), "0000000000000000");
    assert_eq!(sorted_names(&live.head("")), [""; 0]);
    assert_eq!(sorted_names(&live.rev("0000000000000000", "")), [""; 0]);
    let error = |name: &str| errno_of(fs::symlink_metadata(live.path(name)));
    let soon = "@0000000000000001";
    assert_eq!((error(soon), error(&format!("{soon}/bigfile"))), (Errno::NOENT, Errno::NOENT));
    let first = place.commit("a", b"1");
    live.wait(&first);
    assert_eq!(sorted_names(&live.path(&format!("{soon}/bigfile"))), [""; 0]);
    // A tid that is not yet is not remembered as absent.
    let next = Tid::from_raw(tid_of(&first).raw() + 1).to_string();
    for _ in 0..3 {
        assert_eq!(error(&format!("@{next}")), Errno::NOENT);
        assert_eq!(errno_of(fs::read(live.rev(&next, "a"))), Errno::NOENT);
    }
    let second = place.commit("a", b"2");
    live.wait(&second);
    assert_eq!(fs::read(live.rev(&next, "a")).unwrap(), b"1");
    assert_eq!(fs::read(live.rev(&second, "a")).unwrap(), b"2");
    assert_eq!(error("@ffffffffffffffff"), Errno::NOENT);
    for malformed in
        ["@", "@2026-13", "@-5y", "@A a", "@0123456789ABCDEF", "@@", "@2026-02-30T10:00", "@0000"]
    {
        assert_eq!(error(malformed), Errno::INVAL, "{malformed}");
    }
    // A day long before the first commit is the empty state, one to come is not there yet.
    for year in ["0001", "1900", "1969-07-20T20:17"] {
        assert_eq!(sorted_names(&live.path(&format!("@{year}/bigfile"))), [""; 0], "{year}");
    }
    for time in ["@2553", "@2554-08", "@2999-01-01", "@9999", "@9999-12-31T23:59:59.999999999Z"] {
        assert_eq!(error(&format!("{time}/bigfile")), Errno::NOENT, "{time}");
    }
    for absent in ["x", "head/x", "head/bigfile/b", "head/by-id/0000000000000001", "head/by-id/x", "@no-tag"]
    {
        assert_eq!(error(absent), Errno::NOENT, "{absent}");
    }
    assert_eq!(error("head/bigfile/a/b"), Errno::NOTDIR);
    live.wait(&place.ok(&["tag", "s", "no-tag", &first]));
    assert_eq!(fs::read(live.path("@no-tag/bigfile/a")).unwrap(), b"1");
    live.wait(&place.ok(&["tag", "s", "no-tag", "--delete"]));
    assert_eq!(error("@no-tag"), Errno::NOENT);
}

#[test]
fn any_write_is_refused_as_on_a_read_only_filesystem() {
    if no_fuse("any_write_is_refused") {
        return;
    }
    let place = Place::new();
    let tid = place.commit("d/a", b"1");
    let live = place.mount();
    for dir in [live.head("d"), live.rev(&tid, "d"), live.root().to_owned()] {
        let (a, b) = (live.head("d/a"), dir.join("b"));
        let errors = [
            errno_of(File::options().write(true).open(dir.join("a")).or_else(|error| {
                // In the root there is no such file to open.
                let absent = error.kind() == std::io::ErrorKind::NotFound;
                if absent { File::options().append(true).open(&a) } else { Err(error) }
            })),
            errno_of(fs::write(&b, "x")),
            errno_of(fs::create_dir(&b)),
            errno_of(fs::rename(&a, &b)),
            errno_of(fs::hard_link(&a, &b)),
            errno_of(std::os::unix::fs::symlink(&a, &b)),
            errno_of(fs::remove_file(&a)),
            errno_of(fs::set_permissions(&a, fs::Permissions::from_mode(0o600))),
            errno_of(File::create(&a)),
            rustix::fs::setxattr(&a, "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap_err(),
        ];
        assert_eq!(errors, [Errno::ROFS; 10], "{}", dir.display());
    }
    assert_eq!(fs::read(live.head("d/a")).unwrap(), b"1");
}

#[test]
fn a_damaged_byte_is_an_error_of_its_chunk_and_all_else_is_read() {
    if no_fuse("a_damaged_byte_is_an_error_of_its_chunk") {
        return;
    }
    let place = Place::new();
    let bytes = noise(512 * BLOCK, 1);
    let tid = place.commit("a", &bytes);
    let packs = fs::read_dir(place.path("s/packs")).unwrap();
    let pack = packs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap()).next().unwrap().unwrap();
    let pack = File::options().read(true).write(true).open(pack.path()).unwrap();
    let at = 300 * BLOCK as u64 + 5;
    pack.write_all_at(&[bytes[at as usize] ^ 4], at).unwrap();
    let live = place.mount();
    let damaged: Vec<usize> = (288..304).collect(); // the 64 KiB that one checksum covers
    for path in [live.head("a"), live.rev(&tid, "a")] {
        let file = File::open(&path).unwrap();
        let mut failed = Vec::new();
        for page in 0..512 {
            let mut found = vec![0; BLOCK];
            match file.read_exact_at(&mut found, (page * BLOCK) as u64) {
                Ok(()) => assert!(found == bytes[page * BLOCK..][..BLOCK], "page {page}"),
                Err(error) => {
                    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
                    failed.push(page);
                }
            }
        }
        assert_eq!(failed, damaged, "{}", path.display());
    }
    let log = fs::read_to_string(live.path(".revfs/log")).unwrap();
    assert!(log.contains("packs/"), "the log names the pack: {log}");
    // Mended, it is read again.
    pack.write_all_at(&[bytes[at as usize]], at).unwrap();
    assert!(fs::read(live.head("a")).unwrap() == bytes);
}

#[test]
fn a_hundred_thousand_names_in_one_directory() {
    if no_fuse("a_hundred_thousand_names_in_one_directory") {
        return;
    }
    let place = Place::new();
    let store = place.open();
    let mut txn = store.begin(None).unwrap();
    for number in 0..100_000 {
        txn.create(format!("many/{number:06}").as_bytes(), None).unwrap();
    }
    let tid = pollster::block_on(txn.commit()).unwrap().tid.to_string();
    let live = place.mount();
    for dir in [live.head("many"), live.rev(&tid, "many")] {
        let names = sorted_names(&dir);
        assert_eq!((names.len(), names[0].as_str(), names[99_999].as_str()), (100_000, "000000", "099999"));
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "none twice");
    }
    assert_eq!(fs::metadata(live.head("many/054321")).unwrap().len(), 0);
    live.wait(&place.ok(&["rm", "s", "many/054321"]));
    assert_eq!(fs::read_dir(live.head("many")).unwrap().count(), 99_999);
}

#[test]
fn a_user_without_root_mounts_through_fusermount3() {
    const TEST: &str = "a_user_without_root_mounts_through_fusermount3";
    if no_fuse(TEST) || no_root(TEST) {
        return;
    }
    let place = Place::empty();
    fs::copy(env!("CARGO_BIN_EXE_revfs"), place.path("revfs")).unwrap();
    let source = noise(100_000, 1);
    fs::write(place.path("source"), &source).unwrap();
    fs::create_dir(place.path("run")).unwrap();
    for name in [".", "run"] {
        std::os::unix::fs::chown(place.path(name), Some(65534), Some(65534)).unwrap();
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o700)).unwrap();
    }
    // Some machines keep /dev/fuse for root; in a mount namespace of its own the test has one for all.
    let namespace = "mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse && command -v fusermount3 \
        && exec setpriv --reuid=65534 --regid=65534 --clear-groups -- sh -c \"$1\"";
    let run = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", namespace, "sh", script]).current_dir(place.root());
        command.env("XDG_RUNTIME_DIR", place.path("run")).env("HOME", place.root());
        let ended = place.run_command(command.stdin(std::process::Stdio::null()));
        let _ = fs::remove_file(place.path("fuse"));
        ended
    };
    let possible = run("exec 3<>/dev/fuse");
    if possible.code() != 0 {
        eprintln!("SKIPPED {TEST}: no namespaces, setpriv or fusermount3 here: {}", possible.err);
        return;
    }
    let ended = run("set -ex; ./revfs init s --block-size 4K; ./revfs commit s a=source; ./revfs mount s m
        grep ' fuse.revfs ' /proc/self/mountinfo > table; cat m/head/bigfile/a > read; ls -ln m/head/bigfile
        stat -c '%u %g %a' m/head/bigfile/a; ./revfs status m; ls run/revfs; ./revfs umount m
        test ! -e m; ls -A run/revfs > left; ! grep \" $PWD/m \" /proc/self/mountinfo");
    assert_eq!(ended.code(), 0, "{}{}", ended.line(), ended.err);
    assert!(fs::read(place.path("read")).unwrap() == source);
    assert!(ended.line().contains("65534 65534 444"), "{}", ended.line());
    let table = fs::read_to_string(place.path("table")).unwrap();
    assert!(table.contains(&format!("fuse.revfs {}", place.path("s").display())), "{table}");
    assert_eq!(fs::read_to_string(place.path("left")).unwrap(), "");
    wait_until("the server ends", || live::servers_of(place.root()).is_empty());
}
