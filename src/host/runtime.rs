//! runtime: one lock and one description for each mount point, in a directory that dies with the machine.
//!
//! Invariants: a file appears at its name whole and locked (it is written apart, locked and then linked), and
//! does not change afterwards; so who finds it unlocked knows that its server is gone. A file is unlinked only by
//! who holds its lock, and who locks one checks that it is still the file at that name. Left out on purpose:
//! the files of other users.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::mountinfo::absolute_mount_point;

/// What a server says about itself to the commands `umount`, `status` and `mount`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeInfo {
    /// Number of the server's process.
    pub pid: u32,
    /// When it started, in clock ticks since boot: tells it from a later process with the same number.
    pub pid_start: u64,
    /// Where it mounts, absolute.
    #[serde(with = "escaped_path")]
    pub mount_point: PathBuf,
    /// The store, as mountinfo shows it.
    pub store_url: String,
    /// The server made the directory of the mount point, so the stop removes it.
    pub made_mount_point: bool,
    /// Version of revfs that serves.
    pub version: String,
}

/// Paths are bytes and JSON is not: bytes that are not printable ASCII stand as `\ooo`, as in mountinfo.
mod escaped_path {
    use super::super::mountinfo::{escape, unescape};
    use serde::{Deserialize, Deserializer, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::{Path, PathBuf};

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&escape(path.as_os_str()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(PathBuf::from(OsString::from_vec(unescape(text.as_bytes()))))
    }
}

/// Why the run-time directory or a file of it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Somebody else could write there.
    #[error("{} is not a directory of mode 0700 that belongs to user {uid}: it has mode {mode:o} and owner \
             {owner}; remove it, or set XDG_RUNTIME_DIR", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Who we are.
        uid: u32,
        /// Whose it is.
        owner: u32,
        /// Its mode bits.
        mode: u32,
    },
    /// The system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a mount point cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A server holds it.
    #[error("{} is served by {}; stop it with: revfs umount {}", mount_point.display(),
            holder(info.as_deref()), mount_point.display())]
    Held {
        /// The mount point.
        mount_point: PathBuf,
        /// What the holder wrote; `None` if another version of revfs wrote it and it cannot be read.
        info: Option<Box<RuntimeInfo>>,
    },
    /// The directory or the file fails.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

fn holder(info: Option<&RuntimeInfo>) -> String {
    info.map_or_else(|| "another process".to_owned(), |info| format!("process {}", info.pid))
}

/// What became of the run-time file of a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// There was one without a server, and it is removed.
    Removed,
    /// There was none.
    Absent,
    /// Its server lives: it stays.
    Held,
}

/// The directory of run-time files.
#[derive(Debug)]
pub struct RuntimeDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl RuntimeDir {
    /// The directory of this user, made if absent: `/run/revfs` for root, else `$XDG_RUNTIME_DIR/revfs`, else
    /// `/tmp/revfs-<uid>`.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub fn of_user() -> Result<RuntimeDir, RuntimeError> {
        let uid = rustix::process::geteuid();
        let session =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let path = match session {
            _ if uid.is_root() => PathBuf::from("/run/revfs"),
            Some(session) => session.join("revfs"),
            None => PathBuf::from(format!("/tmp/revfs-{}", uid.as_raw())),
        };
        RuntimeDir::at(&path)
    }

    /// The directory `path`, made with mode 0700 if absent. It must not be a symlink, and be this user's alone.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub fn at(path: &Path) -> Result<RuntimeDir, RuntimeError> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io_error("make", path, errno)),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| io_error("open", path, e))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| io_error("look at", path, e))?;
        let uid = rustix::process::geteuid().as_raw();
        let mode = stat.st_mode & 0o7777;
        if stat.st_uid != uid || mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(RuntimeError::Unsafe { path, uid, owner: stat.st_uid, mode });
        }
        Ok(RuntimeDir { path: path.to_owned(), fd })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the server of `mount_point` wrote, alive or not; `None` if there is no file, or one that cannot be
    /// understood.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub fn read_info(&self, mount_point: &Path) -> Result<Option<RuntimeInfo>, RuntimeError> {
        let name = name_of(&resolve(mount_point)?);
        match self.open(&name)? {
            Some(mut file) => Ok(parse_info(&mut file)),
            None => Ok(None),
        }
    }

    /// What each living server wrote, by mount point. Files whose server is gone are removed.
    ///
    /// # Errors
    /// [`RuntimeError`]; a single file that cannot be read is skipped.
    pub fn list(&self) -> Result<Vec<RuntimeInfo>, RuntimeError> {
        let mut known = Vec::new();
        for name in self.names()? {
            match self.remove_stale_name(&name) {
                Ok(Removal::Held) => {}
                Ok(Removal::Removed | Removal::Absent) => continue,
                Err(error) => {
                    log::debug!("{error}");
                    continue;
                }
            }
            let info = self.open(&name).ok().flatten().and_then(|mut file| parse_info(&mut file));
            known.extend(info.filter(|_| name.ends_with(LOCK_SUFFIX)));
        }
        known.sort_by(|a: &RuntimeInfo, b| a.mount_point.cmp(&b.mount_point));
        Ok(known)
    }

    /// The mount points that files name, whether or not their servers live.
    ///
    /// # Errors
    /// [`RuntimeError`]; a single file that cannot be read is skipped.
    pub fn mount_points(&self) -> Result<Vec<PathBuf>, RuntimeError> {
        let names = self.names()?.into_iter().filter(|name| name.ends_with(LOCK_SUFFIX));
        let files = names.filter_map(|name| self.open(&name).ok().flatten());
        Ok(files.filter_map(|mut file| parse_info(&mut file)).map(|info| info.mount_point).collect())
    }

    /// Names of the files of this directory that are ours.
    fn names(&self) -> Result<Vec<String>, RuntimeError> {
        let entries = std::fs::read_dir(&self.path).map_err(|e| self.failed("read", "", e))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| name.ends_with(LOCK_SUFFIX) || name.ends_with(NEW_SUFFIX)).collect())
    }

    /// Removes the file of `mount_point` if its server is gone.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub fn remove_stale(&self, mount_point: &Path) -> Result<Removal, RuntimeError> {
        self.remove_stale_name(&name_of(&resolve(mount_point)?))
    }

    /// Whether a living server holds the lock of `mount_point`.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub fn is_held(&self, mount_point: &Path) -> Result<bool, RuntimeError> {
        let name = name_of(&resolve(mount_point)?);
        match self.open(&name)? {
            Some(file) => Ok(!self.try_lock(&file, &name)?),
            None => Ok(false),
        }
    }

    fn remove_stale_name(&self, name: &str) -> Result<Removal, RuntimeError> {
        match self.open(name)? {
            Some(file) => self.remove_if_stale(&file, name),
            None => Ok(Removal::Absent),
        }
    }

    /// `file` was opened at `name`, where another file may stand by now.
    fn remove_if_stale(&self, file: &File, name: &str) -> Result<Removal, RuntimeError> {
        if !self.try_lock(file, name)? {
            return Ok(Removal::Held);
        }
        if self.is_at(file, name)? {
            self.unlink(name)?;
        }
        Ok(Removal::Removed)
    }

    fn open(&self, name: &str) -> Result<Option<File>, RuntimeError> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("open", name, errno)),
        }
    }

    fn try_lock(&self, file: &File, name: &str) -> Result<bool, RuntimeError> {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(self.failed("lock", name, errno)),
        }
    }

    /// Whether `file` is still what stands at `name`.
    fn is_at(&self, file: &File, name: &str) -> Result<bool, RuntimeError> {
        let open = rustix::fs::fstat(file).map_err(|e| self.failed("look at", name, e))?;
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => Ok(same_file(&open, &there)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed("look at", name, errno)),
        }
    }

    fn unlink(&self, name: &str) -> Result<(), RuntimeError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove", name, errno)),
        }
    }

    /// A new file with `info`, locked, under a name of its own.
    fn write_new(&self, info: &RuntimeInfo) -> Result<(File, String), RuntimeError> {
        for _ in 0..LOCK_TRIES_MAX {
            let name = format!("{:016x}{NEW_SUFFIX}", crate::env::random_u64());
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&self.fd, &name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(|errno| self.failed("make", &name, errno))?;
            let mut file = File::from(fd);
            // Until it is locked, a `list` of another process may take it for one left behind, and remove it.
            if !self.try_lock(&file, &name)? || !self.is_at(&file, &name)? {
                self.unlink(&name)?;
                continue;
            }
            let written = serde_json::to_vec(info).map_err(io::Error::from).and_then(|mut text| {
                text.push(b'\n');
                file.write_all(&text)
            });
            if let Err(source) = written {
                self.unlink(&name).ok();
                return Err(self.failed("write", &name, source));
            }
            return Ok((file, name));
        }
        Err(self.failed("lock a new file in", "", Errno::AGAIN))
    }

    fn failed(&self, doing: &'static str, name: &str, source: impl Into<io::Error>) -> RuntimeError {
        RuntimeError::Io { doing, path: self.path.join(name), source: source.into() }
    }

    fn try_clone(&self) -> Result<RuntimeDir, RuntimeError> {
        let fd = self.fd.try_clone().map_err(|e| self.failed("open", "", e))?;
        Ok(RuntimeDir { path: self.path.clone(), fd })
    }
}

const LOCK_SUFFIX: &str = ".lock";
const NEW_SUFFIX: &str = ".new";
const READABLE_MAX: usize = 40;
/// Files of this kind have a few hundred bytes; more is not ours.
const INFO_BYTES_MAX: u64 = 64 << 10;
/// How often the file may change hands while it is being locked.
const LOCK_TRIES_MAX: u32 = 100;

fn resolve(mount_point: &Path) -> Result<PathBuf, RuntimeError> {
    absolute_mount_point(mount_point).map_err(|source| RuntimeError::Io {
        doing: "resolve",
        path: mount_point.to_owned(),
        source,
    })
}

/// 16 hex digits of a hash of the whole path, and its last name for people.
fn name_of(absolute: &Path) -> String {
    let hash = blake3::hash(absolute.as_os_str().as_encoded_bytes()).to_hex();
    let last = absolute.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let tail: String = last.chars().take(READABLE_MAX).map(plain).collect();
    format!("{}-{tail}{LOCK_SUFFIX}", &hash[..16])
}

fn same_file(a: &Stat, b: &Stat) -> bool {
    a.st_dev == b.st_dev && a.st_ino == b.st_ino
}

fn io_error(doing: &'static str, path: &Path, errno: Errno) -> RuntimeError {
    RuntimeError::Io { doing, path: path.to_owned(), source: errno.into() }
}

fn parse_info(file: &mut File) -> Option<RuntimeInfo> {
    let stat = rustix::fs::fstat(file.as_fd()).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    file.take(INFO_BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).map_err(|error| log::debug!("run-time file: {error}")).ok()
}

/// The lock on one mount point, held by its server for life and gone with it, however it ends.
#[derive(Debug)]
pub struct MountLock {
    dir: RuntimeDir,
    name: String,
    info: RuntimeInfo,
    file: Option<File>,
}

impl MountLock {
    /// Locks `info.mount_point`, which is made absolute. A file that a dead server left is replaced.
    ///
    /// # Errors
    /// [`LockError::Held`] if a server lives, or [`LockError::Runtime`].
    pub fn acquire(dir: &RuntimeDir, mut info: RuntimeInfo) -> Result<MountLock, LockError> {
        let absolute = resolve(&info.mount_point)?;
        let name = name_of(&absolute);
        info.mount_point.clone_from(&absolute);
        for _ in 0..LOCK_TRIES_MAX {
            let (file, new) = dir.write_new(&info)?;
            let linked = rustix::fs::linkat(&dir.fd, &new, &dir.fd, &name, AtFlags::empty());
            dir.unlink(&new)?;
            match linked {
                Ok(()) => return Ok(MountLock { dir: dir.try_clone()?, name, info, file: Some(file) }),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(dir.failed("link", &name, errno).into()),
            }
            if dir.remove_stale_name(&name)? == Removal::Held {
                let info = dir.open(&name)?.and_then(|mut file| parse_info(&mut file)).map(Box::new);
                return Err(LockError::Held { mount_point: absolute, info });
            }
        }
        Err(dir.failed("lock", &name, Errno::AGAIN).into())
    }

    /// What the lock's file says.
    pub fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    /// Puts a file with other contents in the place of this one, without letting go of the lock.
    ///
    /// # Errors
    /// [`RuntimeError`]; the lock is held as before.
    pub fn update(&mut self, change: impl FnOnce(&mut RuntimeInfo)) -> Result<(), RuntimeError> {
        let mut info = self.info.clone();
        change(&mut info);
        info.mount_point.clone_from(&self.info.mount_point);
        let (file, new) = self.dir.write_new(&info)?;
        let renamed = rustix::fs::renameat(&self.dir.fd, &new, &self.dir.fd, &self.name);
        if let Err(errno) = renamed {
            self.dir.unlink(&new).ok();
            return Err(self.dir.failed("replace", &self.name, errno));
        }
        // Only now may the old file's lock go: whoever gets it sees that it is no longer at this name.
        self.file = Some(file);
        self.info = info;
        Ok(())
    }

    /// Removes the file and lets go of the lock.
    ///
    /// # Errors
    /// [`RuntimeError`]; the lock is free all the same.
    pub fn remove(mut self) -> Result<(), RuntimeError> {
        self.release()
    }

    fn release(&mut self) -> Result<(), RuntimeError> {
        // The lock is held until the end of this function: nobody can have put another file there meanwhile.
        match self.file.take() {
            Some(file) if self.dir.is_at(&file, &self.name)? => self.dir.unlink(&self.name),
            _ => Ok(()),
        }
    }
}

impl Drop for MountLock {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            log::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;

    fn info(mount_point: &Path) -> RuntimeInfo {
        RuntimeInfo {
            pid: std::process::id(),
            pid_start: 7,
            mount_point: mount_point.to_owned(),
            store_url: "file:///s".into(),
            made_mount_point: false,
            version: "0".into(),
        }
    }

    fn files(dir: &RuntimeDir) -> usize {
        std::fs::read_dir(dir.path()).unwrap().count()
    }

    fn fixture() -> (tempfile::TempDir, RuntimeDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::at(&temp.path().join("run")).unwrap();
        let mount_point = temp.path().canonicalize().unwrap().join("mnt");
        (temp, dir, mount_point)
    }

    #[test]
    fn a_mount_point_has_one_holder_and_nothing_stays_behind() {
        let (_temp, dir, mnt) = fixture();
        let lock = MountLock::acquire(&dir, info(&mnt)).unwrap();
        match MountLock::acquire(&dir, info(&mnt)) {
            Err(LockError::Held { mount_point, info: Some(found) }) => {
                assert_eq!((mount_point, *found), (mnt.clone(), info(&mnt)));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(dir.list().unwrap(), vec![info(&mnt)]);
        assert_eq!(dir.remove_stale(&mnt).unwrap(), Removal::Held);
        assert!(dir.is_held(&mnt).unwrap() && !dir.is_held(&mnt.with_file_name("none")).unwrap());
        let other = MountLock::acquire(&dir, info(&mnt.with_file_name("other"))).unwrap();
        drop(lock);
        other.remove().unwrap();
        assert_eq!(files(&dir), 0);
        assert_eq!(dir.read_info(&mnt).unwrap(), None);
        MountLock::acquire(&dir, info(&mnt)).unwrap();
    }

    #[test]
    fn what_a_dead_server_left_is_replaced_and_pruned() {
        let (_temp, dir, mnt) = fixture();
        let leave = |path: &Path| {
            let mut lock = MountLock::acquire(&dir, info(path)).unwrap();
            lock.file = None; // as when the process ends: the lock goes, the file stays
        };
        leave(&mnt);
        assert_eq!(dir.read_info(&mnt).unwrap(), Some(info(&mnt)));
        drop(MountLock::acquire(&dir, info(&mnt)).unwrap());
        leave(&mnt);
        std::fs::write(dir.path().join("0.new"), "cut off").unwrap();
        std::fs::write(dir.path().join("0-x.lock"), "{\"pid\":").unwrap();
        assert_eq!(dir.list().unwrap(), vec![]);
        assert_eq!(files(&dir), 0);
    }

    #[test]
    fn an_update_replaces_the_file_and_never_lets_go() {
        let (_temp, dir, mnt) = fixture();
        let mut lock = MountLock::acquire(&dir, info(&mnt)).unwrap();
        let old = dir.open(&lock.name).unwrap().unwrap();
        lock.update(|info| info.made_mount_point = true).unwrap();
        assert!(dir.read_info(&mnt).unwrap().unwrap().made_mount_point);
        assert!(matches!(MountLock::acquire(&dir, info(&mnt)), Err(LockError::Held { .. })));
        // Who had opened the file before gets its lock, and sees that it no longer counts.
        assert!(dir.try_lock(&old, "old").unwrap());
        assert!(!dir.is_at(&old, &lock.name).unwrap());
        drop(lock);
        assert_eq!(files(&dir), 0);
    }

    #[test]
    fn nobody_gets_the_lock_while_its_holder_updates() {
        let (_temp, dir, mnt) = fixture();
        let mut lock = MountLock::acquire(&dir, info(&mnt)).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    let other = MountLock::acquire(&dir, info(&mnt));
                    assert!(matches!(other, Err(LockError::Held { info: Some(_), .. })), "{other:?}");
                }
            });
            for round in 0..500 {
                lock.update(|info| info.pid_start = round).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        assert_eq!(dir.read_info(&mnt).unwrap().unwrap().pid_start, 499);
    }

    #[test]
    fn who_comes_late_does_not_remove_the_file_of_the_next_holder() {
        let (_temp, dir, mnt) = fixture();
        let first = MountLock::acquire(&dir, info(&mnt)).unwrap();
        let name = first.name.clone();
        let opened = dir.open(&name).unwrap().unwrap();
        drop(first);
        let _second = MountLock::acquire(&dir, info(&mnt)).unwrap();
        dir.remove_if_stale(&opened, &name).unwrap();
        assert!(dir.read_info(&mnt).unwrap().is_some());
    }

    #[test]
    fn many_that_lock_and_unlock_at_once_never_hold_together() {
        let (_temp, dir, mnt) = fixture();
        let held = std::sync::atomic::AtomicU32::new(0);
        let won = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        match MountLock::acquire(&dir, info(&mnt)) {
                            Ok(_lock) => {
                                use std::sync::atomic::Ordering::SeqCst;
                                assert_eq!(held.fetch_add(1, SeqCst), 0);
                                won.fetch_add(1, SeqCst);
                                held.fetch_sub(1, SeqCst);
                            }
                            Err(LockError::Held { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                        dir.list().unwrap();
                    }
                });
            }
        });
        assert!(won.into_inner() > 0);
        assert_eq!(files(&dir), 0);
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let open = temp.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(RuntimeDir::at(&open), Err(RuntimeError::Unsafe { mode: 0o755, .. })));
        let real = temp.path().join("real");
        RuntimeDir::at(&real).unwrap();
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(matches!(RuntimeDir::at(&link), Err(RuntimeError::Io { doing: "open", .. })));
    }

    #[test]
    fn any_path_survives_the_file() {
        let (temp, dir, _) = fixture();
        let odd = std::ffi::OsStr::from_bytes(b"a \\\"\xff\n\xe2\x82\xac");
        let mnt = temp.path().canonicalize().unwrap().join(odd);
        let lock = MountLock::acquire(&dir, info(&mnt)).unwrap();
        assert_eq!(dir.read_info(&mnt).unwrap().unwrap().mount_point, mnt);
        assert_eq!(lock.info().mount_point, mnt);
        assert!(lock.name.ends_with(".lock") && lock.name.is_ascii());
    }
}
