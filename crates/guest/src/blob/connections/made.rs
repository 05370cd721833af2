//! How a connection gets its entry: in accept and connect, live and as the log says.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use eventlog::record::{Header, kind};
use guest::abi::{Conn, MAX_CONNS, ThreadBlock, conn, ends, failure};
use sysabi::Syscall;

use super::{entry, owned, touch};
use crate::calls::leaving;
use crate::dispatch::fed;
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::order;
use crate::raw::{self, nr};
use crate::tables::{self, Kind};
use crate::thread::control;

/// Bytes of a socket address in a CONNECTION record.
const ADDRESS_LEN: u64 = 28;
/// Bytes of both.
const ADDRESSES_LEN: usize = 2 * ADDRESS_LEN as usize;

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
    let next = log::peek_behind(t)?;
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
