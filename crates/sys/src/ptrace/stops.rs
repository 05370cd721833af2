//! Waiting for stops, and what they mean.

use std::io;

use libc::{c_int, pid_t};

use super::{Result, TraceError, request};

const PTRACE_EVENT_STOP: c_int = 128;

/// Why a traced thread reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// About to receive this signal: pass it on with [`cont`](super::cont), or drop it.
    Signal(i32),
    /// After a successful execve; the thread's number before it.
    Exec(pid_t),
    /// After clone; the new thread or process.
    Clone(pid_t),
    /// After fork; the child.
    Fork(pid_t),
    /// After vfork; the child.
    VFork(pid_t),
    /// Early in exit; the wait status to come.
    Exiting(i32),
    /// Stopped by [`interrupt`](super::interrupt), or the first stop of a thread that was attached at its birth.
    Interrupt,
    /// Part of a job-control stop by this signal.
    Group(i32),
    /// At the entry or the exit of a system call (only with [`cont_syscall`](super::cont_syscall) and `SYSGOOD`).
    Syscall,
    /// Ended with this status.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
}

/// The value of the event that a thread stopped at.
///
/// # Errors
/// When it is not stopped.
pub fn event_message(tid: pid_t) -> Result<u64> {
    let mut message = 0u64;
    request(
        "reading the event",
        libc::PTRACE_GETEVENTMSG,
        tid,
        0,
        (&raw mut message) as usize,
    )?;
    Ok(message)
}

/// Waits until this thread stops or ends.
///
/// # Errors
/// When it is not ours to wait for.
pub fn wait(tid: pid_t) -> Result<Stop> {
    loop {
        if let Some((_, stop)) = reap(tid, libc::__WALL)? {
            return Ok(stop);
        }
    }
}

/// Like [`wait`], but `None` at once when there is nothing to report.
///
/// # Errors
/// When it is not ours to wait for.
pub fn try_wait(tid: pid_t) -> Result<Option<Stop>> {
    Ok(reap(tid, libc::__WALL | libc::WNOHANG)?.map(|(_, stop)| stop))
}

/// Waits until any of our threads and children stops or ends.
///
/// # Errors
/// When there is none.
pub fn wait_any() -> Result<(pid_t, Stop)> {
    loop {
        if let Some(report) = reap(-1, libc::__WALL)? {
            return Ok(report);
        }
    }
}

/// Like [`wait_any`], but `None` at once when there is nothing to report.
///
/// # Errors
/// When there is no child at all.
pub fn try_wait_any() -> Result<Option<(pid_t, Stop)>> {
    reap(-1, libc::__WALL | libc::WNOHANG)
}

fn reap(tid: pid_t, flags: c_int) -> Result<Option<(pid_t, Stop)>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live integer that the call fills.
        let got = unsafe { libc::waitpid(tid, &raw mut status, flags) };
        match got {
            0 => return Ok(None),
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(TraceError::last("waiting", tid)),
            got => return classify(got, status).map(|stop| Some((got, stop))),
        }
    }
}

/// What a wait status of a seized thread means.
fn classify(tid: pid_t, status: c_int) -> Result<Stop> {
    if libc::WIFEXITED(status) {
        return Ok(Stop::Exited(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Ok(Stop::Killed(libc::WTERMSIG(status)));
    }
    let signal = libc::WSTOPSIG(status);
    let message = || event_message(tid).map(|value| value as pid_t);
    Ok(match status >> 16 {
        libc::PTRACE_EVENT_EXEC => Stop::Exec(message()?),
        libc::PTRACE_EVENT_CLONE => Stop::Clone(message()?),
        libc::PTRACE_EVENT_FORK => Stop::Fork(message()?),
        libc::PTRACE_EVENT_VFORK => Stop::VFork(message()?),
        libc::PTRACE_EVENT_EXIT => Stop::Exiting(message()?),
        PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupt,
        PTRACE_EVENT_STOP => Stop::Group(signal),
        _ if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        _ => Stop::Signal(signal),
    })
}
