//! Output that waits for a checkpoint (`--mode checkpoint`): what acknowledged drains would release, until a checkpoint
//! is committed whose cut lies behind them.
//!
//! What was acknowledged before a pause was sampled before it: the cut has all of it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::drain::Released;

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<Released>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, Released> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds what is acknowledged.
    pub(super) fn add(&self, released: Released) {
        let mut held = self.lock();
        held.append(released);
        held.condense();
    }

    /// What the next cut covers: called before the pause.
    pub(super) fn take(&self) -> Released {
        std::mem::take(&mut *self.lock())
    }

    /// Nothing came of the checkpoint that was to cover it.
    pub(super) fn put_back(&self, covered: Released) {
        let mut held = self.lock();
        let later = std::mem::replace(&mut *held, covered);
        held.append(later);
        held.condense();
    }
}
