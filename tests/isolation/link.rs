//! A watch link by hand: plain reads and writes of `head/watch`, and a mapping that is moved block by block.
//!
//! Invariant: nothing of the client library is used here, so that the server is tested by what is on the wire.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// An open of `head/watch`.
pub struct WatchFile {
    file: File,
    lines: Vec<u8>,
}

impl WatchFile {
    pub fn open(root: &Path) -> WatchFile {
        let file = File::options().read(true).write(true).open(root.join("head/watch")).unwrap();
        WatchFile { file, lines: Vec::new() }
    }

    /// Writes one frame.
    pub fn say(&self, frame: &str) {
        (&self.file).write_all(format!("{frame}\n").as_bytes()).unwrap();
    }

    /// Reads one frame; empty at the end.
    pub fn hear(&mut self) -> String {
        loop {
            if let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') {
                let rest = self.lines.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.lines, rest);
                line.pop();
                return String::from_utf8(line).unwrap();
            }
            let mut buffer = [0; 4096];
            let count = (&self.file).read(&mut buffer).unwrap();
            if count == 0 {
                assert!(self.lines.is_empty(), "half a frame at the end");
                return String::new();
            }
            self.lines.extend_from_slice(&buffer[..count]);
        }
    }

    /// Says a frame and hears the next one.
    pub fn ask(&mut self, frame: &str) -> String {
        self.say(frame);
        self.hear()
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
