//! Tracing: the ptrace requests this project needs, with typed stops.
//!
//! Every request names a thread, and must come from the thread of ours that attached to it. Threads are
//! attached with [`seize`], so that stops are those of `PTRACE_SEIZE` (see ptrace(2)).

mod breakpoint;
mod control;
mod fork;
mod registers;
mod registrations;
mod signals;
mod stops;
#[cfg(test)]
mod tests;

pub use breakpoint::{break_at, clear_break};
pub use control::{
    Options, cont, cont_syscall, detach, interrupt, listen, seize, set_options, step, traceme,
};
pub use fork::fork_seized;
pub use registers::{REGISTERS, Regs, from_words, regs, set_regs, set_xstate, to_words, xstate};
pub use registrations::{RseqConfig, SudConfig, rseq, set_sud, sud};
pub use signals::{SigInfo, pending, set_sigmask, siginfo, sigmask};
pub use stops::{Stop, event_message, try_wait, try_wait_any, wait, wait_any};

use std::io;

use libc::{c_long, c_void, pid_t};

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on thread {tid} failed: {source}")]
pub struct TraceError {
    /// The request.
    pub operation: &'static str,
    /// The thread it named.
    pub tid: pid_t,
    /// The kernel's answer.
    pub source: io::Error,
}

impl TraceError {
    /// The error of `operation` with what errno says now.
    pub(crate) fn last(operation: &'static str, tid: pid_t) -> Self {
        Self {
            operation,
            tid,
            source: io::Error::last_os_error(),
        }
    }

    /// Whether the thread is gone (or not stopped, which the kernel does not tell apart).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ESRCH | libc::ECHILD))
    }
}

/// What a request returns.
pub type Result<T> = std::result::Result<T, TraceError>;

/// One request. Callers pass either integers or pointers to live memory of the size the request uses.
fn request(
    operation: &'static str,
    code: u32,
    tid: pid_t,
    addr: usize,
    data: usize,
) -> Result<c_long> {
    // SAFETY: every caller in this module and those below passes in `addr` and `data` only integers, or addresses of
    // values it owns or borrows for the call, as large as this request reads or writes.
    let answer = unsafe { libc::ptrace(code, tid, addr as *mut c_void, data as *mut c_void) };
    if answer == -1 {
        Err(TraceError::last(operation, tid))
    } else {
        Ok(answer)
    }
}
