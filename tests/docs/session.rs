//! The shell sessions of a document: takes them out, runs them, and compares what is printed.
//!
//! Invariant: all sessions of a document run in one shell, in order, in a folder of their own, and no mount or folder
//! outlives them. What is others each time (ids, times, processes, room on the disk) is replaced on both sides; an id
//! by its number in order of appearance, so that the same id in the document must be the same in what is printed.

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The folder that documents show instead of the real one.
const HOME: &str = "/home/ann";
/// A session that takes longer than this hangs.
const LIMIT_S: u32 = 120;
const MARK: &str = "=== the step ended with";

/// A command of a session and what the document says that it prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub line: usize,
    pub command: String,
    pub expected: String,
}

/// The steps of all blocks that are marked `console`.
pub fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (line, text) in (1..).zip(document.lines()) {
        if text.starts_with("```") {
            inside = text == "```console";
        } else if !inside {
            continue;
        } else if let Some(command) = text.strip_prefix("$ ") {
            steps.push(Step { line, command: command.to_owned(), expected: String::new() });
        } else if let Some(step) = steps.last_mut() {
            step.expected.push_str(text);
            step.expected.push('\n');
        }
    }
    steps
}

/// Runs the steps and describes each that printed something else than it should.
pub fn run(steps: &[Step]) -> Vec<String> {
    let folder = Folder { dir: tempfile::tempdir().unwrap() };
    let printed = printed(steps, folder.dir.path());
    let (mut ours, mut theirs) = (Names::default(), Names::default());
    let mut wrong = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let Some((text, code)) = printed.get(number) else {
            let last = printed.last().map_or("", |(text, _)| text);
            wrong.push(format!(
                "line {}: `{}` did not end within {LIMIT_S} s: {last}",
                step.line, step.command
            ));
            break;
        };
        let (got, want) = (ours.replace(text.trim_end()), theirs.replace(step.expected.trim_end()));
        if got != want {
            let Step { line, command, expected } = step;
            wrong
                .push(format!("line {line}: `{command}` printed\n{text}\nbut the document says\n{expected}"));
        } else if *code != 0 && want.is_empty() {
            wrong.push(format!("line {}: `{}` failed with exit code {code}", step.line, step.command));
        }
    }
    wrong
}

/// What each step printed, and its exit code. Shorter than `steps` if one of them did not end.
fn printed(steps: &[Step], dir: &Path) -> Vec<(String, i32)> {
    let mut script = "code=0\n".to_owned();
    for step in steps {
        // `$?` is that of the step before.
        let quoted = step.command.replace('\'', "'\\''");
        script.push_str(&format!("(exit $code); eval '{quoted}'\ncode=$?; printf '\\n{MARK} %d\\n' $code\n"));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(script.as_bytes()).unwrap();
    // Not a pipe: what goes to the background may keep it open.
    let mut output = tempfile::tempfile().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_revfs")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    Command::new("timeout")
        .args(["--kill-after=5", &LIMIT_S.to_string(), "bash"])
        .arg(file.path())
        .current_dir(dir)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        .status()
        .unwrap();
    output.rewind().unwrap();
    let text = std::io::read_to_string(&output).unwrap();
    let dir = fs::canonicalize(dir).unwrap();
    split(&text.replace(&dir.display().to_string(), HOME))
}

fn split(text: &str) -> Vec<(String, i32)> {
    let mut ended = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(&format!("\n{MARK} ")) {
        let (code, after) = after.split_once('\n').unwrap_or((after, ""));
        ended.push((before.to_owned(), code.parse().unwrap()));
        rest = after;
    }
    ended
}

/// The folder of a session. Dropping it ends what is mounted below it, whatever state it is in.
struct Folder {
    dir: tempfile::TempDir,
}

impl Drop for Folder {
    fn drop(&mut self) {
        for mount in mounts_below(self.dir.path()) {
            let stopped = Command::new(env!("CARGO_BIN_EXE_revfs"))
                .args(["umount", "--timeout", "10s"])
                .arg(&mount)
                .stderr(Stdio::null())
                .status();
            if stopped.is_ok_and(|status| status.success()) {
                continue;
            }
            // A server that hangs answers no stat; then the unmount alone has to do.
            abort(&mount);
            let lazy = rustix::mount::unmount(Path::new(&mount), rustix::mount::UnmountFlags::DETACH);
            if lazy.is_err() {
                let _ = Command::new("fusermount3").args(["-uz", &mount]).status();
            }
        }
    }
}

/// Makes each request to the connection of a mount fail, now and later. The number of the connection is in
/// mountinfo, for a stat could hang.
fn abort(mount: &str) {
    for line in mountinfo().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if let [_, _, device, _, point, ..] = fields[..]
            && point == mount
            && let Some((_, minor)) = device.split_once(':')
            && let Ok(mut file) =
                File::options().write(true).open(format!("/sys/fs/fuse/connections/{minor}/abort"))
        {
            let _ = file.write_all(b"1");
        }
    }
}

fn mountinfo() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// Mount points below a folder. Temporary folders have no characters that mountinfo escapes.
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let dir = format!("{}/", fs::canonicalize(dir).unwrap_or(dir.to_owned()).display());
    let info = mountinfo();
    let points = info.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| point.starts_with(&dir)).map(str::to_owned).collect()
}

/// Whether this machine can mount: there is /dev/fuse, and root or fusermount3.
pub fn can_mount() -> bool {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let helper = || Command::new("fusermount3").arg("--version").stdout(Stdio::null()).status().is_ok();
    File::options().read(true).write(true).open("/dev/fuse").is_ok() && (is_root || helper())
}

/// Replaces what is others each time.
#[derive(Debug, Default)]
struct Names {
    ids: HashMap<String, usize>,
}

impl Names {
    fn replace(&mut self, text: &str) -> String {
        let lines: Vec<String> = text.lines().map(|line| self.replace_line(line)).collect();
        lines.join("\n")
    }

    fn replace_line(&mut self, line: &str) -> String {
        if line.starts_with("on disk, all revisions: ") {
            return without_numbers(line);
        }
        if let Some(pid) = line.trim_start().strip_prefix("pid ")
            && pid.trim().parse::<u32>().is_ok()
        {
            return "pid".to_owned();
        }
        let mut text = String::new();
        let mut rest = line;
        while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric()) {
            text.push_str(&rest[..start]);
            rest = &rest[start..];
            let word_end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
            let end = if is_time(rest) { TIME.len() } else { word_end };
            let word = &rest[..end];
            text.push_str(&self.replace_word(word));
            rest = &rest[end..];
        }
        text + rest
    }

    fn replace_word(&mut self, word: &str) -> String {
        let is_id = word.len() == 16 && word.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        if is_time(word) {
            TIME.to_owned()
        } else if is_id && word != "0000000000000000" {
            let next = self.ids.len() + 1;
            format!("<id {}>", self.ids.entry(word.to_owned()).or_insert(next))
        } else {
            word.to_owned()
        }
    }
}

const TIME: &str = "0000-00-00T00:00:00Z";

/// Whether a text starts with a time as revfs prints it.
fn is_time(text: &str) -> bool {
    let same = |(have, form): (u8, u8)| if form == b'0' { have.is_ascii_digit() } else { have == form };
    text.len() >= TIME.len() && text.bytes().zip(TIME.bytes()).all(same)
}

fn without_numbers(line: &str) -> String {
    let words = line.split(' ').map(|word| match word.chars().next() {
        Some(c) if c.is_ascii_digit() => "n",
        _ => match word.trim_end_matches([',', ')']) {
            "B" | "KiB" | "MiB" => "unit",
            _ => word,
        },
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(expected: &str) -> Vec<String> {
        let document = format!("text\n```console\n$ echo 1; echo 2\n{expected}```\n```sh\n$ false\n```\n");
        run(&steps(&document))
    }

    #[test]
    fn a_step_that_prints_something_else_is_seen() {
        assert_eq!(session("1\n2\n"), Vec::<String>::new());
        for wrong in ["1\n", "", "1\n3\n", "1\n2\n3\n", "2\n1\n"] {
            let found = session(wrong);
            assert!(matches!(&found[..], [one] if one.starts_with("line 3: ")), "{wrong:?}: {found:?}");
        }
    }

    #[test]
    fn a_step_that_fails_in_silence_is_seen_and_the_next_one_sees_its_code() {
        let found =
            run(&steps("```console\n$ x=4; (exit 3)\n$ echo $? $x\n3 4\n$ echo no >&2; false\nno\n```"));
        assert_eq!(found, ["line 2: `x=4; (exit 3)` failed with exit code 3"]);
        let found = run(&steps("```console\n$ echo a\na\n$ exit 1\n$ echo b\nb\n```"));
        assert!(matches!(&found[..], [one] if one.starts_with("line 4: `exit 1` did not end")), "{found:?}");
    }

    #[test]
    fn the_same_id_must_be_the_same_again() {
        let print = |ids: [&str; 3]| Names::default().replace(&ids.join("\n@"));
        let (a, b, c) = ("03caa84275fc1166", "03caa84275fc1167", "0000000000000001");
        assert_eq!(print([a, b, a]), print([b, c, b]));
        assert_ne!(print([a, b, a]), print([a, b, b]));
        assert_ne!(print([a, b, a]), print([a, a, a]));
        assert_ne!(print(["0000000000000000", a, b]), print([c, a, b]));
    }

    #[test]
    fn times_processes_and_room_are_replaced_and_nothing_else() {
        let replace = |text: &str| Names::default().replace(text);
        assert_eq!(replace("x 2026-11-21T06:36:51Z  y"), format!("x {TIME}  y"));
        assert_eq!(replace("2026-11-21 1234 abcdef"), "2026-11-21 1234 abcdef");
        assert_eq!(replace("  pid    15"), replace("  pid    160000"));
        assert_ne!(replace("  pid    15"), replace("  pid    x"));
        let disk =
            |a: &str, b: &str| replace(&format!("on disk, all revisions: {a} (packs {b}, index 1 MiB)"));
        assert_eq!(disk("9 MiB", "8.6 MiB"), disk("100 KiB", "0 B"));
        assert_ne!(disk("9 MiB", "8.6 MiB"), disk("9 MiB", "none"));
        assert_ne!(replace("9 MiB"), replace("8 MiB"));
    }
}
