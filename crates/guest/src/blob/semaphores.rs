//! Semaphores of the C library, replaced so that their order is recorded; as in [`crate::locks`].
//!
//! Layout of `sem_t` (glibc x86-64): value at 0, guard 4 (glibc's count of waiters), sharing 8, version 16.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use eventlog::record::kind;
use guest::abi::ThreadBlock;

use crate::locks::{
    CLOCK_REALTIME, FOR_EVER, Replacement, Until, emit, inside, sleep, take, version_word, word,
};
use crate::log::{self, Mode};
use crate::{delivery, order, raw};

/// The functions that are replaced.
pub(crate) static FUNCTIONS: &[Replacement] = &[
    Replacement {
        name: b"sem_init",
        function: sem_init as *const (),
    },
    Replacement {
        name: b"sem_wait",
        function: sem_wait as *const (),
    },
    Replacement {
        name: b"sem_trywait",
        function: sem_trywait as *const (),
    },
    Replacement {
        name: b"sem_timedwait",
        function: sem_timedwait as *const (),
    },
    Replacement {
        name: b"sem_clockwait",
        function: sem_clockwait as *const (),
    },
    Replacement {
        name: b"sem_post",
        function: sem_post as *const (),
    },
];

struct Semaphore {
    at: u64,
}

impl Semaphore {
    fn value(&self) -> &AtomicU32 {
        word(self.at, 0)
    }

    fn guard(&self) -> &AtomicU32 {
        word(self.at, 4)
    }

    fn version(&self) -> &AtomicU64 {
        version_word(self.at, 16)
    }

    /// Changes value and version together; the version before the change, or `None` if `step` did not want to.
    fn change(&self, step: impl FnOnce(u32) -> Option<u32>) -> Option<u64> {
        let mut spins = 0;
        while self
            .guard()
            .compare_exchange(0, 1, Acquire, Relaxed)
            .is_err()
        {
            order::pause(&mut spins);
        }
        let changed = step(self.value().load(Relaxed)).map(|value| {
            self.value().store(value, Relaxed);
            self.version().fetch_add(1, Release)
        });
        self.guard().store(0, Release);
        changed
    }

    fn down(&self) -> Option<u64> {
        self.change(|value| value.checked_sub(1))
    }

    /// Waits for the logged turn. `Some(result)` when the log answers.
    fn replayed(&self, t: &ThreadBlock, kind: u16, step: i64) -> Option<i64> {
        let result = take(t, kind, self.at)?;
        if result < 0 {
            return Some(result);
        }
        order::await_value(t, self.version(), result.cast_unsigned()).then_some(())?;
        self.change(|value| Some(value.wrapping_add_signed(step as i32)));
        Some(0)
    }

    fn wait(&self, t: &ThreadBlock, until: Until) -> i64 {
        let mut slept = false;
        loop {
            if delivery::at_lock(t) && slept && log::now() != Mode::Replay {
                emit(t, kind::LOCK, self.at, -raw::EINTR);
                return -raw::EINTR;
            }
            if log::now() == Mode::Replay {
                if let Some(result) = self.replayed(t, kind::LOCK, -1) {
                    return result;
                }
                continue;
            }
            if let Some(version) = self.down() {
                emit(t, kind::LOCK, self.at, version.cast_signed());
                return 0;
            }
            slept = true;
            let over = sleep(t, self.value(), 0, until);
            if over != 0 {
                emit(t, kind::LOCK, self.at, -over);
                return -over;
            }
        }
    }

    fn try_wait(&self, t: &ThreadBlock) -> i64 {
        delivery::at_lock(t);
        if log::now() == Mode::Replay
            && let Some(result) = self.replayed(t, kind::TRYLOCK, -1)
        {
            return result;
        }
        let result = self.down().map_or(-raw::EAGAIN, u64::cast_signed);
        emit(t, kind::TRYLOCK, self.at, result);
        result.min(0)
    }

    fn post(&self, t: &ThreadBlock) -> i64 {
        delivery::at_lock(t);
        if log::now() == Mode::Replay
            && let Some(result) = self.replayed(t, kind::LOCK, 1)
        {
            return result;
        }
        if let Some(version) = self.change(|value| Some(value.wrapping_add(1))) {
            emit(t, kind::LOCK, self.at, version.cast_signed());
        }
        raw::futex_wake(self.value(), 1);
        0
    }
}

/// A semaphore function reports errors through errno, which lies where the C library says.
fn with_errno(result: i64) -> i64 {
    if result >= 0 {
        return 0;
    }
    crate::symbols::set_errno((-result) as i32);
    -1
}

/// The version starts at 0 in every run, whatever the memory held before.
extern "C" fn sem_init(at: u64, shared: u32, value: u32) -> i64 {
    if value > i32::MAX as u32 {
        return with_errno(-raw::EINVAL);
    }
    let semaphore = Semaphore { at };
    semaphore.version().store(0, Relaxed);
    semaphore.guard().store(0, Relaxed);
    word(at, 8).store(if shared == 0 { 0 } else { 128 }, Relaxed);
    semaphore.value().store(value, Release);
    0
}

extern "C" fn sem_wait(at: u64) -> i64 {
    with_errno(inside(|t| Semaphore { at }.wait(t, FOR_EVER)))
}

extern "C" fn sem_trywait(at: u64) -> i64 {
    with_errno(inside(|t| Semaphore { at }.try_wait(t)))
}

extern "C" fn sem_timedwait(at: u64, until: u64) -> i64 {
    with_errno(inside(|t| {
        Semaphore { at }.wait(
            t,
            Until {
                clock: CLOCK_REALTIME,
                at: until,
            },
        )
    }))
}

extern "C" fn sem_clockwait(at: u64, clock: u64, until: u64) -> i64 {
    with_errno(inside(|t| {
        Semaphore { at }.wait(t, Until { clock, at: until })
    }))
}

extern "C" fn sem_post(at: u64) -> i64 {
    with_errno(inside(|t| Semaphore { at }.post(t)))
}
