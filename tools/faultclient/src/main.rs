//! faultclient: a client of `head/watch` that breaks the isolation protocol on purpose, for the tests.
//!
//! It says on stdout what it has done, one line each, and is steered by lines on stdin; `faultclient --help` lists
//! both. Invariant: it never outlives its test: it ends when the thread that started it does, when nobody reads its
//! stdout any more, and after [`LIFE_SECONDS`] in any case.

mod client;
mod guard;
mod heir;
mod link;
mod mapping;
mod mode;

use std::io::Write;
use std::process::ExitCode;

use mode::Mode;

/// No test lets it live as long.
const LIFE_SECONDS: u32 = 300;

const USAGE: &str = "\
usage: faultclient MODE MOUNT FILE REV [--until-turn] [--random] [--second] [--thread]

Watches MOUNT/head/bigfile/FILE at REV (16 hex digits).
  --until-turn  does as it is told until `turn` comes on stdin
  --random      its mapping is advised MADV_RANDOM: a page fault is a read that cannot be killed
  --second      has a second link with the same watch, which it never reads
  --thread      the link is opened by a thread that ends then

lines on stdin, each answered by one on stdout:
  turn          from now on the mode counts
  fault         does what the mode does on a pin, though it may owe none
  say FRAME     writes a frame
  touch BLOCK   reads a byte of a block of its mapping, in another thread: `touching`, later `touched BLOCK VALUE`
  look          `sees` and the first byte of each block of its mapping
  quit          exits with 0; so does the end of stdin

modes:";

/// What it was started with.
struct Args {
    mode: Mode,
    mount: String,
    file: String,
    rev: String,
    until_turn: bool,
    random: bool,
    second: bool,
    thread: bool,
}

fn parse(arguments: impl Iterator<Item = String>) -> Option<Args> {
    let (options, words): (Vec<String>, Vec<String>) = arguments.partition(|word| word.starts_with("--"));
    let [mode, mount, file, rev] = <[String; 4]>::try_from(words).ok()?;
    let mut args = Args {
        mode: Mode::parse(&mode)?,
        mount,
        file,
        rev,
        until_turn: false,
        random: false,
        second: false,
        thread: false,
    };
    for option in options {
        match option.as_str() {
            "--until-turn" => args.until_turn = true,
            "--random" => args.random = true,
            "--second" => args.second = true,
            "--thread" => args.thread = true,
            _ => return None,
        }
    }
    Some(args)
}

/// Says a line on stdout. Without anybody who hears it this process is of no use.
fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(3);
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(heir::WORD) {
        return ended(guard::limit_life().and_then(|()| heir::run(arguments)));
    }
    let Some(args) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        for (name, _, what) in mode::ALL {
            eprintln!("  {name:<13} {what}");
        }
        return ExitCode::from(2);
    };
    ended(guard::end_with_parent().and_then(|()| guard::limit_life()).and_then(|()| client::run(args)))
}

fn ended(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faultclient: {error}");
            ExitCode::FAILURE
        }
    }
}
