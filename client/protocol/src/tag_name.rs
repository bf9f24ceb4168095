//! Names of tags.
//!
//! Invariant: no [`TagName`] can be mistaken for another form of a revision (tid, time, span, `head`), so a
//! text means the same whether or not a tag of that name exists.

use crate::id_text::{ID_TEXT_LEN, quoted};
use crate::rev_time::looks_like_time;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Length of the longest name of a tag, in bytes.
pub const TAG_NAME_LEN_MAX: usize = 128;

/// Names that mean something else wherever a revision is asked for.
const RESERVED: [&str; 2] = ["head", "at"];

/// The name of a tag: 1 to 128 of `A-Z a-z 0-9 . _ -`, not starting with `.` or `-`, and not of the form of a
/// tid or a time, nor `head` or `at`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagName(String);

/// A text that cannot name a tag.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TagNameError {
    /// The text is empty.
    #[error("a tag's name is empty: give 1 to 128 letters, digits or . _ -")]
    Empty,
    /// The text is too long.
    #[error("tag name {text:?}... has {len} bytes: at most 128 are allowed, give a shorter one")]
    TooLong {
        /// Its first 64 characters.
        text: String,
        /// Its length, in bytes.
        len: usize,
    },
    /// A character that names do not have.
    #[error("tag name {text:?} has the character {character:?}: use only letters A-Z a-z, digits and . _ -")]
    Character {
        /// The refused text, cut to its first 64 characters.
        text: String,
        /// The first wrong character.
        character: char,
    },
    /// It starts with `-`, like a span or an option, or with `.`, like a hidden file.
    #[error("tag name {text:?} starts with {character:?}: start it with a letter, a digit or _")]
    Start {
        /// The refused text, cut to its first 64 characters.
        text: String,
        /// Its first character.
        character: char,
    },
    /// It looks like a transaction id.
    #[error("tag name {text:?} looks like a transaction id (16 hex digits): give one that does not")]
    LooksLikeTid {
        /// The refused text.
        text: String,
    },
    /// It looks like a time.
    #[error("tag name {text:?} looks like a time (4 digits, then \"-\" or nothing): start it with a letter")]
    LooksLikeTime {
        /// The refused text, cut to its first 64 characters.
        text: String,
    },
    /// It is a word with another meaning.
    #[error("tag name {text:?} is reserved: give another one")]
    Reserved {
        /// The refused text.
        text: String,
    },
}

impl TagName {
    /// Checks a name; the errors say what is wrong with it.
    pub fn new(text: &str) -> Result<TagName, TagNameError> {
        let Some(first) = text.chars().next() else {
            return Err(TagNameError::Empty);
        };
        let shown = quoted(text);
        if text.len() > TAG_NAME_LEN_MAX {
            return Err(TagNameError::TooLong { text: shown, len: text.len() });
        }
        if let Some(character) = text.chars().find(|&c| !is_tag_character(c)) {
            return Err(TagNameError::Character { text: shown, character });
        }
        if matches!(first, '-' | '.') {
            return Err(TagNameError::Start { text: shown, character: first });
        }
        if looks_like_tid(text) {
            return Err(TagNameError::LooksLikeTid { text: shown });
        }
        if looks_like_time(text) {
            return Err(TagNameError::LooksLikeTime { text: shown });
        }
        if RESERVED.contains(&text) {
            return Err(TagNameError::Reserved { text: shown });
        }
        Ok(TagName(text.to_owned()))
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_tag_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

/// Whether a text is a tid, or a tid with slips of the pen: 16 hex digits of any case, or 16 letters and digits
/// of which the first is 0, as in each tid until the year 2401. A slip must not become "no such tag".
pub(crate) fn looks_like_tid(text: &str) -> bool {
    let all = |matches: fn(&u8) -> bool| text.bytes().all(|byte| matches(&byte));
    text.len() == ID_TEXT_LEN
        && (all(u8::is_ascii_hexdigit) || (text.starts_with('0') && all(u8::is_ascii_alphanumeric)))
}

impl fmt::Display for TagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for TagName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for TagName {
    type Err = TagNameError;

    fn from_str(text: &str) -> Result<TagName, TagNameError> {
        TagName::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_words_are_names() {
        let longest = "x".repeat(TAG_NAME_LEN_MAX);
        let names = [
            "release-1",
            "v1.0",
            "_",
            "a",
            "5min",
            "2026.1",
            "20261121",
            "headless",
            "HEAD",
            "deadbeef",
            "xdeadbeefdeadbee",
            &longest,
        ];
        for name in names {
            assert_eq!(TagName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn each_rule_refuses() {
        let refused = |text: &str| TagName::new(text).unwrap_err();
        let owned = |text: &str| text.to_owned();
        assert_eq!(refused(""), TagNameError::Empty);
        assert!(matches!(refused(&"x".repeat(129)), TagNameError::TooLong { len: 129, .. }));
        for (text, character) in
            [("a b", ' '), ("a/b", '/'), ("@a", '@'), ("a\0", '\0'), ("\u{e9}", '\u{e9}')]
        {
            assert_eq!(refused(text), TagNameError::Character { text: owned(text), character });
        }
        for text in [".", "..", ".a", "-a", "-5min"] {
            assert!(matches!(refused(text), TagNameError::Start { .. }), "{text}");
        }
        for text in ["0123456789abcdef", "0123456789ABCDEF", "03zz000000000000", "deadbeefdeadbeef"] {
            assert_eq!(refused(text), TagNameError::LooksLikeTid { text: owned(text) });
        }
        for text in ["2026", "0000", "2026-11", "2026-11-21", "2026-", "1234-release"] {
            assert_eq!(refused(text), TagNameError::LooksLikeTime { text: owned(text) });
        }
        for text in ["head", "at"] {
            assert_eq!(refused(text), TagNameError::Reserved { text: owned(text) });
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_an_accepted_one_is_kept(text in "\\PC{0,200}", near in "[0-9a-f.-]{1,17}") {
            for text in [text, near] {
                if let Ok(name) = TagName::new(&text) {
                    prop_assert_eq!(name.to_string(), text);
                }
            }
        }
    }
}
