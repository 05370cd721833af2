//! The truth between two orders.
//!
//! Each of two threads sets a flag of its own and then looks at the other's. Where both did so at the same moment, each
//! saw the other's flag: neither order of the two gives that. So the one is held between two of its instructions while
//! the other does all that it did. If the one is held too early, the one thread leaves the log, if too late, the other
//! thread does: it takes as many attempts as its instructions can be halved. It does not matter which of the two is held;
//! where the truth is not found with the one, it is with the other.

use std::sync::Arc;

use super::Place;
use crate::takeover::holds::Stood;
use crate::takeover::timing::{Hold, Turn};

/// Attempts in which the thread that was to be held did not come so far.
const MISSES: u32 = 2;

/// Between which instructions of a thread the truth lies.
#[derive(Clone, Debug)]
pub(super) struct Between {
    /// The first of them is held.
    sides: [Place; 2],
    /// Whether each of them has been.
    swapped: bool,
    /// Where the one was held, and who then did what the log says.
    tried: Vec<Stood>,
    /// What to try before anything is known.
    hints: Vec<u32>,
    /// All instructions of the thread that is held.
    length: Option<u32>,
    /// Of the last hold.
    asked: u32,
    misses: u32,
}

impl Between {
    /// Between what two threads did; `hints` are where the truth was elsewhere.
    pub(super) fn new(one: Place, other: Place, hints: Vec<u32>) -> Self {
        Self {
            sides: [one, other],
            swapped: false,
            tried: Vec::new(),
            hints,
            length: None,
            asked: 0,
            misses: 0,
        }
    }

    /// With the last hold the attempt left the log here, and the thread `stood` like that if it came so far.
    pub(super) fn learn(&mut self, place: Place, stood: Option<Stood>) {
        let Some(mut stood) = stood else {
            self.misses += 1;
            return;
        };
        // What was seen of them may have been a moment too early.
        let [one, other] = self.sides;
        stood.fits &= place != one;
        stood.other_fits &= place != other;
        self.tried.push(stood);
        if stood.steps < self.asked {
            // There is no more, or no time for more.
            self.length = Some(stood.steps);
        }
    }

    /// What to try next, if it is worth while.
    pub(super) fn next(&mut self) -> Option<Hold> {
        loop {
            if self.misses <= MISSES
                && let Some(steps) = self.steps()
            {
                self.asked = steps;
                return Some(self.hold(steps));
            }
            if self.swapped {
                return None;
            }
            self.swapped = true;
            self.sides.reverse();
            (self.misses, self.length) = (0, None);
            self.tried.clear();
        }
    }

    /// Where the thread is to be held, if that can tell something.
    fn steps(&self) -> Option<u32> {
        let was_tried = |steps| self.tried.iter().any(|stood| stood.steps == steps);
        let known = self.length.unwrap_or(u32::MAX);
        let mut hints = self.hints.iter().filter(|hint| **hint < known);
        if let Some(hint) = hints.find(|hint| !was_tried(**hint)) {
            return Some(*hint);
        }
        // Behind all that it does, and behind nothing.
        let Some(length) = self.length else {
            return Some(u32::MAX);
        };
        if !was_tried(0) {
            return Some(0);
        }
        let one = self.turn(length, |stood| stood.fits);
        one.or_else(|| self.turn(length, |stood| stood.other_fits))
    }

    /// What is between the places, as close as they are known, where a thread turns from one that did what the log says
    /// into one that did not, or the other way round.
    fn turn(&self, length: u32, fits: impl Fn(&Stood) -> bool) -> Option<u32> {
        let find = |steps| self.tried.iter().find(|stood| stood.steps == steps);
        let (begin, end) = (fits(find(0)?), fits(find(length)?));
        if begin == end {
            return None;
        }
        let like_end = self.tried.iter().filter(|stood| fits(stood) == end);
        let high = like_end.map(|stood| stood.steps).min()?;
        let before = self.tried.iter().filter(|stood| stood.steps < high);
        let low = before.map(|stood| stood.steps).max()?;
        (low + 1 < high).then(|| low.midpoint(high))
    }

    fn hold(&self, steps: u32) -> Hold {
        let [one, other] = self.sides;
        // Behind the record of the one, and before its next.
        let after = one.before[1].time + 1;
        let until = one.at.time.max(after + 1) - 1;
        // What comes about at the end of what a thread does up to a record is often looked at by another a record earlier.
        // But the one may need that record to come here at all: of a lock that both take.
        let before = other.before.iter().skip(usize::from(self.misses > 0));
        let mut passes: Vec<Turn> = before
            .map(|record| Turn {
                stream: other.stream,
                position: record.position,
                time: record.time.clamp(after, until),
            })
            .collect();
        passes.dedup();
        Hold {
            stream: one.stream,
            position: one.before[1].position,
            next: one.at.position,
            steps,
            passes,
            until: other.at.position,
            path: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::takeover::timeline::Moment;

    const fn moment(position: u64, time: u64) -> Moment {
        Moment { position, time }
    }

    const ONE: Place = Place {
        stream: 1,
        before: [moment(144, 700), moment(160, 1_000)],
        at: moment(176, 2_000),
    };
    const OTHER: Place = Place {
        stream: 2,
        before: [moment(304, 800), moment(320, 900)],
        at: moment(336, 2_100),
    };

    const ELSEWHERE: Place = Place { stream: 3, ..OTHER };

    /// Where the truth lies: this one is to be held there.
    #[derive(Clone)]
    struct Truth {
        held: u32,
        steps: Range<u32>,
    }

    const LENGTH: u32 = 300;

    /// Attempts until it is found, if it is. Held in this way, the other does what the log says from the beginning of
    /// `sees` to its end alone, and the one from that of `steps` on; in every other way, neither ever does.
    fn attempts(truth: &Truth, sees: Range<u32>, hints: &[u32]) -> Option<u32> {
        let mut between = Between::new(ONE, OTHER, hints.to_vec());
        let mut attempts = 0;
        while let Some(hold) = between.next() {
            attempts += 1;
            let steps = hold.steps.min(LENGTH);
            let there = hold.stream == truth.held;
            let stood = Stood {
                steps,
                fits: there && steps >= truth.steps.start,
                other_fits: there && sees.contains(&steps),
            };
            if stood.fits && stood.other_fits {
                return Some(attempts);
            }
            between.learn(ELSEWHERE, Some(stood));
        }
        None
    }

    fn first(steps: Range<u32>) -> Truth {
        Truth { held: 1, steps }
    }

    #[test]
    fn it_takes_as_many_attempts_as_the_instructions_can_be_halved() {
        for at in 1..LENGTH {
            // The other sees what the one did until then, or what it did before it undid it.
            for sees in [0..at + 1, at.saturating_sub(3)..at + 4] {
                let taken = attempts(&first(at..LENGTH), sees, &[]);
                assert!(taken.is_some_and(|n| n <= 11), "{taken:?} for {at}");
            }
        }
    }

    #[test]
    fn where_the_one_cannot_tell_the_other_is_held() {
        let truth = Truth {
            held: 2,
            ..first(123..LENGTH)
        };
        let taken = attempts(&truth, 0..124, &[]);
        assert!(taken.is_some_and(|n| n <= 13), "{taken:?}");
    }

    #[test]
    fn where_the_truth_was_elsewhere_is_tried_first_and_does_no_harm() {
        assert_eq!(attempts(&first(123..LENGTH), 0..124, &[123]), Some(1));
        for at in 1..LENGTH {
            let taken = attempts(&first(at..LENGTH), 0..at + 1, &[123, 400]);
            assert!(taken.is_some_and(|n| n <= 13), "{taken:?} for {at}");
        }
    }

    #[test]
    fn it_ends_where_nothing_is_found() {
        assert_eq!(attempts(&first(5..LENGTH), 0..5, &[7]), None);
        let mut between = Between::new(ONE, OTHER, Vec::new());
        let mut passes = Vec::new();
        while let Some(hold) = between.next() {
            passes.push(hold.passes.len());
            between.learn(ELSEWHERE, None);
        }
        // What did not come about with both records may with one.
        assert_eq!(passes, [2, 1, 1, 2, 1, 1]);
    }

    #[test]
    fn the_other_passes_between_two_records_of_the_one() {
        let mut between = Between::new(ONE, OTHER, Vec::new());
        let hold = between.next().expect("something to try");
        let times: Vec<u64> = hold.passes.iter().map(|turn| turn.time).collect();
        assert_eq!(times, [1_001, 1_001]);
        assert_eq!((hold.position, hold.next, hold.until), (160, 176, 336));
    }
}
