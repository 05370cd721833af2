//! Working inside a process that has replayed: its first thread is stopped and makes calls for us.

use sys::memory;
use sys::proc_maps::MapsFile;
use sys::ptrace::{self, Options, Stop, SudConfig};
use sys::remote::{self, Batch, SCRATCH_DATA_AT, SCRATCH_DATA_LEN, SCRATCH_LEN};

use nix::libc;

use super::error::{Result, TakeoverError, io};

/// Where the scratch is looked for: nothing else lies there.
const SCRATCH_FROM: u64 = 0x2800_0000_0000;
const SCRATCH_TO: u64 = 0x2fff_0000_0000;
/// Calls that are collected before they are made.
const CALLS: usize = 4000;

/// A stopped first thread, and a batch of calls for it.
#[derive(Debug)]
pub(super) struct Session {
    pid: i32,
    dispatch: SudConfig,
    instruction: u64,
    scratch: u64,
    batch: Batch,
    data: u64,
}

/// A call, with bytes whose addresses take the places of arguments.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) nr: i64,
    pub(super) args: [u64; 6],
    pub(super) data: Vec<(usize, Vec<u8>)>,
}

/// Stops a thread and switches its user dispatch off; says what it was.
fn stop(tid: i32) -> Result<SudConfig> {
    ptrace::seize(tid, Options::EXITKILL)?;
    ptrace::interrupt(tid)?;
    loop {
        match ptrace::wait(tid)? {
            Stop::Interrupt => break,
            Stop::Signal(signal) => ptrace::cont(tid, signal)?,
            Stop::Exited(_) | Stop::Killed(_) => return Err(TakeoverError::Gone { pid: tid }),
            _ => ptrace::cont(tid, 0)?,
        }
    }
    let dispatch = ptrace::sud(tid)?;
    ptrace::set_sud(tid, &SudConfig::default())?;
    Ok(dispatch)
}

fn tell_failed(what: &'static str, results: &[i64]) {
    for (index, result) in results.iter().enumerate().filter(|(_, r)| **r < 0) {
        let error = std::io::Error::from_raw_os_error(-*result as i32);
        tracing::warn!(what, index, %error, "a call in the restored process failed");
    }
}

impl Session {
    /// Stops the first thread of a process.
    pub(super) fn open(pid: i32) -> Result<Self> {
        let dispatch = stop(pid)?;
        let maps = MapsFile::open(pid)
            .and_then(|mut file| file.read())
            .map_err(io("reading the memory map"))?;
        let taken = |at: u64| {
            maps.iter()
                .any(|m| m.range.start < at + SCRATCH_LEN && at < m.range.end)
        };
        let scratch = (SCRATCH_FROM..SCRATCH_TO)
            .step_by(1 << 30)
            .find(|at| !taken(*at))
            .unwrap_or(SCRATCH_TO);
        let vdso = maps.iter().find(|m| m.path == "[vdso]").map(|m| m.range);
        let (start, end) = vdso.map_or((0, 0), |r| (r.start, r.end));
        let instruction = remote::find_syscall(pid, start, end)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        remote::syscall_checked(
            pid,
            instruction,
            libc::SYS_mmap,
            [scratch, SCRATCH_LEN, 7, flags as u64, u64::MAX, 0],
        )?;
        remote::install(pid, scratch)?;
        Ok(Self {
            pid,
            dispatch,
            instruction,
            scratch,
            batch: Batch::new(),
            data: scratch + SCRATCH_DATA_AT,
        })
    }

    /// Adds a call whose result does not matter but for a warning; `data` comes in front of it and its
    /// address takes the place of argument `at`.
    pub(super) fn call(
        &mut self,
        what: &'static str,
        nr: i64,
        mut args: [u64; 6],
        data: Option<(usize, &[u8])>,
    ) -> Result<()> {
        let len = data.map_or(0, |(_, bytes)| bytes.len().next_multiple_of(16) as u64);
        if self.batch.len() >= CALLS || self.data + len > self.end() {
            self.flush(what)?;
        }
        if let Some((at, bytes)) = data {
            args[at] = self.put(bytes)?;
        }
        self.batch.push(nr, args);
        Ok(())
    }

    /// Puts bytes into the process until the next [`Self::flush`].
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        let at = self.data;
        memory::write(self.pid, at, bytes)?;
        self.data += bytes.len().next_multiple_of(16) as u64;
        Ok(at)
    }

    /// Bytes that [`Self::put`] still takes.
    pub(super) fn room(&self) -> u64 {
        self.end() - self.data
    }

    fn end(&self) -> u64 {
        self.scratch + SCRATCH_DATA_AT + SCRATCH_DATA_LEN
    }

    /// Makes the calls; those that fail are told.
    pub(super) fn flush(&mut self, what: &'static str) -> Result<Vec<i64>> {
        let batch = std::mem::take(&mut self.batch);
        self.data = self.scratch + SCRATCH_DATA_AT;
        let results = batch.run(self.pid, self.scratch)?;
        tell_failed(what, &results);
        Ok(results)
    }

    /// Makes calls in every thread of the process, one thread after another: what belongs to threads.
    pub(super) fn in_every_thread(&mut self, what: &'static str, calls: &[Call]) -> Result<()> {
        self.flush(what)?;
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid));
        let names = tasks.map_err(io("listing threads"))?.flatten();
        let threads = names.filter_map(|task| task.file_name().to_str()?.parse().ok());
        for tid in threads.collect::<Vec<i32>>() {
            let dispatch = if tid == self.pid {
                None
            } else {
                Some(stop(tid)?)
            };
            let mut batch = Batch::new();
            self.data = self.scratch + SCRATCH_DATA_AT;
            for Call { nr, args, data } in calls {
                let mut args = *args;
                for (at, bytes) in data {
                    args[*at] = self.put(bytes)?;
                }
                batch.push(*nr, args);
            }
            tell_failed(what, &batch.run(tid, self.scratch)?);
            if let Some(dispatch) = dispatch {
                ptrace::set_sud(tid, &dispatch)?;
                ptrace::detach(tid, 0)?;
            }
        }
        self.data = self.scratch + SCRATCH_DATA_AT;
        Ok(())
    }

    /// Lets the process go as it was.
    pub(super) fn close(mut self) -> Result<()> {
        self.flush("the rest")?;
        remote::syscall_checked(
            self.pid,
            self.instruction,
            libc::SYS_munmap,
            [self.scratch, SCRATCH_LEN, 0, 0, 0, 0],
        )?;
        ptrace::set_sud(self.pid, &self.dispatch)?;
        Ok(ptrace::detach(self.pid, 0)?)
    }
}
