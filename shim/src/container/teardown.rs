//! The end of a container: everything inside is killed and waited for, so that its numbers, its link
//! and its group are free again when the handle is gone.
//!
//! A process of which a traced thread has ended cannot be waited for by its parent until the tracer has taken note
//! (ptrace(2), "Death under ptrace"). The tracer may be the very thread that waits for that end: so where an end is
//! awaited, this is done meanwhile.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use sys::namespaces::pidfd_signal;
use sys::threads::visit_threads;

use super::Container;

/// How often to look for traced threads that only we can reap, in milliseconds.
const LOOK: u8 = 5;
/// How long to insist, in such looks: a process in an uninterruptible wait must not hold us for ever.
const LOOKS: u32 = 2000;
/// How long to insist where only the processes inside are to end, and others can take their places.
pub(super) const CLEARING: u32 = 400;
/// Looks that a living tracer gets for reaping them itself.
pub(super) const GRACE: u32 = 20;

impl Container {
    /// Waits for init's end and reaps it.
    ///
    /// Init's last act waits until every process inside is reaped. Those that this process traces are reaped here after
    /// `grace` looks.
    pub(super) fn reap(&mut self, grace: u32) {
        for look in 0..LOOKS {
            if self.reaped || self.try_reap() {
                self.reaped = true;
                return;
            }
            if look >= grace {
                self.reap_traced(WaitPidFlag::empty());
            }
            let mut ended = [PollFd::new(self.init.pidfd.as_fd(), PollFlags::POLLIN)];
            // A time-out and an interruption both mean: look again.
            let _ = poll(&mut ended, PollTimeout::from(LOOK));
        }
        tracing::warn!(init = self.init.pid, "the container's init does not end");
    }

    /// Waits until there is something to be read from init, which waits for ends itself; whether there was in time.
    pub(super) fn await_init(&self, from: BorrowedFd<'_>, grace: u32, looks: u32) -> bool {
        for look in 0..looks {
            let mut readable = [PollFd::new(from, PollFlags::POLLIN)];
            if poll(&mut readable, PollTimeout::from(LOOK)).is_ok_and(|ready| ready > 0) {
                return true;
            }
            if look >= grace {
                // Another thread of ours takes note itself, and has to know of it.
                self.reap_traced(WaitPidFlag::__WNOTHREAD);
            }
        }
        false
    }

    fn reap_traced(&self, whose: WaitPidFlag) {
        visit_threads(self.init.pid, |process, thread| {
            if process != self.init.pid {
                reap_one(thread, whose);
            }
            None::<()>
        });
    }

    fn try_reap(&self) -> bool {
        match waitpid(
            Pid::from_raw(self.init.pid),
            Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL),
        ) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => true,
            Ok(_) | Err(_) => false,
        }
    }
}

/// Reaps one thread if it is ours to reap and has ended; `whose`: whether only if it is this thread's.
fn reap_one(thread: i32, whose: WaitPidFlag) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL | whose;
    // Refused where it is not.
    let _ = waitid(Id::Pid(Pid::from_raw(thread)), flags);
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        // Init first: the kernel then kills the rest, and nothing new can be forked. It may have ended.
        let _ = pidfd_signal(self.init.pidfd.as_fd(), libc::SIGKILL);
        let _ = self.cgroup.kill();
        self.reap(0);
    }
}
