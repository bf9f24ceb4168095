//! A store in memory whose commits a test scripts; a double for what reads stores, not a store.
//!
//! Invariant: a state never changes once it is committed. What is committed shows after `refresh` only, as for
//! commits that another process makes.

#![allow(dead_code)] // each test program uses a part

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use revfs::store::{
    BlockData, BlockRun, Codec, CommitInfo, DirId, Entry, FileChange, FileMeta, Load, PackNo, Piece,
    PieceSource, ReadBuffer, ReadError, ReadTxn, Store, StoreInfo, TagChange,
};
use revfs_protocol::{BlockCount, BlockIndex, BlockSize, FileId, Tid};

/// Block size of all files of the double.
pub const BLOCK: u64 = 4096;

/// What a scripted commit does.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Creates the file, or gives it this content.
    Put(&'static str, Vec<u8>),
    /// Writes bytes at an offset; the file grows if need be.
    Write(&'static str, u64, Vec<u8>),
    /// Sets the size.
    Size(&'static str, u64),
    Delete(&'static str),
    Rename(&'static str, &'static str),
    Tag(&'static str, Tid),
}

#[derive(Clone, Debug)]
struct File {
    meta: FileMeta,
    // (rev, pack) of each block that is no hole; the pack holds the block's bytes from offset 0 on.
    blocks: BTreeMap<u64, (Tid, u32)>,
}

#[derive(Clone, Debug, Default)]
struct State {
    paths: BTreeMap<Vec<u8>, FileId>,
    files: HashMap<FileId, File>,
}

#[derive(Debug, Default)]
struct Inner {
    commits: Vec<(CommitInfo, Arc<State>)>,
    tags: BTreeMap<String, Tid>,
    packs: Vec<Vec<u8>>,
    dirs: Vec<(DirId, Vec<u8>)>,
    applied: usize,
    woken: bool,
}

/// Something to be done in the midst of an access, after so many others.
type Intruder = Option<(usize, Box<dyn FnOnce() + Send>)>;

/// The double.
pub struct ScriptedStore {
    info: StoreInfo,
    inner: Mutex<Inner>,
    wake: Condvar,
    /// `refresh` fails while it is set.
    pub broken: AtomicBool,
    /// Reads are answered later, on the runtime, while it is set.
    pub slow: AtomicBool,
    /// What a file is cannot be read while it is set.
    pub unreadable: AtomicBool,
    /// Whether what commits did to blocks is told of those files only that are asked for.
    by_file: bool,
    intruder: Mutex<Intruder>,
}

impl std::fmt::Debug for ScriptedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedStore").field("info", &self.info).finish_non_exhaustive()
    }
}

impl ScriptedStore {
    pub fn new() -> Arc<ScriptedStore> {
        ScriptedStore::that_tells_by_file(false)
    }

    /// One that has to look at a file to tell what commits did to its blocks, if `by_file`.
    pub fn that_tells_by_file(by_file: bool) -> Arc<ScriptedStore> {
        Arc::new(ScriptedStore {
            info: StoreInfo {
                uuid: uuid::Uuid::nil(),
                url: "scripted,store".to_owned(),
                block_size: BlockSize::MIN,
                format_version: 1,
                local_root: None,
            },
            inner: Mutex::new(Inner::default()),
            wake: Condvar::new(),
            broken: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            unreadable: AtomicBool::new(false),
            by_file,
            intruder: Mutex::default(),
        })
    }

    /// After `accesses` others, the next access to the data waits until `intruder` is done.
    pub fn intrude(&self, accesses: usize, intruder: Box<dyn FnOnce() + Send>) {
        *self.intruder.lock().unwrap() = Some((accesses, intruder));
    }

    /// Whether the intruder has come.
    pub fn is_intruded(&self) -> bool {
        self.intruder.lock().unwrap().is_none()
    }

    /// Something is accessed; nobody may hold a lock of the double.
    pub fn accessed(&self) {
        let mut intruder = self.intruder.lock().unwrap();
        match &mut *intruder {
            Some((0, _)) => {
                let due = intruder.take();
                drop(intruder);
                if let Some((_, run)) = due {
                    run();
                }
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Commits `edits` at `tid`; readers see it once they refresh.
    pub fn commit(&self, tid: u64, edits: &[Edit]) {
        let tid = Tid::from_raw(tid);
        let mut inner = self.inner();
        let base = inner.commits.last().map_or(Tid::ZERO, |(info, _)| info.tid);
        assert!(tid > base);
        let mut state = inner.commits.last().map_or(State::default(), |(_, state)| State::clone(state));
        let mut info = CommitInfo {
            seq: inner.commits.len() as u64 + 1,
            tid,
            base,
            time_unix_ns: tid.to_unix_ns(),
            author: String::new(),
            message: String::new(),
            commit_uuid: uuid::Uuid::nil(),
            files: Vec::new(),
            tags: Vec::new(),
            pack_bytes: 0,
        };
        for edit in edits {
            match edit {
                Edit::Tag(name, target) => {
                    inner.tags.insert((*name).to_owned(), *target);
                    info.tags.push(TagChange { name: (*name).to_owned(), target: Some(*target) });
                }
                _ => info.files.push(apply(&mut inner, &mut state, tid, edit)),
            }
        }
        inner.commits.push((info, Arc::new(state)));
        inner.woken = true;
        self.wake.notify_all();
    }

    /// The id of a file in the newest state.
    pub fn file_id(&self, path: &str) -> FileId {
        self.inner().commits.last().unwrap().1.paths[path.as_bytes()]
    }

    fn state(&self, at: Tid) -> Arc<State> {
        self.accessed();
        let inner = self.inner();
        let until = inner.commits.partition_point(|(info, _)| info.tid <= at);
        until.checked_sub(1).map_or_else(Arc::default, |last| Arc::clone(&inner.commits[last].1))
    }

    fn path_of_dir(&self, dir: DirId) -> Vec<u8> {
        let inner = self.inner();
        let mut path = Vec::new();
        let mut at = dir;
        while at != DirId::ROOT {
            let (parent, name) = &inner.dirs[usize::try_from(at.0).unwrap() - 1];
            path = [name.as_slice(), b"/", &path].concat();
            at = *parent;
        }
        path
    }
}

fn intern(inner: &mut Inner, path: &[u8]) -> DirId {
    let mut dir = DirId::ROOT;
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    parts.pop();
    for part in parts {
        let key = (dir, part.to_vec());
        let found = inner.dirs.iter().position(|known| *known == key);
        let index = found.unwrap_or_else(|| {
            inner.dirs.push(key);
            inner.dirs.len() - 1
        });
        dir = DirId(index as u64 + 1);
    }
    dir
}

fn create(inner: &mut Inner, state: &mut State, tid: Tid, key: &[u8]) {
    let file = FileId::from_raw(tid.raw() << 8 | state.files.len() as u64);
    let meta = FileMeta {
        file,
        size: 0,
        block_size: BlockSize::MIN,
        rev: tid,
        created: tid,
        stored: 0,
        dir: intern(inner, key),
        name: key.rsplit(|byte| *byte == b'/').next().unwrap().to_vec(),
        deleted: None,
    };
    state.paths.insert(key.to_vec(), file);
    state.files.insert(file, File { meta, blocks: BTreeMap::new() });
}

fn apply(inner: &mut Inner, state: &mut State, tid: Tid, edit: &Edit) -> FileChange {
    let path = match edit {
        Edit::Put(path, _) | Edit::Write(path, ..) | Edit::Size(path, _) | Edit::Delete(path) => path,
        Edit::Rename(from, _) => from,
        Edit::Tag(..) => unreachable!(),
    };
    let key = path.as_bytes().to_vec();
    let created = !state.paths.contains_key(&key);
    if created {
        create(inner, state, tid, &key);
    }
    let id = state.paths[&key];
    let mut file = state.files[&id].clone();
    let old_size = file.meta.size;
    let mut change = FileChange {
        file: id,
        path: key.clone(),
        renamed_from: None,
        created,
        deleted: false,
        replaced: false,
        old_size,
        size: old_size,
        block_size: BlockSize::MIN,
        blocks: Vec::new(),
    };
    match edit {
        Edit::Put(_, bytes) => {
            file.meta.size = bytes.len() as u64;
            file.blocks.clear();
            change.blocks = write(inner, &mut file, tid, 0, bytes);
        }
        Edit::Write(_, offset, bytes) => {
            file.meta.size = file.meta.size.max(offset + bytes.len() as u64);
            change.blocks = write(inner, &mut file, tid, *offset, bytes);
        }
        Edit::Size(_, size) => {
            assert_eq!(size % BLOCK, 0, "the double cuts at blocks only");
            file.meta.size = *size;
            file.blocks.retain(|block, _| block * BLOCK < *size);
        }
        Edit::Delete(_) => {
            file.meta.deleted = Some(tid);
            change.deleted = true;
            state.paths.remove(&key);
        }
        Edit::Rename(from, to) => {
            state.paths.remove(&key);
            state.paths.insert(to.as_bytes().to_vec(), id);
            change.renamed_from = Some(from.as_bytes().to_vec());
            change.path = to.as_bytes().to_vec();
            file.meta.dir = intern(inner, to.as_bytes());
            file.meta.name = to.rsplit('/').next().unwrap().as_bytes().to_vec();
        }
        Edit::Tag(..) => unreachable!(),
    }
    if matches!(edit, Edit::Put(..) | Edit::Write(..) | Edit::Size(..)) {
        file.meta.rev = tid;
    }
    file.meta.stored = file.blocks.len() as u64 * BLOCK;
    change.size = file.meta.size;
    state.files.insert(id, file);
    change
}

fn write(
    inner: &mut Inner,
    file: &mut File,
    tid: Tid,
    offset: u64,
    bytes: &[u8],
) -> Vec<(BlockIndex, BlockCount)> {
    let (first, end) = (offset / BLOCK, (offset + bytes.len() as u64).div_ceil(BLOCK));
    for block in first..end {
        let old = file.blocks.get(&block).map(|(_, pack)| inner.packs[*pack as usize].clone());
        let mut content = old.unwrap_or_else(|| vec![0; BLOCK as usize]);
        for (i, byte) in content.iter_mut().enumerate() {
            let at = block * BLOCK + i as u64;
            if let Some(new) = at.checked_sub(offset).and_then(|at| bytes.get(at as usize)) {
                *byte = *new;
            }
        }
        inner.packs.push(content);
        file.blocks.insert(block, (tid, inner.packs.len() as u32 - 1));
    }
    vec![(BlockIndex::new(first), BlockCount::new(end - first))]
}

impl Store for ScriptedStore {
    fn info(&self) -> &StoreInfo {
        &self.info
    }

    fn head(&self) -> Tid {
        let inner = self.inner();
        inner.applied.checked_sub(1).map_or(Tid::ZERO, |last| inner.commits[last].0.tid)
    }

    fn refresh(&self) -> Load<Result<Tid, ReadError>> {
        if self.broken.load(Ordering::SeqCst) {
            let what = "scripted damage";
            return Load::Ready(Err(ReadError::Damaged { object: "log".to_owned(), offset: 0, what }));
        }
        let mut inner = self.inner();
        inner.applied = inner.commits.len();
        drop(inner);
        Load::Ready(Ok(self.head()))
    }

    fn wait_for_commits(&self, timeout: Duration) {
        let mut inner = self.wake.wait_timeout_while(self.inner(), timeout, |inner| !inner.woken).unwrap().0;
        inner.woken = false;
    }

    fn wake_follower(&self) {
        self.inner().woken = true;
        self.wake.notify_all();
    }

    fn lookup(&self, txn: &ReadTxn, dir: DirId, name: &[u8]) -> Result<Option<Entry>, ReadError> {
        Ok(self.list(txn, dir)?.into_iter().find(|(known, _)| known == name).map(|(_, entry)| entry))
    }

    fn list(&self, txn: &ReadTxn, dir: DirId) -> Result<Vec<(Vec<u8>, Entry)>, ReadError> {
        let state = self.state(txn.at());
        let prefix = self.path_of_dir(dir);
        let mut entries = BTreeMap::new();
        for (path, file) in &state.paths {
            let Some(rest) = path.strip_prefix(prefix.as_slice()) else { continue };
            match rest.iter().position(|byte| *byte == b'/') {
                None => entries.insert(rest.to_vec(), Entry::File(*file)),
                Some(end) => {
                    let below = intern(&mut self.inner(), &path[..=prefix.len() + end]);
                    entries.insert(rest[..end].to_vec(), Entry::Dir(below))
                }
            };
        }
        Ok(entries.into_iter().collect())
    }

    fn dir_name(&self, dir: DirId) -> Result<Option<(DirId, Vec<u8>)>, ReadError> {
        let index = dir.0.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        Ok(index.and_then(|index| self.inner().dirs.get(index).cloned()))
    }

    fn file(&self, txn: &ReadTxn, file: FileId) -> Result<Option<FileMeta>, ReadError> {
        if self.unreadable.load(Ordering::SeqCst) {
            let what = "scripted damage";
            return Err(ReadError::Damaged { object: "index".to_owned(), offset: 0, what });
        }
        Ok(self.state(txn.at()).files.get(&file).map(|file| file.meta.clone()))
    }

    fn blocks(
        &self,
        txn: &ReadTxn,
        file: FileId,
        first: BlockIndex,
        count: BlockCount,
    ) -> Result<Vec<BlockRun>, ReadError> {
        let state = self.state(txn.at());
        let Some(file) = state.files.get(&file) else { return Ok(Vec::new()) };
        let (mut next, end) = (first.raw(), first.raw().saturating_add(count.raw()));
        let mut runs = Vec::new();
        let hole = |first, end| BlockRun {
            first: BlockIndex::new(first),
            count: end - first,
            rev: Tid::ZERO,
            data: BlockData::Hole,
        };
        for (block, (rev, pack)) in file.blocks.range(next..end) {
            if next < *block {
                runs.push(hole(next, *block));
            }
            let data =
                BlockData::Stored { pack: PackNo(*pack), offset: 0, len: BLOCK as u32, codec: Codec::Raw };
            runs.push(BlockRun { first: BlockIndex::new(*block), count: 1, rev: *rev, data });
            next = block + 1;
        }
        if next < end {
            runs.push(hole(next, end));
        }
        Ok(runs)
    }

    fn read(&self, pieces: Vec<Piece>, mut buffer: ReadBuffer) -> Load<Result<ReadBuffer, ReadError>> {
        let inner = self.inner();
        for piece in pieces {
            let into = &mut buffer[piece.at..piece.at + piece.len];
            match piece.source {
                PieceSource::Zero => into.fill(0),
                PieceSource::Raw { pack, offset } => {
                    let from = &inner.packs[pack.0 as usize][usize::try_from(offset).unwrap()..];
                    into.copy_from_slice(&from[..piece.len]);
                }
                PieceSource::Zstd { .. } | PieceSource::Object { .. } => {
                    unreachable!("the double stores raw bytes")
                }
            }
        }
        drop(inner);
        if self.slow.load(Ordering::SeqCst) {
            return Load::Pending(Box::pin(async move {
                tokio::task::yield_now().await;
                Ok(buffer)
            }));
        }
        Load::Ready(Ok(buffer))
    }

    fn newest_commit(&self, at: Tid) -> Result<Tid, ReadError> {
        let inner = self.inner();
        let applied = inner.commits[..inner.applied].iter().rev().map(|(info, _)| info.tid);
        Ok(applied.into_iter().find(|tid| *tid <= at).unwrap_or(Tid::ZERO))
    }

    fn commits(&self, lo: Tid, hi: Tid, limit: usize) -> Result<Vec<CommitInfo>, ReadError> {
        self.accessed();
        let inner = self.inner();
        let from = inner.commits.partition_point(|(info, _)| info.tid <= lo);
        let until = inner.commits.partition_point(|(info, _)| info.tid <= hi).min(inner.applied).max(from);
        Ok(inner.commits[from..until].iter().take(limit).map(|(info, _)| info.clone()).collect())
    }

    fn tells_by_file(&self) -> bool {
        self.by_file
    }

    fn commits_of(
        &self,
        lo: Tid,
        hi: Tid,
        limit: usize,
        files: &BTreeSet<FileId>,
    ) -> Result<Vec<CommitInfo>, ReadError> {
        let mut commits = self.commits(lo, hi, limit)?;
        let changes = commits.iter_mut().flat_map(|commit| &mut commit.files);
        for change in changes.filter(|change| self.by_file && !files.contains(&change.file)) {
            change.blocks.clear();
        }
        Ok(commits)
    }

    fn commits_back(&self, lo: Tid, hi: Tid, limit: usize) -> Result<Vec<CommitInfo>, ReadError> {
        let mut all = self.commits(lo, hi, usize::MAX)?;
        all.reverse();
        all.truncate(limit);
        Ok(all)
    }

    fn tags(&self) -> Result<Vec<(String, Tid)>, ReadError> {
        Ok(self.inner().tags.iter().map(|(name, at)| (name.clone(), *at)).collect())
    }

    fn tag(&self, name: &str) -> Result<Option<Tid>, ReadError> {
        Ok(self.inner().tags.get(name).copied())
    }
}
