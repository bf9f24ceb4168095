//! `diff`: which files and bytes differ between two states.
//!
//! Invariant: a range that is not reported is equal in both states, byte by byte; a reported one may contain
//! equal bytes, for the unit is the block. What a shorter file has lost is told apart, for it is in no range of the
//! second state. Only files and blocks that commits between the two touched are
//! looked at, so the cost is that of the changes and not of the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use revfs_protocol::{BlockIndex, BlockSize, FileId, Tid};
use serde::Serialize;

use super::data::{Name, Range, text};
use super::runs::RunWindows;
use super::{LookError, live_file};
use crate::store::native::NativeStore;
use crate::store::{BlockData, BlockRun, BufferPool, CommitInfo, FileMeta, ReadError, ReadTxn, Store};
use crate::view;

/// Commits read at once.
const STEP_COMMITS: usize = 256;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is only in the second state.
    Created,
    /// It is only in the first state.
    Deleted,
    /// Its name differs; its bytes may too.
    Renamed,
    /// Its bytes or its size differ.
    Changed,
}

/// A file that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiffEntry {
    /// Its name in the second state; in the first, if it is deleted.
    #[serde(flatten)]
    pub name: Name,
    /// The file.
    #[serde(serialize_with = "text")]
    pub file: FileId,
    /// What became of it.
    pub change: Change,
    /// Its name in the first state, if that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<Name>,
    /// Size in the first state, bytes; 0 if it is not there.
    pub old_size: u64,
    /// Size in the second state, bytes; 0 if it is not there.
    pub size: u64,
    /// Unit of change, bytes.
    pub block_size: u64,
    /// Bytes of the second state that differ, ascending and apart.
    pub ranges: Vec<Range>,
    /// Bytes of the first state beyond the end of the second, if the file shrank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_off: Option<Range>,
}

/// Files that differ.
#[derive(Debug, Default)]
pub struct Differences {
    /// Those that can be read, by name.
    pub files: Vec<DiffEntry>,
    /// What is wrong with each of the others that commits touched.
    pub damaged: Vec<ReadError>,
}

/// Runs of blocks as (first, end); ascending and apart once they are merged.
type Runs = Vec<(u64, u64)>;

/// Files that differ between the states `from` and `to`. Either may be the older one. `native`: the same store,
/// if it has hashes of its blocks; else their bytes are compared.
///
/// # Errors
/// See [`LookError`].
pub async fn diff(
    store: &Arc<dyn Store>,
    native: Option<&Arc<NativeStore>>,
    from: Tid,
    to: Tid,
) -> Result<Differences, LookError> {
    let (old, new) = (ReadTxn::new(store, from)?, ReadTxn::new(store, to)?);
    let touched = touched(store, from.min(to), from.max(to))?;
    let mut found = Differences::default();
    let pair = Pair { native, old: &old, new: &new };
    for (file, runs) in touched {
        match pair.entry(file, &runs).await {
            Ok(entry) => found.files.extend(entry),
            // In a database each file is a matter of its own.
            Err(LookError::Read(ReadError::Database(error))) if error.is_damage() => {
                found.damaged.push(error.into());
            }
            Err(error) => return Err(error),
        }
    }
    found.files.sort_by(|a, b| a.name.cmp(&b.name).then(a.file.cmp(&b.file)));
    Ok(found)
}

/// Files that commits in (lo, hi] touched, with the runs of blocks that they wrote.
fn touched(store: &Arc<dyn Store>, lo: Tid, hi: Tid) -> Result<BTreeMap<FileId, Runs>, ReadError> {
    let mut files: BTreeMap<FileId, Runs> = BTreeMap::new();
    let mut from = lo;
    loop {
        let commits = store.commits(from, hi, STEP_COMMITS)?;
        for commit in &commits {
            from = commit.tid;
            add(&mut files, commit);
        }
        for runs in files.values_mut().filter(|runs| runs.len() > STEP_COMMITS) {
            *runs = merged(std::mem::take(runs));
        }
        if commits.len() < STEP_COMMITS {
            break;
        }
    }
    for runs in files.values_mut() {
        *runs = merged(std::mem::take(runs));
    }
    Ok(files)
}

fn add(files: &mut BTreeMap<FileId, Runs>, commit: &CommitInfo) {
    for change in &commit.files {
        let runs = files.entry(change.file).or_default();
        let written = change.blocks.iter();
        runs.extend(written.map(|(first, count)| (first.raw(), first.raw().saturating_add(count.raw()))));
        if change.size != change.old_size {
            // A size change is a write of all that follows.
            runs.push((change.block_size.block_of(change.size.min(change.old_size)).raw(), u64::MAX));
        }
    }
}

fn merged(mut runs: Runs) -> Runs {
    runs.sort_unstable();
    runs.dedup_by(|next, before| {
        let joins = next.0 <= before.1;
        if joins {
            before.1 = before.1.max(next.1);
        }
        joins
    });
    runs
}

/// Two states of one store.
struct Pair<'a> {
    native: Option<&'a Arc<NativeStore>>,
    old: &'a ReadTxn,
    new: &'a ReadTxn,
}

impl Pair<'_> {
    async fn entry(&self, file: FileId, runs: &Runs) -> Result<Option<DiffEntry>, LookError> {
        let (was, is) = (live_file(self.old, file)?, live_file(self.new, file)?);
        let whole = |size: u64| if size > 0 { vec![Range { start: 0, end: size }] } else { Vec::new() };
        let (change, path, renamed_from, ranges) = match (&was, &is) {
            (None, None) => return Ok(None),
            (None, Some(is)) => (Change::Created, self.new.path_of(is)?, None, whole(is.size)),
            (Some(was), None) => (Change::Deleted, self.old.path_of(was)?, None, Vec::new()),
            (Some(was), Some(is)) => {
                let (old_path, path) = (self.old.path_of(was)?, self.new.path_of(is)?);
                let ranges = self.ranges(was, is, runs).await?;
                let renamed = old_path != path;
                if !renamed && ranges.is_empty() && was.size == is.size {
                    return Ok(None);
                }
                let change = if renamed { Change::Renamed } else { Change::Changed };
                (change, path, renamed.then(|| Name::new(&old_path)), ranges)
            }
        };
        let Some(known) = is.as_ref().or(was.as_ref()) else { return Ok(None) };
        let cut_off = match (&was, &is) {
            (Some(was), Some(is)) => Some(Range { start: is.size, end: was.size }),
            _ => None,
        };
        Ok(Some(DiffEntry {
            name: Name::new(&path),
            file: known.file,
            change,
            renamed_from,
            old_size: was.as_ref().map_or(0, |meta| meta.size),
            size: is.as_ref().map_or(0, |meta| meta.size),
            block_size: known.block_size.bytes(),
            ranges,
            cut_off: cut_off.filter(|range| range.start < range.end),
        }))
    }

    async fn ranges(&self, was: &FileMeta, is: &FileMeta, runs: &Runs) -> Result<Vec<Range>, LookError> {
        if was.block_size != is.block_size {
            return Ok(clipped(&vec![(0, u64::MAX)], is.block_size, is.size));
        }
        // Beyond the shorter one there is nothing to compare: those bytes are new, or gone.
        let both = is.block_size.blocks_for(was.size.min(is.size)).raw();
        let mut found = Finder::new(self.native, (self.old, was), (self.new, is));
        for (first, end) in runs {
            let end = (*end).min(both);
            let mut old = RunWindows::new(self.old, was.file, *first, end);
            let mut new = RunWindows::new(self.new, is.file, *first, end);
            let mut pairs = Aligned::default();
            while let Some((a, b)) = pairs.next(&mut old, &mut new)? {
                found.compare(&a, &b).await?;
            }
        }
        let mut ranges = clipped(&found.differ, is.block_size, is.size);
        if is.size > was.size {
            join(&mut ranges, Range { start: was.size, end: is.size });
        }
        Ok(ranges)
    }
}

/// Cuts the runs of two states into pieces of the same blocks.
#[derive(Default)]
struct Aligned {
    old: std::collections::VecDeque<BlockRun>,
    new: std::collections::VecDeque<BlockRun>,
}

impl Aligned {
    fn next(
        &mut self,
        old: &mut RunWindows<'_>,
        new: &mut RunWindows<'_>,
    ) -> Result<Option<(BlockRun, BlockRun)>, ReadError> {
        if self.old.is_empty() {
            self.old.extend(old.next().transpose()?.unwrap_or_default());
        }
        if self.new.is_empty() {
            self.new.extend(new.next().transpose()?.unwrap_or_default());
        }
        let (Some(a), Some(b)) = (self.old.front(), self.new.front()) else { return Ok(None) };
        let count = a.count.min(b.count);
        let pair = (cut(a, count), cut(b, count));
        for queue in [&mut self.old, &mut self.new] {
            if let Some(run) = queue.pop_front()
                && run.count > count
            {
                queue.push_front(rest(&run, count));
            }
        }
        Ok(Some(pair))
    }
}

fn cut(run: &BlockRun, count: u64) -> BlockRun {
    BlockRun { count, ..*run }
}

fn rest(run: &BlockRun, skip: u64) -> BlockRun {
    let data = match run.data {
        BlockData::Hole => BlockData::Hole,
        BlockData::Stored { pack, offset, len, codec } => {
            BlockData::Stored { pack, offset: offset + skip * u64::from(len), len, codec }
        }
        // One block.
        object @ BlockData::Object { .. } => object,
    };
    let first = BlockIndex::new(run.first.raw() + skip);
    BlockRun { first, count: run.count - skip, rev: run.rev, data }
}

/// Collects the blocks that differ.
struct Finder<'a> {
    native: Option<&'a Arc<NativeStore>>,
    old: (&'a ReadTxn, &'a FileMeta),
    new: (&'a ReadTxn, &'a FileMeta),
    pool: Arc<BufferPool>,
    differ: Runs,
}

impl<'a> Finder<'a> {
    fn new(
        native: Option<&'a Arc<NativeStore>>,
        old: (&'a ReadTxn, &'a FileMeta),
        new: (&'a ReadTxn, &'a FileMeta),
    ) -> Finder<'a> {
        Finder { native, old, new, pool: BufferPool::new(2, 1), differ: Vec::new() }
    }

    /// Compares the same blocks of two states.
    async fn compare(&mut self, a: &BlockRun, b: &BlockRun) -> Result<(), ReadError> {
        if a.data == b.data {
            return Ok(());
        }
        let first = a.first.raw();
        // Blocks that are all zero are holes in a native store, so a stored one has data.
        if self.native.is_some() && (a.data == BlockData::Hole || b.data == BlockData::Hole) {
            self.push(first, a.count);
            return Ok(());
        }
        for index in 0..a.count {
            let same = match self.native {
                Some(native) => native.block_hash(a, index).await? == native.block_hash(b, index).await?,
                None => self.same_bytes(first + index).await?,
            };
            if !same {
                self.push(first + index, 1);
            }
        }
        Ok(())
    }

    async fn same_bytes(&self, block: u64) -> Result<bool, ReadError> {
        let size = self.new.1.block_size.bytes();
        let read = async |(txn, meta): (&ReadTxn, &FileMeta)| {
            let len = usize::try_from(size).unwrap_or(usize::MAX);
            view::read(txn, meta, block.saturating_mul(size), len, &self.pool).wait().await
        };
        let (old, new) = (read(self.old).await?, read(self.new).await?);
        // The shorter one may end in this block: what it lacks is told by the sizes.
        let both = old.len().min(new.len());
        Ok(old[..both] == new[..both])
    }

    fn push(&mut self, first: u64, count: u64) {
        match self.differ.last_mut() {
            Some((_, end)) if *end == first => *end += count,
            _ => self.differ.push((first, first + count)),
        }
    }
}

/// Runs of blocks as bytes of a file of `size` bytes.
fn clipped(runs: &Runs, block_size: BlockSize, size: u64) -> Vec<Range> {
    let byte_of = |block: u64| block_size.start_of(BlockIndex::new(block)).unwrap_or(u64::MAX).min(size);
    let mut ranges = Vec::new();
    for (first, end) in runs {
        join(&mut ranges, Range { start: byte_of(*first), end: byte_of(*end) });
    }
    ranges
}

/// Adds a range that does not start before the last one.
fn join(ranges: &mut Vec<Range>, next: Range) {
    match ranges.last_mut() {
        _ if next.start >= next.end => {}
        Some(last) if last.end >= next.start => last.end = last.end.max(next.end),
        _ => ranges.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_touch_become_one() {
        assert_eq!(merged(vec![(5, 7), (0, 2), (2, 3), (6, 9)]), [(0, 3), (5, 9)]);
        assert_eq!(merged(vec![(4, u64::MAX), (9, 12)]), [(4, u64::MAX)]);
    }

    #[test]
    fn ranges_end_with_the_file() {
        let size = BlockSize::new(4096).unwrap();
        let ranges = clipped(&vec![(0, 1), (2, u64::MAX)], size, 10_000);
        assert_eq!(ranges, [Range { start: 0, end: 4096 }, Range { start: 8192, end: 10_000 }]);
        assert_eq!(clipped(&vec![(3, 4)], size, 10_000), []);
    }

    #[test]
    fn the_rest_of_a_run_starts_at_its_own_bytes() {
        let stored = |offset| BlockData::Stored {
            pack: crate::store::PackNo(3),
            offset,
            len: 4096,
            codec: crate::store::Codec::Raw,
        };
        let run =
            |first, count, data| BlockRun { first: BlockIndex::new(first), count, rev: Tid::ZERO, data };
        let whole = run(5, 10, stored(8192));
        assert_eq!(cut(&whole, 4), run(5, 4, stored(8192)));
        assert_eq!(rest(&whole, 4), run(9, 6, stored(8192 + 4 * 4096)));
        assert_eq!(rest(&run(5, 10, BlockData::Hole), 4), run(9, 6, BlockData::Hole));
    }
}
