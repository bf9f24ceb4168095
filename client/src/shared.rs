//! What a connection and its pinner threads share.
//!
//! Invariant: a file is in the table before its watch is asked for, and leaves it only after the server has answered
//! that it is not watched any more; so a pin of an old watch never reaches the file that is opened after it.

use crate::error::{ClientError, DownCause};
use crate::file::FileHandle;
use crate::gate::Gate;
use crate::link::{Link, Sent};
use crate::mount_dir::MountDir;
use crate::open_file::OpenFile;
use revfs_protocol::{ClientRequest, FileId};
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tracing_mutex::stdsync::{Condvar, Mutex, MutexGuard};

/// Locks, also what a thread that panicked held: no invariant of ours spans two steps of what may panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file in the table.
#[derive(Debug)]
enum Entry {
    /// Watched, or about to be.
    Open(Arc<OpenFile>, Weak<FileHandle>),
    /// The reply on this stream says that it is not watched any more.
    Closing(u64),
}

/// The inside of a connection.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) mount: MountDir,
    pub(crate) link: Link,
    pub(crate) gate: Gate,
    files: Mutex<HashMap<FileId, Entry>>, // leaf; pinner threads take it
    files_changed: Condvar,
    stuck: Mutex<Option<(FileId, Errno)>>, // leaf: a file whose mappings could not be taken away
    ended: Mutex<bool>,                    // leaf: whether the reader of the link has ended
    ended_changed: Condvar,
}

impl Shared {
    pub(crate) fn new(mount: MountDir, link: Link) -> Shared {
        Shared {
            mount,
            link,
            gate: Gate::default(),
            files: Mutex::default(),
            files_changed: Condvar::new(),
            stuck: Mutex::default(),
            ended: Mutex::new(false),
            ended_changed: Condvar::new(),
        }
    }

    /// Sends a request. A link that cannot be written is down.
    pub(crate) fn request(&self, request: ClientRequest) -> Result<Sent, ClientError> {
        self.link.request(request).map_err(|error| match error {
            ClientError::Down(cause) => {
                self.fail(cause.clone());
                // The first cause is the one that all calls tell.
                self.link.check().err().unwrap_or(ClientError::Down(cause))
            }
            other => other,
        })
    }

    /// The file that pins are for; none if it is not watched any more.
    pub(crate) fn watched(&self, file: FileId) -> Option<Arc<OpenFile>> {
        match lock(&self.files).get(&file) {
            Some(Entry::Open(open, _)) => Some(Arc::clone(open)),
            Some(Entry::Closing(_)) | None => None,
        }
    }

    /// The handle of a file that is open; or none, and then there is no entry.
    pub(crate) fn handle_of(&self, file: FileId) -> Result<Option<Arc<FileHandle>>, ClientError> {
        let mut files = lock(&self.files);
        loop {
            self.link.check()?;
            match files.get(&file) {
                None => return Ok(None),
                Some(Entry::Open(_, handle)) => {
                    if let Some(handle) = handle.upgrade() {
                        return Ok(Some(handle));
                    }
                }
                Some(Entry::Closing(_)) => {}
            }
            // Its last handle is being dropped, or the server has still to answer.
            files = self.files_changed.wait(files).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts a file into the table.
    pub(crate) fn insert(&self, open: Arc<OpenFile>, handle: Weak<FileHandle>) {
        lock(&self.files).insert(open.id, Entry::Open(open, handle));
    }

    /// All files that are watched.
    pub(crate) fn all_watched(&self) -> Vec<Arc<OpenFile>> {
        let files = lock(&self.files);
        let open = files.values().filter_map(|entry| match entry {
            Entry::Open(open, _) => Some(Arc::clone(open)),
            Entry::Closing(_) => None,
        });
        open.collect()
    }

    /// Ends the watch on a file, once. Its mappings fault already, or there are none. Does not wait for the reply.
    pub(crate) fn unwatch(&self, open: &OpenFile) {
        let mut closed = lock(&open.asking);
        if std::mem::replace(&mut *closed, true) || self.link.check().is_err() {
            return;
        }
        let stream = self.link.new_stream();
        // In the table before it is sent: the reply may be faster than we are.
        lock(&self.files).insert(open.id, Entry::Closing(stream));
        self.files_changed.notify_all();
        if let Err(ClientError::Down(cause)) =
            self.link.send(&ClientRequest::Unwatch { file: open.id }.to_frame(stream))
        {
            self.fail(cause);
        }
    }

    /// Whether a reply on `stream` ends the closing of a file.
    pub(crate) fn closed_by(&self, stream: u64) -> bool {
        let mut files = lock(&self.files);
        let closing = |entry: &Entry| matches!(entry, Entry::Closing(expected) if *expected == stream);
        let Some(file) = files.iter().find(|(_, entry)| closing(entry)).map(|(file, _)| *file) else {
            return false;
        };
        files.remove(&file);
        self.files_changed.notify_all();
        true
    }

    /// Takes the connection down; all mappings fault. Whether it was up.
    pub(crate) fn fail(&self, cause: DownCause) -> bool {
        let was_up = self.link.take_down(cause.clone());
        if was_up {
            for open in self.all_watched() {
                // Not logged here: this may be a pinner thread.
                if let Err(errno) = open.lose(ClientError::Down(cause.clone())) {
                    *lock(&self.stuck) = Some((open.id, errno));
                }
            }
            // Those who wait for an entry look at the link again.
            drop(lock(&self.files));
            self.files_changed.notify_all();
        }
        was_up
    }

    /// A file whose mappings still show something although the connection is down.
    pub(crate) fn stuck(&self) -> Option<(FileId, Errno)> {
        *lock(&self.stuck)
    }

    /// The reader of the link says that it has ended.
    pub(crate) fn set_ended(&self) {
        *lock(&self.ended) = true;
        self.ended_changed.notify_all();
    }

    /// Waits until the reader of the link has ended; whether it did.
    pub(crate) fn wait_ended(&self, limit: Duration) -> bool {
        let waited = self.ended_changed.wait_timeout_while(lock(&self.ended), limit, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
