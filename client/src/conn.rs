//! A view of a mount at one revision.
//!
//! Invariant: `at` only grows. Files are set up and moved one call at a time; a file whose watch the server refuses
//! faults, and the others are not disturbed.

use crate::error::{ClientError, DownCause};
use crate::file::FileHandle;
use crate::link::{Link, Reply};
use crate::mount_dir::{MountDir, attributes};
use crate::open_file::OpenFile;
use crate::pinner;
use crate::region::page_bytes;
use crate::shared::{Shared, lock};
use revfs_protocol::{BlockSize, ClientRequest, FileId, OkReply, Tid};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing_mutex::stdsync::Mutex;

/// How long [`Conn::close`] waits for the server to end the link.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A view of a mount at one revision: one watch link, and the threads that carry out its pins.
///
/// It lives until it and all handles of its files are dropped. A connection whose server is gone stays down; open a
/// new one.
#[derive(Debug)]
pub struct Conn {
    shared: Arc<Shared>,
    at: AtomicU64,         // written under `setting_up` only
    setting_up: Mutex<()>, // first of all locks: held while a file is set up, or all are moved. No pinner thread takes it
}

impl Conn {
    /// A view of the mount at `mount` as of `at`, or of `head/at` as it is now.
    ///
    /// An `at` that is still to come is allowed: the first file waits for it.
    ///
    /// # Errors
    /// [`ClientError::Path`], [`ClientError::NotAMount`], [`ClientError::Down`], [`ClientError::Thread`].
    pub fn open(mount: &Path, at: Option<Tid>) -> Result<Arc<Conn>, ClientError> {
        let mount = MountDir::open(mount)?;
        let link = mount.open_watch()?;
        Conn::start(mount, link, at)
    }

    /// As [`Conn::open`], over a link that somebody else opened, as on a server that is played by a test.
    ///
    /// # Errors
    /// As of [`Conn::open`].
    pub fn open_with_link(mount: &Path, link: OwnedFd, at: Option<Tid>) -> Result<Arc<Conn>, ClientError> {
        Conn::start(MountDir::open(mount)?, link, at)
    }

    fn start(mount: MountDir, link: OwnedFd, at: Option<Tid>) -> Result<Arc<Conn>, ClientError> {
        let at = at.map_or_else(|| mount.head_at(), Ok)?;
        let shared = Arc::new(Shared::new(mount, Link::new(link)));
        pinner::start(&shared)?;
        // From here on dropping it says bye.
        let conn = Conn { shared, at: AtomicU64::new(at.raw()), setting_up: Mutex::new(()) };
        let sent = conn.shared.request(ClientRequest::Hello { range: true, size: true })?;
        // A server that does not know the word refuses it, and then does without.
        if let Err(text) = conn.shared.link.wait(sent)? {
            log::debug!("the server does not know hello: {text}");
        }
        Ok(Arc::new(conn))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The revision of the view.
    pub fn at(&self) -> Tid {
        Tid::from_raw(self.at.load(Ordering::Acquire))
    }

    /// The file with this name under `head/bigfile`; the same handle while one is open.
    ///
    /// # Errors
    /// [`ClientError::BadName`], [`ClientError::Path`], [`ClientError::NoIdentity`], [`ClientError::BlockSize`],
    /// [`ClientError::Refused`], [`ClientError::Down`], [`ClientError::Forked`].
    pub fn file(self: &Arc<Conn>, name: &[u8]) -> Result<Arc<FileHandle>, ClientError> {
        self.shared.link.check()?;
        let (head, file) = self.shared.mount.open_name(name)?;
        self.set_up(file, head)
    }

    /// The file with this identity, whatever its name.
    ///
    /// # Errors
    /// As of [`Conn::file`].
    pub fn file_by_id(self: &Arc<Conn>, file: FileId) -> Result<Arc<FileHandle>, ClientError> {
        self.shared.link.check()?;
        let head = self.shared.mount.open_id(file)?;
        self.set_up(file, head)
    }

    /// Watches a file, unless it is open already.
    fn set_up(self: &Arc<Conn>, file: FileId, head: OwnedFd) -> Result<Arc<FileHandle>, ClientError> {
        let _setting_up = lock(&self.setting_up);
        if let Some(handle) = self.shared.handle_of(file)? {
            return Ok(handle);
        }
        let at = self.at();
        let found = attributes(&head).map_err(|cause| ClientError::Read { file, offset: 0, cause })?;
        let bad_size = || ClientError::BlockSize { file, bytes: found.block_bytes, page_bytes: page_bytes() };
        let block_size = BlockSize::new(found.block_bytes).map_err(|_| bad_size())?;
        if block_size.bytes() % page_bytes() != 0 {
            return Err(bad_size());
        }
        // In the table first: pins come before the reply. If anything below fails, dropping the handle unwatches.
        let open = Arc::new(OpenFile::new(file, head, block_size, at));
        let handle = Arc::new(FileHandle::new(Arc::clone(self), Arc::clone(&open)));
        self.shared.insert(Arc::clone(&open), Arc::downgrade(&handle));
        let sent = self.shared.request(ClientRequest::Watch { file, at })?;
        let reply = self.shared.link.wait(sent)?;
        self.settle(&open, at, reply)?;
        Ok(handle)
    }

    /// Takes the reply to a watch: the file shows its size as of `at`.
    fn settle(&self, open: &OpenFile, at: Tid, reply: Reply) -> Result<(), ClientError> {
        let file = open.id;
        let ok = reply.map_err(|text| ClientError::Refused { file, at, text })?;
        let size = self.size_at(open, at, ok)?;
        // Head may have grown since the kernel last asked, and it faults beyond the size that it knows.
        attributes(&open.head).map_err(|cause| ClientError::Read { file, offset: size, cause })?;
        open.resize(&self.shared.mount, size).map_err(|cause| ClientError::Remap { file, cause })
    }

    /// Size as of `at`: what the server said, or what the file has there.
    fn size_at(&self, open: &OpenFile, at: Tid, ok: OkReply) -> Result<u64, ClientError> {
        match ok.size {
            Some(size) => Ok(size),
            None => Ok(self.shared.mount.rev_file(open.id, at)?.size),
        }
    }

    /// Moves the view, with all its files, forward to `at`; it waits until the server has reached it, and until
    /// calls of [`Mapping::with_bytes`](crate::Mapping::with_bytes) have returned, so it must not be called within.
    ///
    /// # Errors
    /// [`ClientError::GoingBack`], and then nothing has changed. [`ClientError::Refused`] and others that name a file:
    /// that file is lost, its mappings fault; all other files and the view have moved. [`ClientError::Down`].
    pub fn resync(&self, at: Tid) -> Result<(), ClientError> {
        let _setting_up = lock(&self.setting_up);
        self.shared.link.check()?;
        let current = self.at();
        if at < current {
            return Err(ClientError::GoingBack { at, current });
        }
        if at == current {
            return Ok(());
        }
        let _moving = self.shared.gate.start_move();
        let mut sent = Vec::new();
        for open in self.shared.all_watched() {
            let closed = lock(&open.asking);
            if !*closed {
                open.expect(at);
                let request = ClientRequest::Watch { file: open.id, at };
                sent.push((Arc::clone(&open), self.shared.request(request)?));
            }
        }
        let mut first_error = Ok(());
        for (open, sent) in sent {
            let reply = self.shared.link.wait(sent)?;
            let moved = self.settle(&open, at, reply).and_then(|()| open.check());
            if let Err(error) = moved {
                self.give_up(&open, error.clone())?;
                first_error = first_error.and(Err(error));
            }
        }
        self.at.store(at.raw(), Ordering::Release);
        first_error
    }

    /// A file that did not move with the others shows nothing from now on.
    fn give_up(&self, open: &OpenFile, error: ClientError) -> Result<(), ClientError> {
        if let Err(errno) = open.lose(error) {
            let cause = DownCause::Io(errno);
            self.shared.fail(cause.clone());
            return Err(ClientError::Down(cause));
        }
        self.shared.unwatch(open);
        Ok(())
    }

    /// Ends the connection: from now on, each access to a mapping of its files is a fault (SIGSEGV), and calls
    /// give [`ClientError::Down`]. Waits for calls of [`Mapping::with_bytes`](crate::Mapping::with_bytes) to return.
    ///
    /// # Errors
    /// [`ClientError::Forked`].
    pub fn close(&self) -> Result<(), ClientError> {
        if !self.shared.link.is_own() {
            return Err(ClientError::Forked);
        }
        let _moving = self.shared.gate.start_move();
        self.shared.fail(DownCause::Closed);
        if let Err(errno) = self.shared.link.say_bye() {
            log::debug!("the server did not hear bye: {errno}");
        }
        if !self.shared.wait_ended(CLOSE_LIMIT) {
            log::warn!("the server did not end the watch link within {CLOSE_LIMIT:?} after bye");
        }
        Ok(())
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // No handle is left, so no mapping is.
        if self.shared.link.is_own() {
            self.shared.fail(DownCause::Closed);
            if let Err(errno) = self.shared.link.say_bye() {
                log::debug!("the server did not hear bye: {errno}");
            }
        }
    }
}
