//! Running system calls and functions inside a stopped, traced thread.
//!
//! [`syscall`] makes one call by stepping over a `syscall` instruction; [`Batch`] makes many with one
//! stop, by a small interpreter in a scratch mapping; [`call`] runs a function of the target. All leave
//! the general registers as they found them. System-call user dispatch applies to these calls as well:
//! switch it off around them ([`super::ptrace::set_sud`]).

use libc::pid_t;

use crate::memory::{self, MemoryError};
use crate::ptrace::{self, Regs, Stop, TraceError};

/// Work inside a thread that did not go as planned.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A tracing request failed.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The target's memory could not be reached.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The thread stopped for another reason.
    #[error("thread {tid} stopped unexpectedly at {rip:#x} while it worked for us: {stop:?}")]
    Unexpected {
        /// The thread.
        tid: pid_t,
        /// Why it stopped.
        stop: Stop,
        /// Its instruction pointer, 0 when it is gone.
        rip: u64,
    },
    /// A call inside the target failed.
    #[error("system call {nr} inside thread {tid} failed: {}", std::io::Error::from_raw_os_error(*errno))]
    Call {
        /// The thread.
        tid: pid_t,
        /// The call.
        nr: i64,
        /// Its error.
        errno: i32,
    },
    /// No `syscall` instruction was found where one was looked for.
    #[error("process {pid} has no syscall instruction in {start:#x}-{end:#x}")]
    NoInstruction {
        /// The process.
        pid: pid_t,
        /// Start of the range.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// More calls than the interpreter's table holds.
    #[error("a batch of {calls} calls does not fit: at most {}", MAX_CALLS)]
    TooMany {
        /// The calls.
        calls: usize,
    },
}

/// What work inside a thread returns.
pub type Result<T> = std::result::Result<T, RemoteError>;

/// The address of a `syscall` instruction in a readable range of the target (its vDSO, for instance).
///
/// # Errors
/// When the range cannot be read or holds none.
pub fn find_syscall(pid: pid_t, start: u64, end: u64) -> Result<u64> {
    let mut text = vec![0; (end - start) as usize];
    memory::read(pid, start, &mut text)?;
    let at = text.windows(2).position(|pair| pair == [0x0f, 0x05]);
    at.map(|at| start + at as u64)
        .ok_or(RemoteError::NoInstruction { pid, start, end })
}

/// Makes one system call in a stopped thread and puts its registers back. Returns the raw result.
///
/// `instruction` is the address of a `syscall` instruction in the target. A thread that the call creates
/// is not waited for.
///
/// # Errors
/// When tracing fails or the thread stops for another reason. A failing call is no error here.
pub fn syscall(tid: pid_t, instruction: u64, nr: i64, args: [u64; 6]) -> Result<i64> {
    Ok(syscall_and_child(tid, instruction, nr, args)?.0)
}

/// Like [`syscall`]; returns also the thread that the call created, by the number we see, when the caller
/// traces creation (`TRACECLONE`). That thread is attached and about to report its first stop.
///
/// # Errors
/// As [`syscall`].
pub fn syscall_and_child(
    tid: pid_t,
    instruction: u64,
    nr: i64,
    args: [u64; 6],
) -> Result<(i64, Option<pid_t>)> {
    let borrowed = Borrowed::take(tid)?;
    let mut regs = borrowed.work();
    regs.rip = instruction;
    regs.rax = nr as u64;
    regs.orig_rax = u64::MAX;
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
    ptrace::set_regs(tid, &regs)?;
    let outcome = step_over(tid).and_then(|child| Ok((ptrace::regs(tid)?.rax as i64, child)));
    borrowed.give_back()?;
    outcome
}

/// All signals but the trap's: one that is blocked when it is forced would lose its handler. Others that
/// instructions raise are blocked, too, because one may be pending from before the stop (SIGSYS of a
/// dispatched call): it must stay so.
const HELD_BACK: u64 = !(1 << (libc::SIGTRAP - 1));

/// A stopped thread whose registers we are about to use, with signals held back meanwhile: one that
/// arrived while it works for us would otherwise have to be dropped.
struct Borrowed {
    tid: pid_t,
    regs: Regs,
    mask: u64,
}

impl Borrowed {
    fn take(tid: pid_t) -> Result<Self> {
        let borrowed = Self {
            tid,
            regs: ptrace::regs(tid)?,
            mask: ptrace::sigmask(tid)?,
        };
        ptrace::set_sigmask(tid, HELD_BACK)?;
        Ok(borrowed)
    }

    /// Registers to work with: a thread that was stepping on its own would trap behind every instruction.
    fn work(&self) -> Regs {
        const TRAP_FLAG: u64 = 0x100;
        Regs {
            eflags: self.regs.eflags & !TRAP_FLAG,
            ..self.regs
        }
    }

    fn give_back(self) -> Result<()> {
        ptrace::set_sigmask(self.tid, self.mask)?;
        Ok(ptrace::set_regs(self.tid, &self.regs)?)
    }
}

/// Like [`syscall`], with a failing call as an error.
///
/// # Errors
/// As [`syscall`], and [`RemoteError::Call`].
pub fn syscall_checked(tid: pid_t, instruction: u64, nr: i64, args: [u64; 6]) -> Result<u64> {
    let result = syscall(tid, instruction, nr, args)?;
    check(tid, nr, result)
}

fn check(tid: pid_t, nr: i64, result: i64) -> Result<u64> {
    if (-4095..0).contains(&result) {
        return Err(RemoteError::Call {
            tid,
            nr,
            errno: -result as i32,
        });
    }
    Ok(result as u64)
}

fn step_over(tid: pid_t) -> Result<Option<pid_t>> {
    let mut created = None;
    loop {
        ptrace::step(tid, 0)?;
        match ptrace::wait(tid)? {
            Stop::Signal(libc::SIGTRAP) => return Ok(created),
            Stop::Clone(child) | Stop::Fork(child) | Stop::VFork(child) => created = Some(child),
            Stop::Interrupt => {}
            stop => return Err(unexpected(tid, stop)),
        }
    }
}

fn unexpected(tid: pid_t, stop: Stop) -> RemoteError {
    RemoteError::Unexpected {
        tid,
        stop,
        rip: ptrace::regs(tid).map_or(0, |regs| regs.rip),
    }
}

/// A function to run inside a thread.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its address (System V calling convention).
    pub function: u64,
    /// Its integer arguments.
    pub args: [u64; 6],
    /// Where its stack begins: writable, used downwards.
    pub stack: u64,
    /// Where it returns to: the address of an `int3` instruction.
    pub trap: u64,
}

/// Runs a function in a stopped thread until it returns (or itself traps), puts the general registers
/// back and returns the registers at the trap (the result is in `rax`).
///
/// # Errors
/// When tracing fails or the thread stops for another reason than the trap.
pub fn call(tid: pid_t, call: &Call) -> Result<Regs> {
    let borrowed = Borrowed::take(tid)?;
    let mut regs = borrowed.work();
    let stack = (call.stack & !15) - 8;
    regs.rip = call.function;
    regs.rsp = stack;
    regs.orig_rax = u64::MAX;
    [regs.rdi, regs.rsi, regs.rdx, regs.rcx, regs.r8, regs.r9] = call.args;
    regs.rax = 0;
    memory::write_u64(tid, stack, call.trap)?;
    ptrace::set_regs(tid, &regs)?;
    let outcome = run_to_trap(tid).and_then(|()| Ok(ptrace::regs(tid)?));
    borrowed.give_back()?;
    outcome
}

fn run_to_trap(tid: pid_t) -> Result<()> {
    loop {
        ptrace::cont(tid, 0)?;
        match ptrace::wait(tid)? {
            Stop::Signal(libc::SIGTRAP) => return Ok(()),
            Stop::Interrupt => {}
            stop => return Err(unexpected(tid, stop)),
        }
    }
}

/// Bytes of the scratch mapping that a [`Batch`] needs: readable, writable and executable.
pub const SCRATCH_LEN: u64 = 1 << 20;
/// Calls one batch holds.
pub const MAX_CALLS: usize = 8000;
/// Where in the scratch the caller may put arguments' memory.
pub const SCRATCH_DATA_AT: u64 = 0x1000;
/// Bytes of that part.
pub const SCRATCH_DATA_LEN: u64 = CALLS_AT - SCRATCH_DATA_AT;
/// Where in the scratch a `syscall` instruction lies once [`install`] has run.
pub const SCRATCH_SYSCALL_AT: u64 = 34;
/// Where in the scratch an `int3` lies.
pub const SCRATCH_TRAP_AT: u64 = 52;
const CALLS_AT: u64 = 0x40000;
const CALL_LEN: usize = 64;

/// Walks the table of calls that rbx points to: `{nr, a0..a5, result}`, ended by nr == -1.
#[rustfmt::skip]
const INTERPRETER: [u8; 53] = [
    0x48, 0x8b, 0x03,             //  0: mov (%rbx),%rax
    0x48, 0x83, 0xf8, 0xff,       //  3: cmp $-1,%rax
    0x74, 0x2b,                   //  7: je 52
    0x48, 0x8b, 0x7b, 0x08,       //  9: mov 8(%rbx),%rdi
    0x48, 0x8b, 0x73, 0x10,       // 13: mov 16(%rbx),%rsi
    0x48, 0x8b, 0x53, 0x18,       // 17: mov 24(%rbx),%rdx
    0x4c, 0x8b, 0x53, 0x20,       // 21: mov 32(%rbx),%r10
    0x4c, 0x8b, 0x43, 0x28,       // 25: mov 40(%rbx),%r8
    0x4c, 0x8b, 0x4b, 0x30,       // 29: mov 48(%rbx),%r9
    0x90,                         // 33: nop
    0x0f, 0x05,                   // 34: syscall
    0x48, 0x89, 0x43, 0x38,       // 36: mov %rax,56(%rbx)
    0x48, 0x83, 0xc3, 0x40,       // 40: add $64,%rbx
    0xeb, 0xd2,                   // 44: jmp 0
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
    0xcc,                         // 52: int3
];

/// Puts the interpreter into a scratch mapping of the target.
///
/// # Errors
/// When the scratch is not writable.
pub fn install(pid: pid_t, scratch: u64) -> Result<()> {
    memory::write(pid, scratch, &INTERPRETER)?;
    Ok(())
}

/// System calls to be made one after another by one thread, with one stop.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    calls: Vec<(i64, [u64; 6])>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a call and returns its index.
    pub fn push(&mut self, nr: i64, args: [u64; 6]) -> usize {
        self.calls.push((nr, args));
        self.calls.len() - 1
    }

    /// How many calls it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Makes the calls in a stopped thread whose process has the interpreter at `scratch`, and returns
    /// their raw results. The thread's registers are put back.
    ///
    /// # Errors
    /// When tracing fails, the thread stops elsewhere, or the batch is larger than [`MAX_CALLS`].
    pub fn run(&self, tid: pid_t, scratch: u64) -> Result<Vec<i64>> {
        if self.calls.len() > MAX_CALLS {
            return Err(RemoteError::TooMany {
                calls: self.calls.len(),
            });
        }
        let mut table = Vec::with_capacity((self.calls.len() + 1) * CALL_LEN);
        for (nr, args) in &self.calls {
            table.extend_from_slice(&nr.to_le_bytes());
            args.iter()
                .for_each(|arg| table.extend_from_slice(&arg.to_le_bytes()));
            table.extend_from_slice(&[0; 8]);
        }
        table.extend_from_slice(&(-1i64).to_le_bytes());
        memory::write(tid, scratch + CALLS_AT, &table)?;
        let borrowed = Borrowed::take(tid)?;
        let mut regs = borrowed.work();
        regs.rip = scratch;
        regs.rbx = scratch + CALLS_AT;
        regs.orig_rax = u64::MAX;
        regs.rax = 0;
        ptrace::set_regs(tid, &regs)?;
        let outcome = run_to_trap(tid);
        let end = ptrace::regs(tid);
        borrowed.give_back()?;
        outcome?;
        let end = end?;
        if end.rip != scratch + SCRATCH_TRAP_AT + 1 {
            return Err(RemoteError::Unexpected {
                tid,
                stop: Stop::Signal(libc::SIGTRAP),
                rip: end.rip,
            });
        }
        memory::read(
            tid,
            scratch + CALLS_AT,
            &mut table[..self.calls.len() * CALL_LEN],
        )?;
        let result = |call: &[u8]| i64::from_le_bytes(call[56..64].try_into().unwrap_or_default());
        Ok(table[..self.calls.len() * CALL_LEN]
            .chunks_exact(CALL_LEN)
            .map(result)
            .collect())
    }

    /// Like [`run`](Self::run), with the first failing call as an error.
    ///
    /// # Errors
    /// As `run`, and [`RemoteError::Call`].
    pub fn run_checked(&self, tid: pid_t, scratch: u64) -> Result<Vec<u64>> {
        let results = self.run(tid, scratch)?;
        self.calls
            .iter()
            .zip(results)
            .map(|((nr, _), result)| check(tid, *nr, result))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptrace::Options;

    #[test]
    fn calls_run_inside_the_target_and_leave_its_registers() {
        let pid = ptrace::fork_seized(Options::EXITKILL, || {
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        ptrace::interrupt(pid).unwrap();
        assert_eq!(ptrace::wait(pid).unwrap(), Stop::Interrupt);
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let vdso = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
        let (start, end) = vdso.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let instruction = find_syscall(pid, number(start), number(end)).unwrap();
        let before = ptrace::regs(pid).unwrap();
        assert_eq!(
            syscall(pid, instruction, libc::SYS_getpid, [0; 6]).unwrap(),
            i64::from(pid)
        );
        assert_eq!(
            syscall(pid, instruction, libc::SYS_close, [9999, 0, 0, 0, 0, 0]).unwrap(),
            -i64::from(libc::EBADF)
        );
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let scratch = syscall_checked(
            pid,
            instruction,
            libc::SYS_mmap,
            [0, SCRATCH_LEN, 7, flags, u64::MAX, 0],
        )
        .unwrap();
        install(pid, scratch).unwrap();
        let mut batch = Batch::new();
        batch.push(libc::SYS_umask, [0o123, 0, 0, 0, 0, 0]);
        batch.push(libc::SYS_umask, [0o22, 0, 0, 0, 0, 0]);
        batch.push(libc::SYS_getppid, [0; 6]);
        let results = batch.run_checked(pid, scratch).unwrap();
        assert_eq!(results[1], 0o123);
        assert_eq!(results[2], u64::from(std::process::id()));
        let one = syscall(pid, scratch + SCRATCH_SYSCALL_AT, libc::SYS_getpid, [0; 6]).unwrap();
        assert_eq!(one, i64::from(pid));
        let stepping = Regs {
            eflags: before.eflags | 0x100,
            ..before
        };
        ptrace::set_regs(pid, &stepping).unwrap();
        assert_eq!(batch.run_checked(pid, scratch).unwrap()[1], 0o123);
        assert_eq!(ptrace::regs(pid).unwrap().eflags, stepping.eflags);
        ptrace::set_regs(pid, &before).unwrap();
        let after = ptrace::regs(pid).unwrap();
        assert_eq!(
            (before.rip, before.rax, before.rbx, before.rsp),
            (after.rip, after.rax, after.rbx, after.rsp)
        );
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        while !matches!(ptrace::wait(pid).unwrap(), Stop::Killed(_)) {}
    }
}
