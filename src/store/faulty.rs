//! A storage that fails on purpose, for tests and measurements: it stands between a store and its real objects.
//!
//! Invariant: without a fault set it changes nothing. Faults enter where real ones do, through the trait of the
//! object storage, so that everything above is the code that users run.

use std::fmt::{Debug, Display, Formatter};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tracing_mutex::stdsync::Mutex;

/// Which faults happen; shared by a storage and the test that steers it.
#[derive(Debug, Default)]
pub struct Faults {
    /// Writes (puts, parts, completions) that still succeed; `u64::MAX`: all.
    writes_left: AtomicU64,
    /// Puts that succeed and then report a time-out.
    silent_successes: AtomicU64,
    /// Reads that fail from now on.
    failing_reads: AtomicU64,
    /// Added to each read. Leaf lock.
    read_delay: Mutex<Duration>,
    /// Writes seen so far.
    writes: AtomicU64,
}

impl Faults {
    /// None yet.
    pub fn none() -> Arc<Faults> {
        Arc::new(Faults { writes_left: AtomicU64::new(u64::MAX), ..Faults::default() })
    }

    /// Lets `writes` more writes succeed and fails all after them.
    pub fn stop_after(&self, writes: u64) {
        self.writes_left.store(writes, Ordering::SeqCst);
    }

    /// The next `puts` puts succeed, and report a time-out.
    pub fn time_out_after_success(&self, puts: u64) {
        self.silent_successes.store(puts, Ordering::SeqCst);
    }

    /// The next `reads` reads fail.
    pub fn fail_reads(&self, reads: u64) {
        self.failing_reads.store(reads, Ordering::SeqCst);
    }

    /// Adds `delay` to each read.
    pub fn delay_reads(&self, delay: Duration) {
        *self.read_delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }

    /// Writes seen so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    fn before_write(&self) -> Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let take = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
        match self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(injected("write refused")),
        }
    }

    async fn before_read(&self) -> Result<()> {
        let delay = *self.read_delay.lock().unwrap_or_else(PoisonError::into_inner);
        if !delay.is_zero() {
            match tokio::runtime::Handle::try_current() {
                Ok(_) => tokio::time::sleep(delay).await,
                Err(_) => crate::env::sleep(delay),
            }
        }
        match one_less(&self.failing_reads) {
            true => Err(injected("read refused")),
            false => Ok(()),
        }
    }
}

fn one_less(counter: &AtomicU64) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

fn injected(what: &'static str) -> Error {
    Error::Generic { store: "faulty", source: what.into() }
}

/// A storage with faults.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

impl FaultyStore {
    /// `inner` with `faults`.
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Arc<Faults>) -> FaultyStore {
        FaultyStore { inner, faults }
    }
}

impl Display for FaultyStore {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.inner)
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    faults: Arc<Faults>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        if let Err(error) = self.faults.before_write() {
            return Box::pin(async move { Err(error) });
        }
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.faults.before_write()?;
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.faults.before_write()?;
        let result = self.inner.put_opts(location, payload, opts).await?;
        if one_less(&self.faults.silent_successes) {
            return Err(injected("timed out"));
        }
        Ok(result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(FaultyUpload { inner, faults: Arc::clone(&self.faults) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.faults.before_read().await?;
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
        self.faults.before_write()?;
        self.inner.copy_opts(from, to, options).await
    }
}
