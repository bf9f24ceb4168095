//! Where messages of the library go: to stderr for commands; for a server to a file or stderr, and to a ring
//! that `.revfs/log` shows.
//!
//! Invariant: a logger never fails anybody; what cannot be written is dropped. The lock is a leaf, held for a
//! write to a file or terminal only.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::env::SystemClock;

use super::output;
use crate::ops::data::time_text;

/// Lines that `.revfs/log` shows.
const RECENT_LINES_MAX: usize = 1000;
/// Longest line that is kept, bytes.
const LINE_BYTES_MAX: usize = 4096;

/// Where lines of a server go.
struct Serving {
    file: Option<File>,
    stderr: bool,
    recent: VecDeque<String>,
}

static SERVING: Mutex<Option<Serving>> = Mutex::new(None);

/// Where the FUSE library tells that the kernel did not take a reply.
const REPLY_TARGET: &str = "fuser::reply";
/// ENOENT: who asked is gone, killed or interrupted, and nobody waits for the reply.
const REPLY_TO_NOBODY: &str = "(os error 2)";

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // The FUSE library tells of each mount, and warns of an unmount that somebody else did; the server says
        // both itself.
        let ours = record.target().starts_with("revfs");
        if !self.enabled(record.metadata()) || (!ours && record.level() > Level::Error) {
            return;
        }
        if record.target() == REPLY_TARGET && record.args().to_string().ends_with(REPLY_TO_NOBODY) {
            return;
        }
        let word = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            _ => "info",
        };
        let mut slot = SERVING.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.as_mut() {
            Some(serving) => serving.add(word, &record.args().to_string()),
            None => {
                drop(slot);
                output::say(&format!("{word}: {}", record.args()));
            }
        }
    }

    fn flush(&self) {}
}

impl Serving {
    fn add(&mut self, word: &str, text: &str) {
        let now = SystemClock::shared().now_unix_ns();
        let mut line = format!("{} {word}: {text}", time_text(now));
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        if self.stderr {
            output::say(&line);
        }
        if let Some(file) = &mut self.file {
            // Nobody is left to tell if the log itself cannot be written.
            let _dropped = writeln!(file, "{line}");
        }
        if self.recent.len() >= RECENT_LINES_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }
}

/// From now on warnings are seen. A second call changes nothing.
pub(super) fn install() {
    // Fails only if a logger is there already, as in tests.
    let _already_there = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Warn);
}

/// From now on messages are those of a server: appended to `file`, to stderr if wanted, and remembered.
pub(super) fn serve(file: Option<&Path>, stderr: bool) -> std::io::Result<()> {
    let file = file.map(|path| File::options().append(true).create(true).open(path)).transpose()?;
    let serving = Serving { stderr: stderr && file.is_none(), file, recent: VecDeque::new() };
    *SERVING.lock().unwrap_or_else(PoisonError::into_inner) = Some(serving);
    log::set_max_level(LevelFilter::Info);
    Ok(())
}

/// The last lines of a server.
pub(super) fn recent() -> Vec<u8> {
    let slot = SERVING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = String::new();
    for line in slot.iter().flat_map(|serving| &serving.recent) {
        text.push_str(line);
        text.push('\n');
    }
    text.into_bytes()
}
