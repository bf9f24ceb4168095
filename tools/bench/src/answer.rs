//! A FUSE filesystem that only answers: the least that any FUSE filesystem costs, with the session settings of
//! `revfs mount`. It runs in a process of its own, as the server of a store does.
//!
//! Invariant: no request is looked at closer than the kernel makes it; nothing is locked, allocated or read.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
    Session,
};

use crate::error::{BenchError, Named, Result};
use crate::{driver, scratch, system};

/// The one file.
pub const FILE: &str = "x";
const TTL: Duration = Duration::from_secs(3600);
const BACKGROUND_MAX: u16 = 8192;
const FILE_INO: INodeNo = INodeNo(2);
const FILE_BYTES: u64 = 64 << 20;
/// Most bytes of one answer.
const ANSWER_BYTES: usize = 128 << 10;
/// How long the process has to end after its mount is gone.
const END: Duration = Duration::from_secs(10);

static BYTES: [u8; ANSWER_BYTES] = [0x5a; ANSWER_BYTES];

struct Answering {
    uid: u32,
    gid: u32,
}

impl Answering {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let is_dir = ino == INodeNo::ROOT;
        FileAttr {
            ino,
            size: if is_dir { 0 } else { FILE_BYTES },
            blocks: if is_dir { 0 } else { FILE_BYTES / 512 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_dir { FileType::Directory } else { FileType::RegularFile },
            perm: if is_dir { 0o555 } else { 0o444 },
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            flags: 0,
            blksize: 2 << 20,
        }
    }
}

impl Filesystem for Answering {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_MAX_PAGES,
        ];
        for flag in wanted {
            // A kernel that lacks one does without, as the server does.
            let _ = config.add_capabilities(flag);
        }
        // Each answers the nearest value that the kernel takes.
        let _ = config.set_max_write(2 << 20);
        if let Err(most) = config.set_max_readahead(8 << 20) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX / 4 * 3);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == FILE {
            reply.entry(&TTL, &self.attributes(FILE_INO), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&BYTES[..ANSWER_BYTES.min(size as usize)]);
    }
}

/// Mounts it, says so on stdout, and serves until it is unmounted.
///
/// # Errors
/// It cannot be mounted.
pub fn serve(point: &Path) -> Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("answer".to_owned()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::DefaultPermissions,
    ];
    config.n_threads = Some(revfs::fs::MountOptions::default().threads);
    config.clone_fd = true;
    let filesystem =
        Answering { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
    let session = Session::new(filesystem, point, &config).named(point.display())?;
    writeln!(io::stdout(), "ready").named("stdout")?;
    session.run().named(point.display())
}

/// The process that serves it, and its mount, until this is dropped.
#[derive(Debug)]
pub struct Answerer {
    child: Child,
    point: PathBuf,
}

impl Answerer {
    /// Starts it on a new folder.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn start(point: &Path) -> Result<Answerer> {
        scratch::check_not_stopping();
        std::fs::create_dir(point).named(point.display())?;
        let own = std::env::current_exe().named("own executable")?;
        let child = Command::new(own)
            .arg("--answer")
            .arg(point)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .named("the filesystem that only answers")?;
        let mut answerer = Answerer { child, point: point.to_owned() };
        let mut said = [0; 6];
        let heard = answerer.child.stdout.as_mut().map(|stdout| stdout.read_exact(&mut said));
        match heard {
            Some(Ok(())) => Ok(answerer),
            _ => Err(BenchError::Wrong("the filesystem that only answers could not be mounted".to_owned())),
        }
    }

    /// Path of its file.
    pub fn file(&self) -> PathBuf {
        self.point.join(FILE)
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        let mounts = system::mounts().unwrap_or_default();
        if let Some(mount) = mounts.iter().rev().find(|mount| mount.point == self.point) {
            system::force_unmount(mount);
        }
        if let Err(error) = driver::wait(&mut self.child, END) {
            eprintln!("bench: the filesystem that only answers: {error}");
        }
    }
}
