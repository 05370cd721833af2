//! Signals.

use super::{captured, row};
use crate::Arg::{Fd, In, Int, Out};
use crate::Class::{Executed, Fed, Filtered};
use crate::Len::{Arg, Fixed};
use crate::Syscall;

/// `siginfo_t` that is sent.
const INFO: crate::Arg = In(Fixed(128));

pub(super) const ROWS: &[Syscall] = &[
    captured(
        13,
        "rt_sigaction",
        Filtered,
        &[Int, In(Fixed(32)), Out(Fixed(32)), Int],
    ),
    captured(
        14,
        "rt_sigprocmask",
        Filtered,
        &[Int, In(Arg(3)), Out(Arg(3)), Int],
    ),
    row(15, "rt_sigreturn", Filtered, &[]),
    row(34, "pause", Fed, &[]),
    captured(62, "kill", Fed, &[Int, Int]),
    row(127, "rt_sigpending", Fed, &[Out(Arg(1)), Int]),
    row(
        128,
        "rt_sigtimedwait",
        Fed,
        &[In(Arg(3)), Out(Fixed(128)), In(Fixed(16)), Int],
    ),
    captured(129, "rt_sigqueueinfo", Fed, &[Int, Int, INFO]),
    row(130, "rt_sigsuspend", Filtered, &[In(Arg(1)), Int]),
    row(
        131,
        "sigaltstack",
        Executed,
        &[In(Fixed(24)), Out(Fixed(24))],
    ),
    captured(200, "tkill", Fed, &[Int, Int]),
    row(219, "restart_syscall", Fed, &[]),
    captured(234, "tgkill", Fed, &[Int, Int, Int]),
    captured(297, "rt_tgsigqueueinfo", Fed, &[Int, Int, Int, INFO]),
    captured(424, "pidfd_send_signal", Fed, &[Fd, Int, INFO, Int]),
];
