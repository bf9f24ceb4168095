//! The text forms of a revision, wherever one is asked for: `@` directories, `--at`, `--since`.
//!
//! Invariant: the form alone decides what a text is (tid, time, span, `head` or tag); no store is asked. So
//! "malformed" and "does not exist" are different answers, and a new tag never changes what a text means.

use crate::duration::{PartsProblem, SPAN_UNITS, sum_parts};
use crate::id_text::quoted;
use crate::rev_time::{looks_like_time, parse_time};
use crate::tag_name::{TagName, TagNameError, looks_like_tid};
use crate::tid::Tid;
use std::str::FromStr;
use thiserror::Error;

/// A revision as a user asks for it, before it is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevSpec {
    /// `head`: the newest.
    Head,
    /// 16 lower-case hex digits: this state.
    Tid(Tid),
    /// `2026`, `2026-11`, `2026-11-21`, `2026-11-21T10`, `2026-11-21T10:15:30.5Z`...: the newest commit before the
    /// end of the unit that is named, in UTC.
    Time {
        /// Start of the unit, nanoseconds since 1970; 0 if it is before, the greatest number if 64 bits end before.
        start_unix_ns: u64,
        /// End of the unit, excluded, nanoseconds since 1970, clamped as the start; 0 if all of it is before 1970.
        end_unix_ns: u64,
    },
    /// `-5min`, `-2h30m`: this long before now.
    Span {
        /// Nanoseconds before now; may be 0.
        ns: u64,
    },
    /// Anything else that can name a tag, whether or not the tag exists.
    Tag(TagName),
}

/// A text that has none of the forms of a revision.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RevSpecError {
    /// The text is empty, or a lone `@`.
    #[error("a revision is empty: give 16 hex digits, a time, a span, a tag or head")]
    Empty,
    /// It looks like a transaction id, but is none.
    #[error("revision {text:?} is not a transaction id: give exactly 16 lower-case hex digits")]
    Tid {
        /// The refused text.
        text: String,
    },
    /// It looks like a time, but is none.
    #[error("revision {text:?} is not a time, {reason}: give one as in 2026-11-21 or 2026-11-21T10:15:30Z")]
    Time {
        /// The refused text, cut to its first 64 characters.
        text: String,
        /// Which part is wrong.
        reason: &'static str,
    },
    /// It starts with `-` as a span does, but is none.
    #[error("revision {text:?} is not a span: give numbers with units (s m h d w), as in -5min or -2h30m")]
    Span {
        /// The refused text, cut to its first 64 characters.
        text: String,
    },
    /// A span that 64 bits of nanoseconds cannot hold.
    #[error("span {text:?} is over 584 years: give a shorter one")]
    SpanTooLong {
        /// The refused text, cut to its first 64 characters.
        text: String,
    },
    /// It has no form at all: not even a tag could have this name.
    #[error(
        "revision {text:?} is not 16 hex digits, a time or a span, and no tag can have this name: {cause}"
    )]
    Tag {
        /// The refused text, cut to its first 64 characters.
        text: String,
        /// Why no tag can have this name.
        #[source]
        cause: TagNameError,
    },
}

impl RevSpec {
    /// Reads a revision; one leading `@` is allowed. Errors: [`RevSpecError`], if the text has no form at all.
    ///
    /// ```
    /// use revfs_protocol::{RevSpec, Tid};
    /// assert_eq!(RevSpec::parse("@0000000000000000"), Ok(RevSpec::Tid(Tid::ZERO)));
    /// assert_eq!(RevSpec::parse("-5min"), Ok(RevSpec::Span { ns: 300_000_000_000 }));
    /// ```
    pub fn parse(text: &str) -> Result<RevSpec, RevSpecError> {
        let text = text.strip_prefix('@').unwrap_or(text);
        if text.is_empty() {
            return Err(RevSpecError::Empty);
        }
        if text == "head" {
            return Ok(RevSpec::Head);
        }
        if looks_like_tid(text) {
            return text.parse().map(RevSpec::Tid).map_err(|_| RevSpecError::Tid { text: quoted(text) });
        }
        if let Some(span) = text.strip_prefix('-') {
            return parse_span(text, span);
        }
        if looks_like_time(text) {
            let unit =
                parse_time(text).map_err(|reason| RevSpecError::Time { text: quoted(text), reason })?;
            return Ok(RevSpec::Time { start_unix_ns: unit.start_unix_ns, end_unix_ns: unit.end_unix_ns });
        }
        TagName::new(text).map(RevSpec::Tag).map_err(|cause| RevSpecError::Tag { text: quoted(text), cause })
    }
}

fn parse_span(text: &str, span: &str) -> Result<RevSpec, RevSpecError> {
    match sum_parts(span, &[SPAN_UNITS]) {
        Ok(ns) => Ok(RevSpec::Span { ns }),
        Err(PartsProblem::Malformed) => Err(RevSpecError::Span { text: quoted(text) }),
        Err(PartsProblem::TooLong) => Err(RevSpecError::SpanTooLong { text: quoted(text) }),
    }
}

impl FromStr for RevSpec {
    type Err = RevSpecError;

    fn from_str(text: &str) -> Result<RevSpec, RevSpecError> {
        RevSpec::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE_NS: u64 = 60_000_000_000;

    #[test]
    fn each_form_is_told_by_its_looks() {
        let tag = |name: &str| RevSpec::Tag(TagName::new(name).unwrap());
        let day = RevSpec::Time { start_unix_ns: 86_400_000_000_000, end_unix_ns: 172_800_000_000_000 };
        for (text, spec) in [
            ("head", RevSpec::Head),
            ("03caa84275fc1166", RevSpec::Tid(Tid::from_raw(0x03ca_a842_75fc_1166))),
            ("ffffffffffffffff", RevSpec::Tid(Tid::MAX)),
            ("1970-01-02", day),
            ("-30s", RevSpec::Span { ns: MINUTE_NS / 2 }),
            ("-30sec", RevSpec::Span { ns: MINUTE_NS / 2 }),
            ("-5min", RevSpec::Span { ns: 5 * MINUTE_NS }),
            ("-2h30m", RevSpec::Span { ns: 150 * MINUTE_NS }),
            ("-1d", RevSpec::Span { ns: 1440 * MINUTE_NS }),
            ("-1w", RevSpec::Span { ns: 7 * 1440 * MINUTE_NS }),
            ("release-1", tag("release-1")),
            ("5min", tag("5min")),
        ] {
            assert_eq!(RevSpec::parse(text), Ok(spec.clone()), "{text}");
            assert_eq!(format!("@{text}").parse(), Ok(spec), "@{text}");
        }
    }

    #[test]
    fn a_malformed_text_says_which_form_it_missed() {
        let refused = |text: &str| RevSpec::parse(text).unwrap_err();
        assert_eq!((refused(""), refused("@")), (RevSpecError::Empty, RevSpecError::Empty));
        for text in ["03zz000000000000", "03CAA84275FC1166"] {
            assert_eq!(refused(text), RevSpecError::Tid { text: text.to_owned() });
        }
        for text in ["2026-13-01", "2026-11-21T25", "0000", "2026-release"] {
            assert!(matches!(refused(text), RevSpecError::Time { .. }), "{text}");
        }
        for text in ["-", "-5", "-5ms", "-5y", "-h", "--5min", "-1.5h", "-release"] {
            assert_eq!(refused(text), RevSpecError::Span { text: text.to_owned() });
        }
        assert!(matches!(refused("-99999999w"), RevSpecError::SpanTooLong { .. }));
        for text in ["@@head", "at", ".", "..", "a/b", "a b", "a:b", "\u{e9}"] {
            assert!(matches!(refused(text), RevSpecError::Tag { .. }), "{text}");
        }
    }

    #[test]
    fn messages_name_the_thing_the_cause_and_the_remedy() {
        assert_eq!(
            RevSpec::parse("@2026-02-30").unwrap_err().to_string(),
            "revision \"2026-02-30\" is not a time, there is no such date: \
             give one as in 2026-11-21 or 2026-11-21T10:15:30Z"
        );
        assert_eq!(
            RevSpec::parse("a b").unwrap_err().to_string(),
            "revision \"a b\" is not 16 hex digits, a time or a span, and no tag can have this name: \
             tag name \"a b\" has the character ' ': use only letters A-Z a-z, digits and . _ -"
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "@?\\PC*", near in "@?[-0-9a-fhdwsT:.Z]{0,24}") {
            let _ = RevSpec::parse(&text);
            let _ = RevSpec::parse(&near);
        }

        #[test]
        fn a_name_that_a_tag_may_have_is_always_that_tag(name in "[A-Za-z0-9._-]{1,20}") {
            let tag = TagName::new(&name);
            prop_assert_eq!(matches!(RevSpec::parse(&name), Ok(RevSpec::Tag(_))), tag.is_ok());
        }

        #[test]
        fn each_tid_is_read_back(raw: u64) {
            let tid = Tid::from_raw(raw);
            prop_assert_eq!(RevSpec::parse(&tid.to_string()), Ok(RevSpec::Tid(tid)));
        }
    }
}
