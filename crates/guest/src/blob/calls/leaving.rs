//! How a thread or a process leaves its program, for another or for good, and how its parent learns of it.

use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use eventlog::record::{Header, kind};
use guest::abi::{MAX_SLOTS, Slot, ThreadBlock, request, slot};
use sysabi::Syscall;

use crate::dispatch::{self, wrong_result};
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::order::Held;
use crate::raw::{self, nr};
use crate::shapes::Shape;
use crate::thread::{self, control, slot_of};
use crate::{
    baton, connections, heap, init, order, ring, signals, stacks, streams, tables, user, vdso,
};

/// `execve`, `execveat`: the host attaches first, so that it can inject the guest into the next image.
pub(crate) fn exec(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let Some(shape) = Shape::of(row, regs.args()) else {
        return -raw::EINVAL;
    };
    if log::now() == Mode::Replay {
        let failed = match log::peek_behind(t) {
            Some(next) => next.header.kind != kind::EXEC,
            None => true,
        };
        if failed && let Some(taken) = log::take(t, row.nr) {
            shape.check(&taken);
            let result = taken.header.result;
            taken.finish();
            return result;
        }
    }
    if log::now() == Mode::Replay {
        // It ends this process's other threads.
        await_others(t, |other| other == t.pid.load(Relaxed));
    }
    signals::block_all();
    init::hand_over(t);
    let ring = slot_of(t.slot.load(Relaxed));
    ask(&ring.request, request::EXEC, request::GRANTED);
    let nobody_prints = nobody_prints(t, false);
    signals::bequeath(t);
    let result = raw::call(regs.rax, regs.args());
    drop(nobody_prints);
    ask(&ring.request, request::EXEC_FAILED, request::NONE);
    signals::unblock(t);
    match log::now() {
        Mode::Record => dispatch::record(t, &shape, result, 0),
        Mode::Replay => wrong_result(t, 0, result),
        Mode::Live => {}
    }
    result
}

/// Keeps those from printing whom this thread is about to end: they would have printed what is in no log. Not for ever:
/// one may be blocked, in a pipe that nobody reads.
fn nobody_prints(t: &ThreadBlock, everywhere: bool) -> Option<Held<'static>> {
    const CLOCK_MONOTONIC: u64 = 1;
    const LONG_ENOUGH_NS: i64 = 100_000_000;
    if log::now() != Mode::Record || !everywhere && has_no_siblings(t) {
        return None;
    }
    let begun = vdso::clock(CLOCK_MONOTONIC);
    let is_enough = || vdso::clock(CLOCK_MONOTONIC) - begun > LONG_ENOUGH_NS;
    order::lock_unless(t, &control().stdio, is_enough)
}

/// Whether a thread is the only one of its process.
fn has_no_siblings(t: &ThreadBlock) -> bool {
    rings_of(t.pid.load(Relaxed).into()).count() < 2
}

/// Asks the host for something and waits for the answer.
fn ask(word: &core::sync::atomic::AtomicU32, question: u32, answer: u32) {
    const LOOK_AGAIN_NS: u64 = 2_000_000;
    word.store(question, SeqCst);
    ring::wake_drainer();
    loop {
        let now = word.load(Acquire);
        if now == answer {
            return;
        }
        raw::futex_wait_for(word, now, LOOK_AGAIN_NS);
    }
}

/// `exit`: one thread leaves.
pub(crate) fn exit(t: &ThreadBlock, regs: &Regs) -> i64 {
    let status = regs.rdi;
    signals::block_all();
    stacks::trim(regs.rsp);
    heap::thread_exits(t);
    streams::thread_ends(t);
    leave(t, status, 0);
    baton::leave(t);
    thread::exit_thread(status)
}

/// `exit_group`: the process leaves.
pub(crate) fn exit_group(t: &ThreadBlock, status: u64) -> i64 {
    signals::block_all();
    let first = is_first(t);
    let nobody_prints = nobody_prints(t, first);
    if first && let Some(held) = nobody_prints {
        // Others run on until init has seen this end.
        held.keep_for_good();
    }
    leave(t, status, 1);
    baton::leave(t);
    raw::abort(status)
}

fn leave(t: &ThreadBlock, status: u64, group: u32) {
    if group != 0 {
        connections::release_all(tables::of(t));
    }
    match log::now() {
        Mode::Record => {
            let header = Header {
                kind: kind::EXIT,
                result: status.cast_signed(),
                arg0: group,
                ..Header::default()
            };
            log::begin(t, header).commit(true);
        }
        Mode::Replay => {
            if let Some(taken) = log::take(t, kind::EXIT) {
                if taken.header.result != status.cast_signed() {
                    wrong_result(t, taken.header.result, status.cast_signed());
                }
                taken.finish();
                if group != 0 {
                    let (own, ends_all) = (t.pid.load(Relaxed), is_first(t));
                    await_others(t, |other| ends_all || other == own);
                }
            }
        }
        Mode::Live => {}
    }
    slot_of(t.slot.load(Relaxed))
        .state
        .store(slot::DONE, Release);
    ring::wake_drainer();
}

/// Whether this is the container's first process, whose end is that of all others.
fn is_first(t: &ThreadBlock) -> bool {
    const FIRST_STREAM: u32 = 1;
    let first = slot_of(0);
    first.stream.load(Relaxed) == FIRST_STREAM && first.pid.load(Relaxed) == t.pid.load(Relaxed)
}

/// Waits in replay until the other threads of some processes have come to the ends of their logs.
fn await_others(t: &ThreadBlock, of_process: impl Fn(u32) -> bool) {
    let mine = t.slot.load(Relaxed);
    let mut spins = 0;
    for index in (0..MAX_SLOTS as u32).filter(|i| *i != mine) {
        let s = slot_of(index);
        while matches!(
            s.state.load(Acquire),
            slot::LIVE | slot::WAITING | slot::EARLY
        ) && of_process(s.pid.load(Relaxed))
            && !(s.end.load(Acquire) != 0 && s.tail.load(Acquire) == s.head.load(Acquire))
            && log::now() == Mode::Replay
        {
            order::pause(&mut spins);
        }
    }
}

/// `wait4`, `waitid`: answered from the log; a child that the log says is gone is reaped for real.
pub(crate) fn wait(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    const WNOWAIT: u64 = 0x0100_0000;
    const WAIT4: u16 = 61;
    let replaying = log::now() == Mode::Replay;
    let result = dispatch::fed(t, regs, row);
    if !replaying || log::now() != Mode::Replay {
        return result;
    }
    if result == -raw::ECHILD {
        // One whose end nobody wants to know: it has ended by now in replay, too.
        const P_PID: u64 = 1;
        let child = match row.nr {
            WAIT4 => regs.rdi,
            _ if regs.rdi == P_PID => regs.rsi,
            _ => 0,
        };
        if child as i32 > 0 {
            reap(t, child, false);
        }
        return result;
    }
    let (child, ended, killed) = if row.nr == WAIT4 {
        let status = if regs.rsi == 0 {
            0
        } else {
            user::read::<i32>(regs.rsi).unwrap_or(0)
        };
        let stopped = status & 0xff == 0x7f || status == 0xffff;
        (result, result > 0 && !stopped, status & 0x7f != 0)
    } else {
        const SI_PID: u64 = 16;
        const SI_CODE: u64 = 8;
        let word = |at| {
            if regs.rdx == 0 {
                0
            } else {
                user::read::<i32>(regs.rdx + at).unwrap_or(0)
            }
        };
        let code = word(SI_CODE);
        let ended =
            result == 0 && word(SI_PID) > 0 && (1..=3).contains(&code) && regs.r10 & WNOWAIT == 0;
        (i64::from(word(SI_PID)), ended, code != 1)
    };
    if ended {
        reap(t, child.cast_unsigned(), killed);
    }
    result
}

fn reap(t: &ThreadBlock, child: u64, killed: bool) {
    const SIGKILL: u64 = 9;
    const WALL: u64 = 0x4000_0000;
    if killed {
        await_others(t, |pid| u64::from(pid) == child);
        raw::call(nr::KILL, [child, SIGKILL, 0, 0, 0, 0]);
    }
    const WNOHANG: u64 = 1;
    let mut spins = 0;
    loop {
        let result = raw::call(nr::WAIT4, [child, 0, WALL | WNOHANG, 0, 0, 0]);
        if result != 0 && result != -raw::EINTR {
            return rings_of(child).for_each(|s| s.state.store(slot::DONE, Release));
        }
        // The application may not have asked how it ended: one that stands at its log's end was killed.
        if is_parked(child) {
            raw::call(nr::KILL, [child, SIGKILL, 0, 0, 0, 0]);
        }
        if log::now() != Mode::Replay {
            return;
        }
        order::pause(&mut spins);
    }
}

/// Whether a process has threads, and all of them stand at the ends of their logs.
fn is_parked(process: u64) -> bool {
    rings_of(process).next().is_some() && has_nothing_left(process as u32)
}

/// Whether all threads of a process that was there stand at the ends of their logs, or have ended.
pub(crate) fn has_nothing_left(process: u32) -> bool {
    rings_of(process.into()).all(|s| s.state.load(Acquire) == slot::PARKED)
}

/// The processes of the container that are logged or replayed.
pub(crate) fn processes() -> impl Iterator<Item = u32> {
    let is_first = |s: &&Slot| {
        let process = s.pid.load(Relaxed);
        rings_of(process.into())
            .next()
            .is_some_and(|first| ptr::eq(first, *s))
    };
    let rings = (0..MAX_SLOTS as u32).map(slot_of);
    rings.filter(is_first).map(|s| s.pid.load(Relaxed))
}

/// The process that a thread belongs to, 0 if it is none of the container's.
pub(crate) fn process_of(thread: u32) -> u32 {
    let mut rings = (0..MAX_SLOTS as u32).map(slot_of);
    let is_its =
        |s: &&'static Slot| s.state.load(Acquire) != slot::FREE && s.tid.load(Relaxed) == thread;
    rings.find(is_its).map_or(0, |s| s.pid.load(Relaxed))
}

/// The rings of a process's threads that have not ended.
fn rings_of(process: u64) -> impl Iterator<Item = &'static Slot> {
    let rings = (0..MAX_SLOTS as u32).map(slot_of);
    rings.filter(move |s| {
        let state = s.state.load(Acquire);
        let used = !matches!(state, slot::FREE | slot::CLAIMED | slot::DONE);
        used && u64::from(s.pid.load(Relaxed)) == process
    })
}
