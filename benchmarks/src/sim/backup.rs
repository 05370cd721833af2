//! The host that stands by: keeps log and checkpoint, acknowledges, watches, and takes over.

use ::backup::arbiter::{Arbiter, Phase};
use ::backup::detector::{Detector, Status};
use ::backup::store::{LogStore, Staging, StoreError, Whole};
use stream::hello::Timing;
use stream::lease::{BeatAnswer, Condition};

use super::Plant;
use super::chance;
use super::network::{Clock, Drain, Message};
use super::primary::{EVENT, STREAM, after};
use crate::rng::Rng;

/// More than any run needs.
const ROOM: u64 = 1 << 20;
/// Longest attempts of a takeover, milliseconds: some are over before the primary's lease is.
const LONGEST: [u64; 2] = [5, 80];

/// The image of a server in this state behind so many events.
pub(super) fn image(events: u64, state: u64) -> Vec<u8> {
    [events, state]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

#[derive(Debug)]
pub(super) struct Backup {
    pub(super) clock: Clock,
    timing: Timing,
    /// Which run of it this is.
    pub(super) instance: u64,
    /// On disk.
    pub(super) generation: u64,
    pub(super) arbiter: Arbiter,
    pub(super) detector: Detector,
    log: LogStore,
    staging: Staging,
    /// A checkpoint that is whole and waits for the log before it.
    whole: Option<Whole>,
    committed: Option<Whole>,
    held: u64,
    acknowledged: u64,
    attempt_ends: Option<u64>,
    /// Events and state that the takeover under way, or over, goes on from.
    pub(super) replayed: Option<(u64, u64)>,
    plant: Option<Plant>,
}

/// What came of a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    TakesOver,
    Revoked,
    Live,
}

impl Backup {
    pub(super) fn new(clock: Clock, timing: Timing, plant: Option<Plant>) -> Self {
        Self {
            clock,
            timing,
            instance: 1,
            generation: 1,
            arbiter: Arbiter::new(1, timing, clock.at(0)),
            detector: Detector::new(timing.detect),
            log: LogStore::new(ROOM, None),
            staging: Staging::new(ROOM),
            whole: None,
            committed: None,
            held: 0,
            acknowledged: 0,
            attempt_ends: None,
            replayed: None,
            plant,
        }
    }

    /// It comes again, and knows nothing but the generation.
    pub(super) fn restart(&mut self, now: u64) {
        *self = Self {
            instance: self.instance + 1,
            generation: self.generation,
            arbiter: Arbiter::new(self.generation, self.timing, self.clock.at(now)),
            ..Self::new(self.clock, self.timing, self.plant)
        };
    }

    /// Takes a message; the answers. What was sent on a connection to an earlier run does not arrive.
    pub(super) fn hear(&mut self, message: Message, now: u64) -> Result<Vec<Message>, StoreError> {
        let instance = self.instance;
        let is_for = |to: u64| to == instance;
        match message {
            Message::Beat { to, beat } if is_for(to) => {
                let now = self.clock.at(now);
                self.detector.heard(now);
                let verdict = self.arbiter.heartbeat(&beat, now);
                if beat.condition == Condition::Yielded {
                    self.detector.yielded(now);
                }
                let answer = BeatAnswer {
                    seq: beat.seq,
                    generation: self.arbiter.generation(),
                    instance: self.instance,
                    verdict,
                };
                return Ok(vec![Message::Answer(answer)]);
            }
            Message::Drain { to, drain } if is_for(to) => self.keep(&drain)?,
            Message::Begin { to, begin } if is_for(to) => {
                self.log.await_cut(Some(begin.cut.clone()))?;
                self.staging.begin(begin)?;
            }
            Message::Image { to, offset, bytes } if is_for(to) => {
                self.staging.chunk(offset, &bytes)?;
            }
            Message::Finish { to, finish } if is_for(to) => {
                self.whole = Some(self.staging.finish(&finish)?);
            }
            _ => {}
        }
        Ok(Vec::new())
    }

    fn keep(&mut self, drain: &Drain) -> Result<(), StoreError> {
        self.log.append(STREAM, drain.position, &drain.bytes)?;
        self.log.mark_drain();
        self.held = drain.number;
        Ok(())
    }

    /// One millisecond. `may_fail`: attempts fail now and then; `fails`: they all do, since the primary answers.
    pub(super) fn act(
        &mut self,
        now: u64,
        dice: &mut Rng,
        may_fail: bool,
        fails: bool,
    ) -> Result<(Step, Vec<Message>), StoreError> {
        let mut said = Vec::new();
        said.extend(self.commit());
        if self.arbiter.may_acknowledge() && self.held > self.acknowledged {
            self.acknowledged = self.held;
            said.push(Message::Ack {
                from: self.instance,
                number: self.held,
            });
        }
        let step = match self.attempt_ends {
            Some(ends) if now < ends => Step::Nothing,
            Some(_) => self.end_attempt(now, if may_fail { chance(dice, 300) } else { fails }),
            None => self.watch(now, dice, may_fail)?,
        };
        Ok((step, said))
    }

    /// Commits the checkpoint that is whole, if the log has reached it.
    fn commit(&mut self) -> Option<Message> {
        let ignores_log = self.plant == Some(Plant::CommitBeforeLog);
        let reached = |whole: &mut Whole| ignores_log || self.log.reached(&whole.begin.cut);
        if !self.arbiter.may_commit() {
            return None;
        }
        let whole = self.whole.take_if(reached)?;
        let id = whole.begin.id;
        self.log.drop_before(&whole.begin.cut);
        self.committed = Some(whole);
        self.arbiter.committed();
        Some(Message::Committed {
            from: self.instance,
            id,
        })
    }

    fn end_attempt(&mut self, now: u64, fails: bool) -> Step {
        let now = self.clock.at(now);
        if fails {
            self.arbiter.revoke();
            self.detector.rearm(now);
            (self.attempt_ends, self.replayed) = (None, None);
            return Step::Revoked;
        }
        match self.arbiter.go_live(now) {
            Ok(generation) => {
                (self.generation, self.attempt_ends) = (generation, None);
                Step::Live
            }
            Err(_) => Step::Nothing,
        }
    }

    /// Suspects the primary, also for no good reason: a connection that broke, an operator.
    fn watch(&mut self, now: u64, dice: &mut Rng, may_fail: bool) -> Result<Step, StoreError> {
        let suspected = matches!(
            self.detector.check(self.clock.at(now)),
            Status::Suspected(_)
        );
        let early = may_fail && chance(dice, 2);
        if !(suspected || early) || self.arbiter.take_over().is_err() {
            return Ok(Step::Nothing);
        }
        let longest = LONGEST[usize::from(chance(dice, 500))];
        self.attempt_ends = Some(now + dice.below(longest));
        self.replayed = Some(self.replay()?);
        Ok(Step::TakesOver)
    }

    /// The state of the checkpoint, and what the log up to the last whole drain makes of it.
    fn replay(&self) -> Result<(u64, u64), StoreError> {
        let image = self
            .committed
            .as_ref()
            .map_or(&[][..], |whole| &whole.image);
        let (mut events, mut state) = (word(image, 0), word(image, 8));
        let range = self.log.streams().find(|range| range.stream == STREAM);
        let end = range.map_or(0, |range| range.drained);
        let mut bytes = Vec::new();
        let left = end.saturating_sub(events * EVENT) as usize;
        self.log.read(STREAM, events * EVENT, left, &mut bytes)?;
        for event in bytes.chunks_exact(EVENT as usize) {
            state = after(state, word(event, 0));
            events += 1;
        }
        Ok((events, state))
    }

    pub(super) fn is_live(&self) -> bool {
        self.arbiter.phase() == Phase::Live
    }
}
