//! Hiding the stop from system calls that it ended with EINTR.
//!
//! Most interrupted calls are taken up again by the kernel. A few (epoll_wait, a receive with a time-out,
//! sigtimedwait) would show EINTR to the program: they are made again by moving the instruction pointer
//! back. A call with a relative time-out would then wait its whole time once more at every checkpoint, so
//! what is left of it is worked out from when it was first met.
//!
//! What the kernel takes up again by itself may be in `restart_syscall(2)` at the next stop. Only the kernel knows
//! what that stands for, and only for this process: an image needs the call as it was first met.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libc::pid_t;
use sys::ptrace::{self, Regs};

use crate::CheckpointError;

/// What an interrupted call has in `rax` that the kernel goes on with by `restart_syscall` (include/linux/errno.h).
pub(crate) const ERESTART_RESTARTBLOCK: i64 = -516;
const RESTART: u64 = libc::SYS_restart_syscall.cast_unsigned();

/// A wait that was interrupted before, as it was made again.
#[derive(Clone, Copy, Debug)]
struct Wait {
    rip: u64,
    rsp: u64,
    left: u64,
    until: Instant,
}

/// A call that the kernel goes on with by `restart_syscall`.
#[derive(Clone, Copy, Debug)]
struct Restarted {
    rip: u64,
    rsp: u64,
    number: u64,
}

/// The waits of a process's threads.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    made_again: HashMap<pid_t, Wait>,
    restarted: HashMap<pid_t, Restarted>,
}

impl Waits {
    /// The number of the call that a stop interrupted, as the program made it.
    pub(crate) fn number(&self, tid: pid_t, regs: &Regs) -> u64 {
        let same = |call: &&Restarted| (call.rip, call.rsp) == (regs.rip, regs.rsp);
        match self.restarted.get(&tid).filter(same) {
            Some(call) if regs.orig_rax == RESTART => call.number,
            _ => regs.orig_rax,
        }
    }

    /// Keeps what the registers of an interrupted thread do not tell at its next stop.
    fn note(&mut self, tid: pid_t, regs: &Regs) {
        if regs.rax.cast_signed() == ERESTART_RESTARTBLOCK && regs.orig_rax != RESTART {
            let (rip, rsp, number) = (regs.rip, regs.rsp, regs.orig_rax);
            self.restarted.insert(tid, Restarted { rip, rsp, number });
        }
    }

    /// Called with every interrupted thread that is let go: the registers with which it goes on, when they differ: the
    /// call is made again, unless a signal waits whose handler the program expects to end it.
    ///
    /// `handled` has a bit for each signal with a handler, as in the signal mask.
    pub(crate) fn again(
        &mut self,
        tid: pid_t,
        regs: &Regs,
        handled: u64,
    ) -> Result<Option<Regs>, CheckpointError> {
        self.note(tid, regs);
        if regs.rax as i64 != -i64::from(libc::EINTR) || has_signal(tid, handled)? {
            return Ok(None);
        }
        let mut again = *regs;
        again.rip -= 2;
        again.rax = regs.orig_rax;
        again.orig_rax = u64::MAX;
        if matches!(
            regs.orig_rax as i64,
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait
        ) {
            again.r10 = self.left(tid, regs, Instant::now());
        }
        Ok(Some(again))
    }

    /// The time-out in milliseconds with which an epoll call is made again.
    fn left(&mut self, tid: pid_t, regs: &Regs, now: Instant) -> u64 {
        let timeout = regs.r10 as i32;
        if timeout <= 0 {
            self.made_again.remove(&tid);
            return regs.r10;
        }
        let same = |wait: &&Wait| (wait.rip, wait.rsp, wait.left) == (regs.rip, regs.rsp, regs.r10);
        let until = match self.made_again.get(&tid).filter(same) {
            Some(wait) => wait.until,
            None => now + Duration::from_millis(timeout as u64),
        };
        let left = until.saturating_duration_since(now).as_millis() as u64;
        self.made_again.insert(
            tid,
            Wait {
                rip: regs.rip,
                rsp: regs.rsp,
                left,
                until,
            },
        );
        left
    }
}

/// Whether a handled signal is pending that the thread does not block.
fn has_signal(tid: pid_t, handled: u64) -> Result<bool, CheckpointError> {
    let wanted = handled & !ptrace::sigmask(tid)?;
    let number = |info: &ptrace::SigInfo| i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
    let open = |info: &ptrace::SigInfo| wanted & 1 << (number(info) - 1) != 0;
    Ok(ptrace::pending(tid, false)?.iter().any(open)
        || ptrace::pending(tid, true)?.iter().any(open))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_at_its_time_however_often_it_is_interrupted() {
        let mut waits = Waits::default();
        let mut regs = ptrace::from_words([0; ptrace::REGISTERS]);
        (regs.rip, regs.rsp, regs.r10) = (0x1000, 0x2000, 100);
        let start = Instant::now();
        for step in 1..=4u64 {
            regs.r10 = waits.left(1, &regs, start + Duration::from_millis(30 * (step - 1)));
            assert_eq!(regs.r10, 100 - 30 * (step - 1));
        }
        regs.r10 = waits.left(1, &regs, start + Duration::from_millis(130));
        assert_eq!(regs.r10, 0);
        regs.r10 = 100;
        assert_eq!(
            waits.left(1, &regs, start + Duration::from_millis(140)),
            100
        );
        regs.r10 = u64::MAX;
        assert_eq!(waits.left(1, &regs, start), u64::MAX);
    }
}
