//! The independent model: which values the blocks of a file had at which revision.

use std::collections::BTreeSet;

use crate::link::Pins;

/// All versions of a file, in the order of their tids. Block values as committed; 0 is a hole, and so is what a
/// version does not reach.
#[derive(Default)]
pub struct History {
    versions: Vec<(String, Vec<u8>)>,
}

impl History {
    pub fn add(&mut self, tid: String, values: &[u8]) {
        assert!(self.versions.last().is_none_or(|(last, _)| *last < tid));
        self.versions.push((tid, values.to_vec()));
    }

    fn value(version: &[u8], block: usize) -> u8 {
        version.get(block).copied().unwrap_or(0)
    }

    /// The tid at which a block changed last, up to `at`; that of the first version if it never did.
    pub fn rev(&self, block: usize, at: &str) -> &str {
        let mut rev = &self.versions[0].0;
        for pair in self.versions.windows(2).filter(|pair| pair[1].0.as_str() <= at) {
            if Self::value(&pair[0].1, block) != Self::value(&pair[1].1, block) {
                rev = &pair[1].0;
            }
        }
        rev
    }

    /// Whether others see something else than who works at `at`.
    pub fn is_changed(&self, block: usize, at: &str) -> bool {
        self.rev(block, &self.versions.last().unwrap().0) > at
    }

    /// The pins of a client at `at`, of the blocks that were read.
    pub fn pins(&self, read: &BTreeSet<usize>, at: &str) -> Pins {
        let changed = read.iter().filter(|block| self.is_changed(**block, at));
        changed.map(|block| (*block as u64, format!("@{}", self.rev(*block, at)))).collect()
    }
}

/// What a client is told that has some pins and is to have others.
pub fn difference(have: &Pins, wanted: &Pins) -> Pins {
    let mut told: Pins = wanted.clone();
    told.retain(|block, to| have.get(block) != Some(to));
    let over = have.keys().filter(|block| !wanted.contains_key(block));
    told.extend(over.map(|block| (*block, "@head".to_owned())));
    told
}
