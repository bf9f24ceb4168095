//! A storage that remembers which steps were synced, for the power-cut model.
//!
//! Each put is the steps that `object_store` takes on a local directory with fsync: write a staging file, fsync
//! it, link it to its name, fsync the directory; a multipart upload writes parts and renames.
//! `tests/kill.rs` watches the real program by strace and checks that it takes these very steps in this order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// One step towards the disk.
#[derive(Clone, Debug)]
pub enum Step {
    /// Bytes were written to a staging file, not synced.
    Write { file: u64, bytes: Vec<u8> },
    /// The file's bytes are on disk.
    SyncFile { file: u64 },
    /// The file got a name, not synced.
    Link { file: u64, name: Path },
    /// All names in the directory of `name` are on disk.
    SyncDir { name: Path },
    /// The program told its user that a commit stands.
    Acknowledge,
}

/// A storage in memory that writes a journal of steps.
#[derive(Debug)]
pub struct Journal {
    inner: Arc<InMemory>,
    steps: Arc<Mutex<Vec<Step>>>,
    files: Mutex<u64>,
    /// Leaves the sync of files out, to see that the test notices.
    pub forget_sync: bool,
}

impl Journal {
    pub fn new(forget_sync: bool) -> Arc<Journal> {
        Arc::new(Journal {
            inner: Arc::new(InMemory::new()),
            steps: Arc::default(),
            files: Mutex::new(0),
            forget_sync,
        })
    }

    pub fn acknowledge(&self) {
        self.steps.lock().unwrap().push(Step::Acknowledge);
    }

    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }

    fn file(&self) -> u64 {
        let mut files = self.files.lock().unwrap();
        *files += 1;
        *files
    }
}

/// What is left after the power failed behind `steps`; `survives` decides for each step that was not synced.
pub fn after_power_cut(steps: &[Step], mut survives: impl FnMut() -> bool) -> BTreeMap<Path, Vec<u8>> {
    let mut contents: BTreeMap<u64, (Vec<u8>, bool)> = BTreeMap::new();
    let mut names: Vec<(Path, u64, bool)> = Vec::new();
    for step in steps {
        match step {
            Step::Write { file, bytes } => {
                let entry = contents.entry(*file).or_default();
                entry.0.extend_from_slice(bytes);
                entry.1 = false;
            }
            Step::SyncFile { file } => contents.entry(*file).or_default().1 = true,
            Step::Link { file, name } => names.push((name.clone(), *file, false)),
            Step::SyncDir { name } => {
                let dir = |path: &Path| path.prefix_parts();
                for entry in names.iter_mut().filter(|(other, ..)| dir(other) == dir(name)) {
                    entry.2 = true;
                }
            }
            Step::Acknowledge => {}
        }
    }
    let mut left = BTreeMap::new();
    for (name, file, synced) in names {
        if !synced && !survives() {
            continue;
        }
        let (bytes, synced) = contents.get(&file).cloned().unwrap_or_default();
        let kept = if synced || survives() { bytes.len() } else { bytes.len() / 2 };
        left.insert(name, bytes[..kept].to_vec());
    }
    left
}

trait PrefixParts {
    fn prefix_parts(&self) -> Vec<String>;
}

impl PrefixParts for Path {
    fn prefix_parts(&self) -> Vec<String> {
        let mut parts: Vec<String> = self.parts().map(|part| part.as_ref().to_owned()).collect();
        parts.pop();
        parts
    }
}

impl std::fmt::Display for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "journal")
    }
}

#[derive(Debug)]
struct Upload {
    inner: Box<dyn MultipartUpload>,
    steps: Arc<Mutex<Vec<Step>>>,
    file: u64,
    name: Path,
    forget_sync: bool,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let bytes = data.iter().flat_map(|part| part.to_vec()).collect();
        self.steps.lock().unwrap().push(Step::Write { file: self.file, bytes });
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        let mut steps = self.steps.lock().unwrap();
        if !self.forget_sync {
            steps.push(Step::SyncFile { file: self.file });
        }
        steps.push(Step::Link { file: self.file, name: self.name.clone() });
        steps.push(Step::SyncDir { name: self.name.clone() });
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[async_trait]
impl ObjectStore for Journal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let file = self.file();
        let bytes: Vec<u8> = payload.iter().flat_map(|part| part.to_vec()).collect();
        {
            let mut steps = self.steps.lock().unwrap();
            steps.push(Step::Write { file, bytes });
            if !self.forget_sync {
                steps.push(Step::SyncFile { file });
            }
        }
        let result = self.inner.put_opts(location, payload, opts).await?;
        let mut steps = self.steps.lock().unwrap();
        steps.push(Step::Link { file, name: location.clone() });
        steps.push(Step::SyncDir { name: location.clone() });
        Ok(result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(Upload {
            inner,
            steps: Arc::clone(&self.steps),
            file: self.file(),
            name: location.clone(),
            forget_sync: self.forget_sync,
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A storage that holds these objects.
pub fn storage_of(objects: &BTreeMap<Path, Vec<u8>>) -> Arc<InMemory> {
    let storage = Arc::new(InMemory::new());
    for (name, bytes) in objects {
        pollster::block_on(storage.put(name, PutPayload::from(bytes.clone()))).unwrap();
    }
    storage
}
