//! What the fuzz targets do with each input of their corpus, and with pieces of it.
//!
//! Invariant: the same functions as in `tools/fuzz`, so that those keep compiling and what once failed does not fail again.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "fuzz/bodies.rs"]
mod bodies;

use std::fs;
use std::path::{Path, PathBuf};

/// The corpus is a start, not a collection.
const CORPUS_BYTES_MAX: u64 = 256 << 10;
const TARGETS: [&str; 5] = ["pickle", "objects", "saved_index", "filestorage", "link"];

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/fuzz/corpus")
}

/// The inputs of a target, by name.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(corpus().join(target)).unwrap().map(|entry| entry.unwrap().path());
    let mut inputs: Vec<(String, Vec<u8>)> =
        entries.map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect();
    inputs.sort();
    assert!(inputs.len() >= 3, "{target}: {}", inputs.len());
    inputs
}

/// Runs a target on each input, on beginnings of it, and with single bytes changed.
fn play(target: &str, body: &dyn Fn(&[u8])) {
    for (name, bytes) in inputs(target) {
        // Said if it fails.
        println!("{name}");
        body(&bytes);
        let step = (bytes.len() / 16).max(1);
        for cut in (0..bytes.len()).step_by(step) {
            println!("{name}, the first {cut} bytes");
            body(&bytes[..cut]);
            let mut changed = bytes.clone();
            changed[cut] ^= 0xff;
            println!("{name}, byte {cut} changed");
            body(&changed);
        }
    }
}

#[test]
fn pickles() {
    play("pickle", &bodies::pickle);
}

#[test]
fn objects() {
    play("objects", &bodies::objects);
}

#[test]
fn saved_indexes() {
    play("saved_index", &bodies::saved_index);
}

#[test]
fn file_storages() {
    let folder = tempfile::tempdir().unwrap();
    play("filestorage", &|bytes| bodies::filestorage(folder.path(), bytes));
}

#[test]
fn frames_and_messages() {
    play("link", &bodies::link);
}

#[test]
fn each_target_has_a_small_corpus() {
    let mut names: Vec<String> =
        fs::read_dir(corpus()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut targets = TARGETS.map(str::to_owned).to_vec();
    targets.sort();
    assert_eq!(names, targets);
    let manifest = fs::read_to_string(corpus().join("../Cargo.toml")).unwrap();
    let size = |target: &&str| inputs(target).iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    assert!(TARGETS.iter().map(size).sum::<u64>() <= CORPUS_BYTES_MAX);
    for target in TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
    }
}
