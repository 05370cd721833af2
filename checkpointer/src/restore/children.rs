//! Children of a process in the making: made by itself, so that it is their parent, and waits for them.

use eventlog::image::Dead;
use sys::ptrace::{self, Stop};
use sys::remote::{Batch, SCRATCH_SYSCALL_AT};

use super::{Child, Plan, Prepared, RestoreError, Result, check, threads};
use crate::store::ImageStore;

impl Prepared {
    /// Makes a child of this process for the images of another, as [`Self::new`] does. It begins with this one's
    /// descriptors. [`Plan::child`] is not asked.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn beget(&self, store: &ImageStore, plan: Plan<'_>) -> Result<Self> {
        check(store)?;
        let child = self.fork(store.process().pid)?;
        let mut made = Self::around(child, store, plan)?;
        made.share(self)?;
        Ok(made)
    }

    /// Makes a child that has ended as `dead` says, and that this process has not waited for.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn beget_dead(&self, dead: &Dead) -> Result<()> {
        let child = self.fork(dead.pid)?;
        let pid = child.pid;
        if let (0, code) = (dead.status & 0x7f, dead.status >> 8 & 0xff) {
            let mut regs = ptrace::regs(pid)?;
            (regs.rip, regs.orig_rax) = (self.scratch() + SCRATCH_SYSCALL_AT, u64::MAX);
            (regs.rax, regs.rdi) = (libc::SYS_exit_group as u64, code.into());
            ptrace::set_regs(pid, &regs)?;
            ptrace::cont(pid, 0)?;
        } else {
            // By a signal of another kind it would write a core.
            let number = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(number, nix::sys::signal::SIGKILL).map_err(|source| {
                RestoreError::Io {
                    what: "ending a child",
                    source: source.into(),
                }
            })?;
        }
        loop {
            match ptrace::wait(pid)? {
                Stop::Exited(_) | Stop::Killed(_) => break,
                _ => ptrace::cont(pid, 0)?,
            }
        }
        child.keep();
        Ok(())
    }

    /// Waits for a child that has ended: its number is free then.
    ///
    /// # Errors
    /// When the process is not there.
    pub fn bury(&self, number: u32) -> Result<()> {
        const WALL: u64 = 0x4000_0000;
        let mut batch = Batch::new();
        batch.push(libc::SYS_wait4, [number.into(), 0, WALL, 0, 0, 0]);
        self.run(&batch).map(drop)
    }

    /// Makes system calls inside the process; their raw results. A failing call is no error.
    ///
    /// # Errors
    /// When the process is not there.
    pub fn run(&self, batch: &Batch) -> Result<Vec<i64>> {
        Ok(batch.run(self.pid(), self.scratch())?)
    }

    fn fork(&self, wanted: u32) -> Result<Child> {
        let pid = threads::create_one(self.pid(), self.scratch(), wanted, 0, libc::SIGCHLD)?;
        Ok(Child { pid })
    }
}
