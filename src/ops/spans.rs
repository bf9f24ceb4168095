//! Reads a source span by span, in parallel, and says which blocks differ from the base.
//!
//! Invariant: spans come to the consumer in file order, and at most [`IN_FLIGHT_BYTES_MAX`] of them are in
//! memory. Worker `w` of `n` takes the spans whose place in the file is `w` modulo `n` and has a channel of its own;
//! the consumer merges them. The place decides, not a count: a kernel may show a preallocated region as a hole to
//! one worker and, once it was read, as data to another. Blocks that no span covers are zero; a worker says so by
//! ending its channel with a mark, and a channel without it is an error.

use std::sync::Arc;

use bytes::Bytes;
use revfs_protocol::{BlockCount, BlockIndex, BlockSize};
use tokio::sync::mpsc;

use super::source::{SourceError, SourceFile, read_stdin};
use crate::env;
use crate::store::native::{BlockHash, NativeStore, block_hash, used_len};
use crate::store::{BlockRun, BufferPool, FileMeta, ReadBuffer, ReadError, ReadTxn};

/// Threads that read and hash a file.
const WORKERS: u64 = 2;
/// A span has at least this size, bytes.
const SPAN_BYTES_MIN: u64 = 1 << 20;
/// Spans that are read but not consumed, bytes.
const IN_FLIGHT_BYTES_MAX: u64 = 64 << 20;

/// Why a span cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpanError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Base(#[from] ReadError),
    #[error("a thread that reads the source ended early: look for its message above, and report it")]
    WorkerLost,
}

/// What a worker tells: a span, or with `None` that it has no more.
type Told = Result<Option<Span>, SpanError>;

/// Blocks of a span that differ from the base.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// Full blocks, back to back.
    Full { first: u64, data: Bytes, hashes: Vec<BlockHash> },
    /// A block without its zero tail.
    Partial { block: u64, data: Bytes, hash: BlockHash },
    /// Blocks that are zero now.
    Hole { first: u64, count: u64 },
}

/// What was found in one span.
#[derive(Debug)]
pub(super) struct Span {
    /// First block.
    pub(super) first: u64,
    /// How many blocks.
    pub(super) count: u64,
    /// End of the span's bytes in the file.
    pub(super) end: u64,
    /// Ascending.
    pub(super) changed: Vec<Changed>,
}

/// The state that a source is compared with.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub(super) store: Arc<NativeStore>,
    pub(super) txn: ReadTxn,
    /// The file there; `None`: it is new.
    pub(super) meta: Option<FileMeta>,
}

impl Base {
    /// Blocks that the file has.
    pub(super) fn blocks(&self) -> u64 {
        self.meta.as_ref().map_or(0, |meta| meta.block_size.blocks_for(meta.size).raw())
    }
}

/// Spans of one source, in order.
#[derive(Debug)]
pub(super) struct Spans {
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    from: mpsc::Receiver<Told>,
    head: Option<Span>,
    ended: bool,
}

impl Worker {
    fn new(from: mpsc::Receiver<Told>) -> Worker {
        Worker { from, head: None, ended: false }
    }
}

impl Spans {
    /// Starts to read a file.
    pub(super) fn of_file(
        file: &Arc<SourceFile>,
        base: &Base,
        block_size: BlockSize,
    ) -> std::io::Result<Spans> {
        let runtime = tokio::runtime::Handle::current();
        let span_bytes = block_size.bytes().max(SPAN_BYTES_MIN);
        let pool = BufferPool::new(WORKERS as usize * 2, span_bytes as usize);
        let mut workers = Vec::new();
        for worker in 0..WORKERS {
            let (to, from) = mpsc::channel(channel_len(span_bytes, WORKERS));
            workers.push(Worker::new(from));
            let scan = Scan { base: base.clone(), block_size, runtime: runtime.clone() };
            let (file, pool) = (Arc::clone(file), Arc::clone(&pool));
            env::spawn("revfs-read", move || {
                let mine = data_spans(&file, span_bytes);
                for start in mine.filter(|start| start / span_bytes % WORKERS == worker) {
                    let len = span_bytes.min(file.stamp.size - start);
                    let span = read_file_span(&file, start, pool.take(len as usize))
                        .and_then(|buffer| scan.compare(start, buffer));
                    if !tell(&to, span.map(Some)) {
                        return;
                    }
                }
                tell(&to, Ok(None));
            })?;
        }
        Ok(Spans { workers })
    }

    /// Starts to read the standard input to its end.
    pub(super) fn of_stdin(base: &Base, block_size: BlockSize) -> std::io::Result<Spans> {
        let span_bytes = block_size.bytes().max(SPAN_BYTES_MIN);
        let pool = BufferPool::new(2, span_bytes as usize);
        let (to, from) = mpsc::channel(channel_len(span_bytes, 1));
        let scan = Scan { base: base.clone(), block_size, runtime: tokio::runtime::Handle::current() };
        env::spawn("revfs-read", move || {
            let mut start = 0;
            loop {
                let mut buffer = pool.take(span_bytes as usize);
                let span = match read_stdin(&mut buffer, start) {
                    Ok(0) => Ok(None),
                    Ok(len) => {
                        buffer.truncate(len);
                        scan.compare(start, buffer).map(Some)
                    }
                    Err(error) => Err(error.into()),
                };
                let at_end = matches!(span, Ok(None));
                if !tell(&to, span) || at_end {
                    return;
                }
                start += span_bytes;
            }
        })?;
        Ok(Spans { workers: vec![Worker::new(from)] })
    }

    /// The next span; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Span>, SpanError> {
        for worker in &mut self.workers {
            if worker.head.is_none() && !worker.ended {
                worker.head = worker.from.recv().await.ok_or(SpanError::WorkerLost)??;
                worker.ended = worker.head.is_none();
            }
        }
        let first = |worker: &&mut Worker| worker.head.as_ref().map_or(u64::MAX, |span| span.first);
        Ok(self.workers.iter_mut().min_by_key(first).and_then(|worker| worker.head.take()))
    }
}

/// Hands it to the consumer; answers whether it wants more.
fn tell(to: &mpsc::Sender<Told>, told: Told) -> bool {
    let failed = told.is_err();
    to.blocking_send(told).is_ok() && !failed
}

fn channel_len(span_bytes: u64, workers: u64) -> usize {
    // One more span is in the hands of each worker.
    let each = IN_FLIGHT_BYTES_MAX / span_bytes / workers;
    usize::try_from(each.clamp(2, 17) - 1).unwrap_or(1)
}

/// Starts of the spans that hold data, ascending.
fn data_spans(file: &SourceFile, span_bytes: u64) -> impl Iterator<Item = u64> + '_ {
    let mut next = 0;
    let mut data_end = 0;
    std::iter::from_fn(move || {
        if next >= data_end {
            let (start, end) = file.data_region(next)?;
            next = start - start % span_bytes;
            data_end = end;
        }
        let start = next;
        next += span_bytes;
        Some(start)
    })
}

fn read_file_span(file: &SourceFile, start: u64, mut buffer: ReadBuffer) -> Result<ReadBuffer, SpanError> {
    let len = buffer.len();
    match file.read_at(&mut buffer, start)? {
        full if full == len => Ok(buffer),
        _ => Err(file.wrong_size().into()),
    }
}

/// How one source is compared.
struct Scan {
    base: Base,
    block_size: BlockSize,
    runtime: tokio::runtime::Handle,
}

impl Scan {
    fn compare(&self, start: u64, buffer: ReadBuffer) -> Result<Span, SpanError> {
        let len = buffer.len() as u64;
        let first = self.block_size.block_of(start).raw();
        let count = self.block_size.blocks_for(len).raw();
        let base = self.base_hashes(first, count)?;
        let mut changed = ChangedBlocks::new(Bytes::from_owner(buffer), self.block_size);
        for (index, base) in (0..count).zip(base) {
            changed.look_at(first + index, index, base);
        }
        Ok(Span { first, count, end: start + len, changed: changed.finish() })
    }

    /// Hashes of the blocks in the base; `None` for those that are zero there.
    fn base_hashes(&self, first: u64, count: u64) -> Result<Vec<Option<BlockHash>>, ReadError> {
        let known = self.base.blocks().saturating_sub(first).min(count);
        let mut hashes = Vec::with_capacity(count as usize);
        if let (Some(meta), true) = (&self.base.meta, known > 0) {
            let runs = self.base.txn.blocks(meta.file, BlockIndex::new(first), BlockCount::new(known))?;
            for run in runs {
                self.run_hashes(&run, &mut hashes)?;
            }
        }
        hashes.resize(count as usize, None);
        Ok(hashes)
    }

    fn run_hashes(&self, run: &BlockRun, hashes: &mut Vec<Option<BlockHash>>) -> Result<(), ReadError> {
        for index in 0..run.count {
            hashes.push(self.runtime.block_on(self.base.store.block_hash(run, index))?);
        }
        Ok(())
    }
}

/// Gathers the blocks of one span that differ.
struct ChangedBlocks {
    data: Bytes,
    block_bytes: usize,
    changed: Vec<Changed>,
    /// Full blocks that follow each other: first block, its index in the span, hashes.
    full: Option<(u64, usize, Vec<BlockHash>)>,
}

impl ChangedBlocks {
    fn new(data: Bytes, block_size: BlockSize) -> ChangedBlocks {
        ChangedBlocks { data, block_bytes: block_size.bytes() as usize, changed: Vec::new(), full: None }
    }

    /// `base`: hash of the block in the base, `None` if it is zero there.
    fn look_at(&mut self, block: u64, index: u64, base: Option<BlockHash>) {
        let from = index as usize * self.block_bytes;
        let raw = &self.data[from..self.data.len().min(from + self.block_bytes)];
        let used = used_len(raw);
        if used == 0 {
            self.end_full();
            match (base, self.changed.last_mut()) {
                (None, _) => {}
                (_, Some(Changed::Hole { first, count })) if *first + *count == block => *count += 1,
                _ => self.changed.push(Changed::Hole { first: block, count: 1 }),
            }
            return;
        }
        let hash = block_hash(&raw[..used]);
        if base == Some(hash) {
            return self.end_full();
        }
        if raw.len() == self.block_bytes && used > self.block_bytes / 2 {
            match &mut self.full {
                Some((_, _, hashes)) => hashes.push(hash),
                none => *none = Some((block, index as usize, vec![hash])),
            }
            return;
        }
        // A copy: a few bytes that wait for the end of their pack must not hold a whole span.
        let data = Bytes::copy_from_slice(&raw[..used]);
        self.end_full();
        self.changed.push(Changed::Partial { block, data, hash });
    }

    fn end_full(&mut self) {
        let Some((first, index, hashes)) = self.full.take() else { return };
        let from = index * self.block_bytes;
        let range = from..from + hashes.len() * self.block_bytes;
        // Most of a span is passed on as it is; a small part of it is copied, so that it does not hold the rest.
        let data = match range.len() * 2 >= self.data.len() {
            true => self.data.slice(range),
            false => Bytes::copy_from_slice(&self.data[range]),
        };
        self.changed.push(Changed::Full { first, data, hashes });
    }

    fn finish(mut self) -> Vec<Changed> {
        self.end_full();
        self.changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4096;

    fn changed(data: &[u8], base: &[Option<BlockHash>]) -> Vec<Changed> {
        let mut blocks = ChangedBlocks::new(Bytes::copy_from_slice(data), BlockSize::new(4096).unwrap());
        for (index, base) in (0..data.len().div_ceil(BLOCK) as u64).zip(base) {
            blocks.look_at(10 + index, index, *base);
        }
        blocks.finish()
    }

    #[test]
    fn unchanged_blocks_part_runs_of_changed_ones() {
        let data = [[1; BLOCK], [2; BLOCK], [3; BLOCK], [4; BLOCK]].concat();
        let hash = |byte| block_hash(&[byte; BLOCK]);
        let got = changed(&data, &[None, Some(hash(9)), Some(hash(3)), None]);
        let full = |first, bytes: &[u8], hashes| Changed::Full {
            first,
            data: Bytes::copy_from_slice(bytes),
            hashes,
        };
        let expected = [
            full(10, &data[..2 * BLOCK], vec![hash(1), hash(2)]),
            full(13, &data[3 * BLOCK..], vec![hash(4)]),
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn zero_blocks_are_holes_only_where_the_base_has_data() {
        let data = vec![0; 4 * BLOCK];
        let some = Some([7; 16]);
        let expected = [Changed::Hole { first: 10, count: 2 }, Changed::Hole { first: 13, count: 1 }];
        assert_eq!(changed(&data, &[some, some, None, some]), expected);
    }

    #[test]
    fn a_zero_tail_of_half_a_block_is_cut_and_a_smaller_one_is_not() {
        let mut data = vec![0; 2 * BLOCK + 10];
        data[BLOCK / 2 - 1] = 1;
        data[BLOCK + BLOCK / 2] = 1;
        data[2 * BLOCK] = 1;
        let got = changed(&data, &[None; 3]);
        assert!(matches!(&got[0], Changed::Partial { block: 10, data, .. } if data.len() == BLOCK / 2));
        assert!(matches!(&got[1], Changed::Full { first: 11, data, .. } if data.len() == BLOCK));
        assert!(matches!(&got[2], Changed::Partial { block: 12, data, .. } if data.len() == 1));
    }

    #[test]
    fn channels_keep_memory_bounded_at_every_block_size() {
        for log2 in 12..=24 {
            let span = SPAN_BYTES_MIN.max(1 << log2);
            for workers in [1, WORKERS] {
                let held = (channel_len(span, workers) as u64 + 1) * workers * span;
                assert!(held <= IN_FLIGHT_BYTES_MAX, "{log2} {workers} {held}");
            }
        }
    }
}
