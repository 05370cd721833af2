//! Writes to a connection: into its buffer and into the log, then told to the host.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use eventlog::record::{Header, kind};
use guest::abi::{ARENA_BASE, Conn, ERROR_TOLD, OUTPUT_LEN, OUTPUTS_AT, ThreadBlock, failure};

use super::{LOOK_AGAIN_NS, entry, mark, room};
use crate::log::{self, Mode, Taken};
use crate::raw::{self, nr};
use crate::shapes::{Part, Run, Shape};
use crate::{baton, debts, epoll, order, user};

/// Bit 0 of an OUTPUT record's flags: more of the same call follows.
const MORE: u32 = 1;
/// Bit 1: the bytes themselves follow.
pub(super) const WITH_BYTES: u32 = 2;
/// Bytes of an OUTPUT record's payload before the bytes themselves.
pub(super) const OUTPUT_HEAD: u64 = 16;

/// A write to an owned connection.
pub(crate) fn write(t: &ThreadBlock, shape: &Shape, data: Run, index: u32, dont_wait: bool) -> i64 {
    let mut done = 0;
    if log::now() == Mode::Replay {
        match replay_write(t, shape, data, index, &mut done) {
            Some(result) => return result,
            None if done == data.len() && done > 0 => return done.cast_signed(),
            None => {}
        }
    }
    let c = entry(index);
    lock(c);
    let result = accept_output(t, shape, data, index, dont_wait, done);
    c.lock.store(0, Release);
    if result == -EPIPE {
        broken_pipe(t, shape);
    }
    result
}

pub(super) const EPIPE: i64 = 32;

pub(super) fn lock(c: &Conn) {
    let mut spins = 0;
    while c.lock.compare_exchange(0, 1, Acquire, Relaxed).is_err() {
        order::pause(&mut spins);
    }
}

fn accept_output(
    t: &ThreadBlock,
    shape: &Shape,
    data: Run,
    index: u32,
    dont_wait: bool,
    mut done: u64,
) -> i64 {
    let c = entry(index);
    if let Some(error) = broken(c) {
        return refuse(t, shape, error);
    }
    let len = data.len();
    loop {
        let n = (len - done).min(room(c));
        if n == 0 && done < len {
            if dont_wait || is_nonblocking(shape.args[0]) {
                if done > 0 {
                    return done.cast_signed();
                }
                epoll::mute(index, c);
                if room(c) == 0 {
                    return refuse(t, shape, -raw::EAGAIN);
                }
                continue;
            }
            wait_for_room(c);
            if let Some(error) = broken(c) {
                return refuse(t, shape, error);
            }
            continue;
        }
        let waits = done + n < len && !dont_wait && !is_nonblocking(shape.args[0]);
        if append(c, index, data, done, n).is_err() {
            return refuse(t, shape, -raw::EFAULT);
        }
        commit(
            t,
            shape,
            index,
            data.part(done, n),
            n,
            if waits { MORE } else { 0 },
        );
        done += n;
        if !waits {
            return done.cast_signed();
        }
    }
}

/// What a write is told that can go nowhere: once why the connection ended, which brings no signal, and from then on that
/// it has (`sk_stream_error` in the kernel's net/core/stream.c).
pub(super) fn broken(c: &Conn) -> Option<i64> {
    match c.error.load(Acquire) {
        0 if c.shut.load(Acquire) == 0 => None,
        0 => Some(-EPIPE),
        errno if errno & ERROR_TOLD != 0 => Some(-EPIPE),
        errno => {
            c.error.fetch_or(ERROR_TOLD, AcqRel);
            Some(-i64::from(errno))
        }
    }
}

/// A write of which nothing was taken.
pub(super) fn refuse(t: &ThreadBlock, shape: &Shape, result: i64) -> i64 {
    if log::now() == Mode::Record {
        let (hash, arg0) = (shape.hash(), shape.args[0] as u32);
        log::begin(
            t,
            Header {
                kind: kind::OUTPUT,
                hash,
                arg0,
                result,
                ..Header::default()
            },
        )
        .commit(false);
    }
    result
}

pub(super) fn broken_pipe(t: &ThreadBlock, shape: &Shape) {
    const MSG_NOSIGNAL: u64 = 0x4000;
    const SIGPIPE: u64 = 13;
    const TGKILL: u64 = 234;
    let quiet = match shape.row.nr {
        44 => shape.args[3] & MSG_NOSIGNAL != 0,
        46 => shape.args[2] & MSG_NOSIGNAL != 0,
        _ => false,
    };
    if !quiet && log::now() != Mode::Replay {
        let (pid, tid) = (
            u64::from(t.pid.load(Relaxed)),
            u64::from(t.tid.load(Relaxed)),
        );
        raw::call(TGKILL, [pid, tid, SIGPIPE, 0, 0, 0]);
    }
}

pub(super) fn is_nonblocking(fd: u64) -> bool {
    const F_GETFL: u64 = 3;
    const O_NONBLOCK: i64 = 0o4000;
    raw::call(nr::FCNTL, [fd, F_GETFL, 0, 0, 0, 0]) & O_NONBLOCK != 0
}

pub(super) fn wait_for_room(c: &Conn) {
    baton::leave_to_wait();
    c.full.store(1, SeqCst);
    if room(c) == 0 && c.error.load(Acquire) == 0 {
        raw::futex_wait_for(&c.full, 1, LOOK_AGAIN_NS);
    }
}

/// Copies bytes behind the published position.
fn append(c: &Conn, index: u32, data: Run, from: u64, n: u64) -> Result<(), user::Fault> {
    let mut at = c.written.load(Relaxed);
    let mut fault = Ok(());
    data.part(from, n).each(|source, len| {
        fault = fault.and(put(index, at, source, len));
        at += len;
    });
    fault
}

pub(super) fn put(index: u32, at: u64, from: u64, len: u64) -> Result<(), user::Fault> {
    let base = ARENA_BASE + OUTPUTS_AT + u64::from(index) * OUTPUT_LEN;
    // More than a bufferful can come in replay alone, where only the end counts.
    let skip = len.saturating_sub(OUTPUT_LEN);
    let (at, from, len) = (at + skip, from + skip, len - skip);
    let offset = at % OUTPUT_LEN;
    let first = len.min(OUTPUT_LEN - offset);
    user::copy(base + offset, from, first)?;
    if first < len {
        user::copy(base, from + first, len - first)
    } else {
        Ok(())
    }
}

/// Commits the record of bytes that lie in the buffer, and publishes them.
pub(super) fn commit(t: &ThreadBlock, shape: &Shape, index: u32, bytes: Part, n: u64, flags: u32) {
    let c = entry(index);
    let end = c.written.load(Relaxed) + n;
    if log::now() == Mode::Record {
        // Bytes that are kept need no hash: replay takes them.
        let (kept, hash) = match flags & WITH_BYTES {
            0 => (0, bytes.hash()),
            _ => (n, 0),
        };
        let header = Header {
            kind: kind::OUTPUT,
            hash: shape.hash(),
            result: n.cast_signed(),
            arg0: shape.args[0] as u32,
            version: hash,
            payload_len: (OUTPUT_HEAD + kept) as u32,
            ..Header::default()
        };
        let mut w = log::begin(t, header);
        w.value(index);
        w.value(flags);
        w.value(end);
        if kept > 0 {
            bytes.each(|at, len| w.bytes(at, len));
        }
        w.commit(false);
    }
    c.written.store(end, Release);
    mark(index);
    debts::owe(t, debts::WRITE);
}

/// What of a write the log has. `None` when the rest has to be done live; `done` says how much was replayed.
fn replay_write(
    t: &ThreadBlock,
    shape: &Shape,
    data: Run,
    index: u32,
    done: &mut u64,
) -> Option<i64> {
    let c = entry(index);
    loop {
        let taken = log::take(t, kind::OUTPUT)?;
        taken.check_hash(shape.hash());
        let result = taken.header.result;
        if result < 0 {
            taken.finish();
            return Some(result);
        }
        let n = result.cast_unsigned();
        let part = data.part(*done, n);
        if part.hash() != taken.header.version {
            log::diverge(t, failure::OUTPUT, taken.header.version, part.hash());
        }
        let flags = taken.value::<u32>(4);
        let _ = append(c, index, data, *done, n);
        publish(&taken, c);
        taken.finish();
        *done += n;
        if flags & MORE == 0 {
            return Some(done.cast_signed());
        }
    }
}

/// In replay: the logged end becomes the position; what no longer fits the buffer was acknowledged long ago.
pub(super) fn publish(taken: &Taken<'_>, c: &Conn) {
    let end = taken.value::<u64>(8);
    c.written.store(end, Release);
    let oldest = end.saturating_sub(OUTPUT_LEN);
    if c.trimmed.load(Relaxed) < oldest {
        c.trimmed.store(oldest, Release);
    }
}
