//! The program under strace: which system calls it made, in which order, and a kill at one of them.

use std::collections::HashMap;
use std::fs::File;
use std::process::Command;

use super::live::{Ended, Place};

/// System calls that change something on a disk, or tell somebody that it is done.
pub const WRITING: &str = "write,writev,pwrite64,pwritev,fallocate,linkat,link,rename,renameat,fsync,fdatasync,unlink,\
    unlinkat,openat,ftruncate,mkdir,mkdirat";

/// Stdout of a program under strace.
pub const OUT: &str = "out";

/// Whether there is no strace here that works; says so.
pub fn no_strace(test: &str) -> bool {
    let works = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    let absent = !works.is_ok_and(|output| output.status.success());
    if absent {
        eprintln!("SKIPPED {test}: there is no strace that may trace");
    }
    absent
}

/// One system call.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    /// As strace shows it.
    pub text: String,
    /// Lines of the trace at which it began and ended.
    pub start: usize,
    pub end: usize,
    /// It never ended.
    pub killed: bool,
}

impl Call {
    /// Its name and what it was about, the same for each commit.
    pub fn shape(&self, place: &Place) -> String {
        let root = place.root().to_str().unwrap();
        let about = self.text.split(root).nth(1).unwrap_or("");
        let path: String = about.chars().take_while(|c| !"\">,".contains(*c)).collect();
        // The random names of packs, and the numbers of records.
        let parts = path.split('/').map(|part| {
            let long = part.len() > 15 || (part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            let plain = if long { "*" } else { part };
            if long && part.ends_with("#1") { "*#1" } else { plain }
        });
        format!("{} {}", self.name, parts.collect::<Vec<_>>().join("/"))
    }
}

/// Reads what strace wrote: "PID name(args) = result", in two lines if another thread came in between.
pub fn calls_of(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((pid, text)) = line.split_once(' ') else { continue };
        let text = text.trim_start();
        if let Some(rest) = text.strip_prefix("<... ") {
            if let Some(index) = open.remove(pid) {
                calls[index].end = number;
                calls[index].text.push_str(rest.split_once(" resumed>").map_or("", |(_, rest)| rest));
                calls[index].killed = text.ends_with("= ?");
            }
            continue;
        }
        let Some((name, _)) = text.split_once('(') else { continue };
        if !WRITING.split(',').any(|known| known == name) {
            continue;
        }
        let unfinished = text.ends_with("<unfinished ...>");
        let killed = unfinished || text.ends_with("= ?") || text.ends_with("= ? (INJECTED)");
        if unfinished {
            open.insert(pid, calls.len());
        }
        let (name, text) = (name.to_owned(), text.to_owned());
        calls.push(Call { name, text, start: number, end: number, killed });
    }
    calls
}

/// Runs the program under strace; `paths`: only calls that touch one of them are seen.
pub fn traced(place: &Place, paths: &[String], inject: Option<&str>, args: &[&str]) -> (Ended, Vec<Call>) {
    let trace = place.path("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-qq", "-e", "signal=none", "-e"]).arg(format!("trace={WRITING}"));
    command.args(inject.iter().flat_map(|inject| ["-e", inject]));
    command.args(paths.iter().flat_map(|path| ["-P", path]));
    command.arg("-o").arg(&trace).arg("--").arg(env!("CARGO_BIN_EXE_revfs")).args(args);
    command.current_dir(place.root()).stdin(std::process::Stdio::null());
    let out =
        File::options().create(true).truncate(true).read(true).write(true).open(place.path(OUT)).unwrap();
    let ended = place.run_into(&mut command, out);
    let calls = calls_of(&String::from_utf8_lossy(&std::fs::read(&trace).unwrap()));
    (ended, calls)
}
