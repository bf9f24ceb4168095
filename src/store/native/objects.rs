//! The objects of a store: put if absent, read, list. Everything goes through `object_store`, so that a
//! directory and a bucket obey one protocol; reads of a directory take the short way around it.
//!
//! Invariant: nothing here overwrites an object. Names with `#` are staging files of a writer and are skipped.

mod local_upload;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{
    GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use self::local_upload::LocalUpload;
use super::format::record_seq;
use crate::store::ReadError;

/// The objects of one store.
#[derive(Debug, Clone)]
pub struct Objects {
    inner: Arc<dyn ObjectStore>,
    /// The directory, if reads may take the short way.
    local: Option<PathBuf>,
    /// Make objects durable; for the directory.
    sync: bool,
}

/// Bytes of one part of an upload to a bucket, which refuses smaller ones than 5 MiB.
const BUCKET_PART_BYTES: usize = 8 << 20;
/// Bytes of one part of a file. Larger ones were measured to be slower, and hold more memory.
const LOCAL_PART_BYTES: usize = 4 << 20;

impl Objects {
    /// Objects of any storage.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Objects {
        Objects { inner, local: None, sync: true }
    }

    /// Objects of a directory. `sync`: make each object durable before it is acknowledged.
    ///
    /// # Errors
    /// The directory does not exist.
    pub fn local(root: &Path, sync: bool) -> Result<Objects, object_store::Error> {
        Ok(Objects { inner: Objects::local_storage(root, sync)?, local: Some(root.to_owned()), sync })
    }

    /// The object storage of a directory.
    ///
    /// # Errors
    /// The directory does not exist.
    pub fn local_storage(root: &Path, sync: bool) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
        Ok(Arc::new(object_store::local::LocalFileSystem::new_with_prefix(root)?.with_fsync(sync)))
    }

    /// The directory, if reads take the short way.
    pub fn local_root(&self) -> Option<&Path> {
        self.local.as_deref()
    }

    /// File of an object, if reads take the short way.
    pub fn local_file(&self, object: &ObjectPath) -> Option<PathBuf> {
        self.local.as_ref().map(|root| root.join(object.as_ref()))
    }

    /// Makes an object that does not exist yet.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the storage says; then the object may be there all the same.
    pub async fn create(&self, object: &ObjectPath, payload: PutPayload) -> Result<(), object_store::Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.inner.put_opts(object, payload, options).await.map(drop)
    }

    /// Begins an object that is written in parts.
    ///
    /// # Errors
    /// What the storage says.
    pub async fn begin(&self, object: &ObjectPath) -> Result<Box<dyn MultipartUpload>, object_store::Error> {
        match self.local_file(object) {
            Some(file) => Ok(Box::new(LocalUpload::begin(file, self.sync)?)),
            None => self.inner.put_multipart(object).await,
        }
    }

    /// Bytes of a part of such an object.
    pub fn part_bytes(&self) -> usize {
        if self.local.is_some() { LOCAL_PART_BYTES } else { BUCKET_PART_BYTES }
    }

    /// Removes an object that nobody refers to; one that is not there is fine.
    ///
    /// # Errors
    /// What the storage says.
    pub async fn remove(&self, object: &ObjectPath) -> Result<(), object_store::Error> {
        match self.inner.delete(object).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// A whole object of at most `limit` bytes; `None`: it does not exist.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn get(&self, object: &ObjectPath, limit: u64) -> Result<Option<Bytes>, ReadError> {
        let too_large = || ReadError::Damaged {
            object: object.to_string(),
            offset: limit,
            what: "it is larger than such an object can be",
        };
        if let Some(file) = self.local_file(object) {
            let io = |source| ReadError::Io { object: object.to_string(), source };
            let mut opened = match std::fs::File::open(file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                other => other.map_err(io)?,
            };
            if opened.metadata().map_err(io)?.len() > limit {
                return Err(too_large());
            }
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut opened, &mut bytes).map_err(io)?;
            return Ok(Some(Bytes::from(bytes)));
        }
        let failed = |source| ReadError::Object { object: object.to_string(), source };
        let result = match self.inner.get(object).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            other => other.map_err(failed)?,
        };
        if result.meta.size > limit {
            return Err(too_large());
        }
        result.bytes().await.map(Some).map_err(failed)
    }

    /// Bytes `[start, end)` of an object, exactly.
    ///
    /// # Errors
    /// See [`ReadError`]; an object that ends before is damaged.
    pub async fn get_range(&self, object: &ObjectPath, start: u64, end: u64) -> Result<Bytes, ReadError> {
        let options = GetOptions { range: Some(GetRange::Bounded(start..end)), ..GetOptions::default() };
        let result = match self.inner.get_opts(object, options).await {
            Err(object_store::Error::NotFound { .. }) => {
                return Err(ReadError::Missing { object: object.to_string() });
            }
            Err(source) => return Err(ReadError::Object { object: object.to_string(), source }),
            Ok(result) => result,
        };
        let bytes = result
            .bytes()
            .await
            .map_err(|source| ReadError::Object { object: object.to_string(), source })?;
        if bytes.len() as u64 != end - start {
            return Err(ReadError::Damaged {
                object: object.to_string(),
                offset: start + bytes.len() as u64,
                what: "it is cut short",
            });
        }
        Ok(bytes)
    }

    /// Numbers of all records, ascending.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn record_seqs(&self) -> Result<Vec<u64>, ReadError> {
        let mut seqs = Vec::new();
        if let Some(root) = &self.local {
            let io = |source| ReadError::Io { object: "commits/".to_owned(), source };
            // `read_dir` asks for names only; listing through object_store stats each.
            for entry in std::fs::read_dir(root.join("commits")).map_err(io)? {
                if let Some(seq) = entry.map_err(io)?.file_name().to_str().and_then(record_seq) {
                    seqs.push(seq);
                }
            }
        } else {
            let prefix = ObjectPath::from("commits");
            let failed = |source| ReadError::Object { object: "commits/".to_owned(), source };
            let mut list = self.inner.list(Some(&prefix));
            while let Some(meta) = list.try_next().await.map_err(failed)? {
                if let Some(seq) = meta.location.filename().and_then(record_seq) {
                    seqs.push(seq);
                }
            }
        }
        seqs.sort_unstable();
        Ok(seqs)
    }

    /// Names and sizes of all objects below `prefix`, in no order, staging files included.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<(ObjectPath, u64)>, ReadError> {
        let from = ObjectPath::from(prefix);
        let list: Vec<_> = self
            .inner
            .list(Some(&from))
            .map_ok(|meta| (meta.location, meta.size))
            .try_collect()
            .await
            .map_err(|source| ReadError::Object { object: prefix.to_owned(), source })?;
        Ok(list)
    }
}
