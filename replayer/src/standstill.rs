//! Whether all have come to where they stay.
//!
//! A thread whose turn has come goes on when the scheduler lets it look, which on a busy machine is many milliseconds
//! later. So standstill is not a matter of time: the host asks, and each thread that waits says that it has looked since
//! ([`guest::abi::Control::looks`]). One may have looked before another gave it its turn, so they are asked twice, and
//! between the two nobody may have moved.

use std::sync::atomic::Ordering::{Acquire, SeqCst};

use guest::abi::{MAX_SLOTS, slot};
use sys::arena::Arena;

/// Looks at all, and asks those that wait. One for each replay.
#[derive(Debug, Default)]
pub(crate) struct Standstill {
    /// Where all stood at the last look.
    stood: Vec<Place>,
    /// How often those that wait were asked since.
    asked: u32,
}

/// Where a thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    stream: u32,
    state: u32,
    tail: u64,
    awaits: u64,
}

/// How often all are asked who stand in the same places.
const TIMES: u32 = 2;

impl Standstill {
    /// Whether nobody moves between two looks, and those that wait have looked twice meanwhile; to be called until it is
    /// so, or something has moved. `stands` tells of a thread, by its number in the container, whether it cannot look: it
    /// is stopped, or was killed.
    pub(crate) fn is_for_good(&mut self, arena: &Arena, stands: &impl Fn(u32) -> bool) -> bool {
        let looks = &arena.control().looks;
        let places = places(arena);
        if places != self.stood {
            (self.stood, self.asked) = (places, 0);
            return false;
        }
        if self.stood.iter().all(|place| place.state != slot::WAITING) {
            return true;
        }
        if self.asked > 0 && !have_looked(arena, looks.load(Acquire), stands) {
            return false;
        }
        if self.asked == TIMES {
            return true;
        }
        self.asked += 1;
        looks.fetch_add(1, SeqCst);
        false
    }
}

/// Where the threads stand.
fn places(arena: &Arena) -> Vec<Place> {
    let rings = (0..MAX_SLOTS).map(|index| arena.slot(index));
    let taken = rings.filter(|ring| ring.state.load(Acquire) != slot::FREE);
    let place = |ring: &guest::abi::Slot| Place {
        stream: ring.stream.load(Acquire),
        state: ring.state.load(Acquire),
        tail: ring.tail.load(Acquire),
        awaits: ring.awaits.load(Acquire),
    };
    taken.map(place).collect()
}

/// Whether all that wait have looked since they were asked for the `looks`th time, or cannot.
fn have_looked(arena: &Arena, looks: u32, stands: &impl Fn(u32) -> bool) -> bool {
    let rings = (0..MAX_SLOTS).map(|index| arena.slot(index));
    let mut waiting = rings.filter(|ring| ring.state.load(Acquire) == slot::WAITING);
    waiting.all(|ring| ring.looked.load(Acquire) == looks || stands(ring.tid.load(Acquire)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest::abi::mode;
    use std::sync::atomic::Ordering::Release;

    /// Threads in these states.
    fn arena(states: &[u32]) -> Arena {
        let arena = Arena::new(mode::REPLAY, 0).unwrap();
        for (index, state) in states.iter().enumerate() {
            let ring = arena.slot(index);
            ring.stream.store(index as u32 + 1, Release);
            ring.tid.store(index as u32 + 10, Release);
            ring.state.store(*state, Release);
        }
        arena
    }

    fn look(arena: &Arena, index: usize) {
        let asked = arena.control().looks.load(Acquire);
        arena.slot(index).looked.store(asked, Release);
    }

    const NONE_STANDS: fn(u32) -> bool = |_| false;

    #[test]
    fn those_at_their_logs_ends_are_looked_at_twice() {
        let arena = arena(&[slot::FREE, slot::PARKED]);
        let mut standstill = Standstill::default();
        assert!(!standstill.is_for_good(&arena, &NONE_STANDS));
        // Made by the other one, just before that came to its log's end.
        arena.slot(0).state.store(slot::LIVE, Release);
        assert!(!standstill.is_for_good(&arena, &NONE_STANDS));
        assert!(standstill.is_for_good(&arena, &NONE_STANDS));
    }

    #[test]
    fn all_that_wait_look_twice() {
        let arena = arena(&[slot::WAITING, slot::PARKED, slot::WAITING]);
        let mut standstill = Standstill::default();
        assert!(!standstill.is_for_good(&arena, &NONE_STANDS));
        for _ in 0..2 {
            assert!(!standstill.is_for_good(&arena, &NONE_STANDS));
            look(&arena, 0);
            assert!(
                !standstill.is_for_good(&arena, &NONE_STANDS),
                "one has not looked"
            );
            look(&arena, 2);
        }
        assert!(standstill.is_for_good(&arena, &NONE_STANDS));
    }

    #[test]
    fn they_are_asked_anew_when_one_has_moved() {
        let arena = arena(&[slot::WAITING, slot::WAITING]);
        let mut standstill = Standstill::default();
        assert!(!standstill.is_for_good(&arena, &NONE_STANDS));
        assert!(!standstill.is_for_good(&arena, &NONE_STANDS));
        look(&arena, 0);
        // It gave the first its turn, and came to its log's end.
        arena.slot(1).state.store(slot::PARKED, Release);
        assert!(!standstill.is_for_good(&arena, &NONE_STANDS));
        for _ in 0..2 {
            assert!(!standstill.is_for_good(&arena, &NONE_STANDS));
            look(&arena, 0);
        }
        assert!(standstill.is_for_good(&arena, &NONE_STANDS));
    }

    #[test]
    fn one_that_was_killed_is_not_waited_for() {
        let arena = arena(&[slot::WAITING]);
        let mut standstill = Standstill::default();
        let stands = |number| number == 10;
        for _ in 0..3 {
            assert!(!standstill.is_for_good(&arena, &stands));
        }
        assert!(standstill.is_for_good(&arena, &stands));
    }
}
