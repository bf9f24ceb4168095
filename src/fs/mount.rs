//! From options to a mount that answers, and its end.
//!
//! Invariant: when [`mount`] returns, the tree answers, the server knows whose cache to invalidate, and no
//! request was answered before it did. Left out on purpose: locks on mount points, aborting a connection and the
//! clean-up of dead mounts, which know no FUSE and are the host's.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use tracing_mutex::stdsync::Mutex;

use super::face::Face;
use super::glue::{Glue, Owner, READAHEAD_BYTES};
use super::handles::Handles;
use super::kernel::FuseCache;
use super::tree::Tree;
use crate::env::{self, Clock};
use crate::server::{KernelCache, Server};

/// Bounds of the threads that serve the kernel, unless told otherwise. Fewer leave the disk idle while one copies;
/// more than the processors can run make READs overtake each other, and a sequential reader waits for the first.
const THREADS_BOUNDS: (usize, usize) = (4, 16);

/// Threads that serve the kernel unless told otherwise: two a processor, 4 to 16. `stepwise`: each READ may wait for the disk
/// several times, one after the other, as for the objects that lead to a block of a database. Then it is twice as many, of
/// which some wait: measured on two processors, blocks in chunks come a fifth faster, and others no slower.
pub fn threads_default(stepwise: bool) -> usize {
    let threads = (env::processors() * 2).clamp(THREADS_BOUNDS.0, THREADS_BOUNDS.1);
    if stepwise { (threads * 2).min(THREADS_BOUNDS.1) } else { threads }
}

/// Space of the disk that a store is on, for `df`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes in a unit.
    pub unit_bytes: u32,
    /// Units in all.
    pub units: u64,
    /// Units that are free.
    pub units_free: u64,
    /// Units that who is not root may take.
    pub units_available: u64,
}

impl DiskSpace {
    /// Space of the disk that `path` is on; nothing if it cannot be told.
    pub fn of(path: &Path) -> DiskSpace {
        match rustix::fs::statvfs(path) {
            Ok(space) => DiskSpace {
                unit_bytes: u32::try_from(space.f_frsize).unwrap_or(u32::MAX),
                units: space.f_blocks,
                units_free: space.f_bfree,
                units_available: space.f_bavail,
            },
            Err(_) => DiskSpace { unit_bytes: 512, ..DiskSpace::default() },
        }
    }
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Other users may use it.
    pub allow_other: bool,
    /// Nothing below it may be executed.
    pub noexec: bool,
    /// Owner of all that is shown; `None`: who runs the server.
    pub uid: Option<u32>,
    /// Group of all that is shown; `None`: that of who runs the server.
    pub gid: Option<u32>,
    /// Threads that read requests; at least 1.
    pub threads: usize,
    /// Largest READ, bytes, if it is to be smaller than the kernel's choice.
    pub max_read_bytes: Option<u32>,
    /// What `.revfs` shows besides the server.
    pub face: Face,
    /// Time of what has no other.
    pub clock: Arc<dyn Clock>,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            allow_other: false,
            noexec: false,
            uid: None,
            gid: None,
            threads: threads_default(false),
            max_read_bytes: None,
            face: Face::default(),
            clock: env::SystemClock::shared(),
        }
    }
}

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel, or fusermount3, refused.
    #[error(
        "cannot mount at {}: {source}: mount at a directory of yours; without root fusermount3 is needed too (Debian: \
         apt-get install fuse3)",
        mount_point.display()
    )]
    Refused {
        /// Where.
        mount_point: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device through which the kernel talks to servers cannot be opened.
    #[error("cannot mount at {}: {DEVICE}: {source}: {}", mount_point.display(), device_remedy(source))]
    Device {
        /// Where.
        mount_point: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server serves another mount.
    #[error("cannot mount at {}: the server serves another mount; start one for each", mount_point.display())]
    Served {
        /// Where.
        mount_point: PathBuf,
    },
}

/// How far a mount in the way of WCFS reads ahead: as far as the kernel does by itself.
const PEER_READAHEAD_BYTES: u32 = 128 << 10;
/// Unit in which a mount in the way of WCFS tells that it has no space.
const PEER_UNIT_BYTES: u32 = 2 << 20;
/// The device through which the kernel talks to servers.
const DEVICE: &str = "/dev/fuse";

fn device_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "only some users may open it: mount as root, or let all open it (as root: chmod 666 /dev/fuse)"
        }
        io::ErrorKind::NotFound => {
            "this kernel has no FUSE, or this container was not given it: load it (as root: modprobe fuse), or start \
             the container with --device /dev/fuse"
        }
        _ => "look whether FUSE is loaded (as root: modprobe fuse)",
    }
}

/// A mount that is served. Dropping it goes on serving it.
#[derive(Debug)]
pub struct Mounted {
    mount_point: PathBuf,
    device: (u32, u32),
    // Leaf lock: held for the system call that unmounts, which waits for no request of ours.
    unmounter: Mutex<SessionUnmounter>,
    thread: JoinHandle<()>,
    // Leaf lock: set by the thread as it ends.
    result: Arc<Mutex<io::Result<()>>>,
}

impl Mounted {
    /// Where it is, without symlinks.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Device number (major, minor); the minor names it in `/sys/fs/fuse/connections`.
    pub fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Unmounts it, unless it is busy. Only the first call tries; after that unmount by path.
    ///
    /// # Errors
    /// EBUSY, and what else `umount` says.
    pub fn unmount(&self) -> io::Result<()> {
        self.unmounter.lock().unwrap_or_else(PoisonError::into_inner).unmount()
    }

    /// Whether it has ended: unmounted, by whomever, or aborted.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// What ended it, if not an unmount.
    pub fn wait(self) -> io::Result<()> {
        let Mounted { thread, result, .. } = self;
        thread.join().map_err(|_| io::Error::other("a thread that serves the mount panicked"))?;
        std::mem::replace(&mut *result.lock().unwrap_or_else(PoisonError::into_inner), Ok(()))
    }
}

/// Mounts the tree of what `server` serves at `mount_point`, an existing directory.
///
/// # Errors
/// See [`MountError`].
pub fn mount(
    server: &Arc<Server>,
    mount_point: &Path,
    options: &MountOptions,
) -> Result<Mounted, MountError> {
    let refused = |source| MountError::Refused { mount_point: mount_point.to_owned(), source };
    let mount_point = mount_point.canonicalize().map_err(refused)?;
    let refused = |source| MountError::Refused { mount_point: mount_point.clone(), source };
    let start_unix_ns = options.clock.now_unix_ns();
    let tree = Arc::new(Tree::new(Arc::clone(server), options.face.clone(), start_unix_ns));
    let local_root = server.store().info().local_root.clone();
    let glue = Glue {
        tree: Arc::clone(&tree),
        handles: Arc::new(Handles::default()),
        owner: Owner {
            uid: options.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: options.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        },
        disk_space: match options.face.peer {
            Some(_) => Arc::new(|| DiskSpace { unit_bytes: PEER_UNIT_BYTES, ..DiskSpace::default() }),
            None => Arc::new(move || DiskSpace::of(local_root.as_deref().unwrap_or(Path::new("/")))),
        },
        // Clients of WCFS count on blocks that nobody asked for not to be read.
        readahead_bytes: if options.face.peer.is_some() { PEER_READAHEAD_BYTES } else { READAHEAD_BYTES },
    };
    let config = config(&server.store().info().url, options);
    let mut session = Session::new(glue, &mount_point, &config).map_err(|source| match open_device() {
        Ok(_) => refused(source),
        Err(source) => MountError::Device { mount_point: mount_point.clone(), source },
    })?;
    // As the notifier, it keeps the connection until the server lets go of its cache.
    let device = session.as_fd().try_clone_to_owned().map_err(refused)?;
    let cache = FuseCache { tree, notifier: session.notifier(), device };
    if !server.set_kernel_cache(Arc::new(cache) as Arc<dyn KernelCache>) {
        return Err(MountError::Served { mount_point });
    }
    let device = device_of(&mount_point).map_err(refused)?;
    let unmounter = Mutex::new(session.unmount_callable());
    let result = Arc::new(Mutex::new(Ok(())));
    let ended_with = Arc::clone(&result);
    // Requests are answered from here on.
    let serve = move || {
        let ended = session.run();
        *ended_with.lock().unwrap_or_else(PoisonError::into_inner) = ended;
    };
    let thread = env::spawn("fuse", serve).map_err(refused)?;
    Ok(Mounted { mount_point, device, unmounter, thread, result })
}

/// Opens the device as a mount does. What is wrong with it is not in the error of the mount.
fn open_device() -> io::Result<std::fs::File> {
    std::fs::File::options().read(true).write(true).open(DEVICE)
}

fn config(url: &str, options: &MountOptions) -> Config {
    let mut config = Config::default();
    let (url, subtype) = match &options.face.peer {
        Some(peer) => (peer.zurl.as_str(), "wcfs"),
        None => (url, "revfs"),
    };
    config.mount_options = vec![
        MountOption::FSName(source_name(url, rustix::process::geteuid().is_root())),
        // `MountOption::Subtype` is for fusermount only; this reaches the kernel on both ways.
        MountOption::CUSTOM(format!("subtype={subtype}")),
        // Not read-only for the kernel, which would refuse to open `head/watch` for writing; every other write is
        // refused with EROFS. Nor does it check modes: all that can be seen may be read, and who sees it is said by
        // `allow_other`.
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if options.noexec {
        config.mount_options.push(MountOption::NoExec);
    }
    if let Some(bytes) = options.max_read_bytes {
        config.mount_options.push(MountOption::CUSTOM(format!("max_read={bytes}")));
    }
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    config
}

/// The source of the mount as it is told. fusermount takes options apart at commas, the kernel takes it as it is.
fn source_name(url: &str, direct: bool) -> String {
    match direct {
        true => url.to_owned(),
        false => url.replace('\\', "\\\\").replace(',', "\\,"),
    }
}

/// The device number, without a request to the filesystem, which does not answer yet.
fn device_of(mount_point: &Path) -> io::Result<(u32, u32)> {
    let stat = rustix::fs::statx(CWD, mount_point, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_reads_wait_stepwise_there_are_twice_as_many_threads_within_the_bounds() {
        let (plain, stepwise) = (threads_default(false), threads_default(true));
        assert!((THREADS_BOUNDS.0..=THREADS_BOUNDS.1).contains(&plain));
        assert_eq!(stepwise, (2 * plain).min(THREADS_BOUNDS.1));
    }

    #[test]
    fn a_comma_in_the_url_is_no_new_option() {
        assert_eq!(source_name("/a,b\\c", true), "/a,b\\c");
        assert_eq!(source_name("/a,b\\c", false), "/a\\,b\\\\c");
    }
}
