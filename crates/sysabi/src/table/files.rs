//! Descriptors: opening, reading, writing, duplicating, closing.

use super::{PATH, captured, row};
use crate::Arg::{Fd, In, InOut, InVec, Int, Out, OutVec};
use crate::Class::{Executed, Fed, Filtered, Suppressed};
use crate::Len::{Arg, CStr, Fixed, Result};
use crate::Syscall;

pub(super) const ROWS: &[Syscall] = &[
    row(0, "read", Fed, &[Fd, Out(Result), Int]),
    row(1, "write", Suppressed, &[Fd, In(Arg(2)), Int]),
    captured(2, "open", Filtered, &[PATH, Int, Int]),
    row(3, "close", Filtered, &[Fd]),
    row(8, "lseek", Fed, &[Fd, Int, Int]),
    captured(16, "ioctl", Fed, &[Fd, Int, crate::Arg::Addr]),
    row(17, "pread64", Fed, &[Fd, Out(Result), Int, Int]),
    row(18, "pwrite64", Suppressed, &[Fd, In(Arg(2)), Int, Int]),
    row(19, "readv", Fed, &[Fd, OutVec, Int]),
    row(20, "writev", Suppressed, &[Fd, InVec, Int]),
    captured(22, "pipe", Fed, &[Out(Fixed(8))]),
    row(32, "dup", Filtered, &[Fd]),
    row(33, "dup2", Filtered, &[Fd, Fd]),
    captured(40, "sendfile", Suppressed, &[Fd, Fd, InOut(Fixed(8)), Int]),
    captured(72, "fcntl", Filtered, &[Fd, Int, crate::Arg::Addr]),
    captured(73, "flock", Fed, &[Fd, Int]),
    row(74, "fsync", Fed, &[Fd]),
    row(75, "fdatasync", Fed, &[Fd]),
    captured(77, "ftruncate", Executed, &[Fd, Int]),
    row(78, "getdents", Fed, &[Fd, Out(Result), Int]),
    captured(85, "creat", Filtered, &[PATH, Int]),
    row(187, "readahead", Fed, &[Fd, Int, Int]),
    row(217, "getdents64", Fed, &[Fd, Out(Result), Int]),
    row(221, "fadvise64", Fed, &[Fd, Int, Int, Int]),
    captured(257, "openat", Filtered, &[Fd, PATH, Int, Int]),
    captured(
        275,
        "splice",
        Suppressed,
        &[Fd, InOut(Fixed(8)), Fd, InOut(Fixed(8)), Int, Int],
    ),
    captured(276, "tee", Suppressed, &[Fd, Fd, Int, Int]),
    row(277, "sync_file_range", Fed, &[Fd, Int, Int, Int]),
    row(278, "vmsplice", Suppressed, &[Fd, InVec, Int, Int]),
    captured(285, "fallocate", Executed, &[Fd, Int, Int, Int]),
    captured(292, "dup3", Filtered, &[Fd, Fd, Int]),
    captured(293, "pipe2", Fed, &[Out(Fixed(8)), Int]),
    row(295, "preadv", Fed, &[Fd, OutVec, Int, Int, Int]),
    row(296, "pwritev", Suppressed, &[Fd, InVec, Int, Int, Int]),
    row(306, "syncfs", Fed, &[Fd]),
    captured(319, "memfd_create", Filtered, &[In(CStr), Int]),
    captured(
        326,
        "copy_file_range",
        Suppressed,
        &[Fd, InOut(Fixed(8)), Fd, InOut(Fixed(8)), Int, Int],
    ),
    row(327, "preadv2", Fed, &[Fd, OutVec, Int, Int, Int, Int]),
    row(
        328,
        "pwritev2",
        Suppressed,
        &[Fd, InVec, Int, Int, Int, Int],
    ),
    captured(434, "pidfd_open", Fed, &[Int, Int]),
    captured(436, "close_range", Filtered, &[Int, Int, Int]),
    captured(437, "openat2", Filtered, &[Fd, PATH, In(Arg(3)), Int]),
    row(
        451,
        "cachestat",
        Fed,
        &[Fd, In(Fixed(16)), Out(Fixed(40)), Int],
    ),
];
