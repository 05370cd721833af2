//! The truth between two orders.
//!
//! Each of two threads sets a flag of its own and then looks at the other's. Where both did so at the same moment, each
//! saw the other's flag: neither order of the two gives that. If the one comes too early, the one thread leaves the log,
//! if it comes too late, the other thread does, at about the same time. In between both may see what they saw, now and
//! then: a record's turn is moved to the middle of what is left, and then in small steps to and fro about the place where
//! either happens as often.

/// Turns that are tried.
const TRIES: u32 = 60;
/// Cycles that the truth may lie beyond an order that leads on: it takes its time until what one did reaches the other.
const MARGIN: u64 = 1_500;
/// A window of so many cycles is not halved any more: a turn is kept as exactly as that.
const NARROW: u64 = 64;
/// Cycles of a step to and fro: half as many after each turn back, and as many again after the shortest.
const STRIDE: i64 = 24;
const SHORTEST: i64 = 3;

/// Times of a record between which the truth lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// With its record at this time, the attempt leaves the log where it did before.
    same: u64,
    /// With its record at this time, the attempt leaves it in the other thread.
    other: u64,
    /// The last step to and fro.
    stride: i64,
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
            stride: STRIDE,
            tries: 0,
        }
    }

    /// With the record at `time`, the attempt left the log where it had before (`same`), or in the other thread.
    pub(super) fn learn(&mut self, time: u64, same: bool) {
        if self.same.abs_diff(self.other) > NARROW {
            *(if same {
                &mut self.same
            } else {
                &mut self.other
            }) = time;
            return;
        }
        // The truth is on the other side, and what was learnt before may have been chance.
        let forth = (self.same < self.other) == same;
        if forth != (self.stride > 0) {
            let half = self.stride.abs() / 2;
            self.stride = if half < SHORTEST { STRIDE } else { half };
        }
        self.stride = if forth {
            self.stride.abs()
        } else {
            -self.stride.abs()
        };
        self.same = self.same.saturating_add_signed(self.stride);
        self.other = self.other.saturating_add_signed(self.stride);
    }

    /// What to try next, if it is worth while.
    pub(super) fn next(&mut self) -> Option<u64> {
        self.tries += 1;
        (self.tries <= TRIES).then_some(self.same.midpoint(self.other))
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
            assert!(last.abs_diff(truth) <= NARROW, "{last} for {truth}");
        }
    }

    #[test]
    fn it_finds_back_when_it_was_misled() {
        let truth = 45_300;
        let mut window = Window::new(50_000, 40_000);
        let mut last = 0;
        for turn in 0..TRIES {
            let Some(time) = window.next() else { break };
            // One in five is chance.
            let same = (time > truth) == (turn % 5 != 4);
            window.learn(time, same);
            last = time;
        }
        assert!(last.abs_diff(truth) <= 4 * NARROW, "{last}");
    }
}
