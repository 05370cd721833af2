//! From the backup's acknowledgements to what may be released: drains, counted.
//!
//! The primary empties its rings in *drains*, numbered from 1. Output that was seen *before* a drain began
//! has its record, and everything that caused it, in that drain or an earlier one; so it may leave once
//! that drain's number is acknowledged. The owner of output notes what it has seen when a drain begins,
//! and gets the note back when it counts.

use std::collections::VecDeque;

use crate::clock::Nanos;

/// Most drains that may be under way; beyond it the primary waits for the backup.
pub const MAX_IN_FLIGHT: usize = 4096;

/// The drains under way, each with the note of its start.
#[derive(Debug)]
pub struct AckTracker<T> {
    next: u64,
    acked: u64,
    in_flight: VecDeque<Drain<T>>,
}

/// A drain under way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Drain<T> {
    number: u64,
    began: Nanos,
    bytes: u64,
    note: T,
}

/// A drain that the backup has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released<T> {
    /// Its number.
    pub drain: u64,
    /// When it began.
    pub began: Nanos,
    /// What was noted when it began: this may leave.
    pub note: T,
}

/// An acknowledgement that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// Of a drain that did not begin yet.
    #[error("drain {found} was acknowledged, but the last one sent is {last}")]
    Ahead {
        /// The number.
        found: u64,
        /// The last drain that began.
        last: u64,
    },
    /// [`MAX_IN_FLIGHT`] drains are under way.
    #[error("{MAX_IN_FLIGHT} drains wait for the backup's acknowledgement")]
    Full,
}

impl<T> Default for AckTracker<T> {
    fn default() -> Self {
        Self {
            next: 1,
            acked: 0,
            in_flight: VecDeque::new(),
        }
    }
}

impl<T> AckTracker<T> {
    /// A drain begins; `note` is what was seen before it. Answers its number. The rings are to be read
    /// after this call, not before.
    ///
    /// # Errors
    /// [`AckError::Full`]: wait for acknowledgements first.
    pub fn begin(&mut self, now: Nanos, note: T) -> Result<u64, AckError> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return Err(AckError::Full);
        }
        let number = self.next;
        self.next += 1;
        self.in_flight.push_back(Drain {
            number,
            began: now,
            bytes: 0,
            note,
        });
        Ok(number)
    }

    /// So many bytes of log went out with the drain that began last.
    pub fn sent(&mut self, bytes: u64) {
        if let Some(last) = self.in_flight.back_mut() {
            last.bytes += bytes;
        }
    }

    /// The backup holds every drain up to and with `drain`. Answers the drains that this releases, oldest
    /// first; an acknowledgement that was known already releases none.
    ///
    /// # Errors
    /// [`AckError::Ahead`] if that drain never began; nothing is released then.
    pub fn acknowledged(
        &mut self,
        drain: u64,
    ) -> Result<impl Iterator<Item = Released<T>>, AckError> {
        if drain >= self.next {
            return Err(AckError::Ahead {
                found: drain,
                last: self.next - 1,
            });
        }
        self.acked = self.acked.max(drain);
        let count = self.in_flight.partition_point(|d| d.number <= drain);
        Ok(self.in_flight.drain(..count).map(|d| Released {
            drain: d.number,
            began: d.began,
            note: d.note,
        }))
    }

    /// The notes of drains under way, oldest first, for whoever begins anew with another backup.
    pub fn into_notes(self) -> impl Iterator<Item = T> {
        self.in_flight.into_iter().map(|drain| drain.note)
    }

    /// The highest acknowledged drain; 0 before the first.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The drain that will release what is seen now, for owners who keep their own notes.
    #[must_use]
    pub fn covering(&self) -> u64 {
        self.next
    }

    /// Drains under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Bytes of log sent and not acknowledged.
    #[must_use]
    pub fn lag_bytes(&self) -> u64 {
        self.in_flight.iter().map(|d| d.bytes).sum()
    }

    /// When the oldest drain under way began.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Nanos> {
        self.in_flight.front().map(|d| d.began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn output_seen_during_a_drain_waits_for_the_next() {
        let mut t = AckTracker::default();
        let first = t.begin(Nanos(1), "seen before 1").unwrap();
        assert_eq!(t.covering(), 2);
        let second = t.begin(Nanos(2), "seen before 2").unwrap();
        let got: Vec<_> = t.acknowledged(first).unwrap().map(|r| r.note).collect();
        assert_eq!(got, ["seen before 1"]);
        assert_eq!(t.acknowledged(first).unwrap().count(), 0);
        assert_eq!(
            t.acknowledged(second)
                .unwrap()
                .map(|r| r.note)
                .collect::<Vec<_>>(),
            ["seen before 2"]
        );
        assert_eq!(
            t.acknowledged(3).err(),
            Some(AckError::Ahead { found: 3, last: 2 })
        );
        assert_eq!(t.acked(), 2);
    }

    #[test]
    fn drains_under_way_are_bounded() {
        let mut t = AckTracker::default();
        for _ in 0..MAX_IN_FLIGHT {
            t.begin(Nanos(0), ()).unwrap();
            t.sent(10);
        }
        assert_eq!(t.begin(Nanos(0), ()), Err(AckError::Full));
        assert_eq!(t.lag_bytes(), 10 * MAX_IN_FLIGHT as u64);
        drop(t.acknowledged(1).unwrap());
        assert!(t.begin(Nanos(0), ()).is_ok());
    }

    proptest! {
        /// Acknowledgements in any order, repeated, or of drains that never were: every note comes out
        /// once, in order, and never before an acknowledgement that covers it.
        #[test]
        fn notes_come_out_once_and_not_early(acks in proptest::collection::vec(0u64..60, 0..80)) {
            let mut t = AckTracker::default();
            let mut out = Vec::new();
            let mut highest = 0;
            for (i, ack) in acks.iter().enumerate() {
                let n = t.begin(Nanos(i as u64), i as u64 + 1).unwrap();
                prop_assert_eq!(n, i as u64 + 1);
                let known = *ack <= n;
                match t.acknowledged(*ack) {
                    Ok(released) => {
                        prop_assert!(known);
                        highest = highest.max(*ack);
                        for r in released {
                            prop_assert!(r.note == r.drain && r.drain <= highest);
                            out.push(r.note);
                        }
                    }
                    Err(_) => prop_assert!(!known),
                }
                prop_assert_eq!(t.acked(), highest);
                prop_assert_eq!(&out, &(1..=highest).collect::<Vec<_>>());
            }
        }
    }
}
