//! Who may speak: the backup's side of output commit and lease, for one container. A pure state machine.
//!
//! ```text
//!              committed          take_over          go_live
//! Unprotected ──────────▶ Guarding ────────▶ TakingOver ──────▶ Live
//!                             ▲                  │
//!                             └──────revoke──────┘         any ──ended──▶ Ended
//! ```
//!
//! Only in `Guarding` are drains acknowledged and heartbeats granted. A grant is a promise of silence; the
//! backup goes live no earlier than the last promise ends, unless the primary has said that it gave up.

use stream::Nanos;
use stream::hello::Timing;
use stream::lease::{Beat, Condition, Verdict};

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No checkpoint is committed: the backup could not take over, so the gate stays shut.
    Unprotected,
    /// The primary serves.
    Guarding,
    /// A takeover is under way; it can still be called off.
    TakingOver,
    /// The container runs here.
    Live,
    /// The container has ended in order.
    Ended,
}

/// The arbiter of one container. Every moment is of the backup's boot-time clock.
#[derive(Clone, Debug)]
pub struct Arbiter {
    timing: Timing,
    generation: u64,
    phase: Phase,
    promised: Nanos,
    yielded: bool,
    last_beat: u64,
}

/// Why a takeover cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TakeoverError {
    /// There is nothing to restore.
    #[error("no checkpoint of the container is committed yet, so there is nothing to take over")]
    NoCheckpoint,
    /// The phase allows none.
    #[error("a takeover cannot begin while the container is {0:?}")]
    Phase(Phase),
}

/// Why a container cannot go live now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoLiveError {
    /// No takeover is under way.
    #[error("the container cannot go live while it is {0:?}")]
    Phase(Phase),
    /// The primary may still speak.
    #[error("the primary may speak until {until}, at {now} the container cannot go live")]
    Promised {
        /// When the last promise ends.
        until: Nanos,
        /// Now.
        now: Nanos,
    },
}

impl Arbiter {
    /// The arbiter, from `now` on, of a container whose primary runs under `generation`. An earlier run of
    /// this backup may just have made a promise, so it counts as made.
    #[must_use]
    pub fn new(generation: u64, timing: Timing, now: Nanos) -> Self {
        let promised = now + timing.promise();
        Self {
            timing,
            generation,
            phase: Phase::Unprotected,
            promised,
            yielded: false,
            last_beat: 0,
        }
    }

    /// The generation that may speak: the primary's, or after going live, the own.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// True if drains may be acknowledged: this is what opens the primary's gate.
    #[must_use]
    pub fn may_acknowledge(&self) -> bool {
        self.phase == Phase::Guarding
    }

    /// True if a checkpoint may be committed: not while a takeover reads the one before.
    #[must_use]
    pub fn may_commit(&self) -> bool {
        matches!(self.phase, Phase::Unprotected | Phase::Guarding)
    }

    /// A checkpoint was committed.
    pub fn committed(&mut self) {
        if self.phase == Phase::Unprotected {
            self.phase = Phase::Guarding;
        }
    }

    /// The primary has made a new connection for heartbeats: it counts them from 1 again, and what it said
    /// on the old one no longer holds.
    pub fn reconnected(&mut self) {
        self.last_beat = 0;
        self.yielded = false;
    }

    /// The number of the last heartbeat on the primary's connection.
    #[must_use]
    pub fn last_beat(&self) -> u64 {
        self.last_beat
    }

    /// True if the primary's last heartbeat said that it will not speak.
    #[must_use]
    pub fn is_yielded(&self) -> bool {
        self.yielded
    }

    /// The verdict on a heartbeat that is answered at `now`. A heartbeat that was overtaken by a later one
    /// gets no promise.
    pub fn heartbeat(&mut self, beat: &Beat, now: Nanos) -> Verdict {
        if beat.generation < self.generation || self.phase == Phase::Live {
            return Verdict::Fenced;
        }
        if beat.generation > self.generation || beat.seq <= self.last_beat {
            return Verdict::Withheld;
        }
        self.last_beat = beat.seq;
        self.yielded = beat.condition == Condition::Yielded;
        if self.phase != Phase::Guarding || self.yielded {
            return Verdict::Withheld;
        }
        self.promised = self.promised.max(now + self.timing.promise());
        Verdict::Granted
    }

    /// Begins a takeover: from here on nothing is acknowledged or granted. Answers the generation that it
    /// will go live under.
    ///
    /// # Errors
    /// [`TakeoverError::NoCheckpoint`], or [`TakeoverError::Phase`] in any phase but `Guarding`.
    pub fn take_over(&mut self) -> Result<u64, TakeoverError> {
        match self.phase {
            Phase::Guarding => {
                self.phase = Phase::TakingOver;
                Ok(self.generation + 1)
            }
            Phase::Unprotected => Err(TakeoverError::NoCheckpoint),
            other => Err(TakeoverError::Phase(other)),
        }
    }

    /// Calls the takeover off: the primary, if it still answers, gets its lease again.
    pub fn revoke(&mut self) {
        if self.phase == Phase::TakingOver {
            self.phase = Phase::Guarding;
        }
    }

    /// From when on the container may go live.
    #[must_use]
    pub fn clear_at(&self) -> Nanos {
        if self.yielded {
            Nanos(0)
        } else {
            self.promised
        }
    }

    /// The container goes live here; every older generation is refused for good. Answers the new one.
    ///
    /// # Errors
    /// [`GoLiveError::Promised`] before [`Arbiter::clear_at`]; [`GoLiveError::Phase`] without a takeover.
    pub fn go_live(&mut self, now: Nanos) -> Result<u64, GoLiveError> {
        if self.phase != Phase::TakingOver {
            return Err(GoLiveError::Phase(self.phase));
        }
        if now < self.clear_at() {
            return Err(GoLiveError::Promised {
                until: self.clear_at(),
                now,
            });
        }
        self.phase = Phase::Live;
        self.generation += 1;
        Ok(self.generation)
    }

    /// The container has ended in order. What runs here already is not ended by a primary.
    pub fn ended(&mut self) {
        if self.phase != Phase::Live {
            self.phase = Phase::Ended;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn arbiter() -> Arbiter {
        let timing = Timing {
            heartbeat: Duration::from_millis(10),
            detect: Duration::from_millis(64),
        };
        Arbiter::new(3, timing, Nanos(0))
    }

    fn beat(seq: u64) -> Beat {
        Beat {
            seq,
            generation: 3,
            condition: Condition::Serving,
        }
    }

    #[test]
    fn without_a_checkpoint_nothing_opens() {
        let mut a = arbiter();
        assert!(!a.may_acknowledge());
        assert_eq!(a.heartbeat(&beat(1), Nanos(0)), Verdict::Withheld);
        assert_eq!(a.take_over(), Err(TakeoverError::NoCheckpoint));
        a.committed();
        assert!(a.may_acknowledge());
        assert_eq!(a.heartbeat(&beat(2), Nanos(0)), Verdict::Granted);
    }

    #[test]
    fn a_promise_is_kept_before_going_live() {
        let mut a = arbiter();
        a.committed();
        let now = Nanos(1_000_000_000);
        a.heartbeat(&beat(1), now);
        assert_eq!(a.go_live(now), Err(GoLiveError::Phase(Phase::Guarding)));
        assert_eq!(a.take_over(), Ok(4));
        assert!(!a.may_acknowledge() && !a.may_commit());
        let until = now + a.timing.promise();
        assert_eq!(a.go_live(now), Err(GoLiveError::Promised { until, now }));
        assert_eq!(a.heartbeat(&beat(2), now), Verdict::Withheld);
        assert_eq!(a.go_live(until), Ok(4));
        assert_eq!(a.heartbeat(&beat(3), until), Verdict::Fenced);
        a.ended();
        assert_eq!(a.phase(), Phase::Live);
        assert_eq!(a.take_over(), Err(TakeoverError::Phase(Phase::Live)));
    }

    #[test]
    fn a_promise_of_an_earlier_run_is_kept_too() {
        let mut a = arbiter();
        a.committed();
        a.take_over().unwrap();
        assert!(matches!(
            a.go_live(Nanos(1)),
            Err(GoLiveError::Promised { .. })
        ));
        assert_eq!(a.go_live(Nanos(0) + a.timing.promise()), Ok(4));
    }

    #[test]
    fn a_takeover_called_off_gives_the_lease_back() {
        let mut a = arbiter();
        a.committed();
        a.take_over().unwrap();
        a.revoke();
        assert!(a.may_acknowledge());
        assert_eq!(
            (a.generation(), a.heartbeat(&beat(1), Nanos(0))),
            (3, Verdict::Granted)
        );
        assert_eq!(a.take_over(), Ok(4));
    }

    #[test]
    fn who_gave_up_need_not_be_waited_for() {
        let mut a = arbiter();
        a.committed();
        a.heartbeat(&beat(1), Nanos(1000));
        let given_up = Beat {
            condition: Condition::Yielded,
            ..beat(2)
        };
        assert_eq!(a.heartbeat(&given_up, Nanos(1001)), Verdict::Withheld);
        a.take_over().unwrap();
        assert_eq!(a.go_live(Nanos(1002)), Ok(4));

        let mut a = arbiter();
        a.committed();
        a.heartbeat(&beat(2), Nanos(1000));
        assert_eq!(
            a.heartbeat(&Beat { seq: 1, ..given_up }, Nanos(1001)),
            Verdict::Withheld
        );
        a.take_over().unwrap();
        assert!(
            a.go_live(Nanos(1002)).is_err(),
            "an overtaken message frees from no promise"
        );
    }
}
