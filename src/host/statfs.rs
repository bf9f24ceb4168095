//! statfs: room and kind of the filesystem behind a path.
//!
//! Invariant: figures are as the kernel gives them, in units of `block_size`. The call may hang on a filesystem
//! whose server does; it is meant for stores, not for mounts of revfs.

use std::io;
use std::path::Path;

/// Room of one filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsRoom {
    /// Size of all, in blocks.
    pub blocks: u64,
    /// Free, in blocks.
    pub blocks_free: u64,
    /// Free for users other than root, in blocks.
    pub blocks_available: u64,
    /// Inodes, used and free; 0 if the filesystem does not count them.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Longest name of a file, in bytes.
    pub name_max: u32,
}

impl FsRoom {
    /// Bytes that users other than root can still write.
    pub fn bytes_available(&self) -> u64 {
        self.blocks_available.saturating_mul(u64::from(self.block_size))
    }
}

/// Room of the filesystem on which `path` is.
///
/// # Errors
/// What `statfs` reports.
pub fn room_at(path: &Path) -> io::Result<FsRoom> {
    let found = rustix::fs::statfs(path)?;
    Ok(FsRoom {
        blocks: found.f_blocks,
        blocks_free: found.f_bfree,
        blocks_available: found.f_bavail,
        files: found.f_files,
        files_free: found.f_ffree,
        block_size: u32::try_from(found.f_bsize).unwrap_or(u32::MAX),
        name_max: u32::try_from(found.f_namelen).unwrap_or(u32::MAX),
    })
}

/// Filesystems whose files another machine, or a server that may be on one, can change: neither inotify nor a
/// shared lock table can be relied on there. The numbers are `f_type` of statfs(2).
const NETWORK_FS: [(u32, &str); 19] = [
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x517b, "smb"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
    (0x00c3_6400, "ceph"),
    (0x5346_414f, "afs"),
    (0x6b41_4653, "kafs"),
    (0x7375_7245, "coda"),
    (0x564c, "ncp"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x0116_1970, "gfs2"),
    (0x7461_636f, "ocfs2"),
    (0x1983_0326, "fhgfs"),
    (0xaad7_aaea, "panfs"),
    (0x786f_4256, "vboxsf"),
    (0xbacb_acbc, "vmhgfs"),
];

/// The kind of network filesystem on which `path` is; `None` for a local one.
///
/// # Errors
/// What `statfs` reports.
pub fn network_fs(path: &Path) -> io::Result<Option<&'static str>> {
    // The field is signed or unsigned, and 32 or 64 bits, by architecture; the numbers have 32 bits.
    let found = rustix::fs::statfs(path)?.f_type as u32;
    Ok(NETWORK_FS.iter().find(|(number, _)| *number == found).map(|(_, name)| *name))
}

/// Whether `path` is on a network filesystem (NFS, SMB, 9p, FUSE, Ceph, ...).
///
/// # Errors
/// What `statfs` reports.
pub fn is_network_fs(path: &Path) -> io::Result<bool> {
    Ok(network_fs(path)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_directory_has_room_and_is_local() {
        let dir = tempfile::tempdir().unwrap();
        let room = room_at(dir.path()).unwrap();
        assert!(room.blocks >= room.blocks_free && room.blocks_free >= room.blocks_available);
        assert!(room.block_size.is_power_of_two() && room.name_max >= 255);
        assert!(room.bytes_available() > 0);
        assert!(!is_network_fs(Path::new("/proc")).unwrap());
        assert!(room_at(&dir.path().join("absent")).is_err());
    }
}
