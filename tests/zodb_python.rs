//! Databases that ZODB in Python makes: as good as at rest when they are written while they are served.
//!
//! Invariant: what is compared with is read by ZODB in Python. Random databases are made from seeds that are printed;
//! `REVFS_ZODB_SEED=n` plays one again, `REVFS_SLOW=1` plays many. Skips loudly without the Python of `.ci/run`.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "zodb/checks.rs"]
mod checks;
#[path = "common/link.rs"]
mod link;
#[path = "common/live.rs"]
mod live;
#[path = "zodb/manifest.rs"]
mod manifest;
#[path = "zodb/python.rs"]
mod python;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use checks::{check_bytes, check_commits, check_file_revisions, check_revisions, sha256};
use link::{Pins, WatchFile};
use live::{Live, Place, no_fuse, slow};
use manifest::Manifest;
use python::{Writer, python, run};

const BLOCK: usize = 4096;
const SEEDS: u64 = 4;
const SEEDS_SLOW: u64 = 200;

/// Options for a database of many small nodes.
fn options(seed: u64) -> Vec<String> {
    let format = ["mixed", "ZBlk0", "ZBlk1"][seed as usize % 3];
    let (leaf, inner) = (2 + seed % 3, 2 + seed / 2 % 3);
    let text = format!(
        "--seed {seed} --files 3 --format {format} --leaf {leaf} --inner {inner} --commits 50 --undo-every {} \
         --block-size 4096",
        5 + seed % 7
    );
    text.split_whitespace().map(str::to_owned).collect()
}

/// Seeds to play, each said as its turn comes.
fn seeds() -> impl Iterator<Item = u64> {
    let one = std::env::var("REVFS_ZODB_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let count = if slow() { SEEDS_SLOW } else { SEEDS };
    one.map_or(1..count + 1, |seed| seed..seed + 1).inspect(|seed| eprintln!("REVFS_ZODB_SEED={seed}"))
}

#[test]
fn random_databases_are_read() {
    let Some(python) = python("random_databases_are_read") else { return };
    for seed in seeds() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("Data.fs");
        let options = options(seed);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        run(&python, "make", &database, &options);
        let manifest = Manifest::parse(&database, &run(&python, "manifest", &database, &[]));
        assert!(check_bytes(&manifest) > 100);
        assert!(check_commits(&manifest) > 20);
        check_revisions(&manifest);
        check_file_revisions(&manifest);
    }
}

/// Compares all blocks of all files as of a state with what Python reads.
fn compare(writer: &mut Writer, live: &Live, root: &str, at: &str) {
    for (name, (oid, hashes)) in hashes(writer, at) {
        let bytes = fs::read(live.path(&format!("{root}/bigfile/{oid}"))).unwrap();
        let found: Vec<String> = bytes.chunks(BLOCK).map(sha256).collect();
        assert_eq!(found, hashes, "{name} @{at}");
    }
}

#[test]
fn a_mount_follows_what_zodb_commits_undoes_and_packs() {
    if no_fuse("a_mount_follows_what_zodb_commits") {
        return;
    }
    let Some(python) = python("a_mount_follows_what_zodb_commits") else { return };
    let place = Place::empty();
    let database = place.path("Data.fs");
    let options = ["--seed", "7", "--leaf", "3", "--inner", "3", "--block-size", "4096", "--format", "mixed"];
    let mut writer = Writer::start(&python, &database, &options);
    let live = place.mount_store("Data.fs", "m", &[]);
    let mut tids = vec![live.at()];
    for round in 0..40 {
        let command = if round % 9 == 8 { "undo" } else { "commit" };
        let tid = writer.ask(command, "tid");
        live.wait(&tid);
        compare(&mut writer, &live, "head", &tid);
        tids.push(tid);
    }
    for tid in tids.iter().step_by(5) {
        compare(&mut writer, &live, &format!("@{tid}"), tid);
    }
    let old = format!("@{}", tids[tids.len() / 2]);
    let early = hashes(&mut writer, &tids[1]);
    // A pack puts another file in place; what is current stays as it is, also under who has it open.
    let files = writer.ask("files head", "files");
    let open: BTreeMap<String, (fs::File, Vec<u8>)> = files
        .split_whitespace()
        .map(|pair| {
            let oid = pair.split_once('=').unwrap().1;
            let path = live.path(&format!("head/bigfile/{oid}"));
            (oid.to_owned(), (fs::File::open(&path).unwrap(), fs::read(&path).unwrap()))
        })
        .collect();
    let of_old = read_all(&live, &old, open.keys());
    writer.ask("pack", "packed");
    let after = writer.ask("commit", "tid");
    live.wait(&after);
    compare(&mut writer, &live, "head", &after);
    let before = tids.last().unwrap();
    for (oid, (_, bytes)) in &open {
        let path = live.path(&format!("@{before}/bigfile/{oid}"));
        assert!(fs::read(path).unwrap() == *bytes, "{oid} @{before}");
    }
    for (file, _) in open.values() {
        file.read_at(&mut [0; 10], 0).unwrap();
    }
    // A state from before is served as it was, or refused.
    for (oid, bytes) in read_all(&live, &old, open.keys()) {
        assert!(of_old[&oid] == bytes, "{oid} {old}");
    }
    // One that nobody read before: what the pack left of it is right, and what it took away is refused.
    let mut refused = 0;
    for (name, (oid, hashes)) in &early {
        match fs::read(live.path(&format!("@{}/bigfile/{oid}", tids[1]))) {
            Ok(bytes) => {
                let found: Vec<String> = bytes.chunks(BLOCK).map(sha256).collect();
                assert_eq!(found, *hashes, "{name} @{}", tids[1]);
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::STALE.raw_os_error()), "{name}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "nothing of @{} was packed away", tids[1]);
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

/// Files by name, as Python reads them: object, and hashes of all blocks.
fn hashes(writer: &mut Writer, at: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let files = writer.ask(&format!("files {at}"), "files");
    let mut found = BTreeMap::new();
    for pair in files.split_whitespace() {
        let (name, oid) = pair.split_once('=').unwrap();
        let size: usize = writer.ask(&format!("size {name} {at}"), "size").parse().unwrap();
        let hash = |block| writer.ask(&format!("sha {name} {at} {block}"), "sha");
        found.insert(name.to_owned(), (oid.to_owned(), (0..size / BLOCK).map(hash).collect()));
    }
    found
}

/// Bytes of files in a directory.
fn read_all<'a>(
    live: &Live,
    root: &str,
    oids: impl Iterator<Item = &'a String>,
) -> BTreeMap<String, Vec<u8>> {
    let read = |oid: &String| {
        let bytes = fs::read(live.path(&format!("{root}/bigfile/{oid}")));
        bytes.ok().map(|bytes| (oid.clone(), bytes))
    };
    oids.filter_map(read).collect()
}

/// A client that works on a file as of a state.
struct View {
    link: WatchFile,
    name: String,
    oid: String,
    at: String,
    pins: Pins,
}

impl View {
    /// Sets the watch up or moves it.
    fn watch(&mut self, at: &str) {
        let (pins, answer) = self.link.ask_and_ack(&format!("watch {} @{at}", self.oid));
        assert!(answer.starts_with("ok"), "{} @{at}: {answer}", self.name);
        self.pins.extend(pins);
        at.clone_into(&mut self.at);
    }

    /// What it sees is what Python reads at its state.
    fn check(&self, writer: &mut Writer, live: &Live, heads: &BTreeMap<String, Vec<u8>>) {
        let head = &heads[&self.oid];
        let size: usize = writer.ask(&format!("size {} {}", self.name, self.at), "size").parse().unwrap();
        for block in 0..size / BLOCK {
            let to = self.pins.get(&(block as u64)).filter(|to| *to != "@head");
            let pinned = to.map(|to| fs::read(live.path(&format!("{to}/bigfile/{}", self.oid))).unwrap());
            let mut bytes: Vec<u8> =
                pinned.as_ref().unwrap_or(head).iter().skip(block * BLOCK).take(BLOCK).copied().collect();
            bytes.resize(BLOCK, 0);
            let expected = writer.ask(&format!("sha {} {} {block}", self.name, self.at), "sha");
            assert_eq!(sha256(&bytes), expected, "{} block {block} @{} by {to:?}", self.name, self.at);
        }
    }
}

/// Does what may wait for the clients.
fn while_acking<T: Send>(views: &mut [View], job: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| {
        let job = scope.spawn(job);
        while !job.is_finished() {
            views.iter_mut().for_each(|view| view.link.ack_waiting(&mut view.pins));
            std::thread::yield_now();
        }
        job.join().unwrap()
    });
    // What was sent at last.
    views.iter_mut().for_each(|view| view.link.ack_waiting(&mut view.pins));
    done
}

#[test]
fn clients_keep_their_revisions_of_a_database() {
    if no_fuse("clients_keep_their_revisions_of_a_database") {
        return;
    }
    let Some(python) = python("clients_keep_their_revisions_of_a_database") else { return };
    // One takes some seconds.
    seeds().step_by(4).for_each(|seed| clients_keep_their_revisions(&python, seed));
}

fn clients_keep_their_revisions(python: &Path, seed: u64) {
    let place = Place::empty();
    let database = place.path("Data.fs");
    let seed = seed.to_string();
    let options =
        ["--seed", &seed, "--leaf", "3", "--inner", "3", "--block-size", "4096", "--format", "mixed"];
    let mut writer = Writer::start(python, &database, &options);
    let before: Vec<String> = (0..10).map(|_| writer.ask("commit", "tid")).collect();
    let live = place.mount_store("Data.fs", "m", &[]);
    let mut tids = before.clone();
    let mut views: Vec<View> = Vec::new();
    let mut pinned = 0;
    for round in 0..30 {
        let tid = writer.ask("commit", "tid");
        // A file that becomes shorter does so when all have pinned what it loses.
        while_acking(&mut views, || live.wait(&tid));
        tids.push(tid);
        if round % 3 == 0 {
            // States from before the server was there, too.
            let at = tids[(round * 7) % tids.len()].clone();
            for (name, (oid, _)) in hashes(&mut writer, &at) {
                let link = WatchFile::open(&live.path(""));
                let mut view = View { link, name, oid, at: String::new(), pins: Pins::new() };
                view.watch(&at);
                views.push(view);
            }
        }
        if round % 5 == 4 {
            let moved = round % views.len();
            let now = tids.iter().position(|tid| *tid == views[moved].at).unwrap();
            let at = tids[(now + tids.len()) / 2].clone();
            views[moved].watch(&at);
        }
        let oids: Vec<String> = hashes(&mut writer, "head").into_values().map(|(oid, _)| oid).collect();
        let heads = while_acking(&mut views, || read_all(&live, "head", oids.iter()));
        views.iter().for_each(|view| view.check(&mut writer, &live, &heads));
        pinned = views.iter().map(|view| view.pins.len()).sum();
    }
    assert!(pinned > 50, "{pinned}");
    assert_eq!(live.stat("kills"), 0);
    drop(views);
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}
