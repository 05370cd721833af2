//! The processes that are there when replay has come to its end: those of the checkpoint, less those that ended
//! since, and those that were made.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Acquire;

use eventlog::fold::Fold;
use guest::abi::{MAX_SLOTS, slot};
use sys::arena::Arena;
use sys::threads::find_thread;

use super::error::{Result, TakeoverError};

/// Numbers in the container, and ours.
#[derive(Debug)]
pub(super) struct Population(BTreeMap<u32, i32>);

impl Population {
    /// Reads it from the rings of a container whose replay is over. `init` is the container's, in our numbering.
    ///
    /// # Errors
    /// [`TakeoverError::Processes`] when the log knows nothing of one of them.
    pub(super) fn read(arena: &Arena, init: i32, fold: &Fold) -> Result<Self> {
        let mut all = BTreeMap::new();
        for ring in (0..MAX_SLOTS).map(|index| arena.slot(index)) {
            let state = ring.state.load(Acquire);
            if matches!(state, slot::FREE | slot::CLAIMED | slot::DONE) {
                continue;
            }
            let number = ring.pid.load(Acquire);
            if all.contains_key(&number) {
                continue;
            }
            let known = fold.processes().get(&number);
            let lives = known.is_some_and(|p| p.ended.is_none() && !p.reaped);
            match find_thread(init, number).filter(|_| lives) {
                Some((process, _)) => all.insert(number, process),
                None => return Err(TakeoverError::Processes { number }),
            };
        }
        tracing::debug!(?all, "processes after replay");
        Ok(Self(all))
    }

    /// The numbers in the container.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.0.keys().copied().collect()
    }

    /// The processes: number in the container, and ours.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, i32)> + '_ {
        self.0.iter().map(|(number, process)| (*number, *process))
    }
}
