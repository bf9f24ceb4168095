//! Compares what was imported with the source, by content.
//!
//! Invariant: a block of a state is what the source has if it was so in the commit before and is not touched, or if it was
//! compared. So each commit is compared where either side says that it changed something, and the newest state wholly.

use std::collections::BTreeMap;

use revfs_protocol::{FileId, Tid};

use super::blocks::{Pair, all};
use super::{ImportError, Importer, STEP_COMMITS, Touched};
use crate::ops::live_file;
use crate::store::{CommitInfo, Entry, FileMeta, ReadError, ReadTxn, Store};

impl Importer<'_> {
    /// Compares a file as of two states: of the source, and of the target.
    pub(super) async fn compare(
        &mut self,
        (at, stored): (&ReadTxn, &ReadTxn),
        touched: &Touched,
    ) -> Result<(), ImportError> {
        let (name, tid) = (touched.name.clone(), at.at());
        let differs = |what: String| Err(ImportError::Differs { name: name.clone(), tid, what });
        let failed = |error: ReadError| ImportError::Source { name: name.clone(), tid, error: error.into() };
        let is = live_file(at, touched.file).map_err(failed)?;
        let here = match stored.resolve(&touched.name)? {
            Some(Entry::File(file)) => live_file(stored, file)?,
            _ => None,
        };
        let (is, here) = match (is, here) {
            (None, None) => return Ok(()),
            (Some(is), Some(here)) => (is, here),
            (is, _) => {
                let there = if is.is_some() { "its absence" } else { "its presence" };
                return differs(there.to_owned());
            }
        };
        if (is.size, is.block_size) != (here.size, here.block_size) {
            return differs(format!("its size of {} bytes in blocks of {}", here.size, here.block_size));
        }
        match self.first_difference((at, &is), (stored, &here), touched).await? {
            Some(block) => differs(format!("block {block}")),
            None => Ok(()),
        }
    }

    async fn first_difference(
        &mut self,
        is: (&ReadTxn, &FileMeta),
        here: (&ReadTxn, &FileMeta),
        touched: &Touched,
    ) -> Result<Option<u64>, ImportError> {
        let mut pair = Pair::new(is, Some(here), touched.runs.clone());
        while let Some(span) = pair.next(&self.pool).await? {
            if let Some((block, _)) = span.differing(is.1.block_size.bytes()).next() {
                return Ok(Some(block));
            }
            self.passed += span.bytes();
            (self.progress)(self.passed);
        }
        Ok(None)
    }

    /// Compares all commits of the target, and the newest state wholly.
    pub(super) async fn verify_all(&mut self) -> Result<(), ImportError> {
        let (source, target) = (self.what.source, self.what.target.as_store());
        let (goal, head) = (self.imported.source_tid, target.head());
        let mut from = Tid::ZERO;
        self.imported.verified = 0;
        let oldest = self.what.oldest;
        if !oldest.is_zero() {
            // All that was before is gone; at this state all is compared.
            self.compare_wholly(oldest).await?;
            self.imported.not_verified = self.count_before(oldest)?;
            self.imported.verified = u64::from(target.newest_commit(oldest.min(head))? == oldest);
            from = oldest;
        }
        loop {
            let told = self.told(from, goal)?;
            let to = if told.len() < STEP_COMMITS { goal } else { told.last().map_or(goal, |last| last.tid) };
            let made = target.commits(from, head.min(to), usize::MAX)?;
            let mut by_tid: BTreeMap<Tid, BTreeMap<FileId, Touched>> = BTreeMap::new();
            self.gather(&told, &mut by_tid);
            self.gather_made(&made, &mut by_tid);
            for (tid, files) in by_tid {
                let (at, stored) = (ReadTxn::new(source, tid)?, ReadTxn::new(&target, tid.min(head))?);
                for touched in files.values() {
                    self.compare((&at, &stored), touched).await?;
                }
            }
            self.imported.verified += made.len() as u64;
            from = to;
            if to >= goal {
                break;
            }
        }
        self.compare_wholly(goal).await
    }

    fn gather(&self, told: &[CommitInfo], into: &mut BTreeMap<Tid, BTreeMap<FileId, Touched>>) {
        for commit in told {
            for touched in commit.files.iter().filter_map(|change| Touched::of(self.what.chosen, change)) {
                into.entry(commit.tid).or_default().insert(touched.file, touched);
            }
        }
    }

    /// What the target's own records say.
    fn gather_made(&self, made: &[CommitInfo], into: &mut BTreeMap<Tid, BTreeMap<FileId, Touched>>) {
        for commit in made {
            for change in &commit.files {
                let Some(file) = self.what.chosen.file(&change.path) else { continue };
                let change = crate::store::FileChange { file, ..change.clone() };
                let Some(touched) = Touched::of(self.what.chosen, &change) else { continue };
                let known = into.entry(commit.tid).or_default();
                match known.get_mut(&file) {
                    Some(known) => known.runs.extend(touched.runs),
                    None => drop(known.insert(file, touched)),
                }
            }
        }
    }

    /// Commits of the target that come before a state.
    fn count_before(&self, oldest: Tid) -> Result<u64, ImportError> {
        let hi = Tid::from_raw(oldest.raw().saturating_sub(1)).min(self.what.target.head());
        let (mut from, mut count) = (Tid::ZERO, 0);
        loop {
            let commits = self.what.target.commits(from, hi, STEP_COMMITS)?;
            count += commits.len() as u64;
            match commits.last() {
                Some(last) if commits.len() == STEP_COMMITS => from = last.tid,
                _ => return Ok(count),
            }
        }
    }

    async fn compare_wholly(&mut self, tid: Tid) -> Result<(), ImportError> {
        let target = self.what.target.as_store();
        let (at, stored) =
            (ReadTxn::new(self.what.source, tid)?, ReadTxn::new(&target, tid.min(target.head()))?);
        for file in self.names_at(&at, &stored)? {
            let Some(name) = self.what.chosen.name(file) else { continue };
            self.compare((&at, &stored), &Touched { file, name, runs: all() }).await?;
        }
        Ok(())
    }
}
