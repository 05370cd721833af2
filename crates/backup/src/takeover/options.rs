//! What can only be set inside the process: interests of epoll sets, options of sockets.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Release;

use eventlog::fold::{DescriptionId, Fold, Interest, Kind, Pid, Socket};
use nix::libc;
use sys::arena::Arena;

use super::connections::Ready;
use super::error::Result;
use super::session::Session;

const EPOLLONESHOT: u32 = 1 << 30;
/// Events that only say how others are reported.
const PRIVATE: u32 = EPOLLONESHOT | 1 << 31 | 1 << 28 | 1 << 29;

/// Options that were set before the socket got its address, or would undo what was done since.
const DONE: [(i32, i32); 4] = [
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::SOL_SOCKET, libc::SO_ERROR),
];

/// Sets all of it for process `pid`, whose descriptors are in place.
pub(super) fn apply(session: &mut Session, fold: &Fold, pid: Pid) -> Result<()> {
    let Some(table) = fold.table(pid) else {
        return Ok(());
    };
    let mut done = Vec::new();
    for (number, entry) in &table.entries {
        if done.contains(&entry.description) {
            continue;
        }
        let Some(description) = fold.descriptions().get(&entry.description) else {
            continue;
        };
        match &description.kind {
            Kind::Epoll(interests) => {
                done.push(entry.description);
                for ((fd, watched), interest) in interests {
                    let now = table.entries.get(fd).map(|e| e.description);
                    if now != Some(*watched) {
                        tracing::warn!(fd, "an epoll set watches what has no descriptor any more");
                        continue;
                    }
                    watch(session, *number, *fd, interest)?;
                }
            }
            Kind::Socket(socket) => {
                of_socket(session, *number, socket)?;
            }
            Kind::Signal(mask) => {
                let args = [*number as u64, 0, mask.len() as u64, 0, 0, 0];
                session.call("signalfd", libc::SYS_signalfd4, args, Some((1, mask)))?;
            }
            _ => {}
        }
    }
    session.flush("restoring interests and options")?;
    Ok(())
}

/// Gives descriptor `number` the options of a socket.
pub(super) fn of_socket(session: &mut Session, number: i32, socket: &Socket) -> Result<()> {
    for ((level, option), value) in &socket.options {
        if !DONE.contains(&(*level, *option)) {
            let len = value.len() as u64;
            let args = [number as u64, *level as u64, *option as u64, 0, len, 0];
            session.call("setsockopt", libc::SYS_setsockopt, args, Some((3, value)))?;
        }
    }
    Ok(())
}

fn watch(session: &mut Session, set: i32, fd: i32, interest: &Interest) -> Result<()> {
    let events = if interest.armed {
        interest.events
    } else {
        interest.events & PRIVATE
    };
    let mut event = [0; 12];
    event[..4].copy_from_slice(&events.to_ne_bytes());
    event[4..].copy_from_slice(&interest.data.to_ne_bytes());
    let args = [set as u64, libc::EPOLL_CTL_ADD as u64, fd as u64, 0, 0, 0];
    session.call("epoll_ctl", libc::SYS_epoll_ctl, args, Some((3, &event)))
}

/// Tells the guest which epoll set watches which connection, and for what: the image's own notes were in the
/// old arena.
pub(super) fn note_watchers(
    arena: &Arena,
    fold: &Fold,
    pid: Pid,
    all: &[Ready],
    ids: &BTreeMap<usize, DescriptionId>,
) {
    let Some(table) = fold.table(pid) else { return };
    for (number, entry) in &table.entries {
        let description = fold.descriptions().get(&entry.description);
        let Some(Kind::Epoll(interests)) = description.map(|d| &d.kind) else {
            continue;
        };
        for ready in all {
            let Some(id) = ids.get(&ready.connection.index) else {
                continue;
            };
            let mut own = interests.iter().filter(|((_, watched), _)| watched == id);
            if let Some((_, interest)) = own.next() {
                let c = arena.conn(ready.connection.index);
                c.wanted_events.store(interest.events, Release);
                c.wanted_data.store(interest.data, Release);
                c.watched_in.store(*number as u32 + 1, Release);
            }
        }
    }
}
