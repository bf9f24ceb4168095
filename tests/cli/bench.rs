//! A folder with a store in it, and the program to run there.
//!
//! Invariant: each bench has a folder of its own, which is the current directory of what it runs.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A folder to run commands in.
pub struct Bench {
    dir: tempfile::TempDir,
}

/// How a command ended.
pub struct Ended {
    args: String,
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Ended {
    /// Stdout and stderr of a command that succeeded.
    pub fn expect_ok(self) -> (Vec<u8>, String) {
        assert_eq!(self.code, 0, "{}: {}", self.args, self.err);
        (self.out, self.err)
    }

    /// Exit code, stdout, stderr.
    pub fn parts(self) -> (i32, Vec<u8>, String) {
        (self.code, self.out, self.err)
    }
}

impl Bench {
    /// A folder without a store.
    pub fn empty() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    /// A folder with a store `s` of small blocks.
    pub fn new() -> Bench {
        let bench = Bench::empty();
        bench.ok(&["init", "s", "--block-size", "4K"]);
        bench
    }

    /// Path of a name in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[OsString]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_revfs"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn words(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    /// Runs the program.
    pub fn run(&self, args: &[&str]) -> Ended {
        self.run_os(&Bench::words(args))
    }

    /// Runs the program with arguments that need not be text.
    pub fn run_os(&self, args: &[OsString]) -> Ended {
        let output = self.command(args).output().unwrap();
        ended(format!("{args:?}"), output)
    }

    /// Starts the program with pipes.
    pub fn start(&self, args: &[&str]) -> Child {
        let mut command = self.command(&Bench::words(args));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs the program with bytes on its stdin.
    pub fn run_with_stdin(&self, args: &[&str], bytes: &[u8]) -> Ended {
        let mut child = self.start(args);
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        ended(format!("{args:?}"), child.wait_with_output().unwrap())
    }

    /// Runs the program with stdout a pipe that nobody reads; answers exit code and stderr.
    pub fn run_without_reader(&self, args: &[&str]) -> (i32, String) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output =
            self.command(&Bench::words(args)).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let (code, _, err) = ended(format!("{args:?}"), output).parts();
        (code, err)
    }

    /// Runs the program with stdout to a file; answers exit code and stderr.
    pub fn run_into(&self, args: &[&str], to: File) -> (i32, String) {
        let output = self.command(&Bench::words(args)).stdout(to).stderr(Stdio::piped()).output().unwrap();
        let (code, _, err) = ended(format!("{args:?}"), output).parts();
        (code, err)
    }

    /// Stdout of a command that succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        String::from_utf8(self.bytes(args)).unwrap()
    }

    /// The one line that a command prints that succeeds.
    pub fn line(&self, args: &[&str]) -> String {
        let text = self.ok(args);
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
        text.trim_end().to_owned()
    }

    /// Bytes that a command prints that succeeds.
    pub fn bytes(&self, args: &[&str]) -> Vec<u8> {
        self.run(args).expect_ok().0
    }

    /// Each line of stdout as JSON.
    pub fn json_lines(&self, args: &[&str]) -> Vec<serde_json::Value> {
        self.ok(args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The one line of stdout as JSON.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.line(args)).unwrap()
    }

    /// Runs a command that fails with this code and text, and prints nothing to stdout.
    pub fn fails(&self, args: &[&str], code: i32, text: &str) {
        let ended = self.run(args);
        assert_eq!(ended.code, code, "{args:?}: {}", ended.err);
        assert!(ended.err.starts_with("error: ") && ended.err.contains(text), "{args:?}: {}", ended.err);
        assert_eq!(ended.out, b"", "{args:?}");
    }

    /// Commits bytes as one file; answers the tid.
    pub fn commit(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path("source"), bytes).unwrap();
        let tid = self.line(&["commit", "s", &format!("{name}=source")]);
        assert!(tid.len() == 16 && tid.bytes().all(|byte| byte.is_ascii_hexdigit()), "{tid}");
        tid
    }

    /// Commits files d/f0, d/f1... at once; answers the tid.
    pub fn commit_all(&self, files: &[Vec<u8>]) -> String {
        let mut args = vec!["commit".to_owned(), "s".to_owned()];
        for (number, bytes) in files.iter().enumerate() {
            std::fs::write(self.path(&format!("source{number}")), bytes).unwrap();
            args.push(format!("d/f{number}=source{number}"));
        }
        self.line(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The tid of the newest commit; zeros if there is none.
    pub fn head(&self) -> String {
        let log = self.json_lines(&["log", "s", "--limit", "1", "--json"]);
        log.first().map_or_else(|| "0".repeat(16), |entry| entry["tid"].as_str().unwrap().to_owned())
    }

    /// All names of a revision.
    pub fn names(&self, rev: &[&str]) -> Vec<String> {
        let lines = self.json_lines(&[&["ls", "s"], rev, &["--json"]].concat());
        lines.iter().map(|line| line["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The one pack of the store.
    pub fn find_pack(&self) -> PathBuf {
        let folders = std::fs::read_dir(self.path("s/packs")).unwrap();
        let mut packs = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        packs.next().unwrap().unwrap().path()
    }
}

fn ended(args: String, output: std::process::Output) -> Ended {
    Ended {
        args,
        code: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
