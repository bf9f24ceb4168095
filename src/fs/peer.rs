//! What a mount in the way of WCFS shows: `.wcfs/`, names of files that are 16 hex digits of an object, and EINVAL for
//! every other name. Clients that were written for WCFS count on each of it.
//!
//! Invariant: the texts have the form of WCFS to the byte, and the keys of `stats` are always the same eight. Left out on
//! purpose: symlinks for times and tags, `by-id`, and listings of what nobody looked up.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use revfs_protocol::{FileId, Tid};

use super::face::FsError;
use super::inodes::{Inodes, Key};
use super::tree::{Kind, LONG_TTL, Listed};
use crate::server::Server;
use crate::store::{DirId, Entry, ReadTxn};

/// The directory in the root.
pub const PEER_DIR: &str = ".wcfs";
const DEBUG_DIR: &str = "debug";
const ID_DIGITS: usize = 16;

/// A file below `.wcfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerFile {
    /// URL of the database, as it was given.
    Zurl,
    /// Seconds that a client may owe an ack.
    PinTimeout,
    /// Gauges and counters.
    Stats,
    /// A stream with the tid of each transaction, below `debug`.
    Zhead,
}

impl PeerFile {
    /// All of them.
    pub const ALL: [PeerFile; 4] = [PeerFile::Zurl, PeerFile::PinTimeout, PeerFile::Stats, PeerFile::Zhead];
    /// Those in `.wcfs` itself.
    const PLAIN: [PeerFile; 3] = [PeerFile::Zurl, PeerFile::PinTimeout, PeerFile::Stats];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            PeerFile::Zurl => "zurl",
            PeerFile::PinTimeout => "pintimeout",
            PeerFile::Stats => "stats",
            PeerFile::Zhead => "zhead",
        }
    }
}

/// How many have `zurl` open, by which clients say that they use the mount.
#[derive(Debug, Default)]
pub struct Users {
    open: AtomicU64,
    ever: AtomicU64,
}

impl Users {
    pub(super) fn came(&self) {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.ever.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn went(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many opens there have been, if none of them is still open.
    pub fn all_gone(&self) -> Option<u64> {
        let ever = self.ever.load(Ordering::SeqCst);
        (ever > 0 && self.open.load(Ordering::SeqCst) == 0).then_some(ever)
    }
}

/// What a mount in the way of WCFS is told to show.
#[derive(Clone, Debug)]
pub struct PeerFace {
    /// URL of the database, as it was given; it is the source of the mount too.
    pub zurl: String,
    /// How long a client may owe an ack.
    pub pin_timeout: Duration,
    /// Whether there is `debug/zhead`.
    pub debug: bool,
    /// Who has `zurl` open.
    pub users: Arc<Users>,
}

impl PeerFace {
    /// The text of a file, now; `None`: it is a stream.
    pub(super) fn text(&self, file: PeerFile, server: &Server, inodes: &Inodes) -> Option<Vec<u8>> {
        Some(match file {
            PeerFile::Zurl => self.zurl.clone().into_bytes(),
            PeerFile::PinTimeout => format!("{:.1}", self.pin_timeout.as_secs_f64()).into_bytes(),
            PeerFile::Stats => stats(server, inodes).into_bytes(),
            PeerFile::Zhead => return None,
        })
    }

    /// What a name means in a directory that only such a mount has, or that has other names there.
    pub(super) fn lookup(&self, server: &Server, dir: &Key, name: &[u8]) -> Result<Key, FsError> {
        match dir {
            Key::Root => root_entry(server, name),
            Key::Head => match name {
                b"at" => Ok(Key::HeadAt),
                b"watch" => Ok(Key::HeadWatch),
                b"bigfile" => Ok(Key::HeadDir(DirId::ROOT)),
                _ => Err(FsError::NotFound),
            },
            Key::PeerDir if name == DEBUG_DIR.as_bytes() && self.debug => Ok(Key::PeerDebug),
            Key::PeerDir => {
                let file = PeerFile::PLAIN.into_iter().find(|file| file.name().as_bytes() == name);
                file.map(Key::Peer).ok_or(FsError::NotFound)
            }
            Key::PeerDebug if name == PeerFile::Zhead.name().as_bytes() => Ok(Key::Peer(PeerFile::Zhead)),
            Key::PeerDebug => Err(FsError::NotFound),
            Key::HeadDir(_) => Ok(Key::HeadFile(file_in(&server.head_txn(), name)?)),
            Key::RevRoot(at) if name == b"bigfile" => Ok(Key::RevDir(*at, DirId::ROOT)),
            Key::RevRoot(_) => Err(FsError::NotFound),
            Key::RevDir(at, _) => {
                let file = file_in(&server.txn(*at)?, name)?;
                Ok(Key::RevFile(file, server.rev_file(file, *at)?.meta.rev))
            }
            _ => Err(FsError::NotADirectory),
        }
    }

    /// The names in a directory: what is always there, and files that somebody looked up.
    pub(super) fn list(
        &self,
        dir: &Key,
        txn: Option<&ReadTxn>,
        inodes: &Inodes,
    ) -> Result<Vec<Listed>, FsError> {
        let listed = |name: &str, kind, key| Listed { name: name.as_bytes().to_vec(), kind, key: Some(key) };
        Ok(match dir {
            Key::Root => {
                vec![listed("head", Kind::Dir, Key::Head), listed(PEER_DIR, Kind::Dir, Key::PeerDir)]
            }
            Key::Head => vec![
                listed("at", Kind::File, Key::HeadAt),
                listed("watch", Kind::Control, Key::HeadWatch),
                listed("bigfile", Kind::Dir, Key::HeadDir(DirId::ROOT)),
            ],
            Key::PeerDir => {
                let files = PeerFile::PLAIN.into_iter();
                let mut names: Vec<Listed> =
                    files.map(|file| listed(file.name(), Kind::File, Key::Peer(file))).collect();
                names.extend(self.debug.then(|| listed(DEBUG_DIR, Kind::Dir, Key::PeerDebug)));
                names
            }
            Key::PeerDebug => {
                vec![listed(PeerFile::Zhead.name(), Kind::Control, Key::Peer(PeerFile::Zhead))]
            }
            Key::RevRoot(at) => vec![listed("bigfile", Kind::Dir, Key::RevDir(*at, DirId::ROOT))],
            Key::HeadDir(_) | Key::RevDir(..) => {
                let mut names = Vec::new();
                for file in inodes.head_files() {
                    let name = file.to_string();
                    let there =
                        txn.map(|txn| txn.lookup(DirId::ROOT, name.as_bytes())).transpose()?.flatten();
                    names.extend(there.map(|_| Listed {
                        name: name.into_bytes(),
                        kind: Kind::File,
                        key: None,
                    }));
                }
                names
            }
            _ => return Err(FsError::NotADirectory),
        })
    }
}

/// Permission bits as WCFS shows them, where they are others.
pub(super) fn mode(key: &Key) -> Option<u16> {
    match key {
        Key::Root | Key::HeadDir(_) | Key::RevDir(..) | Key::PeerDir | Key::PeerDebug => Some(0o755),
        Key::HeadAt | Key::HeadWatch | Key::Peer(_) => Some(0o644),
        _ => None,
    }
}

/// Names are never cached when something else may come to have them.
pub(super) const ENTRY_TTL: Duration = LONG_TTL;

fn root_entry(server: &Server, name: &[u8]) -> Result<Key, FsError> {
    match name {
        b"head" => return Ok(Key::Head),
        _ if name == PEER_DIR.as_bytes() => return Ok(Key::PeerDir),
        _ => {}
    }
    let at = name.strip_prefix(b"@").and_then(hex).map(Tid::from_raw).ok_or(FsError::Malformed)?;
    // That it is ahead of head is not cached.
    Ok(Key::RevRoot(server.txn(at)?.at()))
}

/// The file that a name of 16 hex digits means in a state; everything else cannot be.
fn file_in(txn: &ReadTxn, name: &[u8]) -> Result<FileId, FsError> {
    let file = hex(name).map(FileId::from_raw).ok_or(FsError::Malformed)?;
    match txn.lookup(DirId::ROOT, file.to_string().as_bytes())? {
        Some(Entry::File(file)) => Ok(file),
        Some(Entry::Dir(_)) | None => Err(FsError::Malformed),
    }
}

/// Exactly 16 hex digits of either case.
fn hex(digits: &[u8]) -> Option<u64> {
    if digits.len() != ID_DIGITS || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn stats(server: &Server, inodes: &Inodes) -> String {
    let gauges = server.gauges();
    let figures = [
        ("BigFile", inodes.head_files().len() as u64),
        ("RevHead", inodes.rev_roots()),
        ("ZHeadLink", server.tid_streams() as u64),
        ("WatchLink", gauges.links as u64),
        ("Watch", gauges.watches as u64),
        ("PinnedBlk", gauges.pinned_blocks),
        ("pin", server.stats().pins.load(Ordering::Relaxed)),
        ("pinkill", server.kills()),
    ];
    let mut text = String::new();
    for (name, value) in figures {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}\t: {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_sixteen_hex_digits() {
        assert_eq!(hex(b"0123456789abcDEF"), Some(0x0123_4567_89ab_cdef));
        for name in
            [&b""[..], b"0123456789abcde", b"0123456789abcdef0", b"+123456789abcdef", b"g123456789abcdef"]
        {
            assert_eq!(hex(name), None);
        }
    }

    #[test]
    fn users_are_gone_only_after_they_came() {
        let users = Users::default();
        assert_eq!(users.all_gone(), None);
        users.came();
        users.came();
        users.went();
        assert_eq!(users.all_gone(), None);
        users.went();
        assert_eq!(users.all_gone(), Some(2));
    }
}
