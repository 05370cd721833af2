//! Calls that write: what they wrote is hashed, and in replay compared instead of written again.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use eventlog::payload::{AT_END, POSITIONED};
use eventlog::record::{Header, MAX_PAYLOAD, kind};
use guest::abi::{REPLAY_STDERR_FD, REPLAY_STDOUT_FD, ThreadBlock, failure};
use sysabi::{Arg, Len, Syscall};

use crate::calls::parts::{self, Part};
use crate::dispatch::{fed, perform};
use crate::entry::Regs;
use crate::log::{self, Mode, Taken};
use crate::order::Held;
use crate::raw::{self, nr};
use crate::shapes::{Run, Shape};
use crate::signals::{self, Interrupted};
use crate::tables::{self, Kind};
use crate::thread::{control, slot_of};
use crate::{baton, connections, delivery, order};

/// Class `Suppressed`.
pub(crate) fn suppressed(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let args = regs.args();
    let Some(data) = data_of(row, &args) else {
        return between_descriptors(t, regs, row, args);
    };
    let target = tables::of(t).kind(regs.rdi);
    if let Some(index) = connections::index_of(target) {
        let Some(shape) = Shape::of(row, args) else {
            return -raw::EINVAL;
        };
        return connections::write(t, &shape, data, index, dont_wait(row, &args));
    }
    // write, sendto
    if target == Kind::Internal && matches!(row.nr, 1 | 44) {
        let make = |part: Part| made(t, regs, row, part, target);
        return parts::in_parts(t, args, make, |rest| goes_on(t, row, rest));
    }
    made(t, regs, row, Part { args, done: 0 }, target)
}

/// Whether a write that was not whole is followed by another: that of a descriptor that blocks is.
fn goes_on(t: &ThreadBlock, row: &'static Syscall, rest: Part) -> bool {
    const F_GETFL: u64 = 3;
    const O_NONBLOCK: i64 = 0x800;
    if log::now() == Mode::Replay {
        if let Some(next) = log::peek(t) {
            let mut args = rest.args;
            let data = Run::Flat(args[1], args[2]);
            shorten(row, &mut args, data);
            let hash = Shape::of(row, args).map(|shape| shape.hash() ^ FOLLOWS);
            return next.header.kind == kind::INTENT && Some(next.header.hash) == hash;
        }
        log::await_end(t);
    }
    let flags = raw::call(nr::FCNTL, [rest.args[0], F_GETFL, 0, 0, 0, 0]);
    t.pending.load(Relaxed) == 0 && !dont_wait(row, &rest.args) && flags & O_NONBLOCK == 0
}

/// In the hash of an intent: it is of the same call as the one before.
const FOLLOWS: u16 = 0x5a5a;

/// One part of a call that writes.
fn made(t: &ThreadBlock, regs: &Regs, row: &'static Syscall, part: Part, target: Kind) -> i64 {
    let Part { mut args, done } = part;
    let Some(data) = data_of(row, &args) else {
        return -raw::EINVAL;
    };
    let mut first = [0; 2];
    let data = match target {
        Kind::Internal => shorten(row, &mut args, data),
        // A file that replay does not find is another kind there, and the call must be the same.
        Kind::File | Kind::Memory | Kind::Other if is_plain(row) => {
            shorten_vector(shorten(row, &mut args, data), &mut args, &mut first)
        }
        _ => data,
    };
    let Some(shape) = Shape::of(row, args) else {
        return -raw::EINVAL;
    };
    if log::now() == Mode::Replay
        && let Some(result) = replay(t, regs, &shape, data, target, done)
    {
        return result;
    }
    let record = log::now() == Mode::Record;
    if record && target == Kind::Internal {
        intent(t, &shape, data, done);
        t.intended.store(1, Relaxed);
    }
    let mut in_order = None;
    let (result, stamp) = if target == Kind::Internal {
        (parts::perform(t, regs, Part { args, done }), 0)
    } else if matches!(target, Kind::Stdout | Kind::Stderr) {
        let (result, held) = print_in_order(t, regs, &args);
        let stamp = held.stamp();
        in_order = Some(held);
        (result, stamp)
    } else {
        (perform(t, regs, &args), 0)
    };
    if record {
        log_output(t, &shape, result, written(data, result), target, stamp);
    }
    drop(in_order);
    t.intended.store(0, Relaxed);
    result
}

/// Writes to standard output or error; the result, and the order's lock: until it is in the log, so that nobody who takes
/// the lock ends this thread between the two. It is not kept while a signal is delivered.
fn print_in_order(t: &ThreadBlock, regs: &Regs, args: &[u64; 6]) -> (i64, Held<'static>) {
    loop {
        let held = order::lock(t, &control().stdio);
        baton::leave(t);
        let result = raw::call_blocking(regs.rax, args, &t.pending);
        let again = match result {
            raw::NOT_MADE => Interrupted::Restart,
            raw::INTERRUPTED => signals::interrupted(t, regs.rax),
            _ => Interrupted::Report,
        };
        if matches!(again, Interrupted::Report) {
            return (result, held);
        }
        drop(held);
        if matches!(again, Interrupted::Restart) {
            delivery::deliver_before(t, regs);
        }
    }
}

/// Calls that move bytes from one descriptor to another: sendfile, splice, tee, copy_file_range.
fn between_descriptors(t: &ThreadBlock, regs: &Regs, row: &'static Syscall, args: [u64; 6]) -> i64 {
    const SENDFILE: u16 = 40;
    let set = tables::of(t);
    let to = if row.nr == SENDFILE {
        set.kind(args[0])
    } else {
        set.kind(args[2])
    };
    match (connections::index_of(to), row.nr) {
        (Some(index), SENDFILE) => match Shape::of(row, args) {
            Some(shape) => connections::send_file(t, &shape, index),
            None => -raw::EINVAL,
        },
        // The others say EINVAL where they cannot, and their callers then copy.
        (Some(_), _) => -raw::EINVAL,
        // What is printed goes through the program's memory, where replay has it; what goes to a file, into the log.
        (None, _) if matches!(to, Kind::Stdout | Kind::Stderr) || to.is_real() => -raw::EINVAL,
        (None, _) => fed(t, regs, row),
    }
}

fn dont_wait(row: &Syscall, args: &[u64; 6]) -> bool {
    const MSG_DONTWAIT: u64 = 0x40;
    match row.nr {
        // sendto, sendmsg
        44 => args[3] & MSG_DONTWAIT != 0,
        46 => args[2] & MSG_DONTWAIT != 0,
        _ => false,
    }
}

/// The bytes a call writes, if the row says where they are.
fn data_of(row: &Syscall, args: &[u64; 6]) -> Option<Run> {
    for i in 0..6 {
        match row.args[i] {
            Arg::In(Len::Arg(n)) => return Some(Run::Flat(args[i], args[usize::from(n) % 6])),
            Arg::InVec => {
                let count = args[(i + 1) % 6];
                return Some(Run::Vector(
                    args[i],
                    count,
                    Run::vector_len(args[i], count).unwrap_or(0),
                ));
            }
            Arg::InMsg => {
                const VECTOR: u64 = 16;
                let [vector, count] =
                    crate::user::read::<[u64; 2]>(args[i] + VECTOR).unwrap_or([0, 0]);
                return Some(Run::Vector(
                    vector,
                    count,
                    Run::vector_len(vector, count).unwrap_or(0),
                ));
            }
            _ => {}
        }
    }
    None
}

/// Bytes of one write that its record holds.
const MOST: u64 = (MAX_PAYLOAD - 4096) as u64;

/// Keeps what one record has to hold below its limit: a plain write may always write less.
fn shorten(row: &Syscall, args: &mut [u64; 6], data: Run) -> Run {
    match (row.nr, data) {
        // write, pwrite64
        (1 | 18, Run::Flat(at, n)) => {
            args[2] = n.min(MOST);
            Run::Flat(at, args[2])
        }
        _ => data,
    }
}

/// Whether a call writes bytes and nothing beside them: write, pwrite64, writev, pwritev, pwritev2.
const fn is_plain(row: &Syscall) -> bool {
    matches!(row.nr, 1 | 18 | 20 | 296 | 328)
}

/// The same for a vector: as many of its pieces as fit, or a part of the first, which `first` then describes.
fn shorten_vector(data: Run, args: &mut [u64; 6], first: &mut [u64; 2]) -> Run {
    let Run::Vector(at, count, len) = data else {
        return data;
    };
    if len <= MOST {
        return data;
    }
    let (mut pieces, mut bytes) = (0, 0);
    let mut fits = true;
    data.each(|_, n| {
        fits &= bytes + n <= MOST;
        if fits {
            (pieces, bytes) = (pieces + 1, bytes + n);
        }
    });
    if pieces == 0 {
        data.each(|piece, n| {
            if first[1] == 0 {
                *first = [piece, n.min(MOST)];
            }
        });
        args[1] = first.as_ptr() as u64;
        args[2] = 1;
        return Run::Vector(args[1], 1, first[1]);
    }
    // Pieces of no length are passed over by `each`, and count here.
    let whole = (0..count).take_while(|n| Run::vector_len(at, n + 1).is_ok_and(|len| len <= bytes));
    args[2] = whole.count() as u64;
    Run::Vector(at, args[2], bytes)
}

/// Where in a file a call writes that says so itself.
fn position(row: &Syscall, args: &[u64; 6]) -> Option<u64> {
    const PWRITEV2: u16 = 328;
    const RWF_APPEND: u64 = 0x10;
    if !POSITIONED.contains(&row.nr) {
        return None;
    }
    let appends = row.nr == PWRITEV2 && args[5] & RWF_APPEND != 0;
    Some(if appends { AT_END } else { args[3] })
}

fn written(data: Run, result: i64) -> Run {
    let n = u64::try_from(result).unwrap_or(0).min(data.len());
    match data {
        Run::Flat(at, _) => Run::Flat(at, n),
        Run::Vector(at, count, _) => Run::Vector(at, count, n),
    }
}

fn intent_hash(shape: &Shape, done: u64) -> u16 {
    shape.hash() ^ if done == 0 { 0 } else { FOLLOWS }
}

/// Committed before the bytes can be seen by a reader inside the container.
fn intent(t: &ThreadBlock, shape: &Shape, data: Run, done: u64) {
    let len = data.len().min(MAX_PAYLOAD as u64);
    let header = Header {
        kind: kind::INTENT,
        hash: intent_hash(shape, done),
        result: i64::from(shape.row.nr),
        arg0: shape.args[0] as u32,
        payload_len: len as u32,
        ..Header::default()
    };
    let mut w = log::begin(t, header);
    data.each(|at, n| w.bytes(at, n));
    w.commit(false);
}

fn log_output(t: &ThreadBlock, shape: &Shape, result: i64, data: Run, target: Kind, stamp: u64) {
    let position = position(shape.row, &shape.args).filter(|_| target.is_real());
    let payload = match target {
        Kind::Stdout | Kind::Stderr => 8,
        Kind::File | Kind::Memory if data.len() == 0 => 0,
        Kind::File | Kind::Memory => data.len() + position.map_or(0, |_| 8),
        _ => 0,
    };
    let header = Header {
        kind: shape.row.nr,
        hash: shape.hash(),
        result,
        arg0: shape.args[0] as u32,
        version: if result > 0 { data.hash() } else { 0 },
        payload_len: payload as u32,
        ..Header::default()
    };
    let mut w = log::begin(t, header);
    match target {
        Kind::Stdout | Kind::Stderr => w.value(stamp),
        Kind::File | Kind::Memory if payload > 0 => {
            if let Some(position) = position {
                w.value(position);
            }
            data.each(|at, n| w.bytes(at, n));
        }
        _ => {}
    }
    // What is written here is not held back: nobody waits for the log.
    w.commit(false);
}

fn replay(
    t: &ThreadBlock,
    regs: &Regs,
    shape: &Shape,
    data: Run,
    target: Kind,
    done: u64,
) -> Option<i64> {
    let row = shape.row;
    // The image may have been taken behind the intent.
    if target == Kind::Internal && t.intended.swap(0, Relaxed) == 0 {
        let intent = log::take(t, kind::INTENT)?;
        intent.check_hash(intent_hash(shape, done));
        check_data(&intent, 0, data);
        intent.finish();
    }
    if target == Kind::Internal && done == 0 {
        // One that made the call begin anew.
        delivery::at_entry(t, regs, false);
    }
    let Some(taken) = log::take(t, row.nr) else {
        let settled = target == Kind::Internal;
        return settled.then(|| write_on(t, shape, data)).flatten();
    };
    taken.check_hash(shape.hash());
    let (result, logged) = (taken.header.result, taken.header.version);
    let data = written(data, result);
    if result > 0 && data.hash() != logged {
        log::diverge(t, failure::OUTPUT, logged, data.hash());
    }
    if matches!(target, Kind::File | Kind::Memory | Kind::Other) && is_plain(row) {
        let behind = position(row, &shape.args).map_or(0, |_| 8);
        check_data(&taken, behind, data);
    }
    // Before it is over: who waits for the end of this thread's log ends the thread.
    let stamp = taken.value::<u64>(0);
    match target {
        Kind::Stdout => print(t, REPLAY_STDOUT_FD, data, stamp),
        Kind::Stderr => print(t, REPLAY_STDERR_FD, data, stamp),
        Kind::Memory if result > 0 && is_plain(row) => write_again(shape, result),
        _ => {}
    }
    taken.finish();
    Some(result)
}

/// Writes to memory what was written.
fn write_again(shape: &Shape, result: i64) {
    let mut args = shape.args;
    // write, pwrite64
    if matches!(shape.row.nr, 1 | 18) {
        args[2] = result.cast_unsigned();
    }
    raw::call(u64::from(shape.row.nr), args);
}

/// Goes live in a write that was announced: behind what a reader has of it. `None` if that is nothing: it is made.
fn write_on(t: &ThreadBlock, shape: &Shape, data: Run) -> Option<i64> {
    let mut done = slot_of(t.slot.load(Relaxed)).settled.swap(0, AcqRel);
    if done == 0 {
        return None;
    }
    let rest = data.len().saturating_sub(done);
    data.part(done, rest).each(|at, n| {
        // A write may be cut short, and what was taken of it is its result then.
        let wrote = raw::call(nr::WRITE, [shape.args[0], at, n, 0, 0, 0]);
        done += u64::try_from(wrote).unwrap_or(0);
    });
    Some(done.cast_signed())
}

/// Compares the bytes that the log has of a write from an offset on, if it has any, with those that the program writes.
fn check_data(taken: &Taken<'_>, mut offset: u64, data: Run) {
    let len = data.len().min(MAX_PAYLOAD as u64);
    if taken.header.payload_len == 0 {
        return;
    }
    data.part(0, len).each(|at, n| {
        taken.check_bytes(offset, at, n);
        offset += n;
    });
}

/// Writes what the program printed, in the recorded order of all its processes.
fn print(t: &ThreadBlock, fd: i32, data: Run, stamp: u64) {
    let order = &control().stdio;
    if !order::await_turn(t, order, stamp) {
        return;
    }
    data.each(|mut at, mut n| {
        while n > 0 {
            let done = raw::call(nr::WRITE, [fd as u64, at, n, 0, 0, 0]);
            if done <= 0 {
                break;
            }
            at += done.cast_unsigned();
            n -= done.cast_unsigned();
        }
    });
    order.version.store(stamp, Release);
}
