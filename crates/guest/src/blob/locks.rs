//! Mutexes and condition variables of the C library, replaced so that their order is recorded.
//!
//! Each lock carries a version in bytes of its own that glibc leaves unused: an acquisition logs it, a release
//! counts it up, and replay lets a thread have the lock when the version is the logged one. Nothing here
//! sleeps in replay: a wait on a condition variable is its release and its re-acquisition.
//!
//! Layout of `pthread_mutex_t` (glibc x86-64): lock word at 0, count 4, owner 8, kind 16, version 24 (a list link of
//! robust mutexes, which they do without: [`crate::robust`]). `pthread_cond_t`: sequence at 0, clock bit at 36.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use eventlog::record::{Header, fold_hash, kind, mix};
use guest::abi::{ThreadBlock, failure};

use crate::dispatch::hold_if_asked;
use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::robust::{self, Attempt};
use crate::{baton, delivery, order, pace, starved, thread, user, vdso};

/// A function of the C library that is replaced.
pub(crate) struct Replacement {
    pub(crate) name: &'static [u8],
    pub(crate) function: *const (),
}

// SAFETY: the pointer is a function's address.
unsafe impl Sync for Replacement {}

impl Replacement {
    /// Address of the guest's function.
    pub(crate) fn address(&self) -> u64 {
        self.function as u64
    }
}

/// The functions that are replaced.
pub(crate) static FUNCTIONS: &[Replacement] = &[
    Replacement {
        name: b"pthread_mutex_lock",
        function: mutex_lock as *const (),
    },
    Replacement {
        name: b"pthread_mutex_trylock",
        function: mutex_trylock as *const (),
    },
    Replacement {
        name: b"pthread_mutex_timedlock",
        function: mutex_timedlock as *const (),
    },
    Replacement {
        name: b"pthread_mutex_clocklock",
        function: mutex_clocklock as *const (),
    },
    Replacement {
        name: b"pthread_mutex_unlock",
        function: mutex_unlock as *const (),
    },
    Replacement {
        name: b"pthread_cond_wait",
        function: cond_wait as *const (),
    },
    Replacement {
        name: b"pthread_cond_timedwait",
        function: cond_timedwait as *const (),
    },
    Replacement {
        name: b"pthread_cond_clockwait",
        function: cond_clockwait as *const (),
    },
    Replacement {
        name: b"pthread_cond_signal",
        function: cond_signal as *const (),
    },
    Replacement {
        name: b"pthread_cond_broadcast",
        function: cond_broadcast as *const (),
    },
];

/// Kinds of mutexes.
pub(crate) const RECURSIVE: u32 = 1;
const ERRORCHECK: u32 = 2;
const KIND: u32 = 3;
pub(crate) const CLOCK_REALTIME: u64 = 0;
const CLOCK_MONOTONIC: u64 = 1;

/// A time-out: the clock and the address of an absolute timespec, 0 for none.
#[derive(Clone, Copy)]
pub(crate) struct Until {
    pub(crate) clock: u64,
    pub(crate) at: u64,
}

pub(crate) const FOR_EVER: Until = Until {
    clock: CLOCK_REALTIME,
    at: 0,
};

/// Runs a replacement: it is on the application's stack, and the host must not stop it half-way.
#[inline(always)]
pub(crate) fn inside<T>(body: impl FnOnce(&ThreadBlock) -> T) -> T {
    let t = thread::current();
    t.inside.store(1, Relaxed);
    let value = body(t);
    t.inside.store(0, Relaxed);
    hold_if_asked(t);
    starved::at_return(t);
    baton::go_on(t);
    value
}

/// Sleeps on a word of the application; the error number that ends the wait, 0 if it may go on. A signal ends it, too,
/// for the caller to deliver.
pub(crate) fn sleep(t: &ThreadBlock, word: &AtomicU32, value: u32, until: Until) -> i64 {
    const WAIT_BITSET: u64 = 9;
    const REALTIME: u64 = 256;
    const ANY: u64 = u32::MAX as u64;
    let op = if until.clock == CLOCK_REALTIME {
        WAIT_BITSET | REALTIME
    } else {
        WAIT_BITSET
    };
    let mut at = until.at;
    let kernels;
    if at != 0
        && vdso::lead(until.clock) != 0
        && let Ok(time) = user::read(at)
    {
        kernels = vdso::to_kernel(until.clock, time);
        at = kernels.as_ptr() as u64;
    }
    let args = [word.as_ptr() as u64, op, u64::from(value), at, 0, ANY];
    baton::leave(t);
    match raw::call_waiting(nr::FUTEX, &args, &t.pending) {
        result if result == -raw::ETIMEDOUT => raw::ETIMEDOUT,
        // The kernel takes no moment before 1970, which has passed for the C library.
        result if result == -raw::EINVAL => match user::read::<[i64; 2]>(until.at) {
            Ok([..0, 0..1_000_000_000]) => raw::ETIMEDOUT,
            _ => raw::EINVAL,
        },
        _ => 0,
    }
}

/// A word inside an object of the application.
pub(crate) fn word<'a>(object: u64, offset: u64) -> &'a AtomicU32 {
    // SAFETY: the application called a lock function with this object, which the C library would access in
    // the same way; all accesses are atomic.
    unsafe { &*((object + offset) as *const AtomicU32) }
}

/// A version inside an object of the application.
pub(crate) fn version_word<'a>(object: u64, offset: u64) -> &'a AtomicU64 {
    // SAFETY: as for `word`; the offset is a multiple of eight in an object aligned to eight.
    unsafe { &*((object + offset) as *const AtomicU64) }
}

/// Hash of the object of a lock event.
pub(crate) fn hash_of(object: u64) -> u16 {
    fold_hash(mix(0, object))
}

/// Records a lock event.
pub(crate) fn emit(t: &ThreadBlock, kind: u16, object: u64, result: i64) {
    if log::now() == Mode::Record {
        log::emit(
            t,
            Header {
                kind,
                hash: hash_of(object),
                result,
                ..Header::default()
            },
        );
    }
}

/// What the log says about an attempt to get a mutex.
enum Logged {
    /// It got the mutex at this version.
    Got(u64),
    /// It did not: −errno.
    Failed(i64),
    /// Replay is over: it has to happen live.
    Live,
}

/// Takes the record of a lock or trylock in replay.
///
/// How often a program tries before it waits may depend on a hint that it reads without a lock (jemalloc
/// spins on one), so the log's attempts and the program's need not match one by one: attempts that failed
/// are skipped by a call that waits, and attempts that the log lacks fail.
fn take_attempt(t: &ThreadBlock, object: u64, waits: bool) -> Logged {
    let expected = if waits { kind::LOCK } else { kind::TRYLOCK };
    pace::arrive(t);
    loop {
        let Some(next) = log::peek_behind(t) else {
            return take(t, expected, object).map_or(Logged::Live, logged);
        };
        let (event, result) = (next.header.kind, next.header.result);
        let same =
            matches!(event, kind::LOCK | kind::TRYLOCK) && next.header.hash == hash_of(object);
        match event {
            kind::TRYLOCK if same && waits && result < 0 => next.finish(),
            kind::LOCK if same && !waits => return Logged::Failed(-raw::EBUSY),
            _ if same => {
                next.finish();
                return logged(result);
            }
            _ => log::diverge(t, failure::CALL, u64::from(event), u64::from(expected)),
        }
    }
}

fn logged(result: i64) -> Logged {
    if result < 0 {
        Logged::Failed(result)
    } else {
        Logged::Got(result.cast_unsigned())
    }
}

/// Takes the record of a lock event in replay. `None` when it has to happen live.
pub(crate) fn take(t: &ThreadBlock, kind: u16, object: u64) -> Option<i64> {
    let taken = log::take(t, kind)?;
    taken.check_hash(hash_of(object));
    let result = taken.header.result;
    taken.finish();
    Some(result)
}

/// A mutex of the application.
pub(crate) struct Mutex {
    pub(crate) at: u64,
}

impl Mutex {
    pub(crate) fn lock_word(&self) -> &AtomicU32 {
        word(self.at, 0)
    }

    pub(crate) fn count(&self) -> &AtomicU32 {
        word(self.at, 4)
    }

    pub(crate) fn owner(&self) -> &AtomicU32 {
        word(self.at, 8)
    }

    fn kind(&self) -> u32 {
        word(self.at, 16).load(Relaxed) & KIND
    }

    pub(crate) fn version(&self) -> &AtomicU64 {
        version_word(self.at, 24)
    }

    fn is_own(&self, t: &ThreadBlock) -> bool {
        if robust::is_robust(self) {
            robust::is_own(self, t)
        } else {
            self.owner().load(Relaxed) == t.tid.load(Relaxed)
        }
    }

    /// What a thread that owns the mutex already gets; `None` if it does not.
    fn owned_already(&self, t: &ThreadBlock, trying: bool) -> Option<i64> {
        if !matches!(self.kind(), RECURSIVE | ERRORCHECK) || !self.is_own(t) {
            return None;
        }
        if self.kind() == RECURSIVE {
            self.count().fetch_add(1, Relaxed);
            return Some(0);
        }
        Some(if trying { raw::EBUSY } else { raw::EDEADLK })
    }

    fn try_acquire(&self) -> bool {
        self.lock_word()
            .compare_exchange(0, 1, Acquire, Relaxed)
            .is_ok()
    }

    fn own(&self, t: &ThreadBlock) {
        self.owner().store(t.tid.load(Relaxed), Relaxed);
        self.count().store(1, Relaxed);
    }

    fn lock(&self, t: &ThreadBlock, until: Until) -> i64 {
        if let Some(result) = self.owned_already(t, false) {
            return result;
        }
        let mut contended = false;
        loop {
            delivery::at_lock(t);
            if log::now() == Mode::Replay {
                if let Some(result) = self.replay_lock(t) {
                    return result;
                }
                continue;
            }
            if robust::is_robust(self) {
                if let Some(result) = self.lock_robust(t, &mut contended, until) {
                    return result;
                }
                continue;
            }
            let free = if contended {
                self.lock_word().swap(2, Acquire) == 0
            } else {
                self.try_acquire()
            };
            if free {
                break;
            }
            contended = true;
            if self.lock_word().swap(2, Acquire) == 0 {
                break;
            }
            let over = sleep(t, self.lock_word(), 2, until);
            if over != 0 {
                emit(t, kind::LOCK, self.at, -over);
                return over;
            }
        }
        self.own(t);
        emit(
            t,
            kind::LOCK,
            self.at,
            self.version().load(Relaxed).cast_signed(),
        );
        0
    }

    /// One attempt to get a robust mutex, and a sleep. `None` if it is to be tried again.
    fn lock_robust(&self, t: &ThreadBlock, contended: &mut bool, until: Until) -> Option<i64> {
        let attempt = robust::attempt(self, t, *contended);
        if attempt != Attempt::Held {
            return Some(self.came_out(t, kind::LOCK, attempt));
        }
        *contended = true;
        let value = robust::announce_sleep(self)?;
        let over = sleep(t, self.lock_word(), value, until);
        if over != 0 {
            emit(t, kind::LOCK, self.at, -over);
            return Some(over);
        }
        None
    }

    /// Records what came of an attempt to get a robust mutex; what the caller is told.
    fn came_out(&self, t: &ThreadBlock, event: u16, attempt: Attempt) -> i64 {
        let version = self.version().load(Relaxed).cast_signed();
        let (logged, told) = match attempt {
            Attempt::Got => (version, 0),
            Attempt::GotFromDead => (version | robust::DIED, raw::EOWNERDEAD),
            Attempt::Lost => (-raw::ENOTRECOVERABLE, raw::ENOTRECOVERABLE),
            Attempt::Held => (-raw::EBUSY, raw::EBUSY),
        };
        emit(t, event, self.at, logged);
        told
    }

    /// Takes the lock at the turn that its record gave. `None` if replay ended meanwhile.
    fn take_turn(&self, t: &ThreadBlock, turn: u64) -> Option<i64> {
        if robust::is_robust(self) {
            let died = turn.cast_signed() & robust::DIED != 0;
            let version = turn & !robust::DIED.cast_unsigned();
            order::await_value(t, self.version(), version).then_some(())?;
            robust::take(self, t, died).then_some(())?;
            return Some(if died { raw::EOWNERDEAD } else { 0 });
        }
        order::await_value(t, self.version(), turn).then_some(())?;
        let mut spins = 0;
        while !self.try_acquire() {
            order::pause(&mut spins);
        }
        self.own(t);
        Some(0)
    }

    /// Takes the lock at its logged turn. `None` if replay ended meanwhile.
    fn replay_lock(&self, t: &ThreadBlock) -> Option<i64> {
        match take_attempt(t, self.at, true) {
            Logged::Got(turn) => self.take_turn(t, turn),
            Logged::Failed(result) => Some(-result),
            Logged::Live => None,
        }
    }

    fn try_lock(&self, t: &ThreadBlock) -> i64 {
        if let Some(result) = self.owned_already(t, true) {
            return result;
        }
        delivery::at_lock(t);
        if log::now() == Mode::Replay {
            match take_attempt(t, self.at, false) {
                Logged::Failed(result) => return -result,
                Logged::Got(turn) => {
                    if let Some(result) = self.take_turn(t, turn) {
                        return result;
                    }
                }
                Logged::Live => {}
            }
        }
        if robust::is_robust(self) {
            let attempt = robust::attempt(self, t, false);
            return self.came_out(t, kind::TRYLOCK, attempt);
        }
        if !self.try_acquire() {
            emit(t, kind::TRYLOCK, self.at, -raw::EBUSY);
            return raw::EBUSY;
        }
        self.own(t);
        emit(
            t,
            kind::TRYLOCK,
            self.at,
            self.version().load(Relaxed).cast_signed(),
        );
        0
    }

    fn unlock(&self, t: &ThreadBlock) -> i64 {
        if matches!(self.kind(), RECURSIVE | ERRORCHECK) || robust::is_robust(self) {
            if !self.is_own(t) {
                return raw::EPERM;
            }
            if self.kind() == RECURSIVE && self.count().fetch_sub(1, Relaxed) > 1 {
                return 0;
            }
        }
        self.release(t);
        0
    }

    fn release(&self, t: &ThreadBlock) {
        if robust::is_robust(self) {
            return robust::release(self, t);
        }
        self.owner().store(0, Relaxed);
        self.count().store(0, Relaxed);
        self.version().fetch_add(1, Release);
        if self.lock_word().swap(0, Release) == 2 {
            raw::futex_wake(self.lock_word(), 1);
        }
    }
}

pub(crate) extern "C" fn mutex_lock(at: u64) -> i64 {
    inside(|t| Mutex { at }.lock(t, FOR_EVER))
}

extern "C" fn mutex_trylock(at: u64) -> i64 {
    inside(|t| Mutex { at }.try_lock(t))
}

extern "C" fn mutex_timedlock(at: u64, until: u64) -> i64 {
    inside(|t| {
        Mutex { at }.lock(
            t,
            Until {
                clock: CLOCK_REALTIME,
                at: until,
            },
        )
    })
}

extern "C" fn mutex_clocklock(at: u64, clock: u64, until: u64) -> i64 {
    inside(|t| Mutex { at }.lock(t, Until { clock, at: until }))
}

pub(crate) extern "C" fn mutex_unlock(at: u64) -> i64 {
    inside(|t| Mutex { at }.unlock(t))
}

fn wait_on(cond: u64, mutex: u64, until: Until) -> i64 {
    inside(|t| {
        let mutex = Mutex { at: mutex };
        let sequence = word(cond, 0).load(Acquire);
        let count = mutex.count().load(Relaxed);
        mutex.release(t);
        let result = pause_on(t, cond, sequence, until);
        let locked = mutex.lock(t, FOR_EVER);
        if locked == 0 {
            mutex.count().store(count, Relaxed);
            return result;
        }
        // Only a robust one comes with a word of its own.
        locked
    })
}

fn pause_on(t: &ThreadBlock, cond: u64, sequence: u32, until: Until) -> i64 {
    let mut result = 0;
    loop {
        delivery::at_lock(t);
        if log::now() == Mode::Replay {
            if let Some(result) = take(t, kind::CONDWAIT, cond) {
                return result;
            }
            // Replay ended in this wait: as if it had been woken for nothing, which POSIX allows.
            break;
        }
        if word(cond, 0).load(Acquire) != sequence {
            break;
        }
        result = sleep(t, word(cond, 0), sequence, until);
        if result != 0 {
            break;
        }
    }
    emit(t, kind::CONDWAIT, cond, result);
    result
}

extern "C" fn cond_wait(cond: u64, mutex: u64) -> i64 {
    wait_on(cond, mutex, FOR_EVER)
}

extern "C" fn cond_timedwait(cond: u64, mutex: u64, until: u64) -> i64 {
    const MONOTONIC_BIT: u32 = 2;
    let monotonic = word(cond, 36).load(Relaxed) & MONOTONIC_BIT != 0;
    let clock = if monotonic {
        CLOCK_MONOTONIC
    } else {
        CLOCK_REALTIME
    };
    wait_on(cond, mutex, Until { clock, at: until })
}

extern "C" fn cond_clockwait(cond: u64, mutex: u64, clock: u64, until: u64) -> i64 {
    wait_on(cond, mutex, Until { clock, at: until })
}

fn wake(cond: u64, n: u32) -> i64 {
    let sequence = word(cond, 0);
    sequence.fetch_add(1, AcqRel);
    if log::now() != Mode::Replay {
        raw::futex_wake(sequence, n);
    }
    0
}

extern "C" fn cond_signal(cond: u64) -> i64 {
    inside(|_| wake(cond, 1))
}

extern "C" fn cond_broadcast(cond: u64) -> i64 {
    inside(|_| wake(cond, i32::MAX as u32))
}
