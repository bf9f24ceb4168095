//! Many writers at once, and stores that cannot be written: nothing is lost, and refusals are right.
//!
//! Invariant: what is expected of each commit is worked out from the log of all of them, not from the store's code.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/live.rs"]
mod live;
#[path = "common/noise.rs"]
mod noise;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use live::{Ended, Place, no_root, slow};
use noise::noise;

const BLOCK: usize = 4096;
const WRITERS: usize = 8;
const CONFLICT: i32 = 4;
const READ_ONLY: i32 = 8;
const DISK_FULL: i32 = 9;

/// One commit that a writer tried.
#[derive(Debug)]
struct Attempt {
    base: String,
    blocks: BTreeSet<usize>,
    value: u8,
    /// Its tid, unless it was refused as a conflict.
    tid: Option<String>,
    /// Head when it had ended, at least.
    until: String,
}

fn head(place: &Place) -> String {
    let line = place.ok(&["log", "s", "--limit", "1", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    json["tid"].as_str().unwrap().to_owned()
}

/// Commits the file `a` as of `base`, with some blocks filled with a value.
fn attempt(
    place: &Place,
    who: usize,
    base: &str,
    blocks: BTreeSet<usize>,
    value: u8,
    merge: bool,
) -> Attempt {
    let mut bytes = place.bytes(&["cat", "s", "a", "--at", base]);
    for block in &blocks {
        bytes[block * BLOCK..][..BLOCK].fill(value);
    }
    let source = format!("source{who}");
    fs::write(place.path(&source), &bytes).unwrap();
    let file = format!("a={source}");
    let mut args = vec!["commit", "s", &file, "--base", base];
    args.extend(merge.then_some("--merge"));
    let Ended { status, out, err } = place.run(&args);
    let tid = match status.code() {
        Some(0) => Some(String::from_utf8(out).unwrap().trim_end().to_owned()),
        Some(CONFLICT) => {
            assert!(out.is_empty() && err.contains("conflicts with commit"), "{err}");
            None
        }
        other => panic!("writer {who}: {other:?}: {err}"),
    };
    Attempt { base: base.to_owned(), blocks, value, tid, until: head(place) }
}

/// Replays all commits in the order of their tids: each revision has the bytes that follow from those before.
fn check_revisions(place: &Place, first: (&str, Vec<u8>), attempts: &[Attempt]) {
    let mut stand: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.tid.is_some()).collect();
    stand.sort_by(|a, b| a.tid.cmp(&b.tid));
    let log = place.ok(&["log", "s", "--json"]);
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let mut logged: Vec<String> =
        log.lines().map(|text| line(text)["tid"].as_str().unwrap().to_owned()).collect();
    logged.reverse();
    let mut expected = vec![first.0.to_owned()];
    expected.extend(stand.iter().map(|attempt| attempt.tid.clone().unwrap()));
    assert_eq!(logged, expected, "the log has exactly the commits that were acknowledged");
    let mut bytes = first.1;
    for attempt in stand {
        for block in &attempt.blocks {
            bytes[block * BLOCK..][..BLOCK].fill(attempt.value);
        }
        let tid = attempt.tid.as_ref().unwrap();
        assert!(place.bytes(&["cat", "s", "a", "--at", tid]) == bytes, "@{tid}");
    }
    place.ok(&["verify", "s"]);
}

/// Each commit stands if and only if no other that came between its base and itself goes against it.
fn check_conflicts(attempts: &[Attempt], against: impl Fn(&Attempt, &Attempt) -> bool) {
    for ours in attempts {
        let between = |other: &&Attempt| match (&other.tid, &ours.tid) {
            (None, _) => false,
            (Some(theirs), Some(tid)) => *theirs > ours.base && theirs < tid,
            (Some(theirs), None) => *theirs > ours.base && *theirs <= ours.until,
        };
        let hit = attempts.iter().filter(between).any(|other| against(ours, other));
        assert_eq!(ours.tid.is_none(), hit, "{ours:?}");
    }
}

/// Runs all writers at once, with readers beside them; `draw` chooses the blocks of a writer's round.
fn race(
    rounds: usize,
    merge: bool,
    draw: impl Fn(usize, usize) -> BTreeSet<usize> + Sync,
) -> (Place, Vec<Attempt>) {
    let place = Place::new();
    let first = noise(64 * BLOCK, 1);
    let base = place.commit("a", &first);
    let done = AtomicBool::new(false);
    let attempts = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| read_on(&place, &base, &first, &done))).collect();
        let (place, base, draw) = (&place, &base, &draw);
        let write = |who: usize| {
            let mut seen = base.clone();
            let mut attempts = Vec::new();
            for round in 0..rounds {
                let value = (1 + who * rounds + round) as u8;
                let attempt = attempt(place, who, &seen, draw(who, round), value, merge);
                seen = attempt.tid.clone().unwrap_or_else(|| attempt.until.clone());
                attempts.push(attempt);
            }
            attempts
        };
        let writers: Vec<_> = (0..WRITERS).map(|who| scope.spawn(move || write(who))).collect();
        let attempts: Vec<Attempt> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
        attempts
    });
    check_revisions(&place, (&base, first), &attempts);
    (place, attempts)
}

/// Reads the newest and the first revision until it is told to stop; answers how often.
fn read_on(place: &Place, base: &str, first: &[u8], done: &AtomicBool) -> usize {
    let mut count = 0;
    let mut newest = String::new();
    while !done.load(Ordering::SeqCst) {
        let now = head(place);
        assert!(now >= newest, "head goes back from {newest} to {now}");
        let (once, again) =
            (place.bytes(&["cat", "s", "a", "--at", &now]), place.bytes(&["cat", "s", "a", "--at", &now]));
        assert!(once == again, "@{now} changes");
        assert!(place.bytes(&["cat", "s", "a", "--at", base]) == first);
        newest = now;
        count += 1;
    }
    count
}

fn rounds() -> usize {
    if slow() { 30 } else { 4 }
}

#[test]
fn disjoint_blocks_of_one_file_all_land_with_merge() {
    let (_place, attempts) = race(rounds(), true, |who, round| BTreeSet::from([who * 8 + round % 8]));
    assert!(attempts.iter().all(|attempt| attempt.tid.is_some()));
}

#[test]
fn overlapping_blocks_conflict_exactly_where_both_wrote() {
    // A block of its own, one that it shares with a neighbour, and now and then one that all want.
    let draw = |who: usize, round: usize| {
        let mut blocks = BTreeSet::from([who * 8, (who + round % 2) % WRITERS * 8 + 3]);
        blocks.extend((round % 3 == 2).then_some(63));
        blocks
    };
    let (_place, attempts) = race(rounds(), true, draw);
    check_conflicts(&attempts, |ours, theirs| !ours.blocks.is_disjoint(&theirs.blocks));
    assert!(attempts.iter().any(|attempt| attempt.tid.is_some()));
}

#[test]
fn without_merge_any_change_of_the_file_is_a_conflict() {
    let (_place, attempts) = race(rounds(), false, |who, _| BTreeSet::from([who]));
    check_conflicts(&attempts, |_, _| true);
    assert!(attempts.iter().any(|attempt| attempt.tid.is_none()), "eight writers never met");
}

#[test]
fn writers_of_files_of_their_own_never_conflict() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for who in 0..WRITERS {
            let place = &place;
            scope.spawn(move || {
                for round in 0..rounds() {
                    let source = format!("source{who}");
                    fs::write(place.path(&source), noise(50_000, (who * 100 + round) as u64)).unwrap();
                    place.ok(&["commit", "s", &format!("d/f{who}={source}")]);
                }
            });
        }
    });
    for who in 0..WRITERS {
        let bytes = place.bytes(&["cat", "s", &format!("d/f{who}")]);
        assert!(bytes == noise(50_000, (who * 100 + rounds() - 1) as u64), "writer {who}");
    }
    assert_eq!(place.ok(&["log", "s", "--json"]).lines().count(), WRITERS * rounds());
}

/// A mount that goes away.
struct Mounted(PathBuf);

impl Mounted {
    fn new(args: &[&str], at: PathBuf) -> Option<Mounted> {
        fs::create_dir_all(&at).unwrap();
        let status = Command::new("mount").args(args).arg(&at).status().ok()?;
        status.success().then(|| Mounted(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_store_that_cannot_be_written_is_read_and_a_commit_says_why_not() {
    const TEST: &str = "a_store_that_cannot_be_written";
    if no_root(TEST) {
        return;
    }
    let place = Place::new();
    let bytes = noise(100_000, 1);
    let tid = place.commit("a", &bytes);
    let second = place.commit("a", &bytes[..50_000]);
    let source = place.path("s");
    let Some(bound) = Mounted::new(&["--bind", source.to_str().unwrap()], place.path("ro")) else {
        eprintln!("SKIPPED {TEST}: no bind mounts here");
        return;
    };
    let remount = Command::new("mount").args(["-o", "remount,ro,bind"]).arg(&bound.0).status().unwrap();
    assert!(remount.success());
    let cache = place.path("cache");
    let run = |args: &[&str]| {
        let mut command = place.command(args);
        place.run_command(command.env("XDG_CACHE_HOME", &cache).env("HOME", place.root()))
    };
    let before = listing(&source);
    for _ in 0..2 {
        let read = run(&["cat", "ro", "a", "--at", &tid]);
        assert!(read.code() == 0 && read.out == bytes, "{}", read.err);
        assert!(run(&["cat", "ro", "a"]).out == bytes[..50_000]);
        assert_eq!(run(&["log", "ro", "--json"]).line().lines().count(), 2);
        assert_eq!(run(&["verify", "ro"]).code(), 0);
    }
    assert!(cache.join("revfs").is_dir(), "the index is in the cache directory");
    fs::write(place.path("source"), b"new").unwrap();
    for file in ["a=source", "b=source"] {
        let refused = run(&["commit", "ro", file]);
        assert_eq!((refused.code(), refused.out.len()), (READ_ONLY, 0), "{}", refused.err);
        assert!(refused.err.contains("the store cannot be written"), "{}", refused.err);
    }
    for args in [&["rm", "ro", "a"][..], &["mv", "ro", "a", "b"], &["tag", "ro", "t"]] {
        let refused = run(args);
        assert_eq!(refused.code(), READ_ONLY, "{args:?}: {}", refused.err);
    }
    assert_eq!(listing(&source), before);
    // What others commit through another path is seen.
    let third = place.commit("a", b"third");
    assert!(third > second);
    assert_eq!(run(&["cat", "ro", "a"]).out, b"third");
    if !live::no_fuse(TEST) {
        let mounted = run(&["mount", "ro", "m"]);
        assert_eq!(mounted.code(), 0, "{}", mounted.err);
        assert!(fs::read(place.path(&format!("m/@{tid}/bigfile/a"))).unwrap() == bytes);
        let fourth = place.commit("a", b"4");
        live::wait_until("a read-only mount follows", || {
            fs::read_to_string(place.path("m/head/at")).unwrap() == fourth
        });
        assert_eq!(fs::read(place.path("m/head/bigfile/a")).unwrap(), b"4");
        assert_eq!(run(&["umount", "m"]).code(), 0);
    }
}

/// All names below a store, without its index.
fn listing(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path != root.join("index") {
                open.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_behind() {
    const TEST: &str = "a_full_disk_is_told";
    if no_root(TEST) {
        return;
    }
    let place = Place::empty();
    let options = ["-t", "tmpfs", "-o", "size=12m", "tmpfs"];
    let Some(disk) = Mounted::new(&options, place.path("disk")) else {
        eprintln!("SKIPPED {TEST}: no tmpfs here");
        return;
    };
    let large = noise(20 << 20, 1);
    full_disk(&place, &disk.0, &large);
}

#[test]
fn a_full_disk_of_ext4_is_told_and_leaves_nothing_behind() {
    const TEST: &str = "a_full_disk_of_ext4_is_told";
    if no_root(TEST) {
        return;
    }
    let place = Place::empty();
    let image = place.path("image");
    fs::File::create(&image).unwrap().set_len(24 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).status();
    let disk = made
        .ok()
        .filter(std::process::ExitStatus::success)
        .and_then(|_| Mounted::new(&["-o", "loop", image.to_str().unwrap()], place.path("disk")));
    let Some(disk) = disk else {
        eprintln!("SKIPPED {TEST}: no mkfs.ext4 or loop devices here");
        return;
    };
    let large = noise(30 << 20, 1);
    full_disk(&place, &disk.0, &large);
}

/// Commits more than fits, then fills the disk so that less and less is left, and commits into that.
fn full_disk(place: &Place, disk: &Path, large: &[u8]) {
    let store = disk.join("s");
    let store = store.to_str().unwrap();
    place.ok(&["init", store, "--block-size", "4K"]);
    fs::write(place.path("small"), b"small").unwrap();
    fs::write(place.path("large"), large).unwrap();
    let first = place.ok(&["commit", store, "a=small"]);
    let before = listing(Path::new(store));
    for file in ["a=large", "b=large"] {
        place.fails(&["commit", store, file], DISK_FULL, "the disk of the store is full");
        let left: Vec<PathBuf> =
            listing(Path::new(store)).into_iter().filter(|path| !before.contains(path)).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
    place.ok(&["verify", store]);
    assert_eq!(place.ok(&["cat", store, "a"]), "small");
    let mut acknowledged = vec![(first, b"small".to_vec())];
    let filler = disk.join("filler");
    for (round, left) in [400u64, 200, 100, 60, 40, 24, 12, 4, 0].into_iter().enumerate() {
        fill(&filler, disk, left << 10);
        // One whose bytes travel in the record, and one with a pack.
        for size in [5000, 150_000] {
            let bytes = noise(size, round as u64);
            fs::write(place.path("next"), &bytes).unwrap();
            let ended = place.run(&["commit", store, "a=next"]);
            match ended.code() {
                0 => acknowledged.push((ended.line(), bytes)),
                code => assert_eq!(code, DISK_FULL, "{left} KiB left: {}", ended.err),
            }
        }
        // Also on a full disk everything is read.
        let (tid, bytes) = acknowledged.last().unwrap();
        let read = place.run(&["cat", store, "a", "--at", tid]);
        assert!(read.code() == 0 && read.out == *bytes, "{left} KiB left: {}", read.err);
        fs::remove_file(&filler).unwrap();
    }
    assert!(acknowledged.len() > 3, "{} commits fitted", acknowledged.len());
    place.ok(&["verify", store]);
    assert_eq!(place.ok(&["log", store, "--json"]).lines().count(), acknowledged.len());
    for (tid, bytes) in &acknowledged {
        assert!(place.bytes(&["cat", store, "a", "--at", tid]) == *bytes, "@{tid}");
    }
    let last = place.ok(&["commit", store, "c=small"]);
    assert_eq!(place.ok(&["cat", store, "c", "--at", &last]), "small");
}

/// Writes a file until only so many bytes are free.
fn fill(filler: &Path, disk: &Path, left: u64) {
    use std::io::Write;
    let free = || {
        let room = rustix::fs::statvfs(disk).unwrap();
        room.f_bavail * room.f_frsize
    };
    let mut file = fs::File::create(filler).unwrap();
    let mut chunk = 1 << 20;
    while chunk >= 4096 {
        match (free() >= left + chunk).then(|| file.write_all(&vec![1; chunk as usize])) {
            Some(Ok(())) => file.sync_all().unwrap_or(()),
            _ => chunk /= 2,
        }
    }
}
