//! A consistent cut through the rings: with a record it has every record that was committed before that one was begun.
//!
//! Rings are read one after another. A record may be committed to a ring just read, and what came of it be in one that
//! is read a moment later: a reader then has bytes that nobody wrote. So a round takes what was there when it began,
//! which lacks nothing that anybody has seen outside, and of the rest only records that were begun until then.

use std::hint;
use std::sync::atomic::Ordering::Acquire;

use eventlog::record::{Records, cycles_of};
use guest::abi::{MAX_SLOTS, slot};
use sys::arena::Arena;
use sys::cycles;

/// A thread may read the time-stamp counter a little before it has seen what it then records (RDTSC is not ordered with
/// what is before it), in cycles.
const AHEAD: u64 = 1000;

/// Whether a ring in this state is drained.
pub(crate) fn is_drained(state: u32) -> bool {
    matches!(state, slot::LIVE | slot::DONE)
}

/// How many rings there were ever: the others are free.
pub(crate) fn rings(arena: &Arena) -> usize {
    (arena.control().slots.load(Acquire) as usize).min(MAX_SLOTS)
}

/// What a round takes of each ring.
#[derive(Debug)]
pub(crate) struct Cut {
    rings: Vec<Ring>,
    /// When the round began, in cycles.
    until: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ring {
    stream: u32,
    /// The time of the last record that was taken, in cycles.
    time: u64,
    /// Its head when the round began.
    head: u64,
}

impl Default for Cut {
    fn default() -> Self {
        let rings = vec![Ring::default(); MAX_SLOTS];
        Self { rings, until: 0 }
    }
}

impl Cut {
    /// A round begins.
    pub(crate) fn begin(&mut self, arena: &Arena) {
        for (index, known) in self.rings.iter_mut().enumerate().take(rings(arena)) {
            let ring = arena.slot(index);
            known.head = 0;
            if is_drained(ring.state.load(Acquire)) {
                known.head = ring.head.load(Acquire);
                let stream = ring.stream.load(Acquire);
                if known.stream != stream {
                    (known.stream, known.time) = (stream, ring.born.load(Acquire));
                }
            }
        }
        self.until = cycles::now();
        while cycles::now() < self.until + AHEAD {
            hint::spin_loop();
        }
    }

    /// How many of the `bytes` that lie in a ring from `position` on this round takes, and how many records those are.
    pub(crate) fn take(
        &mut self,
        index: usize,
        stream: u32,
        position: u64,
        bytes: &[u8],
    ) -> (usize, u64) {
        let ring = &mut self.rings[index];
        if ring.stream != stream {
            // It came to life behind the beginning of the round, and with it all that it holds.
            return (0, 0);
        }
        let sure = ring.head.saturating_sub(position) as usize;
        let (mut records, mut len, mut count) = (Records::new(bytes), 0, 0);
        while let Some(record) = records.next() {
            let Ok(record) = record else {
                // Damaged by the program: whoever reads the log says where.
                return (bytes.len(), count);
            };
            let begun = ring.time + cycles_of(record.header.ticks);
            if len >= sure && begun > self.until {
                break;
            }
            (ring.time, len, count) = (begun, records.consumed(), count + 1);
        }
        (len, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventlog::record::{Header, TICK_SHIFT, ticks_of};
    use guest::abi::mode;
    use std::sync::atomic::Ordering::Release;

    const LEN: u64 = 16;

    /// Records that were begun so many units of time apart.
    fn log(gaps: &[u64]) -> Vec<u8> {
        let record = |gap: &u64| {
            let ticks = ticks_of(gap << TICK_SHIFT);
            let header = Header {
                ticks,
                ..Header::default()
            };
            let (bytes, len) = header.encode();
            bytes[..len].to_vec()
        };
        gaps.iter().flat_map(record).collect()
    }

    fn cut(head: u64, until: u64) -> Cut {
        let mut cut = Cut {
            until: until << TICK_SHIFT,
            ..Cut::default()
        };
        cut.rings[3] = Ring {
            stream: 7,
            time: 100 << TICK_SHIFT,
            head,
        };
        cut
    }

    #[test]
    fn a_round_takes_what_was_there_and_what_had_begun() {
        let bytes = log(&[10, 10, 10, 10]);
        let taken = |head, until| {
            let mut cut = cut(head, until);
            let (len, records) = cut.take(3, 7, 1000, &bytes);
            assert_eq!(len as u64, records * LEN);
            (records, cut.rings[3].time >> TICK_SHIFT)
        };
        assert_eq!(taken(1000, 109), (0, 100));
        assert_eq!(taken(1000, 110), (1, 110));
        assert_eq!(taken(1000, 139), (3, 130));
        assert_eq!(taken(1000, 500), (4, 140));
        let there = 1000 + 2 * LEN;
        assert_eq!(taken(there, 109), (2, 120), "whatever the clocks say");
    }

    #[test]
    fn what_is_left_is_taken_by_a_later_round() {
        let mut cut = cut(0, 125);
        let bytes = log(&[10, 10, 10]);
        assert_eq!(cut.take(3, 7, 0, &bytes).1, 2);
        cut.until = 130 << TICK_SHIFT;
        assert_eq!(cut.take(3, 7, 2 * LEN, &bytes[32..]).1, 1);
    }

    #[test]
    fn a_ring_that_comes_to_life_meanwhile_belongs_to_the_next_round() {
        let arena = Arena::new(mode::RECORD, 0).unwrap();
        let mut cut = Cut::default();
        cut.begin(&arena);
        let now = cycles::now() >> TICK_SHIFT;
        let ring = arena.slot(3);
        arena.control().slots.store(4, Release);
        ring.born.store(now << TICK_SHIFT, Release);
        ring.stream.store(7, Release);
        ring.state.store(slot::LIVE, Release);
        let bytes = log(&[1, 1]);
        assert_eq!(cut.take(3, 7, 0, &bytes), (0, 0));
        cut.begin(&arena);
        assert_eq!(cut.take(3, 7, 0, &bytes).1, 2);
    }

    #[test]
    fn damage_is_left_to_whoever_reads() {
        let bytes = [0xff; 40];
        assert_eq!(cut(0, 500).take(3, 7, 0, &bytes), (40, 0));
    }
}
