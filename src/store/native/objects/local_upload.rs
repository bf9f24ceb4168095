//! An object of a directory, written in parts at the speed of the disk.
//!
//! Takes the steps that `object_store` takes on a directory: a staging file `NAME#n`, its sync, the rename to its
//! name, the sync of the folder. What it adds is speed: room is reserved before it is written to, a part in aligned
//! memory goes to the disk past the page cache, and that of another begins its way at once, so that the sync at the
//! end finds little left. Invariant: the name appears only once all bytes are durable; an upload that is dropped before
//! leaves nothing behind.

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use object_store::{Error, MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use rustix::fs::{Advice, FallocateFlags};
use rustix::io::Errno;
use tokio::sync::Mutex;

use crate::store::buffer::BUFFER_ALIGN;

/// Slices of one write: `IOV_MAX` of Linux.
const SLICES_MAX: usize = 1024;
/// Room that is reserved at once, at most, bytes. Each time may wait for the journal of the filesystem: up to 18 ms.
const RESERVE_BYTES_MAX: u64 = 64 << 20;
/// A part of this size or more is written past the page cache if it lies in aligned memory, bytes. It spares a copy and
/// the work on the pages: packs are not read through them.
const DIRECT_BYTES_MIN: u64 = 1 << 20;
/// Bytes before a part that are likely on disk when it was written, and can leave the page cache.
const BEHIND_BYTES: u64 = 32 << 20;
/// ext2 to ext4, from linux/magic.h.
const EXT4_MAGIC: u64 = 0xef53;

/// What failed, and where.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot {step}: {source}", path = path.display())]
struct StepError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Generic { store: "directory", source: Box::new(StepError { step, path, source }) }
}

/// A staging file on its way to become an object.
#[derive(Debug)]
pub struct LocalUpload {
    staging: Arc<Staging>,
    /// Held while a part is written: the kernel lets one at a time anyway, and spins for the others. Leaf lock;
    /// only parts of this upload wait for it, and no thread does.
    writing: Arc<Mutex<()>>,
    name: PathBuf,
    /// Where the next part goes.
    offset: u64,
    sync: bool,
    done: bool,
}

#[derive(Debug)]
struct Staging {
    file: File,
    /// The same file, past the page cache; `None` where the filesystem cannot.
    direct: Option<File>,
    path: PathBuf,
    /// Reserve room first: on ext4, where it was measured, writeback that begins early then takes a tenth to a third
    /// less time. Not elsewhere: on btrfs it would turn compression off.
    reserve: bool,
    /// Send parts to the disk as they come.
    eager: bool,
    /// Room up to here was asked for. Parts are written one at a time.
    reserved: AtomicU64,
    /// Where the last byte ends.
    end: AtomicU64,
}

impl LocalUpload {
    /// Begins the object with this file name, which must be free. `sync`: make it durable.
    ///
    /// # Errors
    /// The staging file cannot be made.
    pub fn begin(name: PathBuf, sync: bool) -> Result<LocalUpload> {
        let (file, path) = open_staging(&name, sync)?;
        let reserve = rustix::fs::fstatfs(&file).is_ok_and(|fs| fs.f_type as u64 == EXT4_MAGIC);
        let direct = if sync { open_direct(&path) } else { None };
        let (reserved, end) = (AtomicU64::new(0), AtomicU64::new(0));
        let staging = Arc::new(Staging { file, direct, path, reserve, eager: sync, reserved, end });
        Ok(LocalUpload { staging, writing: Arc::default(), name, offset: 0, sync, done: false })
    }
}

#[async_trait]
impl MultipartUpload for LocalUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (offset, len) = (self.offset, data.content_length() as u64);
        self.offset += len;
        let (staging, writing) = (Arc::clone(&self.staging), Arc::clone(&self.writing));
        Box::pin(async move {
            let alone = writing.lock_owned().await;
            blocking(move || {
                staging.reserve(offset, len);
                let direct = staging.direct_for(&data, offset, len);
                let written = staging.write(direct.unwrap_or(&staging.file), &data, offset);
                drop((alone, data));
                if written.is_ok() && direct.is_none() {
                    staging.send_off(offset, len);
                }
                written
            })
            .await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (staging, name, sync) = (Arc::clone(&self.staging), self.name.clone(), self.sync);
        let published = Arc::clone(&staging);
        blocking(move || published.publish(&name, sync)).await?;
        self.done = true;
        // A pack that was just written need not stay in the page cache: readers do not read through it. Nobody waits.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || staging.leave_cache(0, 0))),
            Err(_) => staging.leave_cache(0, 0),
        }
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn abort(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(());
        }
        std::fs::remove_file(&self.staging.path).map_err(failed("remove", &self.staging.path))
    }
}

impl Drop for LocalUpload {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // After a rename whose folder could not be synced it is gone already.
        if let Err(error) = std::fs::remove_file(&self.staging.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{}: stays behind, `revfs verify` lists it: {error}", self.staging.path.display());
        }
    }
}

impl Staging {
    fn write(&self, file: &File, data: &PutPayload, offset: u64) -> Result<()> {
        write_all(file, data, offset).map_err(failed("write", &self.path))
    }

    /// The file past the page cache, if this part can be written there. Only whole pages, so that none of them is
    /// written both ways.
    fn direct_for(&self, data: &PutPayload, offset: u64, len: u64) -> Option<&File> {
        self.direct.as_ref().filter(|_| len >= DIRECT_BYTES_MIN && is_aligned(data, offset))
    }

    /// Reserves room for a part and, the more there is already, for later ones.
    fn reserve(&self, offset: u64, len: u64) {
        self.end.fetch_max(offset + len, Ordering::Relaxed);
        let reserved = self.reserved.load(Ordering::Relaxed);
        if !self.reserve || offset + len <= reserved {
            return;
        }
        let until = offset + len.max(offset.min(RESERVE_BYTES_MAX));
        self.reserved.store(until, Ordering::Relaxed);
        // For speed only. If there is no room the write says so.
        let _reserved =
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), reserved, until - reserved);
    }

    /// Sets a part that was written on its way to the disk.
    fn send_off(&self, offset: u64, len: u64) {
        if self.eager {
            // Linux begins to write what is dirty in the range, does not wait, and drops what is clean: here the
            // parts before. What fails on its way is told by the sync.
            self.leave_cache(offset.saturating_sub(BEHIND_BYTES), BEHIND_BYTES + len);
        }
    }

    fn publish(&self, name: &Path, sync: bool) -> Result<()> {
        let end = self.end.load(Ordering::Relaxed);
        if self.reserved.load(Ordering::Relaxed) > end {
            // What was reserved behind the end is given back.
            self.file.set_len(end).map_err(failed("cut", &self.path))?;
        }
        if sync {
            self.file.sync_all().map_err(failed("sync", &self.path))?;
        }
        std::fs::rename(&self.path, name).map_err(failed("rename", &self.path))?;
        if sync && let Some(folder) = name.parent() {
            sync_folder(folder)?;
        }
        Ok(())
    }

    /// `len` 0: to the end.
    fn leave_cache(&self, offset: u64, len: u64) {
        let len = std::num::NonZeroU64::new(len);
        if let Err(error) = rustix::fs::fadvise(&self.file, offset, len, Advice::DontNeed) {
            log::debug!("page cache of {}: {error}", self.path.display());
        }
    }
}

fn write_all(file: &File, data: &PutPayload, mut offset: u64) -> io::Result<()> {
    let parts = data.iter().filter(|part| !part.is_empty());
    let mut slices: Vec<IoSlice<'_>> = parts.map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match rustix::io::pwritev(file, &rest[..rest.len().min(SLICES_MAX)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut rest, written);
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether memory, lengths and place in the file are as O_DIRECT wants them.
fn is_aligned(data: &PutPayload, offset: u64) -> bool {
    let align = BUFFER_ALIGN as u64;
    offset.is_multiple_of(align)
        && data.iter().filter(|part| !part.is_empty()).all(|part| {
            (part.as_ptr() as u64).is_multiple_of(align) && (part.len() as u64).is_multiple_of(align)
        })
}

fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    File::options().write(true).custom_flags(flags).open(path).ok()
}

/// A fresh file next to `name`, of a name that readers skip.
fn open_staging(name: &Path, sync: bool) -> Result<(File, PathBuf)> {
    let mut number = 1u32;
    loop {
        let mut path = name.as_os_str().to_owned();
        path.push(format!("#{number}"));
        let path = PathBuf::from(path);
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            // Copies of a store may lack folders that were empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_folder(name.parent().ok_or_else(|| failed("create", &path)(error))?, sync)?;
            }
            Err(error) => return Err(failed("create", &path)(error)),
        }
    }
}

/// Makes a folder and those above it, durable if `sync`.
fn make_folder(folder: &Path, sync: bool) -> Result<()> {
    let made: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    std::fs::create_dir_all(folder).map_err(failed("create", folder))?;
    for above in made.iter().filter_map(|made| made.parent()).filter(|_| sync) {
        sync_folder(above)?;
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}

/// Runs it where it may wait for the disk, if there is a runtime.
async fn blocking<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(job).await?,
        Err(_) => job(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::os::unix::fs::MetadataExt;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn parts_of_many_slices_land_in_order_whatever_ends_first() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("made/on/the/way/pack");
        let mut upload = LocalUpload::begin(name.clone(), true).unwrap();
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 253) as u8).collect();
        let (one, two) = bytes.split_at(150_000);
        // More slices than one call takes, some of them empty.
        let slices = |bytes: &[u8]| {
            let slices = bytes.chunks(50).flat_map(|part| [Bytes::copy_from_slice(part), Bytes::new()]);
            PutPayload::from_iter(slices)
        };
        let first = upload.put_part(slices(one));
        let second = upload.put_part(slices(two));
        pollster::block_on(second).unwrap();
        pollster::block_on(first).unwrap();
        let folder = name.parent().unwrap();
        assert_eq!(names(folder), ["pack#1"], "no name before it is complete");
        pollster::block_on(upload.complete()).unwrap();
        drop(upload);
        assert_eq!(names(folder), ["pack"]);
        assert!(std::fs::read(&name).unwrap() == bytes);
    }

    #[test]
    fn parts_in_aligned_memory_go_past_the_page_cache_and_others_beside_them_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("pack");
        let mut upload = LocalUpload::begin(name.clone(), true).unwrap();
        let pool = crate::store::BufferPool::new(4, 1);
        let whole = |byte: u8, len: usize| {
            let mut memory = pool.take(len);
            memory.fill(byte);
            Bytes::from_owner(memory)
        };
        let (large, odd) = (2 << 20, (1 << 20) + 4096);
        // Aligned; short; then at an odd place; then of an odd length, at memory's start and not.
        let parts = [
            vec![whole(1, large), Bytes::new(), whole(2, odd)],
            vec![whole(3, 4096)],
            vec![whole(4, large)],
            vec![whole(5, large + 100)],
            vec![whole(6, large)],
            vec![whole(7, large).slice(4096..), Bytes::from_static(b"end")],
        ];
        let past: Vec<bool> = parts
            .iter()
            .scan(0, |offset, part| {
                let payload = PutPayload::from_iter(part.iter().cloned());
                let len = payload.content_length() as u64;
                let direct = upload.staging.direct_for(&payload, *offset, len).is_some();
                *offset += len;
                Some(direct)
            })
            .collect();
        if upload.staging.direct.is_some() {
            assert_eq!(past, [true, false, true, false, false, false]);
        } else {
            eprintln!("SKIPPED in part: {} has no O_DIRECT", dir.path().display());
        }
        for part in &parts {
            pollster::block_on(upload.put_part(PutPayload::from_iter(part.iter().cloned()))).unwrap();
        }
        pollster::block_on(upload.complete()).unwrap();
        assert!(std::fs::read(&name).unwrap() == parts.concat().concat());
    }

    #[test]
    fn what_was_reserved_and_not_written_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("pack");
        let mut upload = LocalUpload::begin(name.clone(), true).unwrap();
        for part in 0..5u8 {
            let part = PutPayload::from(vec![part; 1 << 20]);
            pollster::block_on(upload.put_part(part)).unwrap();
        }
        let staging = Arc::clone(&upload.staging);
        let taken = || staging.file.metadata().unwrap().blocks() * 512;
        if staging.reserve {
            assert!(taken() >= 8 << 20, "{}", taken());
        }
        pollster::block_on(upload.complete()).unwrap();
        assert_eq!(name.metadata().unwrap().len(), 5 << 20);
        assert!(taken() < 6 << 20, "{}", taken());
    }

    #[test]
    fn an_upload_that_is_dropped_leaves_nothing_and_takes_no_other_staging_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pack#1"), "another's").unwrap();
        let mut upload = LocalUpload::begin(dir.path().join("pack"), false).unwrap();
        pollster::block_on(upload.put_part(PutPayload::from_static(b"bytes"))).unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        drop(upload);
        assert_eq!(names(dir.path()), ["pack#1"]);
        assert_eq!(std::fs::read(dir.path().join("pack#1")).unwrap(), b"another's");
    }

    #[test]
    fn an_error_names_the_file_and_keeps_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = LocalUpload::begin(dir.path().join("file/pack"), true).unwrap_err();
        assert!(error.to_string().contains("file/pack#1: cannot create"), "{error}");
        let step = std::error::Error::source(&error).unwrap();
        let cause = step.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        assert_eq!(cause.unwrap().kind(), io::ErrorKind::NotADirectory);
    }
}
