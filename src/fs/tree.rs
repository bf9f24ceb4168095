//! The tree: what each name, attribute, directory and symlink is.
//!
//! Invariant: a request takes the published head once. What is under `@<16 hex>` never changes and may be cached
//! for ever; what is under head is cached until the server invalidates it; symlinks, `head/at` and missing names
//! are never cached. Names that are listed can be looked up; `by-id` and `@<16 hex>` are looked up only.

use std::sync::Arc;
use std::time::Duration;

use revfs_protocol::{FileId, RevSpec, Tid};

use super::face::{FACE_DIR, Face, FaceFile, FsError};
use super::inodes::{Inodes, Key, ROOT_INO};
use super::peer::{PeerFace, PeerFile};
use crate::server::{FileView, Server};
use crate::store::{DirId, Entry, NAME_BYTES_MAX, ReadError, ReadTxn};
use crate::view::FileAttributes;

/// How long the kernel keeps what cannot change, or what is invalidated when it does.
pub const LONG_TTL: Duration = Duration::from_secs(3600);
/// The kernel asks each time.
pub const NO_TTL: Duration = Duration::ZERO;
/// Inode number in a listing of what has none yet, as libfuse shows it.
pub const UNKNOWN_INO: u64 = 0xffff_ffff;

const HEAD: &[u8] = b"head";
const AT: &[u8] = b"at";
const WATCH: &[u8] = b"watch";
const BIGFILE: &[u8] = b"bigfile";
const BY_ID: &[u8] = b"by-id";
const TEXT_BLOCK_SIZE: u64 = 4096;
/// What `head/watch` says that it has, as files of sysfs do: more than any frame. The kernel lets writes run beside each other
/// only up to the end of a file, and those of a stream begin at 0 (`fuse_io_past_eof` in fs/fuse/file.c); who writes more
/// at once locks the file, as all did before.
const WATCH_BYTES_SHOWN: u64 = 4096;
const TID_TEXT_BYTES: u64 = 16;
const DIR_MODE: u16 = 0o555;
const FILE_MODE: u16 = 0o444;
const CONTROL_MODE: u16 = 0o666;
const LINK_MODE: u16 = 0o777;

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A regular file that is read and written as a stream.
    Control,
    /// A symlink.
    Link,
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, for show: whoever sees it may read it, and only streams are written.
    pub mode: u16,
    /// Bytes.
    pub size: u64,
    /// Stored, in 512-byte units.
    pub blocks: u64,
    /// Preferred unit of I/O, bytes.
    pub block_size: u64,
    /// All of its times, ns since 1970 UTC.
    pub time_unix_ns: u64,
    /// Names.
    pub links: u32,
    /// How long the kernel may keep them.
    pub ttl: Duration,
}

/// A name that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its inode, looked up once more.
    pub ino: u64,
    /// Its attributes.
    pub stat: Stat,
    /// How long the kernel may keep what the name means.
    pub entry_ttl: Duration,
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Which inode it has, if that is known without looking further.
    pub key: Option<Key>,
}

/// The tree of one mount.
#[derive(Debug)]
pub struct Tree {
    server: Arc<Server>,
    inodes: Inodes,
    face: Face,
    start_unix_ns: u64,
}

impl Tree {
    /// The tree of what `server` serves. What has no time of its own shows `start_unix_ns`.
    pub fn new(server: Arc<Server>, face: Face, start_unix_ns: u64) -> Tree {
        Tree { server, inodes: Inodes::new(), face, start_unix_ns }
    }

    /// The server.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// The inodes.
    pub fn inodes(&self) -> &Inodes {
        &self.inodes
    }

    /// What `ino` is.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn key(&self, ino: u64) -> Result<Key, FsError> {
        self.inodes.key(ino).ok_or(FsError::NotFound)
    }

    /// What `name` means in a directory.
    ///
    /// # Errors
    /// See [`FsError`]; so for all methods below.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Found, FsError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        let dir = self.key(parent)?;
        if let Some(peer) = &self.face.peer {
            return self.found(peer.lookup(&self.server, &dir, name)?, super::peer::ENTRY_TTL);
        }
        let (key, entry_ttl) = match dir {
            Key::Root => self.root_entry(name)?,
            Key::Head => match name {
                AT => (Key::HeadAt, LONG_TTL),
                WATCH => (Key::HeadWatch, LONG_TTL),
                BIGFILE => (Key::HeadDir(DirId::ROOT), LONG_TTL),
                BY_ID => (Key::HeadById, LONG_TTL),
                _ => return Err(FsError::NotFound),
            },
            Key::FaceDir => {
                let file = FaceFile::ALL.into_iter().find(|file| file.name().as_bytes() == name);
                (Key::Face(file.ok_or(FsError::NotFound)?), LONG_TTL)
            }
            Key::HeadDir(dir) => match self.server.head_txn().lookup(dir, name)? {
                Some(Entry::File(file)) => (Key::HeadFile(file), LONG_TTL),
                Some(Entry::Dir(dir)) => (Key::HeadDir(dir), LONG_TTL),
                None => return Err(FsError::NotFound),
            },
            Key::HeadById => {
                let file = file_id(name)?;
                if !self.server.may_look_up(file) {
                    return Err(FsError::Stale);
                }
                if self.server.head_file(file)?.meta.deleted.is_some() {
                    return Err(FsError::NotFound);
                }
                // Nobody invalidates this name when the file is deleted.
                (Key::HeadFile(file), NO_TTL)
            }
            Key::RevRoot(at) => match name {
                BIGFILE => (Key::RevDir(at, DirId::ROOT), LONG_TTL),
                BY_ID => (Key::RevById(at), LONG_TTL),
                _ => return Err(FsError::NotFound),
            },
            Key::RevDir(at, dir) => match self.server.txn(at)?.lookup(dir, name)? {
                Some(Entry::File(file)) => (self.rev_file(file, at)?, LONG_TTL),
                Some(Entry::Dir(dir)) => (Key::RevDir(at, dir), LONG_TTL),
                None => return Err(FsError::NotFound),
            },
            Key::RevById(at) => (self.rev_file(file_id(name)?, at)?, LONG_TTL),
            Key::HeadAt
            | Key::HeadWatch
            | Key::Face(_)
            | Key::PeerDir
            | Key::PeerDebug
            | Key::Peer(_)
            | Key::HeadFile(_)
            | Key::RevFile(..)
            | Key::Link(_) => {
                return Err(FsError::NotADirectory);
            }
        };
        self.found(key, entry_ttl)
    }

    /// Counts one more lookup of what a name means.
    fn found(&self, key: Key, entry_ttl: Duration) -> Result<Found, FsError> {
        if let Key::HeadFile(file) = key
            && !self.server.may_look_up(file)
        {
            return Err(FsError::Stale);
        }
        let mut stat = self.stat_of(&key)?;
        if matches!(key, Key::HeadFile(_) | Key::HeadDir(_)) {
            // The kernel makes the inode only after this answer; an invalidation in between finds none and is
            // lost. So the first attributes are not kept: those of the next GETATTR are, which it can reach.
            stat.ttl = NO_TTL;
        }
        Ok(Found { ino: self.inodes.look_up(key), stat, entry_ttl })
    }

    fn root_entry(&self, name: &[u8]) -> Result<(Key, Duration), FsError> {
        if name == HEAD {
            return Ok((Key::Head, LONG_TTL));
        }
        if name == FACE_DIR.as_bytes() {
            return Ok((Key::FaceDir, LONG_TTL));
        }
        if name.first() != Some(&b'@') {
            return Err(FsError::NotFound);
        }
        let text = std::str::from_utf8(name).map_err(|_| FsError::Malformed)?;
        let spec = RevSpec::parse(text).map_err(crate::view::ResolveError::from)?;
        let at = self.server.resolve(&spec)?;
        Ok(match spec {
            RevSpec::Tid(_) => (Key::RevRoot(at), LONG_TTL),
            RevSpec::Head | RevSpec::Time { .. } | RevSpec::Span { .. } | RevSpec::Tag(_) => {
                (Key::Link(text.into()), NO_TTL)
            }
        })
    }

    /// The inode of a file under `@at`: that of its version, so that all states that show it share it.
    fn rev_file(&self, file: FileId, at: Tid) -> Result<Key, ReadError> {
        Ok(Key::RevFile(file, self.server.rev_file(file, at)?.meta.rev))
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn stat(&self, ino: u64) -> Result<Stat, FsError> {
        self.stat_of(&self.key(ino)?)
    }

    fn stat_of(&self, key: &Key) -> Result<Stat, FsError> {
        let head_ns = || self.server.head().to_unix_ns();
        let mode = self.face.peer.as_ref().and_then(|_| super::peer::mode(key));
        let stat = match key {
            Key::Head | Key::HeadById | Key::FaceDir | Key::PeerDir | Key::PeerDebug => {
                dir_stat(self.start_unix_ns)
            }
            // Their times follow head, and are invalidated when what is in them changes.
            Key::Root | Key::HeadDir(_) => dir_stat(head_ns()),
            Key::RevRoot(at) | Key::RevById(at) | Key::RevDir(at, _) => dir_stat(at.to_unix_ns()),
            Key::HeadAt => text_stat(Kind::File, TID_TEXT_BYTES, self.server.shown().to_unix_ns()),
            Key::HeadWatch => text_stat(Kind::Control, WATCH_BYTES_SHOWN, self.start_unix_ns),
            Key::Face(file) => {
                let text = self.face.text(*file, &self.server, self.inodes.count());
                text_stat(Kind::File, text.len() as u64, head_ns())
            }
            Key::Peer(file) => match self.peer_text(*file) {
                Some(text) => text_stat(Kind::File, text.len() as u64, 0),
                None => text_stat(Kind::Control, 0, 0),
            },
            // `@` and the tid.
            Key::Link(_) => text_stat(Kind::Link, 1 + TID_TEXT_BYTES, head_ns()),
            Key::HeadFile(_) | Key::RevFile(..) => {
                let meta = self.view_of(key)?.meta;
                let shown = FileAttributes::of(&meta);
                let time_unix_ns = match (&self.face.peer, key) {
                    (None, _) => shown.mtime_unix_ns,
                    (Some(_), Key::HeadFile(_)) => self.server.peer_time(&meta).to_unix_ns(),
                    // That of the object, for states before the server started.
                    (Some(_), _) => meta.created.to_unix_ns(),
                };
                Stat {
                    kind: Kind::File,
                    mode: FILE_MODE,
                    size: shown.size,
                    blocks: shown.stat_blocks(),
                    block_size: shown.block_size.bytes(),
                    time_unix_ns,
                    links: shown.links,
                    ttl: LONG_TTL,
                }
            }
        };
        Ok(Stat { mode: mode.unwrap_or(stat.mode), ..stat })
    }

    /// A data file, to read it.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn view(&self, ino: u64) -> Result<FileView, FsError> {
        self.view_of(&self.key(ino)?)
    }

    fn view_of(&self, key: &Key) -> Result<FileView, FsError> {
        match key {
            Key::HeadFile(file) => Ok(self.server.head_file(*file)?),
            Key::RevFile(file, rev) => Ok(self.server.rev_file(*file, *rev)?),
            Key::HeadAt | Key::HeadWatch | Key::Face(_) | Key::Peer(_) | Key::Link(_) => {
                Err(FsError::BadHandle)
            }
            _ => Err(FsError::IsADirectory),
        }
    }

    /// The text of `head/at` or of a file of the face, now; `None` for other inodes.
    pub fn text(&self, key: &Key) -> Option<Vec<u8>> {
        match key {
            Key::HeadAt => Some(self.server.shown().to_string().into_bytes()),
            Key::Face(file) => Some(self.face.text(*file, &self.server, self.inodes.count())),
            Key::Peer(file) => self.peer_text(*file),
            _ => None,
        }
    }

    fn peer_text(&self, file: PeerFile) -> Option<Vec<u8>> {
        self.face.peer.as_ref().and_then(|peer| peer.text(file, &self.server, &self.inodes))
    }

    /// The face of WCFS, if the mount has that.
    pub fn peer(&self) -> Option<&PeerFace> {
        self.face.peer.as_ref()
    }

    /// Where a symlink leads now.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn link_target(&self, ino: u64) -> Result<String, FsError> {
        let Key::Link(text) = self.key(ino)? else { return Err(FsError::NotALink) };
        let spec = RevSpec::parse(&text).map_err(crate::view::ResolveError::from)?;
        Ok(format!("@{}", self.server.resolve(&spec)?))
    }

    /// The state that an open of a directory fixes, if it shows one.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn dir_txn(&self, key: &Key) -> Result<Option<ReadTxn>, FsError> {
        match key {
            Key::HeadDir(_) => Ok(Some(self.server.head_txn())),
            Key::RevDir(at, _) => Ok(Some(self.server.txn(*at)?)),
            Key::Root
            | Key::Head
            | Key::HeadById
            | Key::FaceDir
            | Key::PeerDir
            | Key::PeerDebug
            | Key::RevRoot(_)
            | Key::RevById(_) => Ok(None),
            Key::HeadAt
            | Key::HeadWatch
            | Key::Face(_)
            | Key::Peer(_)
            | Key::HeadFile(_)
            | Key::RevFile(..)
            | Key::Link(_) => Err(FsError::NotADirectory),
        }
    }

    /// All names in a directory that was opened at `txn`, without `.` and `..`.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn list(&self, key: &Key, txn: Option<&ReadTxn>) -> Result<Vec<Listed>, FsError> {
        if let Some(peer) = &self.face.peer {
            return peer.list(key, txn, &self.inodes);
        }
        let listed = |name: &[u8], kind, key| Listed { name: name.to_vec(), kind, key: Some(key) };
        match (key, txn) {
            (Key::Root, _) => {
                let mut names = vec![listed(HEAD, Kind::Dir, Key::Head)];
                names.push(listed(FACE_DIR.as_bytes(), Kind::Dir, Key::FaceDir));
                for (tag, _) in self.server.store().tags()? {
                    let name = format!("@{tag}");
                    names.push(listed(name.as_bytes(), Kind::Link, Key::Link(name.as_str().into())));
                }
                Ok(names)
            }
            (Key::Head, _) => Ok(vec![
                listed(AT, Kind::File, Key::HeadAt),
                listed(WATCH, Kind::Control, Key::HeadWatch),
                listed(BIGFILE, Kind::Dir, Key::HeadDir(DirId::ROOT)),
                listed(BY_ID, Kind::Dir, Key::HeadById),
            ]),
            (Key::RevRoot(at), _) => Ok(vec![
                listed(BIGFILE, Kind::Dir, Key::RevDir(*at, DirId::ROOT)),
                listed(BY_ID, Kind::Dir, Key::RevById(*at)),
            ]),
            (Key::FaceDir, _) => {
                let files = FaceFile::ALL.into_iter();
                Ok(files.map(|file| listed(file.name().as_bytes(), Kind::File, Key::Face(file))).collect())
            }
            (Key::HeadDir(dir), Some(txn)) => Ok(list_dir(txn, *dir, |entry| match entry {
                Entry::File(file) => Some(Key::HeadFile(file)),
                Entry::Dir(dir) => Some(Key::HeadDir(dir)),
            })?),
            (Key::RevDir(at, dir), Some(txn)) => Ok(list_dir(txn, *dir, |entry| match entry {
                // Its version is known only after one more look at the index, for each file.
                Entry::File(_) => None,
                Entry::Dir(dir) => Some(Key::RevDir(*at, dir)),
            })?),
            (Key::HeadById | Key::RevById(_), _) => Ok(Vec::new()),
            _ => Err(FsError::NotADirectory),
        }
    }

    /// The inode of the directory that a directory is in, if it is known.
    pub fn parent(&self, key: &Key) -> u64 {
        let parent = match key {
            Key::Root | Key::Head | Key::FaceDir | Key::PeerDir | Key::RevRoot(_) => return ROOT_INO,
            Key::PeerDebug => Key::PeerDir,
            Key::HeadDir(DirId::ROOT) | Key::HeadById => Key::Head,
            Key::RevDir(at, DirId::ROOT) | Key::RevById(at) => Key::RevRoot(*at),
            _ => return UNKNOWN_INO,
        };
        self.inodes.number(&parent).unwrap_or(UNKNOWN_INO)
    }
}

fn list_dir(txn: &ReadTxn, dir: DirId, key: impl Fn(Entry) -> Option<Key>) -> Result<Vec<Listed>, ReadError> {
    let entries = txn.list(dir)?.into_iter();
    let listed = entries.map(|(name, entry)| {
        let kind = match entry {
            Entry::File(_) => Kind::File,
            Entry::Dir(_) => Kind::Dir,
        };
        Listed { name, kind, key: key(entry) }
    });
    Ok(listed.collect())
}

/// Reads the name of a file in `by-id`.
fn file_id(name: &[u8]) -> Result<FileId, FsError> {
    let text = std::str::from_utf8(name).map_err(|_| FsError::NotFound)?;
    text.parse().map_err(|_| FsError::NotFound)
}

fn dir_stat(time_unix_ns: u64) -> Stat {
    let (kind, ttl, links) = (Kind::Dir, LONG_TTL, 2);
    let mode = DIR_MODE;
    Stat { kind, mode, size: 0, blocks: 0, block_size: TEXT_BLOCK_SIZE, time_unix_ns, links, ttl }
}

fn text_stat(kind: Kind, size: u64, time_unix_ns: u64) -> Stat {
    let mode = match kind {
        Kind::Dir => DIR_MODE,
        Kind::File => FILE_MODE,
        Kind::Control => CONTROL_MODE,
        Kind::Link => LINK_MODE,
    };
    Stat { kind, mode, size, blocks: 0, block_size: TEXT_BLOCK_SIZE, time_unix_ns, links: 1, ttl: NO_TTL }
}
