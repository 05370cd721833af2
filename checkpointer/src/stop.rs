//! Stopping every thread of a process and letting it go again.

use std::collections::BTreeSet;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use libc::pid_t;
use nix::unistd::gettid;
use sys::process::Hurried;
use sys::ptrace::{self, Options, Regs, Stop, TraceError};

use crate::CheckpointError;
use crate::kin;

/// A thread of a stopped process, as the caller sees it during the pause.
#[derive(Clone, Copy, Debug)]
pub struct StoppedThread {
    /// Its number as we see it.
    pub tid: pid_t,
    /// Its registers.
    pub regs: Regs,
}

/// All threads of a process, traced and stopped; let go when dropped.
#[derive(Debug)]
pub(crate) struct Stopped {
    pid: pid_t,
    threads: BTreeSet<pid_t>,
    /// Threads whose stop is waited for. A stop is noticed by the thread itself: it must get a processor, however busy
    /// they are, and also while other threads are hurried.
    hurried: Vec<Hurried>,
}

/// The threads of a process.
pub(crate) fn list_threads(pid: pid_t) -> Result<Vec<pid_t>, CheckpointError> {
    let failed = |source| CheckpointError::Process {
        what: "listing the threads",
        pid,
        source,
    };
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(failed)?;
    let number = |entry: fs::DirEntry| {
        entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
    };
    Ok(entries
        .filter_map(|entry| entry.ok().and_then(number))
        .collect())
}

impl Stopped {
    const fn none_of(pid: pid_t) -> Self {
        Self {
            pid,
            threads: BTreeSet::new(),
            hurried: Vec::new(),
        }
    }

    /// Attaches to all threads and stops them.
    pub(crate) fn all(pid: pid_t) -> Result<Self, CheckpointError> {
        let mut stopped = Self::none_of(pid);
        let (mut waiting, mut seen) = (Vec::new(), Vec::new());
        let outcome = stopped.stop_all(&mut waiting, &mut seen);
        // Where one could not be stopped, the others' stops still come, and they have to be let go.
        while let Some(tid) = waiting.pop() {
            stopped.await_stop(tid, &mut waiting, &mut seen)?;
        }
        outcome?;
        stopped.hurried.clear();
        if stopped.threads.is_empty() {
            Err(CheckpointError::Gone { pid })
        } else if !stopped.threads.contains(&pid) {
            Err(CheckpointError::NoLeader { pid })
        } else {
            Ok(stopped)
        }
    }

    fn stop_all(
        &mut self,
        waiting: &mut Vec<pid_t>,
        seen: &mut Vec<pid_t>,
    ) -> Result<(), CheckpointError> {
        loop {
            let fresh: Vec<_> = list_threads(self.pid)?
                .into_iter()
                .filter(|tid| !seen.contains(tid))
                .collect();
            if fresh.is_empty() {
                return Ok(());
            }
            for tid in fresh {
                seen.push(tid);
                let attached = seize(tid)?;
                self.hurried.extend(Hurried::new(tid));
                if attached.interrupt(tid)? {
                    waiting.push(tid);
                }
            }
            while let Some(tid) = waiting.pop() {
                self.await_stop(tid, waiting, seen)?;
            }
        }
    }

    /// Attaches to one thread and stops it.
    pub(crate) fn one(pid: pid_t, tid: pid_t) -> Result<Option<Self>, CheckpointError> {
        let mut stopped = Self::none_of(pid);
        if seize(tid)?.interrupt(tid)? {
            let (mut waiting, mut seen) = (vec![tid], vec![tid]);
            while let Some(tid) = waiting.pop() {
                stopped.await_stop(tid, &mut waiting, &mut seen)?;
            }
        }
        Ok((!stopped.threads.is_empty()).then_some(stopped))
    }

    /// Waits for the stop of a thread that was interrupted. A thread it has just created is stopped, too.
    fn await_stop(
        &mut self,
        tid: pid_t,
        waiting: &mut Vec<pid_t>,
        seen: &mut Vec<pid_t>,
    ) -> Result<(), CheckpointError> {
        loop {
            let stop = match ptrace::wait(tid) {
                Err(error) if error.is_gone() => return Ok(()),
                other => other?,
            };
            let signal = match stop {
                Stop::Interrupt if has_forced_signal(tid)? => {
                    take_forced_signal(tid)?;
                    continue;
                }
                Stop::Interrupt | Stop::Group(_) => {
                    self.threads.insert(tid);
                    return Ok(());
                }
                Stop::Exited(_) | Stop::Killed(_) => return Ok(()),
                Stop::Clone(child) => {
                    if !seen.contains(&child) {
                        self.hurried.extend(Hurried::new(child));
                        seen.push(child);
                        waiting.push(child);
                    }
                    0
                }
                Stop::Signal(signal) => signal,
                _ => 0,
            };
            go_on_to_stop(tid, signal)?;
        }
    }

    /// The process.
    pub(crate) fn pid(&self) -> pid_t {
        self.pid
    }

    /// The threads that are stopped, the leader first.
    pub(crate) fn threads(&self) -> Vec<pid_t> {
        let mut all: Vec<_> = self.threads.iter().copied().collect();
        all.sort_by_key(|&tid| (tid != self.pid, tid));
        all
    }

    /// Notes that a thread ended while it was let run.
    pub(crate) fn forget(&mut self, tid: pid_t) {
        self.threads.remove(&tid);
    }

    /// Takes in a thread that was created by a traced one, and has stopped.
    pub(crate) fn adopt(&mut self, tid: pid_t) {
        self.threads.insert(tid);
    }

    /// Lets every thread go, the leader last.
    pub(crate) fn release(mut self) -> Result<(), CheckpointError> {
        self.detach_all().map_err(CheckpointError::from)
    }

    fn detach_all(&mut self) -> Result<(), TraceError> {
        let mut outcome = Ok(());
        for tid in self.threads().into_iter().rev() {
            self.threads.remove(&tid);
            let detached = match ptrace::detach(tid, 0) {
                Err(error) if error.is_gone() => {
                    let_end(tid);
                    Ok(())
                }
                other => other,
            };
            outcome = outcome.and(detached);
        }
        outcome
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(error) = self.detach_all() {
            tracing::error!(%error, "a thread could not be let go");
        }
    }
}

/// Threads that a pause holds end with their tracer: one that is hurried then would otherwise keep a processor in
/// real time for ever, and nobody would let it go.
const OPTIONS: Options = Options(Options::TRACECLONE.0 | Options::EXITKILL.0);

/// Looks for the end of a thread that is ending, and the time between two.
const ENDING: u32 = 50;
const LOOK: Duration = Duration::from_micros(20);

/// What came of attaching to a thread.
enum Attached {
    /// It is gone.
    Gone,
    /// It runs on.
    Running,
    /// Its creator was attached before it: so is it, and its first stop is on its way.
    Stopping,
}

fn seize(tid: pid_t) -> Result<Attached, CheckpointError> {
    match ptrace::seize(tid, OPTIONS) {
        Ok(()) => Ok(Attached::Running),
        Err(error) if error.is_gone() => Ok(Attached::Gone),
        // Refused for one that has a tracer, and for one that has ended.
        Err(error) if error.source.raw_os_error() == Some(libc::EPERM) => {
            if is_ours(tid) {
                Ok(Attached::Stopping)
            } else if kin::has_thread_ended(tid) {
                Ok(Attached::Gone)
            } else {
                Err(error.into())
            }
        }
        Err(error) => Err(error.into()),
    }
}

impl Attached {
    /// Sees to it that the thread stops; false when it is gone.
    fn interrupt(self, tid: pid_t) -> Result<bool, CheckpointError> {
        match self {
            Self::Gone => Ok(false),
            Self::Stopping => Ok(true),
            Self::Running => interrupt(tid),
        }
    }
}

fn interrupt(tid: pid_t) -> Result<bool, CheckpointError> {
    match ptrace::interrupt(tid) {
        Err(error) if error.is_gone() => {
            let_end(tid);
            Ok(false)
        }
        other => other.map(|()| true).map_err(Into::into),
    }
}

/// A process that ends while it is traced: its parent hears of that only when its tracer has taken note.
fn let_end(tid: pid_t) {
    // One whose other threads have not ended yet has nothing to tell.
    for _ in 0..ENDING {
        match ptrace::try_wait(tid) {
            Ok(None) => sleep(LOOK),
            _ => return,
        }
    }
}

/// Whether the calling thread traces this one already.
fn is_ours(tid: pid_t) -> bool {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    // It is a thread that traces, not its process.
    tracer.and_then(|number| number.trim().parse().ok()) == Some(gettid().as_raw())
}

/// Whether a signal that the thread's own last instruction raised (the SIGSYS of a dispatched call, say)
/// waits for it. No call may be made inside such a thread: the trap at its end would let the signal go.
pub(crate) fn has_forced_signal(tid: pid_t) -> Result<bool, TraceError> {
    let forced = |info: &ptrace::SigInfo| {
        let word =
            |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
        let raised = [
            libc::SIGSYS,
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGTRAP,
        ];
        raised.contains(&word(0)) && word(8) > 0
    };
    match ptrace::pending(tid, false) {
        Err(error) if error.is_gone() => Ok(false),
        pending => Ok(pending?.iter().any(forced)),
    }
}

/// Lets the signal be delivered, and asks for a stop before the handler's first instruction.
fn take_forced_signal(tid: pid_t) -> Result<(), TraceError> {
    gone_is_fine(ptrace::cont(tid, 0))?;
    match ptrace::wait(tid) {
        Ok(Stop::Signal(signal)) => go_on_to_stop(tid, signal),
        Ok(_) => go_on_to_stop(tid, 0),
        Err(error) if error.is_gone() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets a thread go on that was asked to stop and stopped for something else. It has to be asked again: "if any other
/// ptrace-stop is generated at the same time", this comes in the other's stead (ptrace(2), `PTRACE_INTERRUPT`).
pub(crate) fn go_on_to_stop(tid: pid_t, signal: i32) -> Result<(), TraceError> {
    gone_is_fine(ptrace::interrupt(tid))?;
    gone_is_fine(ptrace::cont(tid, signal))
}

pub(crate) fn gone_is_fine(outcome: Result<(), TraceError>) -> Result<(), TraceError> {
    match outcome {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}
