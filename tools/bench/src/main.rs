//! Measures revfs against plain files on the same disk, in interleaved pairs, and prints one table.

mod answer;
mod args;
mod clock;
mod data;
mod driver;
mod error;
mod map;
mod report;
mod rows;
mod scratch;
mod stats;
mod system;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    if let Some(point) = &args.answer {
        return match answer::serve(point) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench: {error}");
                ExitCode::FAILURE
            }
        };
    }
    rows::run(&args)
}
