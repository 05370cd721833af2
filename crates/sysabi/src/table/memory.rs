//! The memory map.

use super::{captured, refused, row};
use crate::Arg::{Fd, Int, Out};
use crate::Class::{Executed, Fed, Ordered};
use crate::Len::{ArgBits, ArgPages, Fixed};
use crate::{Object, Syscall};

const MAP: crate::Class = Ordered(Object::Memory);

pub(super) const ROWS: &[Syscall] = &[
    captured(9, "mmap", MAP, &[Int, Int, Int, Int, Fd, Int]),
    captured(10, "mprotect", MAP, &[Int, Int, Int]),
    captured(11, "munmap", MAP, &[Int, Int]),
    row(12, "brk", MAP, &[Int]),
    captured(25, "mremap", MAP, &[Int, Int, Int, Int, Int]),
    row(26, "msync", Executed, &[Int, Int, Int]),
    row(27, "mincore", Fed, &[Int, Int, Out(ArgPages(1))]),
    row(28, "madvise", Executed, &[Int, Int, Int]),
    row(149, "mlock", Executed, &[Int, Int]),
    row(150, "munlock", Executed, &[Int, Int]),
    row(151, "mlockall", Executed, &[Int]),
    row(152, "munlockall", Executed, &[]),
    refused(216, "remap_file_pages"),
    row(
        237,
        "mbind",
        Executed,
        &[Int, Int, Int, crate::Arg::Addr, Int, Int],
    ),
    row(
        238,
        "set_mempolicy",
        Executed,
        &[Int, crate::Arg::Addr, Int],
    ),
    row(
        239,
        "get_mempolicy",
        Fed,
        &[Out(Fixed(4)), Out(ArgBits(2)), Int, Int, Int],
    ),
    refused(256, "migrate_pages"),
    refused(279, "move_pages"),
    refused(310, "process_vm_readv"),
    refused(311, "process_vm_writev"),
    refused(323, "userfaultfd"),
    row(324, "membarrier", Executed, &[Int, Int, Int]),
    row(325, "mlock2", Executed, &[Int, Int, Int]),
    refused(329, "pkey_mprotect"),
    refused(330, "pkey_alloc"),
    refused(331, "pkey_free"),
    refused(440, "process_madvise"),
    refused(447, "memfd_secret"),
    refused(448, "process_mrelease"),
    row(
        450,
        "set_mempolicy_home_node",
        Executed,
        &[Int, Int, Int, Int],
    ),
    refused(453, "map_shadow_stack"),
    refused(462, "mseal"),
];
