//! Connections to the outside: the guest takes what the application writes and leaves sending to the host.
//!
//! A write appends to the connection's buffer in the arena, commits its record, and only then publishes the
//! new position (`Conn::written`): whoever drains the rings after having seen the position holds the record.
//! The same order holds for bytes read (`Conn::read`), which the gate needs to open the client's window.

mod files;
mod made;
mod written;

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use guest::abi::{ARENA_BASE, CONNS_AT, Conn, MAX_CONNS, OUTPUT_LEN, ThreadBlock, conn, flag};
use sysabi::Syscall;

pub(crate) use self::files::send_file;
pub(crate) use self::made::{adopt, made};
pub(crate) use self::written::write;
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::raw;
use crate::tables::{Kind, Tables};
use crate::thread::control;
use crate::{debts, ring};

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
