//! Who looks at mapped bytes, and who moves them: many may look, or one may move.
//!
//! Invariant: who is inside may enter again without waiting, so that a look within a look does not deadlock; who
//! wants to move waits until nobody looks. A pinner thread never enters. Left out on purpose: fairness.

use crate::shared::lock;
use std::sync::PoisonError;

use tracing_mutex::stdsync::{Condvar, Mutex};

#[derive(Debug, Default)]
struct State {
    inside: usize,
    moving: bool,
}

/// The gate of one connection.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>, // leaf; held for a few instructions
    changed: Condvar,
}

/// Somebody looks.
#[derive(Debug)]
pub(crate) struct Looking<'a>(&'a Gate);

/// Somebody moves, and nobody looks.
#[derive(Debug)]
pub(crate) struct Moving<'a>(&'a Gate);

impl Gate {
    /// Waits while somebody moves.
    pub(crate) fn look(&self) -> Looking<'_> {
        let state = lock(&self.state);
        let waited = self.changed.wait_while(state, |state| state.moving);
        waited.unwrap_or_else(PoisonError::into_inner).inside += 1;
        Looking(self)
    }

    /// Waits until nobody looks or moves.
    pub(crate) fn start_move(&self) -> Moving<'_> {
        let state = lock(&self.state);
        let waited = self.changed.wait_while(state, |state| state.moving || state.inside > 0);
        waited.unwrap_or_else(PoisonError::into_inner).moving = true;
        Moving(self)
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).inside -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).moving = false;
        self.0.changed.notify_all();
    }
}
