//! Kinds of descriptors, kept up to date behind each call that makes, copies or drops one.

use guest::abi::ThreadBlock;
use sysabi::Syscall;

use crate::calls::files;
use crate::tables::{self, Kind};
use crate::{connections, user};

const AF_UNIX: u64 = 1;
const SOCK_STREAM: u64 = 1;
const SOCK_TYPE: u64 = 15;
const EINPROGRESS: i64 = 115;
const SEEK_SET: u64 = 0;
const SEEK_CUR: u64 = 1;

/// Notes what a call of class `Fed` did to the descriptor table.
#[inline]
pub(crate) fn note(t: &ThreadBlock, row: &Syscall, args: &[u64; 6], result: i64) {
    // connect is the one call here whose failure can still change something.
    if result < 0 && !(row.nr == 42 && result == -EINPROGRESS) {
        return;
    }
    let set = tables::of(t);
    let made = result.cast_unsigned();
    match row.nr {
        // socket
        41 => set.set_kind(made, socket_kind(args[0], args[1])),
        // read, readv, recvfrom, recvmsg
        0 | 19 | 45 | 47 => {
            count_read(t, set.kind(args[0]), row.nr, args, result);
            if matches!(row.nr, 0 | 19) {
                files::moved(t, args[0], result, SEEK_CUR);
            }
        }
        // lseek
        8 => files::moved(t, args[0], result, SEEK_SET),
        // connect
        42 if set.kind(args[0]) == Kind::Tcp => set.set_kind(args[0], Kind::Connection(0)),
        // accept, accept4: of the listener's family
        43 | 288 => {
            let kind = if set.kind(args[0]) == Kind::Tcp {
                Kind::Connection(0)
            } else {
                Kind::Internal
            };
            if !matches!(set.kind(made), Kind::Connection(_)) {
                set.set_kind(made, kind);
            }
        }
        // pipe, pipe2; socketpair
        22 | 293 => pair(t, args[0]),
        53 => pair(t, args[3]),
        // eventfd, eventfd2
        284 | 290 => set.set_kind(made, Kind::Internal),
        // signalfd, signalfd4
        282 | 289 => set.set_kind(made, Kind::Signals),
        // epoll_create, inotify_init, timerfd_create, epoll_create1, inotify_init1, pidfd_open
        213 | 253 | 283 | 291 | 294 | 434 => set.set_kind(made, Kind::Other),
        _ => {}
    }
}

fn count_read(t: &ThreadBlock, kind: Kind, call: u16, args: &[u64; 6], result: i64) {
    const MSG_PEEK: u64 = 2;
    let Some(index) = connections::index_of(kind) else {
        return;
    };
    let flags = match call {
        45 => args[3],
        47 => args[2],
        _ => 0,
    };
    if flags & MSG_PEEK == 0 {
        connections::read(t, index, matches!(call, 0 | 45) && args[2] > 0, result);
    }
}

fn pair(t: &ThreadBlock, at: u64) {
    if let Ok([a, b]) = user::read::<[u32; 2]>(at) {
        tables::of(t).set_kind(u64::from(a), Kind::Internal);
        tables::of(t).set_kind(u64::from(b), Kind::Internal);
    }
}

fn socket_kind(family: u64, kind: u64) -> Kind {
    const AF_INET: u64 = 2;
    const AF_INET6: u64 = 10;
    match family {
        AF_UNIX => Kind::Internal,
        AF_INET | AF_INET6 if kind & SOCK_TYPE == SOCK_STREAM => Kind::Tcp,
        _ => Kind::Other,
    }
}
