//! `commit`: several files become one atomic commit.
//!
//! Invariant: nothing is committed unless each source was read to its end and did not change meanwhile. Memory
//! is bounded whatever the sizes: see `spans`, and the packs of the store. A file is compared with the base
//! by blocks, so an unchanged block is neither stored nor part of the commit.

use std::collections::HashSet;
use std::sync::Arc;

use revfs_protocol::{BlockCount, BlockIndex, BlockSize, FileId, TagName, Tid};
use serde::Serialize;

use super::data::{shown, text};
use super::runs::RunWindows;
use super::source::SourceFile;
pub use super::source::{Source, SourceError};
use super::spans::{Base, Changed, SpanError, Spans};
use crate::store::native::{self, CommitError, CommitWarning, NativeStore, Transaction};
use crate::store::{BlockData, FileMeta, NameError, ReadError, Store, check_path};

/// One file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitFile {
    /// Its name in the store.
    pub name: Vec<u8>,
    /// Where its bytes come from.
    pub source: Source,
}

/// Told of bytes passed, and of all bytes if that is known.
pub type CommitProgress<'a> = &'a (dyn Fn(u64, Option<u64>) + Send + Sync);

/// What to commit.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// Names and sources, each name once.
    pub files: Vec<CommitFile>,
    /// Why.
    pub message: String,
    /// Who.
    pub author: String,
    /// The state that conflicts are judged against; `None`: head as the commit starts.
    pub base: Option<Tid>,
    /// Let changes of different blocks of one file land together.
    pub merge: bool,
    /// A tag to give to the new commit.
    pub tag: Option<TagName>,
    /// Block size of files that are new; a file that exists must have it.
    pub block_size: Option<BlockSize>,
    /// Commit even if nothing changed.
    pub allow_empty: bool,
}

/// A commit that stands, or an empty one that was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Committed {
    /// Its tid; the base's if nothing changed.
    #[serde(serialize_with = "text")]
    pub tid: Tid,
    /// Its number in the log, if it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Whether there was anything to commit.
    pub changed: bool,
    /// What the writer should know all the same.
    pub warnings: Vec<String>,
}

impl From<native::Committed> for Committed {
    fn from(done: native::Committed) -> Committed {
        Committed {
            tid: done.tid,
            seq: (!done.empty).then_some(done.seq),
            changed: !done.empty,
            warnings: done.warnings.iter().map(CommitWarning::to_string).collect(),
        }
    }
}

/// Why files were not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitFilesError {
    /// A source cannot be read, or changed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A name is given to two files.
    #[error("{name}: is given twice: give each name once", name = shown(name))]
    NameTwice {
        /// The name.
        name: Vec<u8>,
    },
    /// Only one file can come from the standard input.
    #[error("stdin: is given twice: only one NAME=- is possible, write the other to a file first")]
    StdinTwice,
    /// The file has another block size.
    #[error("{name}: has blocks of {have}, not of {asked}: the block size of a file is fixed, leave --block-size out or commit under another name", name = shown(name))]
    BlockSize {
        /// The name.
        name: Vec<u8>,
        /// Its block size.
        have: BlockSize,
        /// What was asked for.
        asked: BlockSize,
    },
    /// The tag is taken.
    #[error(
        "tag {tag}: exists already, at @{target}: choose another name, or commit without it and move it with `revfs tag --force`"
    )]
    TagExists {
        /// The tag.
        tag: TagName,
        /// What it means.
        target: Tid,
    },
    /// The transaction failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// No thread can be started.
    #[error("no thread can be started: {source}: raise the limit of processes (ulimit -u)")]
    Thread {
        /// Why.
        source: std::io::Error,
    },
    /// A thread of ours ended without an answer.
    #[error("{name}: {what}", name = shown(name))]
    Internal {
        /// The file it was about.
        name: Vec<u8>,
        /// What happened.
        what: String,
    },
}

impl From<ReadError> for CommitFilesError {
    fn from(error: ReadError) -> CommitFilesError {
        CommitFilesError::Commit(error.into())
    }
}

impl From<NameError> for CommitFilesError {
    fn from(error: NameError) -> CommitFilesError {
        CommitFilesError::Commit(error.into())
    }
}

/// Commits several files at once. To be called in a tokio runtime with more than one thread.
///
/// # Errors
/// See [`CommitFilesError`]. Nothing is committed then, but for `CommitError::Unknown`.
pub async fn commit_files(
    store: &Arc<NativeStore>,
    request: &CommitRequest,
    progress: CommitProgress<'_>,
) -> Result<Committed, CommitFilesError> {
    check_request(store, request)?;
    // All are opened first: a wrong path is told before gigabytes are read.
    let mut opened = Vec::with_capacity(request.files.len());
    for file in &request.files {
        opened.push(match &file.source {
            Source::Path(path) => Some(Arc::new(SourceFile::open(path)?)),
            Source::Stdin => None,
        });
    }
    let mut sizes = opened.iter().map(|file| file.as_ref().map(|file| file.stamp.size));
    let total = sizes.try_fold(0u64, |sum, size| Some(sum.saturating_add(size?)));
    let mut txn = store.begin(request.base)?;
    txn.set_message(&request.message);
    txn.set_author(&request.author);
    if request.allow_empty {
        txn.allow_empty();
    }
    if let Some(tag) = &request.tag {
        txn.set_tag(tag, Some(Tid::MAX));
    }
    let mut writer = Writer { store, txn, request, progress, total, passed: 0 };
    let mut result = Ok(());
    for (file, source) in request.files.iter().zip(&opened) {
        result = writer.write(&file.name, source.as_ref()).await;
        if result.is_err() {
            break;
        }
    }
    // Once more for all: the files of one commit belong together.
    for source in opened.iter().flatten() {
        result = result.and_then(|()| Ok(source.check_unchanged()?));
    }
    match result {
        Ok(()) => Ok(writer.txn.commit().await?.into()),
        Err(error) => {
            writer.txn.abandon().await;
            Err(error)
        }
    }
}

fn check_request(store: &Arc<NativeStore>, request: &CommitRequest) -> Result<(), CommitFilesError> {
    let mut names = HashSet::new();
    let mut stdin = false;
    for file in &request.files {
        check_path(&file.name)?;
        if !names.insert(&file.name) {
            return Err(CommitFilesError::NameTwice { name: file.name.clone() });
        }
        if file.source == Source::Stdin && std::mem::replace(&mut stdin, true) {
            return Err(CommitFilesError::StdinTwice);
        }
    }
    if let Some(tag) = &request.tag
        && let Some(target) = store.tag(tag.as_str())?
    {
        return Err(CommitFilesError::TagExists { tag: tag.clone(), target });
    }
    Ok(())
}

/// Writes files into one transaction.
struct Writer<'a> {
    store: &'a Arc<NativeStore>,
    txn: Transaction,
    request: &'a CommitRequest,
    progress: CommitProgress<'a>,
    total: Option<u64>,
    passed: u64,
}

impl Writer<'_> {
    /// Writes one file; `source`: an open file, or `None` for stdin.
    async fn write(&mut self, name: &[u8], source: Option<&Arc<SourceFile>>) -> Result<(), CommitFilesError> {
        let (file, known) = self.file(name)?;
        let block_size = match &known {
            Some(meta) => meta.block_size,
            None => self.txn.file(file)?.map_or(self.store.info().block_size, |meta| meta.block_size),
        };
        let base = Base { store: Arc::clone(self.store), txn: self.txn.base().clone(), meta: known };
        let thread = |source| CommitFilesError::Thread { source };
        let spans = match source {
            Some(source) => Spans::of_file(source, &base, block_size),
            None => Spans::of_stdin(&base, block_size),
        };
        let spans = spans.map_err(thread)?;
        if let Some(source) = source {
            // A shrink is told first: what lies beyond the end then needs no comparison.
            self.txn.set_size(file, source.stamp.size).await?;
        }
        let size = self.put(name, file, &base, source.map(|source| source.stamp.size), spans).await?;
        self.txn.set_size(file, size).await?;
        match source {
            Some(source) => Ok(source.check_unchanged()?),
            None => Ok(()),
        }
    }

    /// The file of that name, made if absent, and what it is in the base.
    fn file(&mut self, name: &[u8]) -> Result<(FileId, Option<FileMeta>), CommitFilesError> {
        let Some(file) = self.txn.lookup(name)? else {
            return Ok((self.txn.create(name, self.request.block_size)?, None));
        };
        let meta = self.txn.base().file(file)?.filter(|meta| meta.deleted.is_none());
        if let (Some(meta), Some(asked)) = (&meta, self.request.block_size)
            && meta.block_size != asked
        {
            return Err(CommitFilesError::BlockSize { name: name.to_vec(), have: meta.block_size, asked });
        }
        if !self.request.merge {
            self.txn.set_strict(file)?;
        }
        Ok((file, meta))
    }

    /// Puts all spans; answers the size of the file.
    async fn put(
        &mut self,
        name: &[u8],
        file: FileId,
        base: &Base,
        size: Option<u64>,
        mut spans: Spans,
    ) -> Result<u64, CommitFilesError> {
        let mut next_block = 0;
        let mut end = 0;
        let passed = self.passed;
        while let Some(span) = spans.next().await.map_err(|error| span_error(name, error))? {
            self.put_gap(file, base, next_block, span.first)?;
            for changed in span.changed {
                self.put_changed(file, changed).await?;
            }
            next_block = span.first + span.count;
            end = span.end;
            self.told(passed.saturating_add(end));
        }
        let size = size.unwrap_or(end);
        let blocks = base.meta.as_ref().map_or(0, |meta| meta.block_size.blocks_for(size).raw());
        self.put_gap(file, base, next_block, blocks)?;
        self.told(passed.saturating_add(size));
        Ok(size)
    }

    fn told(&mut self, passed: u64) {
        self.passed = passed;
        (self.progress)(passed, self.total);
    }

    async fn put_changed(&mut self, file: FileId, changed: Changed) -> Result<(), CommitError> {
        match changed {
            Changed::Full { first, data, hashes } => {
                self.txn.put_full(file, BlockIndex::new(first), data, &hashes).await
            }
            Changed::Partial { block, data, hash } => {
                self.txn.put_partial(file, BlockIndex::new(block), data, hash).await
            }
            Changed::Hole { first, count } => {
                self.txn.put_hole(file, BlockIndex::new(first), BlockCount::new(count))
            }
        }
    }

    /// Blocks `[first, end)` are zero in the source: those with data in the base become holes.
    fn put_gap(&mut self, file: FileId, base: &Base, first: u64, end: u64) -> Result<(), CommitFilesError> {
        let end = end.min(base.blocks());
        let Some(meta) = &base.meta else { return Ok(()) };
        for runs in RunWindows::new(&base.txn, meta.file, first, end) {
            for run in runs?.iter().filter(|run| run.data != BlockData::Hole) {
                self.txn.put_hole(file, run.first, BlockCount::new(run.count))?;
            }
        }
        Ok(())
    }
}

fn span_error(name: &[u8], error: SpanError) -> CommitFilesError {
    match error {
        SpanError::Source(error) => error.into(),
        SpanError::Base(error) => error.into(),
        SpanError::WorkerLost => {
            CommitFilesError::Internal { name: name.to_vec(), what: SpanError::WorkerLost.to_string() }
        }
    }
}
