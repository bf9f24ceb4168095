//! What a READ asks of a link: does this client have to map blocks elsewhere before others see them?
//!
//! Invariant (rules 4 to 6): the decision is made against the watch as it is at that moment. A target that was found
//! while the mutex was let go counts only if the watch did not move meanwhile.

use std::time::Duration;

use revfs_protocol::{BlockSpan, FileId, PinTo, Tid};

use super::pins::Waiter;
use super::{Action, Link, Serial, WaitId};

/// The answer to [`Link::read_begin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadNeed {
    /// The state that the client works at.
    pub at: Tid,
    /// The registration that this is true for.
    pub serial: Serial,
    /// How many times [`Action::Release`] is to come for the READ so far.
    pub waits: usize,
    /// Blocks whose revision at `at` is to be found, for [`Link::read_pin`]; in order.
    pub unknown: Vec<BlockSpan>,
}

/// The watch moved or is gone: ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved;

impl Link {
    /// A READ of blocks that changed last at the revisions given. `None`: this link has no say in it.
    pub fn read_begin(&mut self, file: FileId, revs: &[(BlockSpan, Tid)], wait: WaitId) -> Option<ReadNeed> {
        if self.is_over() {
            return None;
        }
        let watch = self.watches.get_mut(&file)?;
        let (at, serial) = watch.registered?;
        let mut need = ReadNeed { at, serial, waits: 0, unknown: Vec::new() };
        let mut waits_for_death = false;
        for (span, _) in revs.iter().filter(|(_, rev)| *rev > at) {
            for (blocks, known) in watch.pins.targets(*span, serial) {
                match known {
                    Some((PinTo::Rev(_), true)) => {}
                    // It will map nothing any more: others wait until it is dead (rule 16).
                    _ if self.faulted => waits_for_death = true,
                    Some((PinTo::Rev(_), false)) => {
                        need.waits += usize::from(watch.pins.wait(blocks, Waiter::Read(wait)));
                    }
                    Some((PinTo::Head, _)) | None => need.unknown.push(blocks),
                }
            }
        }
        if waits_for_death {
            self.death_waiters.push(wait);
            need.waits += 1;
        }
        Some(need)
    }

    /// Pins blocks for a READ: each to the revision that it has at the state told by [`Link::read_begin`]. Answers
    /// how many times [`Action::Release`] is to come for it.
    ///
    /// # Errors
    /// [`Moved`]: nothing was done.
    pub fn read_pin(
        &mut self,
        now: Duration,
        (file, serial): (FileId, Serial),
        targets: &[(BlockSpan, Tid)],
        wait: WaitId,
        actions: &mut Vec<Action>,
    ) -> Result<usize, Moved> {
        let watch = self.watches.get_mut(&file).ok_or(Moved)?;
        let Some((at, registered)) = watch.registered else { return Err(Moved) };
        if registered != serial {
            return Err(Moved);
        }
        if self.faulted {
            self.death_waiters.push(wait);
            return Ok(1);
        }
        let mut send = Vec::new();
        let mut waits = 0;
        for (span, rev) in targets {
            assert!(*rev <= at, "a pin of {span:?} to @{rev} for a client at @{at}");
            let to = PinTo::Rev(*rev);
            for (blocks, known) in watch.pins.targets(*span, serial) {
                // Another READ may have been faster.
                if known.is_none_or(|(newest, _)| newest == PinTo::Head) {
                    send.extend(watch.pins.aim(blocks, to, serial).into_iter().map(|blocks| (blocks, to)));
                }
            }
            waits += usize::from(watch.pins.wait(*span, Waiter::Read(wait)));
        }
        self.send_pins(now, file, send, actions);
        Ok(waits)
    }
}
