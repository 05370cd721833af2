//! Clocks and timers.

use super::{captured, refused, row};
use crate::Arg::{In, InOut, Int, Out};
use crate::Class::Fed;
use crate::Len::Fixed;
use crate::Syscall;

/// `struct timespec` or `struct timeval` that is read.
const TIME: crate::Arg = In(Fixed(16));
/// The same, filled.
const TIME_OUT: crate::Arg = Out(Fixed(16));
/// `struct itimerspec` or `struct itimerval` that is read.
const SETTING: crate::Arg = In(Fixed(32));
/// The same, filled.
const SETTING_OUT: crate::Arg = Out(Fixed(32));

pub(super) const ROWS: &[Syscall] = &[
    row(35, "nanosleep", Fed, &[TIME, TIME_OUT]),
    row(36, "getitimer", Fed, &[Int, SETTING_OUT]),
    row(37, "alarm", Fed, &[Int]),
    captured(38, "setitimer", Fed, &[Int, SETTING, SETTING_OUT]),
    row(96, "gettimeofday", Fed, &[TIME_OUT, Out(Fixed(8))]),
    row(100, "times", Fed, &[Out(Fixed(32))]),
    row(159, "adjtimex", Fed, &[InOut(Fixed(208))]),
    refused(164, "settimeofday"),
    row(201, "time", Fed, &[Out(Fixed(8))]),
    captured(
        222,
        "timer_create",
        Fed,
        &[Int, In(Fixed(64)), Out(Fixed(4))],
    ),
    captured(223, "timer_settime", Fed, &[Int, Int, SETTING, SETTING_OUT]),
    row(224, "timer_gettime", Fed, &[Int, SETTING_OUT]),
    row(225, "timer_getoverrun", Fed, &[Int]),
    row(226, "timer_delete", Fed, &[Int]),
    refused(227, "clock_settime"),
    row(228, "clock_gettime", Fed, &[Int, TIME_OUT]),
    row(229, "clock_getres", Fed, &[Int, TIME_OUT]),
    row(230, "clock_nanosleep", Fed, &[Int, Int, TIME, TIME_OUT]),
    row(305, "clock_adjtime", Fed, &[Int, InOut(Fixed(208))]),
];
