//! `cat`: the bytes of a file as of a state.
//!
//! Invariant: an output file is there whole or not at all, and has holes where the file has them. A stream gets
//! zeros for holes. What was written to a stream before an error stays written.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use revfs_protocol::{BlockIndex, ByteRange};

use super::atomic_file::AtomicFile;
use super::runs::RunWindows;
use super::{LookError, live_file};
use crate::store::{BlockData, BlockRun, BufferPool, Entry, FileMeta, ReadError, ReadTxn};
use crate::view;

/// Bytes of zeros written at once.
const ZEROS_BYTES: usize = 128 << 10;
/// Size of the buffers that are read into, bytes.
const BUFFER_BYTES: usize = 4 << 20;

/// Why bytes could not be copied out.
#[derive(Debug, thiserror::Error)]
pub enum CatError {
    /// The file cannot be found or read.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The output cannot be written.
    #[error(
        "{output}: cannot be written: {source}: check its path, its permissions and the room on its disk"
    )]
    Write {
        /// The output.
        output: String,
        /// Why.
        source: io::Error,
    },
}

impl From<ReadError> for CatError {
    fn from(error: ReadError) -> CatError {
        CatError::Look(error.into())
    }
}

/// Told of bytes passed, and of all bytes.
pub type CatProgress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// The file of this name.
///
/// # Errors
/// See [`LookError`].
pub fn find(txn: &ReadTxn, name: &[u8]) -> Result<FileMeta, LookError> {
    let not_found = || LookError::NotFound { name: name.to_vec(), at: txn.at() };
    match txn.resolve(name)? {
        Some(Entry::File(file)) => live_file(txn, file)?.ok_or_else(not_found),
        Some(Entry::Dir(_)) => Err(LookError::IsDirectory { name: name.to_vec(), at: txn.at() }),
        None => Err(not_found()),
    }
}

/// Writes bytes `range` of a file, clipped to its size, to a stream; answers how many.
///
/// # Errors
/// See [`CatError`].
pub async fn to_stream(
    txn: &ReadTxn,
    meta: &FileMeta,
    range: ByteRange,
    to: &mut dyn Write,
    progress: CatProgress<'_>,
) -> Result<u64, CatError> {
    let mut sink = Sink::Stream(to);
    copy(txn, meta, range, &mut sink, progress).await.map_err(|error| error.named("stdout"))
}

/// Writes bytes `range` of a file, clipped to its size, to a new file at `path`; answers how many.
///
/// # Errors
/// See [`CatError`]; `path` is then as it was before.
pub async fn to_file(
    txn: &ReadTxn,
    meta: &FileMeta,
    range: ByteRange,
    path: &Path,
    progress: CatProgress<'_>,
) -> Result<u64, CatError> {
    let write = |source| CatError::Write { output: path.display().to_string(), source };
    let output = AtomicFile::create(path).map_err(write)?;
    let mut sink = Sink::File(output.file());
    let copied = copy(txn, meta, range, &mut sink, progress).await;
    let count = copied.map_err(|error| error.named(&PathBuf::from(path).display().to_string()))?;
    // Holes at the end count too.
    output.file().set_len(count).map_err(write)?;
    output.publish().map_err(write)?;
    Ok(count)
}

enum Sink<'a> {
    Stream(&'a mut dyn Write),
    File(&'a File),
}

impl Sink<'_> {
    fn data(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Sink::Stream(to) => to.write_all(bytes),
            Sink::File(file) => file.write_all_at(bytes, offset),
        }
    }

    fn hole(&mut self, mut len: u64) -> io::Result<()> {
        static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];
        if let Sink::Stream(to) = self {
            while len > 0 {
                let now = len.min(ZEROS_BYTES as u64);
                to.write_all(&ZEROS[..now as usize])?;
                len -= now;
            }
        }
        Ok(())
    }
}

enum CopyError {
    Read(ReadError),
    Write(io::Error),
}

impl CopyError {
    fn named(self, output: &str) -> CatError {
        match self {
            CopyError::Read(error) => error.into(),
            CopyError::Write(source) => CatError::Write { output: output.to_owned(), source },
        }
    }
}

impl From<ReadError> for CopyError {
    fn from(error: ReadError) -> CopyError {
        CopyError::Read(error)
    }
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> CopyError {
        CopyError::Write(error)
    }
}

async fn copy(
    txn: &ReadTxn,
    meta: &FileMeta,
    range: ByteRange,
    sink: &mut Sink<'_>,
    progress: CatProgress<'_>,
) -> Result<u64, CopyError> {
    let end = range.end.unwrap_or(u64::MAX).min(meta.size);
    let start = range.start.min(end);
    let pool = BufferPool::new(2, BUFFER_BYTES);
    let block_size = meta.block_size;
    let (first, last) = (block_size.block_of(start).raw(), block_size.blocks_for(end).raw());
    let byte_of = |block: u64| block_size.start_of(BlockIndex::new(block)).unwrap_or(u64::MAX);
    for runs in RunWindows::new(txn, meta.file, first, last) {
        // Neighbours that are alike are copied in one go: partial blocks are runs of one block each.
        for (hole, first, count) in alike(&runs?) {
            let from = byte_of(first).max(start);
            let to = byte_of(first + count).min(end);
            if hole {
                sink.hole(to - from)?;
                progress(to - start, end - start);
                continue;
            }
            let mut offset = from;
            view::read_range(txn, meta, from..to, &pool, |bytes| {
                sink.data(bytes, offset - start)?;
                offset += bytes.len() as u64;
                progress(offset - start, end - start);
                Ok::<(), CopyError>(())
            })
            .await?;
        }
    }
    Ok(end - start)
}

/// Joins runs to (is it a hole, first block, count), without regard to where the data is.
fn alike(runs: &[BlockRun]) -> Vec<(bool, u64, u64)> {
    let mut joined: Vec<(bool, u64, u64)> = Vec::new();
    for run in runs {
        let hole = run.data == BlockData::Hole;
        match joined.last_mut() {
            Some((same, _, count)) if *same == hole => *count += run.count,
            _ => joined.push((hole, run.first.raw(), run.count)),
        }
    }
    joined
}
