//! Warnings of the library go to stderr, one line each.
//!
//! Invariant: a logger never fails a command; what cannot be written is dropped.

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::output;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let word = if record.level() == Level::Error { "error" } else { "warning" };
            output::say(&format!("{word}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// From now on warnings are seen. A second call changes nothing.
pub(super) fn install() {
    // Fails only if a logger is there already, as in tests.
    let _already_there = log::set_logger(&Stderr);
    log::set_max_level(LevelFilter::Warn);
}
