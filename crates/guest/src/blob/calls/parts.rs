//! Calls whose effect comes in parts: a blocking write that a stop ended half-way, and a receive that waits for all.
//!
//! A stop ends them as a signal would, and the program must not see it. Each part has a record of its own, so that a
//! checkpoint may be taken between two: the image begins the call again behind what was done ([`ThreadBlock::done`]).

use core::sync::atomic::Ordering::Relaxed;

use guest::abi::ThreadBlock;
use sysabi::Syscall;

use crate::dispatch::{fed_by, hold_if_asked};
use crate::entry::Regs;
use crate::raw;
use crate::signals::{self, Interrupted};
use crate::{baton, delivery};

/// A call with a flat buffer as argument 1, of which so much is done.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) args: [u64; 6],
    /// Bytes done by the parts before.
    pub(crate) done: u64,
}

/// Makes a call part by part. `make` makes one; `goes_on` tells whether one that did less than it could is followed by
/// another, which it is told.
pub(crate) fn in_parts(
    t: &ThreadBlock,
    args: [u64; 6],
    make: impl Fn(Part) -> i64,
    goes_on: impl Fn(Part) -> bool,
) -> i64 {
    let len = args[2];
    let behind = |done: u64| {
        let mut rest = args;
        rest[1] = rest[1].wrapping_add(done);
        rest[2] = len - done;
        Part { args: rest, done }
    };
    loop {
        let done = t.done.load(Relaxed).min(len);
        let result = make(behind(done));
        let total = done + u64::try_from(result).unwrap_or(0);
        t.done.store(total, Relaxed);
        // A signal that is delivered behind a part ends the call.
        let ends = result <= 0 || total >= len || t.follows.load(Relaxed) != 0;
        if ends || !goes_on(behind(total)) {
            t.done.store(0, Relaxed);
            return if total > 0 {
                total.cast_signed()
            } else {
                result
            };
        }
        hold_if_asked(t);
    }
}

/// Makes a part. A signal makes the call begin anew only as long as nothing is done.
pub(crate) fn perform(t: &ThreadBlock, regs: &Regs, part: Part) -> i64 {
    loop {
        baton::leave(t);
        let result = raw::call_blocking(regs.rax, &part.args, &t.pending);
        if result == raw::NOT_MADE {
            if part.done == 0 {
                delivery::deliver_before(t, regs);
            }
            return -raw::EINTR;
        }
        if result != -raw::EINTR {
            return result;
        }
        match signals::interrupted(t, regs.rax) {
            Interrupted::Retry => {}
            Interrupted::Restart if part.done == 0 => delivery::deliver_before(t, regs),
            Interrupted::Restart | Interrupted::Report => return result,
        }
    }
}

/// Whether a receive waits until its buffer is full.
pub(crate) fn waits_for_all(regs: &Regs) -> bool {
    const MSG_PEEK: u64 = 2;
    const MSG_TRUNC: u64 = 0x20;
    const MSG_DONTWAIT: u64 = 0x40;
    const MSG_WAITALL: u64 = 0x100;
    regs.r10 & (MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT | MSG_WAITALL) == MSG_WAITALL
}

/// `recvfrom` with MSG_WAITALL.
pub(crate) fn receive_all(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let make = |part: Part| {
        let mut wanted = *regs;
        (wanted.rsi, wanted.rdx) = (part.args[1], part.args[2]);
        // The table's limit on what one record holds is in the arguments that come back.
        fed_by(t, &wanted, row, |args| {
            let args = *args;
            (perform(t, regs, Part { args, ..part }), 0)
        })
    };
    in_parts(t, regs.args(), make, |_| true)
}
