//! FUSE requests: each is one call to the tree or the server, and one answer.
//!
//! Invariant: a thread that serves the kernel waits for local storage only; a READ that needs more is answered
//! from the runtime. FLUSH and OPEN are answered OK, never ENOSYS: the kernel would stop to send them, and
//! `close()` no longer reported a dead server. READDIRPLUS is left out on purpose: it would let the kernel keep
//! attributes under head that an invalidation between answer and inode cannot reach.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use super::face::{FsError, errno};
use super::handles::{DirHandle, Handle, Handles, TextHandle};
use super::inodes::Key;
use super::links;
use super::mount::DiskSpace;
use super::peer::PeerFile;
use super::requests::Needs;
use super::tree::{Kind, Stat, Tree, UNKNOWN_INO};
use crate::server::{FileView, Stats};
use crate::store::NAME_BYTES_MAX;
use crate::view::{self, Seek};

/// Numbers are never given again, so there is one generation.
pub(super) const GENERATION: Generation = Generation(0);
/// One READ for a block of the default size, bytes.
const READ_BYTES_MAX: u32 = 2 << 20;
/// READs parked on a slow storage count against it; when it is full no other file is read ahead.
const BACKGROUND_MAX: u16 = 8192;
/// More than the kernel offers by default; it says what it allows.
pub(super) const READAHEAD_BYTES: u32 = 16 << 20;
/// `O_NONBLOCK` of a descriptor.
const NON_BLOCKING: i32 = nix::libc::O_NONBLOCK;
pub(super) const XATTR_TID: &str = "user.revfs.tid";
pub(super) const XATTR_FILE: &str = "user.revfs.file";

/// Who owns what is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Answers the kernel.
#[derive(Clone)]
pub(super) struct Glue {
    pub(super) tree: Arc<Tree>,
    pub(super) handles: Arc<Handles>,
    pub(super) owner: Owner,
    pub(super) disk_space: Arc<dyn Fn() -> DiskSpace + Send + Sync>,
    pub(super) readahead_bytes: u32,
}

impl Glue {
    pub(super) fn attr(&self, ino: u64, stat: &Stat) -> FileAttr {
        let time = UNIX_EPOCH.checked_add(Duration::from_nanos(stat.time_unix_ns)).unwrap_or(UNIX_EPOCH);
        let kind = match stat.kind {
            Kind::Dir => FileType::Directory,
            Kind::File | Kind::Control => FileType::RegularFile,
            Kind::Link => FileType::Symlink,
        };
        FileAttr {
            ino: INodeNo(ino),
            size: stat.size,
            blocks: stat.blocks,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: stat.mode,
            nlink: stat.links,
            uid: self.owner.uid,
            gid: self.owner.gid,
            rdev: 0,
            blksize: u32::try_from(stat.block_size).unwrap_or(u32::MAX),
            flags: 0,
        }
    }

    /// The errno of a request; a failure of the store is logged here, once.
    pub(super) fn refuse(&self, request: &str, ino: INodeNo, error: &FsError) -> Errno {
        if error.is_failure() {
            Stats::add(&self.tree.server().stats().request_errors, 1);
            let key = self.tree.key(ino.0);
            log::error!("{request} of {key:?} failed at head @{}: {error}", self.tree.server().head());
        }
        errno(error)
    }

    fn open_file(&self, ino: u64, flags: OpenFlags, thread: u32) -> Result<(u64, FopenFlags), FsError> {
        let key = self.tree.key(ino)?;
        if key == Key::HeadWatch {
            let link = links::open(self.tree.server(), thread)?;
            self.tree.inodes().opened(ino);
            Stats::add(&self.tree.server().stats().opens, 1);
            return Ok((self.handles.add(Handle::Link(link)), links::OPEN_FLAGS));
        }
        match flags.acc_mode() {
            OpenAccMode::O_RDONLY => {}
            OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR => return Err(FsError::ReadOnly),
        }
        if key == Key::Peer(PeerFile::Zhead) {
            let stream = self.tree.server().open_tids().ok_or(FsError::NotFound)?;
            self.tree.inodes().opened(ino);
            return Ok((self.handles.add(Handle::Tids(stream)), links::OPEN_FLAGS));
        }
        if let (Key::Peer(PeerFile::Zurl), Some(peer)) = (&key, self.tree.peer()) {
            peer.users.came();
        }
        let opened = match self.tree.text(&key) {
            Some(text) => {
                (self.handles.add(Handle::Text(TextHandle::new(text))), FopenFlags::FOPEN_DIRECT_IO)
            }
            // What changes is invalidated by its bytes; an open drops nothing.
            None => (0, FopenFlags::FOPEN_KEEP_CACHE),
        };
        self.tree.inodes().opened(ino);
        Stats::add(&self.tree.server().stats().opens, 1);
        Ok(opened)
    }

    fn open_dir(&self, ino: u64) -> Result<u64, FsError> {
        let key = self.tree.key(ino)?;
        let txn = self.tree.dir_txn(&key)?;
        self.tree.inodes().opened(ino);
        Ok(self.handles.add(Handle::Dir(DirHandle { key, txn, listing: std::sync::OnceLock::new() })))
    }

    fn text(&self, ino: u64, fh: FileHandle, offset: u64) -> Result<Arc<Vec<u8>>, FsError> {
        let handle = self.handles.get(fh.0).ok_or(FsError::BadHandle)?;
        let Handle::Text(text) = handle.as_ref() else { return Err(FsError::IsADirectory) };
        if offset > 0 {
            return Ok(text.text());
        }
        let now = self.tree.text(&self.tree.key(ino)?).ok_or(FsError::BadHandle)?;
        Ok(text.renew(now))
    }

    /// Adds entries from position `offset` on until the answer is full. Positions 0 and 1 are `.` and `..`.
    pub(super) fn read_dir(
        &self,
        ino: u64,
        fh: FileHandle,
        offset: u64,
        to: &mut ReplyDirectory,
    ) -> Result<(), FsError> {
        let handle = self.handles.get(fh.0).ok_or(FsError::BadHandle)?;
        let Handle::Dir(dir) = handle.as_ref() else { return Err(FsError::NotADirectory) };
        if dir.listing.get().is_none() {
            let loaded = self.tree.list(&dir.key, dir.txn.as_ref())?;
            // Two first READDIRs at once load the same: whichever is set.
            let _ = dir.listing.set(loaded);
        }
        let dots = [(ino, "."), (self.tree.parent(&dir.key), "..")];
        for (number, (dot, name)) in (0u64..).zip(dots) {
            if number >= offset && to.add(INodeNo(dot), number + 1, FileType::Directory, name) {
                return Ok(());
            }
        }
        let skip = usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX);
        let listing = dir.listing.get().map_or(&[][..], Vec::as_slice);
        for (index, listed) in listing.iter().enumerate().skip(skip) {
            let number = listed.key.as_ref().and_then(|key| self.tree.inodes().number(key));
            let kind = match listed.kind {
                Kind::Dir => FileType::Directory,
                Kind::File | Kind::Control => FileType::RegularFile,
                Kind::Link => FileType::Symlink,
            };
            let next = index as u64 + 3;
            let name = OsStr::from_bytes(&listed.name);
            if to.add(INodeNo(number.unwrap_or(UNKNOWN_INO)), next, kind, name) {
                break;
            }
        }
        Ok(())
    }

    /// The file that an inode shows, if it is one with extended attributes: only data files have them.
    pub(super) fn attributed(&self, ino: u64) -> Result<Option<FileView>, FsError> {
        match self.tree.view(ino) {
            Ok(view) => Ok(Some(view)),
            Err(FsError::IsADirectory | FsError::BadHandle) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn xattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>, FsError> {
        // The kernel asks for others by itself; those cost no look at the store.
        let name = name.to_str().filter(|name| [XATTR_TID, XATTR_FILE].contains(name));
        let view = name.map_or(Ok(None), |_| self.attributed(ino))?;
        match (name, view) {
            (Some(XATTR_TID), Some(view)) => Ok(view.meta.rev.to_string().into_bytes()),
            (Some(_), Some(view)) => Ok(view.meta.file.to_string().into_bytes()),
            (_, None) | (None, _) => Err(FsError::NoSuchAttribute),
        }
    }

    pub(super) fn seek(&self, ino: u64, fh: FileHandle, offset: i64, whence: i32) -> Result<u64, FsError> {
        let offset = u64::try_from(offset).map_err(|_| FsError::BeyondEnd)?;
        let what = match u32::try_from(whence) {
            Ok(SEEK_DATA) => Seek::Data,
            Ok(SEEK_HOLE) => Seek::Hole,
            _ => return Err(FsError::Malformed),
        };
        let found = match self.handles.get(fh.0).as_deref() {
            Some(Handle::Text(text)) => {
                let end = text.text().len() as u64;
                (offset < end).then_some(if what == Seek::Data { offset } else { end })
            }
            Some(Handle::Dir(_)) => return Err(FsError::IsADirectory),
            Some(Handle::Link(_) | Handle::Tids(_)) => return Err(FsError::NotSeekable),
            None => {
                let view = self.tree.view(ino)?;
                view::seek(&view.txn, &view.meta, offset, what)?
            }
        };
        found.ok_or(FsError::BeyondEnd)
    }
}

// `lseek(2)` on Linux.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

#[allow(clippy::too_many_arguments)] // fuser's trait
impl Filesystem for Glue {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Without it each change of size or mtime drops all pages of a file.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        for capability in wanted {
            if config.add_capabilities(capability).is_err() {
                log::warn!("this kernel lacks {capability:?}: reads are slower; Linux 5.2 has it");
            }
        }
        // Each answers the nearest value that the kernel takes.
        if let Err(most) = config.set_max_write(READ_BYTES_MAX) {
            let _ = config.set_max_write(most);
        }
        if let Err(most) = config.set_max_readahead(self.readahead_bytes) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX / 4 * 3);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        Stats::add(&self.tree.server().stats().lookups, 1);
        self.looked_up(parent, name, reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.tree.inodes().forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.run(Needs::File(ino), move |glue| glue.answer_getattr(ino, reply));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.run(Needs::Content(ino), move |glue| glue.answer_readlink(ino, reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let server = self.tree.server();
        if server.is_stopping_service()
            && (matches!(self.tree.key(ino.0), Ok(Key::HeadWatch)) || server.is_refusing(req.pid()))
        {
            return reply.error(Errno::ESHUTDOWN);
        }
        match self.open_file(ino.0, flags, req.pid()) {
            Ok((fh, flags)) => match self.tree.key(ino.0) {
                Ok(Key::RevFile(file, rev)) => {
                    server.restore_version(file, rev, move || reply.opened(FileHandle(fh), flags));
                }
                _ => reply.opened(FileHandle(fh), flags),
            },
            Err(error) => reply.error(self.refuse("OPEN", ino, &error)),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = size as usize;
        if fh.0 != 0 {
            let wait = flags.0 & NON_BLOCKING == 0;
            match self.handles.get(fh.0).as_deref() {
                Some(Handle::Link(link)) => {
                    return links::read(self.tree.server(), link, (req.pid(), wait), len, reply);
                }
                Some(Handle::Tids(stream)) => {
                    return links::read_tids(self.tree.server(), stream, (req.pid(), wait), len, reply);
                }
                _ => {}
            }
            return match self.text(ino.0, fh, offset) {
                Ok(text) => {
                    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                    reply.data(&text[start..start.saturating_add(len).min(text.len())]);
                }
                Err(error) => reply.error(self.refuse("READ", ino, &error)),
            };
        }
        let thread = req.pid();
        self.run(Needs::File(ino), move |glue| glue.answer_data(ino, (offset, len), thread, reply));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        match self.handles.remove(fh.0).as_deref() {
            Some(Handle::Link(link)) => self.tree.server().close_link(link),
            Some(Handle::Tids(stream)) => self.tree.server().close_tids(stream),
            Some(Handle::Text(_))
                if self.tree.key(ino.0).is_ok_and(|key| key == Key::Peer(PeerFile::Zurl)) =>
            {
                if let Some(peer) = self.tree.peer() {
                    peer.users.went();
                }
            }
            _ => {}
        }
        self.tree.inodes().released(ino.0);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.open_dir(ino.0) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(self.refuse("OPENDIR", ino, &error)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.run(Needs::Content(ino), move |glue| glue.answer_readdir(ino, fh, offset, reply));
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.handles.remove(fh.0);
        self.tree.inodes().released(ino.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let space = (self.disk_space)();
        let unit = space.unit_bytes;
        let name_max = u32::try_from(NAME_BYTES_MAX).unwrap_or(u32::MAX);
        // Nothing can be written here, so there is nothing free for files.
        reply.statfs(space.units, space.units_free, space.units_available, 0, 0, unit, name_max, unit);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        self.run(Needs::File(ino), move |glue| glue.answer_getxattr(ino, &name, size, reply));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.run(Needs::File(ino), move |glue| glue.answer_listxattr(ino, size, reply));
    }

    fn access(&self, _req: &Request, _ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        match mask.contains(AccessFlags::W_OK) {
            true => reply.error(Errno::EROFS),
            false => reply.ok(),
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.run(Needs::File(ino), move |glue| glue.answer_lseek(ino, fh, (offset, whence), reply));
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then says "ready" by itself, as for a file on a disk.
        reply.error(Errno::ENOSYS);
    }

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.handles.get(fh.0).as_deref() {
            Some(Handle::Link(link)) => links::write(self.tree.server(), link, req.pid(), data, reply),
            _ => reply.error(Errno::EROFS),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}
