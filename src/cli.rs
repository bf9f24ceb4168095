//! The command line: arguments, output, exit codes. What commands do is in `ops`.
//!
//! Invariant: stdout carries data only, stderr all that is said about it, in the form
//! `error: <thing>: <cause>: <remedy>`. The exit code follows from the kind of the error alone. A reader that
//! closes stdout early ends a command quietly. Under the name `mount.revfs` the program takes the arguments of mount(8);
//! the program `wcfs` has a command line of its own ([`wcfs`]).

mod args;
mod commands;
mod error;
mod exit;
mod fstab;
mod import;
mod logger;
pub mod mount;
mod open;
mod output;
mod progress;
mod render;
mod serve;
mod status;
mod watch;
pub mod wcfs;

use std::ffi::OsString;

use clap::{CommandFactory, Parser};

pub use args::{Cli, Command};
pub use error::CliError;
pub use exit::ExitCode;
pub use fstab::HelperError;
pub use serve::ServeError;
pub use watch::WatchError;

/// Runs the command that `args` ask for; the first is the name of the program.
pub fn main(args: impl Iterator<Item = OsString>) -> std::process::ExitCode {
    logger::install();
    run(args).into()
}

fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.collect();
    if let Some(program) = args.first_mut().filter(|program| fstab::is_helper(program)) {
        *program = OsString::from("revfs");
        match fstab::arguments(&args[1..]) {
            Ok(Some(words)) => args.splice(1.., words).for_each(drop),
            Ok(None) => return ExitCode::Ok,
            Err(error) => return finish(Err(error.into())),
        }
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are printed to stdout, what is wrong with the arguments to stderr.
            let printed = error.print();
            return match (error.use_stderr(), printed) {
                (true, _) => ExitCode::Usage,
                (false, Err(source)) => finish(Err(CliError::Stdout { source })),
                (false, Ok(())) => ExitCode::Ok,
            };
        }
    };
    finish(commands::run(cli.command))
}

fn finish(result: Result<ExitCode, CliError>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) if error.is_closed_pipe() => ExitCode::Ok,
        Err(error) => {
            output::say(&format!("error: {error}"));
            error.exit_code()
        }
    }
}

/// The definition of the command line, for completions.
fn definition() -> clap::Command {
    Cli::command()
}
