//! Walks the runs of blocks of a file in bounded memory, however many there are.
//!
//! Invariant: runs come ascending and without gaps, and cover exactly the range that was asked for.

use revfs_protocol::{BlockCount, BlockIndex, FileId};

use crate::store::{BlockRun, ReadError, ReadTxn};

/// Blocks asked for at once, to begin with.
const WINDOW_BLOCKS: u64 = 1 << 14;
/// Blocks asked for at once where a file is almost all holes.
const WINDOW_BLOCKS_MAX: u64 = 1 << 20;
/// A window with more runs than this is not followed by a larger one.
const WINDOW_RUNS: usize = 1 << 10;

/// Runs of a range of blocks, window by window.
pub(super) struct RunWindows<'a> {
    txn: &'a ReadTxn,
    file: FileId,
    next: u64,
    end: u64,
    window: u64,
}

impl<'a> RunWindows<'a> {
    /// Runs of blocks `[first, end)`.
    pub(super) fn new(txn: &'a ReadTxn, file: FileId, first: u64, end: u64) -> RunWindows<'a> {
        RunWindows { txn, file, next: first, end, window: WINDOW_BLOCKS }
    }
}

impl Iterator for RunWindows<'_> {
    type Item = Result<Vec<BlockRun>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let count = self.end.saturating_sub(self.next).min(self.window);
        if count == 0 {
            return None;
        }
        let runs = match self.txn.blocks(self.file, BlockIndex::new(self.next), BlockCount::new(count)) {
            Ok(runs) => runs,
            Err(error) => {
                self.next = self.end;
                return Some(Err(error));
            }
        };
        self.next += count;
        self.window = match runs.len() {
            few if few <= WINDOW_RUNS => (self.window * 2).min(WINDOW_BLOCKS_MAX),
            _ => WINDOW_BLOCKS,
        };
        Some(Ok(runs))
    }
}
