//! EPOLLOUT of owned connections: the kernel's is meaningless while the connection's own buffer is full.
//!
//! When a write meets a full buffer, the guest takes EPOLLOUT out of the descriptor's interest. The epoll set
//! then also watches an eventfd of the host's, which is signalled when a full buffer has room again; the
//! guest puts EPOLLOUT back by EPOLL_CTL_MOD, which re-arms the edge, and the kernel delivers the event.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use guest::abi::{Conn, ROOM_FD, ThreadBlock};
use sysabi::Syscall;

use crate::connections::{self, MUTED, entry, room};
use crate::dispatch::{fed_by, perform};
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::raw;
use crate::{tables, user};

const EPOLL_CTL: u64 = 233;
const CTL_ADD: u64 = 1;
const CTL_DEL: u64 = 2;
const CTL_MOD: u64 = 3;
const EPOLLIN: u32 = 1;
const EPOLLOUT: u32 = 4;
const EPOLLET: u32 = 1 << 31;
/// `data` of the host's eventfd: no pointer or descriptor of the application.
const ROOM_DATA: u64 = 0x554e_4445_5253_5459;
/// Bytes of `struct epoll_event`.
const EVENT_LEN: u64 = 12;

/// Connections of this process whose EPOLLOUT is taken out.
static MUTED_COUNT: AtomicU32 = AtomicU32::new(0);

/// `struct epoll_event`, packed.
fn event(events: u32, data: u64) -> [u32; 3] {
    [events, data as u32, (data >> 32) as u32]
}

/// `epoll_ctl`: remembers what the application wants of an owned connection.
pub(crate) fn control(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let [set, op, fd, at, ..] = regs.args();
    let index = connections::index_of(tables::of(t).kind(fd)).filter(|_| connections::owned());
    let Some(index) = index else {
        return crate::dispatch::fed(t, regs, row);
    };
    let c = entry(index);
    if op == CTL_DEL {
        c.watched_in.store(0, Relaxed);
        unmark(index, c);
        return crate::dispatch::fed(t, regs, row);
    }
    let wanted = user::read::<[u32; 3]>(at).unwrap_or([0; 3]);
    c.watched_in.store(set as u32 + 1, Relaxed);
    c.wanted_events.store(wanted[0], Relaxed);
    c.wanted_data
        .store(u64::from(wanted[1]) | u64::from(wanted[2]) << 32, Relaxed);
    let mut given = wanted;
    if log::now() != Mode::Replay && wanted[0] & EPOLLOUT != 0 && is_full(c) {
        given[0] &= !EPOLLOUT;
        mark(index, c, set as u32);
    } else {
        unmark(index, c);
    }
    fed_by(t, regs, row, |args| {
        let mut actual = *args;
        actual[3] = given.as_ptr() as u64;
        (perform(t, regs, &actual), 0)
    })
}

/// Full, and the host knows that somebody waits for room.
fn is_full(c: &Conn) -> bool {
    if room(c) > 0 {
        return false;
    }
    c.full.store(1, SeqCst);
    room(c) == 0
}

fn mark(index: u32, c: &Conn, set: u32) {
    c.muted_in.store(set + 1, Release);
    let bit = 1_u64 << (index % 64);
    if MUTED[index as usize / 64].fetch_or(bit, Relaxed) & bit == 0 {
        MUTED_COUNT.fetch_add(1, Release);
    }
    let watch = event(EPOLLIN | EPOLLET, ROOM_DATA);
    // It may be in the set already.
    raw::call(
        EPOLL_CTL,
        [
            u64::from(set),
            CTL_ADD,
            ROOM_FD as u64,
            watch.as_ptr() as u64,
            0,
            0,
        ],
    );
}

fn unmark(index: u32, c: &Conn) {
    c.muted_in.store(0, Release);
    let bit = 1_u64 << (index % 64);
    if MUTED[index as usize / 64].fetch_and(!bit, Relaxed) & bit != 0 {
        MUTED_COUNT.fetch_sub(1, Release);
    }
}

/// A write met a full buffer: the host is told, and EPOLLOUT taken out where the application waits for it.
pub(crate) fn mute(index: u32, c: &Conn) {
    c.full.store(1, SeqCst);
    let (watched, events) = (c.watched_in.load(Relaxed), c.wanted_events.load(Relaxed));
    if room(c) > 0 || watched == 0 || events & EPOLLOUT == 0 || c.muted_in.load(Relaxed) != 0 {
        return;
    }
    mark(index, c, watched - 1);
    modify(c, events & !EPOLLOUT);
}

fn modify(c: &Conn, events: u32) {
    let given = event(events, c.wanted_data.load(Relaxed));
    let set = u64::from(c.watched_in.load(Relaxed).saturating_sub(1));
    raw::call(
        EPOLL_CTL,
        [
            set,
            CTL_MOD,
            u64::from(c.fd.load(Relaxed)),
            given.as_ptr() as u64,
            0,
            0,
        ],
    );
}

/// Puts EPOLLOUT back where there is room again.
fn unmute_all() {
    for (word, bits) in MUTED.iter().enumerate() {
        let mut left = bits.load(Relaxed);
        while left != 0 {
            let index = word as u32 * 64 + left.trailing_zeros();
            left &= left - 1;
            let c = entry(index);
            if !is_full(c) {
                unmark(index, c);
                modify(c, c.wanted_events.load(Relaxed));
            }
        }
    }
}

/// `epoll_wait` and its kin: the host's eventfd is not the application's to see.
pub(crate) fn wait(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    if !connections::owned() {
        return crate::dispatch::fed(t, regs, row);
    }
    fed_by(t, regs, row, |args| {
        loop {
            if MUTED_COUNT.load(Acquire) != 0 {
                unmute_all();
            }
            let result = perform(t, regs, args);
            let left = if result > 0 {
                drop_own(args[1], result)
            } else {
                result
            };
            // Only the host's event came: room was made, look again. A poll (time-out 0) may say "nothing".
            if left == 0 && result > 0 && args[3] != 0 {
                continue;
            }
            return (left, 0);
        }
    })
}

/// Takes the host's eventfd out of the events; the number left.
fn drop_own(at: u64, count: i64) -> i64 {
    let mut kept = 0;
    for i in 0..count.cast_unsigned() {
        let from = at + i * EVENT_LEN;
        let Ok(event) = user::read::<[u32; 3]>(from) else {
            return count;
        };
        if u64::from(event[1]) | u64::from(event[2]) << 32 == ROOM_DATA {
            continue;
        }
        if kept != i {
            let _ = user::write(at + kept * EVENT_LEN, &event);
        }
        kept += 1;
    }
    kept.cast_signed()
}
