//! Is the primary silent? A pure state machine over the moments at which its heartbeats came.

use core::time::Duration;

use stream::Nanos;

/// A look that comes later than this part of the time-out says that whoever looks stood still: heartbeats may
/// wait to be read, and what held this host up may have held the primary up too.
const LATE: u32 = 4;
/// How often in one silence a late look postpones the suspicion: a host that never runs in time must notice
/// the loss all the same.
const MOST_POSTPONED: u32 = 4;

/// Watches one primary's heartbeats. Every moment is of the backup's boot-time clock.
///
/// Whoever asks [`Detector::check`] asks again at the deadline it was told, or as soon after as it can.
#[derive(Clone, Debug)]
pub struct Detector {
    timeout: Duration,
    last: Option<Nanos>,
    /// Instead of a time-out after the last heartbeat.
    postponed: Option<Nanos>,
    times_postponed: u32,
    suspected: Option<Suspicion>,
    false_alarms: u64,
    longest_silence: Duration,
}

/// Why and since when the primary is taken for dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// When it was noticed.
    pub at: Nanos,
    /// The last heartbeat before it.
    pub last: Nanos,
    /// What was noticed.
    pub cause: Cause,
}

/// What a suspicion rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No heartbeat in time.
    Silence,
    /// The heartbeats' connection ended.
    Lost,
    /// The primary itself gave up.
    Yielded,
}

/// What the backup knows at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No heartbeat came yet: nothing to miss.
    Waiting,
    /// The primary is alive; unless it is heard, it is suspected at that moment.
    Alive {
        /// The moment.
        deadline: Nanos,
    },
    /// It is suspected.
    Suspected(Suspicion),
}

impl Detector {
    /// A detector that suspects after this silence.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            last: None,
            postponed: None,
            times_postponed: 0,
            suspected: None,
            false_alarms: 0,
            longest_silence: Duration::ZERO,
        }
    }

    /// A heartbeat came. Answers true if it proves a suspicion wrong; only silence can be proved wrong.
    pub fn heard(&mut self, now: Nanos) -> bool {
        if let Some(last) = self.last {
            self.longest_silence = self.longest_silence.max(now.since(last));
        }
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        self.begin_anew();
        let wrong = self.suspected.is_some_and(|s| s.cause != Cause::Yielded);
        if wrong {
            self.suspected = None;
            self.false_alarms += 1;
        }
        wrong
    }

    /// The connection that brought the heartbeats has ended.
    pub fn lost(&mut self, now: Nanos) -> Status {
        self.suspect(now, Cause::Lost)
    }

    /// The primary said that it will not speak.
    pub fn yielded(&mut self, now: Nanos) -> Status {
        self.suspect(now, Cause::Yielded)
    }

    /// What is known at `now`; notices the silence. A look that comes much too late is no evidence: it
    /// postpones the suspicion by a time-out.
    pub fn check(&mut self, now: Nanos) -> Status {
        if let Some(suspicion) = self.suspected {
            return Status::Suspected(suspicion);
        }
        let Some(last) = self.last else {
            return Status::Waiting;
        };
        let mut deadline = self.postponed.unwrap_or(last + self.timeout);
        if now.since(deadline) > self.timeout / LATE && self.times_postponed < MOST_POSTPONED {
            self.times_postponed += 1;
            deadline = now + self.timeout;
            self.postponed = Some(deadline);
        }
        if now >= deadline {
            self.suspect(now, Cause::Silence)
        } else {
            Status::Alive { deadline }
        }
    }

    /// A takeover was called off: waits anew, a whole time-out from `now`, before it suspects again. A connection that has
    /// ended since the last heartbeat stays as suspicious as it was: nobody looks at it any more.
    pub fn rearm(&mut self, now: Nanos) {
        self.suspected = self.suspected.filter(|s| s.cause == Cause::Lost);
        self.last = self.last.map(|last| last.max(now));
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        self.postponed = None;
        self.times_postponed = 0;
    }

    /// What is suspected now.
    #[must_use]
    pub fn suspicion(&self) -> Option<Suspicion> {
        self.suspected
    }

    /// Suspicions that a later heartbeat proved wrong.
    #[must_use]
    pub fn false_alarms(&self) -> u64 {
        self.false_alarms
    }

    /// The longest time between two heartbeats.
    #[must_use]
    pub fn longest_silence(&self) -> Duration {
        self.longest_silence
    }

    fn suspect(&mut self, now: Nanos, cause: Cause) -> Status {
        let Some(last) = self.last else {
            return Status::Waiting;
        };
        Status::Suspected(*self.suspected.get_or_insert(Suspicion {
            at: now,
            last,
            cause,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn detector() -> Detector {
        Detector::new(Duration::from_millis(50))
    }

    #[test]
    fn silence_is_suspected_at_the_deadline_and_not_before() {
        let mut d = detector();
        assert_eq!(d.check(Nanos(999 * MS)), Status::Waiting);
        d.heard(Nanos(10 * MS));
        assert_eq!(
            d.check(Nanos(60 * MS - 1)),
            Status::Alive {
                deadline: Nanos(60 * MS)
            }
        );
        let s = Suspicion {
            at: Nanos(60 * MS),
            last: Nanos(10 * MS),
            cause: Cause::Silence,
        };
        assert_eq!(d.check(Nanos(60 * MS)), Status::Suspected(s));
        assert_eq!(
            d.check(Nanos(90 * MS)),
            Status::Suspected(s),
            "the first notice stands"
        );
        assert_eq!(d.false_alarms(), 0);
    }

    #[test]
    fn a_late_heartbeat_is_a_false_alarm() {
        let mut d = detector();
        d.heard(Nanos(0));
        d.check(Nanos(51 * MS));
        assert!(d.heard(Nanos(80 * MS)));
        assert_eq!(
            (d.false_alarms(), d.longest_silence()),
            (1, Duration::from_millis(80))
        );
        assert_eq!(
            d.check(Nanos(81 * MS)),
            Status::Alive {
                deadline: Nanos(130 * MS)
            }
        );
    }

    #[test]
    fn who_stood_still_itself_waits_another_time_out() {
        let mut d = detector();
        d.heard(Nanos(0));
        let alive = |ms| Status::Alive {
            deadline: Nanos(ms * MS),
        };
        assert_eq!(d.check(Nanos(134 * MS)), alive(184));
        assert_eq!(d.check(Nanos(150 * MS)), alive(184));
        assert!(!d.heard(Nanos(151 * MS)), "nothing was suspected");
        assert_eq!(d.check(Nanos(152 * MS)), alive(201));
        assert!(matches!(d.check(Nanos(202 * MS)), Status::Suspected(_)));
    }

    #[test]
    fn a_host_that_is_always_late_notices_a_loss() {
        let mut d = detector();
        d.heard(Nanos(0));
        let mut now = Nanos(0);
        let looks = (1..).find(|_| {
            let status = d.check(now);
            if let Status::Alive { deadline } = status {
                now = deadline + Duration::from_millis(30);
            }
            matches!(status, Status::Suspected(_))
        });
        assert_eq!(looks, Some(2 + MOST_POSTPONED));
    }

    #[test]
    fn what_the_primary_said_itself_is_no_false_alarm() {
        let mut d = detector();
        d.heard(Nanos(0));
        assert!(matches!(d.yielded(Nanos(1)), Status::Suspected(s) if s.cause == Cause::Yielded));
        assert!(!d.heard(Nanos(2)));
        assert!(matches!(d.check(Nanos(3)), Status::Suspected(_)));
        d.rearm(Nanos(4));
        assert_eq!(
            d.check(Nanos(5)),
            Status::Alive {
                deadline: Nanos(4) + Duration::from_millis(50)
            }
        );
    }

    #[test]
    fn a_lost_connection_is_noticed_at_once() {
        let mut d = detector();
        assert_eq!(d.lost(Nanos(1)), Status::Waiting, "it never spoke");
        d.heard(Nanos(1));
        assert!(matches!(d.lost(Nanos(2)), Status::Suspected(s) if s.cause == Cause::Lost));
        d.rearm(Nanos(3));
        assert!(d.suspicion().is_some(), "nobody else will notice");
        assert!(d.heard(Nanos(4)), "over another connection");
        assert_eq!(d.suspicion(), None);
    }

    proptest! {
        /// Whatever the arrivals: suspected exactly when the silence reaches the time-out, counted once.
        #[test]
        fn every_silence_is_found(gaps in proptest::collection::vec(1u64..120, 1..60)) {
            let mut d = detector();
            let (mut now, mut alarms) = (Nanos(0), 0);
            d.heard(now);
            for gap in gaps {
                for step in 1..=gap {
                    let at = now + Duration::from_millis(step);
                    let suspected = matches!(d.check(at), Status::Suspected(_));
                    prop_assert_eq!(suspected, step >= 50);
                }
                now = now + Duration::from_millis(gap);
                alarms += u64::from(gap >= 50);
                prop_assert_eq!(d.heard(now), gap >= 50);
            }
            prop_assert_eq!(d.false_alarms(), alarms);
        }
    }
}
