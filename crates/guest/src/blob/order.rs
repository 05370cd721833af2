//! Locks with versions: they give calls on shared objects one order, which replay repeats.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use guest::abi::{BLOB_BASE, Order, ThreadBlock, mode, slot};

use crate::baton;
use crate::raw::{self, nr};
use crate::thread::{control, slot_of};

const fn free() -> Order {
    Order {
        owner: AtomicU32::new(0),
        pad: AtomicU32::new(0),
        version: AtomicU64::new(0),
    }
}

/// Order of changes of this process' memory map.
pub(crate) static MEMORY: Order = free();
/// Order of changes of this process' descriptor table.
pub(crate) static DESCRIPTORS: Order = free();

/// Looks before the processor is given to somebody else.
const SPINS: u32 = 200;
/// Looks at a lock that is taken after which it is looked at its owner.
const LOOK: u32 = 1000;

/// Holds an order's lock until dropped.
pub(crate) struct Held<'a>(&'a Order);

impl Held<'_> {
    /// Counts one more change; the number it got, from 1.
    pub(crate) fn stamp(&self) -> u64 {
        self.0.version.fetch_add(1, Relaxed) + 1
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.owner.store(0, Release);
    }
}

/// Takes the lock: from a thread, too, that was killed while it held it.
pub(crate) fn lock<'a>(t: &ThreadBlock, order: &'a Order) -> Held<'a> {
    loop {
        if let Some(held) = lock_unless(t, order, || false) {
            return held;
        }
    }
}

/// [`lock`], given up where that is said to be long enough.
pub(crate) fn lock_unless<'a>(
    t: &ThreadBlock,
    order: &'a Order,
    is_enough: impl Fn() -> bool,
) -> Option<Held<'a>> {
    let me = t.tid.load(Relaxed);
    let (mut spins, mut free) = (0, 0);
    while let Err(owner) = order
        .owner
        .compare_exchange_weak(free, me, Acquire, Relaxed)
    {
        pause(&mut spins);
        // One that has our number had it before us: an execve gives it to the thread that is left.
        let is_dead = owner == me || spins % LOOK == 0 && owner != 0 && has_ended(owner);
        free = if is_dead { owner } else { 0 };
        if spins % LOOK == 0 && is_enough() {
            return None;
        }
    }
    Some(Held(order))
}

/// Who has a lock that nobody gets any more. No thread has this number.
const NOBODY: u32 = u32::MAX;

impl Held<'_> {
    /// Leaves the lock to nobody: it is not free when its owner has ended, either.
    pub(crate) fn keep_for_good(self) {
        self.0.owner.store(NOBODY, Release);
        core::mem::forget(self);
    }
}

/// Gives back a lock that a thread had which is not there any more.
pub(crate) fn unlock_for(tid: u32, order: &Order) {
    let _ = order.owner.compare_exchange(tid, 0, Release, Relaxed);
}

/// Whether a thread has ended, or is a zombie: it has no memory any more.
fn has_ended(tid: u32) -> bool {
    if tid == NOBODY {
        return false;
    }
    let mut byte = 0_u8;
    let here = [(&raw mut byte) as u64, 1];
    let there = [BLOB_BASE, 1];
    let (here, there) = ((&raw const here) as u64, (&raw const there) as u64);
    raw::call(nr::KILL, [tid.into(), 0, 0, 0, 0, 0]) == -raw::ESRCH
        || raw::call(nr::PROCESS_VM_READV, [tid.into(), here, 1, there, 1, 0]) == -raw::ESRCH
}

/// Waits in replay until it is the turn of change number `version`. False when replay ended meanwhile:
/// then the log's order does not count any more.
pub(crate) fn await_turn(t: &ThreadBlock, order: &Order, version: u64) -> bool {
    await_value(t, &order.version, version.wrapping_sub(1))
}

/// Waits in replay until a version word has a value; see [`await_turn`].
pub(crate) fn await_value(t: &ThreadBlock, word: &AtomicU64, value: u64) -> bool {
    await_that(t, || word.load(Acquire) == value)
}

/// Waits in replay for what other threads will do; see [`await_turn`].
pub(crate) fn await_that(t: &ThreadBlock, done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    let ring = slot_of(t.slot.load(Relaxed));
    ring.awaits.store(t.record.load(Relaxed), Relaxed);
    let state = &ring.state;
    state.store(slot::WAITING, SeqCst);
    let mut spins = 0;
    let reached = loop {
        let looks = control().looks.load(SeqCst);
        if done() {
            break true;
        }
        if control().mode.load(Acquire) != mode::REPLAY {
            break false;
        }
        ring.looked.store(looks, Release);
        pause(&mut spins);
    };
    state.store(slot::LIVE, SeqCst);
    if !reached {
        crate::signals::let_in(t);
    }
    reached
}

/// One step of waiting: spin first, then let others run.
pub(crate) fn pause(spins: &mut u32) {
    *spins += 1;
    if *spins < SPINS {
        core::hint::spin_loop();
        return;
    }
    if *spins == SPINS {
        baton::leave_to_wait();
    }
    raw::call(nr::SCHED_YIELD, [0; 6]);
}

/// After a fork: a lock that another thread held has no owner in the child.
pub(crate) fn reset_owners() {
    MEMORY.owner.store(0, Relaxed);
    DESCRIPTORS.owner.store(0, Relaxed);
}
