//! A mount of a database behind a ZEO server: what it shows, in an outage too.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use revfs::env;
use revfs_protocol::FileId;

use crate::checks::sha256;
use crate::live::{Guarded, Live, Place, no_fuse, wait_until};
use crate::mapping::Mapping;
use crate::python::{Writer, python};
use crate::{BLOCK, CODINGS, OPTIONS, hashes};

/// A database that is written, and a ZEO server before it.
fn served(place: &Place, python: &Path, seed: &str) -> Writer {
    Writer::start(python, &place.path("Data.fs"), &[&["--seed", seed], &OPTIONS[..]].concat())
}

fn start(place: &Place, writer: &mut Writer, coding: &str) {
    writer.ask(&format!("zeo start {} {coding}", place.path("zeo.sock").display()), "zeo");
}

/// Mounts it; answers are waited for so many seconds.
fn mount(place: &Place, seconds: u64, options: &[&str]) -> Live {
    let url = format!("zeo://{}?wait_timeout={seconds}", place.path("zeo.sock").display());
    place.mount_store(&url, "m", options)
}

fn compare(writer: &mut Writer, live: &Live, root: &str, at: &str) {
    for (file, expected) in hashes(writer, at) {
        let bytes = fs::read(live.path(&format!("{root}/bigfile/{file}"))).unwrap();
        let found: Vec<String> = bytes.chunks(BLOCK).map(sha256).collect();
        assert_eq!(found, expected, "{file} @{at}");
    }
}

#[test]
fn commands_and_a_mount_serve_a_zeo_server() {
    const NAME: &str = "commands_and_a_mount_serve_a_zeo_server";
    let Some(python) = python(NAME) else { return };
    if no_fuse(NAME) {
        return;
    }
    let place = Place::empty();
    let mut writer = served(&place, &python, "11");
    // By TCP, with an empty host, as the clients of wendelin.core write it.
    let address = writer.ask("zeo start", "zeo");
    let url = format!("zeo://:{}", address.rsplit_once(':').unwrap().1);
    let tid = writer.ask("commit", "tid");
    for command in [vec!["ls"], vec!["log"], vec!["verify"], vec!["ls", "--json"], vec!["log", "--json"]] {
        let of = |store: &str| {
            let args = [&command[..1], &[store], &command[1..]].concat();
            place.ok(&args).replace(store, "STORE")
        };
        let through_zeo = of(&url);
        writer.ask("zeo stop", "stopped");
        let direct = of("Data.fs");
        writer.ask("zeo start", "zeo");
        assert_eq!(through_zeo, direct, "{command:?}");
    }
    let (file, expected) = hashes(&mut writer, "head").pop_first().unwrap();
    let bytes = place.bytes(&["cat", &url, &file.to_string()]);
    assert_eq!(bytes.chunks(BLOCK).map(sha256).collect::<Vec<_>>(), expected);
    let live = place.mount_store(&format!("{url}?storage=1&connection_pool_size=7"), "m", &[]);
    assert_eq!(live.at(), tid);
    let mut tids = vec![tid];
    for round in 0..15 {
        let tid = writer.ask(if round % 7 == 6 { "undo" } else { "commit" }, "tid");
        live.wait(&tid);
        compare(&mut writer, &live, "head", &tid);
        tids.push(tid);
    }
    for tid in &tids {
        compare(&mut writer, &live, &format!("@{tid}"), tid);
    }
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
    place.fails(&["ls", &format!("{url}?storage=nosuch")], 1, "unknown storage: nosuch");
    place.fails(&["ls", "zeo://localhost:1"], 1, "refused");
    place.fails(&["ls", "zeo://localhost:x"], 1, "no port");
    place.fails(&["ls", "neo://localhost:1/x"], 6, "NEO");
    place.fails(&["ls", "demo:(zeo://localhost:1)/(zeo://localhost:2)"], 6, "DemoStorage");
    place.fails(&["rm", &url, "x"], 6, "written through ZODB");
}

/// Threads that read all of head again and again, until they are dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
    reads: Arc<AtomicU64>,
}

impl Load {
    fn start(live: &Live) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let reads = Arc::new(AtomicU64::new(0));
        let body = |number: usize| {
            let (stop, reads, root) = (Arc::clone(&stop), Arc::clone(&reads), live.path("head"));
            move || {
                let mut before = String::new();
                while !stop.load(Ordering::SeqCst) {
                    let at = fs::read_to_string(root.join("at")).unwrap();
                    assert!(at >= before, "head/at goes back from {before} to {at}");
                    before = at;
                    // What is committed meanwhile may take a file away, or make it shorter.
                    for name in fs::read_dir(root.join("bigfile")).unwrap().flatten() {
                        if let Ok(bytes) = fs::read(name.path()) {
                            assert!(bytes.len() % BLOCK == 0 || number > 0);
                            reads.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            }
        };
        let threads = (0..2).map(|number| env::spawn("load", body(number)).unwrap()).collect();
        Load { stop, threads, reads }
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        self.reads.load(Ordering::SeqCst)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_server_that_is_killed_under_load_loses_nothing() {
    const NAME: &str = "a_server_that_is_killed_under_load_loses_nothing";
    let Some(python) = python(NAME) else { return };
    if no_fuse(NAME) {
        return;
    }
    let place = Place::empty();
    let mut writer = served(&place, &python, "12");
    start(&place, &mut writer, "pickle");
    let live = mount(&place, 60, &[]);
    let load = Load::start(&live);
    let mut tids = Vec::new();
    for round in 0..6 {
        for _ in 0..3 {
            tids.push(writer.ask("commit", "tid"));
        }
        live.wait(tids.last().unwrap());
        compare(&mut writer, &live, "head", &tids[tids.len() - 1]);
        writer.ask("zeo kill", "killed");
        for _ in 0..round {
            tids.push(writer.ask("commit", "tid"));
        }
        start(&place, &mut writer, CODINGS[round % 2]);
        live.wait(tids.last().unwrap());
        compare(&mut writer, &live, "head", &tids[tids.len() - 1]);
    }
    assert!(load.end() > 20);
    for tid in &tids {
        compare(&mut writer, &live, &format!("@{tid}"), tid);
    }
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn an_outage_ends_reads_that_need_the_server_and_no_others() {
    const NAME: &str = "an_outage_ends_reads_that_need_the_server_and_no_others";
    let Some(python) = python(NAME) else { return };
    if no_fuse(NAME) {
        return;
    }
    let place = Place::empty();
    let mut writer = served(&place, &python, "13");
    start(&place, &mut writer, "msgpack");
    let live = mount(&place, 1, &[]);
    let tid = writer.ask("commit", "tid");
    live.wait(&tid);
    let mut files: BTreeMap<FileId, Vec<String>> = hashes(&mut writer, "head");
    files.retain(|_, blocks| blocks.len() > 1);
    let (known, known_blocks) = files.pop_first().unwrap();
    let (other, _) = files.pop_first().unwrap();
    let all = fs::read(live.head(&known.to_string())).unwrap();
    // Its size is asked for, its bytes are not.
    let unread = fs::File::open(live.head(&other.to_string())).unwrap();
    writer.ask("zeo kill", "killed");
    wait_until("it is told", || place.ok(&["status", "m"]).contains("does not answer"));
    // Many at once: they hold up nobody else.
    let (sender, ended) = channel();
    for _ in 0..40 {
        let (unread, sender) = (unread.try_clone().unwrap(), sender.clone());
        let read = move || sender.send(unread.read_at(&mut [0; 100], 0)).unwrap();
        drop(env::spawn("read", read).unwrap());
    }
    assert_eq!(live.at(), tid);
    assert_eq!(live.stat("kills"), 0);
    assert_eq!(fs::read(live.head(&known.to_string())).unwrap(), all);
    // Under this name the kernel has none of it; the server kept it.
    let kept = fs::read(live.rev(&tid, &known.to_string())).unwrap();
    assert_eq!(kept.chunks(BLOCK).map(sha256).collect::<Vec<_>>(), known_blocks);
    for _ in 0..40 {
        let read = ended.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(read.unwrap_err().raw_os_error(), Some(5), "EIO");
    }
    assert_eq!(live.at(), tid);
    start(&place, &mut writer, "pickle");
    wait_until("the server is found again", || unread.read_at(&mut [0; 100], 0).is_ok());
    let next = writer.ask("commit", "tid");
    live.wait(&next);
    compare(&mut writer, &live, "head", &next);
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn an_unmount_lets_go_what_waits_for_a_server() {
    const NAME: &str = "an_unmount_lets_go_what_waits_for_a_server";
    let Some(python) = python(NAME) else { return };
    if no_fuse(NAME) {
        return;
    }
    let place = Place::empty();
    let mut writer = served(&place, &python, "14");
    start(&place, &mut writer, "pickle");
    let tids: Vec<String> = (0..40).map(|_| writer.ask("commit", "tid")).collect();
    // It keeps next to nothing.
    let live = mount(&place, 3600, &["--cache", "4K", "--threads", "4"]);
    let mut files = hashes(&mut writer, "head");
    files.retain(|_, blocks| !blocks.is_empty());
    let file = files.pop_first().unwrap().0.to_string();
    let known = live.head(&file);
    let bytes = fs::read(&known).unwrap();
    // Pages that are mapped stay, also if somebody shrinks the page cache of the machine.
    let mapping = Mapping::new(&known, bytes.len());
    assert!(mapping.bytes() == bytes);
    let head = live.at();
    writer.ask("zeo kill", "killed");
    wait_until("it is told", || place.ok(&["status", "m"]).contains("does not answer"));
    // Each asks for something else, so the kernel holds none of them back.
    let mut cats: Vec<Guarded> = (tids.iter())
        .map(|tid| {
            let mut cat = std::process::Command::new("cat");
            let cat = cat.arg(live.rev(tid, &file)).stdout(Stdio::null()).stderr(Stdio::null());
            Guarded(cat.spawn().unwrap())
        })
        .collect();
    // They wait, and would do so for an hour; what needs no server is answered meanwhile.
    wait_until("many wait", || cats.iter().filter(|cat| in_read(cat.0.id())).count() > 20);
    assert_eq!(live.at(), head);
    assert!(mapping.bytes() == bytes);
    drop(mapping);
    assert_eq!(live.stat("kills"), 0);
    let mut link = fs::File::options().read(true).write(true).open(live.path("head/watch")).unwrap();
    link.write_all(b"1 nonsense\n").unwrap();
    let mut answer = [0; 100];
    let len = link.read(&mut answer).unwrap();
    assert!(answer[..len].starts_with(b"1 error "), "{}", String::from_utf8_lossy(&answer[..len]));
    drop(link);
    let waiting = cats.iter_mut().filter_map(|cat| cat.0.try_wait().unwrap().is_none().then_some(cat));
    let mut waiting: Vec<&mut Guarded> = waiting.collect();
    assert!(waiting.len() > 20, "{} wait", waiting.len());
    let ended = place.run(&["umount", "m"]);
    assert_eq!(ended.code(), 0, "{}", ended.err);
    // They were let go: nobody had to cut them off.
    let log = fs::read_to_string(place.path("server.log")).unwrap() + &ended.err;
    assert!(!log.contains("abort"), "{log}");
    for cat in &mut waiting {
        assert!(!crate::live::end_of(&mut cat.0, Duration::from_secs(20)).success());
    }
    place.expect_nothing_left();
}

/// Whether a process waits in a request to a filesystem.
fn in_read(pid: u32) -> bool {
    let stack = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    stack.contains("request_wait_answer") || stack.contains("folio_wait")
}
