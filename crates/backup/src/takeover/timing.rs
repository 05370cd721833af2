//! How one attempt of a takeover replays.

use std::sync::Arc;
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
    /// Threads that stand while others pass.
    pub(super) holds: Vec<Hold>,
    /// Threads that start late.
    pub(super) starts: Vec<Start>,
}

/// A record that is taken as if it had been made at another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) stream: u32,
    pub(super) position: u64,
    pub(super) time: u64,
}

impl Turn {
    /// Whether it is of this record.
    pub(super) const fn is_of(&self, stream: u32, position: u64) -> bool {
        self.stream == stream && self.position == position
    }
}

/// A thread that has taken a record does some instructions more, and stands there while another, which waits for that,
/// takes records of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    /// The one's stream, its record, and its next.
    pub(super) stream: u32,
    pub(super) position: u64,
    pub(super) next: u64,
    /// Instructions of the program, those of the guest not counted.
    pub(super) steps: u32,
    /// The other's records, the first of which waits for that.
    pub(super) passes: Vec<Turn>,
    /// The record behind them, which the other does not take before the one has come to its next.
    pub(super) until: u64,
    /// Addresses of its first instructions, as far as they are known.
    pub(super) path: Arc<[u64]>,
}

/// Where a thread stops: the so many-th time that it comes to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Breakpoint {
    pub(super) address: u64,
    pub(super) times: usize,
}

impl Hold {
    /// Where the thread stops that has done its steps, if that is known.
    pub(super) fn stop(&self) -> Option<Breakpoint> {
        let path = self.path.get(..self.steps as usize)?;
        let address = *path.last()?;
        let times = path.iter().filter(|at| **at == address).count();
        Some(Breakpoint { address, times })
    }
}

/// A thread that the checkpoint found between two records, the first of which is not in the log, and that goes on only
/// when others have done something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) stream: u32,
    /// The stream of the thread that goes before it, and the record up to which it does; without, all others do until
    /// they wait.
    pub(super) behind: Option<(u32, u64)>,
}

impl Timing {
    /// Whether threads have to be held, or to start late.
    pub(super) fn is_served(&self) -> bool {
        !self.holds.is_empty() || !self.starts.is_empty()
    }

    /// Tells it to the guest.
    pub(super) fn set(&self, arena: &Arena) {
        let control = arena.control();
        if self.ordered {
            control.flags.fetch_or(flag::TIMED, Release);
        }
        control.seed.store(self.seed, Release);
        for (entry, hold) in control.holds.iter().zip(&self.holds) {
            entry.stream.store(hold.stream, Release);
            entry.position.store(hold.position, Release);
            if let Some(first) = hold.passes.first() {
                entry.passes.store(first.stream, Release);
                entry.passes_from.store(first.position, Release);
                entry.passes_to.store(hold.until, Release);
            }
        }
        let count = self.holds.len().min(control.holds.len());
        control.hold_count.store(count as u32, Release);
        // Of two turns of one record, the first counts.
        let of_holds = self.holds.iter().flat_map(|hold| &hold.passes);
        let turns: Vec<&Turn> = of_holds.chain(&self.turns).collect();
        for (entry, turn) in control.turns.iter().zip(&turns) {
            entry.stream.store(turn.stream, Release);
            entry.position.store(turn.position, Release);
            entry.time.store(turn.time, Release);
        }
        let count = turns.len().min(control.turns.len());
        control.turn_count.store(count as u32, Release);
    }
}
