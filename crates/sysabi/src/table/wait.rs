//! Waiting for descriptors, and descriptors made to be waited for.

use super::{PATH, captured, refused, row};
use crate::Arg::{Addr, Fd, In, InOut, Int, Out};
use crate::Class::Fed;
use crate::Len::{Arg, ArgBits, ArgTimes, Fixed, ResultTimes};
use crate::Syscall;

/// `fd_set *` of as many bits as the first argument says.
const FD_SET: crate::Arg = InOut(ArgBits(0));
/// `struct epoll_event *` filled by the call.
const EVENTS: crate::Arg = Out(ResultTimes(12));
/// `struct pollfd *`.
const POLLFDS: crate::Arg = InOut(ArgTimes(1, 8));
/// `struct timespec *` or `struct timeval *` that the call shortens.
const REST: crate::Arg = InOut(Fixed(16));

pub(super) const ROWS: &[Syscall] = &[
    row(7, "poll", Fed, &[POLLFDS, Int, Int]),
    row(23, "select", Fed, &[Int, FD_SET, FD_SET, FD_SET, REST]),
    captured(213, "epoll_create", Fed, &[Int]),
    refused(214, "epoll_ctl_old"),
    refused(215, "epoll_wait_old"),
    row(232, "epoll_wait", Fed, &[Fd, EVENTS, Int, Int]),
    captured(233, "epoll_ctl", Fed, &[Fd, Int, Fd, In(Fixed(12))]),
    captured(253, "inotify_init", Fed, &[]),
    captured(254, "inotify_add_watch", Fed, &[Fd, PATH, Int]),
    captured(255, "inotify_rm_watch", Fed, &[Fd, Int]),
    row(
        270,
        "pselect6",
        Fed,
        &[Int, FD_SET, FD_SET, FD_SET, REST, Addr],
    ),
    row(271, "ppoll", Fed, &[POLLFDS, Int, REST, In(Arg(4)), Int]),
    row(
        281,
        "epoll_pwait",
        Fed,
        &[Fd, EVENTS, Int, Int, In(Arg(5)), Int],
    ),
    captured(282, "signalfd", Fed, &[Fd, In(Arg(2)), Int]),
    captured(283, "timerfd_create", Fed, &[Int, Int]),
    captured(284, "eventfd", Fed, &[Int]),
    captured(
        286,
        "timerfd_settime",
        Fed,
        &[Fd, Int, In(Fixed(32)), Out(Fixed(32))],
    ),
    row(287, "timerfd_gettime", Fed, &[Fd, Out(Fixed(32))]),
    captured(289, "signalfd4", Fed, &[Fd, In(Arg(2)), Int, Int]),
    captured(290, "eventfd2", Fed, &[Int, Int]),
    captured(291, "epoll_create1", Fed, &[Int]),
    captured(294, "inotify_init1", Fed, &[Int]),
    refused(300, "fanotify_init"),
    refused(301, "fanotify_mark"),
    row(
        441,
        "epoll_pwait2",
        Fed,
        &[Fd, EVENTS, Int, In(Fixed(16)), In(Arg(5)), Int],
    ),
];
