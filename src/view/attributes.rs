//! What `stat` shows of a file as of a state, as plain data.
//!
//! Invariant: two states that show the same version of a file show the same attributes, but for `links`. Times
//! come from tids, so they are the same on each machine that mounts the store.

use revfs_protocol::{BlockSize, FileId, Tid};

use crate::store::FileMeta;

/// Bytes in a unit of `st_blocks`.
const STAT_UNIT_BYTES: u64 = 512;

/// Attributes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAttributes {
    /// Its identity.
    pub file: FileId,
    /// Size in bytes.
    pub size: u64,
    /// Bytes that its blocks take in packs.
    pub stored: u64,
    /// Unit of change.
    pub block_size: BlockSize,
    /// Tid of its last change.
    pub rev: Tid,
    /// Time of its last change, ns since 1970 UTC.
    pub mtime_unix_ns: u64,
    /// Names that it has: 1, or 0 once it is deleted.
    pub links: u32,
}

impl FileAttributes {
    /// The attributes of the file that `meta` describes.
    pub fn of(meta: &FileMeta) -> FileAttributes {
        FileAttributes {
            file: meta.file,
            size: meta.size,
            stored: meta.stored,
            block_size: meta.block_size,
            rev: meta.rev,
            mtime_unix_ns: meta.rev.to_unix_ns(),
            links: u32::from(meta.deleted.is_none()),
        }
    }

    /// Stored bytes in the 512-byte units of `st_blocks`: 0 for a file that is one hole.
    pub fn stat_blocks(&self) -> u64 {
        self.stored.div_ceil(STAT_UNIT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DirId;

    #[test]
    fn times_come_from_the_tid_and_blocks_from_what_is_stored() {
        let ns = 1_795_000_000_123_456_000;
        let mut meta = FileMeta {
            file: FileId::from_raw(7),
            size: 1 << 40,
            block_size: BlockSize::MIN,
            rev: Tid::from_unix_ns(ns),
            created: Tid::ZERO,
            stored: 513,
            dir: DirId::ROOT,
            name: b"x".to_vec(),
            deleted: None,
        };
        let shown = FileAttributes::of(&meta);
        assert_eq!((shown.mtime_unix_ns, shown.stat_blocks(), shown.links), (ns, 2, 1));
        meta.stored = 0;
        meta.deleted = Some(Tid::MAX);
        let shown = FileAttributes::of(&meta);
        assert_eq!((shown.stat_blocks(), shown.links), (0, 0));
    }
}
