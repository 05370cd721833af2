//! What the attempts of a takeover learn from one another.
//!
//! What threads do to one another without a call or a lock is in no log: whether it comes about again is a matter of
//! timing. The first attempt keeps to the order of time as it was recorded. Where that leaves the log, the thread that
//! left it had done something between its last two records before, behind, or together with what some other thread did,
//! otherwise than when it was recorded; so the first of these two records, or one just before it, gets other turns: see
//! [`trials`]. What leads further is kept, and the next place is dealt with in the same way; where nothing leads further,
//! what had led there is tried otherwise. So a log with many races takes some attempts for each of them, and not for
//! every combination.
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

/// Attempts that fail at a place with what had led on there, until something else is tried.
const LAPSES: u32 = 3;
/// What two threads did before they left the log may be one and the same race if it lies so many cycles apart at most.
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
    /// When the record there was made, and the one before.
    time: u64,
    since: u64,
}

/// A place that is dealt with.
#[derive(Clone, Debug)]
struct Step {
    at: Place,
    /// What is tried, or has led on.
    trial: Turn,
    /// What else can be tried.
    left: VecDeque<Turn>,
    /// Whether an attempt has gone on beyond the place with this trial, and how many have failed there since.
    led: bool,
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
    /// In the order in which they were met.
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
            let timeline = self.timeline.as_ref()?;
            let time = timeline.time(stream, position)?;
            let before = timeline.before(stream, position).last();
            Some(Place {
                stream,
                position,
                time,
                since: before.map_or(time, |record| record.time),
            })
        });
        let Some(place) = place else {
            // Of the last trial at least, nothing good can be said.
            return self.try_another_at_last();
        };
        for step in &mut self.steps {
            if place.time > step.at.time + NEAR {
                (step.led, step.lapses) = (true, 0);
            }
        }
        let mut steps = self.steps.iter();
        if let Some(index) = steps.position(|step| step.is_of(place)) {
            self.again(index, place);
        } else if let Some(index) = self.steps.iter().rposition(|s| s.may_be_of(place)) {
            self.look_between(index, place);
        } else {
            self.begin(place);
        }
    }

    /// The attempt failed at a place that is dealt with already.
    fn again(&mut self, index: usize, place: Place) {
        let step = &mut self.steps[index];
        if let Some(window) = &mut step.window {
            window.learn(step.trial.time, place == step.at);
            if let Some(time) = window.next() {
                step.trial.time = time;
                return;
            }
        } else if step.led {
            step.lapses += 1;
            if step.lapses <= LAPSES {
                return;
            }
            // It leads on now and then: there may be better.
            step.left.push_back(step.trial);
        }
        self.try_another(index);
    }

    /// One race shows itself at the place of a step and at this one.
    fn look_between(&mut self, index: usize, place: Place) {
        let step = &mut self.steps[index];
        let timeline = self.timeline.as_ref();
        let own = timeline.and_then(|t| t.time(step.trial.stream, step.trial.position));
        let Some(own) = own else {
            return;
        };
        let mut window = Window::new(own, step.trial.time);
        if let Some(time) = window.next() {
            (step.trial.time, step.trial.paced) = (time, true);
        }
        (step.window, step.other) = (Some(window), Some(place));
        step.windows += 1;
    }

    fn try_another_at_last(&mut self) {
        if let Some(last) = self.steps.len().checked_sub(1) {
            self.try_another(last);
        }
    }

    /// The next trial of a step; where there is none, of the one before it in time.
    fn try_another(&mut self, index: usize) {
        let step = &mut self.steps[index];
        if let Some(next) = step.left.pop_front() {
            (step.trial, step.led, step.lapses) = (next, false, 0);
            (step.window, step.other) = (None, None);
            return;
        }
        let at = self.steps.remove(index).at;
        let mut before = self.steps.iter().enumerate().collect::<Vec<_>>();
        before.retain(|(_, step)| step.at.time < at.time);
        if let Some((index, _)) = before.into_iter().max_by_key(|(_, step)| step.at.time) {
            self.try_another(index);
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
        let mut left = trials::at(timeline, at.stream, at.position, has_turn);
        match left.pop_front() {
            Some(trial) if self.steps.len() < MAX_TURNS => self.steps.push(Step {
                at,
                trial,
                left,
                led: false,
                lapses: 0,
                window: None,
                windows: 0,
                other: None,
            }),
            _ => self.try_another_at_last(),
        }
    }
}

impl Step {
    fn is_of(&self, place: Place) -> bool {
        self.at == place || self.other == Some(place)
    }

    /// Whether another thread's place may be this one's.
    fn may_be_of(&self, place: Place) -> bool {
        let at_once = place.since <= self.at.time + NEAR && self.at.since <= place.time + NEAR;
        at_once && place.stream != self.at.stream && self.windows < WINDOWS
    }
}

#[cfg(test)]
mod tests;
