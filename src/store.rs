//! What a store of revisions is, seen from above: numbered states, files made of blocks, names.
//!
//! Invariant: data is reached through a [`ReadTxn`] only, which is a store and a number (`at`); it holds no
//! resource of the storage, so it may live for as long as anybody likes. Left out on purpose: writing. Only
//! native stores are written through revfs, by [`native::Transaction`]; a ZODB store is written through ZODB.

pub mod buffer;
mod error;
pub mod faulty;
pub mod follow;
pub mod native;
pub mod zodb;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use revfs_protocol::{BlockCount, BlockIndex, BlockSize, FileId, Tid};

pub use buffer::{BufferPool, ReadBuffer};
pub use error::ReadError;

/// Longest component of a name, in bytes (as the kernel's NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest full name of a file in a store, in bytes (as the kernel's PATH_MAX, without its NUL).
pub const PATH_BYTES_MAX: usize = 4095;
/// Most components of a full name.
pub const PATH_DEPTH_MAX: usize = 128;

/// Identity of a directory within one index of a store. Not stable across a rebuild of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirId(pub u64);

impl DirId {
    /// The directory that all names start from.
    pub const ROOT: DirId = DirId(0);
}

/// Number of a pack within one index of a store; its name in the storage is known to the store alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackNo(pub u32);

/// What a name means in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A file.
    File(FileId),
    /// A directory with at least one file below it.
    Dir(DirId),
}

/// A file as of one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMeta {
    /// Its identity; a rename keeps it.
    pub file: FileId,
    /// Size in bytes.
    pub size: u64,
    /// Unit of change.
    pub block_size: BlockSize,
    /// Tid of the last change of its bytes or size, at or before the state.
    pub rev: Tid,
    /// Tid at which it was created.
    pub created: Tid,
    /// Bytes that its blocks take in packs, without holes and zero tails.
    pub stored: u64,
    /// The directory that it is in.
    pub dir: DirId,
    /// Its name there.
    pub name: Vec<u8>,
    /// The tid of the change that deleted it, if it is deleted in this state.
    pub deleted: Option<Tid>,
}

/// How stored bytes are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As they are.
    Raw,
    /// One zstd frame a block.
    Zstd,
}

/// Where the bytes of a run of blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockData {
    /// Nowhere: they are zero.
    Hole,
    /// In a pack. A run of several blocks is raw and full: block `i` of it is at `offset + i * block size`.
    Stored {
        /// The pack.
        pack: PackNo,
        /// Offset in the pack, bytes.
        offset: u64,
        /// Stored bytes of each block; what lacks to the block size is zero (raw), or comes of decoding.
        len: u32,
        /// Encoding.
        codec: Codec,
    },
    /// In objects of a database. A run of them has one block.
    Object {
        /// The block.
        oid: zodb::Oid,
        /// A state in which it is as it is here.
        at: Tid,
    },
}

/// Consecutive blocks of a file that were changed at one tid and lie in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// First block.
    pub first: BlockIndex,
    /// How many; at least 1.
    pub count: u64,
    /// The tid at which they changed last, at or before the state; [`Tid::ZERO`] for blocks never written.
    pub rev: Tid,
    /// Where they are.
    pub data: BlockData,
}

/// One piece of a read: `len` bytes that go to `at` in the reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the reader's buffer, bytes.
    pub at: usize,
    /// Bytes.
    pub len: usize,
    /// Where from.
    pub source: PieceSource,
}

/// Where the bytes of a [`Piece`] come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceSource {
    /// Zeros.
    Zero,
    /// Raw bytes of a pack, from `offset` on.
    Raw {
        /// The pack.
        pack: PackNo,
        /// Offset in the pack, bytes.
        offset: u64,
    },
    /// Bytes from `skip` on of the block that `stored` bytes at `offset` decode to.
    Zstd {
        /// The pack.
        pack: PackNo,
        /// Offset of the frame in the pack, bytes.
        offset: u64,
        /// Length of the frame, bytes.
        stored: u32,
        /// Block size: what the frame decodes to at most, bytes.
        block: u32,
        /// First byte wanted of the decoded block.
        skip: u32,
    },
    /// Bytes from `skip` on of the block that an object of a database holds; what lacks is zero.
    Object {
        /// The block.
        oid: zodb::Oid,
        /// The state.
        at: Tid,
        /// First byte wanted.
        skip: u32,
        /// Bytes of a block: more is an error.
        block: u32,
    },
}

/// A result that is there, or that a slow storage will give. A local store answers at once and pays nothing
/// for the other case; a thread that serves the kernel hands a pending one to a runtime and goes on.
pub enum Load<T> {
    /// There.
    Ready(T),
    /// To be awaited.
    Pending(BoxFuture<'static, T>),
}

impl<T> Load<T> {
    /// Waits for it, if it must.
    pub async fn wait(self) -> T {
        match self {
            Load::Ready(value) => value,
            Load::Pending(future) => future.await,
        }
    }
}

/// A commit, as it is told to people and to the change index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitInfo {
    /// Number in the log.
    pub seq: u64,
    /// Its tid.
    pub tid: Tid,
    /// The state it was made on.
    pub base: Tid,
    /// Wall-clock time of the writer, ns since 1970 UTC.
    pub time_unix_ns: u64,
    /// Who, as the writer said.
    pub author: String,
    /// Why, as the writer said.
    pub message: String,
    /// Identity of the attempt.
    pub commit_uuid: uuid::Uuid,
    /// Files that it touched.
    pub files: Vec<FileChange>,
    /// Tags that it moved.
    pub tags: Vec<TagChange>,
    /// Bytes that it added to packs, checksums included.
    pub pack_bytes: u64,
}

/// What a commit did to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// The file.
    pub file: FileId,
    /// Full name after the commit (before it, for a deletion).
    pub path: Vec<u8>,
    /// Full name before, if the commit renamed it.
    pub renamed_from: Option<Vec<u8>>,
    /// It is new.
    pub created: bool,
    /// It is gone.
    pub deleted: bool,
    /// Its block size or its block table is another than before: an epoch, after which no block number means what it
    /// did. Native stores have none.
    pub replaced: bool,
    /// Size before, bytes.
    pub old_size: u64,
    /// Size after, bytes.
    pub size: u64,
    /// Unit of change.
    pub block_size: BlockSize,
    /// Runs of blocks that were written, as (first, count), ascending.
    pub blocks: Vec<(BlockIndex, BlockCount)>,
}

/// What a commit did to one tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagChange {
    /// The tag.
    pub name: String,
    /// What it means from now on; `None`: it is deleted.
    pub target: Option<Tid>,
}

/// Facts about a store that do not change.
#[derive(Clone, Debug)]
pub struct StoreInfo {
    /// Identity.
    pub uuid: uuid::Uuid,
    /// How users name it.
    pub url: String,
    /// Block size of new files.
    pub block_size: BlockSize,
    /// Version of the format.
    pub format_version: u32,
    /// Its directory, if it is one of this machine.
    pub local_root: Option<std::path::PathBuf>,
}

/// One thing that is wrong, or left over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// Data is lost or cannot be trusted; else it only takes room.
    pub damage: bool,
}

/// A store of revisions. All methods may be called from many threads at once.
///
/// `at` may be any number up to head, not only one at which something was committed.
pub trait Store: Send + Sync + Debug {
    /// Facts that do not change.
    fn info(&self) -> &StoreInfo;

    /// Bytes that its own caches of file data hold.
    fn cached_bytes(&self) -> u64 {
        0
    }

    /// Newest tid that this store object has applied.
    fn head(&self) -> Tid;

    /// Applies what others have committed since; answers the new head.
    ///
    /// # Errors
    /// The log cannot be read. What could be applied is applied; damage that ends it is told by [`Store::trouble`].
    fn refresh(&self) -> Load<Result<Tid, ReadError>>;

    /// Why what was committed after [`Store::head`] cannot be applied, as found by the last refresh.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Waits until something may have been committed, `timeout` is over, or `wake_follower` is called.
    fn wait_for_commits(&self, timeout: Duration);

    /// Ends a `wait_for_commits`.
    fn wake_follower(&self);

    /// Whether any of the methods below may wait for a network. Then no thread that serves the kernel calls them.
    fn is_remote(&self) -> bool {
        false
    }

    /// Ends all waits for a storage that does not answer, and lets what would wait fail from now on: the end is near.
    fn give_up(&self) {}

    /// What `name` means in `dir`.
    ///
    /// # Errors
    /// See [`ReadError`]; so for all methods below.
    fn lookup(&self, txn: &ReadTxn, dir: DirId, name: &[u8]) -> Result<Option<Entry>, ReadError>;

    /// All names in `dir`, in byte order.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn list(&self, txn: &ReadTxn, dir: DirId) -> Result<Vec<(Vec<u8>, Entry)>, ReadError>;

    /// Parent and name of a directory; `None` for the root and for ids that do not exist.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn dir_name(&self, dir: DirId) -> Result<Option<(DirId, Vec<u8>)>, ReadError>;

    /// A file, also one that is deleted at `txn.at` (then `deleted` is set).
    ///
    /// # Errors
    /// See [`ReadError`].
    fn file(&self, txn: &ReadTxn, file: FileId) -> Result<Option<FileMeta>, ReadError>;

    /// Where blocks `[first, first + count)` are, in order and without gaps.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn blocks(
        &self,
        txn: &ReadTxn,
        file: FileId,
        first: BlockIndex,
        count: BlockCount,
    ) -> Result<Vec<BlockRun>, ReadError>;

    /// Fills `buffer` by `pieces`, which cover it wholly. Every stored byte was checked.
    fn read(&self, pieces: Vec<Piece>, buffer: ReadBuffer) -> Load<Result<ReadBuffer, ReadError>>;

    /// The newest commit at or before `at`; [`Tid::ZERO`] if there is none.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn newest_commit(&self, at: Tid) -> Result<Tid, ReadError>;

    /// Commits with `lo < tid <= hi`, ascending, at most `limit`.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn commits(&self, lo: Tid, hi: Tid, limit: usize) -> Result<Vec<CommitInfo>, ReadError>;

    /// Whether it has to look at a file to tell what commits did to its blocks. Who follows such a store asks for the files
    /// that it serves, by [`Store::commits_of`].
    fn tells_by_file(&self) -> bool {
        false
    }

    /// As [`Store::commits`]; but of files that are not in `files` it may be left out that blocks changed. That they were
    /// created, deleted or replaced is told of all.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn commits_of(
        &self,
        lo: Tid,
        hi: Tid,
        limit: usize,
        _files: &BTreeSet<FileId>,
    ) -> Result<Vec<CommitInfo>, ReadError> {
        self.commits(lo, hi, limit)
    }

    /// Commits with `lo < tid <= hi`, newest first, at most `limit`.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn commits_back(&self, lo: Tid, hi: Tid, limit: usize) -> Result<Vec<CommitInfo>, ReadError>;

    /// All tags of the newest state, in byte order.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn tags(&self) -> Result<Vec<(String, Tid)>, ReadError>;

    /// One tag of the newest state.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn tag(&self, name: &str) -> Result<Option<Tid>, ReadError>;
}

/// The context of every data access: a store and the state that is looked at.
#[derive(Clone, Debug)]
pub struct ReadTxn {
    store: Arc<dyn Store>,
    at: Tid,
}

impl ReadTxn {
    /// The state `at` of `store`.
    ///
    /// # Errors
    /// [`ReadError::AheadOfHead`].
    pub fn new(store: &Arc<dyn Store>, at: Tid) -> Result<ReadTxn, ReadError> {
        let head = store.head();
        if at > head {
            return Err(ReadError::AheadOfHead { at, head });
        }
        Ok(ReadTxn { store: Arc::clone(store), at })
    }

    /// The newest state that `store` has applied.
    pub fn head(store: &Arc<dyn Store>) -> ReadTxn {
        ReadTxn { store: Arc::clone(store), at: store.head() }
    }

    /// The state that is looked at.
    pub fn at(&self) -> Tid {
        self.at
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// See [`Store::lookup`].
    ///
    /// # Errors
    /// See [`ReadError`]; so for all methods below.
    pub fn lookup(&self, dir: DirId, name: &[u8]) -> Result<Option<Entry>, ReadError> {
        self.store.lookup(self, dir, name)
    }

    /// What a full name means.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Entry>, ReadError> {
        let mut entry = Entry::Dir(DirId::ROOT);
        for name in path.split(|byte| *byte == b'/') {
            let Entry::Dir(dir) = entry else { return Ok(None) };
            match self.lookup(dir, name)? {
                Some(next) => entry = next,
                None => return Ok(None),
            }
        }
        Ok(Some(entry))
    }

    /// See [`Store::list`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn list(&self, dir: DirId) -> Result<Vec<(Vec<u8>, Entry)>, ReadError> {
        self.store.list(self, dir)
    }

    /// See [`Store::file`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn file(&self, file: FileId) -> Result<Option<FileMeta>, ReadError> {
        self.store.file(self, file)
    }

    /// See [`Store::blocks`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn blocks(
        &self,
        file: FileId,
        first: BlockIndex,
        count: BlockCount,
    ) -> Result<Vec<BlockRun>, ReadError> {
        self.store.blocks(self, file, first, count)
    }

    /// Full name of a file as of this state.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn path_of(&self, meta: &FileMeta) -> Result<Vec<u8>, ReadError> {
        let mut parts = vec![meta.name.clone()];
        let mut dir = meta.dir;
        // Bounded: names in a record are at most PATH_DEPTH_MAX deep.
        for _ in 0..PATH_DEPTH_MAX {
            match self.store.dir_name(dir)? {
                Some((parent, name)) => {
                    parts.push(name);
                    dir = parent;
                }
                None => break,
            }
        }
        parts.reverse();
        Ok(parts.join(&b'/'))
    }

    /// All files below `dir` (with their names from `dir` on), in byte order of their components.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn walk(&self, dir: DirId) -> Result<Vec<(Vec<u8>, FileId)>, ReadError> {
        let mut files = Vec::new();
        let mut open = vec![(Vec::new(), self.list(dir)?.into_iter())];
        while let Some((prefix, rest)) = open.last_mut() {
            let Some((name, entry)) = rest.next() else {
                open.pop();
                continue;
            };
            let mut path = prefix.clone();
            path.extend_from_slice(&name);
            match entry {
                Entry::File(file) => files.push((path, file)),
                Entry::Dir(below) => {
                    path.push(b'/');
                    open.push((path, self.list(below)?.into_iter()));
                }
            }
        }
        Ok(files)
    }
}

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("name '{}' is refused: {rule}", String::from_utf8_lossy(name))]
pub struct NameError {
    /// The name.
    pub name: Vec<u8>,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Checks a full name of a file: components separated by one `/`, none empty, `.` or `..`.
///
/// # Errors
/// The rule that the name breaks.
pub fn check_path(path: &[u8]) -> Result<(), NameError> {
    let refuse = |rule| Err(NameError { name: path.to_vec(), rule });
    if path.is_empty() {
        return refuse("a name has at least one byte");
    }
    if path.len() > PATH_BYTES_MAX {
        return refuse("a full name has at most 4095 bytes");
    }
    if path.contains(&0) {
        return refuse("a name has no NUL byte");
    }
    let mut depth = 0;
    for part in path.split(|byte| *byte == b'/') {
        depth += 1;
        if part.is_empty() {
            return refuse("no component is empty: a name does not start or end with '/' or have '//' in it");
        }
        if part == b"." || part == b".." {
            return refuse("no component is '.' or '..'");
        }
        if part.len() > NAME_BYTES_MAX {
            return refuse("a component has at most 255 bytes");
        }
    }
    if depth > PATH_DEPTH_MAX {
        return refuse("a name has at most 128 components");
    }
    Ok(())
}
