//! What one watch has its client map, block by block.
//!
//! Invariant (rule 7): a block has at most one pin on its way and one newest target behind it. A block that is
//! mapped to head, with nothing on its way, has no entry.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use revfs_protocol::{BlockIndex, PinTo};

use super::{Serial, WaitId};

/// Who waits for an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// A READ of the block.
    Read(WaitId),
    /// The set-up that is under way.
    Setup,
}

/// One block.
#[derive(Debug)]
struct BlockPin {
    /// What the client was last heard to map.
    acked: PinTo,
    /// The target that is on its way.
    owed: Option<PinTo>,
    /// A newer target, to be sent when that is acked.
    wanted: Option<PinTo>,
    /// The registration that the newest target was found for.
    found_for: Serial,
    waiters: Vec<(Waiter, PinTo)>,
}

impl BlockPin {
    fn newest(&self) -> PinTo {
        self.wanted.or(self.owed).unwrap_or(self.acked)
    }

    fn is_settled(&self) -> bool {
        self.owed.is_none()
    }
}

/// The blocks of one watch.
#[derive(Debug, Default)]
pub(super) struct Pins {
    blocks: HashMap<BlockIndex, BlockPin>,
}

impl Pins {
    /// The newest target of a block if it was found for `serial`, and whether the client is known to map it.
    pub(super) fn target(&self, block: BlockIndex, serial: Serial) -> Option<(PinTo, bool)> {
        let pin = self.blocks.get(&block)?;
        (pin.found_for == serial).then(|| (pin.newest(), pin.is_settled()))
    }

    /// Makes `to` the newest target of a block. `true`: it is to be sent now.
    pub(super) fn aim(&mut self, block: BlockIndex, to: PinTo, serial: Serial) -> bool {
        let pin = match self.blocks.entry(block) {
            Entry::Occupied(pin) => pin.into_mut(),
            Entry::Vacant(_) if to == PinTo::Head => return false,
            Entry::Vacant(free) => free.insert(BlockPin {
                acked: PinTo::Head,
                owed: None,
                wanted: None,
                found_for: serial,
                waiters: Vec::new(),
            }),
        };
        pin.found_for = serial;
        // Compared with the newest target, not with what was acked last (rule 7).
        if pin.newest() == to {
            return false;
        }
        match pin.owed {
            None => {
                pin.owed = Some(to);
                true
            }
            Some(owed) => {
                pin.wanted = (owed != to).then_some(to);
                false
            }
        }
    }

    /// Lets `waiter` wait until the newest target of a block is acked, or one that replaces it. `false`: it is.
    pub(super) fn wait(&mut self, block: BlockIndex, waiter: Waiter) -> bool {
        match self.blocks.get_mut(&block) {
            Some(pin) if !pin.is_settled() => {
                pin.waiters.push((waiter, pin.newest()));
                true
            }
            _ => false,
        }
    }

    /// Lets `waiter` wait for all blocks that have a pin on its way; answers how many.
    pub(super) fn wait_for_all(&mut self, waiter: Waiter) -> usize {
        let owing: Vec<_> =
            self.blocks.iter().filter(|(_, pin)| !pin.is_settled()).map(|(b, _)| *b).collect();
        owing.into_iter().filter(|block| self.wait(*block, waiter)).count()
    }

    /// The client acked what was on its way for a block. Answers the target to send next, and adds who waits no
    /// longer.
    pub(super) fn acked(&mut self, block: BlockIndex, released: &mut Vec<Waiter>) -> Option<PinTo> {
        let pin = self.blocks.get_mut(&block)?;
        let to = pin.owed.take()?;
        pin.acked = to;
        pin.owed = pin.wanted.take();
        let settled = pin.is_settled();
        // A waiter is done with its own target, and with a later one that replaced it (rule 6).
        pin.waiters.retain(|(waiter, target)| {
            let done = settled || *target == to;
            if done {
                released.push(*waiter);
            }
            !done
        });
        let next = pin.owed;
        if settled && to == PinTo::Head {
            self.blocks.remove(&block);
        }
        next
    }

    /// Blocks that are pinned, or about to be, for an earlier registration than `serial`.
    pub(super) fn left_over(&self, serial: Serial) -> Vec<BlockIndex> {
        let old = |pin: &BlockPin| pin.found_for != serial && pin.newest() != PinTo::Head;
        self.blocks.iter().filter(|(_, pin)| old(pin)).map(|(block, _)| *block).collect()
    }

    /// Blocks with an entry.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// All who wait; nobody waits afterwards.
    pub(super) fn take_waiters(&mut self) -> Vec<Waiter> {
        self.blocks.values_mut().flat_map(|pin| pin.waiters.drain(..)).map(|(waiter, _)| waiter).collect()
    }
}
