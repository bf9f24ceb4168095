//! `mount`: from arguments to a server that answers, and its end.
//!
//! Order of a start: pipe to the parent, signals, store, lock, mount point, kernel settings, mount, "ready". Each
//! step undoes itself if a later one fails. Invariant: the parent, or whoever reads stdout, is told "ready" only
//! when the tree answers; after the stop nothing is left that the server made.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::delta::TailOptions;
use crate::env::{Clock, SystemClock};
use crate::fs::face::Face;
use crate::fs::peer::{PeerFace, Users};
use crate::fs::{self, MountOptions, Mounted};
use crate::host::clients::HostProcesses;
use crate::host::daemon::{self, DaemonError, ReadyPipe};
use crate::host::fuse_connection::FuseConnection;
use crate::host::mount_state::MountStateError;
use crate::host::mountinfo::{MountDev, absolute_mount_point, find_mount};
use crate::host::process::{Process, ProcessError};
use crate::host::runtime::{LockError, MountLock, RuntimeDir, RuntimeError, RuntimeInfo};
use crate::host::signals::{Signals, StopReason};
use crate::host::stop::{FinalState, RuntimeFiles, StopLimits, StopPlan, StopReport, StopTarget, run_stop};
use crate::host::tuning;
use crate::host::umount::{UmountError, clean_dead};
use crate::host::unmount::{UnmountMode, UnmountOutcome, unmount};
use crate::server::{
    LOOK_GAP_MAX_DEFAULT, OnEpoch, POLL_INTERVAL_DEFAULT, PeerManners, Server, ServerOptions, ServerThreads,
};
use crate::store::faulty::Faults;
use crate::store::native::{InitOptions, NativeStore, OpenError, OpenOptions};
use crate::store::zodb::DatabaseOptions;

use super::mount::{MountPlan, PeerPlan};
use super::open::{Opened, Place};
use super::{CliError, ExitCode, logger, open, output};

/// How long a server in the background may take until the tree answers; building a large index takes its time.
const READY_LIMIT: Duration = Duration::from_secs(3600);
/// How often a server looks whether it was unmounted by somebody else.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// For so many looks in a row nobody uses a mount before it ends by itself: a client that ends may be followed by another.
const IDLE_LOOKS: u32 = 25;
/// How long the unmount of a mount that ends by itself may take.
const AUTO_EXIT_LIMIT: Duration = Duration::from_secs(5);
/// How long who uses a mount in the way of WCFS has to let go of it at a stop.
const PEER_STOP_GRACE: Duration = Duration::from_secs(3);
/// Threads of the runtime that awaits slow storages.
const RUNTIME_THREADS: usize = 2;

/// Why a store is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The mount point is no directory.
    #[error("{}: is not a directory: name a directory to mount at, or a path that does not exist yet", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The mount point has something in it.
    #[error("{}: is not empty: mount at an empty directory, or at a path that does not exist yet", path.display())]
    NotEmpty {
        /// The path.
        path: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{}: a filesystem of type {fs_type} is mounted there: unmount it first, or mount elsewhere", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
        /// What is mounted.
        fs_type: String,
    },
    /// The mount point cannot be used.
    #[error("{}: cannot be a mount point: {source}: name a directory, or a path in one that exists", path.display())]
    MountPoint {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The log cannot be written.
    #[error("{}: the log cannot be written: {source}: name another file with --log", path.display())]
    Log {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server has the mount point.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The run-time directory cannot be used.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A dead mount could not be cleaned.
    #[error(transparent)]
    Clean(#[from] UmountError),
    /// The kernel refused.
    #[error(transparent)]
    Mount(#[from] fs::MountError),
    /// The server in the background failed.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// This process cannot be looked up.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Signals, pipes or threads cannot be had.
    #[error("the server cannot start: {source}: check the limits of this user (ulimit -a)")]
    Start {
        /// Why.
        source: io::Error,
    },
    /// The mount could not be ended.
    #[error("{}: is still mounted after {} s: see the log, and try `umount -l`", path.display(), taken.as_secs())]
    StillMounted {
        /// The path.
        path: PathBuf,
        /// How long it was tried.
        taken: Duration,
    },
    /// The mount was ended, but not all that the server made could be removed.
    #[error("{}: is unmounted, but not all was removed: see the warnings, then try `revfs status`", path.display())]
    LeftBehind {
        /// The path.
        path: PathBuf,
    },
}

impl ServeError {
    /// The code that the command exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            ServeError::NotADirectory { .. } | ServeError::NotEmpty { .. } => ExitCode::Usage,
            ServeError::InUse { .. } | ServeError::StillMounted { .. } => ExitCode::Busy,
            ServeError::Lock(LockError::Held { .. }) => ExitCode::Busy,
            ServeError::MountPoint { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ExitCode::NotFound
            }
            ServeError::Daemon(DaemonError::Failed { code, .. }) => ExitCode::from_number(*code),
            ServeError::Clean(UmountError::NotMounted { .. }) => ExitCode::NotFound,
            ServeError::Clean(UmountError::State(MountStateError::Table { source, .. }))
                if source.kind() == io::ErrorKind::NotFound =>
            {
                ExitCode::NotFound
            }
            ServeError::MountPoint { .. }
            | ServeError::Log { .. }
            | ServeError::Lock(_)
            | ServeError::Runtime(_)
            | ServeError::Clean(_)
            | ServeError::Mount(_)
            | ServeError::Daemon(_)
            | ServeError::Process(_)
            | ServeError::LeftBehind { .. }
            | ServeError::Start { .. } => ExitCode::Failure,
        }
    }
}

fn start_error(source: io::Error) -> ServeError {
    ServeError::Start { source }
}

/// `revfs mount`.
///
/// # Errors
/// The server could not start, in this process or in the background.
pub(super) fn mount(plan: &MountPlan) -> Result<ExitCode, CliError> {
    if !plan.foreground {
        let clock = SystemClock::shared();
        daemon::spawn_background(&plan.background_args(), READY_LIMIT, &*clock).map_err(ServeError::from)?;
        return Ok(ExitCode::Ok);
    }
    let pipe = ReadyPipe::from_env().map_err(start_error)?;
    let in_background = pipe.is_attached();
    match start(plan, in_background) {
        Ok(serving) => {
            if !in_background && plan.peer.is_none() {
                let head = serving.server.head();
                let line = format!("serving {} at {}, head {head}", serving.url, serving.path.display());
                let mut out = output::Output::new(false);
                out.put(&line, |line| format!("{line}\n"))?;
                out.finish()?;
            }
            pipe.ready();
            serving.run()
        }
        Err(error) => {
            let code = error.exit_code();
            if pipe.failed(code.number(), &error.to_string()) { Ok(code) } else { Err(error) }
        }
    }
}

/// All parts of a running server.
struct Serving {
    url: String,
    path: PathBuf,
    signals: Signals,
    store: Opened,
    server: Arc<Server>,
    threads: ServerThreads,
    mounted: Mounted,
    lock: MountLock,
    dev: MountDev,
    auto_exit: Option<Arc<Users>>,
    /// It serves in the way of WCFS.
    is_peer: bool,
    // Last: loads that still run end with it.
    runtime: tokio::runtime::Runtime,
}

/// A directory that is removed again unless it is kept.
struct MountPoint {
    path: PathBuf,
    made: bool,
    kept: bool,
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if self.made && !self.kept && std::fs::remove_dir(&self.path).is_err() {
            log::warn!("{}: cannot be removed again", self.path.display());
        }
    }
}

fn start(plan: &MountPlan, in_background: bool) -> Result<Serving, CliError> {
    let signals = Signals::install().map_err(start_error)?;
    logger::serve(plan.log.as_deref(), !in_background).map_err(|source| {
        let path = plan.log.clone().unwrap_or_default();
        ServeError::Log { path, source }
    })?;
    let clock = SystemClock::shared();
    let store = open_store(plan, &clock)?;
    let url = store.as_store().info().url.clone();
    let (lock, mut mount_point) = lock_mount_point(plan, &url, &*clock)?;
    for note in tuning::tune_machine().iter().filter(|note| !note.is_settled()) {
        log::warn!("{note}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("revfs-rt")
        .enable_time()
        .build()
        .map_err(start_error)?;
    let users = Arc::new(Users::default());
    let options = ServerOptions {
        clock: Arc::clone(&clock),
        runtime: runtime.handle().clone(),
        poll_interval: POLL_INTERVAL_DEFAULT,
        history: TailOptions { span: plan.keep_history, ..TailOptions::default() },
        pin_timeout: plan.pin_timeout,
        look_gap_max: LOOK_GAP_MAX_DEFAULT,
        tracking_bytes_max: plan.tracking_bytes,
        pins_max: plan.pins,
        processes: Some(Arc::new(HostProcesses::default())),
        peer: plan.peer.as_ref().map(peer_manners),
    };
    let server = Server::new(store.as_store(), options);
    let mounted = fs::mount(&server, &mount_point.path, &mount_options(plan, &store, &users, &clock))
        .map_err(ServeError::from)?;
    let (major, minor) = mounted.device();
    let dev = MountDev { major, minor };
    tune_mount(plan, dev);
    let threads = server.start().map_err(start_error)?;
    mount_point.kept = true;
    log::info!("serving {url} at {}, head {}", mount_point.path.display(), server.head());
    let path = mount_point.path.clone();
    let auto_exit = plan.peer.as_ref().is_some_and(|peer| peer.auto_exit).then_some(users);
    let is_peer = plan.peer.is_some();
    let serving = Serving {
        url,
        path,
        signals,
        store,
        server,
        threads,
        mounted,
        lock,
        dev,
        auto_exit,
        is_peer,
        runtime,
    };
    Ok(serving)
}

/// Takes the mount point: its lock first, then a look whether it can be one.
fn lock_mount_point(
    plan: &MountPlan,
    url: &str,
    clock: &dyn Clock,
) -> Result<(MountLock, MountPoint), ServeError> {
    let dir = Arc::new(RuntimeDir::of_user().map_err(ServeError::from)?);
    let path = absolute_mount_point(&plan.mount_point)
        .map_err(|source| ServeError::MountPoint { path: plan.mount_point.clone(), source })?;
    // A mount that a killed server left is cleaned before its path is looked at.
    clean_dead(&dir, &plan.mount_point, StopLimits::default(), clock).map_err(ServeError::from)?;
    let process = Process::current().map_err(ServeError::from)?;
    let info = RuntimeInfo {
        pid: process.pid(),
        pid_start: process.start(),
        mount_point: path.clone(),
        store_url: url.to_owned(),
        made_mount_point: false,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // Before the look at the mount point: of two servers that start at once, one takes it as it found it.
    let mut lock = MountLock::acquire(&dir, info).map_err(ServeError::from)?;
    let mount_point = prepare_mount_point(path)?;
    lock.update(|info| info.made_mount_point = mount_point.made).map_err(ServeError::from)?;
    Ok((lock, mount_point))
}

/// What is set on a new mount that is not an option of it.
fn tune_mount(plan: &MountPlan, dev: MountDev) {
    if plan.peer.is_some() {
        // Its clients open the connection to be able to abort it.
        if let Err(error) = FuseConnection::open(dev) {
            log::warn!("clients cannot abort this mount: {error}");
        }
        return;
    }
    let note = tuning::set_read_ahead(dev, plan.read_ahead_bytes >> 10);
    if !note.is_settled() {
        log::warn!("{note}");
    }
}

/// Clients of WCFS expect a server that was told to end to be gone soon: at SIGQUIT, which is their last word before
/// SIGKILL, at once.
fn stop_limits(reason: StopReason, is_peer: bool) -> StopLimits {
    let limits = match reason {
        StopReason::Terminate { within: Some(total) } => StopLimits::default().within(total),
        StopReason::Quit if is_peer => StopLimits::default().without_grace(),
        _ => StopLimits::default(),
    };
    if is_peer { StopLimits { grace: limits.grace.min(PEER_STOP_GRACE), ..limits } } else { limits }
}

/// An epoch ends the process, and with it the service: no data is better than data of another file.
fn peer_manners(plan: &PeerPlan) -> PeerManners {
    let end = |why: &str| -> () {
        log::error!("zwatcher failed: {why}");
        log::error!(
            "switching filesystem to EIO mode: the server ends, and reads fail until it is started again"
        );
        std::process::exit(i32::from(ExitCode::Failure.number()));
    };
    PeerManners { on_epoch: plan.epoch_is_fatal.then(|| Arc::new(end) as OnEpoch) }
}

fn mount_options(
    plan: &MountPlan,
    store: &Opened,
    users: &Arc<Users>,
    clock: &Arc<dyn Clock>,
) -> MountOptions {
    let peer = plan.peer.as_ref().map(|peer| PeerFace {
        zurl: peer.zurl.clone(),
        pin_timeout: plan.pin_timeout,
        debug: peer.debug,
        users: Arc::clone(users),
    });
    MountOptions {
        allow_other: plan.allow_other,
        noexec: plan.noexec,
        uid: Some(plan.uid),
        gid: Some(plan.gid),
        threads: plan.threads.unwrap_or_else(|| fs::threads_default(matches!(store, Opened::Zodb(_)))),
        max_read_bytes: plan.max_read_bytes,
        face: Face { log: Arc::new(logger::recent), peer, ..Face::default() },
        clock: Arc::clone(clock),
    }
}

fn open_store(plan: &MountPlan, clock: &Arc<dyn Clock>) -> Result<Opened, CliError> {
    let root = match open::place(&plan.store)? {
        Place::Native(_) if plan.peer.is_some() => {
            return Err(CliError::NotADatabase { store: plan.store.to_string_lossy().into_owned() });
        }
        Place::Native(root) => root,
        Place::FileStorage(path) => {
            let options = DatabaseOptions { cache_bytes: plan.cache_bytes, ..DatabaseOptions::default() };
            return open::open_database(&path, options).map(Opened::Zodb);
        }
        Place::Zeo(url) => return open::open_zeo(&url, plan.cache_bytes).map(Opened::Zodb),
    };
    let options =
        || OpenOptions { cache_bytes: plan.cache_bytes, clock: Arc::clone(clock), ..OpenOptions::default() };
    let opened = || match plan.fault_read_delay {
        Some(delay) => {
            let faults = Faults::none();
            faults.delay_reads(delay);
            NativeStore::open_faulty(&root, &faults, options())
        }
        None => NativeStore::open(&root, options()),
    };
    let opened = match opened() {
        Err(OpenError::NotFound { .. } | OpenError::NotAStore { .. }) if plan.create => {
            NativeStore::init(&root, &InitOptions::default(), &**clock)?;
            opened()
        }
        other => other,
    };
    Ok(Opened::Native(opened?))
}

/// Checks that the path can be mounted at, and makes it if there is nothing.
fn prepare_mount_point(absolute: PathBuf) -> Result<MountPoint, ServeError> {
    let failed = |source| ServeError::MountPoint { path: absolute.clone(), source };
    if let Some(other) = find_mount(&absolute).map_err(failed)? {
        return Err(ServeError::InUse { path: absolute, fs_type: other.fs_type });
    }
    let made = match std::fs::create_dir(&absolute) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(source) => return Err(failed(source)),
    };
    let mount_point = MountPoint { path: absolute.clone(), made, kept: false };
    match std::fs::read_dir(&absolute).map(|mut names| names.next().is_none()) {
        Ok(false) => Err(ServeError::NotEmpty { path: absolute }),
        Ok(true) => Ok(mount_point),
        Err(source) if source.kind() == io::ErrorKind::NotADirectory => {
            Err(ServeError::NotADirectory { path: absolute })
        }
        Err(source) => Err(failed(source)),
    }
}

/// The server, as the stop sees it.
struct Target(Arc<Server>);

impl StopTarget for Target {
    fn refuse_opens(&self) {
        self.0.refuse_opens();
        // Who waits for a storage that does not answer keeps the mount busy.
        self.0.store().give_up();
        // A mount with an open link is busy, so it would be told next anyway.
        self.0.close_links("shutting down");
    }
}

/// For how many looks in a row, after how many opens, nobody has used the mount.
#[derive(Default)]
struct Idle {
    looks: u32,
    opens: u64,
}

impl Serving {
    /// Whether all clients have left for good, and the mount is gone with them. It stays while anybody uses it who did not
    /// say so by `zurl`.
    fn is_left(&self, idle: &mut Idle) -> bool {
        let opens = self.auto_exit.as_ref().and_then(|users| users.all_gone());
        let Some(opens) = opens.filter(|_| self.server.gauges().links == 0) else {
            *idle = Idle::default();
            return false;
        };
        // One that came and went in between begins it anew.
        let looks = if idle.opens == opens { idle.looks + 1 } else { 1 };
        *idle = Idle { looks, opens };
        if looks < IDLE_LOOKS {
            return false;
        }
        *idle = Idle::default();
        match unmount(&self.path, self.dev, UnmountMode::Plain, AUTO_EXIT_LIMIT) {
            UnmountOutcome::Done | UnmountOutcome::NotMounted => true,
            UnmountOutcome::Busy => false,
            UnmountOutcome::Failed(error) => {
                log::warn!("no client uses {} any more, but it stays: {error}", self.path.display());
                false
            }
        }
    }

    /// Serves until a signal comes or somebody unmounts, then stops.
    fn run(self) -> Result<ExitCode, CliError> {
        let mut idle = Idle::default();
        let mut quit = false;
        let (reason, limits) = loop {
            match self.signals.wait_within(LOOK_INTERVAL).map_err(start_error)? {
                Some(reason) => {
                    quit = reason == StopReason::Quit;
                    break (reason.to_string(), stop_limits(reason, self.is_peer));
                }
                None if self.mounted.ended() => break ("unmounted".to_owned(), StopLimits::default()),
                None if self.is_left(&mut idle) => {
                    break ("no client uses it any more".to_owned(), StopLimits::default());
                }
                None => {}
            }
        };
        log::info!("stopping {}: {reason}", self.path.display());
        daemon::notify_stopping();
        let clock = SystemClock::shared();
        let report = run_stop(
            StopPlan {
                mount_point: self.path.clone(),
                dev: (!self.mounted.ended()).then_some(self.dev),
                target: Some(Arc::new(Target(Arc::clone(&self.server)))),
                server: None,
                made_mount_point: self.lock.info().made_mount_point,
                runtime: RuntimeFiles::Own(self.lock),
                limits,
            },
            &*clock,
        );
        if quit && self.is_peer {
            // Whoever still has a file of it open keeps the connection, and waits in it for nothing.
            log::info!("{}: the server ends at once", self.path.display());
            std::process::exit(i32::from(ExitCode::Failure.number()));
        }
        self.threads.stop();
        if let Err(error) = self.mounted.wait() {
            log::info!("the mount ended: {error}");
        }
        if let Some(Err(error)) = self.store.native().map(|native| native.close_cleanly()) {
            log::warn!("the index will be built anew after the next start of the machine: {error}");
        }
        self.runtime.shutdown_background();
        ended(&self.path, &report)
    }
}

/// The answer to a stop.
pub(super) fn ended(path: &Path, report: &StopReport) -> Result<ExitCode, CliError> {
    if report.is_clean() {
        return Ok(ExitCode::Ok);
    }
    let path = path.to_owned();
    Err(match report.state {
        FinalState::StillMounted => ServeError::StillMounted { path, taken: report.taken }.into(),
        FinalState::Unmounted | FinalState::Aborted | FinalState::Detached => {
            ServeError::LeftBehind { path }.into()
        }
    })
}
