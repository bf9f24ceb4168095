//! ZODB in Python at work: databases made and written by `tools/zodb_fixture`.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// A command that Python does not answer within this hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The Python that has ZODB, in the environment that `.ci/run` makes; none: says so.
pub fn python(test: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("REVFS_PYTHON").map(PathBuf::from);
    let python = python.unwrap_or_else(|| root.join("target/ci-venv/bin/python"));
    if python.exists() {
        return Some(python);
    }
    eprintln!("SKIPPED {test}: there is no {}; .ci/run makes it", python.display());
    None
}

fn fixture(python: &Path, command: &str, database: &Path, options: &[&str]) -> Command {
    let mut call = Command::new(python);
    call.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/zodb_fixture"));
    call.arg(command).arg(database).args(options);
    call
}

/// What a command of the fixture prints.
pub fn run(python: &Path, command: &str, database: &Path, options: &[&str]) -> String {
    let ended = fixture(python, command, database, options).output().unwrap();
    assert!(ended.status.success(), "{command} {options:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

/// A process that writes a database as it is told.
pub struct Writer {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Writer {
    pub fn start(python: &Path, database: &Path, options: &[&str]) -> Writer {
        let mut call = fixture(python, "serve", database, options);
        let mut child =
            call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        revfs::env::spawn("lines", move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        })
        .unwrap();
        let writer = Writer { child, input, lines };
        assert!(writer.line().starts_with("seed "));
        assert!(writer.line().starts_with("ready "));
        writer
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("Python does not answer")
    }

    /// The answer to a command, whose first word must be `word`; what is behind it.
    pub fn ask(&mut self, command: &str, word: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        let line = self.line();
        let answer = line.strip_prefix(word).unwrap_or_else(|| panic!("{command}: {line}"));
        answer.trim_start().to_owned()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have a ZEO server of its own, which it ends.
        let _ = writeln!(self.input, "quit");
        let _ = self.lines.recv_timeout(PATIENCE);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
