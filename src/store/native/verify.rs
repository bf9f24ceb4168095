//! Checks a whole store: every record, every reference, every checksum; and lists what nothing refers to.
//!
//! Invariant: reads the log and the packs only, never the index, so that a wrong index cannot hide damage.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use revfs_protocol::{FileId, Tid};

use super::NativeStore;
use super::format::{pack_object, record_seq};
use super::index::PackInfo;
use super::log::{self, LogEnd, Next};
use super::record::{CommitRecord, PackRef};
use crate::store::{Finding, PackNo, ReadError};

/// What to check.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Records and references only, no block bytes.
    pub quick: bool,
    /// Per cent of the packs whose bytes are read, 0 to 100.
    pub sample_percent: f64,
}

/// What was checked and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Records that were checked.
    pub records: u64,
    /// Packs that were checked.
    pub packs: u64,
    /// Block bytes that were read and checked.
    pub bytes: u64,
    /// Newest tid of the log.
    pub head: Tid,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// Whether any data is damaged.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.damage)
    }

    fn damage(&mut self, object: impl Into<String>, what: impl Into<String>) {
        self.findings.push(Finding { object: object.into(), what: what.into(), damage: true });
    }
}

impl NativeStore {
    /// Checks the store. `progress` is told of bytes checked and of the bytes there are.
    ///
    /// # Errors
    /// The storage cannot be listed; damage is no error but a finding.
    pub async fn verify(
        &self,
        options: &VerifyOptions,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<VerifyReport, ReadError> {
        let mut report = VerifyReport::default();
        let mut seen = Seen::default();
        self.verify_log(&mut report, &mut seen).await?;
        let total: u64 = seen.packs.iter().map(|info| info.pack.data_len).sum();
        let find = |pack: PackNo| {
            seen.packs
                .get(pack.0 as usize)
                .cloned()
                .ok_or_else(|| ReadError::Missing { object: format!("pack number {}", pack.0) })
        };
        // A reader of its own: pack numbers here are not those of the index.
        let reader = super::Reader::new(self.objects.clone(), 0);
        let mut passed = 0;
        // The first pack is always among them, however small the sample.
        let mut sampled =
            if options.sample_percent > 0.0 { 1.0 - options.sample_percent / 100.0 } else { 0.0 };
        for number in 0..seen.packs.len() {
            // Evenly spread, so that a small sample still sees old and new packs.
            sampled += options.sample_percent / 100.0;
            let read_all = !options.quick && sampled >= 1.0 - 1e-9;
            sampled -= if sampled >= 1.0 - 1e-9 { 1.0 } else { 0.0 };
            match reader.check_pack(PackNo(number as u32), !read_all, &find).await {
                Ok(bytes) => report.bytes += if read_all { bytes } else { 0 },
                Err(error) => {
                    let object = object_name(&seen.packs[number]);
                    report.damage(object, error.to_string());
                }
            }
            report.packs += 1;
            passed += seen.packs[number].pack.data_len;
            progress(passed, total);
        }
        self.verify_leftovers(&mut report, &seen).await?;
        Ok(report)
    }

    async fn verify_log(&self, report: &mut VerifyReport, seen: &mut Seen) -> Result<(), ReadError> {
        let seqs = self.objects.record_seqs().await?;
        if let Some(gap) = log::first_gap(&self.objects, &seqs).await? {
            report.damage(format!("commits/{gap:020}"), "it is missing, and later ones exist");
        }
        let mut end = LogEnd { seq: 0, hash: [0; 32], tid: Tid::ZERO };
        loop {
            match log::read_next(&self.objects, &end).await? {
                Next::Absent => break,
                Next::Broken(broken) => {
                    report.damage(format!("commits/{:020}", broken.seq), broken.what);
                    break;
                }
                Next::Entry(entry) => {
                    end = super::end_of(&entry);
                    seen.add(&entry.record, entry.inline_at, report);
                    report.records += 1;
                }
            }
        }
        report.head = end.tid;
        Ok(())
    }

    /// Lists packs that no record refers to, and staging files of writers that died.
    async fn verify_leftovers(&self, report: &mut VerifyReport, seen: &Seen) -> Result<(), ReadError> {
        let known: HashSet<String> = seen
            .packs
            .iter()
            .filter_map(|info| info.pack.uuid)
            .map(|uuid| pack_object(uuid).to_string())
            .collect();
        for (name, size) in self.left_in("packs").await? {
            if !known.contains(&name) {
                let what = format!(
                    "no commit refers to it ({size} bytes): a commit that did not end, or one on its way"
                );
                report.findings.push(Finding { object: name, what, damage: false });
            }
        }
        for (name, size) in self.left_in("commits").await? {
            if name.rsplit('/').next().and_then(record_seq).is_none() {
                let what = format!(
                    "it is no commit record ({size} bytes): a commit that did not end, or one on its way"
                );
                report.findings.push(Finding { object: name, what, damage: false });
            }
        }
        Ok(())
    }

    /// Names and sizes of all that lies below a folder of the store.
    async fn left_in(&self, folder: &str) -> Result<Vec<(String, u64)>, ReadError> {
        match self.objects.local_root() {
            // `object_store` lists no staging files of a directory.
            Some(root) => {
                let mut files = Vec::new();
                add_files(&root.join(folder), folder, &mut files)?;
                Ok(files)
            }
            None => {
                let objects = self.objects.list(folder).await?.into_iter();
                Ok(objects.map(|(object, size)| (object.to_string(), size)).collect())
            }
        }
    }
}

/// Adds all files below a directory, which `name` names in the store.
fn add_files(dir: &Path, name: &str, files: &mut Vec<(String, u64)>) -> Result<(), ReadError> {
    let mut folders = vec![(dir.to_owned(), name.to_owned())];
    while let Some((dir, name)) = folders.pop() {
        let io = |source| ReadError::Io { object: name.clone(), source };
        for entry in std::fs::read_dir(&dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            match entry.metadata() {
                Ok(found) if found.is_dir() => folders.push((entry.path(), name)),
                Ok(found) => files.push((name, found.len())),
                // Gone since it was listed: a writer tidies its staging files.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(io(error)),
            }
        }
    }
    Ok(())
}

fn object_name(info: &PackInfo) -> String {
    match info.pack.uuid {
        Some(uuid) => pack_object(uuid).to_string(),
        None => format!("commits/{:020}", info.seq),
    }
}

/// What the log has said so far.
#[derive(Default)]
struct Seen {
    packs: Vec<PackInfo>,
    uuids: HashMap<uuid::Uuid, u64>,
    files: BTreeMap<FileId, FileState>,
    names: HashMap<Vec<u8>, FileId>,
}

struct FileState {
    size: u64,
    path: Vec<u8>,
}

impl Seen {
    fn add(&mut self, record: &CommitRecord, inline_at: u64, report: &mut VerifyReport) {
        let object = format!("commits/{:020}", record.seq);
        for pack in &record.packs {
            self.add_pack(record.seq, pack, inline_at, report);
        }
        for file in &record.files {
            let change = &file.change;
            let known = self.files.get(&change.file);
            if change.created == known.is_some() {
                report.damage(
                    &object,
                    format!("file {} is created twice, or changed before it exists", change.file),
                );
                continue;
            }
            if known.map_or(0, |known| known.size) != change.old_size {
                report.damage(
                    &object,
                    format!("the size of file {} before the commit is not what it was", change.file),
                );
            }
            if let Some(from) = change.renamed_from.as_ref().or(change.deleted.then_some(&change.path))
                && known.is_none_or(|known| &known.path != from)
            {
                report.damage(&object, format!("file {} did not have the name that it loses", change.file));
            }
            if let Some(known) = known
                && self.names.get(&known.path) == Some(&change.file)
                && (change.deleted || change.renamed_from.is_some())
            {
                self.names.remove(&known.path);
            }
        }
        for change in record.files.iter().map(|file| &file.change) {
            if change.deleted {
                self.files.remove(&change.file);
                continue;
            }
            if let Some(other) = self.names.insert(change.path.clone(), change.file)
                && other != change.file
            {
                report.damage(&object, format!("files {other} and {} have one name", change.file));
            }
            self.files.insert(change.file, FileState { size: change.size, path: change.path.clone() });
        }
    }

    fn add_pack(&mut self, seq: u64, pack: &PackRef, inline_at: u64, report: &mut VerifyReport) {
        if let Some(uuid) = pack.uuid
            && let Some(other) = self.uuids.insert(uuid, seq)
        {
            report.damage(format!("commits/{seq:020}"), format!("its pack {uuid} is that of commit {other}"));
        }
        let base = if pack.uuid.is_none() { inline_at } else { 0 };
        self.packs.push(PackInfo { seq, base, pack: pack.clone() });
    }
}
