//! A mount for tests that always goes away.
//!
//! Invariant: no mount, directory or thread outlives its [`TestMount`], and a test that hangs fails.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use revfs::env::SystemClock;
use revfs::fs::{MountOptions, Mounted, mount};
use revfs::server::{Server, ServerOptions, ServerThreads};
use revfs::store::Store;
use revfs_protocol::Tid;

/// A test that takes longer than this hangs: its mount is aborted, so that it fails instead.
const WATCHDOG: Duration = Duration::from_secs(120);

/// A mount in a directory of its own. Dropping it ends it, whatever state it is in.
pub struct TestMount {
    pub server: Arc<Server>,
    mounted: Option<Mounted>,
    threads: Option<ServerThreads>,
    device_minor: u32,
    dir: tempfile::TempDir,
    watchdog: Sender<()>,
    _runtime: tokio::runtime::Runtime,
}

impl TestMount {
    pub fn new(store: Arc<dyn Store>) -> TestMount {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let options = ServerOptions {
            clock: SystemClock::shared(),
            runtime: runtime.handle().clone(),
            poll_interval: Duration::from_secs(1),
            pin_timeout: revfs::server::PIN_TIMEOUT_DEFAULT,
            look_gap_max: revfs::server::LOOK_GAP_MAX_DEFAULT,
            tracking_bytes_max: revfs::server::TRACKING_BYTES_MAX_DEFAULT,
            pins_max: revfs::server::PINS_MAX_DEFAULT,
            history: revfs::delta::TailOptions::default(),
            processes: None,
            peer: None,
        };
        let server = Server::new(store, options);
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            mount(&server, dir.path(), &MountOptions { threads: 4, ..MountOptions::default() }).unwrap();
        let device_minor = mounted.device().1;
        let threads = server.start().unwrap();
        let (watchdog, done) = channel();
        let bark = move || {
            if done.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test hangs: aborting its mount");
                abort(device_minor);
            }
        };
        revfs::env::spawn("watchdog", bark).unwrap();
        let (mounted, threads) = (Some(mounted), Some(threads));
        TestMount { server, mounted, threads, device_minor, dir, watchdog, _runtime: runtime }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Waits until `head/at` shows at least `tid`.
    pub fn wait(&self, tid: u64) {
        assert!(self.server.wait_shown(Tid::from_raw(tid), Duration::from_secs(60)), "head/at stays");
    }
}

/// Makes each request to a connection fail, now and later.
fn abort(device_minor: u32) {
    let _ = std::fs::write(format!("/sys/fs/fuse/connections/{device_minor}/abort"), "1");
}

impl Drop for TestMount {
    fn drop(&mut self) {
        let _ = self.watchdog.send(());
        let Some(mounted) = self.mounted.take() else { return };
        if mounted.unmount().is_err() {
            abort(self.device_minor);
            let _ = rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH);
        }
        let _ = mounted.wait();
        if let Some(threads) = self.threads.take() {
            threads.stop();
        }
    }
}
