//! A small reader of Rust sources: tokens, paths, functions and test items. No full parser, on purpose.
//!
//! Invariant: what stands in comments and literals is never seen as code, and no text makes it panic.

/// One token: an identifier, number or keyword as written, `::`, one other character, or `"` for a literal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    /// Line, from 1.
    pub line: usize,
}

/// A path in code, `use` groups taken apart: `use a::{b, c::d}` is `a::b` and `a::c::d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathUse {
    pub segments: Vec<String>,
    /// Modules that are opened by `mod x {` around it in this file.
    pub inline_modules: Vec<String>,
    /// Whether it stands in a `use`, where even one segment is a path.
    pub in_use: bool,
    pub line: usize,
}

/// A function with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub first_line: usize,
    pub last_line: usize,
    /// Whether it is a test, or inside an item that exists for tests only.
    pub is_test: bool,
}

pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn skip(&mut self, count: usize) {
        let end = (self.at + count).min(self.chars.len());
        self.line += self.chars[self.at..end].iter().filter(|&&c| c == '\n').count();
        self.at = end;
    }

    fn skip_until(&mut self, stop: impl Fn(&Lexer) -> bool) {
        while self.at < self.chars.len() && !stop(self) {
            self.skip(1);
        }
    }

    fn skip_block_comment(&mut self) {
        let mut depth = 0;
        loop {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => (depth += 1, self.skip(2)),
                ('*', '/') => (depth -= 1, self.skip(2)),
                _ => ((), self.skip(1)),
            };
            if depth == 0 || self.at == self.chars.len() {
                return;
            }
        }
    }

    /// Skips a literal whose opening quote is the next character; a backslash hides what follows it.
    fn skip_quoted(&mut self, quote: char) {
        self.skip(1);
        while self.at < self.chars.len() && self.peek(0) != quote {
            self.skip(if self.peek(0) == '\\' { 2 } else { 1 });
        }
        self.skip(1);
    }

    /// Skips a raw literal from its first `#` or quote on.
    fn skip_raw(&mut self, hashes: usize) {
        self.skip(hashes + 1);
        self.skip_until(|lexer| lexer.peek(0) == '"' && (1..=hashes).all(|n| lexer.peek(n) == '#'));
        self.skip(hashes + 1);
    }

    /// Skips a literal that starts here, after the prefix `word` (`r`, `b`, `br`, ...; empty if none).
    fn skip_literal(&mut self, word: &str) -> bool {
        let hashes = (0..).take_while(|&n| self.peek(n) == '#').count();
        match word {
            "r" | "br" | "cr" if self.peek(hashes) == '"' => self.skip_raw(hashes),
            "" | "b" | "c" if self.peek(0) == '"' => self.skip_quoted('"'),
            "" | "b" if self.peek(0) == '\'' && (self.peek(1) == '\\' || self.peek(2) == '\'') => {
                self.skip_quoted('\'')
            }
            _ => return false,
        }
        true
    }

    fn word(&mut self) -> String {
        let start = self.at;
        self.skip_until(|lexer| !(lexer.peek(0).is_alphanumeric() || lexer.peek(0) == '_'));
        self.chars[start..self.at].iter().collect()
    }
}

/// The tokens of a source.
pub fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { chars: source.chars().collect(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    while lexer.at < lexer.chars.len() {
        let (line, next) = (lexer.line, lexer.peek(0));
        let mut text = next.to_string();
        match (next, lexer.peek(1)) {
            (c, _) if c.is_whitespace() => {
                lexer.skip(1);
                continue;
            }
            ('/', '/') => {
                lexer.skip_until(|lexer| lexer.peek(0) == '\n');
                continue;
            }
            ('/', '*') => {
                lexer.skip_block_comment();
                continue;
            }
            (':', ':') => {
                lexer.skip(2);
                text = "::".to_owned();
            }
            (c, _) if c.is_alphanumeric() || c == '_' => {
                text = lexer.word();
                if lexer.skip_literal(&text) {
                    text = "\"".to_owned();
                } else if text == "r" && lexer.peek(0) == '#' && is_identifier(&lexer.peek(1).to_string()) {
                    lexer.skip(1);
                    text = lexer.word();
                }
            }
            _ if lexer.skip_literal("") => text = "\"".to_owned(),
            ('\'', _) => {
                lexer.skip(1); // a lifetime: not a path, whatever its name
                lexer.word();
            }
            _ => lexer.skip(1),
        }
        tokens.push(Token { text, line });
    }
    tokens
}

fn text_at(tokens: &[Token], at: usize) -> &str {
    tokens.get(at).map_or("", |token| &token.text)
}

/// The token that closes the bracket at `open`, or the last token if none does.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len().saturating_sub(1)
}

/// The last token of the item that starts at `from`: the `}` of its body, or its `;`.
fn item_end(tokens: &[Token], from: usize) -> usize {
    let mut at = from;
    while at < tokens.len() {
        match text_at(tokens, at) {
            ";" => return at,
            "{" => return closing(tokens, at),
            "(" | "[" => at = closing(tokens, at) + 1,
            _ => at += 1,
        }
    }
    tokens.len().saturating_sub(1)
}

/// First and last token of each item under `#[cfg(test)]` or `#[cfg(all(test, ..))]`, the attribute included.
pub fn test_items(tokens: &[Token]) -> Vec<(usize, usize)> {
    let starts = |at: usize, words: &[&str]| (at..).zip(words).all(|(at, word)| text_at(tokens, at) == *word);
    (0..tokens.len())
        .filter(|&at| {
            starts(at, &["#", "[", "cfg", "(", "test", ")"])
                || starts(at, &["#", "[", "cfg", "(", "all", "(", "test"])
        })
        .map(|at| (at, item_end(tokens, closing(tokens, at + 1) + 1)))
        .collect()
}

/// The line at which the tests at the end of a file start, if it ends in `#[cfg(test)] mod .. { .. }`.
pub fn trailing_tests_line(tokens: &[Token]) -> Option<usize> {
    let last = tokens.len().checked_sub(1)?;
    let (start, _) = test_items(tokens).into_iter().find(|&(_, end)| end == last)?;
    let mut after = start;
    while text_at(tokens, after) == "#" {
        after = closing(tokens, after + 1) + 1;
    }
    (text_at(tokens, after) == "mod").then(|| tokens[start].line)
}

/// The functions that have a body.
pub fn functions(tokens: &[Token]) -> Vec<Function> {
    let test_items = test_items(tokens);
    let mut functions = Vec::new();
    for at in (0..tokens.len()).filter(|&at| text_at(tokens, at) == "fn") {
        let end = item_end(tokens, at);
        if !is_identifier(text_at(tokens, at + 1)) || text_at(tokens, end) != "}" {
            continue;
        }
        let before = tokens[..at].iter().rev().take_while(|token| !matches!(&*token.text, "{" | "}" | ";"));
        let attributes: Vec<&str> = before.map(|token| token.text.as_str()).collect();
        functions.push(Function {
            name: tokens[at + 1].text.clone(),
            first_line: tokens[at].line,
            last_line: tokens[end].line,
            is_test: attributes.windows(3).any(|w| w == ["]", "test", "["])
                || test_items.iter().any(|&(start, end)| (start..=end).contains(&at)),
        });
    }
    functions
}

/// Keywords that may stand right before a path that starts with `::`.
const BEFORE_GLOBAL_PATH: &[&str] =
    &["use", "as", "dyn", "impl", "for", "in", "return", "mut", "else", "match"];

/// All paths of two segments or more, and all that `use` names.
pub fn paths(tokens: &[Token]) -> Vec<PathUse> {
    let mut found = Vec::new();
    let mut modules: Vec<Option<String>> = Vec::new(); // one for each open brace
    let mut at = 0;
    while at < tokens.len() {
        let text = text_at(tokens, at);
        let before = at.checked_sub(1).map_or("", |before| text_at(tokens, before));
        let continues = |word: &str| is_identifier(word) && !BEFORE_GLOBAL_PATH.contains(&word);
        match text {
            "{" => {
                let names_module = at >= 2 && text_at(tokens, at - 2) == "mod";
                modules.push(names_module.then(|| before.to_owned()));
            }
            "}" => drop(modules.pop()),
            word if BEFORE_GLOBAL_PATH.contains(&word) => {
                at += 1;
                continue;
            }
            "::" if continues(before) || matches!(before, ">" | "]" | ")") => {
                at += 2; // the rest of a path that began with a type
                continue;
            }
            _ => {}
        }
        let in_use = before == "use"
            || (text != "::" && before == "::" && at >= 2 && text_at(tokens, at - 2) == "use");
        if is_identifier(text) || (in_use && text == "{") {
            let tree = read_tree(tokens, at, &[]);
            let inline_modules: Vec<String> = modules.iter().flatten().cloned().collect();
            if in_use && text == "{" {
                modules.pop(); // the tree has closed its brace itself
            }
            at = tree.next;
            found.extend(tree.leaves.into_iter().filter(|(segments, _)| in_use || segments.len() > 1).map(
                |(segments, line)| PathUse { segments, inline_modules: inline_modules.clone(), in_use, line },
            ));
        } else {
            at += 1;
        }
    }
    found
}

struct Tree {
    /// Segments and line of each path.
    leaves: Vec<(Vec<String>, usize)>,
    /// The token after it.
    next: usize,
}

/// Reads `a::b`, or a `use` tree `a::{b, c::*}`, that starts at `at` and continues `prefix`.
fn read_tree(tokens: &[Token], at: usize, prefix: &[String]) -> Tree {
    let mut segments = prefix.to_vec();
    let mut at = at;
    let line = tokens.get(at).map_or(0, |token| token.line);
    loop {
        match text_at(tokens, at) {
            "{" => {
                let end = closing(tokens, at);
                let mut leaves = Vec::new();
                at += 1;
                while at < end {
                    let tree = read_tree(tokens, at, &segments);
                    leaves.extend(tree.leaves);
                    // To the next comma, over `as name`; always ahead.
                    at = (tree.next..end).find(|&at| text_at(tokens, at) == ",").unwrap_or(end) + 1;
                }
                return Tree { leaves, next: end + 1 };
            }
            word if is_identifier(word) || word == "*" => segments.push(word.to_owned()),
            _ => return Tree { leaves: vec![(segments, line)], next: at.max(1) },
        }
        at += 1;
        let goes_on = text_at(tokens, at) == "::"
            && (is_identifier(text_at(tokens, at + 1)) || matches!(text_at(tokens, at + 1), "{" | "*"));
        if !goes_on {
            return Tree { leaves: vec![(segments, line)], next: at };
        }
        at += 1;
    }
}
