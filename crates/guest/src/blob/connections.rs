//! Connections to the outside: the guest takes what the application writes and leaves sending to the host.
//!
//! A write appends to the connection's buffer in the arena, commits its record, and only then publishes the
//! new position (`Conn::written`): whoever drains the rings after having seen the position holds the record.
//! The same order holds for bytes read (`Conn::read`), which the gate needs to open the client's window.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use eventlog::record::{Header, MAX_PAYLOAD, kind};
use guest::abi::{
    ARENA_BASE, CONNS_AT, Conn, ERROR_TOLD, MAX_CONNS, OUTPUT_LEN, OUTPUTS_AT, ThreadBlock, conn,
    ends, failure, flag,
};
use sysabi::Syscall;

use crate::calls::leaving;
use crate::dispatch::fed;
use crate::entry::Regs;
use crate::log::{self, Mode, Taken};
use crate::raw::{self, nr};
use crate::shapes::{Part, Run, Shape};
use crate::tables::{self, Kind, Tables};
use crate::thread::control;
use crate::{debts, epoll, order, ring, user};

/// Bit 0 of an OUTPUT record's flags: more of the same call follows.
const MORE: u32 = 1;
/// Bit 1: the bytes themselves follow.
const WITH_BYTES: u32 = 2;
/// Bytes of an OUTPUT record's payload before the bytes themselves.
const OUTPUT_HEAD: u64 = 16;
/// Bytes of a socket address in a CONNECTION record.
const ADDRESS_LEN: u64 = 28;
/// Bytes of both.
const ADDRESSES_LEN: usize = 2 * ADDRESS_LEN as usize;
/// Most bytes that one sendfile moves.
const FILE_CHUNK: u64 = 64 << 10;
/// How long the guest waits for the host before it looks again.
const LOOK_AGAIN_NS: u64 = 2_000_000;

/// Whether output goes through the buffers.
#[inline(always)]
pub(crate) fn owned() -> bool {
    control().flags.load(Relaxed) & flag::OWN_OUTPUT != 0
}

/// A connection's entry.
pub(crate) fn entry(index: u32) -> &'static Conn {
    let at = ARENA_BASE + CONNS_AT + u64::from(index % MAX_CONNS as u32) * size_of::<Conn>() as u64;
    // SAFETY: the arena is mapped for the process' whole life; the index is bounded; entries are atomics.
    unsafe { &*(at as *const Conn) }
}

/// The entry behind a kind, if it is an owned connection.
#[inline(always)]
pub(crate) fn index_of(kind: Kind) -> Option<u32> {
    match kind {
        Kind::Connection(n) => n.checked_sub(1),
        _ => None,
    }
}

/// Tells the host that an entry's counters moved.
pub(crate) fn touch(index: u32) {
    mark(index);
    ring::wake_drainer();
}

fn mark(index: u32) {
    control().touched[index as usize / 64].fetch_or(1 << (index % 64), SeqCst);
}

/// Room in a buffer. A client may have acknowledged, before a takeover, more than was written again yet.
pub(crate) fn room(c: &Conn) -> u64 {
    OUTPUT_LEN.saturating_sub(
        c.written
            .load(Relaxed)
            .saturating_sub(c.trimmed.load(Acquire)),
    )
}

/// `accept`, `accept4`, `connect`: the new connection gets an entry.
pub(crate) fn made(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let announced = if log::now() == Mode::Replay {
        replay_announcement(t)
    } else {
        None
    };
    let result = fed(t, regs, row);
    if let Some((fd, index)) = announced {
        tables::of(t).set_kind(fd, Kind::Connection(index + 1));
    }
    result
}

fn replay_announcement(t: &ThreadBlock) -> Option<(u64, u32)> {
    let next = log::peek(t)?;
    if next.header.kind != kind::CONNECTION {
        return None;
    }
    let (fd, index) = (u64::from(next.header.arg0), next.header.result as u32);
    let generation = next.header.version as u32;
    let mut addresses = [0_u8; ADDRESSES_LEN];
    let _ = next.get(0, addresses.as_mut_ptr() as u64, ADDRESSES_LEN as u64);
    // Whoever had the entry before may be another process, and behind this one.
    order::await_that(t, || is_free_for(entry(index), generation));
    next.finish();
    open(t, index, fd, generation, &addresses);
    Some((fd, index))
}

/// Replay: whether the last connection that had an entry has come to its end, and none before this is missing.
fn is_free_for(c: &Conn, generation: u32) -> bool {
    // Of an entry that was free at the cut it is not known how often it had been taken.
    let last = c.generation.load(Acquire);
    let before = last == 0 || last == generation.wrapping_sub(1);
    // One that was killed does not close it.
    let holder = c.holder.load(Acquire);
    let left = holder != 0 && leaving::has_nothing_left(holder);
    before && (left || c.state.load(Acquire) != conn::OPEN)
}

fn open(t: &ThreadBlock, index: u32, fd: u64, generation: u32, addresses: &[u8; ADDRESSES_LEN]) {
    let c = entry(index);
    for word in [
        &c.adopted,
        &c.full,
        &c.shut,
        &c.read_end,
        &c.error,
        &c.muted_in,
        &c.holder,
        &c.wanted_events,
        &c.watched_in,
    ] {
        word.store(0, Relaxed);
    }
    for word in [&c.written, &c.trimmed, &c.read, &c.wanted_data] {
        word.store(0, Relaxed);
    }
    c.refs.store(1, Relaxed);
    c.ends.store(ends_of(addresses), Relaxed);
    c.fd.store(fd as u32, Relaxed);
    c.pid.store(t.pid.load(Relaxed), Relaxed);
    c.generation.store(generation, Relaxed);
    c.state.store(conn::OPEN, Release);
    control().taken[index as usize / 64].fetch_or(1 << (index % 64), SeqCst);
}

/// What [`Conn::ends`] says of an own and a peer's address; 0 when they are not IPv4.
fn ends_of(addresses: &[u8; ADDRESSES_LEN]) -> u64 {
    const INET: u8 = 2;
    let (own, peer) = addresses.split_at(ADDRESS_LEN as usize);
    if peer[0] == INET {
        let address = [peer[4], peer[5], peer[6], peer[7]];
        ends(address, [peer[2], peer[3]], [own[2], own[3]])
    } else {
        0
    }
}

/// After a live accept or connect, before its record: gives the connection an entry and announces it.
/// The record of the call commits the announcement, too, so that the log has both or neither.
pub(crate) fn adopt(t: &ThreadBlock, row: &Syscall, args: &[u64; 6], result: i64) {
    const CONNECT: u16 = 42;
    const EINPROGRESS: i64 = 115;
    let connecting = row.nr == CONNECT && (result == 0 || result == -EINPROGRESS);
    let accepted = row.nr != CONNECT && result >= 0;
    let fd = if row.nr == CONNECT {
        args[0]
    } else {
        result.cast_unsigned()
    };
    let set = tables::of(t);
    if !owned() || !(connecting || accepted) || set.kind(args[0]) != Kind::Tcp {
        return;
    }
    let mut addresses = [0_u8; ADDRESSES_LEN];
    name(nr::GETSOCKNAME, fd, &mut addresses[..ADDRESS_LEN as usize]);
    name(nr::GETPEERNAME, fd, &mut addresses[ADDRESS_LEN as usize..]);
    if is_loopback(&addresses[ADDRESS_LEN as usize..]) {
        set.set_kind(fd, Kind::Internal);
        return;
    }
    let Some(index) = claim() else {
        log::diverge(t, failure::CAPACITY, MAX_CONNS as u64, 0)
    };
    let c = entry(index);
    let generation = c.generation.load(Relaxed).wrapping_add(1);
    open(t, index, fd, generation, &addresses);
    set.set_kind(fd, Kind::Connection(index + 1));
    if log::now() == Mode::Record {
        let header = Header {
            kind: kind::CONNECTION,
            arg0: fd as u32,
            result: i64::from(index),
            version: u64::from(generation),
            payload_len: ADDRESSES_LEN as u32,
            ..Header::default()
        };
        let mut w = log::begin(t, header);
        w.bytes(addresses.as_ptr() as u64, ADDRESSES_LEN as u64);
        w.defer();
    }
    touch(index);
}

/// The lowest free entry, so that the buffers that have memory are used again.
fn claim() -> Option<u32> {
    for (word, taken) in control().taken.iter().enumerate() {
        // Cleared a moment before the state says that the entry is free.
        let mut free = !taken.load(Acquire);
        while free != 0 {
            let index = word as u32 * 64 + free.trailing_zeros();
            let state = &entry(index).state;
            let claimed = state.compare_exchange(conn::FREE, conn::CLAIMED, AcqRel, Relaxed);
            if claimed.is_ok() {
                return Some(index);
            }
            free &= free - 1;
        }
    }
    None
}

/// getsockname or getpeername.
fn name(call: u64, fd: u64, address: &mut [u8]) {
    let mut len = ADDRESS_LEN as u32;
    raw::call(
        call,
        [
            fd,
            address.as_mut_ptr() as u64,
            (&raw mut len) as u64,
            0,
            0,
            0,
        ],
    );
}

fn is_loopback(address: &[u8]) -> bool {
    const AF_INET6: u8 = 10;
    match address[0] {
        2 => address[4] == 127,
        AF_INET6 => address[8..23].iter().all(|b| *b == 0) && address[23] == 1,
        _ => false,
    }
}

/// Counts what a call read from a connection; behind its record.
pub(crate) fn read(t: &ThreadBlock, index: u32, asked: bool, result: i64) {
    let c = entry(index);
    c.holder.store(t.pid.load(Relaxed), Relaxed);
    if result > 0 {
        c.read.fetch_add(result.cast_unsigned(), Release);
    } else if result == 0 && asked {
        c.read_end.store(1, Release);
    } else {
        return;
    }
    mark(index);
    debts::owe(t, debts::READ);
}

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

const EPIPE: i64 = 32;

fn lock(c: &Conn) {
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
fn broken(c: &Conn) -> Option<i64> {
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
fn refuse(t: &ThreadBlock, shape: &Shape, result: i64) -> i64 {
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

fn broken_pipe(t: &ThreadBlock, shape: &Shape) {
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

fn is_nonblocking(fd: u64) -> bool {
    const F_GETFL: u64 = 3;
    const O_NONBLOCK: i64 = 0o4000;
    raw::call(nr::FCNTL, [fd, F_GETFL, 0, 0, 0, 0]) & O_NONBLOCK != 0
}

fn wait_for_room(c: &Conn) {
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

fn put(index: u32, at: u64, from: u64, len: u64) -> Result<(), user::Fault> {
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
fn commit(t: &ThreadBlock, shape: &Shape, index: u32, bytes: Part, n: u64, flags: u32) {
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
fn publish(taken: &Taken<'_>, c: &Conn) {
    let end = taken.value::<u64>(8);
    c.written.store(end, Release);
    let oldest = end.saturating_sub(OUTPUT_LEN);
    if c.trimmed.load(Relaxed) < oldest {
        c.trimmed.store(oldest, Release);
    }
}

/// `sendfile` to an owned connection: the file's bytes go through the buffer and, since the file may be
/// another one when the log is replayed, through the log.
pub(crate) fn send_file(t: &ThreadBlock, shape: &Shape, index: u32) -> i64 {
    let c = entry(index);
    if log::now() == Mode::Replay
        && let Some(taken) = log::take(t, kind::OUTPUT)
    {
        return replay_file(taken, shape, c, index);
    }
    let [_, file, offset, count, ..] = shape.args;
    lock(c);
    let result = loop {
        if let Some(error) = broken(c) {
            break refuse(t, shape, error);
        }
        let at = c.written.load(Relaxed) % OUTPUT_LEN;
        let n = count.min(room(c)).min(OUTPUT_LEN - at).min(FILE_CHUNK);
        if n == 0 && count > 0 {
            if is_nonblocking(shape.args[0]) {
                epoll::mute(index, c);
                if room(c) == 0 {
                    break refuse(t, shape, -raw::EAGAIN);
                }
            } else {
                wait_for_room(c);
            }
            continue;
        }
        break take_file(t, shape, index, [file, offset, n], at);
    };
    c.lock.store(0, Release);
    if result == -EPIPE {
        broken_pipe(t, shape);
    }
    result
}

fn take_file(
    t: &ThreadBlock,
    shape: &Shape,
    index: u32,
    [file, offset, n]: [u64; 3],
    at: u64,
) -> i64 {
    const PREAD: u64 = 17;
    let to = ARENA_BASE + OUTPUTS_AT + u64::from(index) * OUTPUT_LEN + at;
    let got = if offset == 0 {
        raw::call(nr::READ, [file, to, n, 0, 0, 0])
    } else {
        let from = user::read::<u64>(offset).unwrap_or(0);
        raw::call(PREAD, [file, to, n, from, 0, 0])
    };
    if got <= 0 {
        return refuse(t, shape, got);
    }
    let got = got.cast_unsigned();
    move_offset(offset, got);
    commit(
        t,
        shape,
        index,
        Run::Flat(to, got).part(0, got),
        got,
        WITH_BYTES,
    );
    got.cast_signed()
}

fn move_offset(offset: u64, by: u64) {
    if offset != 0 {
        let from = user::read::<u64>(offset).unwrap_or(0);
        let _ = user::write(offset, &(from + by));
    }
}

fn replay_file(taken: Taken<'_>, shape: &Shape, c: &Conn, index: u32) -> i64 {
    taken.check_hash(shape.hash());
    let result = taken.header.result;
    if result > 0 {
        let mut block = [0_u8; 1024];
        let (mut done, n) = (0, result.cast_unsigned().min(MAX_PAYLOAD as u64));
        while done < n {
            let len = (n - done).min(1024);
            let _ = taken.get(OUTPUT_HEAD + done, block.as_mut_ptr() as u64, len);
            let _ = put(
                index,
                c.written.load(Relaxed) + done,
                block.as_ptr() as u64,
                len,
            );
            done += len;
        }
        publish(&taken, c);
        move_offset(shape.args[2], n);
    }
    taken.finish();
    result
}

/// `shutdown` of a connection: the end of output is the host's to send, behind everything written.
pub(crate) fn shut(t: &ThreadBlock, regs: &Regs, row: &'static Syscall, index: u32) -> i64 {
    const SHUT_RD: u64 = 0;
    let how = regs.rsi;
    let result = crate::dispatch::fed_by(t, regs, row, |args| match how {
        SHUT_RD => (raw::call(regs.rax, *args), 0),
        1 => (0, 0),
        2 => (raw::call(regs.rax, [args[0], SHUT_RD, 0, 0, 0, 0]), 0),
        _ => (-raw::EINVAL, 0),
    });
    if result == 0 && how != SHUT_RD {
        entry(index).shut.store(1, Release);
        touch(index);
    }
    result
}

/// Before the application's descriptor is closed for real: the host must hold its own duplicate.
pub(crate) fn await_adoption(index: u32) {
    let c = entry(index);
    while c.adopted.load(Acquire) == 0 && log::now() != Mode::Replay {
        touch(index);
        raw::futex_wait_for(&c.adopted, 0, LOOK_AGAIN_NS);
    }
}

/// One more descriptor refers to the connection.
pub(crate) fn retain(index: u32) {
    entry(index).refs.fetch_add(1, AcqRel);
}

/// One descriptor less.
pub(crate) fn release(index: u32) {
    let c = entry(index);
    if c.refs.fetch_sub(1, AcqRel) == 1 {
        c.shut.store(1, Release);
        c.state.store(conn::CLOSED, Release);
        touch(index);
    }
}

/// A child got a copy of a descriptor table.
pub(crate) fn retain_all(set: &Tables) {
    for_all(set, retain);
}

/// A process ends with this descriptor table.
pub(crate) fn release_all(set: &Tables) {
    if owned() {
        for_all(set, |index| {
            await_adoption(index);
            release(index);
        });
    }
}

fn for_all(set: &Tables, mut visit: impl FnMut(u32)) {
    if owned() {
        (0..set.end())
            .filter_map(|fd| index_of(set.kind(fd)))
            .for_each(&mut visit);
    }
}

/// Bits of entries whose EPOLLOUT is taken out, in this process.
pub(crate) static MUTED: [AtomicU64; MAX_CONNS / 64] =
    [const { AtomicU64::new(0) }; MAX_CONNS / 64];
