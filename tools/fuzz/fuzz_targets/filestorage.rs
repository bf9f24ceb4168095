//! Feeds `filestorage` of `tests/fuzz/bodies.rs`.

#![no_main]

#[path = "../../../tests/fuzz/bodies.rs"]
#[allow(dead_code)] // one body of several
mod bodies;

use std::path::Path;
use std::sync::LazyLock;

use tempfile::TempDir;

/// In memory where that is possible: each input is a file.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    folder.expect("a folder for the database can be made")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::filestorage(FOLDER.path(), data));
