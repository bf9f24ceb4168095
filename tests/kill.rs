//! A committing process that is killed at each of its system calls that write, and at random moments; and the
//! order of those calls.
//!
//! Invariant: after each kill the store is whole, each acknowledged commit is there, one that was not
//! acknowledged is there whole or not at all, and the next commit works. The delays of the random kills follow
//! from a seed that is printed (`REVFS_SEED=n` replays it); `REVFS_SLOW=1` kills many more times.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/live.rs"]
mod live;
#[path = "common/noise.rs"]
mod noise;
#[path = "kill/strace.rs"]
mod strace;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use live::{Guarded, Place, end_of, slow};
use noise::noise;
use strace::{Call, OUT, WRITING, no_strace, traced};

/// Bytes that travel inside of the record.
const SMALL: usize = 5000;
/// Bytes that need a pack.
const LARGE: usize = 300_000;
/// No commit makes more calls of one kind.
const CALLS_MAX: u32 = 200;

/// A store, and all that is known of what was committed to it.
struct Story {
    place: Place,
    size: usize,
    /// Acknowledged, or found whole after a kill: tid and bytes of the file `a`.
    stand: Vec<(String, Vec<u8>)>,
    turn: u64,
}

impl Story {
    fn new(size: usize) -> Story {
        let place = Place::new();
        let bytes = noise(size, 0);
        let tid = place.commit("a", &bytes);
        Story { place, size, stand: vec![(tid, bytes)], turn: 0 }
    }

    /// Writes the next version to the file `source`.
    fn next(&mut self) -> Vec<u8> {
        self.turn += 1;
        let bytes = noise(self.size, self.turn);
        fs::write(self.place.path("source"), &bytes).unwrap();
        bytes
    }

    fn log(&self) -> Vec<String> {
        let text = self.place.ok(&["log", "s", "--json"]);
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let mut tids: Vec<String> =
            text.lines().map(|text| line(text)["tid"].as_str().unwrap().to_owned()).collect();
        tids.reverse();
        tids
    }

    /// Checks the store after a kill of a commit of `bytes` that had printed `said`.
    fn check(&mut self, bytes: &[u8], said: &str, what: &str) {
        let verified = self.place.run(&["verify", "s"]);
        assert_eq!(verified.code(), 0, "{what}: {}{}", verified.line(), verified.err);
        let log = self.log();
        let known = self.stand.len();
        let tids: Vec<String> = self.stand.iter().map(|(tid, _)| tid.clone()).collect();
        assert_eq!(log[..known], tids, "{what}: what was acknowledged");
        assert!(log.len() <= known + 1, "{what}: one commit at most");
        if let Some(tid) = log.get(known) {
            assert!(said.is_empty() || said == tid, "{what}: {said} is not {tid}");
            let found = self.place.bytes(&["cat", "s", "a", "--at", tid]);
            assert!(found == bytes, "{what}: @{tid} is half there");
            self.stand.push((tid.clone(), bytes.to_vec()));
        } else {
            assert_eq!(said, "", "{what}: acknowledged and lost");
        }
        let (tid, last) = self.stand.last().unwrap();
        assert!(self.place.bytes(&["cat", "s", "a"]) == *last, "{what}: head is @{tid}");
        let bytes = self.next();
        let tid = self.place.ok(&["commit", "s", "a=source"]);
        assert!(self.place.bytes(&["cat", "s", "a"]) == bytes, "{what}: the next commit");
        self.stand.push((tid, bytes));
    }

    /// In the end: each version once more.
    fn check_all(&self) {
        for (tid, bytes) in &self.stand {
            assert!(self.place.bytes(&["cat", "s", "a", "--at", tid]) == *bytes, "@{tid}");
        }
        fs::remove_dir_all(self.place.path("s/index")).unwrap();
        assert_eq!(self.log().len(), self.stand.len(), "with another index");
    }

    /// Kills a commit at each call of a kind that touches one of `paths` (any, if there is none); answers which
    /// calls it was killed at.
    fn kill_at_each(&mut self, fresh_index: bool, paths: &dyn Fn(&Story) -> Vec<String>) -> BTreeSet<String> {
        let mut hit = BTreeSet::new();
        for kind in WRITING.split(',') {
            for number in 1..CALLS_MAX {
                if fresh_index {
                    fs::remove_dir_all(self.place.index()).unwrap();
                }
                let bytes = self.next();
                let paths = paths(self);
                let inject = format!("inject={kind}:signal=KILL:when={number}");
                let (ended, calls) = traced(&self.place, &paths, Some(&inject), &["commit", "s", "a=source"]);
                if ended.code() == 0 {
                    self.stand.push((ended.line(), bytes));
                    break;
                }
                let last = calls.iter().find(|call| call.killed).map(|call| call.shape(&self.place));
                let last = last.unwrap_or_else(|| panic!("{inject}: {:?} {}", ended.status, ended.err));
                self.check(&bytes, &ended.line(), &format!("killed at {kind} {number} of {paths:?}: {last}"));
                hit.insert(last);
            }
        }
        hit
    }
}

/// Calls of an undisturbed commit that write, as shapes.
fn shapes(story: &mut Story, fresh_index: bool) -> BTreeSet<String> {
    if fresh_index {
        fs::remove_dir_all(story.place.index()).unwrap();
    }
    let bytes = story.next();
    let (ended, calls) = traced(&story.place, &[], None, &["commit", "s", "a=source"]);
    assert_eq!(ended.code(), 0, "{}", ended.err);
    story.stand.push((ended.line(), bytes));
    let writes = calls.iter().filter(|call| !call.text.contains("O_RDONLY") && !call.text.contains("ENOENT"));
    writes.map(|call| call.shape(&story.place)).collect()
}

/// strace counts calls in each thread apart, so one pass with all calls can miss some: more passes look at the
/// record, the index and stdout alone. In the end each call of an undisturbed commit was hit.
fn killed_everywhere(size: usize, fresh_index: bool) {
    let mut story = Story::new(size);
    let wanted = shapes(&mut story, fresh_index);
    let record = |story: &Story| {
        let next = story.log().len() + 1;
        let root = story.place.path("s/commits").display().to_string();
        vec![format!("{root}/{next:020}#1"), format!("{root}/{next:020}"), root]
    };
    let index = |story: &Story| {
        let root = story.place.index().display().to_string();
        let names = ["", "/unsynced", "/data.mdb", "/lock.mdb", "/lock"];
        names.iter().map(|name| format!("{root}{name}")).collect()
    };
    let mut hit = story.kill_at_each(fresh_index, &|_| Vec::new());
    hit.extend(story.kill_at_each(fresh_index, &record));
    if fresh_index {
        hit.extend(story.kill_at_each(fresh_index, &index));
    }
    let out = |story: &Story| vec![story.place.path(OUT).display().to_string()];
    hit.extend(story.kill_at_each(fresh_index, &out));
    let missed: Vec<&String> = wanted.difference(&hit).collect();
    assert!(missed.is_empty(), "never killed at {missed:?}");
    println!("killed at {} kinds of calls, {} commits stand", hit.len(), story.stand.len());
    story.check_all();
}

#[test]
fn a_small_commit_is_killed_at_each_call_that_writes() {
    if no_strace("a_small_commit_is_killed") {
        return;
    }
    killed_everywhere(SMALL, true);
}

#[test]
fn a_commit_with_packs_is_killed_at_each_call_that_writes() {
    if no_strace("a_commit_with_packs_is_killed") {
        return;
    }
    killed_everywhere(LARGE, false);
}

#[test]
fn a_commit_is_killed_at_random_moments() {
    let seed = std::env::var("REVFS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1u64);
    println!("seed {seed}");
    let clock = revfs::env::SystemClock::shared();
    for (size, part) in [(SMALL, 2), (LARGE, 2)] {
        let mut story = Story::new(size);
        story.next();
        let start = clock.monotonic();
        story.place.ok(&["commit", "s", "a=source"]);
        let whole = clock.monotonic().saturating_sub(start);
        story = Story::new(size);
        let times = if slow() { 500 } else { 30 } / part;
        let delays = noise(times * 2, seed + size as u64);
        for pair in delays.chunks_exact(2) {
            let share = u32::from(pair[0]) * 256 + u32::from(pair[1]);
            // A little over the whole time, so that the end is met as well.
            let delay = whole * share / 60_000;
            let bytes = story.next();
            let mut command = story.place.command(&["commit", "s", "a=source"]);
            let out = story.place.path("out");
            command.stdout(fs::File::create(&out).unwrap()).stderr(std::process::Stdio::null());
            let mut child = Guarded(command.spawn().unwrap());
            revfs::env::sleep(delay); // the moment that was drawn; nothing is waited for
            let _ = child.0.kill();
            end_of(&mut child.0, Duration::from_secs(30));
            let said = fs::read_to_string(&out).unwrap().trim_end().to_owned();
            story.check(&bytes, &said, &format!("killed after {delay:?}, seed {seed}"));
        }
        story.check_all();
    }
}

/// The one call of a kind whose text has `part`.
fn the<'a>(calls: &'a [Call], kind: &str, part: &str) -> &'a Call {
    let mut found = calls.iter().filter(|call| call.name == kind && call.text.contains(part));
    let first = found.next().unwrap_or_else(|| panic!("no {kind} of {part} in {calls:#?}"));
    assert!(found.next().is_none(), "more than one {kind} of {part}");
    first
}

#[test]
fn packs_are_durable_before_the_record_and_the_record_before_the_tid_is_told() {
    if no_strace("packs_are_durable_before_the_record") {
        return;
    }
    for size in [SMALL, LARGE] {
        let mut story = Story::new(size);
        story.next();
        let (ended, calls) = traced(&story.place, &[], None, &["commit", "s", "a=source"]);
        assert_eq!(ended.code(), 0, "{}", ended.err);
        let commits = story.place.path("s/commits").display().to_string();
        let staged = format!("<{commits}/00000000000000000002#1>");
        let record_written = the(&calls, "write", &staged);
        let record_synced = the(&calls, "fsync", &staged);
        let link = the(&calls, "linkat", "/commits/");
        let dir_synced = the(&calls, "fsync", &format!("<{commits}>"));
        let told = the(&calls, "write", &ended.line());
        assert!(told.text.starts_with("write(1<"), "{told:?}");
        let mut order = vec![record_written, record_synced, link, dir_synced, told];
        if size == LARGE {
            let rename = the(&calls, "rename", "/packs/");
            let name = rename.text.split('"').nth(1).unwrap();
            let pack_synced = the(&calls, "fsync", &format!("<{name}>"));
            let writes = calls.iter().filter(|call| call.name == "pwritev" && call.text.contains(name));
            let last = writes.max_by_key(|call| call.end).unwrap();
            let folder = name.rsplit_once('/').unwrap().0;
            let folder_synced = the(&calls, "fsync", &format!("<{folder}>"));
            order.splice(0..0, [last, pack_synced, rename, folder_synced]);
        } else {
            assert!(!calls.iter().any(|call| call.text.contains("/packs/")), "a small commit has no pack");
        }
        for pair in order.windows(2) {
            assert!(pair[0].end < pair[1].start, "{:?} before {:?}", pair[0], pair[1]);
            assert!(!pair[0].text.contains("= -1"), "{:?}", pair[0]);
        }
        // Nothing is written to an object once it has its name.
        let named = calls.iter().filter(|call| call.name.contains("write") && call.start > link.end);
        let late: Vec<&Call> = named.filter(|call| call.text.contains(&commits)).collect();
        assert!(late.is_empty(), "{late:?}");
    }
}
