//! The rules of the tree, as pure functions from a path and a source to what is wrong with it.
//!
//! Invariant: each rule says its reason, and `tidy.rs` holds a source for each that it must refuse.

use crate::scan::{self, PathUse, Token};
use std::fmt;

/// Modules of `src/`, ground floor first: each may use only itself and those before it. `protocol` is the
/// crate `revfs_protocol`.
pub const LAYERS: &[&str] =
    &["protocol", "env", "store", "delta", "view", "ops", "watch", "server", "host", "fs", "cli"];

/// A crate that only one module may name.
pub struct OnlyIn {
    pub name: &'static str,
    pub module: &'static str,
    pub reason: &'static str,
}

pub const ONLY_IN: &[OnlyIn] = &[
    OnlyIn {
        name: "fuser",
        module: "fs",
        reason: "the protocol of the kernel is glue; no logic depends on it",
    },
    OnlyIn { name: "heed", module: "store", reason: "the native store alone owns its database" },
    OnlyIn { name: "object_store", module: "store", reason: "all else reads through the trait Store" },
    OnlyIn { name: "clap", module: "cli", reason: "what commands do is in ops, without arguments or output" },
    OnlyIn { name: "clap_complete", module: "cli", reason: "what commands do is in ops, without a shell" },
    OnlyIn { name: "indicatif", module: "cli", reason: "what commands do is in ops, without output" },
    OnlyIn {
        name: "revfs_client",
        module: "cli",
        reason: "the server must not depend on a client of its own",
    },
];

/// Modules of `std` that the protocol may not use: ids and frames do no I/O.
const IO_MODULES: &[&str] = &["fs", "net", "process", "io"];

/// Locks of `std`: the same of `tracing_mutex` panic in debug builds when two are taken in both orders.
const LOCKS: &[&str] = &["Mutex", "RwLock", "Condvar"];

/// It schedules the threads of a test, at each of millions of accesses.
const MAY_LOCK_UNSEEN: &str = "src/delta/turns.rs";

/// What may stand at the top of the tree.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "clippy.toml",
    "deny.toml",
    ".gitignore",
    ".cargo",
    ".config",
    ".ci",
    ".git",
    "src",
    "client",
    "tests",
    "tools",
    "benches",
    "target",
];

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const MAIN_LINES_MAX: usize = 40;
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Which rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Layer,
    UnknownModule,
    OnlyIn,
    ProtocolIo,
    Locks,
    Head,
    FileLines,
    FunctionLines,
    MainLines,
    Ascii,
    ModRs,
    TopLevel,
    FileBytes,
}

/// One thing that is wrong, and how to put it right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub path: String,
    /// Line, from 1; 0 for the whole file.
    pub line: usize,
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {:?}: {}", self.path, self.line, self.rule, self.message)
    }
}

/// Collects what is wrong with one file.
struct Report<'a> {
    path: &'a str,
    violations: Vec<Violation>,
}

impl Report<'_> {
    fn add(&mut self, rule: Rule, line: usize, message: String) {
        self.violations.push(Violation { rule, path: self.path.to_owned(), line, message });
    }
}

/// What is wrong with a Rust source; `path` is relative to the root, with `/`.
pub fn check_source(path: &str, source: &str) -> Vec<Violation> {
    let mut report = Report { path, violations: Vec::new() };
    let tokens = scan::tokens(source);
    check_form(&mut report, source, &tokens);
    let paths = scan::paths(&tokens);
    if path.starts_with("client/protocol/") {
        check_protocol(&mut report, &paths);
    }
    if is_served(path) {
        check_locks(&mut report, &paths);
    }
    if let Some(modules) = module_path(path) {
        check_layers(&mut report, &modules, &paths);
        check_only_in(&mut report, &modules[0], &paths);
    }
    report.violations
}

/// The modules that a file of the library is: `src/store/native.rs` is `store`, `native`. None for the roots
/// of crates and for files outside `src/`.
fn module_path(path: &str) -> Option<Vec<String>> {
    let inside = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let is_root = matches!(inside, "lib" | "main") || inside.starts_with("bin/");
    (!is_root).then(|| inside.split('/').map(str::to_owned).collect())
}

fn check_form(report: &mut Report, source: &str, tokens: &[Token]) {
    let path = report.path;
    if !source.starts_with("//!") {
        report.add(Rule::Head, 1, "does not open with //!: say what the file is, and its invariant".into());
    }
    for (number, line) in (1..).zip(source.lines()) {
        if let Some(c) = line.chars().find(|c| !c.is_ascii()) {
            report.add(Rule::Ascii, number, format!("has {c:?}: sources are ASCII, write \\u{{..}}"));
        }
    }
    if path.ends_with("/mod.rs") {
        report.add(Rule::ModRs, 0, "is a mod.rs: move foo/mod.rs to foo.rs".into());
    }
    let all_lines = source.lines().count();
    let lines = scan::trailing_tests_line(tokens).map_or(all_lines, |line| line - 1);
    if lines > FILE_LINES_MAX {
        let message =
            format!("has {lines} lines without its tests, over {FILE_LINES_MAX}: split it by meaning");
        report.add(Rule::FileLines, 0, message);
    }
    if (path == "src/main.rs" || path.starts_with("src/bin/")) && all_lines > MAIN_LINES_MAX {
        report.add(
            Rule::MainLines,
            0,
            format!("has {all_lines} lines, over {MAIN_LINES_MAX}: move the rest to cli"),
        );
    }
    for function in scan::functions(tokens).iter().filter(|function| !function.is_test) {
        let lines = function.last_line - function.first_line + 1;
        if lines > FUNCTION_LINES_MAX {
            let message =
                format!("fn {} has {lines} lines, over {FUNCTION_LINES_MAX}: split it", function.name);
            report.add(Rule::FunctionLines, function.first_line, message);
        }
    }
}

fn check_protocol(report: &mut Report, paths: &[PathUse]) {
    for path in paths {
        if let [first, second, ..] = path.segments.as_slice()
            && first == "std"
            && IO_MODULES.contains(&second.as_str())
        {
            let message = format!("uses std::{second}: ids and frames do no I/O, move it to the caller");
            report.add(Rule::ProtocolIo, path.line, message);
        }
    }
}

/// Whether a source is of the server or the client, and not of their tests.
fn is_served(path: &str) -> bool {
    let is_test = path.contains("/tests/") || path.ends_with("/tests.rs") || path == MAY_LOCK_UNSEEN;
    (path.starts_with("src/") || path.starts_with("client/src/")) && !is_test
}

fn check_locks(report: &mut Report, paths: &[PathUse]) {
    for path in paths.iter().filter(|path| !path.inline_modules.iter().any(|module| module == "tests")) {
        if let [first, second, third, ..] = path.segments.as_slice()
            && (first.as_str(), second.as_str()) == ("std", "sync")
            && LOCKS.contains(&third.as_str())
        {
            let message = format!(
                "uses std::sync::{third}: take that of tracing_mutex::stdsync, which finds locks in the wrong order"
            );
            report.add(Rule::Locks, path.line, message);
        }
    }
}

fn check_layers(report: &mut Report, modules: &[String], paths: &[PathUse]) {
    let own = modules[0].as_str();
    let Some(floor) = LAYERS.iter().position(|layer| *layer == own) else {
        let message = format!("module {own} has no floor: add it to LAYERS in tests/tidy/rules.rs");
        report.add(Rule::UnknownModule, 0, message);
        return;
    };
    for path in paths {
        let Some(target) = from_root(modules, path) else {
            continue;
        };
        match LAYERS.iter().position(|layer| *layer == target) {
            Some(other) if other > floor => {
                let message = format!(
                    "{own} uses crate::{target}, which is above it: turn the need around with a trait in {own}"
                );
                report.add(Rule::Layer, path.line, message);
            }
            Some(_) => {}
            None => {
                let message = format!(
                    "{own} uses crate::{target}, which is no module of LAYERS: name the module that owns it"
                );
                report.add(Rule::UnknownModule, path.line, message);
            }
        }
    }
}

/// The top module that a path through `crate` or `super` names; none for any other path.
fn from_root(modules: &[String], path: &PathUse) -> Option<String> {
    let segments = &path.segments;
    if segments.first()? == "crate" {
        return segments.get(1).cloned();
    }
    let skipped_self = usize::from(segments[0] == "self");
    let supers = segments[skipped_self..].iter().take_while(|segment| *segment == "super").count();
    if supers == 0 {
        return None;
    }
    let depth = (modules.len() + path.inline_modules.len()).checked_sub(supers)?;
    if depth > 0 { Some(modules[0].clone()) } else { segments.get(skipped_self + supers).cloned() }
}

fn check_only_in(report: &mut Report, own: &str, paths: &[PathUse]) {
    for path in paths {
        let named = ONLY_IN.iter().find(|only| only.name == path.segments[0] && only.module != own);
        if let Some(OnlyIn { name, module, reason }) = named {
            let message = format!("names {name}, which only {module} may: {reason}");
            report.add(Rule::OnlyIn, path.line, message);
        }
    }
}

/// What is wrong with the names at the top of the tree.
pub fn check_top_level(names: &[String]) -> Vec<Violation> {
    let strange = names.iter().filter(|name| !TOP_LEVEL.contains(&name.as_str()));
    strange
        .map(|name| Violation {
            rule: Rule::TopLevel,
            path: name.clone(),
            line: 0,
            message: "does not belong at the top: move it into src, client, tests or tools".into(),
        })
        .collect()
}

/// What is wrong with the size of a file, in bytes.
pub fn check_size(path: &str, bytes: u64) -> Vec<Violation> {
    let too_big = bytes > FILE_BYTES_MAX;
    let message = format!("has {bytes} bytes, over {FILE_BYTES_MAX}: let a test or a tool make it");
    let violation = Violation { rule: Rule::FileBytes, path: path.to_owned(), line: 0, message };
    too_big.then_some(violation).into_iter().collect()
}
