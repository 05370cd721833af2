//! Sockets.

use super::{captured, refused, row};
use crate::Arg::{Fd, In, InMsg, InOut, Int, Out, OutMsg};
use crate::Class::{Fed, Filtered, Suppressed};
use crate::Len::{Arg, Fixed, Pointee, ResultUpTo};
use crate::Syscall;

/// `socklen_t *`.
const SOCKLEN: crate::Arg = InOut(Fixed(4));

pub(super) const ROWS: &[Syscall] = &[
    captured(41, "socket", Fed, &[Int, Int, Int]),
    captured(42, "connect", Fed, &[Fd, In(Arg(2)), Int]),
    captured(43, "accept", Filtered, &[Fd, Out(Pointee(2)), SOCKLEN]),
    row(
        44,
        "sendto",
        Suppressed,
        &[Fd, In(Arg(2)), Int, Int, In(Arg(5)), Int],
    ),
    row(
        45,
        "recvfrom",
        Fed,
        &[Fd, Out(ResultUpTo(2)), Int, Int, Out(Pointee(5)), SOCKLEN],
    ),
    row(46, "sendmsg", Suppressed, &[Fd, InMsg, Int]),
    row(47, "recvmsg", Fed, &[Fd, OutMsg, Int]),
    captured(48, "shutdown", Fed, &[Fd, Int]),
    captured(49, "bind", Fed, &[Fd, In(Arg(2)), Int]),
    captured(50, "listen", Fed, &[Fd, Int]),
    row(51, "getsockname", Fed, &[Fd, Out(Pointee(2)), SOCKLEN]),
    row(52, "getpeername", Fed, &[Fd, Out(Pointee(2)), SOCKLEN]),
    captured(53, "socketpair", Fed, &[Int, Int, Int, Out(Fixed(8))]),
    captured(54, "setsockopt", Fed, &[Fd, Int, Int, In(Arg(4)), Int]),
    row(
        55,
        "getsockopt",
        Fed,
        &[Fd, Int, Int, Out(Pointee(4)), SOCKLEN],
    ),
    captured(
        288,
        "accept4",
        Filtered,
        &[Fd, Out(Pointee(2)), SOCKLEN, Int],
    ),
    refused(299, "recvmmsg"),
    refused(307, "sendmmsg"),
];
