//! `log` and `tags`: the history of a store or of one file.
//!
//! Invariant: newest first, each commit once, in bounded memory: entries are handed out as they are read.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use revfs_protocol::{FileId, Tid};
use serde::Serialize;

use super::LookError;
use super::data::{Name, Range, text, text_or_null, tid_time, time_text};
use crate::store::{CommitInfo, Entry, FileChange, ReadError, ReadTxn, Store};

/// Commits read at once.
const STEP_COMMITS: usize = 64;

/// Which commits to show.
#[derive(Clone, Debug)]
pub struct LogQuery {
    /// Only those that touched this file, or a file below this directory.
    pub name: Option<Vec<u8>>,
    /// At most so many.
    pub limit: Option<u64>,
    /// Only those after this state.
    pub since: Tid,
}

/// One commit: all that its record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// Its tid.
    #[serde(serialize_with = "text")]
    pub tid: Tid,
    /// Its number in the log.
    pub seq: u64,
    /// Its moment by the writer's clock, UTC.
    pub time: String,
    /// The state that it was made on.
    #[serde(serialize_with = "text")]
    pub base: Tid,
    /// Who.
    pub author: String,
    /// Why.
    pub message: String,
    /// Identity of the attempt.
    #[serde(serialize_with = "text")]
    pub commit_uuid: uuid::Uuid,
    /// What it did to files.
    pub files: Vec<LogFile>,
    /// What it did to tags.
    pub tags: Vec<LogTag>,
    /// Bytes that it added to packs.
    pub pack_bytes: u64,
}

/// What a commit did to one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogFile {
    /// Its name after the commit; before it, for a deletion.
    #[serde(flatten)]
    pub name: Name,
    /// The file.
    #[serde(serialize_with = "text")]
    pub file: FileId,
    /// It is new.
    pub created: bool,
    /// It is gone.
    pub deleted: bool,
    /// Its name before, if it was renamed.
    pub renamed_from: Option<Name>,
    /// Size before, bytes.
    pub old_size: u64,
    /// Size after, bytes.
    pub size: u64,
    /// Unit of change, bytes.
    pub block_size: u64,
    /// Runs of blocks that were written, as numbers of blocks.
    pub blocks: Vec<Range>,
}

/// What a commit did to one tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogTag {
    /// The tag.
    pub tag: String,
    /// What it means from then on; null: it was deleted.
    #[serde(serialize_with = "text_or_null")]
    pub tid: Option<Tid>,
}

/// A tag and what it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TagEntry {
    /// The tag.
    pub tag: String,
    /// What it means.
    #[serde(serialize_with = "text")]
    pub tid: Tid,
    /// The moment of that, UTC; null for the empty state.
    pub time: Option<String>,
}

impl From<CommitInfo> for LogEntry {
    fn from(commit: CommitInfo) -> LogEntry {
        LogEntry {
            tid: commit.tid,
            seq: commit.seq,
            time: time_text(commit.time_unix_ns),
            base: commit.base,
            author: commit.author,
            message: commit.message,
            commit_uuid: commit.commit_uuid,
            files: commit.files.into_iter().map(LogFile::from).collect(),
            tags: commit.tags.into_iter().map(|tag| LogTag { tag: tag.name, tid: tag.target }).collect(),
            pack_bytes: commit.pack_bytes,
        }
    }
}

impl From<FileChange> for LogFile {
    fn from(change: FileChange) -> LogFile {
        // Of a database it may be said that all blocks changed, whatever their number.
        let end = change.block_size.blocks_for(change.size.max(change.old_size)).raw();
        let range = |first: u64, count: u64| Range {
            start: first,
            end: first.saturating_add(count).min(end.max(first)),
        };
        LogFile {
            name: Name::new(&change.path),
            file: change.file,
            created: change.created,
            deleted: change.deleted,
            renamed_from: change.renamed_from.as_deref().map(Name::new),
            old_size: change.old_size,
            size: change.size,
            block_size: change.block_size.bytes(),
            blocks: change.blocks.iter().map(|(first, count)| range(first.raw(), count.raw())).collect(),
        }
    }
}

/// Follows one name back through renames.
struct Filter {
    name: Vec<u8>,
    files: HashSet<FileId>,
}

impl Filter {
    fn new(txn: &ReadTxn, name: &[u8]) -> Result<Filter, ReadError> {
        let files = match txn.resolve(name)? {
            Some(Entry::File(file)) => HashSet::from([file]),
            Some(Entry::Dir(dir)) => txn.walk(dir)?.into_iter().map(|(_, file)| file).collect(),
            None => HashSet::new(),
        };
        Ok(Filter { name: name.to_vec(), files })
    }

    /// Whether the commit touched a file that has, or later got, the name.
    fn takes(&mut self, commit: &CommitInfo) -> bool {
        let mut any = false;
        for change in &commit.files {
            let named =
                [Some(&change.path), change.renamed_from.as_ref()].into_iter().flatten().any(|path| {
                    let rest = path.strip_prefix(self.name.as_slice());
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
                });
            if named {
                self.files.insert(change.file);
            }
            any |= named || self.files.contains(&change.file);
        }
        any
    }
}

/// Hands out commits, newest first, until `each` breaks.
///
/// # Errors
/// [`LookError::NeverExisted`], and what the store says.
pub fn log(
    store: &Arc<dyn Store>,
    query: &LogQuery,
    each: &mut dyn FnMut(LogEntry) -> ControlFlow<()>,
) -> Result<(), LookError> {
    let head = ReadTxn::head(store);
    let mut filter = match &query.name {
        Some(name) => Some(Filter::new(&head, name)?),
        None => None,
    };
    let mut left = query.limit.unwrap_or(u64::MAX);
    let mut hi = head.at();
    while left > 0 {
        let step = STEP_COMMITS.min(usize::try_from(left).unwrap_or(STEP_COMMITS));
        let commits = store.commits_back(query.since, hi, step)?;
        let full = commits.len() == step;
        for commit in commits {
            hi = Tid::from_raw(commit.tid.raw().saturating_sub(1));
            if filter.as_mut().is_some_and(|filter| !filter.takes(&commit)) {
                continue;
            }
            left -= 1;
            if each(commit.into()).is_break() {
                return Ok(());
            }
        }
        if !full {
            break;
        }
    }
    match filter {
        // Not found in the commits asked for: in older ones it may be, and then there is just nothing to show.
        Some(filter) if filter.files.is_empty() && query.since.is_zero() && left > 0 => {
            Err(LookError::NeverExisted { name: filter.name })
        }
        _ => Ok(()),
    }
}

/// All tags, in byte order.
///
/// # Errors
/// What the store says.
pub fn tags(store: &Arc<dyn Store>) -> Result<Vec<TagEntry>, LookError> {
    let tags = store.tags()?;
    Ok(tags.into_iter().map(|(tag, tid)| TagEntry { tag, tid, time: tid_time(tid) }).collect())
}
