//! Spin locks of the C library, replaced so that their order is recorded; as in [`crate::locks`].
//!
//! A `pthread_spinlock_t` is one word: taken or not in its lowest bit, and above that how often it was released.

use core::sync::atomic::{
    AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};

use eventlog::record::kind;
use guest::abi::ThreadBlock;

use crate::locks::{Replacement, emit, inside, take, word};
use crate::log::{self, Mode};
use crate::{delivery, order, raw};

/// The functions that are replaced. glibc's `pthread_spin_init` is its `pthread_spin_unlock` (x86-64): what a new lock
/// held before is then where its count begins.
pub(crate) static FUNCTIONS: &[Replacement] = &[
    Replacement {
        name: b"pthread_spin_init",
        function: release as *const (),
    },
    Replacement {
        name: b"pthread_spin_unlock",
        function: release as *const (),
    },
    Replacement {
        name: b"pthread_spin_lock",
        function: lock as *const (),
    },
    Replacement {
        name: b"pthread_spin_trylock",
        function: try_lock as *const (),
    },
];

const TAKEN: u32 = 1;

/// Takes the lock if it is free: its word before, which is its turn.
fn attempt(word: &AtomicU32) -> Option<i64> {
    let free = word.load(Relaxed) & !TAKEN;
    let taken = word.compare_exchange(free, free | TAKEN, Acquire, Relaxed);
    taken.ok().map(i64::from)
}

/// Takes the lock at its logged turn. `None` if replay ended meanwhile.
fn replayed(t: &ThreadBlock, event: u16, at: u64) -> Option<i64> {
    let result = take(t, event, at)?;
    if result < 0 {
        return Some(-result);
    }
    let word = word(at, 0);
    order::await_that(t, || i64::from(word.load(Acquire)) == result).then_some(())?;
    word.fetch_or(TAKEN, Acquire);
    Some(0)
}

extern "C" fn lock(at: u64) -> i64 {
    inside(|t| {
        let mut spins = 0;
        loop {
            delivery::at_lock(t);
            if log::now() == Mode::Replay {
                if let Some(result) = replayed(t, kind::LOCK, at) {
                    return result;
                }
            } else if let Some(turn) = attempt(word(at, 0)) {
                emit(t, kind::LOCK, at, turn);
                return 0;
            } else {
                order::pause(&mut spins);
            }
        }
    })
}

extern "C" fn try_lock(at: u64) -> i64 {
    inside(|t| {
        delivery::at_lock(t);
        if log::now() == Mode::Replay
            && let Some(result) = replayed(t, kind::TRYLOCK, at)
        {
            return result;
        }
        let turn = attempt(word(at, 0));
        emit(t, kind::TRYLOCK, at, turn.unwrap_or(-raw::EBUSY));
        if turn.is_some() { 0 } else { raw::EBUSY }
    })
}

extern "C" fn release(at: u64) -> i64 {
    inside(|_| {
        let word = word(at, 0);
        // Only its holder changes a lock that is taken, and nobody else a new one.
        word.store((word.load(Relaxed) | TAKEN).wrapping_add(1), Release);
    });
    0
}
