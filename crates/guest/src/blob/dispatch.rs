//! From the hook to the code of a call, as its row in the table says.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use eventlog::record::Header;
use guest::abi::{ThreadBlock, failure, trap};
use sysabi::{Class, Object, Syscall};

use crate::calls::{self, memory, output};
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::order::{self, DESCRIPTORS, Held};
use crate::raw::{self, nr};
use crate::shapes::Shape;
use crate::signals::{self, Interrupted};
use crate::thread::{self, control};
use crate::{
    backlog, baton, connections, debts, delivery, descriptors, pace, replayed_signals, starved,
};

/// The entry code calls this with the saved registers; what it returns goes to rax.
pub(crate) extern "C" fn on_syscall(regs: &mut Regs) -> i64 {
    let t = thread::current();
    const SIGPROCMASK: u64 = 14;
    let call = regs.rax;
    debts::before(t, call);
    baton::leave(t);
    let result = match sysabi::lookup(call) {
        Some(row) => {
            let unlogged = leaves_no_record(regs, row);
            delivery::at_entry(t, regs, unlogged);
            if unlogged {
                t.unlogged.fetch_add(1, Relaxed);
            }
            route(t, regs, row)
        }
        None => -raw::ENOSYS,
    };
    if changes_the_process(call) {
        control().changes.fetch_add(1, Release);
    }
    hold_if_asked(t);
    regs.rax = result.cast_unsigned();
    delivery::at_exit(t, regs);
    if call == SIGPROCMASK {
        delivery::at_exit_of_mask(t, regs);
    }
    regs.flags = starved::flags(t, regs.flags);
    baton::go_on(t);
    result
}

/// Calls that change what a checkpoint has of a process without its memory, its registers and the log. See
/// [`guest::abi::Control::changes`]; signal actions are counted where they are set.
fn changes_the_process(call: u64) -> bool {
    // chdir, fchdir, umask, setpgid, setsid, sigaltstack, prctl (the name), set_tid_address
    matches!(call, 80 | 81 | 95 | 109 | 112 | 131 | 157 | 218)
}

/// Calls that leave no record: they are counted, so that a signal between them finds its place again.
fn leaves_no_record(regs: &Regs, row: &Syscall) -> bool {
    // rt_sigaction, rt_sigprocmask, recvmmsg, sendmmsg, rseq
    matches!(row.class, Class::Unlogged | Class::Refused) && !is_logged(regs, row)
        || matches!(row.nr, 13 | 14 | 299 | 307 | 334)
}

/// Whether a call that leaves no record else does so where one thread runs at a time: futex. But not the wait for the end
/// of a thread, whose word the kernel clears when it likes: how often that is looked at may differ.
fn is_logged(regs: &Regs, row: &Syscall) -> bool {
    const PRIVATE: u64 = 128;
    const COMMAND: u64 = 127;
    const WAIT: u64 = 0;
    const WAIT_BITSET: u64 = 9;
    let waits = matches!(regs.rsi & COMMAND, WAIT | WAIT_BITSET);
    u64::from(row.nr) == nr::FUTEX && baton::is_asked_for() && (!waits || regs.rsi & PRIVATE != 0)
}

/// The host holds a thread here to take a checkpoint: its call is done and recorded.
#[inline(always)]
pub(crate) fn hold_if_asked(t: &ThreadBlock) {
    if t.stop.load(Relaxed) != 0 {
        settle(t);
    }
}

/// Waits, in the image, too, until the host no longer asks. Not by a trap: the host may give up and let go
/// at any moment, and a trap without a tracer kills. Others get the processor: the host has put all threads before the
/// rest of the system, and one of them may have something that the host waits for.
#[cold]
fn settle(t: &ThreadBlock) {
    baton::leave_at_cut(t);
    t.why.store(trap::SETTLED, Release);
    let mut spins = 0;
    while t.stop.load(Acquire) != 0 {
        order::pause(&mut spins);
    }
    t.why.store(0, Release);
}

/// Traps to the host, which lets the thread go on when it is done.
#[cold]
pub(crate) fn hold(t: &ThreadBlock, why: u64) {
    t.why.store(why, Relaxed);
    // SAFETY: a breakpoint; the host that injected the guest traces this thread and continues it.
    unsafe { core::arch::asm!("int3") };
    t.why.store(0, Relaxed);
}

fn route(t: &ThreadBlock, regs: &mut Regs, row: &'static Syscall) -> i64 {
    if let Some(result) = calls::special(t, regs, row) {
        return result;
    }
    match row.class {
        Class::Fed => fed(t, regs, row),
        Class::Suppressed => output::suppressed(t, regs, row),
        Class::Ordered(Object::Memory) => memory::ordered(t, regs, row),
        Class::Executed | Class::Ordered(_) => executed(t, regs, row),
        // Whom it wakes, and whether it sleeps at all, would be another in replay.
        Class::Unlogged if is_logged(regs, row) => fed(t, regs, row),
        Class::Unlogged => unlogged(t, regs),
        Class::Filtered => fed(t, regs, row),
        Class::Refused => refuse(row),
    }
}

/// Answers ENOSYS and notes the call, so that the host names it once.
pub(crate) fn refuse(row: &Syscall) -> i64 {
    let word = usize::from(row.nr / 64);
    let bit = 1_u64 << (row.nr % 64);
    if let Some(refused) = control().refused.get(word)
        && refused.fetch_or(bit, AcqRel) & bit == 0
    {
        crate::ring::wake_drainer();
    }
    -raw::ENOSYS
}

/// A command that the table does not know: ENOTTY for an ioctl, EINVAL for the others.
fn unknown_command(row: &Syscall) -> i64 {
    const ENOTTY: i64 = 25;
    if row.nr == 16 { -ENOTTY } else { -raw::EINVAL }
}

/// Makes a call that may block. Our own stops are not seen; a signal that restarts it leaves the hook.
pub(crate) fn perform(t: &ThreadBlock, regs: &Regs, args: &[u64; 6]) -> i64 {
    loop {
        baton::leave(t);
        let result = raw::call_blocking(regs.rax, args, &t.pending);
        if result == raw::NOT_MADE {
            delivery::deliver_before(t, regs);
        }
        if result != -raw::EINTR {
            return result;
        }
        match signals::interrupted(t, regs.rax) {
            Interrupted::Retry => {}
            Interrupted::Restart => delivery::deliver_before(t, regs),
            Interrupted::Report => return result,
        }
    }
}

/// Class `Fed`: executed and logged, or answered from the log.
#[inline]
pub(crate) fn fed(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    if row.object() == Some(Object::Descriptors) {
        changing_descriptors(t, regs, row, |_| {})
    } else {
        fed_by(t, regs, row, |args| (perform(t, regs, args), 0))
    }
}

/// As [`fed`], made live by `make`, which gives the result and the version of the changed object.
#[inline(always)]
pub(crate) fn fed_by(
    t: &ThreadBlock,
    regs: &Regs,
    row: &'static Syscall,
    make: impl FnOnce(&[u64; 6]) -> (i64, u64),
) -> i64 {
    let Some((args, shape)) = shaped(regs, row) else {
        return unknown_command(row);
    };
    if let Some((result, _)) = answer_of_log(t, &shape) {
        descriptors::note(t, row, &args, result);
        replayed_signals::note(t, row, &args, result);
        return result;
    }
    let (result, version) = make(&args);
    const CONNECT: u16 = 42;
    if row.nr == CONNECT {
        connections::adopt(t, row, &args, result);
    }
    if log::now() == Mode::Record {
        // Of recvfrom, its flags: what is peeked at is not read.
        let version = if row.nr == 45 { args[3] } else { version };
        record(t, &shape, result, version);
    }
    descriptors::note(t, row, &args, result);
    result
}

/// A call's arguments as they are made, and what goes into its record; `None` for a command that the table does not know.
#[inline(always)]
fn shaped(regs: &Regs, row: &'static Syscall) -> Option<([u64; 6], Shape)> {
    let mut args = regs.args();
    clamp(row.nr, &mut args);
    Some((args, Shape::of(row, args)?))
}

/// In replay, result and version from the log, with the call's buffers filled; `None` where the log has ended.
#[inline(always)]
fn answer_of_log(t: &ThreadBlock, shape: &Shape) -> Option<(i64, u64)> {
    if log::now() != Mode::Replay {
        return None;
    }
    let taken = log::take(t, shape.row.nr)?;
    shape.check(&taken);
    shape.fill(&taken);
    let answer = (taken.header.result, taken.header.version);
    taken.finish();
    Some(answer)
}

/// A call that changes the descriptor table: all that is known of its descriptors changes at its place in the table's
/// order, in replay, too, where `change` is told its result. A number that one thread gives back may be another's before
/// the first has come out of the call.
pub(crate) fn changing_descriptors(
    t: &ThreadBlock,
    regs: &Regs,
    row: &'static Syscall,
    change: impl FnOnce(i64),
) -> i64 {
    let Some((args, shape)) = shaped(regs, row) else {
        return unknown_command(row);
    };
    if let Some((result, version)) = answer_of_log(t, &shape) {
        in_turn(t, version, || {
            descriptors::note(t, row, &args, result);
            replayed_signals::note(t, row, &args, result);
            change(result);
        });
        return result;
    }
    let Changed {
        result,
        version,
        held,
    } = change_descriptors(t, regs, &args);
    if matches!(row.nr, 43 | 288) {
        connections::adopt(t, row, &args, result);
    }
    if log::now() == Mode::Record {
        record(t, &shape, result, version);
    }
    descriptors::note(t, row, &args, result);
    change(result);
    drop(held);
    result
}

/// What came of a call that changes the descriptor table.
pub(crate) struct Changed {
    pub(crate) result: i64,
    /// Its place in the table's order, 0 if it changed nothing.
    pub(crate) version: u64,
    /// The order's lock: until the change is in the log, and all that is known of the descriptors is changed.
    pub(crate) held: Option<Held<'static>>,
}

/// Makes such a call. One that may block gets its place on return; whoever gives a number back holds the lock while it
/// does.
pub(crate) fn change_descriptors(t: &ThreadBlock, regs: &Regs, args: &[u64; 6]) -> Changed {
    const CLOSE: u64 = 3;
    const DUP2: u64 = 33;
    let lock = || order::lock(t, &DESCRIPTORS);
    let mut held = matches!(regs.rax, CLOSE | DUP2 | nr::DUP3 | nr::CLOSE_RANGE).then(lock);
    let result = if held.is_some() {
        raw::call(regs.rax, *args)
    } else if backlog::waits_for(regs.rax) {
        backlog::accept(t, regs, args)
    } else {
        perform(t, regs, args)
    };
    let version = if result < 0 {
        0
    } else {
        held.get_or_insert_with(lock).stamp()
    };
    Changed {
        result,
        version,
        held,
    }
}

/// In replay: changes the descriptor table when it is the turn of change number `version`; at once if that is 0.
pub(crate) fn in_turn(t: &ThreadBlock, version: u64, change: impl FnOnce()) {
    let has_turn = version != 0 && order::await_turn(t, &DESCRIPTORS, version);
    change();
    if has_turn {
        DESCRIPTORS.version.store(version, Release);
    }
}

/// Logs a call with its result and buffers.
#[inline(always)]
pub(crate) fn record(t: &ThreadBlock, shape: &Shape, result: i64, version: u64) {
    let header = Header {
        kind: shape.row.nr,
        hash: shape.hash(),
        result,
        arg0: shape.args[0] as u32,
        version,
        payload_len: shape.payload_len(result) as u32,
        ..Header::default()
    };
    let mut w = log::begin(t, header);
    shape.write(result, &mut w);
    w.commit(false);
}

/// Keeps a call's payload below the most that one record holds: a shorter transfer is always allowed. Nothing that a call
/// does not look at is left in its arguments.
fn clamp(call: u16, args: &mut [u64; 6]) {
    const MOST: u64 = (eventlog::record::MAX_PAYLOAD - 4096) as u64;
    // read, pread64, recvfrom, getdents, getdents64, getrandom carry their length in a known place.
    match call {
        0 | 17 | 45 | 78 | 217 => args[2] = args[2].min(MOST),
        318 => args[1] = args[1].min(MOST),
        202 => clear_unused(args),
        _ => {}
    }
}

/// Clears what a futex call does not look at: whatever was in those registers, and in the upper halves of those that hold
/// 32 bits (futex(2)).
fn clear_unused(args: &mut [u64; 6]) {
    const NUMBERS: [usize; 3] = [1, 2, 5];
    const COMMAND: u64 = 127;
    let unused: &[usize] = match args[1] & COMMAND {
        // WAIT, WAKE, REQUEUE, WAIT_BITSET, WAKE_BITSET
        0 => &[4, 5],
        1 => &[3, 4, 5],
        3 => &[5],
        9 => &[4],
        10 => &[3, 4],
        _ => &[],
    };
    for &index in unused {
        args[index] = 0;
    }
    for index in NUMBERS {
        args[index] = u64::from(args[index] as u32);
    }
}

/// Class `Executed`: made on both sides; the application gets the logged result.
pub(crate) fn executed(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let args = regs.args();
    let Some(shape) = Shape::of(row, args) else {
        return unknown_command(row);
    };
    if log::now() == Mode::Replay
        && let Some(taken) = log::take(t, row.nr)
    {
        shape.check(&taken);
        let result = taken.header.result;
        if result >= 0 {
            raw::call(regs.rax, args);
        }
        shape.fill(&taken);
        taken.finish();
        return result;
    }
    let result = perform(t, regs, &args);
    if log::now() == Mode::Record {
        record(t, &shape, result, 0);
    }
    result
}

/// Class `Unlogged`: made on both sides.
fn unlogged(t: &ThreadBlock, regs: &Regs) -> i64 {
    let args = regs.args();
    loop {
        let result = pace::while_asleep(t, regs.rax == nr::FUTEX, || {
            raw::call_blocking(regs.rax, &args, &t.pending)
        });
        if !matches!(result, raw::NOT_MADE | raw::INTERRUPTED) {
            return result;
        }
        if t.pending.load(Relaxed) != 0 {
            t.unlogged.fetch_sub(1, Relaxed);
            delivery::deliver_before(t, regs);
        }
    }
}

/// Stops replay: a call it executes came out differently.
pub(crate) fn wrong_result(t: &ThreadBlock, expected: i64, actual: i64) -> ! {
    log::diverge(
        t,
        failure::RESULT,
        expected.cast_unsigned(),
        actual.cast_unsigned(),
    )
}
