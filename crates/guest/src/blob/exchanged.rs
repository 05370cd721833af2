//! Queued signals that come in each other's place.
//!
//! A signal that waits is sent again at the point where it is recorded and delivered. Real-time signals queue: one of the
//! same number that came meanwhile lies before it, and comes in its place. The handler gets the one that was recorded
//! all the same; the other is kept, and is delivered when what is left of the first comes out of the queue.
//!
//! One number at a time for each thread, and only so many of them: what does not fit comes as the kernel has it.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest::abi::{EXCHANGED, Exchange, ThreadBlock};

use crate::log::{self, Mode};
use crate::signals::SIGINFO_LEN;
use crate::user;

/// Words of a siginfo in which the kernel says something.
const WORDS: usize = 6;
/// The first signal of which several can be pending.
const FIRST_QUEUED: u32 = 32;

type Info = [u64; WORDS];

/// The signal that was recorded is delivered, in the frame with this `info`: of another, perhaps.
pub(crate) fn delivered(t: &ThreadBlock, signal: u32, info: u64) {
    let recorded = t.signal.as_ptr() as u64;
    if log::now() != Mode::Replay && signal >= FIRST_QUEUED {
        let (came, wanted) = (read(info), read(recorded));
        if came != wanted {
            put_off(&t.exchange, signal, came, wanted);
        }
    }
    let _ = user::copy(info, recorded, SIGINFO_LEN);
}

/// A signal has come, with this `info`: changes it into the one whose turn it is.
pub(crate) fn came(t: &ThreadBlock, signal: u32, info: u64) {
    let exchange = &t.exchange;
    if exchange.signal.load(Relaxed) != signal {
        return;
    }
    let came = read(info);
    if !take(&exchange.left, came) {
        // The queues are of one length: there is room once the first has gone.
        let first = shift(&exchange.early);
        push(&exchange.early, came);
        return give(info, first);
    }
    let first = shift(&exchange.early);
    if is_free(&exchange.early[0]) {
        exchange.signal.store(0, Relaxed);
    }
    give(info, first);
}

/// For a thread of which nothing is pending that came so.
pub(crate) fn forget(t: &ThreadBlock) {
    t.exchange.signal.store(0, Relaxed);
    for entry in t.exchange.early.iter().chain(&t.exchange.left) {
        entry[0].store(0, Relaxed);
    }
}

/// `came` was delivered as `wanted`, which is still in the queue.
fn put_off(exchange: &Exchange, signal: u32, came: Info, wanted: Info) {
    let now = exchange.signal.load(Relaxed);
    if now != signal && now != 0 {
        return;
    }
    if take(&exchange.left, came) || push(&exchange.early, came) {
        exchange.signal.store(signal, Relaxed);
        push(&exchange.left, wanted);
    }
}

type Entries = [[AtomicU64; WORDS]; EXCHANGED];

/// The number of a signal, in the first word, is never 0.
fn is_free(entry: &[AtomicU64; WORDS]) -> bool {
    entry[0].load(Relaxed) == 0
}

fn value(entry: &[AtomicU64; WORDS]) -> Info {
    core::array::from_fn(|i| entry[i].load(Relaxed))
}

fn set(entry: &[AtomicU64; WORDS], info: Info) {
    for (word, value) in entry.iter().zip(info) {
        word.store(value, Relaxed);
    }
}

/// Appends one; false if there is no room.
fn push(entries: &Entries, info: Info) -> bool {
    let free = entries.iter().find(|entry| is_free(entry));
    free.map(|entry| set(entry, info)).is_some()
}

/// Takes the first out.
fn shift(entries: &Entries) -> Info {
    let first = value(&entries[0]);
    remove(entries, 0);
    first
}

/// Takes one with this value out; false if there is none.
fn take(entries: &Entries, info: Info) -> bool {
    let mut all = entries.iter();
    let at = all.position(|entry| !is_free(entry) && value(entry) == info);
    at.map(|at| remove(entries, at)).is_some()
}

fn remove(entries: &Entries, at: usize) {
    for i in at..EXCHANGED {
        let next = entries.get(i + 1).map_or([0; WORDS], value);
        set(&entries[i], next);
    }
}

fn read(info: u64) -> Info {
    user::read(info).unwrap_or_default()
}

fn give(info: u64, value: Info) {
    let _ = user::write(info, &value);
}
