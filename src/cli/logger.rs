//! Where messages of the library go: to stderr for commands; for a server to a file or stderr, and to a ring
//! that `.revfs/log` shows.
//!
//! Invariant: a logger never fails anybody; what cannot be written is dropped. The lock is a leaf, held for a
//! write to a file or terminal only.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::PoisonError;

use log::{Level, LevelFilter, Log, Metadata, Record};
use tracing_mutex::stdsync::Mutex;

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
        // Not under the lock: it may be the code of anybody, and panic.
        let text = record.args().to_string();
        let mut slot = SERVING.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.as_mut() {
            Some(serving) => serving.add(word, &text),
            None => {
                drop(slot);
                output::say(&format!("{word}: {text}"));
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

/// From now on warnings are seen, and a server logs panics: what it writes to stderr in the background nobody sees.
pub(super) fn install() {
    // Fails only if a logger is there already, as in tests.
    let _already_there = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Warn);
    let of_std = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if SERVING.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            log::error!("{}", panic_text(panic));
        } else {
            of_std(panic);
        }
    }));
}

/// One line, with where it was called from if RUST_BACKTRACE asks for that.
fn panic_text(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let place = panic.location().map_or_else(|| "?".to_owned(), ToString::to_string);
    let cause = panic.payload_as_str().unwrap_or("no message");
    let mut text = format!("thread '{}' panicked at {place}: {cause}", thread.name().unwrap_or("?"));
    let called_from = Backtrace::capture();
    if called_from.status() == BacktraceStatus::Captured {
        text.push_str(&format!("; {called_from}"));
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Set for the process that panics: where its log is.
    const LOG: &str = "REVFS_TEST_PANIC_LOG";

    /// The hook is of a whole process, so it is another one that panics.
    #[test]
    fn a_panic_of_a_server_is_one_line_of_its_log() {
        if let Some(log) = std::env::var_os(LOG) {
            install();
            serve(Some(Path::new(&log)), false).unwrap();
            let thread = crate::env::spawn("worker", || panic!("line one\nline two")).unwrap();
            assert!(thread.join().is_err());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut itself = std::process::Command::new(std::env::current_exe().unwrap());
        itself.args(["--exact", "cli::logger::tests::a_panic_of_a_server_is_one_line_of_its_log"]);
        let ended = itself.env(LOG, &log).env_remove("RUST_BACKTRACE").output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        let text = std::fs::read_to_string(&log).unwrap();
        let line = text.trim_end();
        assert!(line.contains(" error: thread 'worker' panicked at src/cli/logger.rs:"), "{text}");
        assert!(line.ends_with(": line one line two") && !line.contains('\n'), "{text}");
    }
}
