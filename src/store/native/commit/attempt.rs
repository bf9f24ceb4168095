//! The commit protocol: number, record, create, read back, rebase.

use std::cmp::Ordering;
use std::time::Duration;

use object_store::PutPayload;
use revfs_protocol::{FileId, Tid};

use super::super::conflict::{self, Found};
use super::super::format::record_object;
use super::super::log::{self, Broken, LogEnd};
use super::super::record::{CommitRecord, PackRef, RECORD_BYTES_MAX, RecordFile, merge_runs};
use super::errors::classify;
use super::{CommitError, CommitWarning, Committed, ConflictKind, TRANSACTION_AGE_MAX, Transaction};
use crate::env;
use crate::store::{Entry, FileChange, ReadTxn, Store, TagChange};

/// How often an unclear outcome is looked at again.
const UNCLEAR_TRIES_MAX: u32 = 5;
/// First wait between looks; doubled each time.
const UNCLEAR_WAIT: Duration = Duration::from_millis(20);
/// Longest jittered wait after a lost race.
const LOST_RACE_WAIT_MAX_US: u64 = 20_000;
/// Head this much ahead of the clock gets a warning, ns.
const CLOCK_AHEAD_WARN_NS: u64 = 60_000_000_000;

/// A commit of another store that a transaction copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOf {
    /// The tid that it has there and shall have here.
    pub tid: Tid,
    /// Identity of the copy: whoever makes the same copy gives it the same.
    pub uuid: uuid::Uuid,
}

/// What became of one create.
enum Outcome {
    Ours,
    Lost,
    Again,
}

impl Transaction {
    /// The commit gets this tid and identity, and the time of that tid, instead of new ones. It stands on its base alone: if
    /// anybody commits in between, or the tid does not come after the base, nothing is committed.
    pub fn set_copy_of(&mut self, origin: CopyOf) {
        self.copy_of = Some(origin);
    }

    /// Commits. Disjoint commits of others that came first are rebased on, however many.
    ///
    /// # Errors
    /// See [`CommitError`]; only [`CommitError::Unknown`] leaves open whether it stands.
    pub async fn commit(mut self) -> Result<Committed, CommitError> {
        let mut sent = false;
        let result = self.try_commit(&mut sent).await;
        if result.is_err() && !sent {
            self.sink.abandon().await;
        }
        result
    }

    /// Gives up: nothing is committed, and packs that were written are removed.
    pub async fn abandon(mut self) {
        self.sink.abandon().await;
    }

    async fn try_commit(&mut self, sent: &mut bool) -> Result<Committed, CommitError> {
        self.write_staged().await?;
        for edit in self.files.values_mut() {
            edit.extents.cut(edit.block_size.blocks_for(edit.size).raw(), u64::MAX);
        }
        let touched = self.files.values().any(super::FileEdit::touched) || !self.tags.is_empty();
        if !touched && !self.allow_empty {
            self.sink.abandon().await;
            return Ok(Committed { tid: self.base.at(), seq: 0, empty: true, warnings: Vec::new() });
        }
        let (packs, inline) = self.sink.finish().await?;
        self.settle();
        let commit_uuid = self.copy_of.map_or_else(env::random_uuid, |origin| origin.uuid);
        let mut checked = self.base.at();
        let mut lost_races = 0u32;
        loop {
            let head = self.store.refresh_async(false).await?;
            if let Some(broken) = self.store.broken() {
                return Err(broken.into());
            }
            if self.store.clock.monotonic().saturating_sub(self.started) > TRANSACTION_AGE_MAX {
                return Err(CommitError::TooOld);
            }
            self.check_copy(head)?;
            self.check_winners(checked, head)?;
            checked = head;
            let end = self.store.applied()?;
            match end.tid.cmp(&head) {
                Ordering::Equal => {}
                Ordering::Greater => continue, // another process applied more in between
                // Else this would look for the head for ever.
                Ordering::Less => return Err(Broken::removed(end.seq + 1).into()),
            }
            let (record, warnings) = self.record(&end, commit_uuid, &packs)?;
            let bytes = record.encode(&inline);
            if bytes.len() as u64 > RECORD_BYTES_MAX {
                let (len, max) = (bytes.len() as u64, RECORD_BYTES_MAX);
                return Err(CommitError::RecordTooLarge { len, max });
            }
            // What a reader would refuse is never published: it would be damage for everybody.
            if let Err(what) = log::check(&bytes, &end) {
                return Err(CommitError::Unreadable { what });
            }
            match self.create_record(&end, &record, bytes, sent).await? {
                Outcome::Ours => return Ok(self.finished(&record, warnings).await),
                Outcome::Lost => {
                    lost_races += 1;
                    let most = LOST_RACE_WAIT_MAX_US.min(200 << lost_races.min(10));
                    env::sleep(Duration::from_micros(env::random_u64() % most));
                }
                Outcome::Again => {}
            }
        }
    }

    /// Whether a copy can follow `head`.
    fn check_copy(&self, head: Tid) -> Result<(), CommitError> {
        let base = self.base.at();
        match self.copy_of {
            Some(CopyOf { tid, .. }) if head != base || tid <= head => {
                Err(CommitError::CopyTooLate { tid, base, head })
            }
            _ => Ok(()),
        }
    }

    async fn finished(&mut self, record: &CommitRecord, mut warnings: Vec<CommitWarning>) -> Committed {
        if let Err(error) = self.store.refresh_async(false).await {
            warnings.push(CommitWarning::Index { what: error.to_string() });
        }
        Committed { tid: record.tid, seq: record.seq, empty: false, warnings }
    }

    /// Commits in (lo, hi] against this one, then names against the new head.
    fn check_winners(&self, lo: Tid, hi: Tid) -> Result<(), CommitError> {
        const STEP: usize = 256;
        if lo == hi {
            return Ok(());
        }
        let ours = self.write_set();
        let mut from = lo;
        loop {
            let winners = self.store.commits(from, hi, STEP)?;
            for winner in &winners {
                if let Some(found) = conflict::check(&ours, winner) {
                    return Err(conflict_error(found));
                }
                from = winner.tid;
            }
            if winners.len() < STEP {
                break;
            }
        }
        let head = ReadTxn::new(self.base.store(), hi)?;
        for (path, file) in self.names.given() {
            if !self.is_free_for(&head, path, file)? {
                let (kind, file) = (ConflictKind::Name, FileId::from_raw(0));
                return Err(CommitError::Conflict {
                    path: path.to_vec(),
                    file,
                    blocks: Vec::new(),
                    tid: hi,
                    kind,
                });
            }
        }
        Ok(())
    }

    /// Whether a name given to `file` is still free for it in a later state: nothing has it, nor is a file on
    /// the way to it, but what this transaction takes away.
    fn is_free_for(&self, head: &ReadTxn, path: &[u8], file: FileId) -> Result<bool, CommitError> {
        let leaves = |other: FileId| {
            other == file || self.files.get(&other).is_some_and(|edit| edit.deleted || edit.renamed())
        };
        let ways =
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(index, _)| &path[..index]);
        for way in ways {
            if let Some(Entry::File(other)) = head.resolve(way)?
                && !leaves(other)
            {
                return Ok(false);
            }
        }
        Ok(match head.resolve(path)? {
            None => true,
            Some(Entry::File(other)) => leaves(other),
            Some(Entry::Dir(dir)) => head.walk(dir)?.into_iter().all(|(_, other)| leaves(other)),
        })
    }

    fn record(
        &self,
        end: &LogEnd,
        commit_uuid: uuid::Uuid,
        packs: &[PackRef],
    ) -> Result<(CommitRecord, Vec<CommitWarning>), CommitError> {
        let (tid, now, warnings) = self.tid_and_time(end)?;
        let head = ReadTxn::new(self.base.store(), end.tid)?;
        let mut files = Vec::new();
        for (file, edit) in self.files.iter().filter(|(_, edit)| edit.touched()) {
            files.push(self.record_file(&head, *file, edit)?);
        }
        // By name, for people read it; identities are random.
        files.sort_by(|one, two| one.change.path.cmp(&two.change.path));
        let tags = self
            .tags
            .iter()
            .map(|(name, target)| {
                let target = target.map(|target| if target == Tid::MAX { tid } else { target });
                TagChange { name: name.clone(), target }
            })
            .collect();
        let record = CommitRecord {
            seq: end.seq + 1,
            tid,
            base: self.base.at(),
            commit_uuid,
            previous: end.hash,
            time_unix_ns: now,
            author: self.author.clone(),
            message: self.message.clone(),
            packs: packs.to_vec(),
            files,
            tags,
        };
        Ok((record, warnings))
    }

    /// The tid of the next record, its time, and what is to be said of them.
    fn tid_and_time(&self, end: &LogEnd) -> Result<(Tid, u64, Vec<CommitWarning>), CommitError> {
        if let Some(CopyOf { tid, .. }) = self.copy_of {
            return Ok((tid, tid.to_unix_ns(), Vec::new()));
        }
        let now = self.store.clock.now_unix_ns();
        let clock = Tid::from_unix_ns(now);
        let next = end.tid.next().ok_or(CommitError::FileTooLarge { size: u64::MAX })?;
        let mut warnings = Vec::new();
        let ahead = end.tid.to_unix_ns().saturating_sub(now);
        if ahead > CLOCK_AHEAD_WARN_NS {
            warnings.push(CommitWarning::ClockBehind { ahead_s: ahead / 1_000_000_000 });
        }
        Ok((clock.max(next), now, warnings))
    }

    fn record_file(
        &self,
        head: &ReadTxn,
        file: FileId,
        edit: &super::FileEdit,
    ) -> Result<RecordFile, CommitError> {
        // Others may have changed the size if this commit did not: then theirs stands.
        let old_size = if edit.base.is_some() { head.file(file)?.map_or(0, |meta| meta.size) } else { 0 };
        let size = if edit.size == edit.base_size() && edit.base.is_some() { old_size } else { edit.size };
        let unsettled = || crate::store::ReadError::Missing { object: "a block of this commit".to_owned() };
        let extents = if edit.deleted { Vec::new() } else { edit.extents.extents().ok_or_else(unsettled)? };
        let change = FileChange {
            file,
            path: if edit.deleted { edit.base_path.clone() } else { edit.path.clone() },
            replaced: false,
            renamed_from: (edit.renamed() && !edit.deleted).then(|| edit.base_path.clone()),
            created: edit.base.is_none(),
            deleted: edit.deleted,
            old_size,
            size,
            block_size: edit.block_size,
            blocks: merge_runs(&extents),
        };
        Ok(RecordFile { change, extents })
    }

    async fn create_record(
        &mut self,
        end: &LogEnd,
        record: &CommitRecord,
        bytes: Vec<u8>,
        sent: &mut bool,
    ) -> Result<Outcome, CommitError> {
        let object = record_object(record.seq);
        *sent = true;
        let payload = PutPayload::from(bytes);
        let Err(source) = self.store.objects.create(&object, payload).await else {
            return Ok(Outcome::Ours);
        };
        // Whatever it says: the record may be there, ours or another's.
        let mut wait = UNCLEAR_WAIT;
        for _ in 0..UNCLEAR_TRIES_MAX {
            match self.store.objects.get(&object, RECORD_BYTES_MAX).await {
                Ok(Some(found)) => {
                    if let Ok(entry) = log::check(&found, end) {
                        let ours = entry.record.commit_uuid == record.commit_uuid;
                        if ours && !self.make_durable() {
                            return Err(CommitError::Unknown { commit_uuid: record.commit_uuid, source });
                        }
                        return Ok(if ours { Outcome::Ours } else { Outcome::Lost });
                    }
                }
                Ok(None) if self.store.objects.local_root().is_some() => {
                    // A directory does not change its mind: it is not there, and will not come.
                    *sent = false;
                    return Err(classify(object.as_ref(), source));
                }
                Ok(None) => return self.retry_or_unknown(&source, record),
                Err(_) => {}
            }
            env::sleep(wait);
            wait *= 2;
        }
        Err(CommitError::Unknown { commit_uuid: record.commit_uuid, source })
    }

    /// An absent record after an error: the same number is tried again, for a while.
    fn retry_or_unknown(
        &mut self,
        source: &object_store::Error,
        record: &CommitRecord,
    ) -> Result<Outcome, CommitError> {
        let elapsed = self.store.clock.monotonic().saturating_sub(self.started);
        let tries = self.retries;
        self.retries += 1;
        if tries < UNCLEAR_TRIES_MAX && elapsed < TRANSACTION_AGE_MAX {
            env::sleep(UNCLEAR_WAIT * (1 << tries));
            return Ok(Outcome::Again);
        }
        let source = object_store::Error::Generic { store: "store", source: source.to_string().into() };
        Err(CommitError::Unknown { commit_uuid: record.commit_uuid, source })
    }

    /// After a create that linked and then failed to sync: syncs the directory again.
    fn make_durable(&self) -> bool {
        match self.store.objects.local_root() {
            Some(root) => std::fs::File::open(root.join("commits")).and_then(|dir| dir.sync_all()).is_ok(),
            None => true,
        }
    }
}

fn conflict_error(found: Found) -> CommitError {
    let Found { kind, path, file, blocks, tid } = found;
    CommitError::Conflict { path, file, blocks, tid, kind }
}
