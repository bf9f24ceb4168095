//! What one watch has its client map, in runs of blocks.
//!
//! Invariant (rule 7): a block has at most one pin on its way and one newest target behind it. A block that is
//! mapped to head, with nothing on its way, is in no run. Neighbours of which all is the same are one run, unless
//! somebody waits for them: so memory goes by what differs, not by blocks, of which a large file has billions.

use std::collections::{BTreeMap, HashMap};

use revfs_protocol::{BlockIndex, BlockSpan, PinTo};

use super::{Serial, WaitId};

/// Who waits for acks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// A READ.
    Read(WaitId),
    /// The set-up that is under way.
    Setup,
}

/// Blocks side by side of which all is the same.
#[derive(Clone, Debug)]
struct Run {
    last: BlockIndex,
    /// What the client was last heard to map.
    acked: PinTo,
    /// The target that is on its way.
    owed: Option<PinTo>,
    /// A newer target, to be sent when that is acked.
    wanted: Option<PinTo>,
    /// The registration that the newest target was found for.
    found_for: Serial,
    waiting: Vec<(Ticket, PinTo)>,
}

impl Run {
    fn newest(&self) -> PinTo {
        self.wanted.or(self.owed).unwrap_or(self.acked)
    }

    fn is_settled(&self) -> bool {
        self.owed.is_none()
    }

    /// Whether it is one run with its neighbour.
    fn is_like(&self, other: &Run) -> bool {
        self.waiting.is_empty()
            && other.waiting.is_empty()
            && self.found_for == other.found_for
            && (self.acked, self.owed, self.wanted) == (other.acked, other.owed, other.wanted)
    }
}

/// A wait for some blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Ticket(u64);

#[derive(Debug)]
struct Wait {
    waiter: Waiter,
    /// Runs that have to be acked.
    runs: usize,
}

/// The blocks of one watch.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// By their first block; apart.
    runs: BTreeMap<BlockIndex, Run>,
    /// Blocks of all runs; one less than there are if 64 bits cannot count them.
    blocks: u64,
    waits: HashMap<Ticket, Wait>,
    last_ticket: u64,
}

impl Pins {
    /// The parts of a span, in order, each with the newest target of its blocks and whether the client is known to map it; `None`
    /// where that was not found for `serial`.
    pub(super) fn targets(&self, span: BlockSpan, serial: Serial) -> Vec<(BlockSpan, Option<(PinTo, bool)>)> {
        let mut parts = Vec::new();
        let mut rest = Some(span.first);
        for (first, run) in self.runs_of(span) {
            let part = BlockSpan { first: first.max(span.first), last: run.last.min(span.last) };
            parts.extend(before(rest, part.first).map(|gap| (gap, None)));
            let known = (run.found_for == serial).then(|| (run.newest(), run.is_settled()));
            parts.push((part, known));
            rest = part.last.next();
        }
        parts.extend(up_to(rest, span.last).map(|gap| (gap, None)));
        parts
    }

    /// Makes `to` the newest target of blocks. Answers those to which it is to be sent now.
    pub(super) fn aim(&mut self, span: BlockSpan, to: PinTo, serial: Serial) -> Vec<BlockSpan> {
        self.carve(span);
        let mut send = Vec::new();
        let mut free = Vec::new();
        let mut rest = Some(span.first);
        for (first, run) in self.runs.range_mut(span.first..=span.last) {
            free.extend(before(rest, *first));
            rest = run.last.next();
            run.found_for = serial;
            // Compared with the newest target, not with what was acked last (rule 7).
            if run.newest() == to {
                continue;
            }
            match run.owed {
                None => {
                    run.owed = Some(to);
                    send.push(BlockSpan { first: *first, last: run.last });
                }
                Some(owed) => run.wanted = (owed != to).then_some(to),
            }
        }
        free.extend(up_to(rest, span.last));
        if to != PinTo::Head {
            for gap in free {
                let run = Run {
                    last: gap.last,
                    acked: PinTo::Head,
                    owed: Some(to),
                    wanted: None,
                    found_for: serial,
                    waiting: Vec::new(),
                };
                self.runs.insert(gap.first, run);
                self.blocks = self.blocks.saturating_add(gap.count().raw());
                send.push(gap);
            }
        }
        self.join(span);
        send
    }

    /// Lets `waiter` wait until the newest targets of blocks are acked, or others that replace them. `false`: they are.
    pub(super) fn wait(&mut self, span: BlockSpan, waiter: Waiter) -> bool {
        if self.runs_of(span).all(|(_, run)| run.is_settled()) {
            return false;
        }
        self.carve(span);
        self.wait_in(span, waiter)
    }

    /// Lets `waiter` wait for all blocks that have a pin on its way. `false`: there are none.
    pub(super) fn wait_for_all(&mut self, waiter: Waiter) -> bool {
        self.wait_in(BlockSpan { first: BlockIndex::new(0), last: BlockIndex::new(u64::MAX) }, waiter)
    }

    /// For whole runs.
    fn wait_in(&mut self, span: BlockSpan, waiter: Waiter) -> bool {
        let ticket = Ticket(self.last_ticket + 1);
        let mut runs = 0;
        for (_, run) in self.runs.range_mut(span.first..=span.last).filter(|(_, run)| !run.is_settled()) {
            run.waiting.push((ticket, run.newest()));
            runs += 1;
        }
        if runs > 0 {
            self.last_ticket = ticket.0;
            self.waits.insert(ticket, Wait { waiter, runs });
        }
        runs > 0
    }

    /// The client acked what was on its way for blocks. Answers what to send next, and adds who waits no longer.
    pub(super) fn acked(&mut self, span: BlockSpan, released: &mut Vec<Waiter>) -> Vec<(BlockSpan, PinTo)> {
        self.carve(span);
        let mut next = Vec::new();
        let mut gone = Vec::new();
        for (first, run) in self.runs.range_mut(span.first..=span.last) {
            let Some(to) = run.owed.take() else { continue };
            run.acked = to;
            run.owed = run.wanted.take();
            let settled = run.is_settled();
            // Who waits is done with his own target, and with a later one that replaced it (rule 6).
            run.waiting.retain(|(ticket, target)| {
                let done = settled || *target == to;
                if done {
                    released.extend(one_less(&mut self.waits, *ticket));
                }
                !done
            });
            next.extend(run.owed.map(|to| (BlockSpan { first: *first, last: run.last }, to)));
            if settled && to == PinTo::Head {
                gone.push(BlockSpan { first: *first, last: run.last });
            }
        }
        for run in gone {
            self.runs.remove(&run.first);
            self.blocks = self.blocks.saturating_sub(run.count().raw());
        }
        self.join(span);
        next
    }

    /// Blocks that are pinned, or about to be, for an earlier registration than `serial`.
    pub(super) fn left_over(&self, serial: Serial) -> Vec<BlockSpan> {
        let old = |run: &Run| run.found_for != serial && run.newest() != PinTo::Head;
        let runs = self.runs.iter().filter(|(_, run)| old(run));
        runs.map(|(first, run)| BlockSpan { first: *first, last: run.last }).collect()
    }

    /// Blocks that the client maps elsewhere, or is told to, or not to any more.
    pub(super) fn len(&self) -> u64 {
        self.blocks
    }

    /// How many runs they are.
    #[cfg(test)]
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// All who wait, once for each time; nobody waits afterwards.
    pub(super) fn take_waiters(&mut self) -> Vec<Waiter> {
        self.runs.values_mut().for_each(|run| run.waiting.clear());
        let mut waits: Vec<(Ticket, Wait)> = self.waits.drain().collect();
        waits.sort_unstable_by_key(|(ticket, _)| *ticket);
        waits.into_iter().map(|(_, wait)| wait.waiter).collect()
    }

    /// Runs that have blocks of a span.
    fn runs_of(&self, span: BlockSpan) -> impl Iterator<Item = (BlockIndex, &Run)> {
        let before = self.runs.range(..span.first).next_back().filter(|(_, run)| run.last >= span.first);
        before.into_iter().chain(self.runs.range(span.first..=span.last)).map(|(first, run)| (*first, run))
    }

    /// Lets no run reach across the ends of a span.
    fn carve(&mut self, span: BlockSpan) {
        self.split(span.first);
        if let Some(behind) = span.last.next() {
            self.split(behind);
        }
    }

    /// Lets a run begin at a block, if one has it.
    fn split(&mut self, at: BlockIndex) {
        let Some((_, run)) = self.runs.range_mut(..at).next_back().filter(|(_, run)| run.last >= at) else {
            return;
        };
        let behind = run.clone();
        run.last = BlockIndex::new(at.raw() - 1);
        for (ticket, _) in &behind.waiting {
            if let Some(wait) = self.waits.get_mut(ticket) {
                wait.runs += 1;
            }
        }
        self.runs.insert(at, behind);
    }

    /// Makes one run of those in a span, and beside it, that are alike.
    fn join(&mut self, span: BlockSpan) {
        let from = self.runs.range(..span.first).next_back().map_or(span.first, |(first, _)| *first);
        let to = span.last.next().unwrap_or(span.last);
        let mut firsts = self.runs.range(from..=to).map(|(first, _)| *first).collect::<Vec<_>>().into_iter();
        let Some(mut current) = firsts.next() else { return };
        for first in firsts {
            let (Some(run), Some(next)) = (self.runs.get(&current), self.runs.get(&first)) else { return };
            if run.last.next() != Some(first) || !run.is_like(next) {
                current = first;
                continue;
            }
            let last = next.last;
            self.runs.remove(&first);
            if let Some(run) = self.runs.get_mut(&current) {
                run.last = last;
            }
        }
    }
}

/// One run less to wait for; answers who waits for none any more.
fn one_less(waits: &mut HashMap<Ticket, Wait>, ticket: Ticket) -> Option<Waiter> {
    let wait = waits.get_mut(&ticket)?;
    wait.runs = wait.runs.saturating_sub(1);
    if wait.runs > 0 {
        return None;
    }
    waits.remove(&ticket).map(|wait| wait.waiter)
}

/// The blocks from `rest` on that come before one.
fn before(rest: Option<BlockIndex>, block: BlockIndex) -> Option<BlockSpan> {
    let first = rest.filter(|first| *first < block)?;
    Some(BlockSpan { first, last: BlockIndex::new(block.raw() - 1) })
}

/// The blocks from `rest` on up to one.
fn up_to(rest: Option<BlockIndex>, last: BlockIndex) -> Option<BlockSpan> {
    rest.filter(|first| *first <= last).map(|first| BlockSpan { first, last })
}
