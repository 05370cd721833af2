//! Bringing stopped threads to points where a cut is allowed.
//!
//! A cut may not fall between the effect of a recorded call and its record. So a thread is clean when it
//! is outside the guest, or blocked in a system call that had no effect yet (the image makes it again);
//! any other is let run to the hook's exit, where the guest waits for as long as it is asked to.

use std::mem::offset_of;
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest::abi::{ThreadBlock, trap};
use libc::pid_t;
use sys::memory;
use sys::process::Hurried;
use sys::ptrace::{self, Regs, Stop};

use crate::CheckpointError;
use crate::stop::{Stopped, go_on_to_stop, gone_is_fine, has_forced_signal};
use crate::waits::ERESTART_RESTARTBLOCK;

/// Where the guest of a process is.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Address of the guest's label that makes an interrupted call of a hook again.
    pub redo: u64,
    /// The instruction pointer of a thread that is in the application's own blocking call.
    pub blocking_done: u64,
    /// The instruction pointer of a thread that sleeps on a lock of the application: its image sees −EINTR
    /// there, and looks again at lock and mode.
    pub waiting_done: u64,
}

/// The words of a thread block that matter here.
struct Block {
    hook_sp: u64,
    hook_top: u64,
    inside: u64,
    why: u64,
}

impl Block {
    /// The block that gs points to, unless it is not one.
    fn of(pid: pid_t, regs: &Regs) -> Result<Option<Self>, CheckpointError> {
        let at = regs.gs_base;
        if at == 0 {
            return Ok(None);
        }
        let mut bytes = [0; size_of::<ThreadBlock>()];
        memory::read(pid, at, &mut bytes)?;
        let word = |offset: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[offset..offset + 8]);
            u64::from_le_bytes(word)
        };
        if word(offset_of!(ThreadBlock, this)) != at {
            return Ok(None);
        }
        Ok(Some(Self {
            hook_sp: word(offset_of!(ThreadBlock, hook_sp)),
            hook_top: word(offset_of!(ThreadBlock, hook_top)),
            inside: word(offset_of!(ThreadBlock, inside)),
            why: word(offset_of!(ThreadBlock, why)),
        }))
    }

    /// Whether the thread is in a hook, which has a frame of its own (lock replacements have none).
    fn in_hook(&self) -> bool {
        self.hook_sp != self.hook_top
    }
}

/// Whether the stop interrupted a system call that had no effect and is made again.
pub(crate) fn is_interrupted(regs: &Regs) -> bool {
    let result = regs.rax as i64;
    regs.orig_rax as i64 >= 0
        && (matches!(result, -512 | -513 | -514 | ERESTART_RESTARTBLOCK)
            || result == -i64::from(libc::EINTR))
}

/// The registers that the image of a stopped thread holds; `number` is that of an interrupted call.
pub(crate) fn image_regs(
    pid: pid_t,
    regs: &Regs,
    number: u64,
    guest: Option<Guest>,
) -> Result<Regs, CheckpointError> {
    let mut image = *regs;
    image.orig_rax = u64::MAX;
    if !is_interrupted(regs) {
        return Ok(image);
    }
    match (guest, Block::of(pid, regs)?) {
        (Some(guest), Some(block)) if block.in_hook() => image.rip = guest.redo,
        (Some(guest), Some(_)) if regs.rip == guest.waiting_done => {
            image.rax = i64::from(-libc::EINTR).cast_unsigned();
        }
        _ => {
            image.rip -= 2;
            image.rax = number;
        }
    }
    Ok(image)
}

/// A thread that runs to where a cut is allowed.
#[derive(Debug)]
struct Runner {
    /// Which of the processes it is of.
    process: usize,
    tid: pid_t,
    /// The address of its block; 0 for one that has just been created.
    block: u64,
    /// Whether it was asked to stop, or does so by itself.
    asked: bool,
    /// It must get a processor, however busy they are.
    _hurried: Option<Hurried>,
}

impl Runner {
    fn new(process: usize, tid: pid_t, block: u64) -> Self {
        Self {
            process,
            tid,
            block,
            asked: false,
            _hurried: Hurried::new(tid),
        }
    }

    /// One that a traced thread has created: it stops before its first instruction.
    fn born(process: usize, tid: pid_t) -> Self {
        Self {
            asked: true,
            ..Self::new(process, tid, 0)
        }
    }
}

/// Lets threads inside the guest run to where a cut is allowed, at most for `limit` in all. Those of all processes
/// run together: one may wait for what another holds.
pub(crate) fn settle(
    stopped: &mut [Stopped],
    limit: Duration,
    guest: Guest,
) -> Result<(), CheckpointError> {
    let mut running: Vec<Runner> = Vec::new();
    for (index, process) in stopped.iter().enumerate() {
        for tid in process.threads() {
            let regs = ptrace::regs(tid)?;
            if !is_clean(process.pid(), &regs, guest)? {
                memory::write_u64(process.pid(), regs.gs_base + STOP, 1)?;
                running.push(Runner::new(index, tid, regs.gs_base));
            }
        }
    }
    if running.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    let all: Vec<_> = running
        .iter()
        .map(|r| (r.process, r.tid, r.block))
        .collect();
    let outcome = run_until_clean(stopped, running, began + limit, guest);
    let waited_us = began.elapsed().as_micros() as u64;
    for (index, tid, block) in all {
        let process = &stopped[index];
        if process.threads().contains(&tid) {
            memory::write_u64(process.pid(), block + STOP, 0)?;
        }
    }
    // One that ended meanwhile has nothing to copy: the next pause finds the others without it.
    let ended = stopped.iter().find(|process| process.threads().is_empty());
    match outcome?.or(ended.map(Stopped::pid)) {
        None => Ok(()),
        Some(tid) => Err(CheckpointError::Unsettled { tid, waited_us }),
    }
}

const STOP: u64 = offset_of!(ThreadBlock, stop) as u64;
const WHY: u64 = offset_of!(ThreadBlock, why) as u64;

/// Runs these threads until each is held, or stops them where they are at the deadline. Returns a thread
/// that is not clean; all are stopped.
///
/// None is waited for while another runs: those that are hurried may have all processors, and each may need what
/// another has.
fn run_until_clean(
    stopped: &mut [Stopped],
    mut running: Vec<Runner>,
    deadline: Instant,
    guest: Guest,
) -> Result<Option<pid_t>, CheckpointError> {
    for runner in &running {
        gone_is_fine(ptrace::cont(runner.tid, 0))?;
    }
    let mut late = None;
    while !running.is_empty() && Instant::now() < deadline {
        running = look(stopped, running, &mut late)?;
        if !running.is_empty() {
            sleep(Duration::from_micros(10));
        }
    }
    for runner in &mut running {
        runner.ask_to_stop()?;
    }
    while let Some(runner) = running.pop() {
        let process = &mut stopped[runner.process];
        while runner.report(process, true, &mut late, &mut running)? == Report::Running {}
        let is_held = process.threads().contains(&runner.tid);
        if is_held && !is_clean(process.pid(), &ptrace::regs(runner.tid)?, guest)? {
            late = Some(runner.tid);
        }
    }
    Ok(late)
}

/// Looks at each running thread once; returns those that are not held yet.
fn look(
    stopped: &mut [Stopped],
    running: Vec<Runner>,
    late: &mut Option<pid_t>,
) -> Result<Vec<Runner>, CheckpointError> {
    let mut left = Vec::new();
    for mut runner in running {
        let process = &mut stopped[runner.process];
        if runner.report(process, false, late, &mut left)? == Report::Held {
            continue;
        }
        // Of one that is ending, nothing can be read any more: its end is reported soon.
        let why = memory::read_u64(process.pid(), runner.block + WHY);
        if why.is_ok_and(|why| why == trap::SETTLED) {
            runner.ask_to_stop()?;
        }
        left.push(runner);
    }
    Ok(left)
}

#[derive(PartialEq, Eq)]
enum Report {
    /// Goes on.
    Running,
    /// Stopped, or gone.
    Held,
}

impl Runner {
    fn ask_to_stop(&mut self) -> Result<(), CheckpointError> {
        if !self.asked {
            self.asked = true;
            gone_is_fine(ptrace::interrupt(self.tid))?;
        }
        Ok(())
    }

    /// Takes one report of the thread, if there is one (or waits for it). Signals are passed on, so that none is
    /// missing from the image; a thread created meanwhile makes this cut late, and is one more that runs to its stop.
    fn report(
        &self,
        process: &mut Stopped,
        wait: bool,
        late: &mut Option<pid_t>,
        running: &mut Vec<Self>,
    ) -> Result<Report, CheckpointError> {
        let stop = match if wait {
            ptrace::wait(self.tid).map(Some)
        } else {
            ptrace::try_wait(self.tid)
        } {
            Ok(None) => return Ok(Report::Running),
            Ok(Some(stop)) => stop,
            Err(error) if error.is_gone() => Stop::Exited(0),
            Err(error) => return Err(error.into()),
        };
        let signal = match stop {
            Stop::Exited(_) | Stop::Killed(_) => {
                process.forget(self.tid);
                return Ok(Report::Held);
            }
            // The signal, which is the thread's own, comes next if nothing is asked before.
            Stop::Interrupt if has_forced_signal(self.tid)? => {
                gone_is_fine(ptrace::cont(self.tid, 0))?;
                return Ok(Report::Running);
            }
            // It stops where it is, which is no place for a cut: it goes on until it is asked, and stops again when it
            // is let go (`__ptrace_unlink` in the kernel).
            Stop::Group(_) if !self.asked => 0,
            Stop::Interrupt | Stop::Group(_) => {
                process.adopt(self.tid);
                return Ok(Report::Held);
            }
            Stop::Clone(child) => {
                *late = Some(child);
                running.push(Self::born(self.process, child));
                0
            }
            Stop::Signal(signal) => signal,
            _ => 0,
        };
        if self.asked {
            go_on_to_stop(self.tid, signal)?;
        } else {
            gone_is_fine(ptrace::cont(self.tid, signal))?;
        }
        Ok(Report::Running)
    }
}

fn is_clean(pid: pid_t, regs: &Regs, guest: Guest) -> Result<bool, CheckpointError> {
    let Some(block) = Block::of(pid, regs)? else {
        return Ok(true);
    };
    // The guest has waits of its own, between a call's effect and its record: those are no place for a cut.
    let waits_for = |label: u64| is_interrupted(regs) && regs.rip == label;
    Ok(!block.in_hook() && block.inside == 0
        || block.in_hook() && waits_for(guest.blocking_done)
        || block.inside != 0 && waits_for(guest.waiting_done)
        || block.in_hook() && block.why == trap::SETTLED)
}
