//! Sums a file of a mount over and over, as of one revision, and shows that the sum stays while others commit.
//!
//! ```text
//! cargo run --release --example snapshot_sum -- MNT NAME [--rounds N] [--at TID]
//! ```
//!
//! After the rounds it moves to what is newest then, and shows that sum. Exit code 0 if the sum never changed.

use revfs_client::{ClientError, Conn, Mapping, Tid};
use std::process::ExitCode;

const USAGE: &str = "usage: snapshot_sum MNT NAME [--rounds N] [--at TID]";
const ROUNDS_DEFAULT: u64 = 100;

/// What the command line asks for.
struct Options {
    mount: String,
    name: String,
    rounds: u64,
    at: Option<Tid>,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut named = Vec::new();
    let [mut rounds, mut at] = [None, None];
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = Some(arguments.next().ok_or("--rounds has no number")?),
            "--at" => at = Some(arguments.next().ok_or("--at has no transaction id")?),
            _ => named.push(argument),
        }
    }
    let Ok([mount, name]) = <[String; 2]>::try_from(named) else {
        return Err(USAGE.to_owned());
    };
    let rounds =
        rounds.map_or(Ok(ROUNDS_DEFAULT), |text| text.parse().map_err(|e| format!("{text}: {e}")))?;
    let at = at.map(|text| text.parse::<Tid>().map_err(|e| e.to_string())).transpose()?;
    Ok(Options { mount, name, rounds, at })
}

/// The sum of all bytes, eight at a time, modulo 2^64.
fn sum(mapping: &Mapping) -> Result<u64, ClientError> {
    mapping.with_bytes(|bytes| {
        let (words, rest) = bytes.as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_le_bytes(*word)).fold(0, u64::wrapping_add);
        rest.iter().fold(words, |sum, byte| sum.wrapping_add(u64::from(*byte)))
    })
}

/// Whether the sum stayed.
fn run(options: &Options) -> Result<bool, ClientError> {
    let conn = Conn::open(options.mount.as_ref(), options.at)?;
    let file = conn.file(options.name.as_bytes())?;
    let mapping = file.map(0, file.size_at())?;
    let first = sum(&mapping)?;
    println!("{first:016x} sum of {} bytes at {}", mapping.len(), conn.at());
    for round in 1..options.rounds {
        let again = sum(&mapping)?;
        if again != first {
            println!("{again:016x} sum in round {round}: it CHANGED");
            return Ok(false);
        }
    }
    println!("{first:016x} sum in each of {} rounds", options.rounds.max(1));
    drop(mapping);
    // A connection without a revision takes the newest.
    conn.resync(Conn::open(options.mount.as_ref(), None)?.at().max(conn.at()))?;
    let mapping = file.map(0, file.size_at())?;
    println!("{:016x} sum of {} bytes at {}", sum(&mapping)?, mapping.len(), conn.at());
    drop(mapping);
    conn.close()?;
    Ok(true)
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
