//! Which files are imported, and under which names.
//!
//! Invariant: no two of them have one name.

use std::collections::{BTreeMap, BTreeSet};

use revfs_protocol::FileId;

use super::ImportError;
use crate::store::check_path;

/// The files that are imported. A file has its id as its name unless it was given another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// `None`: all.
    files: Option<BTreeSet<FileId>>,
    names: BTreeMap<FileId, Vec<u8>>,
    by_name: BTreeMap<Vec<u8>, FileId>,
}

impl Chosen {
    /// These files, or all if there are none; with the names that some of them are given.
    ///
    /// # Errors
    /// A name is none, or of two files, or of one that is not among them.
    pub fn new(files: &[FileId], names: &[(FileId, Vec<u8>)]) -> Result<Chosen, ImportError> {
        let files = (!files.is_empty()).then(|| files.iter().copied().collect::<BTreeSet<FileId>>());
        let mut chosen = Chosen { files, ..Chosen::default() };
        for (file, name) in names {
            check_path(name)?;
            if !chosen.has(*file) {
                return Err(ImportError::NotChosen { file: *file });
            }
            let twice = || ImportError::NameTwice { name: name.clone() };
            if chosen.names.insert(*file, name.clone()).is_some_and(|before| before != *name) {
                return Err(twice());
            }
            if chosen.by_name.insert(name.clone(), *file).is_some_and(|before| before != *file) {
                return Err(twice());
            }
        }
        // A name that is the id of another file.
        for (name, file) in &chosen.by_name {
            let other = id_of(name).filter(|other| other != file && chosen.has(*other));
            if other.is_some_and(|other| !chosen.names.contains_key(&other)) {
                return Err(ImportError::NameTwice { name: name.clone() });
            }
        }
        Ok(chosen)
    }

    fn has(&self, file: FileId) -> bool {
        self.files.as_ref().is_none_or(|files| files.contains(&file))
    }

    /// Which files; `None`: all.
    pub fn files(&self) -> Option<&BTreeSet<FileId>> {
        self.files.as_ref()
    }

    /// Its name, if it is chosen.
    pub fn name(&self, file: FileId) -> Option<Vec<u8>> {
        let given = || self.names.get(&file).cloned().unwrap_or_else(|| file.to_string().into_bytes());
        self.has(file).then(given)
    }

    /// The file that a name is of.
    pub fn file(&self, name: &[u8]) -> Option<FileId> {
        let by_id = || id_of(name).filter(|file| self.has(*file) && !self.names.contains_key(file));
        self.by_name.get(name).copied().or_else(by_id)
    }

    /// The choice as bytes: the same for the same choice only.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut number = |number: u64| bytes.extend_from_slice(&number.to_be_bytes());
        match &self.files {
            None => number(0),
            Some(files) => {
                number(1);
                number(files.len() as u64);
                files.iter().for_each(|file| number(file.raw()));
            }
        }
        for (file, name) in &self.names {
            bytes.extend_from_slice(&file.raw().to_be_bytes());
            bytes.extend_from_slice(&(name.len() as u64).to_be_bytes());
            bytes.extend_from_slice(name);
        }
        bytes
    }
}

fn id_of(name: &[u8]) -> Option<FileId> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: FileId = FileId::from_raw(1);
    const TWO: FileId = FileId::from_raw(2);

    fn named(file: FileId, name: &[u8]) -> (FileId, Vec<u8>) {
        (file, name.to_vec())
    }

    #[test]
    fn a_file_has_its_id_or_the_name_that_it_is_given() {
        let chosen = Chosen::new(&[], &[named(ONE, b"a/b")]).unwrap();
        assert_eq!(chosen.name(ONE).unwrap(), b"a/b");
        assert_eq!(chosen.name(TWO).unwrap(), b"0000000000000002");
        assert_eq!(chosen.file(b"a/b"), Some(ONE));
        assert_eq!(chosen.file(b"0000000000000002"), Some(TWO));
        assert_eq!(chosen.file(b"0000000000000001"), None, "it has another name");
        let chosen = Chosen::new(&[TWO], &[]).unwrap();
        assert_eq!((chosen.name(ONE), chosen.file(b"0000000000000001")), (None, None));
    }

    #[test]
    fn names_that_collide_are_refused() {
        let refused = |files: &[FileId], names: &[(FileId, Vec<u8>)]| Chosen::new(files, names).unwrap_err();
        let twice = refused(&[], &[named(ONE, b"a"), named(TWO, b"a")]);
        assert!(matches!(twice, ImportError::NameTwice { .. }));
        let twice = refused(&[], &[named(ONE, b"a"), named(ONE, b"b")]);
        assert!(matches!(twice, ImportError::NameTwice { .. }));
        let of_another = refused(&[], &[named(ONE, b"0000000000000002")]);
        assert!(matches!(of_another, ImportError::NameTwice { .. }));
        assert!(matches!(refused(&[ONE], &[named(TWO, b"a")]), ImportError::NotChosen { file: TWO }));
        assert!(matches!(refused(&[], &[named(ONE, b"/")]), ImportError::Name(_)));
        // Both have changed their names.
        let swap = [named(ONE, b"0000000000000002"), named(TWO, b"0000000000000001")];
        assert_eq!(Chosen::new(&[], &swap).unwrap().file(b"0000000000000002"), Some(ONE));
    }

    #[test]
    fn each_choice_has_its_own_bytes() {
        let choices = [
            Chosen::new(&[], &[]).unwrap(),
            Chosen::new(&[ONE], &[]).unwrap(),
            Chosen::new(&[ONE, TWO], &[]).unwrap(),
            Chosen::new(&[], &[named(ONE, b"a")]).unwrap(),
            Chosen::new(&[], &[named(ONE, b"b")]).unwrap(),
        ];
        let bytes: BTreeSet<Vec<u8>> = choices.iter().map(Chosen::to_bytes).collect();
        assert_eq!(bytes.len(), choices.len());
        assert_eq!(Chosen::new(&[TWO, ONE], &[]).unwrap(), choices[2]);
    }
}
