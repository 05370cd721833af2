//! Who is traced, and how it goes on.

use libc::pid_t;

use super::{Result, request};

/// Options of [`seize`] and [`set_options`]; join them with `|`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options(pub u32);

impl Options {
    /// No option.
    pub const NONE: Self = Self(0);
    /// Mark stops at system calls, so that they are no plain SIGTRAP.
    pub const SYSGOOD: Self = Self(1);
    /// Stop at fork and attach to the child.
    pub const TRACEFORK: Self = Self(1 << 1);
    /// Stop at vfork and attach to the child.
    pub const TRACEVFORK: Self = Self(1 << 2);
    /// Stop at clone and attach to the new thread.
    pub const TRACECLONE: Self = Self(1 << 3);
    /// Stop after a successful execve.
    pub const TRACEEXEC: Self = Self(1 << 4);
    /// Stop early in exit.
    pub const TRACEEXIT: Self = Self(1 << 6);
    /// Kill the thread when the tracer ends.
    pub const EXITKILL: Self = Self(1 << 20);
    /// Suspend the thread's seccomp filters while it is traced.
    pub const SUSPEND_SECCOMP: Self = Self(1 << 21);
}

impl std::ops::BitOr for Options {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Attaches to a thread without stopping it.
///
/// # Errors
/// When the kernel refuses: no such thread, already traced, no permission.
pub fn seize(tid: pid_t, options: Options) -> Result<()> {
    request("attaching", libc::PTRACE_SEIZE, tid, 0, options.0 as usize).map(drop)
}

/// Asks the calling process's parent to trace it (for a child between fork and exec).
///
/// # Errors
/// When it is traced already.
pub fn traceme() -> Result<()> {
    request("asking to be traced", libc::PTRACE_TRACEME, 0, 0, 0).map(drop)
}

/// Replaces the options of a stopped thread.
///
/// # Errors
/// When it is not stopped, or an option needs a privilege.
pub fn set_options(tid: pid_t, options: Options) -> Result<()> {
    request(
        "setting trace options",
        libc::PTRACE_SETOPTIONS,
        tid,
        0,
        options.0 as usize,
    )
    .map(drop)
}

/// Makes a running thread report [`Stop::Interrupt`](super::Stop::Interrupt) (or another stop that comes first).
///
/// # Errors
/// When the thread is gone.
pub fn interrupt(tid: pid_t) -> Result<()> {
    request("interrupting", libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped thread run and delivers a signal (0 for none).
///
/// # Errors
/// When it is not stopped.
pub fn cont(tid: pid_t, signal: i32) -> Result<()> {
    request("continuing", libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Like [`cont`], up to the next entry or exit of a system call.
///
/// # Errors
/// When it is not stopped.
pub fn cont_syscall(tid: pid_t, signal: i32) -> Result<()> {
    request(
        "continuing to a system call",
        libc::PTRACE_SYSCALL,
        tid,
        0,
        signal as usize,
    )
    .map(drop)
}

/// Leaves a thread in its job-control stop ([`Stop::Group`](super::Stop::Group)) while it stays traced.
///
/// # Errors
/// When it is not in such a stop.
pub fn listen(tid: pid_t) -> Result<()> {
    request("leaving in its group stop", libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// Executes one instruction, after delivering a signal (0 for none).
///
/// # Errors
/// When it is not stopped.
pub fn step(tid: pid_t, signal: i32) -> Result<()> {
    request("stepping", libc::PTRACE_SINGLESTEP, tid, 0, signal as usize).map(drop)
}

/// Lets a stopped thread go untraced, delivering a signal (0 for none).
///
/// # Errors
/// When it is not stopped.
pub fn detach(tid: pid_t, signal: i32) -> Result<()> {
    request("detaching", libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}
