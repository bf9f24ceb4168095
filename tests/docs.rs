//! The documents keep their word: the tour of README.md prints what it says, its options and exit codes are those of
//! `--help`, and each file that a document names is there.
//!
//! Invariant: each check is first seen to refuse a wrong document.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

#[path = "docs/names.rs"]
mod names;
#[path = "docs/session.rs"]
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Past the capture of the test runner, so that it is seen.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

fn help(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_revfs")).args(args).env("COLUMNS", "110").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_tour_prints_what_the_readme_says() {
    let mut steps = session::steps(&document("README.md"));
    assert!(steps.len() > 30, "the tour has only {} steps", steps.len());
    if !session::can_mount() {
        let first = steps.iter().position(|step| step.command.starts_with("revfs mount"));
        let left_out = steps.split_off(first.unwrap());
        say(&format!("SKIPPED: no /dev/fuse here: {} steps of the tour from its mount on", left_out.len()));
    }
    let wrong = session::run(&steps);
    assert!(wrong.is_empty(), "README.md: {}", wrong.join("\nREADME.md: "));
}

#[test]
fn a_session_that_ends_early_leaves_no_mount() {
    if !session::can_mount() {
        say("SKIPPED: no /dev/fuse here: whether a session that ends early leaves a mount");
        return;
    }
    let text = "```console\n$ revfs mount --create s mnt\n$ pwd -P > $HERE\n$ exit\n```";
    let note = tempfile::NamedTempFile::new().unwrap();
    let text = text.replace("$HERE", &note.path().display().to_string());
    assert_eq!(session::run(&session::steps(&text)).len(), 1);
    let dir = fs::read_to_string(note.path()).unwrap();
    assert!(dir.starts_with('/'));
    assert_eq!(session::mounts_below(Path::new(dir.trim_end())), Vec::<String>::new());
    assert!(!Path::new(dir.trim_end()).exists());
}

/// The long options in a text of `--help`, each with its default value if it has one.
fn options_of_help(help: &str) -> BTreeMap<String, Option<String>> {
    let mut options = BTreeMap::new();
    let mut last = String::new();
    let end = help.find("\nEXAMPLES").unwrap_or(help.len());
    for line in help[..end].lines().map(str::trim_start) {
        let start = if line.starts_with('-') { line.find("--") } else { None };
        if let Some(start) = start {
            last = line[start..].split([' ', ',']).next().unwrap_or_default().to_owned();
            options.insert(last.clone(), None);
        }
        if let Some((_, rest)) = line.split_once("[default: ")
            && let Some((value, _)) = rest.split_once(']')
            && !value.contains(' ')
            && let Some(default) = options.get_mut(&last)
        {
            *default = Some(value.to_owned());
        }
    }
    options.remove("--help");
    options
}

/// The rows of the table of options below the heading of a command, by option.
fn options_of_readme(readme: &str, command: &str) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    let heading = format!("### `revfs {command} ");
    let lines = readme.lines().skip_while(|line| !line.starts_with(&heading)).skip(1);
    for line in lines.take_while(|line| !line.starts_with('#')) {
        if line.starts_with("| `-")
            && let Some(start) = line.find("--")
        {
            let name = line[start..].split([' ', '`']).next().unwrap_or_default();
            options.insert(name.to_owned(), line.to_owned());
        }
    }
    options
}

/// What the README says otherwise than `--help` on the options of a command.
fn wrong_options(readme: &str, command: &str, help: &str) -> Vec<String> {
    let (real, told) = (options_of_help(help), options_of_readme(readme, command));
    let mut wrong = Vec::new();
    if !readme.contains(&format!("\n### `revfs {command} ")) {
        wrong.push(format!("revfs {command} has no heading"));
    }
    let all: BTreeSet<&String> = real.keys().chain(told.keys()).collect();
    for option in all {
        match (real.get(option), told.get(option)) {
            (Some(Some(default)), Some(row)) if !row.contains(&format!("default {default}")) => {
                wrong.push(format!("revfs {command} {option}: has default {default}, not so in: {row}"));
            }
            (Some(_), Some(_)) => {}
            (Some(_), None) => wrong.push(format!("revfs {command} {option}: is not in the table")),
            (None, _) => wrong.push(format!("revfs {command} {option}: there is no such option")),
        }
    }
    wrong
}

fn commands() -> Vec<String> {
    let help = help(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn a_table_of_options_that_is_not_in_step_is_seen() {
    let help = "Options:\n  -n, --limit <N>\n          So many\n\n          [default: 7]\n\n      --json\n  -h, --help\n";
    let good = "\n### `revfs x STORE`\n\n| option | |\n|---|---|\n| `-n`, `--limit N` | so many; default 7 |\n| `--json` | JSON |\n## End\n| `--late` | |\n";
    assert_eq!(wrong_options(good, "x", help), Vec::<String>::new());
    for (from, to) in [("`--json`", "`--jsn`"), ("default 7", "default 8"), ("x STORE", "y STORE")] {
        assert_ne!(wrong_options(&good.replace(from, to), "x", help), Vec::<String>::new(), "{to}");
    }
}

#[test]
fn each_option_of_help_is_in_the_readme_and_no_other() {
    let readme = document("README.md");
    let commands = commands();
    assert!(commands.len() > 10, "{commands:?}");
    let wrong: Vec<String> = commands
        .iter()
        .flat_map(|command| wrong_options(&readme, command, &help(&[command, "--help"])))
        .collect();
    assert!(wrong.is_empty(), "README.md: {}", wrong.join("\nREADME.md: "));
    let headings = readme.lines().filter_map(|line| line.strip_prefix("### `revfs "));
    let told: Vec<&str> = headings.filter_map(|rest| rest.split([' ', '`']).next()).collect();
    assert_eq!(told, commands, "each command once, in the order of --help");
}

#[test]
fn the_exit_codes_are_those_of_help() {
    let readme = document("README.md");
    let help = help(&["--help"]);
    let (_, list) = help.split_once("EXIT STATUS\n").unwrap();
    let real: Vec<String> = list
        .lines()
        .filter_map(|line| line.trim_start().split_once("  "))
        .map(|(code, meaning)| format!("| {code} | {meaning} |"))
        .collect();
    assert!(real.len() > 10, "{help}");
    let (_, section) = readme.split_once("\n### Exit codes\n").unwrap();
    let told: Vec<&str> = section
        .lines()
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with("| ") && !line.starts_with("| code"))
        .collect();
    assert_eq!(told, real);
}

#[test]
fn each_name_in_a_document_is_there() {
    let mut wrong = Vec::new();
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = document(name);
        let missing = names::named(&text)
            .into_iter()
            .filter(|(_, named)| !places(named).iter().any(|place| place.exists()));
        wrong.extend(missing.map(|(line, named)| format!("{name}:{line}: {named} is not there")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where a name may be: from the root, or a module of the library.
fn places(named: &str) -> Vec<PathBuf> {
    let src = root().join("src");
    vec![root().join(named), src.join(named), src.join(format!("{named}.rs"))]
}

#[test]
fn the_map_of_the_modules_is_that_of_the_sources() {
    let map = names::module_map(&document("ARCHITECTURE.md"));
    let told: BTreeSet<&str> = map.iter().map(|(module, _)| module.as_str()).collect();
    let wrong = names::wrong_map(&told, &modules("src"));
    assert!(wrong.is_empty(), "ARCHITECTURE.md: {}", wrong.join("\nARCHITECTURE.md: "));
    let (_, native) = map.iter().find(|(module, _)| module == "store/native").unwrap();
    for module in modules("src/store/native") {
        assert!(native.contains(&format!("`{module}`")), "ARCHITECTURE.md: store/native/{module} is missing");
    }
}

/// Names of the modules in a folder.
fn modules(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let sources = entries.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let stems = sources.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    stems.filter(|stem| !matches!(stem.as_str(), "lib" | "main" | "tests")).collect()
}
