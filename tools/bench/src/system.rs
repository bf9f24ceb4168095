//! What the machine says and can be told: caches, memory, mounts, free space.

use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::error::{BenchError, Named, Result};

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
/// Free memory that is touched beyond what is going to be read, bytes: the server's and the kernel's own.
const TOUCHED_BYTES_MORE: u64 = 512 << 20;
const PAGE_BYTES: usize = 4096;

/// Whether [`drop_caches`] may work: it is for root.
///
/// # Errors
/// It will not.
pub fn check_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(BenchError::NotPossible {
        what: format!("cold reads write to {DROP_CACHES}, which is for root"),
        remedy: "run bench as root",
    })
}

/// Writes all that is dirty, then drops the page cache and the inodes and names that the kernel remembers.
///
/// Then touches memory as [`touch_memory`] does.
///
/// # Errors
/// Not root.
pub fn drop_caches(bytes: u64) -> Result<()> {
    check_root()?;
    rustix::fs::sync();
    fs::write(DROP_CACHES, "3").named(DROP_CACHES)?;
    touch_memory(bytes)
}

/// Touches as much free memory as the next half takes, `bytes`, and gives it back: a virtual machine returns
/// what is free to its host, and the next to use it waits for the host, up to 3 s a GiB where this was measured.
/// That would be most of a cold row, and it hits reads through FUSE most, because there a processor is the first
/// to write to a page, and not a disk.
///
/// # Errors
/// /proc cannot be read.
pub fn touch_memory(bytes: u64) -> Result<()> {
    let available = field_bytes(Path::new("/proc/meminfo"), "MemAvailable:")?;
    let mut memory = vec![0u8; (bytes + TOUCHED_BYTES_MORE).min(available / 2) as usize];
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
    Ok(())
}

/// Bytes of the page cache.
///
/// # Errors
/// /proc cannot be read.
pub fn page_cache_bytes() -> Result<u64> {
    field_bytes(Path::new("/proc/meminfo"), "Cached:")
}

/// A field of `/proc/PID/status` that is in kB, in bytes.
///
/// # Errors
/// No such process.
pub fn status_bytes(pid: i32, field: &str) -> Result<u64> {
    field_bytes(&PathBuf::from(format!("/proc/{pid}/status")), field)
}

fn field_bytes(path: &Path, field: &str) -> Result<u64> {
    let text = fs::read_to_string(path).named(path.display())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    number
        .map(|kib| kib * 1024)
        .ok_or_else(|| BenchError::Wrong(format!("{} has no number at {field}", path.display())))
}

/// Bytes that this user may still write where `dir` is.
///
/// # Errors
/// It does not exist.
pub fn free_bytes(dir: &Path) -> Result<u64> {
    let disk = rustix::fs::statvfs(dir).named(dir.display())?;
    Ok(disk.f_bavail * disk.f_frsize)
}

/// Lets this process, and those that it starts from now on, have so many files open.
///
/// # Errors
/// The limit is lower, and this user may not raise it.
pub fn allow_open_files(count: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= count) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(count));
    setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum }).map_err(|errno| {
        BenchError::NotPossible {
            what: format!("{count} files are to be open at once: {errno}"),
            remedy: "raise the limit (ulimit -n) or run bench as root",
        }
    })
}

/// Inode that an address of this process is mapped from; 0 if it is mapped from no file.
///
/// # Errors
/// Nothing is mapped there, or /proc cannot be read.
pub fn mapped_inode(address: u64) -> Result<u64> {
    const MAPS: &str = "/proc/self/maps";
    let maps = fs::read_to_string(MAPS).named(MAPS)?;
    let inode = maps.lines().find_map(|line| map_line(line).filter(|(range, _)| range.contains(&address)));
    let inode = inode.map(|(_, inode)| inode);
    inode.ok_or_else(|| BenchError::Wrong(format!("{MAPS} has nothing at {address:x}")))
}

/// Addresses of a line, and the inode that they are mapped from.
fn map_line(line: &str) -> Option<(Range<u64>, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some((address(start)?..address(end)?, fields.nth(3)?.parse().ok()?))
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// Minor number of its device: the number of the connection, for FUSE.
    pub minor: u32,
    /// Where it is.
    pub point: PathBuf,
    /// Type of filesystem.
    pub kind: String,
    /// What is mounted.
    pub source: String,
}

/// All mounts, in the order that they were made.
///
/// # Errors
/// /proc cannot be read.
pub fn mounts() -> Result<Vec<MountLine>> {
    let text = fs::read("/proc/self/mountinfo").named("/proc/self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(mount_line).collect())
}

fn mount_line(line: &[u8]) -> Option<MountLine> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: Option<&&[u8]>| field.map(|field| String::from_utf8_lossy(field).into_owned());
    let minor = text(fields.get(2))?.split_once(':')?.1.parse().ok()?;
    Some(MountLine {
        minor,
        point: PathBuf::from(unescape(fields.get(4)?)),
        kind: text(fields.get(dash + 1))?,
        source: text(fields.get(dash + 2))?,
    })
}

/// Undoes the kernel's `\040` for blanks and the like.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// The mount that a path lies on.
///
/// # Errors
/// /proc cannot be read.
pub fn mount_of(path: &Path) -> Result<Option<MountLine>> {
    let path = path.canonicalize().named(path.display())?;
    let found = mounts()?.into_iter().filter(|mount| path.starts_with(&mount.point));
    // Of those at one place, the last covers the others.
    Ok(found.max_by_key(|mount| mount.point.as_os_str().as_bytes().len()))
}

/// Ends a mount whatever state it is in: a FUSE connection is aborted, so that nobody waits for a dead server,
/// and then the mount is detached. Never looks into the mount.
pub fn force_unmount(mount: &MountLine) {
    if mount.kind.starts_with("fuse") {
        // Without root, fusermount3 alone has to do; errors show below, in that the mount is still there.
        let _ = fs::write(format!("/sys/fs/fuse/connections/{}/abort", mount.minor), "1");
    }
    if rustix::mount::unmount(&mount.point, UnmountFlags::DETACH).is_err() {
        let _ = std::process::Command::new("fusermount3").args(["-u", "-z"]).arg(&mount.point).status();
    }
}

/// What the figures were measured on.
#[derive(Debug, Serialize)]
pub struct Environment {
    /// Kernel release.
    pub kernel: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
    /// Folder of the run.
    pub dir: String,
    /// Type of filesystem there.
    pub filesystem: String,
    /// Device there.
    pub device: String,
    /// What `revfs --version` says.
    pub revfs: String,
}

impl Environment {
    /// Of this machine, for files in `dir`.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn here(dir: &Path, revfs: String) -> Result<Environment> {
        let mount = mount_of(dir)?;
        Ok(Environment {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: field_bytes(Path::new("/proc/meminfo"), "MemTotal:")?,
            dir: dir.display().to_string(),
            filesystem: mount.as_ref().map_or_else(String::new, |mount| mount.kind.clone()),
            device: mount.map_or_else(String::new, |mount| mount.source),
            revfs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read() {
        let line = br"91 28 0:53 / /tmp/a\040b rw,nosuid - fuse.revfs /data/s rw,user_id=0";
        let mount = mount_line(line).unwrap();
        let expected = MountLine {
            minor: 53,
            point: PathBuf::from("/tmp/a b"),
            kind: "fuse.revfs".to_owned(),
            source: "/data/s".to_owned(),
        };
        assert_eq!(mount, expected);
        for cut in 0..line.len() {
            let _ = mount_line(&line[..cut]);
        }
        assert_eq!(unescape(br"a\0401\"), r"a 1\");
    }

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f00d000-7f00f000 r--s 00002000 00:35 4711    /mnt/head/bigfile/a b";
        assert_eq!(map_line(line), Some((0x7f00_d000..0x7f00_f000, 4711)));
        assert_eq!(map_line("7f00d000-7f00f000 rw-p 00000000"), None);
        let own = std::env::current_exe().unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(own).unwrap());
        assert_eq!(mapped_inode(lines_of_maps_are_read as fn() as usize as u64).unwrap(), inode);
        assert!(mapped_inode(0).is_err());
    }

    #[test]
    fn this_machine_answers() {
        assert!(page_cache_bytes().unwrap() > 0);
        assert!(status_bytes(std::process::id() as i32, "VmRSS:").unwrap() > 0);
        assert!(mount_of(Path::new(".")).unwrap().is_some());
        assert!(free_bytes(Path::new("/nowhere")).is_err());
    }
}
