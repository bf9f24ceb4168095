//! The shape of the tree: which module may import which, sizes of files and functions, what lies at the top.
//!
//! Invariant: each rule is first seen to refuse a wrong source, then run on the real tree. The rules and
//! their reasons are in `tidy/rules.rs`.

#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/scan.rs"]
mod scan;

use rules::{LAYERS, ONLY_IN, Rule, Violation, check_size, check_source, check_top_level};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Folders with sources, under the root.
const SOURCE_FOLDERS: &[&str] = &["src", "client", "tests", "tools", "benches"];

/// Broken rules of a source that opens as it must, with their lines.
fn broken(path: &str, body: &str) -> Vec<(Rule, usize)> {
    let source = format!("//! Head.\n{body}");
    check_source(path, &source).into_iter().map(|violation| (violation.rule, violation.line)).collect()
}

#[test]
fn an_import_that_climbs_is_refused_in_each_form() {
    for body in [
        "use crate::fs;",
        "use crate::fs::Inode;",
        "use crate::{env::Clock, fs};",
        "use crate::{env::{Clock, sleep}, fs::{self, x as y}};",
        "pub(crate) use crate::fs as files;",
        "fn f() { crate::fs::go(); }",
        "fn f(a: &crate::fs::A) {}",
        "macro_rules! m { () => { $crate::fs::go() } }",
        "use super::fs;",
        "use super::{env, fs::A};",
        "use self::super::fs::A;",
        "mod tests { use super::super::fs; }",
        "fn f() -> Vec<crate::fs::A> { Vec::<crate::fs::A>::new() }",
    ] {
        assert_eq!(broken("src/store.rs", body).first(), Some(&(Rule::Layer, 2)), "{body}");
    }
    assert_eq!(broken("src/store/native/log.rs", "use super::super::super::fs;"), [(Rule::Layer, 2)]);
    assert_eq!(broken("src/store/native/log.rs", "\n\nuse crate::delta;"), [(Rule::Layer, 4)]);
}

#[test]
fn each_module_may_use_those_below_and_none_above() {
    for (floor, own) in LAYERS.iter().enumerate() {
        for (other_floor, other) in LAYERS.iter().enumerate() {
            let expected: &[_] = if other_floor > floor { &[(Rule::Layer, 2)] } else { &[] };
            assert_eq!(broken(&format!("src/{own}.rs"), &format!("use crate::{other}::X;")), expected);
            assert_eq!(broken(&format!("src/{own}/a/b.rs"), &format!("use crate::{other}::X;")), expected);
        }
    }
}

#[test]
fn what_only_looks_like_a_climb_is_let_through() {
    for body in [
        "// use crate::fs;",
        "/* use crate::fs; /* nested */ use crate::fs; */",
        "/// See [`crate::fs`].\nfn f() {}",
        "const A: &str = \"crate::fs\";",
        "const A: &str = r#\"a\" crate::fs\"#;",
        "const A: &[u8] = b\"\\\" crate::fs\";",
        "const A: char = '\"'; // crate::fs",
        "fn f<'a>(x: &'a str) -> char { '\\'' }",
        "use std::fs;",
        "use std::{fs, io};",
        "use rustix::fs::open;",
        "pub(crate) fn fs() {}",
        "fn f() { let fs = 1; super::go(fs); }",
        "mod tests { use super::fs; use super::*; }",
        "mod fs { pub struct A; } use self::fs::A;",
        "pub(in crate::store) struct A;",
        "use crate::store::fs::A;",
    ] {
        let refused = broken("src/store/native.rs", body);
        assert_eq!(refused, [], "{body}");
    }
    for root in ["src/lib.rs", "src/main.rs", "src/bin/wcfs.rs", "tests/a.rs", "tools/ci/src/main.rs"] {
        assert_eq!(broken(root, "use crate::fs; use fuser::A;"), [], "{root}");
    }
}

#[test]
fn a_module_without_a_floor_is_refused() {
    assert_eq!(broken("src/util.rs", ""), [(Rule::UnknownModule, 0)]);
    assert_eq!(broken("src/util/a.rs", ""), [(Rule::UnknownModule, 0)]);
    assert_eq!(broken("src/store.rs", "use crate::util::A;"), [(Rule::UnknownModule, 2)]);
    assert_eq!(broken("src/store.rs", "use crate::*;"), [(Rule::UnknownModule, 2)]);
    assert_eq!(broken("src/store.rs", "use super::*;"), [(Rule::UnknownModule, 2)]);
    assert_eq!(broken("src/store.rs", "use crate::{self as all};"), [(Rule::UnknownModule, 2)]);
}

#[test]
fn a_crate_is_named_only_by_the_module_that_owns_it() {
    for only in ONLY_IN {
        assert!(!only.reason.is_empty() && LAYERS.contains(&only.module));
        for body in [
            format!("use {0}::A;", only.name),
            format!("use {0};", only.name),
            format!("use ::{0};", only.name),
            format!("use {0} as other;", only.name),
            format!("use {{std::fmt, {0}::A}};", only.name),
            format!("fn f() {{ let a = {0}::A::new(); }}", only.name),
            format!("fn f(a: &dyn ::{0}::A) {{}}", only.name),
            format!("#[derive({0}::Parser)] struct A;", only.name),
        ] {
            assert_eq!(broken("src/view.rs", &body), [(Rule::OnlyIn, 2)], "{body}");
            assert_eq!(broken(&format!("src/{}/a.rs", only.module), &body), [], "{body}");
        }
        let harmless = format!("fn f() {{ let {0} = a.{0}; a::{0}::b({0}); Vec::<u8>::{0}(); }}", only.name);
        assert_eq!(broken("src/view.rs", &harmless), []);
    }
}

#[test]
fn the_protocol_does_no_io() {
    let path = "client/protocol/src/tid.rs";
    for body in
        ["use std::fs;", "use std::io::Read;", "use std::{fmt, net};", "fn f() { std::process::exit(1) }"]
    {
        assert_eq!(broken(path, body), [(Rule::ProtocolIo, 2)], "{body}");
    }
    assert_eq!(broken(path, "use std::{fmt, time::Duration}; use crate::io::A; // std::io"), []);
    assert_eq!(broken("client/src/conn.rs", "use std::io;"), []);
}

#[test]
fn locks_are_those_that_see_in_which_order_they_are_taken() {
    let bodies = [
        "use std::sync::Mutex;",
        "use std::sync::{Arc, Condvar};",
        "use std::{fmt, sync::{Arc, RwLock}};",
        "static A: std::sync::Mutex<u8> = std::sync::Mutex::new(0);",
    ];
    for body in bodies {
        for path in ["src/view.rs", "src/server/links.rs", "client/src/gate.rs"] {
            assert_eq!(broken(path, body).first(), Some(&(Rule::Locks, 2)), "{path}: {body}");
        }
        for path in ["src/server/tests.rs", "src/server/tests/peer.rs", "tests/a.rs", "src/delta/turns.rs"] {
            assert_eq!(broken(path, body), [], "{path}: {body}");
        }
        assert_eq!(broken("src/view.rs", &format!("#[cfg(test)] mod tests {{ {body} }}")), [], "{body}");
    }
    let others = "use std::sync::{Arc, MutexGuard, OnceLock}; use tracing_mutex::stdsync::Mutex;";
    assert_eq!(broken("src/view.rs", others), []);
}

#[test]
fn a_file_without_a_head_is_refused() {
    let refused = |source| check_source("tools/a.rs", source).first().map(|violation| violation.rule);
    assert_eq!(refused("use std::fmt;\n"), Some(Rule::Head));
    assert_eq!(refused("// A comment.\n//! Head.\n"), Some(Rule::Head));
    assert_eq!(refused(""), Some(Rule::Head));
    assert_eq!(refused("//! Head.\n"), None);
}

#[test]
fn a_file_over_the_cap_is_refused_but_its_tests_do_not_count() {
    let code = "const A: u8 = 0;\n";
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "// }\n".repeat(500));
    assert_eq!(broken("src/env.rs", &code.repeat(599)), []);
    assert_eq!(broken("src/env.rs", &code.repeat(600)), [(Rule::FileLines, 0)]);
    assert_eq!(broken("src/env.rs", &format!("{}{tests}", code.repeat(599))), []);
    assert_eq!(broken("src/env.rs", &format!("{}{tests}", code.repeat(600))), [(Rule::FileLines, 0)]);
    assert_eq!(broken("src/env.rs", &format!("{tests}{}", code.repeat(200))), [(Rule::FileLines, 0)]);
    let not_a_module = tests.replace("mod tests", "fn helper()");
    assert_eq!(broken("src/env.rs", &format!("{}{not_a_module}", code.repeat(200))), [(Rule::FileLines, 0)]);
}

#[test]
fn a_function_over_the_cap_is_refused_but_tests_are_not() {
    let function =
        |lines: usize| format!("fn f(a: [u8; 2])\n{{\n{}}}\n", "    a(); // }\n".repeat(lines - 3));
    assert_eq!(broken("src/env.rs", &function(70)), []);
    assert_eq!(broken("src/env.rs", &function(71)), [(Rule::FunctionLines, 2)]);
    assert_eq!(
        broken("src/env.rs", &format!("impl A {{\npub {}}}", function(71))),
        [(Rule::FunctionLines, 3)]
    );
    assert_eq!(broken("tests/a.rs", &function(71)), [(Rule::FunctionLines, 2)]);
    assert_eq!(broken("tests/a.rs", &format!("#[test]\n{}", function(71))), []);
    assert_eq!(broken("src/env.rs", &format!("#[cfg(test)]\n{}", function(71))), []);
    assert_eq!(broken("src/env.rs", &format!("#[cfg(test)]\nmod tests {{\n{}}}", function(71))), []);
    assert_eq!(broken("src/env.rs", &format!("trait A {{ fn g(&self); }}\n{}", function(70))), []);
    assert_eq!(
        broken("src/env.rs", &format!("#[cfg(not(test))]\n{}", function(71))),
        [(Rule::FunctionLines, 3)]
    );
}

#[test]
fn main_files_are_thin() {
    for path in ["src/main.rs", "src/bin/wcfs.rs"] {
        assert_eq!(broken(path, &"\n".repeat(39)), []);
        assert_eq!(broken(path, &"\n".repeat(40)), [(Rule::MainLines, 0)]);
    }
}

#[test]
fn sources_are_ascii_and_no_mod_rs() {
    assert_eq!(broken("src/env.rs", "\n// caf\u{e9}\n"), [(Rule::Ascii, 3)]);
    assert_eq!(broken("src/store/mod.rs", ""), [(Rule::ModRs, 0)]);
    assert_eq!(broken("tests/common/mod.rs", ""), [(Rule::ModRs, 0)]);
    assert_eq!(broken("src/store.rs", "mod r#mod;"), []);
}

#[test]
fn strange_things_at_the_top_and_big_files_are_refused() {
    let names = ["src", "notes.txt", ".gitignore"].map(str::to_owned);
    let refused = check_top_level(&names);
    assert_eq!(
        refused.iter().map(|v| (v.rule, v.path.as_str())).collect::<Vec<_>>(),
        [(Rule::TopLevel, "notes.txt")]
    );
    assert_eq!(check_size("tests/a.bin", 1 << 20), []);
    assert_eq!(check_size("tests/a.bin", (1 << 20) + 1)[0].rule, Rule::FileBytes);
}

#[test]
fn broken_sources_do_not_panic() {
    let whole =
        fs::read_to_string(root().join("tests/tidy/scan.rs")).expect("tests/tidy/scan.rs is readable");
    for end in (0..whole.len()).step_by(41) {
        check_source("src/env.rs", &whole[..end]);
    }
    for body in
        ["use ;", "use {", "use a::{b", "use a::{,}", "}}}", "::", "mod {", "fn", "#[cfg(test)]", "'", "r#"]
    {
        check_source("src/env.rs", body);
    }
}

#[test]
fn the_tree_is_tidy() {
    let mut violations = check_top_level(&top_level_names());
    let mut sources = 0;
    for path in files_of_the_tree() {
        violations
            .extend(fs::metadata(root().join(&path)).map_or(Vec::new(), |m| check_size(&path, m.len())));
        if path.ends_with(".rs") {
            let source = fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
            violations.extend(check_source(&path, &source));
            sources += 1;
        }
    }
    assert!(sources >= 4, "found only {sources} sources: the walk is broken");
    let shown: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(shown.is_empty(), "{} violations:\n{}", shown.len(), shown.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files that git tracks or would add, relative to the root; none without git.
fn files_of_git() -> Option<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(root()).output().ok()?;
    let text =
        String::from_utf8(output.stdout).ok().filter(|text| output.status.success() && !text.is_empty())?;
    // A file that is tracked but deleted is on its way out.
    Some(text.split_terminator('\0').filter(|path| root().join(path).is_file()).map(str::to_owned).collect())
}

/// All files of the tree that are ours, relative to the root: by git, or by a walk where there is none.
fn files_of_the_tree() -> Vec<String> {
    files_of_git().unwrap_or_else(|| SOURCE_FOLDERS.iter().flat_map(|folder| walk(folder)).collect())
}

/// Files under a folder; hidden ones and build results are left out. A folder that does not exist has none.
fn walk(folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    let entries = fs::read_dir(root().join(folder)).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && name != "target" && !name.starts_with('.') => {
                files.extend(walk(&path))
            }
            Ok(kind) if kind.is_file() => files.push(path),
            _ => {}
        }
    }
    files
}

/// Names at the top of the tree: of git's files, or of the folder where there is no git.
fn top_level_names() -> Vec<String> {
    let first = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let mut names: Vec<String> = match files_of_git() {
        Some(files) => files.iter().map(first).collect(),
        None => {
            let entries = fs::read_dir(root()).expect("the root is readable").flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        }
    };
    names.sort();
    names.dedup();
    names
}
