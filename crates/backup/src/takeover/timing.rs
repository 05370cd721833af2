//! How one attempt of a takeover replays.

use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use guest::abi::flag;
use sys::arena::Arena;

/// How one attempt replays; see [`super::Search`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// Whether records are taken in the order of their times.
    pub(super) ordered: bool,
    /// Seed of small delays, 0 for none.
    pub(super) seed: u32,
    /// An attempt that makes no progress for so long is given up.
    pub(super) stall: Duration,
    /// Records that are taken as if they had been made at another time.
    pub(super) turns: Vec<Turn>,
}

/// A record that is taken as if it had been made at another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) stream: u32,
    pub(super) position: u64,
    pub(super) time: u64,
    /// Whether its thread and the others give each other the time that they had had, and no more.
    pub(super) paced: bool,
}

impl Turn {
    /// Whether it is of this record.
    pub(super) const fn is_of(&self, stream: u32, position: u64) -> bool {
        self.stream == stream && self.position == position
    }
}

impl Timing {
    /// Tells it to the guest.
    pub(super) fn set(&self, arena: &Arena) {
        let control = arena.control();
        if self.ordered {
            control.flags.fetch_or(flag::TIMED, Release);
        }
        control.seed.store(self.seed, Release);
        for (entry, turn) in control.turns.iter().zip(&self.turns) {
            entry.stream.store(turn.stream, Release);
            entry.position.store(turn.position, Release);
            entry.time.store(turn.time, Release);
            entry.paced.store(turn.paced.into(), Release);
        }
        let count = self.turns.len().min(control.turns.len());
        control.turn_count.store(count as u32, Release);
    }
}
