//! Holds: a thread stands between two of its instructions while another passes.
//!
//! Each of two threads sets a flag of its own and then looks at the other's. Where both did so at the same moment, each
//! saw the other's flag, and no order of their records brings that about again: the one has to stand between its two
//! instructions while the other does all of it. The host finds out where, attempt by attempt; see
//! [`guest::abi::Hold`].

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use guest::abi::{Hold, ThreadBlock, hold};

use crate::thread::control;
use crate::{order, raw};

/// Cycles after which a host that does nothing is not waited for any more.
const PATIENCE: u64 = 1_000_000_000;

/// The calling thread is about to take its next record: where it has to let another come to stand first, it waits. The
/// hold in which it stands itself behind this record.
#[inline(always)]
pub(crate) fn at(t: &ThreadBlock) -> Option<&'static Hold> {
    match control().hold_count.load(Relaxed) {
        0 => None,
        count => find(t, count),
    }
}

/// The calling thread has taken the record: it waits until the host steps it.
#[inline(always)]
pub(crate) fn stay(held: Option<&'static Hold>) {
    if let Some(held) = held {
        await_host(held, |state| state != hold::REACHED);
    }
}

#[cold]
fn find(t: &ThreadBlock, count: u32) -> Option<&'static Hold> {
    let (stream, position) = (t.stream.load(Relaxed), t.position.load(Relaxed));
    let mut own = None;
    for one in control().holds.iter().take(count as usize) {
        if one.stream.load(Relaxed) == stream && one.position.load(Relaxed) == position {
            one.slot.store(t.slot.load(Relaxed), Relaxed);
            // Before the record is taken, which the other waits for.
            one.state.store(hold::REACHED, Release);
            own = Some(one);
        }
        if one.passes.load(Relaxed) != stream {
            continue;
        }
        if one.passes_from.load(Relaxed) == position {
            await_host(one, |state| {
                matches!(state, hold::AHEAD | hold::STANDS | hold::GONE)
            });
        }
        if one.passes_to.load(Relaxed) == position {
            await_host(one, |state| matches!(state, hold::AHEAD | hold::GONE));
        }
    }
    own
}

fn await_host(held: &Hold, done: impl Fn(u32) -> bool) {
    let (mut spins, began) = (0, raw::cycles());
    while !done(held.state.load(Acquire)) {
        if raw::cycles().saturating_sub(began) > PATIENCE {
            held.state.store(hold::GONE, Release);
        }
        order::pause(&mut spins);
    }
}
