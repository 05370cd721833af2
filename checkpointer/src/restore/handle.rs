//! The restored process, before it is let go.

use std::os::fd::RawFd;

use libc::pid_t;
use sys::memory::Range;
use sys::proc_maps::MapsFile;
use sys::ptrace::{self, SudConfig};
use sys::remote::{self, Batch, SCRATCH_DATA_AT, SCRATCH_DATA_LEN, SCRATCH_LEN};

use super::{RestoreError, Result};

/// A thread of a restored process.
#[derive(Clone, Copy, Debug)]
pub struct RestoredThread {
    /// Its number as we see it: for tracing.
    pub tid: pid_t,
    /// Its number in its own namespace.
    pub number: u32,
    /// User dispatch as in the image.
    pub dispatch: SudConfig,
}

/// A restored process. Its threads are traced by the thread that restored it, and stopped until the
/// caller lets them run. It is killed when its tracer ends before [`finish`](Self::finish).
#[derive(Debug)]
pub struct Restored {
    pid: pid_t,
    scratch: u64,
    keep: Vec<RawFd>,
    threads: Vec<RestoredThread>,
}

impl Restored {
    pub(super) fn new(pid: pid_t, scratch: u64, keep: Vec<RawFd>) -> Self {
        Self {
            pid,
            scratch,
            keep,
            threads: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, thread: RestoredThread) {
        self.threads.push(thread);
    }

    /// Address of the scratch mapping.
    pub(crate) fn scratch(&self) -> u64 {
        self.scratch
    }

    /// Its number as we see it; also that of its first thread.
    #[must_use]
    pub fn pid(&self) -> pid_t {
        self.pid
    }

    /// Its threads, the leader first.
    #[must_use]
    pub fn threads(&self) -> &[RestoredThread] {
        &self.threads
    }

    /// Descriptors that it kept from its maker.
    #[must_use]
    pub fn kept(&self) -> &[RawFd] {
        &self.keep
    }

    /// Memory of the process that arguments of [`run`](Self::run) may use, until [`finish`](Self::finish).
    #[must_use]
    pub fn data(&self) -> Range {
        let start = self.scratch + SCRATCH_DATA_AT;
        Range {
            start,
            end: start + SCRATCH_DATA_LEN,
        }
    }

    /// Switches user dispatch on, as in the image, for all threads.
    ///
    /// # Errors
    /// When a thread is not stopped.
    pub fn arm(&self) -> Result<()> {
        for thread in &self.threads {
            ptrace::set_sud(thread.tid, &thread.dispatch)?;
        }
        Ok(())
    }

    /// Makes system calls inside a stopped thread of the process (the leader, usually), with user
    /// dispatch off meanwhile; returns their raw results. Registers stay as they are.
    ///
    /// # Errors
    /// When the thread is not stopped or stops elsewhere. A failing call is no error.
    pub fn run(&self, tid: pid_t, batch: &Batch) -> Result<Vec<i64>> {
        let dispatch = ptrace::sud(tid)?;
        ptrace::set_sud(tid, &SudConfig::default())?;
        let results = batch.run(tid, self.scratch);
        ptrace::set_sud(tid, &dispatch)?;
        Ok(results?)
    }

    /// Lets all threads run, still traced: for replay, whose stops the caller then takes.
    ///
    /// # Errors
    /// When a thread is not stopped.
    pub fn resume(&self) -> Result<()> {
        self.threads
            .iter()
            .try_for_each(|thread| Ok(ptrace::cont(thread.tid, 0)?))
    }

    /// Removes the scratch mapping; then user dispatch is as in the image and every thread is let go untraced, but for
    /// those with the numbers `stay` in their own namespace: they stay as they are, and are returned as we see them. All
    /// threads must be stopped.
    ///
    /// # Errors
    /// When a thread is not stopped.
    pub fn finish(self, stay: &[u32]) -> Result<Vec<pid_t>> {
        self.remove_scratch()?;
        self.arm()?;
        let threads = self.threads.iter().rev();
        let (stay, go): (Vec<&RestoredThread>, Vec<_>) =
            threads.partition(|thread| stay.contains(&thread.number));
        for thread in go {
            ptrace::detach(thread.tid, 0)?;
        }
        Ok(stay.into_iter().map(|thread| thread.tid).collect())
    }

    /// Through the process's own vDSO, since the scratch cannot remove itself.
    fn remove_scratch(&self) -> Result<()> {
        let failed = |source| RestoreError::Io {
            what: "reading the memory map",
            source,
        };
        let maps = MapsFile::open(self.pid)
            .and_then(|mut file| file.read())
            .map_err(failed)?;
        let vdso = maps
            .iter()
            .find(|mapping| mapping.path == "[vdso]")
            .map(|mapping| mapping.range);
        let range = vdso.unwrap_or(Range { start: 0, end: 0 });
        let syscall = remote::find_syscall(self.pid, range.start, range.end)?;
        ptrace::set_sud(self.pid, &SudConfig::default())?;
        remote::syscall_checked(
            self.pid,
            syscall,
            libc::SYS_munmap,
            [self.scratch, SCRATCH_LEN, 0, 0, 0, 0],
        )?;
        Ok(())
    }
}
