//! A mounted file `a` of a few blocks, each filled with one value, and who reads it.
//!
//! It is in a native store, to which `revfs commit` commits, or in a ZODB database, to which transactions are appended.
//!
//! Invariant: a READ that waits for a pin is done by a thread that nobody waits for without a limit, so that a test
//! that fails ends.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use rustix::fs::{Advice, Mode, OFlags, fadvise, open};

use crate::datafs::DataFs;
use crate::link::{WatchFile, file_id};
use crate::live::{Live, Place, SOON, wait_until};
use crate::mapping::{Mapping, PAGE};

/// Bytes of a block.
pub const BLOCK: usize = 64 << 10;
/// Pages of a block.
pub const PAGES: usize = BLOCK / PAGE;
/// The name of the database of a stage that is on one.
const DATABASE: &str = "Data.fs";
/// A pin timeout that no test lives to see.
pub const LONG: &str = "1h";

/// Bytes of a file whose blocks are each filled with one value.
pub fn filled(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|value| vec![*value; BLOCK]).collect()
}

/// Commits a file of such blocks; a block of zeros is a hole.
pub fn commit_file(place: &Place, name: &str, values: &[u8]) -> String {
    let source = File::create(place.path("source")).unwrap();
    source.set_len((values.len() * BLOCK) as u64).unwrap();
    for (block, value) in values.iter().enumerate().filter(|(_, value)| **value != 0) {
        source.write_all_at(&vec![*value; BLOCK], (block * BLOCK) as u64).unwrap();
    }
    place.ok(&["commit", "s", &format!("{name}=source"), "--block-size", "64K"])
}

/// What a stage is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Native,
    Zodb,
}

/// A database, and the values of its files as committed last.
struct Zodb {
    data: DataFs,
    values: BTreeMap<String, Vec<u8>>,
}

impl Zodb {
    /// Commits a file of such blocks; a block of zeros is a hole, but the last one, which gives the file its size.
    fn commit(&mut self, name: &str, values: &[u8]) -> String {
        let old = self.values.insert(name.to_owned(), values.to_vec()).unwrap_or_default();
        let is_there = |values: &[u8], block: usize| {
            values.get(block).is_some_and(|value| *value != 0 || block + 1 == values.len())
        };
        let mut blocks = Vec::new();
        for block in 0..values.len().max(old.len()) {
            let (was, is) = (is_there(&old, block), is_there(values, block));
            if is && (!was || old[block] != values[block]) {
                blocks.push((block as u64, Some(vec![values[block]; BLOCK])));
            } else if was && !is {
                blocks.push((block as u64, None));
            }
        }
        self.data.write(name, BLOCK as u64, blocks).to_string()
    }
}

/// The mount.
pub struct Stage {
    pub live: Live,
    pub place: Place,
    /// `None`: it is on a native store.
    zodb: Option<Mutex<Zodb>>,
}

impl Stage {
    /// A file of one version; its tid.
    pub fn new(values: &[u8]) -> (Stage, String) {
        Stage::on(Kind::Native, values)
    }

    /// The same on a store of some kind.
    pub fn on(kind: Kind, values: &[u8]) -> (Stage, String) {
        let (stage, tids) = Stage::on_with(kind, &["--pin-timeout", LONG], &[values]);
        (stage, tids[0].clone())
    }

    /// A file of versions that were committed before the mount; their tids.
    pub fn with(options: &[&str], versions: &[&[u8]]) -> (Stage, Vec<String>) {
        Stage::on_with(Kind::Native, options, versions)
    }

    /// The same on a store of some kind.
    pub fn on_with(kind: Kind, options: &[&str], versions: &[&[u8]]) -> (Stage, Vec<String>) {
        if kind == Kind::Native {
            let place = Place::new();
            let tids = versions.iter().map(|values| commit_file(&place, "a", values)).collect();
            let live = place.mount_with("m", options);
            return (Stage { live, place, zodb: None }, tids);
        }
        let place = Place::empty();
        let mut zodb = Zodb { data: DataFs::create(&place.path(DATABASE)), values: BTreeMap::new() };
        let tids = versions.iter().map(|values| zodb.commit("a", values)).collect();
        let live = place.mount_store(DATABASE, "m", options);
        (Stage { live, place, zodb: Some(Mutex::new(zodb)) }, tids)
    }

    /// Mounts the store once more at the same place, after its server was killed.
    pub fn mount_again(&self) -> Live {
        self.place.mount_store(self.store(), "m", &[])
    }

    /// The name of the store in its place.
    pub fn store(&self) -> &'static str {
        if self.zodb.is_some() { DATABASE } else { "s" }
    }

    /// Commits and waits until head shows it.
    pub fn commit(&self, values: &[u8]) -> String {
        let tid = self.commit_to("a", values);
        self.live.wait(&tid);
        tid
    }

    /// Commits a file of any name, and waits for nothing.
    pub fn commit_to(&self, name: &str, values: &[u8]) -> String {
        match &self.zodb {
            Some(zodb) => zodb.lock().unwrap().commit(name, values),
            None => commit_file(&self.place, name, values),
        }
    }

    /// Commits a new file with blocks of any size, each filled with one value, and waits for nothing.
    pub fn commit_blocks(&self, name: &str, block_size: usize, values: &[u8]) -> String {
        let blocks = values.iter().map(|value| vec![*value; block_size]);
        match &self.zodb {
            Some(zodb) => {
                let blocks = (0..).zip(blocks).map(|(block, bytes)| (block, Some(bytes))).collect();
                zodb.lock().unwrap().data.write(name, block_size as u64, blocks).to_string()
            }
            None => {
                fs::write(self.place.path("source"), blocks.collect::<Vec<_>>().concat()).unwrap();
                let size = block_size.to_string();
                self.place.ok(&["commit", "s", &format!("{name}=source"), "--block-size", &size])
            }
        }
    }

    /// Commits that a file is no more, and waits for nothing.
    pub fn remove(&self, name: &str) -> String {
        match &self.zodb {
            Some(zodb) => {
                let mut zodb = zodb.lock().unwrap();
                zodb.values.remove(name);
                zodb.data.remove(name).to_string()
            }
            None => self.place.ok(&["rm", "s", name]),
        }
    }

    /// The name under which the mount shows a file.
    pub fn name(&self, name: &str) -> String {
        self.zodb.as_ref().map_or_else(|| name.to_owned(), |zodb| zodb.lock().unwrap().data.name(name))
    }

    /// A file of head.
    pub fn head(&self, name: &str) -> PathBuf {
        self.live.head(&self.name(name))
    }

    /// A file of a revision.
    pub fn rev(&self, tid: &str, name: &str) -> PathBuf {
        self.live.rev(tid, &self.name(name))
    }

    /// The value of the first page of a block of the file, as of a pin's `@rev`; 0 behind its end.
    pub fn value_at(&self, rev: &str, block: u64) -> u8 {
        let path = self.live.path(&format!("{rev}/by-id/{}", self.file()));
        let bytes = Reading::start(&path, usize::try_from(block).unwrap() * BLOCK, PAGE).bytes();
        let value = bytes.first().copied().unwrap_or(0);
        assert!(bytes.iter().all(|byte| *byte == value));
        value
    }

    /// The file's id.
    pub fn file(&self) -> String {
        file_id(&self.head("a"))
    }

    /// A new link.
    pub fn link(&self) -> WatchFile {
        WatchFile::open(self.live.root())
    }

    /// A new link that watches the file at a revision; nothing is to be pinned for it.
    pub fn watching(&self, at: &str) -> WatchFile {
        let mut link = self.link();
        let (pins, answer) = link.ask_and_ack(&format!("watch {} @{at}", self.file()));
        assert_eq!((pins.len(), answer.as_str()), (0, "ok"), "{pins:?}");
        link
    }

    /// All of the file at head.
    pub fn read(&self) -> Vec<u8> {
        fs::read(self.head("a")).unwrap()
    }

    /// Begins to read the first page of a block of head.
    pub fn reading(&self, block: usize) -> Reading {
        Reading::start(&self.head("a"), block * BLOCK, PAGE)
    }

    /// Reads the first page of a block of head and no more; its value.
    pub fn touch(&self, block: usize) -> u8 {
        self.reading(block).value()
    }

    /// Drops all of head's file from the page cache.
    pub fn evict(&self) {
        let file = File::open(self.head("a")).unwrap();
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let mapping = Mapping::new(&self.head("a"), len);
        wait_until("the page cache lets go", || {
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            mapping.cached().iter().all(|cached| !cached)
        });
    }

    /// All is as it has to be after a test: nobody was killed, and nothing is left.
    pub fn end(self) {
        self.end_after(0);
    }

    /// The same after so many kills.
    pub fn end_after(self, kills: u64) {
        assert_eq!(self.live.stat("kills"), kills);
        for gauge in ["links", "watches", "setups_waiting", "pins_owed", "reads_waiting"] {
            wait_until(gauge, || self.live.stat(gauge) == 0);
        }
        let log = fs::read_to_string(self.place.path("server.log")).unwrap();
        assert!(!log.contains("panicked") && !log.contains("error:"), "{log}");
        self.place.ok(&["umount", "m"]);
        self.place.expect_nothing_left();
    }
}

/// A read by a thread of its own.
pub struct Reading(Receiver<std::io::Result<Vec<u8>>>);

impl Reading {
    /// Begins to read bytes, and nothing ahead of them.
    pub fn start(path: &Path, offset: usize, len: usize) -> Reading {
        Reading::start_with(path, offset, len, OFlags::empty())
    }

    /// The same past the page cache: a READ that fails is not tried again by the kernel.
    pub fn start_direct(path: &Path, offset: usize, len: usize) -> Reading {
        Reading::start_with(path, offset, len, OFlags::DIRECT)
    }

    fn start_with(path: &Path, offset: usize, len: usize, flags: OFlags) -> Reading {
        let path: PathBuf = path.to_owned();
        let (sender, done) = channel();
        let read = move || {
            let read = || {
                let file = File::from(open(&path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty())?);
                fadvise(&file, 0, None, Advice::Random)?;
                let mut bytes = vec![0; len];
                let count = file.read_at(&mut bytes, offset as u64)?;
                bytes.truncate(count);
                Ok(bytes)
            };
            // Whoever wanted it may be gone.
            let _ = sender.send(read());
        };
        revfs::env::spawn("reader", read).unwrap();
        Reading(done)
    }

    /// Whether it has not ended.
    pub fn waits(&self) -> bool {
        match self.0.try_recv() {
            Err(TryRecvError::Empty) => true,
            Ok(_) | Err(TryRecvError::Disconnected) => false,
        }
    }

    /// What it has read, if it has ended. To be asked until then.
    pub fn ended(&self) -> Option<Vec<u8>> {
        match self.0.try_recv() {
            Err(TryRecvError::Empty) => None,
            other => Some(other.unwrap().unwrap()),
        }
    }

    /// How it ends.
    pub fn result(self) -> std::io::Result<Vec<u8>> {
        self.0.recv_timeout(SOON).unwrap()
    }

    /// What it reads.
    pub fn bytes(self) -> Vec<u8> {
        self.result().unwrap()
    }

    /// The one value of all that it reads.
    pub fn value(self) -> u8 {
        let bytes = self.bytes();
        assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }
}
