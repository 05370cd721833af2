//! Signals that are pending in the kernel, in replay.
//!
//! The kernel holds all of them back then: those of the image, those that the container's processes send themselves and
//! one another, which they do again, and what ended children cause. One that the log says the program got is so no more.
//! What is left at the log's end goes live with the application's mask.

use core::sync::atomic::{
    AtomicI32, AtomicU32,
    Ordering::{AcqRel, Relaxed, Release},
};

use guest::abi::ThreadBlock;
use sysabi::Syscall;

use crate::calls::leaving;
use crate::dispatch;
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::tables::{self, Kind};
use crate::{order, user};

/// Signals that the log says the program got before it says that it sent them, by number: the sender's record is made
/// behind the call. Less than none where one that was sent was got in the place of one that the guest kept in the image.
static OWED: [AtomicI32; 65] = [const { AtomicI32::new(0) }; 65];

/// Length of a `struct signalfd_siginfo`.
const SIGNALFD_LEN: i64 = 128;
/// Where number, code and sender lie in it and, the first two, in a siginfo.
const CODE_AT: u64 = 8;
const SIGNALFD_SENDER_AT: u64 = 12;
const SIGINFO_SENDER_AT: u64 = 16;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
const SIGKILL: u64 = 9;
const SIGCHLD: u32 = 17;
const SIGSTOP: u64 = 19;

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
        // kill, rt_sigqueueinfo, tgkill, rt_tgsigqueueinfo
        62 | 129 | 234 | 297 if result == 0 => send(t, row.nr, args),
        _ => {}
    }
}

/// Held between a look at what is pending and what follows from it.
static LOOKING: AtomicU32 = AtomicU32::new(0);

fn alone(look: impl FnOnce()) {
    let mut spins = 0;
    while LOOKING.swap(1, AcqRel) != 0 {
        order::pause(&mut spins);
    }
    look();
    LOOKING.store(0, Release);
}

/// The program got a signal without a handler.
fn got(t: &ThreadBlock, signal: u32, info: u64, sender_at: u64) {
    await_sender(t, signal, info, sender_at);
    alone(|| {
        if !drop_one(signal) {
            comes_later(signal, info, sender_at);
        }
    });
}

/// A handler is to be given a signal with this siginfo: sends it by `send` if it is not pending.
pub(crate) fn make_pending(t: &ThreadBlock, signal: u32, info: u64, send: impl FnOnce()) {
    await_sender(t, signal, info, SIGINFO_SENDER_AT);
    alone(|| {
        if pending() & 1 << (signal - 1) == 0 {
            comes_later(signal, info, SIGINFO_SENDER_AT);
            send();
        }
    });
}

/// The process that sent a signal, 0 if none did.
fn sender(info: u64, sender_at: u64) -> u32 {
    const SI_USER: i32 = 0;
    const SI_QUEUE: i32 = -1;
    const SI_TKILL: i32 = -6;
    match user::read::<i32>(info + CODE_AT) {
        Ok(SI_USER | SI_QUEUE | SI_TKILL) => user::read(info + sender_at).unwrap_or(0),
        _ => 0,
    }
}

/// Another process of the container sends it, and has perhaps not come so far. Of several that it sent here, one may be
/// left: it is not waited for longer than that takes.
fn await_sender(t: &ThreadBlock, signal: u32, info: u64, sender_at: u64) {
    const LONG: u64 = 50_000_000;
    let sender = sender(info, sender_at);
    if sender == 0 || sender == t.pid.load(Relaxed) || !(1..=64).contains(&signal) {
        return;
    }
    let began = raw::cycles();
    order::await_that(t, || {
        pending() & 1 << (signal - 1) != 0
            || leaving::has_nothing_left(sender)
            || raw::cycles().saturating_sub(began) > LONG
    });
}

/// If the process itself sends it, it has not done so yet.
fn comes_later(signal: u32, info: u64, sender_at: u64) {
    owe(signal, info, sender_at, 1);
}

/// A handler is to be given a signal that the guest kept when the image was taken: it is not pending in the kernel, and
/// what the log says of its sender lies before the image.
pub(crate) fn was_kept(signal: u32, info: u64) {
    owe(signal, info, SIGINFO_SENDER_AT, -1);
}

fn owe(signal: u32, info: u64, sender_at: u64, one: i32) {
    let own = raw::call(nr::GETPID, [0; 6]);
    if i64::from(sender(info, sender_at)) == own
        && let Some(owed) = OWED.get(signal as usize)
    {
        owed.fetch_add(one, AcqRel);
    }
}

/// Takes one that was got already; false if there is none.
fn was_got(signal: u64) -> bool {
    let one_less = |owed: i32| (owed > 0).then_some(owed - 1);
    let owed = OWED.get(signal as usize);
    owed.is_some_and(|owed| owed.try_update(AcqRel, Relaxed, one_less).is_ok())
}

/// Makes one signal of a kind that is pending for the caller so no more: the oldest. False if there is none.
fn drop_one(signal: u32) -> bool {
    if !(1..=64).contains(&signal) {
        return true;
    }
    let (set, at_once) = (1_u64 << (signal - 1), [0_u64; 2]);
    let [set_at, at_once_at] = [(&raw const set) as u64, at_once.as_ptr() as u64];
    raw::call(nr::RT_SIGTIMEDWAIT, [set_at, 0, at_once_at, 8, 0, 0]) > 0
}

/// What a process of the container sends itself or another is pending again, unless it has been got already.
fn send(t: &ThreadBlock, call: u16, args: &[u64; 6]) {
    let signal = sent(call, args);
    // Whole groups are not told again.
    if args[0] as i32 <= 0 || matches!(signal, 0 | SIGKILL | SIGSTOP) {
        return;
    }
    if args[0] != u64::from(t.pid.load(Relaxed)) {
        raw::call(u64::from(call), *args);
        return;
    }
    alone(|| {
        if !was_got(signal) {
            raw::call(u64::from(call), *args);
        }
    });
}

/// The number of the signal that a call sends.
fn sent(call: u16, args: &[u64; 6]) -> u64 {
    // kill, rt_sigqueueinfo
    if matches!(call, 62 | 129) {
        args[1]
    } else {
        args[2]
    }
}

/// A call that sends a signal. Live, it is not made if the log's end lay between what it sent and its record.
pub(crate) fn called(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    dispatch::fed_by(t, regs, row, |args| {
        let to_itself = args[0] == u64::from(t.pid.load(Relaxed));
        let result = match to_itself && was_got(sent(row.nr, args)) {
            true => 0,
            false => dispatch::perform(t, regs, args),
        };
        (result, 0)
    })
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
        drop_one(SIGCHLD);
    }
}

/// In a fork child: nothing is owed to it.
pub(crate) fn after_fork() {
    LOOKING.store(0, Relaxed);
    for owed in &OWED {
        owed.store(0, Relaxed);
    }
}
