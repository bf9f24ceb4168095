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

use crate::ops::data::shown;
use crate::store::native::{NativeStore, OpenOptions, Progress};

use super::CliError;
use super::progress::Bar;

/// Bound of the block cache of one command, bytes: each block is read once.
const CACHE_BYTES: u64 = 32 << 20;
/// First bytes of a ZODB FileStorage, of its two versions.
const FILE_STORAGE_MAGICS: [&[u8; 4]; 2] = [b"FS21", b"FS30"];

/// Opens the store that the user named.
///
/// # Errors
/// It is none, or of a kind that is not served.
pub(super) fn open(store: &OsStr) -> Result<Arc<NativeStore>, CliError> {
    let path = local_path(store)?;
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
    let opened = NativeStore::open(&path, options);
    bar.clear();
    Ok(opened?)
}

/// The directory that the user named as a store, or as the place of a new one.
///
/// # Errors
/// It is a URL or a file: another kind of store, or none.
pub(super) fn local_path(store: &OsStr) -> Result<PathBuf, CliError> {
    let name = || shown(store.as_bytes());
    let path = match store.as_bytes().strip_prefix(b"file://") {
        Some(path) => Path::new(OsStr::from_bytes(path)),
        None => Path::new(store),
    };
    let Ok(meta) = std::fs::metadata(path) else {
        return match url_kind(store) {
            Some(kind) => Err(CliError::Unserved { store: name(), kind }),
            None => Ok(path.to_owned()),
        };
    };
    if meta.is_dir() {
        return Ok(path.to_owned());
    }
    let mut magic = [0; 4];
    // Only a regular file is read: a fifo would wait.
    let read = meta.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok();
    if read && FILE_STORAGE_MAGICS.contains(&&magic) {
        return Err(CliError::Unserved { store: name(), kind: "a ZODB FileStorage".to_owned() });
    }
    Err(CliError::NotAStore { store: name() })
}

/// What a URL means; `None`: it is no URL, but a path.
fn url_kind(store: &OsStr) -> Option<String> {
    let text = store.to_str()?;
    let (scheme, _) = text.split_once("://")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    if scheme.is_empty() || !scheme.chars().all(plain) || scheme == "file" {
        return None;
    }
    Some(match scheme {
        "s3" => "a store in an S3 bucket".to_owned(),
        "zeo" => "a ZODB on a ZEO server".to_owned(),
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
        assert!(refused(OsStr::new("zeo://localhost:8100")).contains("ZEO"));
        assert!(refused(OsStr::new("gopher://x")).contains("'gopher'"));
    }

    #[test]
    fn a_file_storage_is_known_by_its_first_bytes_and_not_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        for magic in ["FS21", "FS30"] {
            std::fs::write(&path, format!("{magic}rest")).unwrap();
            assert!(refused(path.as_os_str()).contains("is a ZODB FileStorage"));
            let url = format!("file://{}", path.display());
            assert!(refused(OsStr::new(&url)).contains("is a ZODB FileStorage"));
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
