//! Robust mutexes: the kernel tells of an owner that ended, as for glibc's own; order as in [`crate::locks`].
//!
//! The lock word holds the owner's thread number, and two bits of the kernel's. A thread's mutexes are in a list that the
//! kernel walks when it ends: its links lie behind the mutex's version (offset 32), where glibc has them, too. The link
//! backwards, which only glibc would need, is the version.
//!
//! Whoever gets the mutex of one that ended gets it at the version at which that one had got it: its record says so by
//! [`DIED`], and in replay it waits until the kernel has told.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use guest::abi::ThreadBlock;

use crate::locks::{Mutex, version_word, word};
use crate::{order, raw};

/// In the kind: the mutex is robust.
pub(crate) const ROBUST: u32 = 16;
/// In the result of a lock's record: its owner had ended.
pub(crate) const DIED: i64 = 1 << 62;
/// Owner of a mutex that was got from one that ended, until it is called consistent.
const INCONSISTENT: u32 = i32::MAX as u32;
/// Owner of one that was released before it was.
const NOT_RECOVERABLE: u32 = INCONSISTENT - 1;

const FUTEX_WAITERS: u32 = 1 << 31;
const FUTEX_OWNER_DIED: u32 = 1 << 30;
const FUTEX_TID: u32 = FUTEX_OWNER_DIED - 1;
/// Where the link to the next one lies.
const LINK: u64 = 32;
/// Offsets in the head of a thread's list.
const FIRST: u64 = 0;
const UNDER_WAY: u64 = 16;
/// Mutexes that a thread is believed to hold at once.
const MOST: usize = 1 << 20;

/// What came of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Somebody has it.
    Held,
    /// The caller has it now.
    Got,
    /// The same, from one that ended.
    GotFromDead,
    /// Nobody gets it any more.
    Lost,
}

/// Whether the calling thread has the mutex.
pub(crate) fn is_own(mutex: &Mutex, t: &ThreadBlock) -> bool {
    mutex.lock_word().load(Relaxed) & FUTEX_TID == t.tid.load(Relaxed)
}

/// Whether the owner ended, and nobody has got it since.
pub(crate) fn is_orphan(mutex: &Mutex) -> bool {
    mutex.lock_word().load(Acquire) & FUTEX_OWNER_DIED != 0
}

/// Takes the mutex if it is free. `contended`: others may sleep on it.
pub(crate) fn attempt(mutex: &Mutex, t: &ThreadBlock, contended: bool) -> Attempt {
    let lock_word = mutex.lock_word();
    begin_change(mutex, t);
    let waiters = if contended { FUTEX_WAITERS } else { 0 };
    let taken = lock_word.try_update(Acquire, Relaxed, |held| {
        let is_free = held & FUTEX_TID == 0;
        is_free.then_some(t.tid.load(Relaxed) | held & FUTEX_WAITERS | waiters)
    });
    let Ok(before) = taken else {
        end_change(t);
        return Attempt::Held;
    };
    enlist(mutex, t);
    if mutex.owner().load(Relaxed) == NOT_RECOVERABLE {
        give_up(mutex, t, NOT_RECOVERABLE);
        return Attempt::Lost;
    }
    mutex.count().store(1, Relaxed);
    let died = before & FUTEX_OWNER_DIED != 0;
    let owner = if died {
        INCONSISTENT
    } else {
        t.tid.load(Relaxed)
    };
    mutex.owner().store(owner, Relaxed);
    if died {
        Attempt::GotFromDead
    } else {
        Attempt::Got
    }
}

/// What the lock word is while the caller may sleep on it; `None` if it is free.
pub(crate) fn announce_sleep(mutex: &Mutex) -> Option<u32> {
    let lock_word = mutex.lock_word();
    let before = lock_word.load(Relaxed);
    if before & FUTEX_TID == 0 {
        return None;
    }
    let sleeps = before | FUTEX_WAITERS;
    let announced = lock_word.compare_exchange(before, sleeps, Relaxed, Relaxed);
    announced.ok().map(|_| sleeps)
}

/// In replay, at the mutex's turn: takes it as soon as it is free. False if replay ended meanwhile.
pub(crate) fn take(mutex: &Mutex, t: &ThreadBlock, from_dead: bool) -> bool {
    if from_dead && !order::await_that(t, || is_orphan(mutex)) {
        return false;
    }
    let mut spins = 0;
    while attempt(mutex, t, true) == Attempt::Held {
        order::pause(&mut spins);
    }
    true
}

/// Releases a mutex of the caller's. One that was not called consistent is lost to all.
pub(crate) fn release(mutex: &Mutex, t: &ThreadBlock) {
    let owner = if mutex.owner().load(Relaxed) == INCONSISTENT {
        NOT_RECOVERABLE
    } else {
        0
    };
    give_up(mutex, t, owner);
}

fn give_up(mutex: &Mutex, t: &ThreadBlock, owner: u32) {
    mutex.owner().store(owner, Relaxed);
    mutex.count().store(0, Relaxed);
    begin_change(mutex, t);
    delist(mutex, t);
    mutex.version().fetch_add(1, Release);
    if mutex.lock_word().swap(0, Release) & FUTEX_WAITERS != 0 {
        // All: the word does not tell any more that there are others.
        raw::futex_wake(mutex.lock_word(), i32::MAX as u32);
    }
    end_change(t);
}

/// The thread's list, as it told the kernel; `None` without one.
fn head(t: &ThreadBlock) -> Option<u64> {
    match t.robust.load(Relaxed) {
        0 => None,
        head => Some(head),
    }
}

/// The kernel looks at this mutex, too, should the thread end before [`end_change`].
fn begin_change(mutex: &Mutex, t: &ThreadBlock) {
    if let Some(head) = head(t) {
        version_word(head, UNDER_WAY).store(mutex.at + LINK, Release);
    }
}

fn end_change(t: &ThreadBlock) {
    if let Some(head) = head(t) {
        version_word(head, UNDER_WAY).store(0, Release);
    }
}

fn enlist(mutex: &Mutex, t: &ThreadBlock) {
    if let Some(head) = head(t) {
        let first = version_word(head, FIRST);
        version_word(mutex.at, LINK).store(first.load(Relaxed), Relaxed);
        first.store(mutex.at + LINK, Release);
    }
    end_change(t);
}

fn delist(mutex: &Mutex, t: &ThreadBlock) {
    let Some(head) = head(t) else { return };
    let link = mutex.at + LINK;
    let mut at = head + FIRST;
    for _ in 0..MOST {
        let here = version_word(at, 0);
        match here.load(Relaxed) {
            next if next == link => {
                let behind = version_word(link, 0).load(Relaxed);
                return here.store(behind, Release);
            }
            // The list ends at its head.
            next if next == head || next == 0 => return,
            next => at = next,
        }
    }
}

/// Whether the mutex is robust.
pub(crate) fn is_robust(mutex: &Mutex) -> bool {
    word(mutex.at, 16).load(Relaxed) & ROBUST != 0
}
