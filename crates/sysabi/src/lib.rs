//! The only system-call table: every x86-64 call with its class, its arguments and the buffers it fills.
//!
//! In: nothing. Out: [`TABLE`], which drives the guest's dispatch, the argument hash, what a record's
//! payload holds, and `docs/SYSCALLS.md`. A new call is a new row.
#![no_std]
#![forbid(unsafe_code)]

mod command;
mod notes;
mod shape;
mod table;

pub use notes::note;
pub use table::{COUNT, NAMED, TABLE};

/// What recording and replay do with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Recorded: executed, result and filled buffers logged. Replayed: not executed, both come from the log.
    Fed,
    /// Output. Recorded: executed (or handed to the gate), result and a hash of the bytes logged.
    /// Replayed: not executed, the hash is compared.
    Suppressed,
    /// Changes an object that threads share: executed on both sides, in the recorded order of that object.
    Ordered(Object),
    /// Executed on both sides; the application gets the logged result.
    Executed,
    /// Executed on both sides, never logged: its result carries no information of its own.
    Unlogged,
    /// The guest has code of its own for it (signals, process creation and the like).
    Filtered,
    /// Answered with ENOSYS and named once: recording it is not supported.
    Refused,
}

/// Objects that threads or processes share and that give calls their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The memory map of one process.
    Memory,
    /// The descriptor table of one process.
    Descriptors,
    /// The signal dispositions of one process.
    Signals,
    /// The container's numbering of processes and threads.
    Pids,
}

/// How long a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Len {
    /// So many bytes.
    Fixed(u16),
    /// The value of the argument with this index (from 0), in bytes.
    Arg(u8),
    /// The value of the argument with this index, times a unit in bytes.
    ArgTimes(u8, u16),
    /// As many bits as the argument says, in whole 64-bit words (`fd_set`).
    ArgBits(u8),
    /// One byte for each page of the argument's many bytes (`mincore`).
    ArgPages(u8),
    /// As many bytes as the call returned.
    Result,
    /// As many bytes as the call returned, but not more than the argument says: some calls return the
    /// length they would have liked.
    ResultUpTo(u8),
    /// As many units (of so many bytes) as the call returned.
    ResultTimes(u16),
    /// The 32-bit word that the argument with this index points to, in bytes (`socklen_t *`), but not
    /// more than it said before the call.
    Pointee(u8),
    /// Up to and with the terminating zero byte.
    CStr,
}

/// One argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// The call does not have it.
    None,
    /// A scalar: hashed.
    Int,
    /// A descriptor: hashed.
    Fd,
    /// A pointer that is not followed and not hashed.
    Addr,
    /// A buffer (or string) the call reads. May be null.
    In(Len),
    /// A buffer the call fills. May be null.
    Out(Len),
    /// A buffer the call reads and fills. May be null.
    InOut(Len),
    /// `struct iovec *` whose count is the next argument, read by the call; the result bounds the bytes.
    InVec,
    /// `struct iovec *` whose count is the next argument, filled by the call.
    OutVec,
    /// `struct msghdr *` that is sent.
    InMsg,
    /// `struct msghdr *` that is received into (name, control, flags and data).
    OutMsg,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Syscall {
    /// The number in rax.
    pub nr: u16,
    /// The kernel's name.
    pub name: &'static str,
    /// What recording and replay do.
    pub class: Class,
    /// Its arguments.
    pub args: [Arg; 6],
    /// The record's payload starts with the arguments and what the call read (`In`, `InOut`): the fold
    /// needs more than the first argument and the result.
    pub capture: bool,
}

impl Syscall {
    /// How many arguments the call has.
    #[must_use]
    pub const fn arity(&self) -> usize {
        let mut n = 6;
        while n > 0 && matches!(self.args[n - 1], Arg::None) {
            n -= 1;
        }
        n
    }
}

/// The row of a call, if the kernel this table describes has it.
#[inline]
#[must_use]
pub fn lookup(nr: u64) -> Option<&'static Syscall> {
    usize::try_from(nr)
        .ok()
        .and_then(|n| TABLE.get(n))
        .filter(|row| !row.name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_c_library() {
        macro_rules! same {
            ($($name:ident)*) => { $(
                let row = lookup(u64::try_from(libc::$name).unwrap()).unwrap();
                assert_eq!(row.name, &stringify!($name)[4..]);
            )* };
        }
        same!(SYS_read SYS_write SYS_mmap SYS_rt_sigaction SYS_ioctl SYS_readv SYS_pipe SYS_select SYS_mremap
            SYS_dup2 SYS_setitimer SYS_sendfile SYS_socket SYS_accept SYS_sendmsg SYS_shutdown SYS_socketpair
            SYS_setsockopt SYS_clone SYS_execve SYS_wait4 SYS_fcntl SYS_ftruncate SYS_getcwd SYS_unlink SYS_umask
            SYS_getrusage SYS_setuid SYS_setresgid SYS_capget SYS_sigaltstack SYS_statfs SYS_mlock SYS_prctl
            SYS_arch_prctl SYS_setrlimit SYS_mount SYS_gettid SYS_getxattr SYS_futex SYS_sched_getaffinity
            SYS_epoll_create SYS_getdents64 SYS_set_tid_address SYS_timer_create SYS_clock_gettime SYS_exit_group
            SYS_epoll_wait SYS_epoll_ctl SYS_waitid SYS_inotify_init SYS_openat SYS_newfstatat SYS_unlinkat
            SYS_pselect6 SYS_ppoll SYS_splice SYS_utimensat SYS_epoll_pwait SYS_signalfd SYS_timerfd_create
            SYS_eventfd SYS_fallocate SYS_timerfd_settime SYS_accept4 SYS_signalfd4 SYS_eventfd2
            SYS_epoll_create1 SYS_dup3 SYS_pipe2 SYS_inotify_init1 SYS_preadv SYS_pwritev SYS_recvmmsg
            SYS_prlimit64 SYS_sendmmsg SYS_renameat2 SYS_getrandom SYS_memfd_create SYS_execveat
            SYS_copy_file_range SYS_pwritev2 SYS_statx SYS_rseq SYS_io_uring_setup SYS_pidfd_open SYS_clone3
            SYS_close_range SYS_openat2 SYS_epoll_pwait2 SYS_futex_waitv);
    }

    #[test]
    fn every_filtered_and_refused_call_says_why() {
        for row in TABLE.iter().filter(|row| !row.name.is_empty()) {
            if matches!(row.class, Class::Filtered | Class::Refused) {
                assert!(note(row.nr).is_some(), "{} has no note", row.name);
            }
        }
    }

    #[test]
    fn lengths_name_arguments_that_exist() {
        for row in &TABLE {
            for arg in row.args {
                let (Arg::In(len) | Arg::Out(len) | Arg::InOut(len)) = arg else {
                    continue;
                };
                let i = match len {
                    Len::Arg(i)
                    | Len::ArgTimes(i, _)
                    | Len::ArgBits(i)
                    | Len::ArgPages(i)
                    | Len::ResultUpTo(i) => i,
                    Len::Pointee(i) => {
                        assert_eq!(
                            row.args[usize::from(i)],
                            Arg::InOut(Len::Fixed(4)),
                            "{}",
                            row.name
                        );
                        continue;
                    }
                    _ => continue,
                };
                assert_eq!(row.args[usize::from(i)], Arg::Int, "{}", row.name);
            }
            for i in 0..5 {
                if matches!(row.args[i], Arg::InVec | Arg::OutVec) {
                    assert_eq!(row.args[i + 1], Arg::Int, "{}", row.name);
                }
            }
        }
    }

    #[test]
    fn lengths_follow_arguments_and_result() {
        let bytes = |len: Len, args, result| len.bytes(&args, result, 16);
        assert_eq!(bytes(Len::ArgTimes(1, 8), [0, 3, 0, 0, 0, 0], 1), Some(24));
        assert_eq!(bytes(Len::ArgBits(0), [65, 0, 0, 0, 0, 0], 1), Some(16));
        assert_eq!(
            bytes(Len::ResultUpTo(2), [0, 0, 10, 0, 0, 0], 100),
            Some(10)
        );
        assert_eq!(bytes(Len::Result, [0; 6], -11), Some(0));
        assert_eq!(
            bytes(Len::ResultTimes(12), [0; 6], i64::MAX),
            Some(u64::MAX)
        );
        assert_eq!(bytes(Len::Pointee(2), [0; 6], 0), Some(16));
        assert_eq!(bytes(Len::CStr, [0; 6], 0), None);
    }

    #[test]
    fn commands_decide_shapes() {
        let row = |name: &str| TABLE.iter().find(|row| row.name == name).unwrap();
        let ioctl = |request| {
            row("ioctl")
                .shape(&[3, request, 0, 0, 0, 0])
                .map(|shape| shape[2])
        };
        assert_eq!(ioctl(0x5421), Some(Arg::In(Len::Fixed(4))));
        assert_eq!(ioctl(0x541b), Some(Arg::Out(Len::Fixed(4))));
        assert_eq!(ioctl(0xdead_beef), None);
        let fcntl = |command| {
            row("fcntl")
                .shape(&[3, command, 0, 0, 0, 0])
                .map(|shape| shape[2])
        };
        assert_eq!(fcntl(6), Some(Arg::In(Len::Fixed(32))));
        assert_eq!(fcntl(4), Some(Arg::Int));
        assert_eq!(row("prctl").shape(&[22, 2, 0, 0, 0, 0]), None, "seccomp");
        assert_eq!(
            row("arch_prctl").shape(&[0x1001, 0, 0, 0, 0, 0]),
            None,
            "the gs base"
        );
    }

    #[test]
    fn failed_calls_keep_nothing_but_what_goes_on() {
        let row = |nr| lookup(nr).unwrap();
        assert!(row(42).captures(0) && row(42).captures(-115) && !row(42).captures(-111));
        assert!(row(35).fills(-4) && !row(0).fills(-4));
    }

    #[test]
    fn gaps_are_no_calls() {
        assert!(
            lookup(337).is_none()
                && lookup(423).is_none()
                && lookup(470).is_none()
                && lookup(u64::MAX).is_none()
        );
        assert_eq!(lookup(469).map(|row| row.name), Some("file_setattr"));
    }
}
