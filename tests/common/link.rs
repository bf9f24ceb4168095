//! A watch link by hand: plain reads and writes of `head/watch`, and a mapping that is moved block by block.
//!
//! Invariant: nothing of the client library is used here, so that the server is tested by what is on the wire. A
//! frame that does not come fails the test. A link says `bye` when it goes, so that a test that fails while it owes a
//! pin is not killed before it can say why.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::live::SOON;

/// Streams of the requests that a link numbers by itself.
const FIRST_STREAM: u64 = 1001;

/// An open of `head/watch`.
pub struct WatchFile {
    file: Arc<File>,
    lines: Receiver<String>,
    next_stream: u64,
}

/// Pins by their blocks: to where.
pub type Pins = BTreeMap<u64, String>;

impl WatchFile {
    pub fn open(root: &Path) -> WatchFile {
        let file = File::options().read(true).write(true).open(root.join("head/watch")).unwrap();
        let file = Arc::new(file);
        let read = Arc::clone(&file);
        let (sender, lines) = channel();
        let listen = move || {
            let mut buffered = BufReader::new(&*read);
            let mut line = Vec::new();
            while matches!(buffered.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
                let whole = text.strip_suffix('\n').map(str::to_owned);
                // The other end is gone with its link.
                let _ = sender.send(whole.unwrap_or_else(|| format!("half a frame at the end: {text}")));
            }
            // The link is closed before its end is heard of, so that nothing keeps the mount busy then.
            drop(read);
            drop(sender);
        };
        revfs::env::spawn("listener", listen).unwrap();
        WatchFile { file, lines, next_stream: FIRST_STREAM }
    }

    /// Writes one frame.
    pub fn say(&self, frame: &str) {
        (&*self.file).write_all(format!("{frame}\n").as_bytes()).unwrap();
    }

    /// Writes what a block of a mapping shows, 16 bytes: the kernel takes them from there.
    pub fn say_from(&self, map: &Movable, index: usize) {
        assert!(index < map.blocks && map.block >= 16);
        // SAFETY: inside of the mapping, and handed to the kernel alone, which copies whatever is there.
        let bytes = unsafe { std::slice::from_raw_parts(map.start.add(index * map.block), 16) };
        (&*self.file).write_all(bytes).unwrap();
    }

    /// The next frame; empty at the end.
    pub fn hear(&mut self) -> String {
        match self.lines.recv_timeout(SOON) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => String::new(),
            Err(RecvTimeoutError::Timeout) => panic!("no frame comes"),
        }
    }

    /// Says a frame and hears the next one.
    pub fn ask(&mut self, frame: &str) -> String {
        self.say(frame);
        self.hear()
    }

    /// Says a request on a stream of its own, which it answers.
    pub fn request(&mut self, request: &str) -> u64 {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.say(&format!("{stream} {request}"));
        stream
    }

    /// Says a request, acks all pins until it is answered; the pins, and the answer.
    pub fn ask_and_ack(&mut self, request: &str) -> (Pins, String) {
        let answer = format!("{} ", self.request(request));
        let mut pins = Pins::new();
        loop {
            let frame = self.hear();
            if let Some(text) = frame.strip_prefix(&answer) {
                return (pins, text.to_owned());
            }
            self.ack(&frame, &mut pins);
        }
    }

    /// Acks the pins that have come, and adds their blocks; later ones count.
    pub fn ack_waiting(&mut self, pins: &mut Pins) {
        while let Ok(frame) = self.lines.try_recv() {
            let mut more = Pins::new();
            self.ack(&frame, &mut more);
            pins.extend(more);
        }
    }

    /// Acks a pin and adds its blocks.
    pub fn ack(&mut self, frame: &str, pins: &mut Pins) {
        let words: Vec<&str> = frame.split(' ').collect();
        let [stream, "pin", _, blocks, to] = words[..] else { panic!("not a pin: {frame:?}") };
        let blocks = blocks.strip_prefix('#').unwrap();
        let (first, last) = blocks.split_once('-').unwrap_or((blocks, blocks));
        for block in first.parse::<u64>().unwrap()..=last.parse().unwrap() {
            assert_eq!(pins.insert(block, to.to_owned()), None, "block {block} is pinned twice");
        }
        self.say(&format!("{stream} ack"));
    }

    /// Nothing was said until now that was not heard.
    pub fn expect_quiet(&mut self) {
        let stream = self.request("quiet");
        assert_eq!(self.hear(), format!("{stream} error bad watch: not a watch request: \"quiet\""));
    }
}

impl Drop for WatchFile {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = (&*self.file).write_all(b"1 bye\n");
        while self.lines.recv_timeout(SOON).is_ok() {}
    }
}

/// The id of a file, as it stands in frames.
pub fn file_id(path: &Path) -> String {
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(path, "user.revfs.file", &mut value).unwrap();
    String::from_utf8(value[..len].to_vec()).unwrap()
}

/// A mapping of a file under head whose blocks can be moved to revisions.
pub struct Movable {
    root: PathBuf,
    file: String,
    start: *mut u8,
    block: usize,
    blocks: usize,
}

// SAFETY: read by volatile reads only; the memory stays mapped as long as the value lives, whatever it shows.
unsafe impl Send for Movable {}
// SAFETY: as above.
unsafe impl Sync for Movable {}

impl Movable {
    /// Maps `blocks` blocks of `block` bytes.
    pub fn new(root: &Path, name: &str, block: usize, blocks: usize) -> Movable {
        let path = root.join("head/bigfile").join(name);
        let file = File::open(&path).unwrap();
        let len = block * blocks;
        // SAFETY: a new mapping, which nothing else in this process knows.
        let start = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap().cast::<u8>()
        };
        // A page fault reads its page and no more: else it depends on what is cached for which pins it waits.
        // SAFETY: changes no byte of what was just mapped.
        unsafe { madvise(start.cast(), len, Advice::Random).unwrap() };
        Movable { root: root.to_owned(), file: file_id(&path), start, block, blocks }
    }

    /// Maps one block as a pin says: `@head` or `@<rev>`.
    pub fn follow(&self, index: usize, to: &str) {
        assert!(index < self.blocks);
        let under = if to == "@head" { "head" } else { to };
        let file = File::open(self.root.join(under).join("by-id").join(&self.file)).unwrap();
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: replaces one block of a mapping of ours.
        unsafe {
            let place = self.start.add(index * self.block).cast();
            mmap(place, self.block, ProtFlags::READ, flags, &file, (index * self.block) as u64).unwrap();
        }
    }

    /// The byte at the start of a block, as it is now.
    pub fn first_byte(&self, index: usize) -> u8 {
        assert!(index < self.blocks);
        // SAFETY: inside of the mapping; others change it, so it is read volatile.
        unsafe { self.start.add(index * self.block).read_volatile() }
    }

    /// Does what a pin frame says; answers the ack.
    pub fn obey(&self, frame: &str) -> String {
        let words: Vec<&str> = frame.split(' ').collect();
        let [stream, "pin", file, block, to] = words[..] else { panic!("not a pin: {frame:?}") };
        assert_eq!(file, self.file);
        self.follow(block.strip_prefix('#').unwrap().parse().unwrap(), to);
        format!("{stream} ack")
    }
}

impl Drop for Movable {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        let _ = unsafe { munmap(self.start.cast(), self.block * self.blocks) };
    }
}

/// Reads a whole file of a revision or of head.
pub fn read(root: &Path, under: &str, name: &str) -> Vec<u8> {
    fs::read(root.join(under).join("bigfile").join(name)).unwrap()
}
