//! The command line from outside: runs the program on stores of its own, and checks output, bytes and exit codes.
//!
//! Invariant: each refusal is checked for its exit code, its text and that it changed nothing.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "cli/bench.rs"]
mod bench;
#[path = "common/noise.rs"]
mod noise;

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use bench::Bench;
use noise::noise;

const BLOCK: usize = 4096;

#[test]
fn init_makes_a_store_once_and_touches_nothing_of_others() {
    let bench = Bench::empty();
    let made = bench.ok(&["init", "s", "--block-size", "64K"]);
    assert_eq!(made, "s: made a store with blocks of 64K\n");
    bench.fails(&["init", "s"], 11, "s: is a revfs store already: ");
    fs::create_dir(bench.path("full")).unwrap();
    fs::write(bench.path("full/mine"), b"x").unwrap();
    bench.fails(&["init", "full"], 11, "full: is not empty: ");
    assert_eq!(fs::read_dir(bench.path("full")).unwrap().count(), 1);
    bench.fails(&["init", "s3://b/p"], 6, "does not serve yet");
    bench.fails(&["init", "t", "--block-size", "3M"], 2, "power of two");
    assert!(!bench.path("t").exists());
    let json = bench.json(&["init", "u", "--json"]);
    assert_eq!((json["store"].as_str(), json["block_size"].as_u64()), (Some("u"), Some(2 << 20)));
}

#[test]
fn what_is_no_store_is_told_by_its_content() {
    let bench = Bench::empty();
    bench.fails(&["ls", "none"], 3, "none: no such store: ");
    fs::create_dir(bench.path("dir")).unwrap();
    bench.fails(&["ls", "dir"], 6, "dir: is not a revfs store");
    fs::write(bench.path("data.bin"), b"FS21").unwrap();
    let (listed, notes) = bench.run(&["ls", "data.bin"]).expect_ok();
    assert!(listed.is_empty() && notes.contains("note: data.bin: has no ZBigFile"), "{notes}");
    bench.fails(&["rm", "data.bin", "x"], 6, "data.bin: is a ZODB database, which is written through ZODB");
    fs::write(bench.path("data.bin"), b"FS22").unwrap();
    bench.fails(&["ls", "data.bin"], 6, "data.bin: is a file, and not a store");
    bench.fails(&["log", "neo://c@host:1/x"], 6, "neo://c@host:1/x: is a ZODB on a NEO cluster");
}

#[test]
fn each_revision_of_each_file_is_read_back() {
    let bench = Bench::new();
    let sizes = [0, 1, 4095, 4096, 4097, 3 << 20, (5 << 20) + 17];
    let first: Vec<Vec<u8>> = sizes.iter().map(|size| noise(*size, 1)).collect();
    let t1 = bench.commit_all(&first);
    // Each file changes in another way: grows, shrinks, one byte in the middle, not at all.
    let mut second = first.clone();
    second[0] = noise(10_000, 2);
    second[4].truncate(100);
    second[5][1 << 20] ^= 1;
    second[6].truncate(4 << 20);
    let t2 = bench.commit_all(&second);
    assert!(t2 > t1);
    for (number, (old, new)) in first.iter().zip(&second).enumerate() {
        let name = format!("d/f{number}");
        assert!(bench.bytes(&["cat", "s", &name]) == *new, "{name} at head");
        assert!(bench.bytes(&["cat", "s", &name, "--at", &t1]) == *old, "{name} at @{t1}");
    }
    assert_eq!(bench.commit_all(&second), t2, "nothing changed, so no commit");
    assert_eq!(bench.json_lines(&["log", "s", "--json"]).len(), 2);
}

#[test]
fn a_commit_stores_only_blocks_that_differ() {
    let bench = Bench::new();
    let mut data = noise(3 << 20, 3);
    bench.commit("a", &data);
    data[2 * BLOCK + 5] ^= 1;
    data[100 * BLOCK..101 * BLOCK].fill(0);
    bench.commit("a", &data);
    let log = bench.json_lines(&["log", "s", "--limit", "1", "--json"]);
    let blocks = serde_json::json!([{"start": 2, "end": 3}, {"start": 100, "end": 101}]);
    assert_eq!(log[0]["files"][0]["blocks"], blocks);
    assert!(bench.bytes(&["cat", "s", "a"]) == data);
}

#[test]
fn a_compressed_store_gives_the_same_bytes() {
    let bench = Bench::empty();
    bench.ok(&["init", "s", "--compress", "zstd", "--block-size", "64K"]);
    let mut data = vec![7; 300_000];
    data.extend(noise(200_000, 4));
    bench.commit("a", &data);
    let t1 = bench.head();
    assert!(bench.bytes(&["cat", "s", "a"]) == data);
    assert_eq!(bench.commit("a", &data), t1, "equal blocks are known by their hashes");
    assert!(bench.bytes(&["cat", "s", "a", "--range", "65530..300010"]) == data[65530..300_010]);
}

#[test]
fn a_sparse_file_is_quick_and_its_holes_are_kept() {
    let bench = Bench::new();
    let source = fs::File::create(bench.path("big")).unwrap();
    source.set_len(1 << 40).unwrap();
    source.write_all_at(&noise(BLOCK, 5), 1 << 39).unwrap();
    bench.ok(&["commit", "s", "big=big"]);
    bench.ok(&["cat", "s", "big", "-o", "copy"]);
    let copy = fs::metadata(bench.path("copy")).unwrap();
    assert_eq!(copy.len(), 1 << 40);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
    let range = format!("{}..{}", (1u64 << 39) - 1, (1u64 << 39) + BLOCK as u64 + 1);
    let expected = [&[0], &noise(BLOCK, 5)[..], &[0]].concat();
    assert!(bench.bytes(&["cat", "s", "big", "--range", &range]) == expected);
    // Data that becomes a hole is no longer there.
    source.set_len(0).unwrap();
    source.set_len(1 << 40).unwrap();
    bench.ok(&["commit", "s", "big=big"]);
    assert!(bench.bytes(&["cat", "s", "big", "--range", &range]) == vec![0; BLOCK + 2]);
}

#[test]
fn a_hole_between_data_is_seen() {
    let bench = Bench::new();
    let mut data = noise(8 << 20, 20);
    bench.commit("a", &data);
    // Written anew, so that the middle is never allocated.
    data[(1 << 20) + 10..6 << 20].fill(0);
    let source = fs::File::create(bench.path("sparse")).unwrap();
    source.write_all_at(&data[..(1 << 20) + 10], 0).unwrap();
    source.write_all_at(&data[6 << 20..], 6 << 20).unwrap();
    bench.ok(&["commit", "s", "a=sparse"]);
    assert!(bench.bytes(&["cat", "s", "a"]) == data);
}

/// Writes, punches, cuts and extends a file at places that the seed chooses; answers its bytes.
fn edit_at_random(file: &fs::File, seed: u64) -> Vec<u8> {
    let spread =
        |part: &[u8]| part.iter().fold(1u64, |n, byte| (n ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let dice: Vec<u64> = noise(64, seed).chunks(8).map(|part| spread(part) >> 16).collect();
    let size = file.metadata().unwrap().len();
    let (at, len) = (dice[0] % (size + 1), dice[1] % (2 << 20));
    match dice[2] % 6 {
        0 => file.write_all_at(&noise(len as usize, seed + 1), at).unwrap(),
        1 => file.set_len(at).unwrap(),
        2 => file.set_len(size + len).unwrap(),
        // As it was once: equal to an older revision again.
        3 => file.write_all_at(&noise(6 << 20, 19)[..len as usize], 0).unwrap(),
        _ => {
            let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(file, flags, at, len + 1).is_err() {
                let end = (at + len).min(size);
                file.write_all_at(&vec![0; (end - at) as usize], at).unwrap();
            }
        }
    }
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn each_of_many_random_edits_is_read_back_and_its_ranges_are_told() {
    let bench = Bench::new();
    let file = fs::File::options().read(true).write(true).create_new(true).open(bench.path("work")).unwrap();
    file.write_all_at(&noise(6 << 20, 19), 0).unwrap();
    let mut states: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..24 {
        let bytes = edit_at_random(&file, 1000 + 7 * round);
        states.push((bench.line(&["commit", "s", "a=work"]), bytes));
    }
    for (number, (tid, bytes)) in states.iter().enumerate() {
        assert!(bench.bytes(&["cat", "s", "a", "--at", tid]) == *bytes, "edit {number}");
        bench.ok(&["cat", "s", "a", "--at", tid, "-o", "copy"]);
        assert!(fs::read(bench.path("copy")).unwrap() == *bytes, "edit {number}, to a file");
    }
    for pair in states.windows(4) {
        let [(from, old), .., (to, new)] = pair else { panic!() };
        for (from, old, to, new) in [(from, old, to, new), (to, new, from, old)] {
            let entries = bench.json_lines(&["diff", "s", from, to, "--json"]);
            let ranges = entries.first().map(|entry| entry["ranges"].as_array().unwrap().clone());
            let mut next = 0;
            for range in ranges.unwrap_or_default() {
                let [start, end] = ["start", "end"].map(|side| range[side].as_u64().unwrap() as usize);
                assert!(start >= next && start < end && end <= new.len(), "{from} {to}");
                assert!(new[next..start] == old[next..start], "{from}..{to}: bytes {next}..{start} differ");
                for block in
                    (start..end).step_by(BLOCK).filter(|block| block + BLOCK <= old.len().min(new.len()))
                {
                    let differ = new[block..block + BLOCK] != old[block..block + BLOCK];
                    assert!(differ, "{from}..{to}: the block at {block} is equal");
                }
                next = end;
            }
            // What is beyond the end of the second state is gone, which its size tells.
            let rest = old.get(next..new.len()).unwrap_or_default();
            assert!(new[next..] == *rest, "{from}..{to}: bytes from {next} differ");
        }
    }
}

#[test]
fn stdin_is_committed_to_its_end() {
    let bench = Bench::new();
    for (size, seed) in [(3_000_000, 6), (100, 7), (0, 8), (1 << 20, 9)] {
        let data = noise(size, seed);
        bench.run_with_stdin(&["commit", "s", "a=-"], &data).expect_ok();
        assert!(bench.bytes(&["cat", "s", "a"]) == data, "{size}");
    }
    bench.fails(&["commit", "s", "a=-", "b=-"], 2, "stdin: is given twice");
}

#[test]
fn sources_that_are_no_files_are_refused_with_the_remedy() {
    let bench = Bench::new();
    fs::write(bench.path("good"), b"good").unwrap();
    fs::create_dir(bench.path("dir")).unwrap();
    bench.fails(&["commit", "s", "a=good", "b=dir"], 2, "dir: is a directory, not a regular file: name each");
    bench.fails(&["commit", "s", "a=good", "b=/dev/zero"], 2, "use NAME=- and redirect it");
    bench.fails(&["commit", "s", "a=good", "b=none"], 3, "none: cannot be opened: ");
    bench.fails(&["commit", "s", "a=good", "a=good"], 2, "a: is given twice");
    bench.fails(&["commit", "s", "a"], 2, "has no '='");
    bench.fails(&["commit", "s", "/a=good"], 2, "no component is empty");
    assert_eq!(bench.head(), "0".repeat(16), "nothing was committed");
}

#[test]
fn a_fixed_block_size_is_not_changed() {
    let bench = Bench::new();
    bench.commit("a", b"one");
    let args = ["commit", "s", "a=source", "--block-size", "64K"];
    bench.fails(&args, 2, "a: has blocks of 4K, not of 64K: ");
    bench.ok(&["commit", "s", "b=source", "--block-size", "64K"]);
    let ls = bench.json_lines(&["ls", "s", "--json"]);
    assert_eq!(ls[1]["block_size"], 65536);
}

#[test]
fn a_file_that_changed_since_base_conflicts_unless_blocks_are_merged() {
    let bench = Bench::new();
    let base = noise(4 * BLOCK, 10);
    let t1 = bench.commit("a", &base);
    let (mut first, mut second) = (base.clone(), base.clone());
    first[0] ^= 1;
    second[3 * BLOCK] ^= 1;
    bench.commit("a", &first);
    fs::write(bench.path("source"), &second).unwrap();
    let stale = ["commit", "s", "a=source", "--base", &t1];
    bench.fails(&stale, 4, "a: conflicts with commit ");
    let merged = bench.run(&[&stale[..], &["--merge"]].concat());
    assert!(merged.expect_ok().1.contains("--merge: blocks of different writers may have been merged"));
    let both: Vec<u8> = [&first[..BLOCK], &second[BLOCK..]].concat();
    assert!(bench.bytes(&["cat", "s", "a"]) == both);
    let mut third = base.clone();
    third[7] ^= 1;
    fs::write(bench.path("source"), &third).unwrap();
    bench.fails(&[&stale[..], &["--merge"]].concat(), 4, "both changed blocks 0");
}

#[test]
fn log_follows_a_file_through_renames() {
    let bench = Bench::new();
    let t1 = bench.commit("a", b"one");
    let t2 = bench.commit("other", b"x");
    let t3 = bench.line(&["mv", "s", "a", "dir/b", "-m", "why", "--author", "me"]);
    let t4 = bench.commit("dir/b", b"two");
    let tids = |args: &[&str]| -> Vec<String> {
        let lines = bench.json_lines(&[args, &["--json"]].concat());
        lines.iter().map(|line| line["tid"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(tids(&["log", "s"]), [&*t4, &t3, &t2, &t1]);
    assert_eq!(tids(&["log", "s", "dir/b"]), [&*t4, &t3, &t1]);
    assert_eq!(tids(&["log", "s", "a"]), [&*t3, &t1]);
    assert_eq!(tids(&["log", "s", "dir", "--since", &t3]), [&*t4]);
    assert_eq!(tids(&["log", "s", "--limit", "2"]), [&*t4, &t3]);
    bench.fails(&["log", "s", "never"], 3, "never: no commit ever touched it");
    let text = bench.ok(&["log", "s", "--limit", "2"]);
    assert!(text.contains("  me\n    why\n  renamed  a -> dir/b\n"), "{text}");
    let log = &bench.json_lines(&["log", "s", "--since", &t2, "--json"])[1];
    assert_eq!(log["files"][0]["renamed_from"]["name"], "a");
    assert_eq!((log["author"].as_str(), log["message"].as_str()), (Some("me"), Some("why")));
}

#[test]
fn a_directory_is_renamed_and_removed_as_a_whole() {
    let bench = Bench::new();
    for name in ["d/a", "d/e/b", "dd", "x"] {
        bench.commit(name, name.as_bytes());
    }
    let before = bench.head();
    bench.ok(&["mv", "s", "d", "n/d"]);
    assert_eq!(bench.names(&[]), ["dd", "n/d/a", "n/d/e/b", "x"]);
    assert_eq!(bench.bytes(&["cat", "s", "n/d/e/b"]), b"d/e/b");
    assert_eq!(bench.names(&[&before]), ["d/a", "d/e/b", "dd", "x"]);
    bench.fails(&["mv", "s", "n", "n/d/m"], 2, "n: is moved below itself");
    bench.fails(&["mv", "s", "x", "dd"], 11, "dd: exists already: ");
    bench.fails(&["mv", "s", "x", "x"], 2, "x: is moved to itself");
    bench.fails(&["mv", "s", "none", "y"], 3, "none: does not exist");
    bench.fails(&["mv", "s", "x", "dd/x"], 11, "dd: is a file in the store");
    bench.fails(&["rm", "s", "n"], 1, "n: is a directory: use -r");
    bench.fails(&["rm", "s", "x", "none"], 3, "none: does not exist");
    assert_eq!(bench.names(&[]).len(), 4, "nothing was removed");
    bench.ok(&["rm", "-r", "s", "n", "n/d/a", "x"]);
    assert_eq!(bench.names(&[]), ["dd"]);
    bench.fails(&["cat", "s", "x"], 3, "x: does not exist at @");
    assert_eq!(bench.bytes(&["cat", "s", "x", "--at", &before]), b"x");
}

#[test]
fn a_directory_is_renamed_to_the_name_of_its_parent_if_that_becomes_free() {
    let bench = Bench::new();
    bench.commit("a/b/c", b"1");
    bench.ok(&["mv", "s", "a/b", "a"]);
    assert_eq!(bench.names(&[]), ["a/c"]);
    bench.ok(&["mv", "s", "a/c", "a"]);
    assert_eq!(bench.names(&[]), ["a"]);
    bench.ok(&["mv", "s", "a", "a/x"]);
    assert_eq!(bench.names(&[]), ["a/x"]);
}

#[test]
fn a_tag_is_moved_only_by_force() {
    let bench = Bench::new();
    let t1 = bench.commit("a", b"one");
    bench.ok(&["tag", "s", "v1"]);
    fs::write(bench.path("source"), b"two").unwrap();
    let t2 = bench.line(&["commit", "s", "a=source", "--tag", "v2"]);
    let targets = || -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        bench
            .json_lines(&["tags", "s", "--json"])
            .iter()
            .map(|t| (text(&t["tag"]), text(&t["tid"])))
            .collect()
    };
    let pair = |tag: &str, tid: &str| (tag.to_owned(), tid.to_owned());
    assert_eq!(targets(), [pair("v1", &t1), pair("v2", &t2)]);
    assert_eq!(bench.bytes(&["cat", "s", "a", "--at", "@v1"]), b"one");
    bench.fails(&["tag", "s", "v1", &t2], 11, "tag v1: exists already, at @");
    bench.fails(&["commit", "s", "b=source", "--tag", "v1"], 11, "tag v1: exists already");
    bench.ok(&["tag", "s", "v1", &t1]);
    bench.ok(&["tag", "s", "v1", &t2, "--force"]);
    bench.ok(&["tag", "s", "v2", "--delete"]);
    assert_eq!(targets(), [pair("v1", &t2)]);
    bench.fails(&["tag", "s", "v2", "--delete"], 3, "tag v2: does not exist");
    bench.fails(&["ls", "s", "v2"], 3, "tag v2 does not exist");
    bench.fails(&["tag", "s", "2026"], 2, "looks like a time");
}

#[test]
fn a_diff_names_files_and_ranges_in_both_directions() {
    let bench = Bench::new();
    let data = noise(10 * BLOCK + 100, 11);
    bench.commit("a", &data);
    bench.commit("gone", b"g");
    bench.commit("moved", b"m");
    let t1 = bench.commit("same", &data);
    let mut changed = data.clone();
    changed[BLOCK] ^= 1;
    changed[2 * BLOCK] ^= 1;
    changed.extend(noise(BLOCK, 12));
    bench.commit("a", &changed);
    bench.commit("same", b"for a moment");
    bench.commit("same", &data);
    bench.ok(&["rm", "s", "gone"]);
    bench.ok(&["mv", "s", "moved", "named"]);
    bench.commit("new", b"12345");
    let text = bench.ok(&["diff", "s", &t1, "head"]);
    let old = data.len();
    let expected = format!(
        "changed  a  40.1 KiB -> 44.1 KiB\n    4096..12288  8 KiB\n    {}..{}  4.1 KiB\n\
         deleted  gone  1 B\nrenamed  moved -> named  1 B\ncreated  new  5 B\n",
        10 * BLOCK,
        old + BLOCK
    );
    assert_eq!(text, expected);
    let back = bench.json_lines(&["diff", "s", "head", &t1, "--json"]);
    let brief: Vec<(&str, &str)> =
        back.iter().map(|e| (e["change"].as_str().unwrap(), e["name"].as_str().unwrap())).collect();
    assert_eq!(brief, [("changed", "a"), ("created", "gone"), ("renamed", "moved"), ("deleted", "new")]);
    assert_eq!(back[0]["ranges"][1]["end"], old);
    assert_eq!(bench.ok(&["diff", "s", "head", "head"]), "");
}

#[test]
fn a_diff_tells_what_was_cut_off_a_file_that_shrank() {
    let bench = Bench::new();
    let data = noise(3 * BLOCK, 13);
    let t1 = bench.commit("a", &data);
    let mut shorter = data[..BLOCK + 10].to_vec();
    shorter[0] ^= 1;
    bench.commit("a", &shorter);
    let expected = "changed  a  12 KiB -> 4 KiB\n    0..4106  4 KiB\n    4106..12288  8 KiB cut off\n";
    assert_eq!(bench.ok(&["diff", "s", &t1, "head"]), expected);
    let json = bench.json(&["diff", "s", &t1, "head", "--json"]);
    assert_eq!(json["cut_off"], serde_json::json!({"start": BLOCK + 10, "end": 3 * BLOCK}));
    // What has grown has nothing cut off.
    let back = bench.json(&["diff", "s", "head", &t1, "--json"]);
    assert_eq!(back.get("cut_off"), None);
    bench.ok(&["mv", "s", "a", "b"]);
    assert!(bench.ok(&["diff", "s", &t1, "head"]).ends_with("    4106..12288  8 KiB cut off\n"));
}

#[test]
fn a_time_to_come_is_told_as_such_and_one_before_all_is_the_empty_state() {
    let bench = Bench::new();
    bench.commit("a", b"1");
    for time in ["2500", "2999-01-01", "9999-12-31T23"] {
        bench.fails(&["ls", "s", time], 3, "is in the future");
    }
    for time in ["0001-01-01", "1899-12-31T23:59", "1969"] {
        assert_eq!(bench.ok(&["ls", "s", time]), "", "{time}");
    }
    bench.fails(&["ls", "s", "0000"], 2, "is not a time");
}

#[test]
fn without_variables_the_author_is_the_name_of_the_user() {
    let bench = Bench::new();
    fs::write(bench.path("f"), b"1").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_revfs"));
    for variable in ["REVFS_AUTHOR", "LOGNAME", "USER"] {
        command.env_remove(variable);
    }
    let args = ["commit", "s", "f=f"];
    assert!(command.args(args).current_dir(bench.path("")).output().unwrap().status.success());
    let name = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    assert_eq!(bench.json(&["log", "s", "--json"])["author"], name.trim_end());
}

#[test]
fn du_sums_what_files_take() {
    let bench = Bench::new();
    bench.commit("a", &noise(BLOCK, 13));
    bench.commit("d/b", &[0; 10 * BLOCK]);
    let du = bench.json(&["du", "s", "--json"]);
    assert_eq!(du["size"].as_u64(), Some(11 * BLOCK as u64));
    assert_eq!(du["stored"].as_u64(), Some(BLOCK as u64));
    assert!(du["disk"]["total"].as_u64() > Some(0));
    let below = bench.json(&["du", "s", "d", "--json"]);
    assert_eq!(below["files"][0]["name"], "d/b");
    assert!(below["disk"].is_null());
    bench.fails(&["du", "s", "none"], 3, "none: does not exist");
    assert!(bench.ok(&["du", "s"]).contains("44 KiB   4 KiB  in all, 2 files\n"));
}

#[test]
fn cat_writes_a_file_whole_or_not_at_all() {
    let bench = Bench::new();
    let data = noise(100_000, 14);
    bench.commit("d/a", &data);
    bench.ok(&["cat", "s", "d/a", "-o", "out", "--range", "5..50000"]);
    assert!(fs::read(bench.path("out")).unwrap() == data[5..50_000]);
    bench.ok(&["cat", "s", "d/a", "-o", "out"]);
    assert!(fs::read(bench.path("out")).unwrap() == data);
    bench.fails(&["cat", "s", "none", "-o", "out"], 3, "none: does not exist");
    bench.fails(&["cat", "s", "d", "-o", "out"], 1, "d: is a directory");
    bench.fails(&["cat", "s", "d/a", "-o", "no/out"], 3, "no/out: cannot be written: ");
    bench.fails(&["cat", "s", "d/a", "-o", "/dev/null"], 1, "not a regular file");
    bench.fails(&["cat", "s", "d/a", "--at", "ffffffffffffffff"], 3, "is ahead of head");
    bench.fails(&["cat", "s", "d/a", "--range", "9..1"], 2, "ends before it starts");
    assert!(fs::read(bench.path("out")).unwrap() == data, "a failure leaves the old file");
    assert_eq!(bench.bytes(&["cat", "s", "d/a", "--range", "99990..1G"]), &data[99_990..]);
    assert_eq!(bench.bytes(&["cat", "s", "d/a", "--range", "1G.."]), b"");
}

#[test]
fn names_that_are_not_utf8_work() {
    let bench = Bench::new();
    fs::write(bench.path("source"), b"bytes").unwrap();
    let raw = |bytes: &[u8]| std::ffi::OsString::from_vec(bytes.to_vec());
    bench.run_os(&["commit".into(), "s".into(), raw(b"d/\xff=source")]).expect_ok();
    let ls = bench.json_lines(&["ls", "s", "--json"]);
    assert_eq!((ls[0]["name"].as_str(), ls[0]["name_hex"].as_str()), (Some("d/\u{fffd}"), Some("642fff")));
    assert!(bench.ok(&["ls", "s"]).ends_with("  d/\\xff\n"));
    assert_eq!(bench.run_os(&["cat".into(), "s".into(), raw(b"d/\xff")]).expect_ok().0, b"bytes");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let bench = Bench::new();
    bench.commit("a", &noise(4 << 20, 15));
    let ended = bench.run_without_reader(&["cat", "s", "a"]);
    assert_eq!(ended, (0, String::new()));
    let ended = bench.run_without_reader(&["log", "s"]);
    assert_eq!(ended, (0, String::new()));
}

#[test]
fn a_full_disk_is_told_as_such() {
    let bench = Bench::new();
    bench.commit("a", b"one");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ended = bench.run_into(&["cat", "s", "a"], full);
    assert_eq!(ended.0, 9);
    assert!(ended.1.starts_with("error: stdout: cannot be written: No space left"), "{}", ended.1);
}

#[test]
fn verify_tells_damage_and_exits_with_7() {
    let bench = Bench::new();
    bench.commit("a", &noise(1 << 20, 16));
    assert!(bench.ok(&["verify", "s"]).starts_with("whole: 1 commit record and 1 pack up to @"));
    let pack = bench.find_pack();
    let file = fs::File::options().write(true).open(pack).unwrap();
    file.write_all_at(&[0; 8], 5000).unwrap();
    let (code, out, _) = bench.run(&["verify", "s", "--json"]).parts();
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((code, &json["damaged"]), (7, &serde_json::json!(true)));
    bench.fails(&["cat", "s", "a", "-o", "out"], 7, "is damaged");
    assert!(!bench.path("out").exists());
    bench.ok(&["verify", "s", "--quick"]);
}

#[test]
fn help_version_and_completions_go_to_stdout() {
    let bench = Bench::empty();
    let help = bench.ok(&["--help"]);
    assert!(help.contains("EXIT STATUS") && help.contains("REVISIONS"));
    assert!(bench.ok(&["--version"]).contains("(store format 1)"));
    assert!(bench.ok(&["completions", "bash"]).contains("_revfs"));
    assert!(bench.ok(&["commit", "--help"]).contains("EXAMPLES"));
    bench.fails(&["frobnicate"], 2, "error: ");
}

#[test]
fn a_source_that_grows_while_it_is_read_is_not_committed() {
    let bench = Bench::new();
    fs::write(bench.path("first"), b"first").unwrap();
    let mut growing = fs::File::create(bench.path("growing")).unwrap();
    growing.write_all(&noise(BLOCK, 17)).unwrap();
    // The program waits for stdin after it has opened both files.
    let mut waiting = bench.start(&["commit", "s", "a=growing", "b=-"]);
    let mut stdin = waiting.stdin.take().unwrap();
    // More than a pipe holds, so that it is being read, and the files are open, when this returns.
    stdin.write_all(&noise(1 << 20, 18)).unwrap();
    growing.write_all(b"more").unwrap();
    drop(stdin);
    let ended = waiting.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(12), "{text}");
    assert!(text.contains("growing: changed while it was read (its size); nothing was committed"), "{text}");
    assert_eq!(bench.head(), "0".repeat(16));
}
