//! The independent model: which values the blocks of a file had at which revision.

use std::collections::BTreeSet;

use crate::link::Pins;
use crate::stage::Kind;

/// All versions of a file, in the order of their tids. Block values as committed; 0 is a hole, and so is what a
/// version does not reach.
pub struct History {
    kind: Kind,
    versions: Vec<(String, Vec<u8>)>,
}

impl History {
    pub fn new(kind: Kind) -> History {
        History { kind, versions: Vec::new() }
    }

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

    /// What a client was told that had some pins, works at `at` now, and to which the blocks matter that were read: it is
    /// what it has to be told, and no more. The pins that it has then.
    ///
    /// A ZODB may tell a later revision than that of the last change, up to `at`: the bytes of the block are the same.
    pub fn told(&self, have: &Pins, told: &Pins, (read, at): (&BTreeSet<usize>, &str)) -> Pins {
        let wanted = self.pins(read, at);
        if self.kind == Kind::Native {
            assert_eq!(told, &difference(have, &wanted), "@{at}");
            return wanted;
        }
        assert!(told.iter().all(|(block, to)| have.get(block) != Some(to)), "@{at}: {told:?} over {have:?}");
        let mut now = have.clone();
        now.extend(told.clone());
        now.retain(|_, to| to != "@head");
        assert!(now.keys().eq(wanted.keys()), "@{at}: {now:?}, and not {wanted:?}");
        self.expect_same(&now, at);
        now
    }

    /// The pins of a client at `at` are those that it needs for the blocks that were read. Of a ZODB there may be others, if
    /// a leaf was written since for the sake of other blocks in it.
    pub fn expect_enough(&self, pins: &Pins, (read, at): (&BTreeSet<usize>, &str)) {
        let wanted = self.pins(read, at);
        if !self.may_pin_more(at) {
            assert!(pins.keys().eq(wanted.keys()), "@{at}: {pins:?}, and not {wanted:?}");
        }
        assert!(wanted.keys().all(|block| pins.contains_key(block)), "@{at}: {pins:?}, and not {wanted:?}");
        self.expect_same(pins, at);
    }

    /// Whether a block may be pinned for a client at `at` that is as it was: on a ZODB, if blocks came or went since.
    pub fn may_pin_more(&self, at: &str) -> bool {
        let there = |version: &Vec<u8>| {
            let is_there = |block: &usize| version[*block] != 0 || block + 1 == version.len();
            (0..version.len()).filter(is_there).collect::<Vec<_>>()
        };
        let mut later = self.versions.windows(2).filter(|pair| pair[1].0.as_str() > at);
        self.kind == Kind::Zodb && later.any(|pair| there(&pair[0].1) != there(&pair[1].1))
    }

    /// Each pin leads to a revision at which its block is as it is at `at`.
    fn expect_same(&self, pins: &Pins, at: &str) {
        for (block, to) in pins {
            let exact = format!("@{}", self.rev(usize::try_from(*block).unwrap(), at));
            let is_same = match self.kind {
                Kind::Native => *to == exact,
                Kind::Zodb => exact <= *to && to.as_str() <= format!("@{at}").as_str(),
            };
            assert!(is_same, "block {block}: {to}, changed {exact}, for @{at}");
        }
    }

    /// The value of a block at a revision.
    pub fn value_at(&self, block: usize, at: &str) -> u8 {
        let version = self.versions.iter().rev().find(|(tid, _)| tid.as_str() <= at);
        Self::value(&version.unwrap().1, block)
    }
}

/// What a client is told that has some pins and is to have others.
fn difference(have: &Pins, wanted: &Pins) -> Pins {
    let mut told: Pins = wanted.clone();
    told.retain(|block, to| have.get(block) != Some(to));
    let over = have.keys().filter(|block| !wanted.contains_key(block));
    told.extend(over.map(|block| (*block, "@head".to_owned())));
    told
}
