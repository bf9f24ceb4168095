//! The kernel's cache of this mount, as the server sees it.
//!
//! Invariant: no lock is held while the kernel works: a number is looked up in the table, and then told. What the
//! kernel does not know is not cached, so that is success.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use revfs_protocol::{FileId, Tid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::inodes::{Key, ROOT_INO};
use super::tree::Tree;
use crate::env;
use crate::server::{KernelCache, Stats};
use crate::store::DirId;

/// Offset that means "attributes only" to the kernel.
const ATTRIBUTES_ONLY: i64 = -1;
/// How often a notification is tried again that the kernel has no memory for.
const RETRIES_MAX: u32 = 1000;
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Notifies the kernel.
#[derive(Debug)]
pub(super) struct FuseCache {
    pub(super) tree: Arc<Tree>,
    pub(super) notifier: Notifier,
    /// Where requests come from.
    pub(super) device: OwnedFd,
}

impl FuseCache {
    fn invalidate_inode(&self, key: &Key, offset: i64, len: i64) {
        if let Some(ino) = self.tree.inodes().number(key) {
            self.tell(|| self.notifier.inval_inode(INodeNo(ino), offset, len));
        }
    }

    /// Puts bytes into the kernel's cache. That it does not take them costs speed only.
    fn store(&self, key: &Key, offset: u64, bytes: &[u8]) {
        let Some(ino) = self.tree.inodes().number(key).filter(|_| !bytes.is_empty()) else { return };
        if let Err(error) = self.notifier.store(INodeNo(ino), offset, bytes) {
            log::debug!("the kernel does not keep {} bytes at {offset} of {key:?}: {error}", bytes.len());
        }
    }

    /// Notifies, again if the kernel lacks memory: `head/at` must not move before it is done.
    fn tell(&self, notify: impl Fn() -> io::Result<()>) {
        for _ in 0..RETRIES_MAX {
            let Err(error) = notify() else { return };
            let known = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
            use rustix::io::Errno as E;
            match known {
                // Not cached, or there is no mount any more.
                Some(E::NOENT | E::NOTCONN | E::NODEV | E::CONNABORTED) => return,
                // The name is now a directory of a mount, or not a directory: either way it was dropped.
                Some(E::NOTDIR | E::NOTEMPTY) => return,
                Some(E::NOMEM | E::AGAIN | E::INTR) => env::sleep(RETRY_INTERVAL),
                _ => {
                    Stats::add(&self.tree.server().stats().notify_errors, 1);
                    log::error!("the kernel refused to drop cached data: {error}; unmount and mount again");
                    return;
                }
            }
        }
        Stats::add(&self.tree.server().stats().notify_errors, 1);
        log::error!("the kernel has had no memory to drop cached data for long; unmount and mount again");
    }
}

impl KernelCache for FuseCache {
    fn invalidate_data(&self, file: FileId, offset: u64, len: u64) {
        let end = offset.checked_add(len).filter(|end| *end < i64::MAX.unsigned_abs());
        // Beyond 63 bits there are no pages; a length of 0 means "to the end" to the kernel.
        let Ok(offset) = i64::try_from(offset) else { return };
        let len = end.and(i64::try_from(len).ok()).unwrap_or(0);
        self.invalidate_inode(&Key::HeadFile(file), offset, len);
    }

    fn invalidate_attributes(&self, file: FileId) {
        self.invalidate_inode(&Key::HeadFile(file), ATTRIBUTES_ONLY, 0);
    }

    fn invalidate_entry(&self, dir: DirId, name: &[u8]) {
        if let Some(parent) = self.tree.inodes().number(&Key::HeadDir(dir)) {
            self.tell(|| self.notifier.inval_entry(INodeNo(parent), OsStr::from_bytes(name)));
        }
    }

    fn invalidate_number(&self, file: FileId) {
        if let Some(parent) = self.tree.inodes().number(&Key::HeadById) {
            self.tell(|| self.notifier.inval_entry(INodeNo(parent), OsStr::new(&file.to_string())));
        }
    }

    fn invalidate_directory(&self, dir: DirId) {
        self.invalidate_inode(&Key::HeadDir(dir), ATTRIBUTES_ONLY, 0);
    }

    fn knows_head(&self, file: FileId) -> bool {
        self.tree.inodes().number(&Key::HeadFile(file)).is_some()
    }

    fn knows_version(&self, file: FileId, rev: Tid) -> bool {
        self.tree.inodes().number(&Key::RevFile(file, rev)).is_some()
    }

    fn store_head(&self, file: FileId, offset: u64, bytes: &[u8]) {
        self.store(&Key::HeadFile(file), offset, bytes);
    }

    fn store_version(&self, file: FileId, rev: Tid, offset: u64, bytes: &[u8]) {
        self.store(&Key::RevFile(file, rev), offset, bytes);
    }

    fn has_requests(&self) -> bool {
        requests_wait(self.device.as_fd())
    }

    fn invalidate_root(&self) {
        self.tell(|| self.notifier.inval_inode(INodeNo(ROOT_INO), ATTRIBUTES_ONLY, 0));
    }
}

/// Whether requests lie in this end of a connection that nobody took.
fn requests_wait(device: BorrowedFd<'_>) -> bool {
    let mut device = [PollFd::new(&device, PollFlags::IN)];
    // One that cannot be asked, as the mount has ended, has none.
    poll(&mut device, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        && device[0].revents().contains(PollFlags::IN)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::*;

    /// Takes a mount that nobody serves down, whatever becomes of the test.
    struct Unmounted<'p>(&'p Path);

    impl Drop for Unmounted<'_> {
        fn drop(&mut self) {
            let _ = unmount(self.0, UnmountFlags::DETACH);
        }
    }

    #[test]
    fn requests_wait_from_when_the_kernel_sends_one_until_it_is_taken() {
        let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let Some(device) = device.ok().filter(|_| rustix::process::geteuid().is_root()) else {
            eprintln!("SKIPPED requests_wait_from_when_the_kernel_sends_one: it needs root and /dev/fuse");
            return;
        };
        assert!(!requests_wait(device.as_fd()), "it belongs to no mount");
        let dir = tempfile::tempdir().unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", device.as_raw_fd());
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        mount("revfs-test", dir.path(), "fuse", MountFlags::NOSUID | MountFlags::NODEV, Some(options))
            .unwrap();
        let mounted = Unmounted(dir.path());
        // The first request of each mount, sent by the mount itself.
        assert!(requests_wait(device.as_fd()));
        assert!(requests_wait(device.as_fd()), "to look takes nothing away");
        let mut request = vec![0; 1 << 20];
        assert!(rustix::io::read(&device, &mut request).unwrap() > 0);
        assert!(!requests_wait(device.as_fd()));
        drop(mounted);
        assert!(!requests_wait(device.as_fd()), "the mount has ended");
    }
}
