//! Connections that cannot go on: the application finds them broken.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Release;

use guest::abi::Conn;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::error::{Result, io};

/// A socket that was never connected: reading fails, epoll reports a hang-up. Writes fail by the entry.
pub(super) fn stand_in(entry: Option<&Conn>) -> Result<OwnedFd> {
    if let Some(entry) = entry {
        entry.error.store(libc::ECONNRESET as u32, Release);
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Inet, SockType::Stream, flags, None).map_err(io("making a socket"))
}
