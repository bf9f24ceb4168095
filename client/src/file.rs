//! A file of a connection, and parts of it in memory.
//!
//! Invariant: safe calls see the bytes as of the view or fail; they never see half of a move to another revision.

use crate::conn::Conn;
use crate::error::ClientError;
use crate::open_file::OpenFile;
use crate::region::{Region, page_bytes, page_ceil};
use revfs_protocol::{BlockSize, FileId};
use rustix::io::Errno;
use std::sync::Arc;

/// A file as of the revision of its connection.
///
/// The server is asked to keep it there until the last handle and mapping of it are dropped, or [`close`] is called.
///
/// [`close`]: FileHandle::close
#[derive(Debug)]
pub struct FileHandle {
    conn: Arc<Conn>,
    open: Arc<OpenFile>,
}

impl FileHandle {
    pub(crate) fn new(conn: Arc<Conn>, open: Arc<OpenFile>) -> FileHandle {
        FileHandle { conn, open }
    }

    /// Which file.
    pub fn id(&self) -> FileId {
        self.open.id
    }

    /// The connection that it belongs to.
    pub fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// Bytes of the file as of [`Conn::at`]. Head may have more, or fewer.
    pub fn size_at(&self) -> u64 {
        self.open.size()
    }

    /// The unit in which it changes.
    pub fn block_size(&self) -> BlockSize {
        self.open.block_size
    }

    /// Maps `len` bytes from `offset` on. Beyond the end of the file there are zeros, and after a
    /// [`Conn::resync`] what the file has grown to.
    ///
    /// # Errors
    /// [`ClientError::Map`] if there is no room, [`ClientError::FileClosed`], [`ClientError::Down`], and whatever
    /// else has befallen the file.
    pub fn map(self: &Arc<FileHandle>, offset: u64, len: u64) -> Result<Mapping, ClientError> {
        self.check()?;
        let skip = offset % page_bytes();
        let failed = |cause| ClientError::Map { file: self.id(), offset, len, cause };
        // An empty mapping has a page too, so that it has an address.
        let region_len = skip.checked_add(len.max(1)).and_then(page_ceil);
        let region_len =
            region_len.and_then(|len| usize::try_from(len).ok()).ok_or(failed(Errno::OVERFLOW))?;
        let region =
            self.open.add_region(&self.conn.shared().mount, offset - skip, region_len).map_err(failed)?;
        Ok(Mapping { file: Arc::clone(self), region, offset, skip: skip as usize, len: len as usize })
    }

    /// Reads bytes from `offset` on without a mapping; beyond the end of the file they are zeros. What cannot be
    /// read is an error and never a signal.
    ///
    /// # Errors
    /// [`ClientError::Read`], and those of [`FileHandle::map`].
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), ClientError> {
        self.check()?;
        let _looking = self.conn.shared().gate.look();
        self.open.read(&self.conn.shared().mount, offset, buf)
    }

    /// Ends the use of the file: from now on, each access to a mapping of it is a fault (SIGSEGV), and calls give
    /// [`ClientError::FileClosed`]. Waits for calls of [`Mapping::with_bytes`] to return, so it must not be called
    /// within one.
    ///
    /// # Errors
    /// [`ClientError::Forked`]; [`ClientError::Remap`] if the mappings could not be taken away.
    pub fn close(&self) -> Result<(), ClientError> {
        let shared = self.conn.shared();
        if !shared.link.is_own() {
            return Err(ClientError::Forked);
        }
        let _moving = shared.gate.start_move();
        let file = self.id();
        self.open
            .lose(ClientError::FileClosed { file })
            .map_err(|cause| ClientError::Remap { file, cause })?;
        shared.unwatch(&self.open);
        Ok(())
    }

    /// Whether it can be used: by this process, and still.
    fn check(&self) -> Result<(), ClientError> {
        // What happened to the file says more than what happened to the link afterwards.
        match self.conn.shared().link.is_own() {
            true => self.open.check().and_then(|()| self.conn.shared().link.check()),
            false => Err(ClientError::Forked),
        }
    }
}

impl Drop for FileHandle {
    fn drop(&mut self) {
        self.conn.shared().unwatch(&self.open);
    }
}

/// A part of a file in memory.
///
/// Its bytes stay as of [`Conn::at`] while others commit; they change with [`Conn::resync`] only. If the server is
/// lost, an access through a pointer or within [`Mapping::with_bytes`] is a fault (SIGSEGV or SIGBUS), and calls fail.
#[derive(Debug)]
pub struct Mapping {
    file: Arc<FileHandle>,
    region: Arc<Region>,
    offset: u64, // of the first byte, in the file
    skip: usize, // bytes of the region before the first byte
    len: usize,
}

impl Mapping {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file.
    pub fn file(&self) -> &Arc<FileHandle> {
        &self.file
    }

    /// Address of the first byte, for those who know: readable for [`Mapping::len`] bytes while the mapping lives, it
    /// is not closed and its connection is up. A resync changes the bytes block by block.
    pub fn as_ptr(&self) -> *const u8 {
        self.region.start().wrapping_add(self.skip)
    }

    /// Copies bytes, `offset` counted from the start of the mapping. What cannot be read is an error, never a signal.
    ///
    /// # Errors
    /// [`ClientError::OutsideMapping`], and those of [`FileHandle::read`].
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), ClientError> {
        let len = self.len as u64;
        let end = offset.saturating_add(buf.len() as u64);
        if end > len {
            return Err(ClientError::OutsideMapping { offset, end, len });
        }
        self.file.read(self.offset + offset, buf)
    }

    /// Lets `look` see the bytes. Until it returns, `resync` and `close` wait; so they must not be called within.
    ///
    /// # Errors
    /// As of [`FileHandle::map`].
    pub fn with_bytes<R>(&self, look: impl FnOnce(&[u8]) -> R) -> Result<R, ClientError> {
        let _looking = self.file.conn.shared().gate.look();
        self.file.check()?;
        // SAFETY: while we are inside of the gate nobody moves or closes the file, and pins only map what keeps
        // the bytes as they are. A server that is lost ends in a fault, which is no access to other bytes.
        let bytes = unsafe { self.region.bytes(self.skip..self.skip + self.len) };
        Ok(look(bytes))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.file.open.remove_region(&self.region);
    }
}
