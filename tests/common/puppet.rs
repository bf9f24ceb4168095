//! faultclient, steered line by line.
//!
//! Invariant: it goes away with its [`Puppet`], and a line that does not come fails the test.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::live::{Guarded, Live, SOON, end_of};

/// The program, built if need be: cargo knows only the programs of a test's own package.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_revfs")).parent().unwrap();
        let profile = folder.file_name().unwrap().to_str().unwrap();
        let profile = if profile == "debug" { "dev" } else { profile };
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "faultclient", "--profile", profile, "--target-dir"]);
        assert!(cargo.arg(folder.parent().unwrap()).status().unwrap().success(), "{cargo:?}");
        folder.join("faultclient")
    })
}

/// A client.
pub struct Puppet {
    name: String,
    child: Guarded,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Puppet {
    /// Starts it on file `a` at a revision; `mode` may have options behind it.
    pub fn start(live: &Live, mode: &str, rev: &str) -> Puppet {
        Puppet::start_on(live, "a", (mode, rev))
    }

    /// The same on a file of any name.
    pub fn start_on(live: &Live, file: &str, (mode, rev): (&str, &str)) -> Puppet {
        let mut words = mode.split(' ');
        let mut command = Command::new(program());
        command.args(words.next()).arg(live.root()).args([file, rev]).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Guarded(command.spawn().unwrap());
        let stdin = child.0.stdin.take().unwrap();
        let stdout = BufReader::new(child.0.stdout.take().unwrap());
        let (sender, lines) = channel();
        let read = move || {
            let mut heard = stdout.lines().map_while(Result::ok);
            // The other end is gone with its puppet.
            while heard.next().is_some_and(|line| sender.send(line).is_ok()) {}
        };
        revfs::env::spawn("puppet", read).unwrap();
        let mut puppet = Puppet { name: mode.to_owned(), child, stdin, lines };
        puppet.expect("open");
        puppet
    }

    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Steers it.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// Its next line.
    pub fn hear(&mut self) -> String {
        let line = self.lines.recv_timeout(SOON);
        line.unwrap_or_else(|error| panic!("{}: no line: {error}", self.name))
    }

    /// Whether it has said this line as the next one by now.
    pub fn has_said(&mut self, line: &str) -> bool {
        self.lines.try_recv().is_ok_and(|heard| heard == line)
    }

    /// Its next line is this one.
    pub fn expect(&mut self, line: &str) {
        let heard = self.hear();
        assert_eq!(heard, line, "{}", self.name);
    }

    /// Waits for a line that begins so; answers all until then.
    pub fn until(&mut self, start: &str) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        loop {
            let line = self.lines.recv_timeout(SOON);
            let line =
                line.unwrap_or_else(|error| panic!("{}: no {start:?} in {lines:?}: {error}", self.name));
            let found = line.starts_with(start);
            lines.push(line);
            if found {
                return lines;
            }
            assert!(lines.len() < 10_000, "{}: {start:?} does not come: {lines:?}", self.name);
        }
    }

    /// Steers it and waits for a line that begins so, which it answers.
    pub fn ask(&mut self, line: &str, start: &str) -> String {
        self.tell(line);
        self.until(start).pop().unwrap()
    }

    /// How it ended by itself, or was ended.
    pub fn ended(&mut self) -> ExitStatus {
        end_of(&mut self.child.0, SOON)
    }

    /// The signal that ended it.
    pub fn ended_by(&mut self) -> Option<i32> {
        self.ended().signal()
    }

    /// The signal that ends it within a time.
    pub fn ended_within(&mut self, patience: Duration) -> Option<i32> {
        end_of(&mut self.child.0, patience).signal()
    }

    /// Asserts that it lives, and lets it end.
    pub fn quit(&mut self) {
        self.tell("quit");
        assert_eq!(self.ended().code(), Some(0), "{}", self.name);
    }

    /// Whether it has ended and nobody has waited for it.
    pub fn is_zombie(&self) -> bool {
        self.state() == 'Z'
    }

    /// Whether its main thread sleeps; after anything has woken it, a wait for a FUSE server is one without signals.
    pub fn sleeps(&self) -> bool {
        matches!(self.state(), 'S' | 'D')
    }

    fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    }
}
