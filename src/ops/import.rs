//! `import`: the history of files of another store, commit for commit and with the same tids.
//!
//! A commit of the source that changed a chosen file becomes one commit here: the same tid, author and message, and of the
//! blocks that were told as changed those whose bytes differ. Invariant: what stands in the target is at each moment the beginning
//! of the source's history, so that it may be ended anywhere and goes on behind its newest commit; and each commit was
//! compared with the source after it was made, before the next one is. Left out on purpose: the parts of a history that a pack
//! of the source took away; what was whole first is imported as one commit.

mod blocks;
mod check;
mod chosen;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use revfs_protocol::{FileId, Tid};
use serde::Serialize;

use super::data::{shown, text};
use super::live_file;
use crate::store::native::{CommitError, CommitWarning, CopyOf, NativeStore, Transaction};
use crate::store::{BufferPool, CommitInfo, FileChange, FileMeta, NameError, ReadError, ReadTxn, Store};
use blocks::{Pair, Runs, all};
pub use chosen::Chosen;
use target::Chain;

/// Commits of the source that are asked for at once.
const STEP_COMMITS: usize = 64;
/// What is said of the commit that holds the first state which a pack left whole.
const PACKED_MESSAGE: &str = "the oldest state that a pack of the source left whole";

/// Told how many bytes were copied or compared.
pub type ImportProgress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// Why a history was not imported, or not to its end. What was imported before stays.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Two files would have one name.
    #[error("{name}: is given to two files: choose another name for one of them", name = shown(name))]
    NameTwice {
        /// The name.
        name: Vec<u8>,
    },
    /// A name is given to a file that is not imported.
    #[error("file {file}: has a name, but is not among the files to import: name it among them too")]
    NotChosen {
        /// The file.
        file: FileId,
    },
    /// The target has a commit that is not of this import.
    #[error("{store}: commit {tid} {why}: import into a store of its own, made by `revfs init`")]
    NotOurs {
        /// The target.
        store: String,
        /// The commit.
        tid: Tid,
        /// What it is.
        why: &'static str,
    },
    /// The target goes on where the source does not.
    #[error("{store}: was imported up to @{tid}, and {source_store} {why}: it is another database, or was restored from a backup; import it into a new store", source_store = source_url)]
    NotABeginning {
        /// The target.
        store: String,
        /// Its newest commit.
        tid: Tid,
        /// The source.
        source_url: String,
        /// What of it does not fit.
        why: &'static str,
    },
    /// What was imported is not what is in the source.
    #[error("{name} @{tid}: {what} is not what the source has; check both stores with `revfs verify`, and import into a new store", name = shown(name))]
    Differs {
        /// Name of the file in the target.
        name: Vec<u8>,
        /// The state.
        tid: Tid,
        /// What of it.
        what: String,
    },
    /// The source cannot be read.
    #[error("{name} @{tid} of the source: {error}", name = shown(name))]
    Source {
        /// Name of the file in the target.
        name: Vec<u8>,
        /// The state.
        tid: Tid,
        /// Why.
        error: Box<ReadError>,
    },
    /// A store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A commit could not be made.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The newest commit of the target.
    #[serde(serialize_with = "text")]
    pub tid: Tid,
    /// The state of the source up to which all is imported.
    #[serde(serialize_with = "text")]
    pub source_tid: Tid,
    /// Commits made now.
    pub commits: u64,
    /// Commits that were there.
    pub commits_before: u64,
    /// Bytes of blocks written now.
    pub bytes: u64,
    /// Commits whose changes were compared with the source.
    pub verified: u64,
    /// Commits that a pack of the source has made impossible to compare.
    pub not_verified: u64,
    /// What the writer should know all the same.
    pub warnings: Vec<String>,
}

/// What to import, and where to.
pub struct Import<'a> {
    /// Where the history is. Files are known by their ids there.
    pub source: &'a Arc<dyn Store>,
    /// The oldest state of the source that a pack left whole; [`Tid::ZERO`] if all are.
    pub oldest: Tid,
    /// Where it goes.
    pub target: &'a Arc<NativeStore>,
    /// Which files.
    pub chosen: &'a Chosen,
    /// Compare all that was imported ever, and not only what is now.
    pub verify_all: bool,
}

/// Imports what is not imported yet, up to the head that the source has now. To be called in a tokio runtime.
///
/// # Errors
/// See [`ImportError`].
pub async fn import(what: &Import<'_>, progress: ImportProgress<'_>) -> Result<Imported, ImportError> {
    let goal = what.source.head();
    let (chain, before) = target::check(what, goal).await?;
    let mut importer = Importer {
        what,
        progress,
        pool: BufferPool::new(2, blocks::SPAN_BYTES),
        chain,
        passed: 0,
        imported: Imported {
            tid: chain.last(),
            source_tid: goal,
            commits: 0,
            commits_before: before,
            bytes: 0,
            verified: 0,
            not_verified: 0,
            warnings: Vec::new(),
        },
    };
    let mut from = importer.begin().await?;
    loop {
        let commits = importer.told(from, goal)?;
        for commit in &commits {
            importer.import_commit(commit).await?;
            from = commit.tid;
        }
        if commits.len() < STEP_COMMITS {
            break;
        }
    }
    if what.verify_all {
        importer.verify_all().await?;
    }
    Ok(importer.imported)
}

/// A file of a commit, and its blocks that may have changed.
struct Touched {
    file: FileId,
    name: Vec<u8>,
    runs: Runs,
}

impl Touched {
    fn of(chosen: &Chosen, change: &FileChange) -> Option<Touched> {
        let name = chosen.name(change.file)?;
        let runs = change.blocks.iter();
        let runs =
            runs.map(|(first, count)| (first.raw(), first.raw().saturating_add(count.raw()))).collect();
        Some(Touched { file: change.file, name, runs })
    }
}

struct Importer<'a> {
    what: &'a Import<'a>,
    progress: ImportProgress<'a>,
    pool: Arc<BufferPool>,
    chain: Chain,
    passed: u64,
    imported: Imported,
}

impl Importer<'_> {
    /// Imports the oldest state that is whole, if a pack took away what is between the target's newest commit and it;
    /// answers the state to go on from.
    async fn begin(&mut self) -> Result<Tid, ImportError> {
        let (last, oldest) = (self.chain.last(), self.what.oldest);
        if oldest <= last {
            return Ok(last);
        }
        let at = ReadTxn::new(self.what.source, oldest)?;
        let mut touched: BTreeMap<Vec<u8>, Touched> = BTreeMap::new();
        for (_, file) in at.walk(crate::store::DirId::ROOT)? {
            if let Some(name) = self.what.chosen.name(file) {
                touched.insert(name.clone(), Touched { file, name, runs: all() });
            }
        }
        // What is in the target and not there any more.
        let known = ReadTxn::head(&self.what.target.as_store());
        for (name, _) in known.walk(crate::store::DirId::ROOT)? {
            if let (Some(file), false) = (self.what.chosen.file(&name), touched.contains_key(&name)) {
                touched.insert(name.clone(), Touched { file, name, runs: all() });
            }
        }
        self.make(oldest, ("", PACKED_MESSAGE), touched.into_values().collect()).await?;
        Ok(oldest)
    }

    /// What the source committed behind `lo`, some commits at once.
    fn told(&self, lo: Tid, hi: Tid) -> Result<Vec<CommitInfo>, ImportError> {
        Ok(match self.what.chosen.files() {
            Some(files) => self.what.source.commits_of(lo, hi, STEP_COMMITS, files)?,
            None => self.what.source.commits(lo, hi, STEP_COMMITS)?,
        })
    }

    async fn import_commit(&mut self, commit: &CommitInfo) -> Result<(), ImportError> {
        let touched = commit.files.iter().filter_map(|change| Touched::of(self.what.chosen, change));
        self.make(commit.tid, (&commit.author, &commit.message), touched.collect()).await
    }

    /// Makes one commit, if anything of the files differs.
    async fn make(
        &mut self,
        tid: Tid,
        (author, message): (&str, &str),
        files: Vec<Touched>,
    ) -> Result<(), ImportError> {
        if files.is_empty() {
            return Ok(());
        }
        let (base, next) = (self.chain.last(), self.chain.then(tid));
        let mut txn = self.what.target.begin(None)?;
        let head = txn.base().at();
        if head != base {
            txn.abandon().await;
            return Err(CommitError::CopyTooLate { tid, base, head }.into());
        }
        txn.set_author(author);
        txn.set_message(message);
        txn.set_copy_of(CopyOf { tid, uuid: next.uuid() });
        let at = ReadTxn::new(self.what.source, tid)?;
        let mut written = Ok(0);
        for file in &files {
            written = match (written, self.write(&mut txn, &at, file).await) {
                (Ok(before), Ok(now)) => Ok(before + now),
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
            if written.is_err() {
                break;
            }
        }
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                txn.abandon().await;
                return Err(error);
            }
        };
        let done = txn.commit().await?;
        if done.empty {
            return Ok(());
        }
        self.chain = next;
        self.imported.tid = tid;
        self.imported.commits += 1;
        self.imported.bytes += written;
        self.imported.warnings.extend(done.warnings.iter().map(CommitWarning::to_string));
        let stored = ReadTxn::new(&self.what.target.as_store(), tid)?;
        for file in &files {
            self.compare((&at, &stored), file).await?;
        }
        self.imported.verified += 1;
        Ok(())
    }

    /// Makes a file of the transaction what it is in the source at `at`; answers how many bytes were written.
    async fn write(
        &mut self,
        txn: &mut Transaction,
        at: &ReadTxn,
        touched: &Touched,
    ) -> Result<u64, ImportError> {
        let failed = |error: ReadError| ImportError::Source {
            name: touched.name.clone(),
            tid: at.at(),
            error: error.into(),
        };
        let is = live_file(at, touched.file).map_err(failed)?;
        let was = txn.lookup(&touched.name)?.map(|file| txn.file(file)).transpose()?.flatten();
        let (file, was) = match (was, &is) {
            (None, None) => return Ok(0),
            (Some(was), None) => {
                txn.delete(was.file)?;
                return Ok(0);
            }
            (Some(was), Some(is)) if was.block_size == is.block_size => (was.file, Some(was)),
            // The size of blocks is a file's own for good.
            (was, Some(is)) => {
                if let Some(was) = was {
                    txn.delete(was.file)?;
                }
                (txn.create(&touched.name, Some(is.block_size))?, None)
            }
        };
        let Some(is) = is else { return Ok(0) };
        txn.set_size(file, is.size).await?;
        let runs = if was.is_none() { all() } else { touched.runs.clone() };
        self.write_blocks((txn, file, was.as_ref()), (at, &is), runs).await.map_err(|error| match error {
            ImportError::Read(error) => failed(error),
            other => other,
        })
    }

    async fn write_blocks(
        &mut self,
        (txn, file, was): (&mut Transaction, FileId, Option<&FileMeta>),
        (at, is): (&ReadTxn, &FileMeta),
        runs: Runs,
    ) -> Result<u64, ImportError> {
        let base = txn.base().clone();
        let size = is.block_size.bytes();
        let mut pair = Pair::new((at, is), was.map(|was| (&base, was)), runs);
        let mut written = 0;
        while let Some(span) = pair.next(&self.pool).await? {
            for (block, bytes) in span.differing(size) {
                let start = block.saturating_mul(size);
                txn.write(file, start..start.saturating_add(bytes.len() as u64), bytes).await?;
                written += bytes.len() as u64;
            }
            self.passed += span.bytes();
            (self.progress)(self.passed);
        }
        Ok(written)
    }

    /// All files of the source and the target as of `tid` that are imported.
    fn names_at(&self, at: &ReadTxn, stored: &ReadTxn) -> Result<BTreeSet<FileId>, ImportError> {
        let root = crate::store::DirId::ROOT;
        let there = at.walk(root)?.into_iter().map(|(_, file)| file);
        let here = stored.walk(root)?.into_iter().filter_map(|(name, _)| self.what.chosen.file(&name));
        Ok(there.filter(|file| self.what.chosen.name(*file).is_some()).chain(here).collect())
    }
}
