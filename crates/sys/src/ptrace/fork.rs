//! Children that are traced from their first instruction.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::pid_t;

use super::{Options, Result, TraceError, seize};

/// Forks a child that runs `child` only once it is traced, and then ends with what `child` returned.
///
/// `child` (which usually ends in execve) runs in a copy of this process with one thread: it must not
/// take locks that other threads of ours may have held, the allocator's among them, unless this process
/// has one thread.
///
/// # Errors
/// When a pipe, fork or attaching fails; the child is then gone.
pub fn fork_seized(options: Options, child: impl FnOnce() -> i32) -> Result<pid_t> {
    let mut ends = [0; 2];
    // SAFETY: the call fills the two integers.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(TraceError::last("making a pipe", 0));
    }
    // SAFETY: both descriptors are new and nobody else's.
    let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: the child only reads, runs `child` (whose limits are documented above) and leaves by _exit.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(TraceError::last("fork", 0));
    }
    if pid == 0 {
        drop(write);
        let mut go = 0u8;
        // SAFETY: one byte is read into a live byte.
        let got = unsafe { libc::read(read.as_raw_fd(), (&raw mut go).cast(), 1) };
        let code = if got == 1 { child() } else { 127 };
        // SAFETY: ends the child at once, without this process's exit handlers.
        unsafe { libc::_exit(code) }
    }
    drop(read);
    let attached = seize(pid, options);
    if attached.is_ok() {
        // SAFETY: one live byte is written; a failure ends the child, which its tracer sees.
        unsafe { libc::write(write.as_raw_fd(), b"g".as_ptr().cast(), 1) };
    } else {
        drop(write);
        // SAFETY: reaps our own child, which ends because its pipe closed.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
    attached.map(|()| pid)
}
