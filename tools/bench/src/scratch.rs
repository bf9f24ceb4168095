//! The folder of a run, and everything that must not outlive it.
//!
//! Invariant: only what lies in a folder that this process made is removed, and never while something is still
//! mounted below it. The same cleaning runs at the end, on failure and on ctrl-c. It never looks into a mount:
//! a dead one would hang it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Named, Result};
use crate::system;

/// Exit status after ctrl-c, as shells have it.
const INTERRUPTED: i32 = 130;
/// How often cleaning is tried: others may still be at it.
const TRIES_MAX: u32 = 20;

/// Folders of this process, with whether to leave their files. Leaf lock.
static LIVE: Mutex<Vec<(PathBuf, bool)>> = Mutex::new(Vec::new());
static STOPPING: AtomicBool = AtomicBool::new(false);

/// A folder that goes when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
}

impl Scratch {
    /// Makes a new folder in `dir`. `keep`: leave its files at the end; mounts go all the same.
    ///
    /// # Errors
    /// `dir` does not exist, or cannot be written.
    pub fn new(dir: &Path, keep: bool) -> Result<Scratch> {
        let dir = dir.canonicalize().named(dir.display())?;
        let mut number = 0;
        let root = loop {
            let root = dir.join(format!("revfs-bench-{}-{number}", std::process::id()));
            match std::fs::create_dir(&root) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                other => {
                    other.named(root.display())?;
                    break root;
                }
            }
        };
        LIVE.lock().unwrap_or_else(PoisonError::into_inner).push((root.clone(), keep));
        Ok(Scratch { root })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A new folder in it, which goes when the result is dropped.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub fn folder(&self, name: &str) -> Result<Folder> {
        let path = self.root.join(name);
        std::fs::create_dir(&path).named(path.display())?;
        let keep = LIVE
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|(root, keep)| *root == self.root && *keep);
        Ok(Folder { path, keep })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let live = || LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(keep) = live().iter().find(|(root, _)| *root == self.root).map(|(_, keep)| *keep) else {
            return;
        };
        // Known until it is gone: ctrl-c in between has to finish this.
        clean(&self.root, keep);
        live().retain(|(root, _)| *root != self.root);
    }
}

/// A folder of one group of rows.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// Path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        clean(&self.path, self.keep);
    }
}

/// Ends all mounts below `root`, then removes it.
fn clean(root: &Path, keep: bool) {
    for _ in 0..TRIES_MAX {
        for mount in mounts_below(root).iter().rev() {
            system::force_unmount(mount);
        }
        if mounts_below(root).is_empty() && (keep || remove(root)) {
            return;
        }
        revfs::env::sleep(Duration::from_millis(100));
    }
    eprintln!("bench: {} could not be removed: unmount what is below it, then remove it", root.display());
}

fn remove(root: &Path) -> bool {
    match std::fs::remove_dir_all(root) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        Ok(()) => true,
    }
}

/// Mounts below `root`; if that cannot be known, something that is not empty.
fn mounts_below(root: &Path) -> Vec<system::MountLine> {
    let mounts = system::mounts().unwrap_or_else(|_| {
        let (kind, source) = (String::new(), String::new());
        vec![system::MountLine { minor: 0, point: root.join("unknown"), kind, source }]
    });
    mounts.into_iter().filter(|mount| mount.point.starts_with(root)).collect()
}

/// Makes ctrl-c, SIGTERM and SIGHUP clean up and end the process.
pub fn clean_on_signals() {
    let set = ctrlc::set_handler(|| {
        STOPPING.store(true, Ordering::SeqCst);
        eprintln!("bench: interrupted, cleaning up");
        let live = std::mem::take(&mut *LIVE.lock().unwrap_or_else(PoisonError::into_inner));
        for (root, keep) in live {
            clean(&root, keep);
        }
        std::process::exit(INTERRUPTED);
    });
    if let Err(error) = set {
        eprintln!("bench: ctrl-c will leave files behind: {error}");
    }
}

/// Never returns after ctrl-c. Called before anything is started, so that nothing new begins, and before anything
/// is said of a failure: cleaning makes what is under way fail.
pub fn check_not_stopping() {
    while STOPPING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("other"), "x").unwrap();
        let scratch = Scratch::new(dir.path(), false).unwrap();
        let folder = scratch.folder("a").unwrap();
        std::fs::write(folder.join("file"), "x").unwrap();
        assert!(scratch.folder("a").is_err());
        let second = Scratch::new(dir.path(), false).unwrap();
        assert_ne!(scratch.root(), second.root());
        drop(folder);
        assert!(!scratch.root().join("a").exists() && scratch.root().exists());
        drop((scratch, second));
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn files_are_kept_if_told() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path(), true).unwrap();
        let folder = scratch.folder("a").unwrap();
        let file = folder.join("file");
        std::fs::write(&file, "x").unwrap();
        drop((folder, scratch));
        assert!(file.exists());
    }
}
