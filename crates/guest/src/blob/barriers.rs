//! Barriers of the C library, replaced so that the order of arrivals is recorded; as in [`crate::locks`].
//!
//! Layout of `pthread_barrier_t`, all of it ours: threads that have arrived since its making at 0, that have left at 8,
//! threads of a round 16, rounds that are over 20 (the word to sleep on).

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use eventlog::record::kind;
use guest::abi::ThreadBlock;

use crate::locks::{FOR_EVER, Replacement, emit, inside, sleep, take, version_word, word};
use crate::log::{self, Mode};
use crate::{delivery, order, raw};

/// The functions that are replaced.
pub(crate) static FUNCTIONS: &[Replacement] = &[
    Replacement {
        name: b"pthread_barrier_init",
        function: init as *const (),
    },
    Replacement {
        name: b"pthread_barrier_wait",
        function: wait as *const (),
    },
    Replacement {
        name: b"pthread_barrier_destroy",
        function: destroy as *const (),
    },
];

/// `PTHREAD_BARRIER_SERIAL_THREAD`: what one thread of each round is told.
const SERIAL_THREAD: i64 = -1;
/// The most threads of a round, as in glibc.
const MOST: u32 = i32::MAX as u32;

struct Barrier {
    at: u64,
}

impl Barrier {
    fn arrived(&self) -> &AtomicU64 {
        version_word(self.at, 0)
    }

    fn left(&self) -> &AtomicU64 {
        version_word(self.at, 8)
    }

    fn count(&self) -> &AtomicU32 {
        word(self.at, 16)
    }

    fn rounds(&self) -> &AtomicU32 {
        word(self.at, 20)
    }

    /// Arrives; how many had before.
    fn arrive(&self, t: &ThreadBlock) -> u64 {
        delivery::at_lock(t);
        if log::now() == Mode::Replay
            && let Some(logged) = take(t, kind::LOCK, self.at)
        {
            order::await_value(t, self.arrived(), logged.cast_unsigned());
            return self.arrived().fetch_add(1, AcqRel);
        }
        let before = self.arrived().fetch_add(1, AcqRel);
        emit(t, kind::LOCK, self.at, before.cast_signed());
        before
    }

    fn wait(&self, t: &ThreadBlock) -> i64 {
        let before = self.arrive(t);
        let count = u64::from(self.count().load(Relaxed));
        let round = (before / count) as u32;
        let is_last = before % count == count - 1;
        if is_last {
            self.rounds().store(round.wrapping_add(1), Release);
            raw::futex_wake(self.rounds(), i32::MAX as u32);
        } else {
            self.await_round(t, round);
        }
        self.left().fetch_add(1, Release);
        if is_last { SERIAL_THREAD } else { 0 }
    }

    fn await_round(&self, t: &ThreadBlock, round: u32) {
        let seen = || self.rounds().load(Acquire);
        let is_over = || seen().wrapping_sub(round).cast_signed() > 0;
        while !is_over() {
            delivery::at_lock(t);
            if log::now() == Mode::Replay {
                order::await_that(t, is_over);
            } else {
                let _ = sleep(t, self.rounds(), round, FOR_EVER);
            }
        }
    }
}

extern "C" fn init(at: u64, _attributes: u64, count: u32) -> i64 {
    if count == 0 || count > MOST {
        return raw::EINVAL;
    }
    let barrier = Barrier { at };
    barrier.arrived().store(0, Relaxed);
    barrier.left().store(0, Relaxed);
    barrier.count().store(count, Relaxed);
    barrier.rounds().store(0, Release);
    0
}

extern "C" fn wait(at: u64) -> i64 {
    inside(|t| Barrier { at }.wait(t))
}

/// Threads that were told to go on may still have to leave.
extern "C" fn destroy(at: u64) -> i64 {
    let barrier = Barrier { at };
    let mut spins = 0;
    while barrier.left().load(Acquire) != barrier.arrived().load(Acquire) {
        order::pause(&mut spins);
    }
    0
}
