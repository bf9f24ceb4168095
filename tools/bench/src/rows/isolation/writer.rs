//! Who commits: files of which the same blocks get a new word in each commit.
//!
//! Invariant: the word of a block says in which commit it was written, so what a reader sees tells the revision.
//! Blocks hold that word and zeros, and commits are not synced: no row of this group measures the disk by them.

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use revfs::env::sleep;
use revfs::protocol::{BlockIndex, BlockSize, FileId, Tid};
use revfs::store::native::{BlockHash, CommitError, NativeStore, block_hash};
use rustix::thread::set_current_timer_slack;
use tokio::runtime::Runtime;

use crate::clock::now;
use crate::driver::Mounted;
use crate::error::{BenchError, Named, OfStore, Result};

/// How long a mount may take to show a commit.
const SHOWN_LIMIT: Duration = Duration::from_secs(60);
/// Far below what is measured: a poll more or less would else decide a row.
const POLL_INTERVAL: Duration = Duration::from_micros(20);
/// How late a sleep may end; 50 us is the kernel's default, more than the interval.
const POLL_SLACK_NS: NonZeroU64 = NonZeroU64::MIN;
/// Set in all words: the last byte of none is zero, as in all blocks that are stored in part.
const MARK: u64 = 1 << 63;

/// A writer of one store.
pub struct Writer {
    store: Arc<NativeStore>,
    runtime: Runtime,
}

/// A file, and those of its blocks that get new words.
#[derive(Debug)]
pub struct Written {
    /// The file.
    pub file: FileId,
    /// Unit of its blocks.
    pub block_size: BlockSize,
    /// The blocks that are written.
    pub blocks: Vec<u64>,
    commits: u64,
}

/// One commit of a [`Written`] file.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Its state.
    pub tid: Tid,
    number: u64,
}

impl Change {
    /// What a block begins with as of this commit.
    pub fn word(self, block: u64) -> u64 {
        MARK | (self.number << 40) | block
    }

    /// Refuses another word than a block's as of this commit.
    ///
    /// # Errors
    /// It is another.
    pub fn check(self, block: u64, word: u64) -> Result<()> {
        let expected = self.word(block);
        if word == expected {
            return Ok(());
        }
        Err(BenchError::Wrong(format!(
            "block {block} @{} begins with {word:016x} and not with {expected:016x}",
            self.tid
        )))
    }
}

impl Written {
    /// Size of the file, bytes: it ends with its last block that is written.
    pub fn size(&self) -> u64 {
        self.blocks.iter().max().map_or(0, |last| last + 1) * self.block_size.bytes()
    }

    /// Where a block begins, bytes.
    pub fn start(&self, block: u64) -> u64 {
        block * self.block_size.bytes()
    }
}

impl Writer {
    /// Makes a store.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn new(root: &Path) -> Result<Writer> {
        Ok(Writer { store: crate::rows::index::make_store(root)?, runtime: crate::rows::small::runtime()? })
    }

    /// Makes a file of which `count` blocks, each `step` after the other, are written by commits.
    ///
    /// # Errors
    /// The store refuses.
    pub fn create(&self, name: &str, block_size: BlockSize, (count, step): (u64, u64)) -> Result<Written> {
        let blocks: Vec<u64> = (0..count).map(|number| number * step).collect();
        let make = async || -> std::result::Result<FileId, CommitError> {
            let mut transaction = self.store.begin(None)?;
            let file = transaction.create(name.as_bytes(), Some(block_size))?;
            let size = ((count - 1) * step + 1) * block_size.bytes();
            transaction.set_size(file, size).await?;
            transaction.commit().await?;
            Ok(file)
        };
        let file = self.runtime.block_on(make()).of_store("commit of a new file")?;
        Ok(Written { file, block_size, blocks, commits: 0 })
    }

    /// Commits new words.
    ///
    /// # Errors
    /// The store refuses.
    pub fn change(&self, written: &mut Written) -> Result<Change> {
        let prepared = self.prepare(written);
        self.commit(written, prepared)
    }

    /// The blocks of the next commit: all that costs time and is not the commit's.
    pub fn prepare(&self, written: &mut Written) -> Prepared {
        written.commits += 1;
        let change = Change { tid: Tid::ZERO, number: written.commits };
        let mut whole = vec![0; written.block_size.bytes() as usize];
        let block = |block: &u64| {
            let word = change.word(*block).to_le_bytes();
            whole[..word.len()].copy_from_slice(&word);
            (*block, Bytes::copy_from_slice(&word), block_hash(&whole))
        };
        Prepared { change, blocks: written.blocks.iter().map(block).collect() }
    }

    /// Commits what was prepared.
    ///
    /// # Errors
    /// The store refuses.
    pub fn commit(&self, written: &Written, prepared: Prepared) -> Result<Change> {
        let make = async || -> std::result::Result<Tid, CommitError> {
            let mut transaction = self.store.begin(None)?;
            for (block, data, hash) in prepared.blocks {
                transaction.put_partial(written.file, BlockIndex::new(block), data, hash).await?;
            }
            Ok(transaction.commit().await?.tid)
        };
        let tid = self.runtime.block_on(make()).of_store("commit")?;
        Ok(Change { tid, ..prepared.change })
    }
}

/// Blocks to commit.
pub struct Prepared {
    change: Change,
    blocks: Vec<(u64, Bytes, BlockHash)>,
}

/// What `head/at` of a mount shows.
///
/// # Errors
/// It cannot be read.
pub fn head_at(mounted: &Mounted) -> Result<Tid> {
    let path = mounted.join("head/at");
    let text = fs::read_to_string(&path).named(path.display())?;
    text.trim()
        .parse()
        .map_err(|error| BenchError::Wrong(format!("{} has {text:?}: {error}", path.display())))
}

/// Waits until `head/at` of a mount shows a commit.
///
/// # Errors
/// It takes too long.
pub fn wait_shown(mounted: &Mounted, tid: Tid) -> Result<()> {
    set_current_timer_slack(Some(POLL_SLACK_NS)).named("the slack of timers")?;
    let waited = poll_shown(mounted, tid);
    set_current_timer_slack(None).named("the slack of timers")?;
    waited
}

fn poll_shown(mounted: &Mounted, tid: Tid) -> Result<()> {
    let end = now() + SHOWN_LIMIT;
    loop {
        let shown = head_at(mounted)?;
        if shown >= tid {
            return Ok(());
        }
        if now() > end {
            let limit = SHOWN_LIMIT.as_secs();
            return Err(BenchError::Wrong(format!("head/at is @{shown} and not @{tid} after {limit} s")));
        }
        sleep(POLL_INTERVAL);
    }
}
