//! Requests that look at the store, each answered by the thread that got it from the kernel, or, if the store may wait for a
//! network, by another.
//!
//! Invariant: no thread that serves the kernel waits for a network (rule 15), so acks, links, `head/at`, `.revfs/` and all that
//! asks no store is answered whatever a server of a database does. Who may wait is one of the runtime's threads for that, of
//! which there are so many that the ones that wait hold up few others; requests beyond them wait for a thread.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{
    Errno, FileHandle, INodeNo, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyLseek, ReplyXattr,
};

use super::face::read_errno;
use super::glue::{GENERATION, Glue, XATTR_FILE, XATTR_TID};
use super::inodes::{Key, ROOT_INO};
use super::tree::Tree;
use crate::server::{HeadReadError, ReadBytes, Stats};

/// What a request needs of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs<'r> {
    /// What a name in a directory means.
    Name(INodeNo, &'r OsStr),
    /// What an inode is, as it is a file.
    File(INodeNo),
    /// What is in a directory, or where a symlink leads.
    Content(INodeNo),
}

impl Glue {
    /// Whether a request may wait for a network.
    fn may_wait(&self, needs: Needs<'_>) -> bool {
        if !self.tree.server().store().is_remote() {
            return false;
        }
        let (Needs::Name(ino, _) | Needs::File(ino) | Needs::Content(ino)) = needs;
        let Ok(key) = self.tree.key(ino.0) else { return false };
        match needs {
            // What `@2026-01-01` means; other names of the root mean always the same.
            Needs::Name(_, name) if ino.0 == ROOT_INO => name.as_bytes().first() == Some(&b'@'),
            Needs::Name(..) => {
                matches!(key, Key::HeadDir(_) | Key::HeadById | Key::RevDir(..) | Key::RevById(_))
            }
            Needs::File(_) => matches!(key, Key::HeadFile(_) | Key::RevFile(..)),
            Needs::Content(_) => matches!(key, Key::HeadDir(_) | Key::RevDir(..) | Key::Link(_)),
        }
    }

    /// Does what a request asks for: here, or where it may wait.
    pub(super) fn run(&self, needs: Needs<'_>, request: impl FnOnce(&Glue) + Send + 'static) {
        if !self.may_wait(needs) {
            return request(self);
        }
        let glue = self.clone();
        // Nobody takes it if the runtime ends: then the reply answers EIO as it is dropped.
        drop(self.tree.server().runtime().spawn_blocking(move || request(&glue)));
    }

    pub(super) fn answer_lookup(&self, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree.lookup(parent.0, name.as_bytes()) {
            Ok(found) => {
                let attr = self.attr(found.ino, &found.stat);
                reply.entry_with_ttls(&found.stat.ttl, &found.entry_ttl, &attr, GENERATION);
            }
            Err(error) => reply.error(self.refuse("LOOKUP", parent, &error)),
        }
    }

    pub(super) fn answer_getattr(&self, ino: INodeNo, reply: ReplyAttr) {
        match self.tree.stat(ino.0) {
            Ok(stat) => reply.attr(&stat.ttl, &self.attr(ino.0, &stat)),
            Err(error) => reply.error(self.refuse("GETATTR", ino, &error)),
        }
    }

    pub(super) fn answer_readlink(&self, ino: INodeNo, reply: ReplyData) {
        match self.tree.link_target(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(self.refuse("READLINK", ino, &error)),
        }
    }

    /// Answers a READ of file data.
    pub(super) fn answer_data(
        &self,
        ino: INodeNo,
        (offset, len): (u64, usize),
        thread: u32,
        reply: ReplyData,
    ) {
        let (tree, server) = (Arc::clone(&self.tree), self.tree.server());
        let key = tree.key(ino.0);
        if let Ok(Key::HeadFile(file)) = key {
            let answer = move |result| answer_read(&tree, ino, result, reply);
            return server.read_head(file, (offset, len), thread, answer);
        }
        match tree.view(ino.0) {
            Ok(view) => {
                let rev = if let Ok(Key::RevFile(_, rev)) = key { rev } else { view.meta.rev };
                let answer = move |result| answer_read(&tree, ino, result, reply);
                server.read_rev((&view, rev), (offset, len), answer);
            }
            Err(error) => reply.error(self.refuse("READ", ino, &error)),
        }
    }

    pub(super) fn answer_readdir(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.read_dir(ino.0, fh, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.refuse("READDIR", ino, &error)),
        }
    }

    pub(super) fn answer_getxattr(&self, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.xattr(ino.0, name) {
            Ok(value) => answer_xattr(&value, size, reply),
            Err(error) => reply.error(self.refuse("GETXATTR", ino, &error)),
        }
    }

    pub(super) fn answer_listxattr(&self, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.attributed(ino.0) {
            Ok(Some(_)) => answer_xattr(format!("{XATTR_TID}\0{XATTR_FILE}\0").as_bytes(), size, reply),
            Ok(None) => answer_xattr(&[], size, reply),
            Err(error) => reply.error(self.refuse("LISTXATTR", ino, &error)),
        }
    }

    pub(super) fn answer_lseek(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        (offset, whence): (i64, i32),
        reply: ReplyLseek,
    ) {
        match self.seek(ino.0, fh, offset, whence) {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(error) => reply.error(self.refuse("LSEEK", ino, &error)),
        }
    }

    /// A name, if it has to outlive the request.
    pub(super) fn looked_up(&self, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if !self.may_wait(Needs::Name(parent, name)) {
            return self.answer_lookup(parent, name, reply);
        }
        let kept: OsString = name.to_owned();
        self.run(Needs::Name(parent, name), move |glue| glue.answer_lookup(parent, &kept, reply));
    }
}

/// Answers a READ of file data.
fn answer_read(tree: &Tree, ino: INodeNo, result: Result<ReadBytes, HeadReadError>, reply: ReplyData) {
    let server = tree.server();
    match result {
        Ok(bytes) => {
            Stats::add(&server.stats().read_bytes, bytes.len() as u64);
            reply.data(&bytes);
        }
        Err(HeadReadError::Read(error)) => {
            Stats::add(&server.stats().read_errors, 1);
            log::error!("READ of {:?} failed at head @{}: {error}", tree.key(ino.0), server.head());
            reply.error(read_errno(&error));
        }
        // Told in the log once for the process, not once a page.
        Err(HeadReadError::Barred) => reply.error(Errno::EIO),
    }
}

/// Answers a request for an extended attribute or the list of them.
fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
