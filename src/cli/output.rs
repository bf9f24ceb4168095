//! Where output goes.
//!
//! Invariant: data is buffered and flushed once, so that a closed or full stdout is noticed and reported by the
//! command; nothing here panics on it, as `println!` would.

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use super::CliError;

/// Bytes that wait before they are written.
const BUFFER_BYTES: usize = 64 << 10;

/// Stdout without a buffer of its own, for bytes of files.
#[derive(Debug)]
pub(super) struct RawStdout;

impl Write for RawStdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Data for stdout: lines for people, or one JSON object a line.
#[derive(Debug)]
pub(super) struct Output {
    to: BufWriter<RawStdout>,
    json: bool,
}

impl Output {
    /// Output of one command.
    pub(super) fn new(json: bool) -> Output {
        Output { to: BufWriter::with_capacity(BUFFER_BYTES, RawStdout), json }
    }

    /// Writes `value` as JSON, or else the lines that `text` makes.
    pub(super) fn put<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        let written = match self.json {
            true => serde_json::to_writer(&mut self.to, value)
                .map_err(io::Error::from)
                .and_then(|()| self.to.write_all(b"\n")),
            false => self.to.write_all(text(value).as_bytes()),
        };
        written.map_err(|source| CliError::Stdout { source })
    }

    /// Writes all objects, one a line, or else the table that `text` makes of them.
    pub(super) fn put_all<T: Serialize>(
        &mut self,
        values: &[T],
        text: impl FnOnce(&[T]) -> String,
    ) -> Result<(), CliError> {
        if self.json {
            return values.iter().try_for_each(|value| self.put(value, |_| String::new()));
        }
        self.to.write_all(text(values).as_bytes()).map_err(|source| CliError::Stdout { source })
    }

    /// Ends it.
    pub(super) fn finish(mut self) -> Result<(), CliError> {
        self.flush()
    }

    /// Shows what was put so far, for a command that goes on.
    pub(super) fn flush(&mut self) -> Result<(), CliError> {
        self.to.flush().map_err(|source| CliError::Stdout { source })
    }
}

/// Says a line on stderr. What cannot be said there cannot be said anywhere.
pub(super) fn say(line: &str) {
    let _nowhere_to_report = writeln!(io::stderr(), "{line}");
}
