//! What the attempts of a takeover learn from one another.
//!
//! What threads do to one another without a call or a lock is in no log: whether it comes about again is a matter of
//! timing. The first attempt keeps to the order of time as it was recorded. Where that leaves the log, the thread that
//! left it had done something between its last two records before or after some other thread did, otherwise than when it
//! was recorded; so these two records are put before, or behind, records that others made at about the same time, the
//! nearest first. What leads further is kept, and the next place is dealt with in the same way. So a log with many races
//! takes some attempts for each of them, and not for every combination.
//!
//! Where all that is used up, attempts are timed by chance: with and without the order of time, with delays that a seed
//! chooses.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest::abi::MAX_TURNS;
use replayer::Incomplete;

use super::checkpoint::Checkpoint;
use super::error::TakeoverError;
use super::log::Log;
use super::timeline::Timeline;
use super::timing::{Timing, Turn};

/// Other orders that are tried at one place, at most.
const ORDERS: usize = 16;
/// An attempt that makes no progress is given up after the budget of all divided by this.
const STALLS: u32 = 2;
/// So many cycles around the two records are looked at, at least.
const AROUND: u64 = 50_000;

/// Where an attempt left the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    stream: u32,
    position: u64,
    /// When the record there was made.
    time: u64,
}

/// The attempts of one takeover so far.
#[derive(Clone, Debug)]
pub struct Search {
    /// Whether the order of time is kept at all.
    ordered: bool,
    /// Another attempt may begin until so long after `began`.
    budget: Duration,
    began: Instant,
    /// Of the attempt that is to come, from 1.
    number: u32,
    timeline: Option<Arc<Timeline>>,
    /// What is dealt with.
    at: Option<Place>,
    /// What has led so far.
    kept: Vec<Turn>,
    /// What the attempt that is to come tries.
    trial: Option<Turn>,
    /// What else can be tried there.
    left: VecDeque<Turn>,
}

impl Search {
    /// Before the first attempt, from which on the `budget` counts. `ordered`: whether the order of time is to be kept
    /// at all.
    #[must_use]
    pub fn new(ordered: bool, budget: Duration) -> Self {
        Self {
            ordered,
            budget,
            began: Instant::now(),
            number: 1,
            timeline: None,
            at: None,
            kept: Vec::new(),
            trial: None,
            left: VecDeque::new(),
        }
    }

    /// Number of the attempt that is to come.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Whether another attempt may begin.
    #[must_use]
    pub fn may_go_on(&self) -> bool {
        self.began.elapsed() < self.budget
    }

    /// How the attempt that is to come is timed.
    pub(super) fn timing(&self) -> Timing {
        let by_chance = self.number > 1 && self.trial.is_none();
        Timing {
            ordered: self.ordered && !(by_chance && self.number.is_multiple_of(2)),
            seed: if by_chance { self.number } else { 0 },
            stall: self.budget / STALLS,
            turns: self.kept.iter().chain(&self.trial).copied().collect(),
        }
    }

    /// The attempt failed otherwise than in replay.
    pub fn missed(&mut self) {
        self.learn(None);
    }

    /// The attempt failed in the replay of this log.
    pub(super) fn failed(&mut self, error: &TakeoverError, checkpoint: &Checkpoint, log: &Log) {
        let place = match error {
            TakeoverError::Replay(Incomplete::Diverged(d)) => Some((d.stream, d.position)),
            _ => None,
        };
        if self.ordered && self.timeline.is_none() {
            // Without it what is left is chance.
            self.timeline = Timeline::of(checkpoint, log).ok().map(Arc::new);
        }
        self.learn(place);
    }

    /// The attempt left the log at this record, or ended otherwise.
    fn learn(&mut self, place: Option<(u32, u64)>) {
        self.number += 1;
        let place = place.and_then(|(stream, position)| {
            let (_, at) = self.timeline.as_ref()?.pair(stream, position)?;
            Some(Place {
                stream,
                position,
                time: at.time,
            })
        });
        let trial = self.trial.take();
        match (place, self.at) {
            (Some(place), Some(at)) if place.time > at.time => {
                self.kept.extend(trial);
                self.begin(place);
            }
            (Some(place), None) => self.begin(place),
            _ => {}
        }
        self.trial = self.left.pop_front();
        if self.trial.is_none() {
            self.at = None;
        }
    }

    fn begin(&mut self, place: Place) {
        self.at = Some(place);
        self.left.clear();
        let Some(timeline) = self.timeline.as_ref() else {
            return;
        };
        let Some((before, at)) = timeline.pair(place.stream, place.position) else {
            return;
        };
        if self.kept.len() + 1 > MAX_TURNS
            || self
                .kept
                .iter()
                .any(|kept| kept.is_of(place.stream, before.position))
        {
            return;
        }
        let around = AROUND.max(at.time - before.time);
        let (from, to) = (before.time.saturating_sub(around), at.time + around);
        let mut others = timeline.others(place.stream, from, to);
        others.sort_by_key(|time| time.abs_diff(before.time));
        others.dedup();
        self.left
            .extend(others.into_iter().take(ORDERS).map(|other| Turn {
                stream: place.stream,
                position: before.position,
                time: if other < before.time {
                    other.saturating_sub(1)
                } else {
                    other + 1
                },
            }));
    }
}

#[cfg(test)]
mod tests;
