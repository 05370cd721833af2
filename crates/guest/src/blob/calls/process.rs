//! Threads and processes: made on both sides with the same numbers, ended on both sides.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use eventlog::record::{Header, kind};
use guest::abi::{ThreadBlock, slot};
use sysabi::Syscall;

use crate::dispatch::{self, wrong_result};
use crate::entry::{self, Regs};
use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::thread::{self, control, slot_of};
use crate::{
    connections, heap, init, joins, onces, order, pace, sent_signals, signals, stacks, streams,
    tables, unwinding, user,
};

const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_DETACHED: u64 = 0x40_0000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
/// New namespaces of any kind, and cgroup placement.
const CLONE_REFUSED: u64 = 0x7e02_0080 | 0x2_0000_0000 | CLONE_PIDFD;
const SIGCHLD: u64 = 17;

/// `struct clone_args`, as words.
const CLONE_ARGS_WORDS: usize = 11;
const CLONE_ARGS_LEN: u64 = CLONE_ARGS_WORDS as u64 * 8;
const CHILD_TID: usize = 2;
const TLS: usize = 7;
const SET_TID: usize = 8;
const SET_TID_SIZE: usize = 9;

/// What is to be made, whichever call asked for it.
struct Wanted {
    /// As `clone3` takes it.
    args: [u64; CLONE_ARGS_WORDS],
    /// Where the child's stack pointer starts; 0 to go on with the parent's.
    stack_top: u64,
}

impl Wanted {
    fn of(regs: &Regs) -> Result<Self, i64> {
        let mut args = [0_u64; CLONE_ARGS_WORDS];
        match regs.rax {
            nr::FORK => args[4] = SIGCHLD,
            nr::VFORK => (args[0], args[4]) = (CLONE_VM | CLONE_VFORK, SIGCHLD),
            nr::CLONE => {
                // musl passes CLONE_DETACHED, which clone ignores and clone3 refuses.
                args[0] = regs.rdi & 0xffff_ff00 & !CLONE_DETACHED;
                (args[2], args[3], args[4]) = (regs.r10, regs.rdx, regs.rdi & 0xff);
                if regs.rsi != 0 {
                    (args[5], args[6]) = (regs.rsi - 16, 16);
                }
                args[7] = regs.r8;
            }
            _ => {
                let len = regs.rsi.min(CLONE_ARGS_LEN);
                if regs.rsi < 64 || regs.rsi > CLONE_ARGS_LEN {
                    return Err(-raw::EINVAL);
                }
                user::copy(args.as_mut_ptr() as u64, regs.rdi, len).map_err(|_| -raw::EFAULT)?;
            }
        }
        if args[0] & CLONE_REFUSED != 0 || args[SET_TID_SIZE] != 0 {
            return Err(-raw::EPERM);
        }
        let stack_top = if args[5] == 0 { 0 } else { args[5] + args[6] };
        Ok(Self { args, stack_top })
    }

    const fn has(&self, flag: u64) -> bool {
        self.args[0] & flag != 0
    }
}

/// `clone`, `fork`, `vfork`, `clone3`. All are made as `clone3`.
pub(crate) fn clone(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let wanted = match Wanted::of(regs) {
        Ok(wanted) => wanted,
        Err(errno) => return errno,
    };
    let _turn = heap::before_clone(t, wanted.has(CLONE_VM), wanted.has(CLONE_VFORK));
    if log::now() == Mode::Replay
        && let Some(result) = replay(t, regs, row, &wanted)
    {
        return result;
    }
    spawn_recorded(t, regs, row, wanted)
}

/// What the log has of a call: an intent that names the child's stream, for whatever the child does may be seen
/// before this thread goes on, and then the result. `None` when the log ends before the call.
fn replay(t: &ThreadBlock, regs: &Regs, row: &'static Syscall, wanted: &Wanted) -> Option<i64> {
    let announced = log::peek_behind(t).is_some_and(|next| next.header.kind == kind::INTENT);
    if !announced {
        // It failed before there was a child.
        let taken = log::take(t, row.nr)?;
        let result = taken.header.result;
        taken.finish();
        return Some(result);
    }
    // From there on the child's time counts.
    let before = t.tsc.load(Relaxed);
    let intent = log::take(t, kind::INTENT)?;
    let stream = intent.value::<u32>(0);
    intent.check_value(4, wanted.args[0]);
    intent.finish();
    let known = log::peek(t).is_some();
    let result = if known {
        let taken = log::take(t, row.nr)?;
        let result = taken.header.result;
        taken.finish();
        result
    } else if let Some(number) = thread::born_in(stream) {
        number
    } else {
        // Nothing has come of it: it waits here, and is made live.
        let _ = log::take(t, row.nr);
        return None;
    };
    if result >= 0 {
        let replayed = Some((stream, result.cast_unsigned()));
        let got = spawn(t, regs, wanted, replayed, before);
        if got != result {
            wrong_result(t, result, got);
        }
    }
    Some(result)
}

fn spawn_recorded(t: &ThreadBlock, regs: &Regs, row: &Syscall, wanted: Wanted) -> i64 {
    let result = spawn(t, regs, &wanted, None, t.tsc.load(Relaxed));
    if log::now() == Mode::Record {
        let header = Header {
            kind: row.nr,
            result,
            payload_len: if result >= 0 { CHILD_LEN } else { 0 },
            ..Header::default()
        };
        let mut w = log::begin(t, header);
        if result >= 0 {
            w.value(t.child_stream.load(Relaxed));
            w.value(wanted.args[0]);
        }
        w.commit(false);
    }
    result
}

/// Bytes that a record has of a child: its stream and the flags it was made with.
const CHILD_LEN: u32 = 12;

/// Committed before the child runs.
fn intent(t: &ThreadBlock, call: u16, stream: u32, flags: u64) {
    let header = Header {
        kind: kind::INTENT,
        result: call.into(),
        payload_len: CHILD_LEN,
        ..Header::default()
    };
    let mut w = log::begin(t, header);
    w.value(stream);
    w.value(flags);
    w.commit(false);
}

/// Makes the child, after the record of the time `before`. In replay: with this stream and this number.
fn spawn(
    t: &ThreadBlock,
    regs: &Regs,
    wanted: &Wanted,
    replayed: Option<(u32, u64)>,
    before: u64,
) -> i64 {
    let Some(index) = thread::claim_slot() else {
        return -raw::EAGAIN;
    };
    pace::give_birth(index, before);
    let ring = slot_of(index);
    let stream = replayed.map_or_else(
        || control().next_stream.fetch_add(1, AcqRel),
        |(stream, _)| stream,
    );
    ring.stream.store(stream, Relaxed);
    if let Some((_, number)) = replayed {
        // Whoever waits for the child's log must know that there is one before the child says so itself.
        let own = wanted.has(CLONE_THREAD).then(|| t.pid.load(Relaxed));
        ring.pid.store(own.unwrap_or(number as u32), Relaxed);
    }
    let Some((block, own_tables)) = prepare_block(t, regs, wanted) else {
        ring.state.store(slot::FREE, Release);
        return -raw::EAGAIN;
    };
    for b in [t, block] {
        b.child_slot.store(index, Relaxed);
        b.child_stream.store(stream, Relaxed);
        b.child_is_new
            .store(u32::from(log::now() == Mode::Live), Relaxed);
    }
    if wanted.has(CLONE_CHILD_CLEARTID) {
        stacks::thread_begins(wanted.args[CHILD_TID]);
        if wanted.has(CLONE_SETTLS) {
            joins::thread_begins(wanted.args[TLS], wanted.args[CHILD_TID]);
        }
    }
    thread::prefault(index);
    signals::block_all();
    if wanted.has(CLONE_THREAD) {
        streams::thread_begins();
    }
    if log::now() == Mode::Record {
        intent(t, regs.rax as u16, stream, wanted.args[0]);
    }
    if !wanted.has(CLONE_THREAD) {
        control().forks.fetch_add(1, Release);
    }
    let forks = !wanted.has(CLONE_VM);
    let locks = forks.then(|| {
        (
            order::lock(t, &order::MEMORY),
            order::lock(t, &order::DESCRIPTORS),
        )
    });
    let lends = !forks && !wanted.has(CLONE_THREAD);
    ring.lent.store(u32::from(lends), Relaxed);
    ring.state.store(slot::LIVE, Release);
    if !wanted.has(CLONE_FILES) {
        connections::retain_all(tables::of(t));
    }
    let result = make(wanted, block, replayed.map(|(_, tid)| tid));
    drop(locks);
    if result > 0 && ring.stream.load(Relaxed) == stream {
        // The child may not have come to say so itself, and the host must know whose the ring is.
        let number = result as u32;
        let own = wanted.has(CLONE_THREAD).then(|| t.pid.load(Relaxed));
        let _ = ring.tid.compare_exchange(0, number, Relaxed, Relaxed);
        let _ = ring
            .pid
            .compare_exchange(0, own.unwrap_or(number), Relaxed, Relaxed);
    }
    if result < 0 && !wanted.has(CLONE_FILES) {
        connections::release_all(tables::of(t));
    }
    if result < 0 {
        ring.state.store(slot::FREE, Release);
    }
    if !forks && (result < 0 || wanted.has(CLONE_VFORK)) {
        if ring.stream.load(Relaxed) == stream {
            ring.lent.store(0, Release);
        }
        // A vfork child has called execve or ended by now: its block and tables are free again.
        thread::release_block(block);
        if let Some(set) = own_tables {
            tables::release_set(set);
        }
    }
    signals::unblock(t);
    result
}

/// The block the child starts on, and the set of tables that is its own.
fn prepare_block<'a>(
    t: &'a ThreadBlock,
    regs: &Regs,
    wanted: &Wanted,
) -> Option<(&'a ThreadBlock, Option<u32>)> {
    let shares = wanted.has(CLONE_VM);
    let block = if shares { thread::claim_block()? } else { t };
    let mut own_tables = None;
    if shares {
        block.inside.store(1, Relaxed);
        block.mask.store(t.mask.load(Relaxed), Relaxed);
        block.pid.store(
            if wanted.has(CLONE_THREAD) {
                t.pid.load(Relaxed)
            } else {
                0
            },
            Relaxed,
        );
        let set = if wanted.has(CLONE_FILES) {
            t.tables.load(Relaxed)
        } else {
            let Some(set) = tables::fork_set(t) else {
                thread::release_block(block);
                return None;
            };
            own_tables = Some(set);
            set
        };
        block.tables.store(set, Relaxed);
        if wanted.has(CLONE_VFORK) {
            heap::lend(t, block);
        }
    }
    let mut birth = *regs;
    if wanted.stack_top != 0 {
        birth.rsp = wanted.stack_top;
    }
    let _ = user::copy(
        block.birth.as_ptr() as u64,
        (&raw const birth) as u64,
        size_of::<Regs>() as u64,
    );
    Some((block, own_tables))
}

fn make(wanted: &Wanted, block: &ThreadBlock, tid: Option<u64>) -> i64 {
    let number = tid.unwrap_or(0) as u32;
    let mut args = wanted.args;
    if tid.is_some() {
        args[SET_TID] = (&raw const number) as u64;
        args[SET_TID_SIZE] = 1;
    }
    let call = |args: &[u64; CLONE_ARGS_WORDS]| {
        let a = [args.as_ptr() as u64, CLONE_ARGS_LEN, 0, 0, 0, 0];
        entry::clone_into(nr::CLONE3, &a, block)
    };
    let result = call(&args);
    if tid.is_some() && result == -raw::EPERM {
        // Privileges were dropped: the number comes right if replay makes children in the recorded order.
        args[SET_TID_SIZE] = 0;
        return call(&args);
    }
    result
}

/// The child's first code, on its own hook stack.
pub(crate) extern "C" fn child_started(block: &ThreadBlock) {
    // No place for a cut from its first instruction on: what it logs here has an effect on its memory, too.
    block.inside.store(1, Relaxed);
    let index = block.child_slot.load(Relaxed);
    let tid = raw::call(nr::GETTID, [0; 6]) as u32;
    let pid = raw::call(nr::GETPID, [0; 6]) as u32;
    let is_process = block.pid.load(Relaxed) != pid;
    let forked = is_process && block.tid.load(Relaxed) != 0;
    block.slot.store(index, Relaxed);
    block
        .stream
        .store(block.child_stream.load(Relaxed), Relaxed);
    block.position.store(0, Relaxed);
    block.tid.store(tid, Relaxed);
    block.pid.store(pid, Relaxed);
    for word in [
        &block.pending,
        &block.delivering,
        &block.follows,
        &block.held_back,
        &block.intended,
        &block.timer,
        &block.steps,
    ] {
        word.store(0, Relaxed);
    }
    block.hook_sp.store(block.hook_top.load(Relaxed), Relaxed);
    pace::inherit(block);
    if forked {
        // It was the parent that was asked to stop.
        block.stop.store(0, Relaxed);
        block.why.store(0, Relaxed);
        thread::keep_only(block);
        order::reset_owners();
        heap::after_fork();
        stacks::after_fork();
        unwinding::after_fork();
        onces::after_fork();
    }
    if is_process && block.child_is_new.load(Relaxed) != 0 {
        sent_signals::forget(block, pid);
    }
    let ring = slot_of(index);
    ring.tid.store(tid, Relaxed);
    ring.pid.store(pid, Relaxed);
    ring.block.store(block.this.load(Relaxed), Release);
    init::dispatch_on();
    match log::now() {
        Mode::Record => log::emit(
            block,
            Header {
                kind: kind::BIRTH,
                result: i64::from(tid),
                ..Header::default()
            },
        ),
        Mode::Replay => {
            if let Some(taken) = log::take(block, kind::BIRTH) {
                taken.finish();
            }
        }
        Mode::Live => {}
    }
    signals::unblock(block);
    block.inside.store(0, Relaxed);
    dispatch::hold_if_asked(block);
}

/// `setpgid`, `setsid`: replay makes them, too, so that whoever sends to a group reaches it.
pub(crate) fn regroup(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let replaying = log::now() == Mode::Replay;
    let result = dispatch::fed(t, regs, row);
    if replaying && result >= 0 && log::now() == Mode::Replay {
        raw::call(regs.rax, regs.args());
    }
    result
}
