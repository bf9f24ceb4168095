//! Making and opening a store.
//!
//! Invariant: nothing is written to a place that is not a store, but by `init` into an empty directory; opening
//! a store that cannot be written leaves it as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use object_store::PutPayload;
use object_store::path::Path as ObjectPath;
use revfs_protocol::{BlockSize, Tid};
use tracing_mutex::stdsync::Mutex;

use super::commit::COPIES_MAX;
use super::format::{FORMAT_BYTES_MAX, FORMAT_OBJECT, FORMAT_VERSION, Format, FormatError, record_object};
use super::index::{INDEX_SCHEMA, Index, IndexError};
use super::objects::Objects;
use super::reader::Reader;
use super::record::RECORD_BYTES_MAX;
use super::{NativeStore, OpenOptions};
use crate::env::{self, Clock};
use crate::store::follow::{Follower, WatchFlags};
use crate::store::{BufferPool, Codec, ReadError, StoreInfo};

/// What `init` fixes for good.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Block size of new files.
    pub block_size: BlockSize,
    /// Encoding of new blocks.
    pub codec: Codec,
    /// Make it durable.
    pub sync: bool,
}

impl Default for InitOptions {
    fn default() -> InitOptions {
        InitOptions { block_size: BlockSize::DEFAULT, codec: Codec::Raw, sync: true }
    }
}

/// Why a store cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing.
    #[error("{path}: no such store: check the path, or make one with `revfs init {path}`", path = path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// It is no directory.
    #[error("{path}: is not a directory: a native store is one", path = path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It is a directory, but of something else.
    #[error("{path}: is not a revfs store, it has no revfs.json: name another directory, or make a store with `revfs init`", path = path.display())]
    NotAStore {
        /// The path.
        path: PathBuf,
    },
    /// A store cannot be made where something is.
    #[error("{path}: is not empty: make the store in a new or empty directory", path = path.display())]
    NotEmpty {
        /// The path.
        path: PathBuf,
    },
    /// There is a store already.
    #[error("{path}: is a revfs store already: use it as it is, or name another directory", path = path.display())]
    AlreadyAStore {
        /// The path.
        path: PathBuf,
    },
    /// Its description says that it cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Format {
        /// The path.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
    /// The operating system refuses.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The index cannot be made.
    #[error("index of {url}: {source}")]
    Index {
        /// The store.
        url: String,
        /// Why.
        source: IndexError,
    },
    /// The log cannot be read.
    #[error("{url}: {source}")]
    Log {
        /// The store.
        url: String,
        /// Why.
        source: ReadError,
    },
    /// The object storage refuses.
    #[error("{url}: {source}")]
    Object {
        /// The store.
        url: String,
        /// Why.
        source: object_store::Error,
    },
}

impl NativeStore {
    /// Makes a store in a directory, which is made if absent.
    ///
    /// # Errors
    /// [`OpenError::NotEmpty`], [`OpenError::AlreadyAStore`], and what the disk says. Nothing of others is
    /// touched.
    pub fn init(root: &Path, options: &InitOptions, clock: &dyn Clock) -> Result<(), OpenError> {
        let io = |source| OpenError::Io { path: root.to_owned(), source };
        std::fs::create_dir_all(root).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => {
                OpenError::NotADirectory { path: root.to_owned() }
            }
            _ => io(source),
        })?;
        if root.join(FORMAT_OBJECT).exists() {
            return Err(OpenError::AlreadyAStore { path: root.to_owned() });
        }
        if !is_empty_or_unfinished(root).map_err(io)? {
            return Err(OpenError::NotEmpty { path: root.to_owned() });
        }
        for number in 0..=255u8 {
            std::fs::create_dir_all(root.join(format!("packs/{number:02x}"))).map_err(io)?;
        }
        for name in ["commits", "index"] {
            std::fs::create_dir_all(root.join(name)).map_err(io)?;
        }
        if options.sync {
            for dir in [root.join("packs"), root.to_owned()] {
                std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
            }
        }
        let url = root.display().to_string();
        let objects = Objects::local(root, options.sync)
            .map_err(|source| OpenError::Object { url: url.clone(), source })?;
        pollster::block_on(init_objects(&objects, &url, options, clock))
    }

    /// Opens the store in a directory. Reading needs no right to write to it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(root: &Path, options: OpenOptions) -> Result<Arc<NativeStore>, OpenError> {
        let io = |source| OpenError::Io { path: root.to_owned(), source };
        let kind = std::fs::metadata(root).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => OpenError::NotFound { path: root.to_owned() },
            _ => io(source),
        })?;
        if !kind.is_dir() {
            return Err(OpenError::NotADirectory { path: root.to_owned() });
        }
        let root = root.canonicalize().map_err(io)?;
        let url = root.display().to_string();
        let objects = Objects::local(&root, options.sync)
            .map_err(|source| OpenError::Object { url: url.clone(), source })?;
        pollster::block_on(open(objects, url, Some(root), options))
    }
}

/// Makes a store over any object storage.
///
/// # Errors
/// [`OpenError::AlreadyAStore`], and what the storage says.
pub async fn init_objects(
    objects: &Objects,
    url: &str,
    options: &InitOptions,
    clock: &dyn Clock,
) -> Result<(), OpenError> {
    let format = Format {
        uuid: env::random_uuid(),
        block_size: options.block_size,
        codec: options.codec,
        created_unix_ns: clock.now_unix_ns(),
    };
    let object = ObjectPath::from(FORMAT_OBJECT);
    match objects.create(&object, PutPayload::from(format.encode())).await {
        Err(object_store::Error::AlreadyExists { .. }) => {
            Err(OpenError::AlreadyAStore { path: PathBuf::from(url) })
        }
        other => other.map_err(|source| OpenError::Object { url: url.to_owned(), source }),
    }
}

/// Opens a store over its objects.
pub async fn open(
    objects: Objects,
    url: String,
    local_root: Option<PathBuf>,
    options: OpenOptions,
) -> Result<Arc<NativeStore>, OpenError> {
    let path = || PathBuf::from(&url);
    let text = objects
        .get(&ObjectPath::from(FORMAT_OBJECT), FORMAT_BYTES_MAX)
        .await
        .map_err(|source| OpenError::Log { url: url.clone(), source })?
        .ok_or_else(|| OpenError::NotAStore { path: path() })?;
    let format = Format::decode(&text).map_err(|source| OpenError::Format { path: path(), source })?;
    let folder = index_folder(&options, local_root.as_deref(), &url, format.uuid)
        .map_err(|source| OpenError::Io { path: std::env::temp_dir(), source })?;
    let index_error = |source| OpenError::Index { url: url.clone(), source };
    let index = Index::open(&folder, format.uuid).map_err(index_error)?;
    let info = StoreInfo {
        uuid: format.uuid,
        url: url.clone(),
        block_size: format.block_size,
        format_version: FORMAT_VERSION,
        local_root: local_root.clone(),
    };
    let store = Arc::new(NativeStore {
        info,
        format,
        reader: Arc::new(Reader::new(objects.clone(), options.cache_bytes)),
        copies: BufferPool::new(COPIES_MAX, 1),
        follower: follower(local_root.as_deref()),
        objects,
        index,
        clock: options.clock,
        progress: options.progress,
        head: AtomicU64::new(Tid::ZERO.raw()),
        broken: Mutex::new(None),
        refreshing: tokio::sync::Mutex::new(()),
        rebuilding: Mutex::new(()),
    });
    store.check_applied().await.map_err(|source| OpenError::Log { url: url.clone(), source })?;
    store.refresh_async(true).await.map_err(|source| OpenError::Log { url, source })?;
    Ok(store)
}

/// Notices new records in a directory; of other storages they are noticed by polling.
fn follower(local_root: Option<&Path>) -> Follower {
    let follower = Follower::new();
    if let Some(root) = local_root {
        // A record appears by a hard link (IN_CREATE) or a rename (IN_MOVED_TO).
        follower.watch(&root.join("commits"), WatchFlags::CREATE | WatchFlags::MOVED_TO);
    }
    follower
}

impl NativeStore {
    /// Builds the index anew if the log does not hold what the index applied last.
    async fn check_applied(&self) -> Result<(), ReadError> {
        let applied = self.applied()?;
        if applied.seq == 0 {
            return Ok(());
        }
        let record = self.objects.get(&record_object(applied.seq), RECORD_BYTES_MAX).await;
        match record {
            Ok(Some(bytes)) if blake3::hash(&bytes).as_bytes() == &applied.hash => Ok(()),
            Ok(_) | Err(ReadError::Damaged { .. }) => self.rebuild(),
            Err(other) => Err(other),
        }
    }
}

/// Whether there is nothing in a directory but what an `init` that was killed makes before the description, which
/// comes last: empty folders, and a description that did not get its name.
fn is_empty_or_unfinished(root: &Path) -> std::io::Result<bool> {
    let is_empty = |folder: &Path| Ok::<bool, std::io::Error>(std::fs::read_dir(folder)?.next().is_none());
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let is_ours = match name.to_str() {
            Some("commits" | "index") => entry.file_type()?.is_dir() && is_empty(&path)?,
            Some("packs") if entry.file_type()?.is_dir() => {
                std::fs::read_dir(path)?.try_fold(true, |all, part| {
                    let part = part?;
                    Ok::<bool, std::io::Error>(all && part.file_type()?.is_dir() && is_empty(&part.path())?)
                })?
            }
            Some(name) => name.strip_prefix(FORMAT_OBJECT).is_some_and(|rest| rest.starts_with('#')),
            None => false,
        };
        if !is_ours {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where the index goes: into the store if that can be written and is of this machine, else to the cache
/// directory of the user.
fn index_folder(
    options: &OpenOptions,
    root: Option<&Path>,
    url: &str,
    uuid: uuid::Uuid,
) -> std::io::Result<PathBuf> {
    if let Some(folder) = &options.index_dir {
        return Ok(folder.clone());
    }
    if let Some(root) = root
        && is_writable(root)
        && !is_remote(root)
    {
        return Ok(root.join("index"));
    }
    let hash = blake3::hash(url.as_bytes()).to_hex();
    Ok(cache_home()?.join("revfs").join(format!("{uuid}-{}", &hash[..16])))
}

fn is_writable(root: &Path) -> bool {
    let folder = root.join("index");
    let probe = if folder.is_dir() { folder } else { root.to_owned() };
    // Asks the kernel, which also knows of read-only mounts; root passes permission bits.
    let writable = rustix::fs::access(&probe, rustix::fs::Access::WRITE_OK).is_ok();
    let version = probe.join(format!("v{INDEX_SCHEMA}"));
    writable && (!version.exists() || rustix::fs::access(&version, rustix::fs::Access::WRITE_OK).is_ok())
}

/// Filesystems on which LMDB's shared map does not work: several machines may see them.
fn is_remote(root: &Path) -> bool {
    // From linux/magic.h: NFS, SMB, SMB2, CIFS, 9p, FUSE, Ceph, AFS, OCFS2, GFS2.
    const REMOTE: [u64; 10] = [
        0x6969,
        0x517b,
        0xfe53_4d42,
        0xff53_4d42,
        0x0102_1997,
        0x6573_5546,
        0x00c3_6400,
        0x5346_414f,
        0x7461_636f,
        0x0116_1970,
    ];
    rustix::fs::statfs(root).is_ok_and(|fs| REMOTE.contains(&(fs.f_type as u64 & 0xffff_ffff)))
}

fn cache_home() -> std::io::Result<PathBuf> {
    // A relative one is to be ignored, says the specification of XDG_CACHE_HOME: it would mean another folder elsewhere.
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache"))) {
        Some(folder) => Ok(folder),
        // Nobody's home: a folder of this user alone.
        None => own_folder(&std::env::temp_dir()),
    }
}

/// A folder of this user alone in one where everybody may write: whoever else could write to it would tell us
/// where our bytes are.
fn own_folder(parent: &Path) -> std::io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let user = rustix::process::getuid().as_raw();
    let folder = parent.join(format!("revfs-cache-{user}"));
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(&folder)?;
    if found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0 {
        return Ok(folder);
    }
    let text = format!(
        "{}: others may write to it: remove it, or set XDG_CACHE_HOME to a folder for the index",
        folder.display()
    );
    Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemClock;
    use std::os::unix::fs::PermissionsExt;

    fn init(root: &Path) -> Result<(), OpenError> {
        NativeStore::init(root, &InitOptions::default(), &*SystemClock::shared())
    }

    #[test]
    fn what_a_killed_init_left_is_gone_on_with_and_what_others_made_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("killed");
        for folder in ["packs/00", "packs/01", "commits"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("revfs.json#1"), "half").unwrap();
        init(&root).unwrap();
        NativeStore::open(&root, OpenOptions::default()).unwrap();
        for name in ["packs/00/pack", "packs/file", "commits/1", "index/data", "notes", "revfs.jsonx"] {
            let root = dir.path().join(name.replace('/', "-"));
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), "of others").unwrap();
            assert!(matches!(init(&root), Err(OpenError::NotEmpty { .. })), "{name}");
        }
    }

    #[test]
    fn a_folder_for_the_index_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = own_folder(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(own_folder(dir.path()).unwrap(), folder, "found again");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(own_folder(dir.path()).unwrap_err().to_string().contains("others may write to it"));
        std::fs::remove_dir(&folder).unwrap();
        std::os::unix::fs::symlink(dir.path(), &folder).unwrap();
        assert!(own_folder(dir.path()).is_err());
    }
}
