//! The order of time: in replay, a thread takes its next record when the others have taken all that are older.
//!
//! What threads do to one another without a call or a lock (a flag that one sets and another looks at) is in no log. It
//! comes about again if their calls interleave as they did when it was recorded, which the records' times tell.
//!
//! What a thread does between two records takes time here, too: it is waited for until it has come to its next record,
//! or has had twice the time that it had when it was recorded.
//!
//! It is a help, and not a promise: times are taken when a record is made, a moment after what it tells. So when all wait
//! for one another, the earliest goes on, and where nothing goes on for [`PATIENCE`], the order of time is given up for
//! this replay: the order of objects alone is then left, as without.
//!
//! So what a thread did between two records is done as if at the first of them. The host may have records taken as if they
//! had been made at another time.
//!
//! An attempt with a seed is timed another way: at places that the seed chooses, a thread takes its record a little
//! later, or does not wait for those that are on their way to theirs.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use eventlog::record::{HASH_SEED, cycles_of, mix};
use guest::abi::{RESTORED, RING_LEN, Slot, ThreadBlock, Turn, flag, slot};

use crate::thread::{control, slot_of};
use crate::{order, raw, ring, user};

/// Cycles without any record taken after which a thread waits no longer for one that is behind.
const PATIENCE: u64 = 300_000_000;
/// The most that a thread is given for the time that it had had when it was recorded.
const MOST: u64 = 2_000_000;
/// Cycles that a thread is given in any case for what it does between two records.
const START: u64 = 4_000_000;
/// … and where it ran alone.
const START_ALONE: u64 = 150_000_000;
/// With a seed, one record of so many is taken later (a power of two), by less than so many cycles (another one).
const DELAYED: u64 = 16;
const DELAY: u64 = 1 << 18;
// The first eight bytes of a record, its ticks among them, do not wrap round.
const _: () = assert!(RING_LEN.is_multiple_of(8));

/// Waits until no other thread has a record that is older than `time` still to take.
#[inline]
pub(crate) fn await_time(t: &ThreadBlock, time: u64) {
    let patient = match control().seed.load(Relaxed) {
        0 => true,
        seed => vary(t, seed),
    };
    if control().flags.load(Relaxed) & flag::TIMED == 0 {
        return;
    }
    let own = t.slot.load(Relaxed);
    let turn = turn_of(t.stream.load(Relaxed), t.position.load(Relaxed));
    let time = turn.map_or(time, |turn| turn.time.load(Relaxed));
    loop {
        let made = control().claims.load(Acquire);
        for index in 0..control().slots.load(Acquire) {
            if index != own && standing(index, time, patient) != Standing::Done {
                await_other(own, index, time, patient);
            }
        }
        // Threads that were made meanwhile may be older, too.
        if control().claims.load(Acquire) == made {
            return;
        }
    }
}

/// What the seed says of the next record: it may be taken later, and with or without patience for threads that have taken
/// their records and are on their way to the next.
#[cold]
fn vary(t: &ThreadBlock, seed: u32) -> bool {
    let place = mix(u64::from(t.stream.load(Relaxed)), t.position.load(Relaxed));
    let chance = mix(mix(HASH_SEED, u64::from(seed)), place);
    if chance.is_multiple_of(DELAYED) {
        let (began, delay) = (raw::cycles(), (chance >> 8) % DELAY);
        while raw::cycles().saturating_sub(began) < delay {
            core::hint::spin_loop();
        }
    }
    chance & DELAYED == 0
}

#[cold]
fn await_other(own: u32, index: u32, time: u64, patient: bool) {
    let state = &slot_of(own).state;
    state.store(slot::EARLY, SeqCst);
    let (mut spins, mut began, mut moves) = (0, raw::cycles(), 0);
    while control().flags.load(Relaxed) & flag::TIMED != 0 {
        match standing(index, time, patient) {
            Standing::Done => break,
            Standing::Waits if is_first_of_all(time) => break,
            Standing::Waits | Standing::Behind => order::pause(&mut spins),
        }
        let now = control().moves.load(Relaxed);
        if now != moves {
            (began, moves) = (raw::cycles(), now);
        }
        if raw::cycles().saturating_sub(began) > PATIENCE {
            control().flags.fetch_and(!flag::TIMED, Relaxed);
        }
    }
    state.store(slot::LIVE, SeqCst);
}

/// Whether every thread waits for another, and none of those that are early is earlier than the one at `time`.
fn is_first_of_all(time: u64) -> bool {
    (0..control().slots.load(Acquire)).all(|index| {
        let ring = slot_of(index);
        match ring.state.load(SeqCst) {
            slot::LIVE => match next_time(index, ring) {
                None => true,
                // It sleeps, or has come to its record.
                Some(next) => next >= time && ring.taken_at.load(Acquire) == 0,
            },
            slot::EARLY => next_time(index, ring).is_none_or(|next| next >= time),
            _ => true,
        }
    })
}

/// Where a thread stands that is to have done what it had done at some time.
#[derive(PartialEq, Eq)]
enum Standing {
    /// It has done it, or it is not to be waited for.
    Done,
    /// It waits for its turn at a shared object: perhaps because of the very thread that asks.
    Waits,
    /// It has not come so far.
    Behind,
}

/// Where one stands that is waited for; without patience, one that is on its way is not.
fn standing(index: u32, time: u64, patient: bool) -> Standing {
    let ring = slot_of(index);
    match ring.state.load(Acquire) {
        // It has come to its next record, and waits before it takes it: for one that is older still.
        slot::WAITING if ring.taken_at.load(Acquire) == 0 => match next_time(index, ring) {
            Some(next) if next < time => Standing::Behind,
            _ => Standing::Done,
        },
        slot::WAITING if ring.time.load(Acquire) < time => Standing::Waits,
        // One at its log's end, too, may be on its way to where it waits.
        slot::LIVE | slot::EARLY
            if next_time(index, ring).is_some_and(|next| next < time)
                || patient && is_under_way(ring, time) =>
        {
            Standing::Behind
        }
        _ => Standing::Done,
    }
}

/// Whether a thread that took its last record before `time` has probably not come as far as it had at `time`.
fn is_under_way(slot: &Slot, time: u64) -> bool {
    let had = time.saturating_sub(slot.time.load(Acquire)).min(MOST);
    let mut taken_at = slot.taken_at.load(Acquire);
    if taken_at == RESTORED {
        // Its time counts from now on: it goes on from where the checkpoint found it.
        taken_at = raw::cycles();
        let _ = slot
            .taken_at
            .compare_exchange(RESTORED, taken_at, AcqRel, Relaxed);
    }
    // Where one ran at a time, nobody else did anything meanwhile.
    let start = match control().flags.load(Relaxed) & flag::SERIAL {
        0 => START,
        _ => START_ALONE,
    };
    taken_at != 0 && raw::cycles().saturating_sub(taken_at) < start + 2 * had
}

/// The turn of a record that the host gave one.
#[inline]
fn turn_of(stream: u32, position: u64) -> Option<&'static Turn> {
    match control().turn_count.load(Relaxed) {
        0 => None,
        count => chosen(stream, position, count),
    }
}

#[cold]
fn chosen(stream: u32, position: u64, count: u32) -> Option<&'static Turn> {
    let mut all = control().turns.iter().take(count as usize);
    all.find(|turn| turn.stream.load(Relaxed) == stream && turn.position.load(Relaxed) == position)
}

/// The time of the next record of a ring: no later than it is. `None` at the log's end.
fn next_time(index: u32, slot: &Slot) -> Option<u64> {
    let last = slot.time.load(Acquire);
    let tail = slot.tail.load(Acquire);
    if slot.head.load(Acquire) > tail {
        let word: u64 = user::read(ring::base(index) + tail % RING_LEN).unwrap_or(0);
        let time = last.saturating_add(cycles_of((word >> 32) as u32));
        let turn = turn_of(slot.stream.load(Relaxed), tail);
        return Some(turn.map_or(time, |turn| turn.time.load(Relaxed)));
    }
    // More may come, of which nothing is known yet.
    (slot.end.load(Acquire) == 0).then_some(last)
}

/// The calling thread has come to its next record.
#[inline]
pub(crate) fn arrive(t: &ThreadBlock) {
    slot_of(t.slot.load(Relaxed)).taken_at.store(0, Release);
}

/// Makes a call in which the calling thread may sleep (`may`) until others have come further: they do not wait for it then.
#[inline]
pub(crate) fn while_asleep<T>(t: &ThreadBlock, may: bool, call: impl FnOnce() -> T) -> T {
    if !may || control().flags.load(Relaxed) & flag::TIMED == 0 {
        return call();
    }
    let taken_at = &slot_of(t.slot.load(Relaxed)).taken_at;
    let before = taken_at.swap(0, AcqRel);
    let result = call();
    if before != 0 {
        taken_at.store(raw::cycles(), Release);
    }
    result
}

/// A thread is made for this ring after the record of this time.
pub(crate) fn give_birth(index: u32, time: u64) {
    slot_of(index).born.store(time, Release);
    hand_over(index, time);
}

/// An image is left after the record of this time.
pub(crate) fn hand_over(index: u32, time: u64) {
    slot_of(index).time.store(time, Release);
}

/// The calling thread has taken a record.
#[inline]
pub(crate) fn moved() {
    if control().flags.load(Relaxed) & flag::TIMED != 0 {
        control().moves.fetch_add(1, Relaxed);
    }
}

/// What was handed over to the calling thread.
pub(crate) fn inherit(t: &ThreadBlock) {
    let time = slot_of(t.slot.load(Relaxed)).time.load(Acquire);
    t.tsc.store(time, Relaxed);
}
