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
//! for there by halving, see [`Between`]. Where it is not, they are two races, and the first of them was won.
//!
//! What a thread did before its first record has none whose turn could be another: such a thread may start late.
//!
//! Where all that is used up, an attempt is timed by chance: with or without the order of time, with delays that a seed
//! chooses.

mod between;
mod trials;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest::abi::{MAX_HOLDS, MAX_TURNS};
use replayer::Incomplete;

use super::checkpoint::Checkpoint;
use super::error::TakeoverError;
use super::holds::{Held, Stood};
use super::log::Log;
use super::timeline::{Moment, Timeline};
use super::timing::{Hold, Start, Timing, Turn};
use between::Between;

/// Attempts that fail at a place with what had led on there, until something else is tried.
const LAPSES: u32 = 3;
/// What two threads did before they left the log may be one and the same race if it lies so many cycles apart at most.
const NEAR: u64 = 8_000;
/// Turns that are tried at a place before threads start late.
const LIKELY: usize = 4;
/// How often it is looked into whether a place is the other thread's side of another.
const LOOKS: u32 = 2;
/// An attempt that makes no progress is given up after the budget of all divided by this.
const STALLS: u32 = 2;
/// The budget of an attempt without the log, at least: nothing comes after it.
const LAST: Duration = Duration::from_secs(2);

/// Where an attempt left the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    stream: u32,
    at: Moment,
    /// The two records of its thread before that; where there are fewer, one stands for both.
    before: [Moment; 2],
}

/// A place that is dealt with.
#[derive(Clone, Debug)]
struct Step {
    place: Place,
    /// What is tried, or has led on.
    trial: Trial,
    /// What else can be tried.
    left: VecDeque<Trial>,
    /// Whether an attempt has gone on beyond the place with this trial, and how many have failed there since.
    led: bool,
    lapses: u32,
    /// Where the same race may show itself at another thread.
    rival: Option<Rival>,
    /// How often that was looked into.
    looks: u32,
}

/// Where the same race may show itself at another thread.
#[derive(Clone, Debug)]
struct Rival {
    place: Place,
    /// What had led there.
    led_by: Trial,
    /// Between which instructions of the two the truth is looked for.
    between: Between,
}

/// What is tried at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trial {
    Turn(Turn),
    Hold(Hold),
    Start(Start),
}

impl Trial {
    fn turn(&self) -> Option<&Turn> {
        match self {
            Self::Turn(turn) => Some(turn),
            _ => None,
        }
    }

    fn hold(&self) -> Option<&Hold> {
        match self {
            Self::Hold(hold) => Some(hold),
            _ => None,
        }
    }

    fn start(&self) -> Option<&Start> {
        match self {
            Self::Start(start) => Some(start),
            _ => None,
        }
    }

    /// Whether it is about this record.
    fn is_of(&self, stream: u32, position: u64) -> bool {
        match self {
            Self::Turn(turn) => turn.is_of(stream, position),
            Self::Hold(hold) => {
                let mut passes = hold.passes.iter();
                (hold.stream, hold.position) == (stream, position)
                    || passes.any(|turn| turn.is_of(stream, position))
            }
            Self::Start(_) => false,
        }
    }
}

/// What becomes of the log behind the last checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It is replayed.
    Replayed,
    /// Nobody outside knows anything of it.
    NotNeeded,
    /// It is left out, though peers know of it: connections do not go on.
    LeftOut,
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
    /// What becomes of the log.
    log: Use,
    timeline: Option<Arc<Timeline>>,
    /// In the order in which they were met.
    steps: Vec<Step>,
    /// The instructions that threads did behind records, by stream and position, as far as they were seen.
    paths: HashMap<(u32, u64), Arc<[u64]>>,
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
            log: Use::Replayed,
            timeline: None,
            steps: Vec::new(),
            paths: HashMap::new(),
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
        self.log != Use::LeftOut && self.began.elapsed() < self.budget
    }

    /// Leaves the log out of the attempt that is to come, which is the last: the container goes on from its checkpoint.
    pub fn leave_out_log(&mut self) {
        self.log = Use::LeftOut;
        self.budget = self.budget.max(LAST);
        self.steps.clear();
    }

    /// Nothing has left the container that the checkpoint does not have: it goes on from there, with its connections.
    pub fn need_no_log(&mut self) {
        self.log = Use::NotNeeded;
    }

    /// What becomes of the log.
    pub(super) const fn log(&self) -> Use {
        self.log
    }

    /// How the attempt that is to come is timed.
    pub(super) fn timing(&self) -> Timing {
        let by_chance = self.number > 1 && self.steps.is_empty();
        Timing {
            ordered: self.ordered && !(by_chance && self.number.is_multiple_of(2)),
            seed: if by_chance { self.number } else { 0 },
            stall: self.budget / STALLS,
            turns: self
                .steps
                .iter()
                .filter_map(|s| s.trial.turn())
                .copied()
                .collect(),
            starts: self
                .steps
                .iter()
                .filter_map(|s| s.trial.start())
                .copied()
                .collect(),
            holds: self
                .steps
                .iter()
                .filter_map(|s| s.trial.hold())
                .map(|hold| Hold {
                    path: self.path(hold),
                    ..hold.clone()
                })
                .collect(),
        }
    }

    /// What is known of the way that a thread goes which is held.
    fn path(&self, hold: &Hold) -> Arc<[u64]> {
        let known = self.paths.get(&(hold.stream, hold.position));
        known.cloned().unwrap_or_default()
    }

    /// The attempt failed otherwise than in replay.
    pub fn missed(&mut self) {
        self.learn(None, &[]);
    }

    /// The attempt failed in the replay of this log, in which that came of its holds.
    pub(super) fn failed(
        &mut self,
        error: &TakeoverError,
        holds: &[Held],
        checkpoint: &Checkpoint,
        log: &Log,
    ) {
        let place = match error {
            TakeoverError::Replay(Incomplete::Diverged(d)) => Some((d.stream, d.position)),
            _ => None,
        };
        if self.ordered && self.timeline.is_none() {
            // Without it what is left is chance.
            self.timeline = Timeline::of(checkpoint, log).ok().map(Arc::new);
        }
        self.learn_paths(holds);
        let stood: Vec<Option<Stood>> = holds.iter().map(|held| held.stood).collect();
        self.learn(place, &stood);
        let last = self.steps.last();
        tracing::debug!(
            number = self.number,
            ?place,
            steps = self.steps.len(),
            ?stood,
            ?last,
            "next attempt"
        );
    }

    /// Which way threads went that were stepped, and which they no longer do.
    fn learn_paths(&mut self, holds: &[Held]) {
        let of_steps = self.steps.iter().filter_map(|step| step.trial.hold());
        for (hold, held) in of_steps.zip(holds) {
            let key = (hold.stream, hold.position);
            let known = self.paths.get(&key).map_or(0, |path| path.len());
            if held.path.len() > known {
                self.paths.insert(key, held.path.as_slice().into());
            } else if held.stood.is_none() {
                self.paths.remove(&key);
            }
        }
    }

    /// The attempt left the log at this record, or ended otherwise.
    fn learn(&mut self, place: Option<(u32, u64)>, stood: &[Option<Stood>]) {
        self.number += 1;
        let Some(place) = place.and_then(|(stream, position)| self.place(stream, position)) else {
            // Of the last trial at least, nothing good can be said.
            return self.try_another_at_last();
        };
        for step in &mut self.steps {
            if place.at.time > step.time() + NEAR && !step.is_of(place) {
                (step.led, step.lapses) = (true, 0);
            }
        }
        let mut steps = self.steps.iter();
        if let Some(index) = steps.position(|step| step.is_of(place)) {
            self.again(index, place, stood);
        } else if let Some(index) = self.not_held(place, stood) {
            self.again(index, place, stood);
        } else if let Some(index) = self.steps.iter().rposition(|s| s.may_be_of(place)) {
            self.look_between(index, place);
        } else {
            self.begin(place);
        }
    }

    fn place(&self, stream: u32, position: u64) -> Option<Place> {
        let timeline = self.timeline.as_ref()?;
        let time = timeline.time(stream, position)?;
        let at = Moment { position, time };
        let before = match timeline.before(stream, position) {
            [.., first, second] => [*first, *second],
            [only] => [*only; 2],
            [] => [at; 2],
        };
        Some(Place { stream, at, before })
    }

    /// The step whose thread did not come to where it was to be held, so that the attempt got to this place.
    fn not_held(&self, place: Place, stood: &[Option<Stood>]) -> Option<usize> {
        let mut indices = 0..self.steps.len();
        indices.find(|index| {
            let step = &self.steps[*index];
            let is_near = place.at.time + NEAR > step.time();
            step.rival.is_some() && !step.led && is_near && self.stood_at(*index, stood).is_none()
        })
    }

    /// Where the thread of a step's hold stood.
    fn stood_at(&self, index: usize, stood: &[Option<Stood>]) -> Option<Stood> {
        let holds = self.steps[..index].iter().filter_map(|s| s.trial.hold());
        stood.get(holds.count()).copied().flatten()
    }

    /// The attempt failed at a place that is dealt with already.
    fn again(&mut self, index: usize, place: Place, stood: &[Option<Stood>]) {
        let stood = self.stood_at(index, stood);
        let step = &mut self.steps[index];
        if step.led {
            step.lapses += 1;
            if step.lapses <= LAPSES {
                return;
            }
            // It leads on now and then: there may be better.
            if step.trial.hold().is_none() {
                step.left.push_back(step.trial.clone());
            }
        } else if let Some(rival) = &mut step.rival {
            rival.between.learn(place, stood);
            if let Some(hold) = rival.between.next() {
                step.trial = Trial::Hold(hold);
                return;
            }
            if let Some(rival) = step.rival.take() {
                // They are two races: this one was won.
                (step.trial, step.led, step.lapses) = (rival.led_by, true, 0);
                return self.begin(rival.place);
            }
        }
        self.try_another(index);
    }

    /// One race shows itself at the place of a step and at this one.
    fn look_between(&mut self, index: usize, place: Place) {
        let holds = self.steps.iter().filter_map(|step| step.trial.hold());
        let hints: Vec<u32> = holds.map(|hold| hold.steps).collect();
        if hints.len() == MAX_HOLDS {
            return self.try_another(index);
        }
        let step = &mut self.steps[index];
        let mut between = Between::new(step.place, place, hints);
        let Some(hold) = between.next() else {
            return;
        };
        step.rival = Some(Rival {
            place,
            led_by: std::mem::replace(&mut step.trial, Trial::Hold(hold)),
            between,
        });
        (step.led, step.lapses) = (false, 0);
        step.looks += 1;
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
            step.rival = None;
            return;
        }
        let time = self.steps.remove(index).time();
        let mut before = self.steps.iter().enumerate().collect::<Vec<_>>();
        before.retain(|(_, step)| step.time() < time);
        if let Some((index, _)) = before.into_iter().max_by_key(|(_, step)| step.time()) {
            self.try_another(index);
        }
    }

    /// Deals with another place, if there is anything to be tried there.
    fn begin(&mut self, place: Place) {
        let Some(timeline) = self.timeline.as_ref() else {
            return;
        };
        let has_start = |stream| {
            let mut starts = self.steps.iter().filter_map(|step| step.trial.start());
            starts.any(|start| start.stream == stream)
        };
        let has_turn = |stream, position| {
            let mut steps = self.steps.iter();
            steps.any(|step| step.trial.is_of(stream, position))
        };
        let (stream, position) = (place.stream, place.at.position);
        let turns = trials::at(timeline, stream, position, has_turn);
        let starts = trials::starts(timeline, stream, position);
        let starts = starts.into_iter().filter(|start| !has_start(start.stream));
        let mut left: VecDeque<Trial> = turns.into_iter().map(Trial::Turn).collect();
        // What is near in time is likelier, but there may be a great deal of it.
        let rest = left.split_off(left.len().min(LIKELY));
        left.extend(starts.map(Trial::Start));
        left.extend(rest);
        match left.pop_front() {
            Some(trial) if self.steps.len() + MAX_HOLDS < MAX_TURNS => self.steps.push(Step {
                place,
                trial,
                left,
                led: false,
                lapses: 0,
                rival: None,
                looks: 0,
            }),
            _ => self.try_another_at_last(),
        }
    }
}

impl Step {
    /// When the record was made at which the log was left.
    fn time(&self) -> u64 {
        self.place.at.time
    }

    fn is_of(&self, place: Place) -> bool {
        let is_there = |rival: &Rival| rival.place == place;
        self.place == place || self.rival.as_ref().is_some_and(is_there)
    }

    /// Whether another thread's place may be this one's.
    fn may_be_of(&self, place: Place) -> bool {
        let begins = |place: &Place| place.before[1].time;
        let at_once =
            begins(&place) <= self.time() + NEAR && begins(&self.place) <= place.at.time + NEAR;
        // What leads on from both sides of one race is a third.
        let is_open = self.rival.is_none() && self.looks < LOOKS;
        at_once && place.stream != self.place.stream && is_open
    }
}

#[cfg(test)]
mod tests;
