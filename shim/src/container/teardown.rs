//! The end of a container: everything inside is killed and waited for, so that its numbers, its link
//! and its group are free again when the handle is gone.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use sys::namespaces::pidfd_signal;

use super::Container;

/// How often to look for traced threads that only we can reap, in milliseconds.
const LOOK: u8 = 5;
/// How long to insist, in such looks: a process in an uninterruptible wait must not hold us for ever.
const LOOKS: u32 = 2000;
/// Looks that a living tracer gets for reaping them itself.
pub(super) const GRACE: u32 = 20;

impl Container {
    /// Waits for init's end and reaps it.
    ///
    /// Init's last act waits until every process inside is reaped. A traced one is reaped by its
    /// tracer, which may be this process and have nobody left to do it: after `grace` looks, do it.
    pub(super) fn reap(&mut self, grace: u32) {
        for look in 0..LOOKS {
            if self.reaped || self.try_reap() {
                self.reaped = true;
                return;
            }
            if look >= grace {
                self.reap_traced();
            }
            let mut ended = [PollFd::new(self.init.pidfd.as_fd(), PollFlags::POLLIN)];
            // A time-out and an interruption both mean: look again.
            let _ = poll(&mut ended, PollTimeout::from(LOOK));
        }
        tracing::warn!(init = self.init.pid, "the container's init does not end");
    }

    fn reap_traced(&self) {
        // The last thread of a process leaves the group as a zombie; the program is known by name.
        let zombie = self.program.as_ref().map(|program| program.pid);
        for thread in self
            .cgroup
            .threads()
            .unwrap_or_default()
            .into_iter()
            .chain(zombie)
        {
            if thread != self.init.pid {
                reap_one(thread);
            }
        }
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

/// Reaps one thread if it is ours to reap and has ended.
fn reap_one(thread: i32) {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    while let Ok(status) = waitpid(Pid::from_raw(thread), Some(flags)) {
        let over = matches!(
            status,
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) | WaitStatus::StillAlive
        );
        if over {
            break;
        }
    }
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
