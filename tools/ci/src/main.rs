//! `cargo ci`: runs the checks of the tree in order, each as the plain command that a developer would type.
//!
//! Invariant: exit code 0 if and only if each check that was asked for ran and passed. Nothing is installed or
//! changed here; `.ci/run` prepares a fresh machine.

use std::env;
use std::process::{Command, ExitCode, Stdio};

const USAGE: &str = "\
usage: cargo ci [--fast] [--slow] [--keep-going] [--only STEP]

  --fast         leave out deny and doc
  --slow         set REVFS_SLOW=1: tests run their slow checks too
  --keep-going   go on after a step that failed
  --only STEP    run one step: fmt, clippy, test, deny or doc
  --help         show this

exit codes: 0 all passed, 1 a step failed, 2 wrong usage";

/// One check: a cargo command.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Variables that are set for it.
    variables: &'static [(&'static str, &'static str)],
    /// Whether `--fast` leaves it out.
    in_fast: bool,
    /// A cargo command to try first, and what to do if it is not there.
    needs: Option<(&'static str, &'static str)>,
}

const STEPS: &[Step] = &[
    Step { name: "fmt", arguments: &["fmt", "--all", "--check"], variables: &[], in_fast: true, needs: None },
    Step {
        name: "clippy",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        variables: &[],
        in_fast: true,
        needs: None,
    },
    Step { name: "test", arguments: &["test", "--workspace"], variables: &[], in_fast: true, needs: None },
    Step {
        name: "deny",
        arguments: &["deny", "check", "licenses", "bans", "sources"],
        variables: &[],
        in_fast: false,
        needs: Some(("deny", "cargo install cargo-deny --locked")),
    },
    Step {
        name: "doc",
        arguments: &["doc", "--workspace", "--no-deps"],
        variables: &[("RUSTDOCFLAGS", "-D warnings")],
        in_fast: false,
        needs: None,
    },
];

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    fast: bool,
    slow: bool,
    keep_going: bool,
    only: Option<String>,
    help: bool,
}

impl Options {
    /// Reads the arguments; the error is a message for the user.
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Options, String> {
        let mut options = Options::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--fast" => options.fast = true,
                "--slow" => options.slow = true,
                "--keep-going" => options.keep_going = true,
                "--help" | "-h" => options.help = true,
                "--only" => {
                    let name = arguments.next().ok_or("--only has no step: name one, as in --only test")?;
                    options.only = Some(known_step(name)?);
                }
                _ => match argument.strip_prefix("--only=") {
                    Some(name) => options.only = Some(known_step(name.to_owned())?),
                    None => return Err(format!("{argument} is not an option: see cargo ci --help")),
                },
            }
        }
        Ok(options)
    }

    /// Whether a step is asked for; `--only` wins over `--fast`.
    fn wants(&self, step: &Step) -> bool {
        match &self.only {
            Some(name) => step.name == name,
            None => step.in_fast || !self.fast,
        }
    }
}

fn known_step(name: String) -> Result<String, String> {
    let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
    if names.contains(&name.as_str()) {
        return Ok(name);
    }
    Err(format!("{name} is not a step: name one of {}", names.join(", ")))
}

/// How one step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// Not run, because one before it failed.
    Skipped,
}

/// Runs the wanted steps through `run`, and stops at the first failure unless told to keep going.
fn run_steps(options: &Options, mut run: impl FnMut(&Step) -> bool) -> Vec<(&'static str, Outcome)> {
    let mut outcomes = Vec::new();
    let mut stopped = false;
    for step in STEPS.iter().filter(|step| options.wants(step)) {
        let outcome = match stopped {
            true => Outcome::Skipped,
            false if run(step) => Outcome::Passed,
            false => Outcome::Failed,
        };
        stopped |= outcome == Outcome::Failed && !options.keep_going;
        outcomes.push((step.name, outcome));
    }
    outcomes
}

/// Runs one step with this terminal's output; whether it passed.
fn run_step(step: &Step, slow: bool) -> bool {
    let variables: String = step.variables.iter().map(|(name, value)| format!("{name}={value:?} ")).collect();
    println!("==== {}: {variables}cargo {}", step.name, step.arguments.join(" "));
    if let Some((command, remedy)) = step.needs
        && !answers(command)
    {
        eprintln!("error: {}: cargo {command} is not installed: run {remedy}", step.name);
        return false;
    }
    let mut command = cargo();
    command.args(step.arguments).envs(step.variables.iter().copied());
    if slow {
        command.env("REVFS_SLOW", "1");
    }
    match command.status() {
        Ok(status) if status.success() => true,
        Ok(status) => {
            eprintln!("error: {}: ended with {status}", step.name);
            false
        }
        Err(error) => {
            eprintln!("error: {}: cargo does not start: {error}", step.name);
            false
        }
    }
}

/// The cargo that runs us, so that a step uses the same toolchain.
fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether a cargo command is installed.
fn answers(command: &str) -> bool {
    let quiet = cargo()
        .args([command, "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    quiet.is_ok_and(|status| status.success())
}

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(2);
        }
    };
    if options.help {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let outcomes = run_steps(&options, |step| run_step(step, options.slow));
    println!("==== summary");
    for (name, outcome) in &outcomes {
        println!("{name:8} {}", format!("{outcome:?}").to_lowercase());
    }
    let passed = outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Passed);
    if passed { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Options, String> {
        Options::parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    /// Names of the steps that run and their outcomes, where `failing` fails.
    fn outcomes(arguments: &[&str], failing: &str) -> Vec<(&'static str, Outcome)> {
        run_steps(&options(arguments).unwrap(), |step| step.name != failing)
    }

    #[test]
    fn all_steps_run_in_order() {
        let all = ["fmt", "clippy", "test", "deny", "doc"].map(|name| (name, Outcome::Passed));
        assert_eq!(outcomes(&[], ""), all);
        assert_eq!(outcomes(&["--slow"], ""), all);
        assert_eq!(outcomes(&["--fast"], ""), all[..3]);
        assert_eq!(outcomes(&["--only", "doc"], ""), all[4..]);
        assert_eq!(outcomes(&["--fast", "--only=deny"], ""), all[3..4]);
    }

    #[test]
    fn a_failure_stops_the_rest_unless_told_to_keep_going() {
        use Outcome::{Failed, Passed, Skipped};
        assert_eq!(outcomes(&["--fast"], "clippy"), [("fmt", Passed), ("clippy", Failed), ("test", Skipped)]);
        assert_eq!(
            outcomes(&["--fast", "--keep-going"], "clippy"),
            [("fmt", Passed), ("clippy", Failed), ("test", Passed)]
        );
    }

    #[test]
    fn wrong_usage_is_refused() {
        for arguments in [&["--quick"][..], &["--only"], &["--only", "lint"], &["--only="], &["test"]] {
            assert!(options(arguments).is_err(), "{arguments:?}");
        }
        assert!(options(&["--help"]).unwrap().help);
    }

    #[test]
    fn what_is_not_installed_does_not_answer() {
        assert!(answers("fmt"));
        assert!(!answers("no-such-command-of-cargo"));
    }
}
