//! What the attempts of a takeover learn from one another.
//!
//! What threads do to one another without a call or a lock is in no log: whether it comes about again is a matter of
//! timing. The first attempt keeps to the order of time as it was recorded. Where that leaves the log, the thread that
//! left it had done something between its last two records before, behind, or together with what some other thread did,
//! otherwise than when it was recorded; so the first of these two records, or one just before it, gets other turns: before
//! or behind records that others made at about the same time, the nearest first, and, against what two did together, at its own time and
//! close to it in the pace of the recording. What leads further is kept, and the next place is dealt with in the same
//! way; where nothing leads further, what had led there is tried otherwise. So a log with many races takes some attempts
//! for each of them, and not for every combination.
//!
//! Two that did something at the same moment may each have seen half of what the other did. Then one order leaves the log
//! in the one thread, and the other order a moment later in the other thread: the truth lies in between, and is looked
//! for there by halving, see [`Window`].
//!
//! Where all that is used up, an attempt is timed by chance: with or without the order of time, with delays that a seed
//! chooses.

mod trials;
mod window;

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
use window::Window;

/// Attempts that fail before a place until something else is tried: first there where they fail, if that had led on, else
/// at the place.
const LAPSES: u32 = 4;
/// Two places of different threads so close together, in cycles, may be of one and the same race.
const NEAR: u64 = 8_000;
/// Windows that are opened for one place.
const WINDOWS: u32 = 2;
/// An attempt that makes no progress is given up after the budget of all divided by this.
const STALLS: u32 = 2;

/// Where an attempt left the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    stream: u32,
    position: u64,
    /// When the record there was made.
    time: u64,
}

/// A place that is dealt with.
#[derive(Clone, Debug)]
struct Step {
    at: Place,
    /// When its thread made the record before.
    since: u64,
    /// What is tried, or has led on.
    trial: Turn,
    /// What else can be tried.
    left: VecDeque<Turn>,
    /// Attempts that failed before the place, or at it after this trial had led on, since the last that did not.
    lapses: u32,
    /// Between which times of the trial's record the truth is looked for.
    window: Option<Window>,
    /// Windows opened so far.
    windows: u32,
    /// The same race at the other thread.
    other: Option<Place>,
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
    /// The trials of all but the last have led on.
    steps: Vec<Step>,
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
            steps: Vec::new(),
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
        let by_chance = self.number > 1 && self.steps.is_empty();
        Timing {
            ordered: self.ordered && !(by_chance && self.number.is_multiple_of(2)),
            seed: if by_chance { self.number } else { 0 },
            stall: self.budget / STALLS,
            turns: self.steps.iter().map(|step| step.trial).collect(),
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
        let last = self.steps.last();
        tracing::debug!(
            number = self.number,
            ?place,
            steps = self.steps.len(),
            ?last,
            "next attempt"
        );
    }

    /// The attempt left the log at this record, or ended otherwise.
    fn learn(&mut self, place: Option<(u32, u64)>) {
        self.number += 1;
        let place = place.and_then(|(stream, position)| {
            let time = self.timeline.as_ref()?.time(stream, position)?;
            Some(Place {
                stream,
                position,
                time,
            })
        });
        let Some(place) = place else {
            return self.try_another();
        };
        for step in &mut self.steps {
            if place.time > step.at.time + NEAR {
                step.lapses = 0;
            }
        }
        let known = self.steps.iter().position(|step| step.is_of(place));
        match (known, self.steps.last_mut()) {
            (Some(index), _) => self.again(index, place),
            (None, Some(last)) if last.may_be_of(place) => self.look_between(place),
            (None, Some(last)) if place.time < last.at.time => {
                last.lapses += 1;
                if last.lapses > LAPSES {
                    self.try_another();
                }
            }
            _ => self.begin(place),
        }
    }

    /// The attempt failed at a place that is dealt with already.
    fn again(&mut self, index: usize, place: Place) {
        let last = index + 1 == self.steps.len();
        let step = &mut self.steps[index];
        if let Some(window) = &mut step.window {
            window.learn(step.trial.time, place == step.at);
            if let Some(time) = window.next() {
                step.trial.time = time;
                return;
            }
        } else if !last {
            step.lapses += 1;
            if step.lapses <= LAPSES {
                return;
            }
            // It leads on now and then: there may be better.
            step.left.push_back(step.trial);
        }
        self.steps.truncate(index + 1);
        self.try_another();
    }

    /// One race shows itself at the last place and at this one.
    fn look_between(&mut self, place: Place) {
        let own = self.steps.last().and_then(|last| {
            let timeline = self.timeline.as_ref()?;
            timeline.time(last.trial.stream, last.trial.position)
        });
        let (Some(own), Some(last)) = (own, self.steps.last_mut()) else {
            return;
        };
        let mut window = Window::new(own, last.trial.time);
        if let Some(time) = window.next() {
            (last.trial.time, last.trial.paced) = (time, true);
        }
        (last.window, last.other) = (Some(window), Some(place));
        last.windows += 1;
    }

    /// The next trial at the last place; where there is none, at the one before.
    fn try_another(&mut self) {
        while let Some(step) = self.steps.last_mut() {
            if let Some(next) = step.left.pop_front() {
                (step.trial, step.lapses, step.window, step.other) = (next, 0, None, None);
                return;
            }
            self.steps.pop();
        }
    }

    /// Deals with another place, if there is anything to be tried there.
    fn begin(&mut self, at: Place) {
        let Some(timeline) = self.timeline.as_ref() else {
            return;
        };
        let has_turn = |stream, position| {
            let mut steps = self.steps.iter();
            steps.any(|step| step.trial.is_of(stream, position))
        };
        let before = timeline.before(at.stream, at.position).last();
        let since = before.map_or(at.time, |record| record.time);
        let mut left = trials::at(timeline, at.stream, at.position, has_turn);
        match left.pop_front() {
            Some(trial) if self.steps.len() < MAX_TURNS => self.steps.push(Step {
                at,
                since,
                trial,
                left,
                lapses: 0,
                window: None,
                windows: 0,
                other: None,
            }),
            _ => self.try_another(),
        }
    }
}

impl Step {
    fn is_of(&self, place: Place) -> bool {
        self.at == place || self.other == Some(place)
    }

    /// Whether another thread's place may be this one's.
    fn may_be_of(&self, place: Place) -> bool {
        let since = self.since.saturating_sub(NEAR);
        let close = (since..=self.at.time + NEAR).contains(&place.time);
        close && place.stream != self.at.stream && self.windows < WINDOWS
    }
}

#[cfg(test)]
mod tests;
