//! Read-write locks of the C library, replaced so that their order is recorded; as in [`crate::locks`].
//!
//! A reader needs no order among readers: it logs how many writers have released the lock before it. A writer logs
//! that and how many readers have, so that in replay it waits for exactly those.
//!
//! Layout of `pthread_rwlock_t` (glibc x86-64), whose initial value is zero but for the flags: state at 0 (readers, or
//! [`WRITER`]), word to sleep on 4, sleepers 8, writers among them 12, releases by writers 16, by readers 20, owner 24,
//! sharing 28, flags 48.

use core::sync::atomic::{
    AtomicU32,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use eventlog::record::kind;
use guest::abi::ThreadBlock;

use crate::locks::{CLOCK_REALTIME, FOR_EVER, Replacement, Until, emit, inside, sleep, take, word};
use crate::log::{self, Mode};
use crate::{delivery, order, raw};

/// The functions that are replaced.
pub(crate) static FUNCTIONS: &[Replacement] = &[
    Replacement {
        name: b"pthread_rwlock_rdlock",
        function: read_lock as *const (),
    },
    Replacement {
        name: b"pthread_rwlock_tryrdlock",
        function: try_read as *const (),
    },
    Replacement {
        name: b"pthread_rwlock_timedrdlock",
        function: timed_read as *const (),
    },
    Replacement {
        name: b"pthread_rwlock_clockrdlock",
        function: clock_read as *const (),
    },
    Replacement {
        name: b"pthread_rwlock_wrlock",
        function: write_lock as *const (),
    },
    Replacement {
        name: b"pthread_rwlock_trywrlock",
        function: try_write as *const (),
    },
    Replacement {
        name: b"pthread_rwlock_timedwrlock",
        function: timed_write as *const (),
    },
    Replacement {
        name: b"pthread_rwlock_clockwrlock",
        function: clock_write as *const (),
    },
    Replacement {
        name: b"pthread_rwlock_unlock",
        function: unlock as *const (),
    },
];

/// State of a lock that a writer holds.
const WRITER: u32 = 1 << 31;
/// In the flags: readers wait behind writers that wait (`PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP`).
const PREFERS_WRITERS: u32 = 2;
/// Counts are logged modulo this: results that are negative are errors.
const COUNT: u32 = (1 << 31) - 1;

/// How a thread wants the lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

struct RwLock {
    at: u64,
}

impl RwLock {
    fn state(&self) -> &AtomicU32 {
        word(self.at, 0)
    }

    fn sequence(&self) -> &AtomicU32 {
        word(self.at, 4)
    }

    fn sleepers(&self) -> &AtomicU32 {
        word(self.at, 8)
    }

    fn waiting_writers(&self) -> &AtomicU32 {
        word(self.at, 12)
    }

    fn writes(&self) -> &AtomicU32 {
        word(self.at, 16)
    }

    fn reads(&self) -> &AtomicU32 {
        word(self.at, 20)
    }

    fn owner(&self) -> &AtomicU32 {
        word(self.at, 24)
    }

    fn readers_wait(&self) -> bool {
        word(self.at, 48).load(Relaxed) == PREFERS_WRITERS
            && self.waiting_writers().load(SeqCst) != 0
    }

    /// Takes the lock if it is free for that; in replay the log has decided whether readers wait.
    fn take(&self, way: Way, t: &ThreadBlock) -> bool {
        let state = self.state();
        match way {
            Way::Write => {
                let taken = state.compare_exchange(0, WRITER, SeqCst, Relaxed).is_ok();
                if taken {
                    self.owner().store(t.tid.load(Relaxed), Relaxed);
                }
                taken
            }
            Way::Read => state
                .try_update(SeqCst, Relaxed, |held| {
                    (held & WRITER == 0).then_some(held + 1)
                })
                .is_ok(),
        }
    }

    fn attempt(&self, way: Way, t: &ThreadBlock) -> bool {
        (way == Way::Write || !self.readers_wait()) && self.take(way, t)
    }

    /// What its turn is logged as, by a thread that holds the lock.
    fn turn(&self, way: Way) -> i64 {
        let writes = i64::from(self.writes().load(Acquire) & COUNT);
        match way {
            Way::Read => writes,
            Way::Write => writes << 32 | i64::from(self.reads().load(Acquire)),
        }
    }

    /// Takes the lock at its logged turn. `None` if replay ended meanwhile.
    fn replayed(&self, t: &ThreadBlock, event: u16, way: Way) -> Option<i64> {
        let result = take(t, event, self.at)?;
        if result < 0 {
            return Some(-result);
        }
        order::await_that(t, || self.turn(way) == result).then_some(())?;
        let mut spins = 0;
        while !self.take(way, t) {
            order::pause(&mut spins);
        }
        Some(0)
    }

    fn lock(&self, t: &ThreadBlock, way: Way, until: Until) -> i64 {
        if self.owner().load(Relaxed) == t.tid.load(Relaxed) {
            return raw::EDEADLK;
        }
        loop {
            delivery::at_lock(t);
            if log::now() == Mode::Replay {
                if let Some(result) = self.replayed(t, kind::LOCK, way) {
                    return result;
                }
                continue;
            }
            if self.attempt(way, t) {
                emit(t, kind::LOCK, self.at, self.turn(way));
                return 0;
            }
            let over = self.sleep(t, way, until);
            if over != 0 {
                emit(t, kind::LOCK, self.at, -over);
                return over;
            }
        }
    }

    /// Sleeps until somebody releases the lock; as [`sleep`].
    fn sleep(&self, t: &ThreadBlock, way: Way, until: Until) -> i64 {
        let writer = u32::from(way == Way::Write);
        self.waiting_writers().fetch_add(writer, SeqCst);
        self.sleepers().fetch_add(1, SeqCst);
        let before = self.sequence().load(SeqCst);
        // Free meanwhile: the caller takes it.
        let free = match self.state().load(SeqCst) {
            0 => true,
            WRITER => false,
            _ => way == Way::Read && !self.readers_wait(),
        };
        let over = if free {
            0
        } else {
            sleep(t, self.sequence(), before, until)
        };
        self.sleepers().fetch_sub(1, SeqCst);
        self.waiting_writers().fetch_sub(writer, SeqCst);
        if over != 0 && writer != 0 {
            // Readers may have waited behind this one.
            self.wake();
        }
        over
    }

    fn try_lock(&self, t: &ThreadBlock, way: Way) -> i64 {
        delivery::at_lock(t);
        if log::now() == Mode::Replay
            && let Some(result) = self.replayed(t, kind::TRYLOCK, way)
        {
            return result;
        }
        let taken = self.attempt(way, t);
        let result = if taken { self.turn(way) } else { -raw::EBUSY };
        emit(t, kind::TRYLOCK, self.at, result);
        if taken { 0 } else { raw::EBUSY }
    }

    fn unlock(&self) {
        if self.state().load(Relaxed) == WRITER {
            self.owner().store(0, Relaxed);
            self.writes().fetch_add(1, Release);
            self.state().store(0, SeqCst);
        } else {
            // First: whoever writes next counts it.
            self.reads().fetch_add(1, Release);
            self.state().fetch_sub(1, SeqCst);
        }
        self.wake();
    }

    fn wake(&self) {
        if self.sleepers().load(SeqCst) != 0 {
            self.sequence().fetch_add(1, SeqCst);
            raw::futex_wake(self.sequence(), i32::MAX as u32);
        }
    }
}

fn lock(at: u64, way: Way, until: Until) -> i64 {
    inside(|t| RwLock { at }.lock(t, way, until))
}

extern "C" fn read_lock(at: u64) -> i64 {
    lock(at, Way::Read, FOR_EVER)
}

extern "C" fn write_lock(at: u64) -> i64 {
    lock(at, Way::Write, FOR_EVER)
}

extern "C" fn timed_read(at: u64, until: u64) -> i64 {
    clock_read(at, CLOCK_REALTIME, until)
}

extern "C" fn timed_write(at: u64, until: u64) -> i64 {
    clock_write(at, CLOCK_REALTIME, until)
}

extern "C" fn clock_read(at: u64, clock: u64, until: u64) -> i64 {
    lock(at, Way::Read, Until { clock, at: until })
}

extern "C" fn clock_write(at: u64, clock: u64, until: u64) -> i64 {
    lock(at, Way::Write, Until { clock, at: until })
}

extern "C" fn try_read(at: u64) -> i64 {
    inside(|t| RwLock { at }.try_lock(t, Way::Read))
}

extern "C" fn try_write(at: u64) -> i64 {
    inside(|t| RwLock { at }.try_lock(t, Way::Write))
}

extern "C" fn unlock(at: u64) -> i64 {
    inside(|_| RwLock { at }.unlock());
    0
}
