//! Connections that came to a listener of the lost host and were accepted by nobody: the host that takes over
//! rebuilds their sockets, and the application accepts them here.
//!
//! For each, the listener's kernel queue holds a stand-in, so that epoll, poll and a blocking accept see it
//! come. The stand-in is known by its port; the socket waits in the same process under a number of its own
//! and takes the stand-in's place under the number that accept returned.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use guest::abi::{MAX_BACKLOG, ThreadBlock, backlog};

use crate::dispatch::perform;
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::thread::control;

const ACCEPT: u64 = 43;
const ACCEPT4: u64 = 288;
const SOCK_CLOEXEC: u64 = 0o2000000;
const SOCK_NONBLOCK: u64 = 0o4000;
const F_GETFL: u64 = 3;
const F_SETFL: u64 = 4;
const O_NONBLOCK: i64 = 0o4000;
/// Bytes of an IPv4 socket address.
const ADDRESS_LEN: u32 = 16;

/// Whether an accept may meet a stand-in.
#[inline(always)]
pub(crate) fn waits_for(call: u64) -> bool {
    matches!(call, ACCEPT | ACCEPT4)
        && control().backlog_len.load(Acquire) != 0
        && log::now() == Mode::Live
}

/// `accept` and `accept4` while connections wait here.
pub(crate) fn accept(t: &ThreadBlock, regs: &Regs, args: &[u64; 6]) -> i64 {
    let [listener, address, len, flags, ..] = *args;
    let flags = if regs.rax == ACCEPT4 { flags } else { 0 };
    // The addresses are filled in when it is known whose they are.
    let result = perform(t, regs, &[listener, 0, 0, flags, 0, 0]);
    if result < 0 {
        return result;
    }
    let fd = result.cast_unsigned();
    if let Some(waiting) = take(stand_in_port(fd)) {
        replace(fd, waiting, flags);
    }
    if address != 0 {
        raw::call(nr::GETPEERNAME, [fd, address, len, 0, 0, 0]);
    }
    result
}

/// The peer's port, if the peer is this host itself.
fn stand_in_port(fd: u64) -> Option<u16> {
    let (mut own, mut peer) = ([0_u8; ADDRESS_LEN as usize], [0_u8; ADDRESS_LEN as usize]);
    for (call, to) in [(nr::GETSOCKNAME, &mut own), (nr::GETPEERNAME, &mut peer)] {
        let mut len = ADDRESS_LEN;
        let args = [fd, to.as_mut_ptr() as u64, (&raw mut len) as u64, 0, 0, 0];
        if raw::call(call, args) < 0 {
            return None;
        }
    }
    let is_own = own[4..8] == peer[4..8];
    is_own.then(|| u16::from_be_bytes([peer[2], peer[3]]))
}

/// Takes out the descriptor of the connection that waits behind a stand-in.
fn take(port: Option<u16>) -> Option<u64> {
    let port = port?;
    for entry in &control().backlog[..MAX_BACKLOG] {
        let value = entry.load(Relaxed);
        if value != 0
            && backlog::port(value) == port
            && entry.compare_exchange(value, 0, AcqRel, Relaxed).is_ok()
        {
            control().backlog_len.fetch_sub(1, AcqRel);
            return Some(backlog::fd(value));
        }
    }
    None
}

fn replace(fd: u64, waiting: u64, flags: u64) {
    raw::call(nr::DUP3, [waiting, fd, flags & SOCK_CLOEXEC, 0, 0, 0]);
    raw::call(nr::CLOSE, [waiting, 0, 0, 0, 0, 0]);
    let status = raw::call(nr::FCNTL, [fd, F_GETFL, 0, 0, 0, 0]) & !O_NONBLOCK;
    let wanted = status.cast_unsigned() | flags & SOCK_NONBLOCK;
    raw::call(nr::FCNTL, [fd, F_SETFL, wanted, 0, 0, 0]);
}
