//! Which files and modules a document names.
//!
//! Invariant: pure; what is there is for the caller to look up.

use std::collections::BTreeSet;

/// Starts of paths from the root of the tree.
const ROOTS: [&str; 6] = ["src/", "tests/", "tools/", "client/", ".ci/", ".cargo/"];
/// Modules whose parts documents name as `store/native`.
const MODULES: [&str; 9] =
    ["env/", "store/", "view/", "ops/", "server/", "host/", "fs/", "cli/", "protocol/"];

/// Names of files and modules in a document, each with its line: targets of links, and words in `code` that start as a
/// path of this tree does.
pub fn named(document: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (line, text) in (1..).zip(document.lines()) {
        fenced ^= text.starts_with("```");
        if fenced {
            continue;
        }
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            if !target.contains("://") && !path.is_empty() {
                found.push((line, path.to_owned()));
            }
        }
        for code in text.split('`').skip(1).step_by(2) {
            found.extend(code.split_whitespace().filter(|word| is_path(word)).map(|w| (line, w.to_owned())));
        }
    }
    found
}

fn is_path(word: &str) -> bool {
    let plain = word.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'/' | b'.' | b'_' | b'-'));
    let document = word.ends_with(".md") && !word.contains('/');
    plain && (document || ROOTS.iter().chain(&MODULES).any(|start| word.starts_with(start)))
}

/// The rows of the table of modules: the names in the first cell, and the text of the second.
pub fn module_map(document: &str) -> Vec<(String, String)> {
    let lines = document.lines().skip_while(|line| *line != "| module | what lives there |").skip(2);
    let mut rows = Vec::new();
    for line in lines.take_while(|line| line.starts_with('|')) {
        let Some((first, second)) = line[1..].split_once('|') else { continue };
        let names = first.split('`').skip(1).step_by(2).take_while(|name| !name.starts_with("client/"));
        rows.extend(names.map(|name| (name.to_owned(), second.to_owned())));
    }
    rows
}

/// What the map says otherwise than the sources: modules at the top of `src` that it lacks, or that are not there.
pub fn wrong_map(told: &BTreeSet<&str>, modules: &BTreeSet<String>) -> Vec<String> {
    let missing = modules.iter().filter(|module| !told.contains(module.as_str()));
    let missing = missing.map(|module| format!("the map of the modules lacks {module}"));
    let top = told.iter().filter(|name| !name.contains('/') && **name != "protocol");
    let gone = top.filter(|name| !modules.contains(**name));
    missing.chain(gone.map(|name| format!("the map of the modules has {name}, which is not there"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_paths_in_code_are_names() {
        let text = "See [a](A.md), [b](B.md#part) [w](https://x/y) [p](#part).\n`src/x.rs` and `store/native`\n\
                    ```sh\n`src/no.rs`\n```\n`cargo test tools/z` src/prose.rs `head/at` `X.md` `src/*.rs`";
        let found: Vec<String> =
            named(text).into_iter().map(|(line, name)| format!("{line} {name}")).collect();
        assert_eq!(found, ["1 A.md", "1 B.md", "2 src/x.rs", "2 store/native", "6 tools/z", "6 X.md"]);
    }

    #[test]
    fn a_map_that_lacks_a_module_or_has_a_strange_one_is_seen() {
        let document = "x\n| module | what lives there |\n|---|---|\n| `protocol` (crate `client/protocol`) | ids |\n\
                        | `store/native` | `log` |\n| `fs` | glue |\n\n| `late` | no |\n";
        let map = module_map(document);
        let told: BTreeSet<&str> = map.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(told, BTreeSet::from(["protocol", "store/native", "fs"]));
        let modules = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(wrong_map(&told, &modules(&["fs"])), Vec::<String>::new());
        assert_eq!(wrong_map(&told, &modules(&["fs", "cli"])).len(), 1);
        assert_eq!(wrong_map(&told, &modules(&[])).len(), 1);
    }
}
