//! Whether what a store holds is the beginning of a history that is imported.
//!
//! The uuid of an imported commit is a hash of the choice of files, of the commits before it and of its tid. Invariant: if the
//! newest commit has the uuid that it should have, then so had all before it, and all of them are of this import with this
//! choice. So a store needs no note of what it was imported from, and may be moved, as the source may.

use revfs_protocol::Tid;

use super::{Chosen, Import, ImportError};

/// Commits of the target that are read at once.
const STEP_COMMITS: usize = 256;
/// What is hashed first, so that no other hash is like it.
const DOMAIN: &str = "revfs import, one commit after the other, 1";
/// Bytes of a uuid.
const UUID_BYTES: usize = 16;

/// The commits that were imported so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    hash: [u8; blake3::OUT_LEN],
    last: Tid,
}

impl Chain {
    fn new(chosen: &Chosen) -> Chain {
        Chain { hash: blake3::derive_key(DOMAIN, &chosen.to_bytes()), last: Tid::ZERO }
    }

    /// With one commit more.
    pub(super) fn then(&self, tid: Tid) -> Chain {
        let input = [&self.hash[..], &tid.raw().to_be_bytes()].concat();
        Chain { hash: blake3::derive_key(DOMAIN, &input), last: tid }
    }

    /// The newest one.
    pub(super) fn last(&self) -> Tid {
        self.last
    }

    /// The identity that the newest one has: a uuid of version 8.
    pub(super) fn uuid(&self) -> uuid::Uuid {
        let bytes = self.hash.first_chunk::<UUID_BYTES>().copied().unwrap_or_default();
        let builder = uuid::Builder::from_bytes(bytes).with_version(uuid::Version::Custom);
        builder.with_variant(uuid::Variant::RFC4122).into_uuid()
    }
}

/// Checks that the target holds the beginning of what is imported; answers it, and how many commits it has.
///
/// # Errors
/// It holds something else; or the source, whose head is `goal`, does not go on from there.
pub(super) async fn check(what: &Import<'_>, goal: Tid) -> Result<(Chain, u64), ImportError> {
    let target = what.target.as_store();
    let head = target.refresh().wait().await?;
    let store = || target.info().url.clone();
    let (mut chain, mut count) = (Chain::new(what.chosen), 0);
    loop {
        let commits = target.commits(chain.last(), head, STEP_COMMITS)?;
        for commit in &commits {
            chain = chain.then(commit.tid);
            if commit.commit_uuid != chain.uuid() {
                let why = match commit.commit_uuid.get_version() {
                    Some(uuid::Version::Custom) => "is of an import of other files, or under other names",
                    _ => "is not of an import",
                };
                return Err(ImportError::NotOurs { store: store(), tid: commit.tid, why });
            }
            count += 1;
        }
        if commits.len() < STEP_COMMITS {
            break;
        }
    }
    let tid = chain.last();
    let why = match () {
        () if tid.is_zero() => None,
        () if tid > goal => Some("ends before that"),
        // What a pack took away cannot be looked for.
        () if tid < what.oldest => None,
        () if what.source.newest_commit(tid)? != tid => Some("has no such transaction"),
        () => None,
    };
    match why {
        Some(why) => {
            let source_url = what.source.info().url.clone();
            Err(ImportError::NotABeginning { store: store(), tid, source_url, why })
        }
        None => Ok((chain, count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use revfs_protocol::FileId;

    #[test]
    fn a_uuid_says_the_choice_and_all_commits_up_to_it() {
        let tids = [3, 5, 9].map(Tid::from_raw);
        let chain = |chosen: &Chosen, tids: &[Tid]| {
            tids.iter().fold(Chain::new(chosen), |chain, tid| chain.then(*tid)).uuid()
        };
        let all = Chosen::default();
        let one = Chosen::new(&[FileId::from_raw(1)], &[]).unwrap();
        assert_eq!(chain(&all, &tids), chain(&all, &tids));
        assert_ne!(chain(&all, &tids), chain(&one, &tids));
        assert_ne!(chain(&all, &tids), chain(&all, &tids[1..]));
        assert_ne!(chain(&all, &tids[..2]), chain(&all, &[tids[0], tids[2]]));
        assert_eq!(chain(&all, &tids).get_version(), Some(uuid::Version::Custom));
    }
}
