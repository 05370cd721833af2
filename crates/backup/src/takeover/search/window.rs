//! The truth between two orders.
//!
//! Each of two threads sets a flag of its own and then looks at the other's. Where both did so at the same moment, each
//! saw the other's flag: neither order of the two gives that. If the one comes too early, the one thread leaves the log,
//! if it comes too late, the other thread does, at about the same time. In between both may see what they saw, now and
//! then: a record's turn is moved to the middle of what is left, and then tried around it.

use eventlog::record::{HASH_SEED, mix};

/// Turns that are tried.
const TRIES: u32 = 60;
/// Cycles that the truth may lie beyond an order that leads on: it takes its time until what one did reaches the other.
const MARGIN: u64 = 1_500;
/// A window of so many cycles is not halved any more: no turn is kept more exactly.
const NARROW: u64 = 128;

/// Times of a record between which the truth lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// With its record at this time, the attempt leaves the log where it did before.
    same: u64,
    /// With its record at this time, the attempt leaves it in the other thread.
    other: u64,
    tries: u32,
}

impl Window {
    /// The record at its `own` time is at the one side, at `led` it is beyond the other.
    pub(super) const fn new(own: u64, led: u64) -> Self {
        let other = if led < own {
            led.saturating_sub(MARGIN)
        } else {
            led.saturating_add(MARGIN)
        };
        Self {
            same: own,
            other,
            tries: 0,
        }
    }

    /// With the record at `time`, the attempt left the log where it had before (`same`), or in the other thread.
    pub(super) fn learn(&mut self, time: u64, same: bool) {
        if self.same.abs_diff(self.other) <= NARROW {
            return;
        }
        if same {
            self.same = time;
        } else {
            self.other = time;
        }
    }

    /// What to try next, if it is worth while.
    pub(super) fn next(&mut self) -> Option<u64> {
        self.tries += 1;
        let middle = self.same.midpoint(self.other);
        if self.same.abs_diff(self.other) > NARROW {
            return (self.tries <= TRIES).then_some(middle);
        }
        let chance = mix(HASH_SEED, u64::from(self.tries)) % (2 * NARROW);
        (self.tries <= TRIES).then_some((middle + chance).saturating_sub(NARROW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_closes_in_on_the_truth_from_both_sides() {
        for (own, led, truth) in [
            (50_000, 40_000, 45_300),
            (50_000, 40_000, 39_000),
            (50_000, 60_000, 59_000),
        ] {
            let mut window = Window::new(own, led);
            let mut last = own;
            while let Some(time) = window.next() {
                let same = (time > truth) == (own > truth);
                window.learn(time, same);
                last = time;
            }
            assert!(last.abs_diff(truth) <= 2 * NARROW, "{last} for {truth}");
        }
    }
}
