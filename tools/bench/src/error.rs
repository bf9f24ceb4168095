//! Why a row, or the whole run, could not be measured.

use std::fmt::Display;
use std::io;

/// What went wrong, with the thing that it went wrong with.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A command ended badly.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// As typed.
        command: String,
        /// How it ended.
        status: String,
        /// What it said on stderr, cut.
        output: String,
    },
    /// A command did not end.
    #[error("`{command}` did not end within {seconds} s and was killed: {output}")]
    TimedOut {
        /// As typed.
        command: String,
        /// How long it had.
        seconds: u64,
        /// What it said on stderr, cut.
        output: String,
    },
    /// The library refused.
    #[error("{what}: {source}")]
    Store {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This machine or user cannot measure it.
    #[error("{what}: {remedy}")]
    NotPossible {
        /// What is missing.
        what: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The measured work gave a wrong result: its time means nothing.
    #[error("{0}")]
    Wrong(String),
}

/// A result of this tool.
pub type Result<T> = std::result::Result<T, BenchError>;

/// Gives errors of the system and of the library the name of what was tried.
pub trait Named<T> {
    /// Names what was tried.
    ///
    /// # Errors
    /// The same error, named.
    fn named(self, what: impl Display) -> Result<T>;
}

impl<T> Named<T> for io::Result<T> {
    fn named(self, what: impl Display) -> Result<T> {
        self.map_err(|source| BenchError::Io { what: what.to_string(), source })
    }
}

impl<T> Named<T> for rustix::io::Result<T> {
    fn named(self, what: impl Display) -> Result<T> {
        self.map_err(|source| BenchError::Io { what: what.to_string(), source: source.into() })
    }
}

/// As [`Named`], for errors of the library.
pub trait OfStore<T> {
    /// Names what was tried.
    ///
    /// # Errors
    /// The same error, named.
    fn of_store(self, what: &'static str) -> Result<T>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> OfStore<T> for std::result::Result<T, E> {
    fn of_store(self, what: &'static str) -> Result<T> {
        self.map_err(|source| BenchError::Store { what, source: Box::new(source) })
    }
}
