//! `init`, `mv`, `rm` and `tag`: changes of names, each one atomic commit.
//!
//! Invariant: a change of many names is one commit or none. They are made on head as it is when they start;
//! what others commit meanwhile to the same files makes them conflict.

use std::collections::BTreeMap;
use std::sync::Arc;

use revfs_protocol::{FileId, TagName, Tid};

use super::commit::Committed;
use super::data::shown;
use crate::store::native::{CommitError, NativeStore, Transaction};
use crate::store::{Entry, NameError, ReadError, ReadTxn, Store, check_path};

/// Why names were not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// No such name.
    #[error("{name}: does not exist in the store: `revfs ls` lists the names there are", name = shown(name))]
    NotFound {
        /// Asked for.
        name: Vec<u8>,
    },
    /// A directory, where only files are removed.
    #[error("{name}: is a directory: use -r to remove all files below it", name = shown(name))]
    IsDirectory {
        /// Asked for.
        name: Vec<u8>,
    },
    /// The new name is taken.
    #[error("{name}: exists already: choose another name, or remove it first with `revfs rm`", name = shown(name))]
    Exists {
        /// The new name.
        name: Vec<u8>,
    },
    /// The names are one.
    #[error("{name}: is moved to itself: give another new name", name = shown(name))]
    SameName {
        /// The name.
        name: Vec<u8>,
    },
    /// A directory would be moved below itself.
    #[error("{name}: is moved below itself, to {to}: choose a new name outside of it", name = shown(name), to = shown(to))]
    BelowItself {
        /// The directory.
        name: Vec<u8>,
        /// The new name.
        to: Vec<u8>,
    },
    /// The tag means something else.
    #[error("tag {tag}: exists already, at @{target}: use --force to move it, or choose another name")]
    TagExists {
        /// The tag.
        tag: TagName,
        /// What it means.
        target: Tid,
    },
    /// No such tag.
    #[error("tag {tag}: does not exist: `revfs tags` lists the tags there are")]
    NoSuchTag {
        /// Asked for.
        tag: TagName,
    },
    /// The transaction failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<ReadError> for EditError {
    fn from(error: ReadError) -> EditError {
        EditError::Commit(error.into())
    }
}

impl From<NameError> for EditError {
    fn from(error: NameError) -> EditError {
        EditError::Commit(error.into())
    }
}

/// What is said of a commit that changes names.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// Why.
    pub message: String,
    /// Who.
    pub author: String,
}

fn begin(store: &Arc<NativeStore>, note: &Note) -> Result<Transaction, EditError> {
    let mut txn = store.begin(None)?;
    txn.set_message(&note.message);
    txn.set_author(&note.author);
    Ok(txn)
}

/// Gives a file, or all files below a directory, a new name.
///
/// # Errors
/// See [`EditError`].
pub async fn rename(
    store: &Arc<NativeStore>,
    old: &[u8],
    new: &[u8],
    note: &Note,
) -> Result<Committed, EditError> {
    check_path(old)?;
    check_path(new)?;
    if old == new {
        return Err(EditError::SameName { name: old.to_vec() });
    }
    let mut txn = begin(store, note)?;
    let base = txn.base().clone();
    let entry = base.resolve(old)?.ok_or_else(|| EditError::NotFound { name: old.to_vec() })?;
    let below = new.strip_prefix(old).is_some_and(|rest| rest.starts_with(b"/"));
    if below && matches!(entry, Entry::Dir(_)) {
        return Err(EditError::BelowItself { name: old.to_vec(), to: new.to_vec() });
    }
    // A directory may be moved to the name of one of its own parents only if nothing else is there, which the
    // transaction judges; anything else that has the new name is told here, with the remedy.
    let above = old.strip_prefix(new).is_some_and(|rest| rest.starts_with(b"/"));
    if !above && base.resolve(new)?.is_some() {
        return Err(EditError::Exists { name: new.to_vec() });
    }
    match entry {
        Entry::File(file) => txn.rename(file, new)?,
        Entry::Dir(dir) => {
            for (name, file) in base.walk(dir)? {
                txn.rename(file, &[new, b"/", &name].concat())?;
            }
        }
    }
    Ok(txn.commit().await?.into())
}

/// Removes files, and directories with all that is below them if `recursive`.
///
/// # Errors
/// See [`EditError`].
pub async fn remove(
    store: &Arc<NativeStore>,
    names: &[Vec<u8>],
    recursive: bool,
    note: &Note,
) -> Result<Committed, EditError> {
    let mut txn = begin(store, note)?;
    let base = txn.base().clone();
    // A file may be named twice, by itself and by its directory.
    let mut files = BTreeMap::new();
    for name in names {
        check_path(name)?;
        gather(&base, name, recursive, &mut files)?;
    }
    for file in files.into_keys() {
        txn.delete(file)?;
    }
    Ok(txn.commit().await?.into())
}

fn gather(
    base: &ReadTxn,
    name: &[u8],
    recursive: bool,
    files: &mut BTreeMap<FileId, ()>,
) -> Result<(), EditError> {
    match base.resolve(name)? {
        None => Err(EditError::NotFound { name: name.to_vec() }),
        Some(Entry::File(file)) => {
            files.insert(file, ());
            Ok(())
        }
        Some(Entry::Dir(_)) if !recursive => Err(EditError::IsDirectory { name: name.to_vec() }),
        Some(Entry::Dir(dir)) => {
            files.extend(base.walk(dir)?.into_iter().map(|(_, file)| (file, ())));
            Ok(())
        }
    }
}

/// Makes `tag` mean `target`. A tag that means something else is moved only by `force`; one that means the
/// same already is left as it is.
///
/// # Errors
/// See [`EditError`].
pub async fn set_tag(
    store: &Arc<NativeStore>,
    tag: &TagName,
    target: Tid,
    force: bool,
    note: &Note,
) -> Result<Committed, EditError> {
    let mut txn = begin(store, note)?;
    match store.tag(tag.as_str())? {
        Some(now) if now == target => {
            let tid = txn.base().at();
            return Ok(Committed { tid, seq: None, changed: false, warnings: Vec::new() });
        }
        Some(now) if !force => return Err(EditError::TagExists { tag: tag.clone(), target: now }),
        _ => txn.set_tag(tag, Some(target)),
    }
    Ok(txn.commit().await?.into())
}

/// Deletes `tag`.
///
/// # Errors
/// See [`EditError`].
pub async fn delete_tag(
    store: &Arc<NativeStore>,
    tag: &TagName,
    note: &Note,
) -> Result<Committed, EditError> {
    let mut txn = begin(store, note)?;
    if store.tag(tag.as_str())?.is_none() {
        return Err(EditError::NoSuchTag { tag: tag.clone() });
    }
    txn.set_tag(tag, None);
    Ok(txn.commit().await?.into())
}
