//! What the persistent ids of ZODB mean: references from one object to another.
//!
//! ZODB writes `oid`, `(oid, class)`, `['w', (oid,)]`, `['w', (oid, database)]`, `['n', (database, oid)]` and
//! `['m', (database, oid, class)]`; very old ones `[oid]`, which is weak.

use std::fmt;

use super::{LINE_BYTES_MAX, Pickles, Spelling, Value, ValueId, latin1};
use crate::store::zodb::Oid;

/// Most characters of a name that an error shows: who wrote the record chose it.
const SHOWN_CHARS_MAX: usize = 64;
/// An oid has 8 bytes: at most 16 as UTF-8 of Latin-1.
const OID_TEXT_BYTES_MAX: usize = 16;

/// A class or function, as a pickle names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassName<'a> {
    /// Its module.
    pub module: &'a str,
    /// Its name there.
    pub name: &'a str,
}

impl<'a> ClassName<'a> {
    /// From bytes, at most [`LINE_BYTES_MAX`] each; `None` if they are longer, or no UTF-8.
    pub(super) fn from_bytes(module: &'a [u8], name: &'a [u8]) -> Option<ClassName<'a>> {
        let text = |bytes: &'a [u8]| match bytes.len() {
            // The length first: many opcodes may name the same long text.
            ..=LINE_BYTES_MAX => std::str::from_utf8(bytes).ok(),
            _ => None,
        };
        Some(ClassName { module: text(module)?, name: text(name)? })
    }
}

impl fmt::Display for ClassName<'_> {
    /// Shows the first characters of both names, those that a terminal takes for orders escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.module.chars().take(SHOWN_CHARS_MAX) {
            write!(f, "{}", character.escape_debug())?;
        }
        f.write_str(".")?;
        for character in self.name.chars().take(SHOWN_CHARS_MAX) {
            write!(f, "{}", character.escape_debug())?;
        }
        Ok(())
    }
}

/// What a persistent id leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference<'a> {
    /// An object of this database.
    Strong {
        /// Which.
        oid: Oid,
        /// Its class, if the reference names it.
        class: Option<ClassName<'a>>,
    },
    /// An object that may be gone.
    Weak {
        /// Which.
        oid: Oid,
    },
    /// An object of another database.
    Foreign {
        /// Name of the database.
        database: &'a [u8],
        /// Which object of it.
        oid: Oid,
    },
}

impl<'a> Pickles<'a> {
    /// The reference that a value is; `None` if it is none, or of a form that ZODB does not write.
    pub fn reference(&self, id: ValueId) -> Option<Reference<'a>> {
        let Value::Persistent(named) = self.value(id) else { return None };
        if let Some(oid) = self.oid(named) {
            return Some(Reference::Strong { oid, class: None });
        }
        if let Some([oid, class]) = self.tuple(named) {
            return Some(Reference::Strong { oid: self.oid(*oid)?, class: self.class_name(*class) });
        }
        match self.list(named)? {
            [oid] => Some(Reference::Weak { oid: self.oid(*oid)? }),
            [kind, args] => match (self.name(*kind)?, self.tuple(*args)?) {
                (b"w", [oid]) => Some(Reference::Weak { oid: self.oid(*oid)? }),
                (b"w", [oid, database]) | (b"n", [database, oid]) | (b"m", [database, oid, _]) => {
                    Some(Reference::Foreign { database: self.name(*database)?, oid: self.oid(*oid)? })
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// The class that a value names: by itself, or as a tuple of its module and its name.
    pub fn class_name(&self, id: ValueId) -> Option<ClassName<'a>> {
        if let Some(class) = self.class(id) {
            return Some(class);
        }
        match self.tuple(id)? {
            [module, name] => ClassName::from_bytes(self.name(*module)?, self.name(*name)?),
            _ => None,
        }
    }

    /// The oid that a value is: 8 bytes, or a text that is 8 bytes in Latin-1.
    fn oid(&self, id: ValueId) -> Option<Oid> {
        let spelling = match self.value(id) {
            Value::Text(text) => Spelling::Latin1(text),
            _ => self.spelling(id)?,
        };
        let raw: [u8; 8] = match spelling {
            Spelling::Plain(bytes) => bytes.try_into().ok()?,
            // The length first: a text may be named by many references, and is decoded for each.
            Spelling::Latin1(text) if text.len() <= OID_TEXT_BYTES_MAX => latin1(text)?.try_into().ok()?,
            Spelling::Latin1(_) => return None,
        };
        Some(Oid::from_be_bytes(raw))
    }
}
