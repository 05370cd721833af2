//! The primary's right to speak: given by the backup's answers, counted from its own heartbeats.
//!
//! A heartbeat leaves the primary at `t`; the backup that answers it as granted has promised to stay silent
//! for [`Timing::promise`] from its answer on, which is later than `t`. So the primary may speak until
//! `t` + [`Timing::lease`], whatever the network does to the answer. Both count on their own clocks.

use core::time::Duration;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::clock::{Clocks, Nanos};
use crate::hello::{Timing, Welcome};

/// Heartbeats whose answers are still taken: older ones could not extend a lease.
const MAX_OPEN: usize = 1024;

/// What the primary says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// It serves.
    Serving,
    /// It has closed its gate by itself: its processes died, or the operator asked for a switch-over. The
    /// backup need not wait for anything.
    Yielded,
}

/// A heartbeat, from the primary to the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Counts from 1.
    pub seq: u64,
    /// The primary's generation.
    pub generation: u64,
    /// How it is.
    pub condition: Condition,
}

/// The message of a heartbeat: the primary's word, and its clocks when it was sent, which go on on the backup if it
/// takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// For the lease.
    pub beat: Beat,
    /// As the container's processes see them.
    pub clocks: Clocks,
}

/// What the backup says to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It promises to stay silent: the lease goes on.
    Granted,
    /// It promises nothing: no checkpoint is committed yet, or a takeover is under way.
    Withheld,
    /// It went live: the primary must never speak again.
    Fenced,
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeatAnswer {
    /// The heartbeat's number.
    pub seq: u64,
    /// The generation the backup knows.
    pub generation: u64,
    /// Which run of the backup answers.
    pub instance: u64,
    /// What it promises.
    pub verdict: Verdict,
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Output may leave until then.
    Extended {
        /// The lease's new end.
        until: Nanos,
    },
    /// Nothing: an old answer, or a promise withheld.
    Unchanged,
    /// The container is live elsewhere under this generation; the lease is over for good.
    Fenced {
        /// The generation that is live.
        generation: u64,
    },
    /// Another run of the backup answered, which holds nothing of this container.
    OtherBackup {
        /// Its instance.
        instance: u64,
    },
}

/// The lease of one primary under one backup. Every moment is of the primary's boot-time clock.
#[derive(Clone, Debug)]
pub struct Lease {
    timing: Timing,
    welcome: Welcome,
    open: VecDeque<(u64, Nanos)>,
    next: u64,
    until: Nanos,
    condition: Condition,
    fenced: Option<u64>,
    round_trip: Option<Duration>,
}

impl Lease {
    /// No lease yet, under the backup that gave `welcome`.
    #[must_use]
    pub fn new(timing: Timing, welcome: Welcome) -> Self {
        Self {
            timing,
            welcome,
            open: VecDeque::new(),
            next: 1,
            until: Nanos(0),
            condition: Condition::Serving,
            fenced: None,
            round_trip: None,
        }
    }

    /// The heartbeat to send at `now`. The clock is to be read before this call, and the heartbeat sent
    /// after it: the lease counts from `now`.
    pub fn beat(&mut self, now: Nanos) -> Beat {
        let seq = self.next;
        self.next += 1;
        if self.open.len() == MAX_OPEN {
            self.open.pop_front();
        }
        self.open.push_back((seq, now));
        Beat {
            seq,
            generation: self.welcome.generation,
            condition: self.condition,
        }
    }

    /// An answer came at `now`.
    pub fn answered(&mut self, answer: &BeatAnswer, now: Nanos) -> Outcome {
        if let Some(generation) = self.fenced {
            return Outcome::Fenced { generation };
        }
        if answer.generation > self.welcome.generation || answer.verdict == Verdict::Fenced {
            self.fence(answer.generation);
            return Outcome::Fenced {
                generation: answer.generation,
            };
        }
        if answer.instance != self.welcome.instance {
            return Outcome::OtherBackup {
                instance: answer.instance,
            };
        }
        let Some(i) = self.open.iter().position(|(seq, _)| *seq == answer.seq) else {
            return Outcome::Unchanged;
        };
        let (_, sent) = self.open[i];
        self.open.drain(..=i);
        self.round_trip = Some(now.since(sent));
        let granted = answer.verdict == Verdict::Granted
            && answer.generation == self.welcome.generation
            && self.condition == Condition::Serving;
        let until = sent + self.timing.lease();
        if !granted || until <= self.until || until <= now {
            return Outcome::Unchanged;
        }
        self.until = until;
        Outcome::Extended { until }
    }

    /// True if output may leave at `now`.
    #[must_use]
    pub fn is_live(&self, now: Nanos) -> bool {
        now < self.until
    }

    /// The lease's end; 0 if there is none. What the gate enforces.
    #[must_use]
    pub fn until(&self) -> Nanos {
        self.until
    }

    /// Gives the lease up. The gate is to be closed before the next heartbeat tells the backup.
    pub fn give_up(&mut self) {
        self.condition = Condition::Yielded;
        self.until = Nanos(0);
    }

    /// Serves again after [`Lease::give_up`]: the switch-over was called off. Heartbeats sent before
    /// this, which told the backup otherwise, extend nothing.
    pub fn resume(&mut self) {
        self.condition = Condition::Serving;
        self.open.clear();
    }

    /// True if this primary has given the lease up by itself.
    #[must_use]
    pub fn gave_up(&self) -> bool {
        self.condition == Condition::Yielded
    }

    /// The container is live elsewhere under this generation, as a backup said that was asked to guard it: the lease is
    /// over for good.
    pub fn fence(&mut self, generation: u64) {
        self.fenced = Some(generation);
        self.until = Nanos(0);
    }

    /// The generation that fenced this primary, if one did.
    #[must_use]
    pub fn fenced(&self) -> Option<u64> {
        self.fenced
    }

    /// From the sending of a heartbeat to its answer, the last time.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Heartbeat interval and detection.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventlog::codec::encode;

    const MS: u64 = 1_000_000;
    const WELCOME: Welcome = Welcome {
        generation: 3,
        instance: 9,
    };

    fn lease() -> Lease {
        Lease::new(
            Timing {
                heartbeat: Duration::from_millis(10),
                detect: Duration::from_millis(48),
            },
            WELCOME,
        )
    }

    fn granted(seq: u64) -> BeatAnswer {
        BeatAnswer {
            seq,
            generation: 3,
            instance: 9,
            verdict: Verdict::Granted,
        }
    }

    #[test]
    fn the_lease_counts_from_the_sending() {
        let mut l = lease();
        assert!(!l.is_live(Nanos(0)));
        let b = l.beat(Nanos(100 * MS));
        assert_eq!(
            b,
            Beat {
                seq: 1,
                generation: 3,
                condition: Condition::Serving
            }
        );
        let until = Nanos(145 * MS);
        assert_eq!(
            l.answered(&granted(1), Nanos(130 * MS)),
            Outcome::Extended { until }
        );
        assert!(l.is_live(Nanos(145 * MS - 1)) && !l.is_live(until));
        assert_eq!(l.round_trip(), Some(Duration::from_millis(30)));
        assert_eq!(
            l.answered(&granted(1), Nanos(131 * MS)),
            Outcome::Unchanged,
            "the same answer again"
        );
        l.beat(Nanos(140 * MS));
        assert_eq!(
            l.answered(&granted(2), Nanos(190 * MS)),
            Outcome::Unchanged,
            "an answer that came too late"
        );
        assert_eq!(
            l.answered(&granted(77), Nanos(190 * MS)),
            Outcome::Unchanged,
            "of no heartbeat of ours"
        );
    }

    #[test]
    fn a_promise_withheld_extends_nothing() {
        let mut l = lease();
        l.beat(Nanos(MS));
        let a = BeatAnswer {
            verdict: Verdict::Withheld,
            ..granted(1)
        };
        assert_eq!(l.answered(&a, Nanos(2 * MS)), Outcome::Unchanged);
        assert!(!l.is_live(Nanos(2 * MS)));
        l.beat(Nanos(3 * MS));
        let a = BeatAnswer {
            instance: 8,
            ..granted(2)
        };
        assert_eq!(
            l.answered(&a, Nanos(4 * MS)),
            Outcome::OtherBackup { instance: 8 }
        );
        let a = BeatAnswer {
            generation: 2,
            ..granted(2)
        };
        assert_eq!(l.answered(&a, Nanos(4 * MS)), Outcome::Unchanged);
        assert!(!l.is_live(Nanos(4 * MS)));
    }

    #[test]
    fn a_stale_generation_is_fenced_for_good() {
        for fence in [
            BeatAnswer {
                generation: 4,
                ..granted(1)
            },
            BeatAnswer {
                generation: 4,
                instance: 1,
                ..granted(1)
            },
            BeatAnswer {
                verdict: Verdict::Fenced,
                ..granted(1)
            },
        ] {
            let mut l = lease();
            l.beat(Nanos(MS));
            l.answered(&granted(1), Nanos(2 * MS));
            assert!(l.is_live(Nanos(2 * MS)));
            assert!(matches!(
                l.answered(&fence, Nanos(3 * MS)),
                Outcome::Fenced { .. }
            ));
            assert!(!l.is_live(Nanos(3 * MS)));
            l.beat(Nanos(4 * MS));
            assert!(matches!(
                l.answered(&granted(2), Nanos(5 * MS)),
                Outcome::Fenced { .. }
            ));
            assert!(!l.is_live(Nanos(5 * MS)));
        }
    }

    #[test]
    fn what_was_given_up_comes_back_only_by_a_new_heartbeat() {
        let mut l = lease();
        l.beat(Nanos(MS));
        l.answered(&granted(1), Nanos(2 * MS));
        l.beat(Nanos(3 * MS));
        l.give_up();
        assert!(!l.is_live(Nanos(3 * MS)));
        assert_eq!(l.answered(&granted(2), Nanos(4 * MS)), Outcome::Unchanged);
        assert_eq!(l.beat(Nanos(5 * MS)).condition, Condition::Yielded);
        l.resume();
        assert_eq!(l.answered(&granted(3), Nanos(6 * MS)), Outcome::Unchanged);
        assert_eq!(l.beat(Nanos(7 * MS)).condition, Condition::Serving);
        assert!(matches!(
            l.answered(&granted(4), Nanos(8 * MS)),
            Outcome::Extended { .. }
        ));
    }

    #[test]
    fn open_heartbeats_are_bounded() {
        let mut l = lease();
        for i in 0..5000 {
            l.beat(Nanos(i * MS));
        }
        assert_eq!(l.open.len(), MAX_OPEN);
    }

    #[test]
    fn the_layouts_are_the_documented_ones() {
        let beat = Beat {
            seq: 0x0807_0605_0403_0201,
            generation: 3,
            condition: Condition::Yielded,
        };
        let clocks = Clocks {
            monotonic: 4,
            boottime: 5,
            realtime: 6,
            cycles: 7,
        };
        let bytes = encode(&Heartbeat { beat, clocks }).unwrap();
        assert_eq!(bytes[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[8..20], [3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        let times: Vec<u8> = (4..8_u64).flat_map(u64::to_le_bytes).collect();
        assert_eq!(bytes[20..], times);
        for (number, verdict) in [Verdict::Granted, Verdict::Withheld, Verdict::Fenced]
            .into_iter()
            .enumerate()
        {
            let answer = BeatAnswer {
                verdict,
                ..granted(7)
            };
            let bytes = encode(&answer).unwrap();
            assert_eq!(bytes[..8], 7u64.to_le_bytes());
            assert_eq!(bytes[8..16], 3u64.to_le_bytes());
            assert_eq!(bytes[16..24], 9u64.to_le_bytes());
            assert_eq!(bytes[24..], [number as u8, 0, 0, 0]);
        }
    }
}
