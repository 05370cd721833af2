//! Signals that are pending in the kernel, in replay.
//!
//! The kernel holds all of them back then: those of the image, those that the container's processes send themselves and
//! one another, which they do again, and what ended children cause. One that the log says the program got is so no more.
//! What is left at the log's end goes live with the application's mask.

use core::sync::atomic::Ordering::Relaxed;

use guest::abi::{SI_TKILL, ThreadBlock, is_sent};
use sysabi::Syscall;

use crate::calls::leaving;
use crate::dispatch;
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::sent_signals::{self, Passed, Sending, alone};
use crate::signals::SIGINFO_LEN;
use crate::tables::{self, Kind};
use crate::{order, user};

/// Length of a `struct signalfd_siginfo`.
const SIGNALFD_LEN: i64 = 128;
/// Where number, code and sender lie in it and, the first two, in a siginfo.
const CODE_AT: u64 = 8;
const SIGNALFD_SENDER_AT: u64 = 12;
const SIGINFO_SENDER_AT: u64 = 16;

/// The first signal that queues.
const FIRST_QUEUED: u32 = 32;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
const SIGKILL: u32 = 9;
const SIGCHLD: u32 = 17;
const SIGSTOP: u32 = 19;

/// The signals that are pending for the caller.
fn pending() -> u64 {
    let mut pending = 0_u64;
    let at = (&raw mut pending) as u64;
    raw::call(nr::RT_SIGPENDING, [at, 8, 0, 0, 0, 0]);
    pending
}

/// Behind a call that the log answered.
#[inline]
pub(crate) fn note(t: &ThreadBlock, row: &Syscall, args: &[u64; 6], result: i64) {
    match row.nr {
        // read
        0 if result >= SIGNALFD_LEN && tables::of(t).kind(args[0]) == Kind::Signals => {
            for at in (0..result).step_by(SIGNALFD_LEN as usize) {
                let at = args[1] + at.cast_unsigned();
                got(t, user::read(at).unwrap_or(0), at, SIGNALFD_SENDER_AT);
            }
        }
        // rt_sigtimedwait
        128 if result > 0 => got(t, result as u32, args[1], SIGINFO_SENDER_AT),
        // kill, rt_sigqueueinfo, tkill, tgkill, rt_tgsigqueueinfo
        62 | 129 | 200 | 234 | 297 if result == 0 => send(t, row.nr, args),
        _ => {}
    }
}

/// The program got a signal without a handler.
fn got(t: &ThreadBlock, signal: u32, info: u64, sender_at: u64) {
    let passed = passed(t, signal, info, sender_at);
    await_sender(t, passed);
    alone(t, || take_out(t, signal, passed));
}

/// A handler is to be given a signal that the guest kept when the image was taken: it is pending again, and got then.
pub(crate) fn was_kept(t: &ThreadBlock, signal: u32, info: u64, send: impl FnOnce()) {
    alone(t, || {
        if let Some(passed) = passed(t, signal, info, SIGINFO_SENDER_AT) {
            sent_signals::sent(passed);
        }
        send();
    });
}

/// One came to the thread in replay, and is pending again. If nobody counts it, it had come when the image was taken.
pub(crate) fn was_held_back(t: &ThreadBlock, signal: u32, info: u64) {
    if let Some(passed) = passed(t, signal, info, SIGINFO_SENDER_AT) {
        alone(t, || {
            if !sent_signals::was_sent(passed) && !sent_signals::was_got(passed) {
                sent_signals::sent(passed);
            }
        });
    }
}

/// A handler is to be given a signal with this siginfo: sends it by `send` if it is not pending.
pub(crate) fn make_pending(t: &ThreadBlock, signal: u32, info: u64, send: impl FnOnce()) {
    let passed = passed(t, signal, info, SIGINFO_SENDER_AT);
    await_sender(t, passed);
    alone(t, || {
        if passed.is_some() {
            // What is sent to the thread comes before what is sent to the process.
            take_out(t, signal, passed);
            send();
        } else if !is_pending(signal) {
            send();
        }
    });
}

/// The process that sent a signal to the caller's, if one did.
fn passed(t: &ThreadBlock, signal: u32, info: u64, sender_at: u64) -> Option<Passed> {
    let code = user::read::<i32>(info + CODE_AT);
    let is_sent = code.is_ok_and(is_sent) && (1..=64).contains(&signal);
    let sender = user::read(info + sender_at).ok().filter(|_| is_sent)?;
    let receiver = t.pid.load(Relaxed);
    Some(Passed {
        sender,
        receiver,
        signal,
    })
}

/// Another process of the container sends it, and has perhaps not come so far: not waited for longer than that takes.
fn await_sender(t: &ThreadBlock, passed: Option<Passed>) {
    const LONG: u64 = 50_000_000;
    let Some(passed) = passed.filter(|passed| passed.sender != passed.receiver) else {
        return;
    };
    let began = raw::cycles();
    order::await_that(t, || {
        sent_signals::was_sent(passed)
            || leaving::has_nothing_left(passed.sender)
            || raw::cycles().saturating_sub(began) > LONG
    });
}

fn is_pending(signal: u32) -> bool {
    pending() & 1 << (signal - 1) != 0
}

/// A `siginfo_t`.
type Info = [u64; 16];
const _: () = assert!(size_of::<Info>() as u64 == SIGINFO_LEN);

/// One that the program got is not pending any more, if it has been sent: that of its sender, or one that the kernel
/// has caused.
fn take_out(t: &ThreadBlock, signal: u32, passed: Option<Passed>) {
    /// So many of others may lie before it.
    const MOST: usize = 8;
    let Some(passed) = passed else {
        // What is not told of who sent it may have been sent by a process all the same.
        if let Some(info) = take_oldest(signal)
            && let Some(passed) = self::passed(t, signal, info.as_ptr() as u64, SIGINFO_SENDER_AT)
        {
            sent_signals::got(passed);
        }
        return;
    };
    if !sent_signals::got(passed) {
        return;
    }
    let mut others = [[0; 16]; MOST];
    let (mut len, mut found) = (0, false);
    while !found
        && len < MOST
        && let Some(info) = take_oldest(signal)
    {
        found = sender(&info) == passed.sender;
        if !found {
            others[len] = info;
            len += 1;
        }
    }
    // Of those that queue there are as many as were sent; one of the others may have been sent as a part of this one.
    let gone = usize::from(!found && signal >= FIRST_QUEUED);
    for info in others[..len].iter().skip(gone) {
        put_back(signal, info);
    }
}

/// The process that sent it, if one did.
fn sender(info: &Info) -> u32 {
    let at = info.as_ptr() as u64;
    user::read(at + SIGINFO_SENDER_AT).unwrap_or(0)
}

/// Makes the oldest signal of a kind that is pending for the caller so no more.
fn take_oldest(signal: u32) -> Option<Info> {
    if !(1..=64).contains(&signal) {
        return None;
    }
    let (set, at_once, mut info) = (1_u64 << (signal - 1), [0_u64; 2], [0; 16]);
    let set_at = (&raw const set) as u64;
    let (info_at, at_once_at) = ((&raw mut info) as u64, at_once.as_ptr() as u64);
    let got = raw::call(nr::RT_SIGTIMEDWAIT, [set_at, info_at, at_once_at, 8, 0, 0]);
    (got > 0).then_some(info)
}

/// Makes it pending again, for whom it was.
fn put_back(signal: u32, info: &Info) {
    let at = info.as_ptr() as u64;
    let [process, thread] = [nr::GETPID, nr::GETTID].map(|call| raw::call(call, [0; 6]) as u64);
    let signal = u64::from(signal);
    if user::read::<i32>(at + CODE_AT).is_ok_and(|code| code == SI_TKILL) {
        raw::call(nr::RT_TGSIGQUEUEINFO, [process, thread, signal, at, 0, 0]);
    } else {
        raw::call(nr::RT_SIGQUEUEINFO, [process, signal, at, 0, 0, 0]);
    }
}

/// What a process of the container sends itself or others is pending again, unless it has been got already.
fn send(t: &ThreadBlock, call: u16, args: &[u64; 6]) {
    let sending = Sending::of(call, args);
    if matches!(sending.signal, 0 | SIGKILL | SIGSTOP) {
        return;
    }
    sending.to_each(t, |passed| {
        alone(t, || {
            if sent_signals::sent(passed) {
                make(sending, passed, call, args);
            }
        });
    });
}

/// Sends to one of those that a call is meant for. The others of a group have it from calls of their own.
fn make(sending: Sending, passed: Passed, call: u16, args: &[u64; 6]) {
    if sending.is_to_one() {
        raw::call(u64::from(call), *args);
    } else {
        let [receiver, signal] = [passed.receiver, passed.signal].map(u64::from);
        raw::call(nr::KILL, [receiver, signal, 0, 0, 0, 0]);
    }
}

/// A call that sends a signal. One behind the log's end was made before, on the host that was lost, if the log says that
/// its signal was got: whoever has got it does not get it again.
pub(crate) fn called(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    dispatch::fed_by(t, regs, row, |args| {
        let was_made = log::now() == Mode::Live && was_made(t, row.nr, args);
        let result = if was_made {
            0
        } else {
            dispatch::perform(t, regs, args)
        };
        (result, 0)
    })
}

/// Whether the log says that a call's signal was got; then sends it to those of a group who have not.
fn was_made(t: &ThreadBlock, call: u16, args: &[u64; 6]) -> bool {
    let sending = Sending::of(call, args);
    let mut was_made = false;
    sending.to_each(t, |passed| {
        was_made |= alone(t, || sent_signals::was_got(passed));
    });
    if was_made {
        send(t, call, args);
    }
    was_made
}

/// Whether a signal is pending for the caller that a handler of the application's waits for, and that its mask lets
/// through.
pub(crate) fn one_waits(t: &ThreadBlock) -> bool {
    let let_through = pending() & !t.mask.load(Relaxed);
    (1..=64).any(|signal| {
        let handler = || tables::of(t).action(signal).0[0];
        let_through & 1 << (signal - 1) != 0 && !matches!(handler(), SIG_DFL | SIG_IGN)
    })
}

/// Replay has ended for the caller. Children that ended in it caused signals; those that have been waited for do not
/// count.
pub(crate) fn go_live() {
    const WAIT: u64 = 0x0100_0005; // WNOHANG, WEXITED, WNOWAIT
    if log::now() == Mode::Replay || pending() & 1 << (SIGCHLD - 1) == 0 {
        return;
    }
    let info = [0_u64; 16];
    raw::call(nr::WAITID, [0, 0, info.as_ptr() as u64, WAIT, 0, 0]);
    // Nobody has ended: the kernel leaves the siginfo empty.
    if user::read::<u32>(info.as_ptr() as u64).unwrap_or(0) == 0 {
        take_oldest(SIGCHLD);
    }
}
