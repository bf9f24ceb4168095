//! mountinfo: what is mounted where, as `/proc/self/mountinfo` tells it.
//!
//! Invariant: reading the table never touches a mount, so neither a dead nor a hung one blocks it. Lines that
//! do not have the documented form are skipped. Left out on purpose: other mount namespaces.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// The filesystem types of mounts of revfs: its own, and the one that the program `wcfs` mounts with.
pub const REVFS_FS_TYPES: [&str; 2] = ["fuse.revfs", "fuse.wcfs"];

/// Device number of a mounted filesystem; unique among those mounted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MountDev {
    /// 0 for filesystems without a block device, such as all of revfs.
    pub major: u32,
    /// With major 0, a number that the kernel gives and gives again after the unmount.
    pub minor: u32,
}

impl std::fmt::Display for MountDev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Number of the mount in its namespace.
    pub id: u64,
    /// Number of the mount on which it stands.
    pub parent: u64,
    /// Device of the filesystem.
    pub dev: MountDev,
    /// Which directory of the filesystem is mounted; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where it is mounted, absolute.
    pub mount_point: PathBuf,
    /// Type, with subtype after a dot.
    pub fs_type: String,
    /// What is mounted; for revfs the store's URL.
    pub source: OsString,
    /// Options of this mount, comma separated.
    pub options: String,
    /// Options of the filesystem, comma separated.
    pub super_options: String,
}

impl MountEntry {
    /// Whether it is a mount of revfs.
    pub fn is_revfs(&self) -> bool {
        REVFS_FS_TYPES.contains(&self.fs_type.as_str())
    }
}

/// Every mount of this process's namespace, in the order in which they were mounted.
///
/// # Errors
/// The table cannot be read: `/proc` is not mounted.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Every mount of revfs in this process's namespace.
///
/// # Errors
/// As [`mounts`].
pub fn revfs_mounts() -> io::Result<Vec<MountEntry>> {
    Ok(mounts()?.into_iter().filter(MountEntry::is_revfs).collect())
}

/// The topmost mount exactly at `mount_point`, made absolute by [`absolute_mount_point`].
///
/// # Errors
/// The table cannot be read, or the path's parent directory cannot be found.
pub fn find_mount(mount_point: &Path) -> io::Result<Option<MountEntry>> {
    let wanted = absolute_mount_point(mount_point)?;
    Ok(mounts()?.into_iter().rfind(|entry| entry.mount_point == wanted))
}

/// `path` made absolute, symlinks of its parent resolved, without a look at `path` itself: a dead or hung mount
/// there does not block. The last component need not exist; its parent must, and is looked at.
///
/// # Errors
/// The parent directory cannot be resolved; [`io::ErrorKind::InvalidInput`] for an empty path.
pub fn absolute_mount_point(path: &Path) -> io::Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path of the mount point is empty"));
    }
    match path.components().next_back() {
        Some(Component::Normal(last)) => {
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            Ok(std::fs::canonicalize(parent)?.join(last))
        }
        // `/`, `.` and `..` have no last name to keep apart: they are resolved as a whole.
        _ => std::fs::canonicalize(path),
    }
}

/// Parses the text of a mountinfo file; lines without the documented form are left out.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let dev = device(fields.next()?)?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = text_of(fields.next()?);
    // Any number of optional fields, then a lone dash.
    fields.find(|field| *field == b"-")?;
    let fs_type = text_of(fields.next()?);
    let source = OsString::from_vec(unescape(fields.next().unwrap_or_default()));
    let super_options = text_of(fields.next().unwrap_or_default());
    Some(MountEntry { id, parent, dev, root, mount_point, fs_type, source, options, super_options })
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device(field: &[u8]) -> Option<MountDev> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some(MountDev { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text_of(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Replaces `\ooo` (three octal digits, at most `\377`) by its byte; anything else stays as it is.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// The inverse of [`unescape`], in printable ASCII without spaces.
pub(crate) fn escape(text: &OsStr) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.as_bytes() {
        match byte {
            b'!'..=b'[' | b']'..=b'~' => escaped.push(char::from(*byte)),
            _ => escaped.push_str(&format!("\\{byte:03o}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] =
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
        71 36 0:55 / /tmp/a\\040b\\134c rw,nosuid - fuse.revfs file:///s\\040t ro,user_id=0\n\
        72 36 0:56 / /x rw - tmpfs  rw\n\
        not a line\n\
        73 36 0:57 / /short rw\n\
        74 36 zero:57 / /y rw - proc proc rw\n";

    #[test]
    fn lines_are_read_with_any_number_of_optional_fields_and_bad_ones_skipped() {
        let entries = parse(SAMPLE);
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0].dev, MountDev { major: 98, minor: 0 });
        assert_eq!(entries[0].root, Path::new("/mnt1"));
        assert_eq!(entries[0].super_options, "rw,errors=continue");
        assert_eq!(entries[1].mount_point, Path::new("/tmp/a b\\c"));
        assert_eq!(entries[1].source, "file:///s t");
        assert!(entries[1].is_revfs() && !entries[0].is_revfs());
        assert_eq!(entries[2].source, "", "an empty source keeps the fields after it in place");
        assert_eq!(entries[2].super_options, "rw");
    }

    #[test]
    fn no_cut_of_a_line_panics() {
        for end in 0..SAMPLE.len() {
            parse(&SAMPLE[..end]);
            parse(&SAMPLE[end..]);
        }
    }

    #[test]
    fn escapes_are_octal_and_everything_else_stays() {
        assert_eq!(unescape(b"a\\040b"), b"a b");
        assert_eq!(unescape(b"\\377\\400\\08\\"), b"\xff\\400\\08\\");
        let all: Vec<u8> = (0..=255).collect();
        let escaped = escape(OsStr::from_bytes(&all));
        assert!(escaped.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(unescape(escaped.as_bytes()), all);
    }

    #[test]
    fn a_path_is_made_absolute_through_its_parent_only() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        std::os::unix::fs::symlink("/nowhere", real.join("mnt")).unwrap();
        assert_eq!(absolute_mount_point(&real.join("link/mnt/")).unwrap(), real.join("mnt"));
        assert_eq!(absolute_mount_point(&real.join("absent")).unwrap(), real.join("absent"));
        assert_eq!(absolute_mount_point(Path::new("/")).unwrap(), Path::new("/"));
        assert!(absolute_mount_point(Path::new("")).is_err());
        assert!(absolute_mount_point(&real.join("absent/mnt")).is_err());
        assert!(find_mount(&real).unwrap().is_none());
        assert_eq!(find_mount(Path::new("/proc")).unwrap().unwrap().fs_type, "proc");
    }
}
