//! Which objects the last transactions wrote, as a server told while they were committed.
//!
//! Invariant: of the transactions after [`Recent::from`] all are here, and of others none. Bounded by [`OIDS_MAX`].

use std::collections::VecDeque;
use std::sync::Arc;

use revfs_protocol::Tid;

use crate::store::zodb::Oid;

/// Most objects that are remembered, over all transactions.
pub const OIDS_MAX: usize = 1 << 20;
/// What a transaction counts as besides its objects.
const COMMIT_WEIGHT: usize = 8;

/// The last transactions.
#[derive(Debug, Default)]
pub struct Recent {
    from: Tid,
    commits: VecDeque<(Tid, Arc<[Oid]>)>,
    weight: usize,
}

impl Recent {
    /// Forgets all. The ones after `from` will be here.
    pub fn begin(&mut self, from: Tid) {
        *self = Recent { from, ..Recent::default() };
    }

    /// The next transaction.
    pub fn add(&mut self, tid: Tid, oids: Vec<Oid>) {
        self.weight += oids.len() + COMMIT_WEIGHT;
        self.commits.push_back((tid, oids.into()));
        while self.weight > OIDS_MAX {
            let Some((tid, oids)) = self.commits.pop_front() else { return };
            self.weight -= oids.len() + COMMIT_WEIGHT;
            self.from = tid;
        }
    }

    /// What a transaction wrote, if it is here.
    pub fn written(&self, tid: Tid) -> Option<Arc<[Oid]>> {
        let index = self.commits.binary_search_by_key(&tid, |(tid, _)| *tid).ok()?;
        self.commits.get(index).map(|(_, oids)| Arc::clone(oids))
    }

    /// The last transaction at or before `at`, if it is known.
    pub fn newest(&self, at: Tid) -> Option<Tid> {
        let before = self.commits.partition_point(|(tid, _)| *tid <= at);
        // One that was there before all of these is not named.
        before.checked_sub(1).and_then(|index| self.commits.get(index)).map(|(tid, _)| *tid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_what_it_heard_and_no_more() {
        let mut recent = Recent::default();
        recent.begin(Tid::from_raw(10));
        for tid in [12, 15] {
            recent.add(Tid::from_raw(tid), vec![Oid::from_raw(tid)]);
        }
        let newest = [9, 10, 11, 12, 14, 15, 99].map(|at| recent.newest(Tid::from_raw(at)).map(Tid::raw));
        assert_eq!(newest, [None, None, None, Some(12), Some(12), Some(15), Some(15)]);
        assert_eq!(recent.written(Tid::from_raw(12)).as_deref(), Some(&[Oid::from_raw(12)][..]));
        assert_eq!(recent.written(Tid::from_raw(13)), None);
        recent.add(Tid::from_raw(20), vec![Oid::ROOT; OIDS_MAX - COMMIT_WEIGHT]);
        assert_eq!((recent.commits.len(), recent.from.raw()), (1, 15));
    }
}
