//! A process that maps a file and reads where it is told: what it does may end in a SIGBUS.
//!
//! The child is this test program again, running only [`maps_a_file`] with the path in its environment.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use super::live::{Guarded, SOON, end_of};
use super::mapping::{Mapping, PAGE};

const PATH: &str = "REVFS_TEST_MAPS";
const LEN: &str = "REVFS_TEST_MAPS_LEN";
const MARK: &str = "mapped: ";

/// The child.
pub struct MappingChild {
    child: Guarded,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl MappingChild {
    /// Starts a child that maps the first bytes of a file.
    pub fn start(path: &Path, len: usize) -> MappingChild {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child::maps_a_file", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(PATH, path).env(LEN, len.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Guarded(command.spawn().unwrap());
        let ask = child.0.stdin.take().unwrap();
        let answers = BufReader::new(child.0.stdout.take().unwrap());
        let mut child = MappingChild { child, ask, answers };
        assert_eq!(child.answer().as_deref(), Some("ready"));
        child
    }

    /// The next line of its own; `None` if it ended.
    fn answer(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some((_, text)) = line.trim_end().split_once(MARK) {
                return Some(text.to_owned());
            }
        }
    }

    fn ask(&mut self, question: &str) -> Option<String> {
        writeln!(self.ask, "{question}").ok()?;
        self.answer()
    }

    /// Lets it read each page; whether it survived that.
    pub fn touch_all(&mut self) -> bool {
        self.ask("all").is_some()
    }

    /// Lets it read a byte; `None` if that ended it.
    pub fn read(&mut self, offset: usize) -> Option<u8> {
        self.ask(&offset.to_string()).map(|text| text.parse().unwrap())
    }

    /// The signal that ended it.
    pub fn ended_by(mut self) -> Option<i32> {
        end_of(&mut self.child.0, SOON).signal()
    }
}

#[test]
fn maps_a_file() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let len = std::env::var(LEN).unwrap().parse().unwrap();
    let mapping = Mapping::new(Path::new(&path), len);
    println!("{MARK}ready");
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "all" => {
                let sum: u64 = (0..len).step_by(PAGE).map(|at| u64::from(mapping.at(at))).sum();
                println!("{MARK}{sum}");
            }
            offset => println!("{MARK}{}", mapping.at(offset.parse().unwrap())),
        }
    }
}
