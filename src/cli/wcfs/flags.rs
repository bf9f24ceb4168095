//! Options in the form of Go's package `flag`, written from its documentation.
//!
//! Invariant: each option is known by name and has a value of its kind, or the whole line is refused.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use revfs_protocol::{parse_go_duration, parse_size};

/// What kind of value an option has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// On or off; on if nothing is said.
    Switch,
    /// A Go duration.
    Duration,
    /// Bytes, as in 64M.
    Size,
    /// Anything.
    Text,
}

impl Kind {
    /// How usage shows it, after the name.
    pub(super) fn value_name(self) -> &'static str {
        match self {
            Kind::Switch => "",
            Kind::Duration => " duration",
            Kind::Size => " size",
            Kind::Text => " value",
        }
    }
}

/// An option.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlagError {
    #[error("flag provided but not defined: -{name}")]
    Unknown { name: String },
    #[error("flag -{name} needs a value")]
    NoValue { name: &'static str },
    #[error("invalid value {value:?} for flag -{name}: {cause}")]
    BadValue { name: &'static str, value: String, cause: String },
    #[error("bad flag syntax: {argument:?}")]
    Syntax { argument: OsString },
    #[error("expected 2 arguments, the URL of a database and a mount point; got {count}")]
    Arguments { count: usize },
    #[error("{argument:?} is not UTF-8: name the database by a URL")]
    NotText { argument: OsString },
    #[error("{}: cannot be a mount point: {source}", path.display())]
    Path { path: PathBuf, source: std::io::Error },
}

#[derive(Clone, Debug)]
enum Value {
    Switch(bool),
    Duration(Duration),
    Size(u64),
    Text(String),
}

/// Values by the names of their options; of an option that is there twice the last.
#[derive(Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, Value>);

impl Values {
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        if let Value::Switch(on) = self.0.get(name)? { Some(*on) } else { None }
    }

    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        if let Value::Duration(duration) = self.0.get(name)? { Some(*duration) } else { None }
    }

    pub(super) fn size(&self, name: &str) -> Option<u64> {
        if let Value::Size(bytes) = self.0.get(name)? { Some(*bytes) } else { None }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        if let Value::Text(text) = self.0.get(name)? { Some(text) } else { None }
    }
}

/// A command line taken apart.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) values: Values,
    /// What follows the options.
    pub(super) rest: Vec<OsString>,
}

/// Takes a command line apart; `None`: it asks for help.
pub(super) fn parse(flags: &[Flag], args: &[OsString]) -> Result<Option<Parsed>, FlagError> {
    let mut values = Values::default();
    let mut args = args.iter();
    while let Some(argument) = args.as_slice().first() {
        let Some(option) =
            argument.to_str().and_then(|text| text.strip_prefix('-')).filter(|o| !o.is_empty())
        else {
            break;
        };
        args.next();
        if option == "-" {
            break;
        }
        let option = option.strip_prefix('-').unwrap_or(option);
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        if name.is_empty() || name.starts_with('-') {
            return Err(FlagError::Syntax { argument: argument.clone() });
        }
        let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
            return match name {
                "h" | "help" => Ok(None),
                _ => Err(FlagError::Unknown { name: name.to_owned() }),
            };
        };
        let value = match (value, flag.kind) {
            (Some(value), _) => value.to_owned(),
            (None, Kind::Switch) => "true".to_owned(),
            (None, _) => {
                let next = args.next().ok_or(FlagError::NoValue { name: flag.name })?;
                next.to_str().ok_or_else(|| FlagError::NotText { argument: next.clone() })?.to_owned()
            }
        };
        values.0.insert(flag.name, value_of(flag, value)?);
    }
    Ok(Some(Parsed { values, rest: args.cloned().collect() }))
}

fn value_of(flag: &Flag, value: String) -> Result<Value, FlagError> {
    let bad =
        |value: &str, cause: String| FlagError::BadValue { name: flag.name, value: value.to_owned(), cause };
    match flag.kind {
        Kind::Switch => match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Switch(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Switch(false)),
            other => Err(bad(other, "give true or false".to_owned())),
        },
        Kind::Duration => {
            parse_go_duration(&value).map(Value::Duration).map_err(|error| bad(&value, error.to_string()))
        }
        Kind::Size => parse_size(&value).map(Value::Size).map_err(|error| bad(&value, error.to_string())),
        Kind::Text => Ok(Value::Text(value)),
    }
}
