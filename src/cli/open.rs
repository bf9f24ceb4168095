//! From the argument STORE to an open store.
//!
//! Invariant: the kind of a store is found by its content; a name decides only where there is nothing to look
//! at, as for a URL.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use revfs_protocol::Tid;

use crate::ops::data::shown;
use crate::store::native::{NativeStore, OpenOptions, Progress};
use crate::store::zodb::filestorage::{MAGICS, ScanProgress};
use crate::store::zodb::storage::StorageError;
use crate::store::zodb::zeo::{ZeoOptions, ZeoStorage};
use crate::store::zodb::{Database, DatabaseOptions, Oid, ZodbError};
use crate::store::{ReadError, Store};

use super::CliError;
use super::progress::Bar;

/// Bound of the block cache of one command, bytes: each block is read once.
const CACHE_BYTES: u64 = 32 << 20;

/// The same for what a server sends: it is asked once.
const ZEO_CACHE_BYTES: u64 = 128 << 20;

/// A store of a kind that is served.
#[derive(Debug)]
pub(super) enum Opened {
    /// A directory.
    Native(Arc<NativeStore>),
    /// A database.
    Zodb(Arc<Database>),
}

impl Opened {
    /// As all commands that read see it.
    pub(super) fn as_store(&self) -> Arc<dyn Store> {
        match self {
            Opened::Native(store) => store.as_store(),
            Opened::Zodb(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    /// The native store, if it is one.
    pub(super) fn native(&self) -> Option<&Arc<NativeStore>> {
        match self {
            Opened::Native(store) => Some(store),
            Opened::Zodb(_) => None,
        }
    }
}

impl Opened {
    /// The name that the store has for what the user named: a database knows files by their ids, and a path from its root
    /// leads to one.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) fn name(&self, given: &[u8], at: Tid) -> Result<Vec<u8>, CliError> {
        let is_id = std::str::from_utf8(given).is_ok_and(|name| name.parse::<Oid>().is_ok());
        let file = match self {
            Opened::Zodb(database) if !is_id => file_at(database, given, at)?,
            _ => None,
        };
        Ok(file.map_or_else(|| given.to_vec(), |oid| oid.to_string().into_bytes()))
    }
}

/// The file that a path from the root of a database leads to.
///
/// # Errors
/// The database cannot be read.
pub(super) fn file_at(database: &Database, path: &[u8], at: Tid) -> Result<Option<Oid>, CliError> {
    let paths = database.root_paths(at).map_err(ReadError::from)?;
    Ok(paths.into_iter().find(|(_, known)| known.as_bytes() == path).map(|(oid, _)| oid))
}

/// What the argument STORE names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A directory, or nothing yet.
    Native(PathBuf),
    /// A ZODB FileStorage.
    FileStorage(PathBuf),
    /// A ZODB behind a ZEO server, by its URL.
    Zeo(String),
}

/// Opens the store that the user named, to read it.
///
/// # Errors
/// It is none, or of a kind that is not served.
pub(super) fn open_any(store: &OsStr) -> Result<Opened, CliError> {
    match place(store)? {
        Place::Native(path) => open_native(&path).map(Opened::Native),
        Place::FileStorage(path) => open_database(&path, DatabaseOptions::default()).map(Opened::Zodb),
        Place::Zeo(url) => open_zeo(&url, ZEO_CACHE_BYTES).map(Opened::Zodb),
    }
}

/// Opens the native store that the user named, to write it.
///
/// # Errors
/// It is none, or of a kind that is not served, or not written through revfs.
pub(super) fn open(store: &OsStr) -> Result<Arc<NativeStore>, CliError> {
    open_native(&local_path(store)?)
}

fn open_native(path: &Path) -> Result<Arc<NativeStore>, CliError> {
    let bar = Bar::things("building the index");
    let shown = bar.clone();
    let progress = move |progress: Progress| match progress {
        Progress::Index { done, total } => shown.show(done, Some(total)),
    };
    let options = OpenOptions {
        cache_bytes: CACHE_BYTES,
        progress: Some(Arc::new(progress)),
        ..OpenOptions::default()
    };
    let opened = NativeStore::open(path, options);
    bar.clear();
    Ok(opened?)
}

/// Opens a database, and shows how far a scan of it is.
///
/// # Errors
/// It is none, or cannot be read.
pub(super) fn open_database(path: &Path, options: DatabaseOptions) -> Result<Arc<Database>, CliError> {
    let bar = Bar::bytes("reading the database, for it has no index that fits");
    let shown = bar.clone();
    let progress = move |scanned: ScanProgress| shown.show(scanned.done, Some(scanned.total));
    let opened = Database::open(path, DatabaseOptions { progress: Some(Arc::new(progress)), ..options });
    bar.clear();
    Ok(Arc::new(opened.map_err(ReadError::from)?))
}

/// Opens the database behind a ZEO server; a quarter of `cache_bytes` is for decoded objects, the rest for records.
///
/// # Errors
/// The server does not answer.
pub(super) fn open_zeo(url: &str, cache_bytes: u64) -> Result<Arc<Database>, CliError> {
    let decoded = cache_bytes / 4;
    let bar = Bar::things("looking at the objects of the database");
    let progress = move |done, total| match done < total {
        true => bar.show(done, Some(total)),
        false => bar.clear(),
    };
    let options = ZeoOptions {
        cache_bytes: cache_bytes - decoded,
        progress: Some(Arc::new(progress)),
        ..ZeoOptions::default()
    };
    let storage = ZeoStorage::open(url, options);
    let storage = storage.map_err(|error| ReadError::from(ZodbError::from(StorageError::from(error))))?;
    Ok(Arc::new(Database::on(Arc::new(storage), decoded)))
}

/// The directory that the user named as a store to be written, or as the place of a new one.
///
/// # Errors
/// It is a URL or a file: another kind of store, or none.
pub(super) fn local_path(store: &OsStr) -> Result<PathBuf, CliError> {
    match place(store)? {
        Place::Native(path) => Ok(path),
        Place::FileStorage(_) | Place::Zeo(_) => {
            Err(CliError::WrittenElsewhere { store: shown(store.as_bytes()) })
        }
    }
}

/// Finds out what the user named.
///
/// # Errors
/// It is a URL of a kind that is not served, or a file that is no store.
pub(super) fn place(store: &OsStr) -> Result<Place, CliError> {
    let name = || shown(store.as_bytes());
    let path = match store.as_bytes().strip_prefix(b"file://") {
        Some(path) => Path::new(OsStr::from_bytes(path)),
        None => Path::new(store),
    };
    let Ok(meta) = std::fs::metadata(path) else {
        if let Some(url) = store.to_str().filter(|url| url.starts_with("zeo://")) {
            return Ok(Place::Zeo(url.to_owned()));
        }
        return match url_kind(store) {
            Some(kind) => Err(CliError::Unserved { store: name(), kind }),
            None => Ok(Place::Native(path.to_owned())),
        };
    };
    if meta.is_dir() {
        return Ok(Place::Native(path.to_owned()));
    }
    let mut magic = [0; 4];
    // Only a regular file is read: a fifo would wait.
    let read = meta.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok();
    if read && MAGICS.contains(&magic) {
        return Ok(Place::FileStorage(path.to_owned()));
    }
    Err(CliError::NotAStore { store: name() })
}

/// What a URL means; `None`: it is no URL, but a path.
fn url_kind(store: &OsStr) -> Option<String> {
    let text = store.to_str()?;
    if text.starts_with("demo:(") {
        return Some("a ZODB DemoStorage, one database laid over another".to_owned());
    }
    let (scheme, _) = text.split_once("://")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    if scheme.is_empty() || !scheme.chars().all(plain) || scheme == "file" {
        return None;
    }
    Some(match scheme {
        "s3" => "a store in an S3 bucket".to_owned(),
        "neo" | "neos" => "a ZODB on a NEO cluster".to_owned(),
        other => format!("a URL of the scheme '{other}'"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(store: &OsStr) -> String {
        local_path(store).unwrap_err().to_string()
    }

    #[test]
    fn stores_of_other_kinds_are_told_apart() {
        assert_eq!(
            refused(OsStr::new("s3://bucket/prefix")),
            "s3://bucket/prefix: is a store in an S3 bucket, which this version of revfs does not serve yet: \
             name a directory made by `revfs init`"
        );
        assert_eq!(
            place(OsStr::new("zeo://:8100?storage=x")).unwrap(),
            Place::Zeo("zeo://:8100?storage=x".to_owned())
        );
        assert!(refused(OsStr::new("zeo://localhost:8100")).contains("written through ZODB"));
        for url in ["neo://c@host:1/x", "neos://c@host:1/x"] {
            assert!(
                refused(OsStr::new(url))
                    .contains("a ZODB on a NEO cluster, which this version of revfs does not serve")
            );
        }
        assert!(refused(OsStr::new("demo:(zeo://a)/(b.fs)")).contains("DemoStorage"));
        assert!(refused(OsStr::new("gopher://x")).contains("'gopher'"));
    }

    #[test]
    fn a_file_storage_is_known_by_its_first_bytes_and_not_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        for magic in ["FS21", "FS30"] {
            std::fs::write(&path, format!("{magic}rest")).unwrap();
            assert_eq!(place(path.as_os_str()).unwrap(), Place::FileStorage(path.clone()));
            let url = format!("file://{}", path.display());
            assert_eq!(place(OsStr::new(&url)).unwrap(), Place::FileStorage(path.clone()));
            assert!(refused(OsStr::new(&url)).contains("written through ZODB"));
        }
        let other = dir.path().join("x.fs");
        std::fs::write(&other, b"no").unwrap();
        assert!(refused(other.as_os_str()).contains("is a file, and not a store"));
    }

    #[test]
    fn a_directory_is_taken_whatever_its_name_looks_like() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        assert_eq!(local_path(OsStr::new(&url)).unwrap(), dir.path());
        assert_eq!(local_path(OsStr::new("no/such:thing")).unwrap(), Path::new("no/such:thing"));
    }
}
