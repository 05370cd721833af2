//! Tracing: the ptrace requests this project needs, with typed stops.
//!
//! Every request names a thread, and must come from the thread of ours that attached to it. Threads are
//! attached with [`seize`], so that stops are those of `PTRACE_SEIZE` (see ptrace(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_long, c_void, pid_t};

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

/// General registers of a stopped thread.
pub type Regs = libc::user_regs_struct;

/// Options of [`seize`] and [`set_options`]; join them with `|`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options(pub u32);

impl Options {
    /// No option.
    pub const NONE: Self = Self(0);
    /// Mark stops at system calls, so that they are no plain SIGTRAP.
    pub const SYSGOOD: Self = Self(1);
    /// Stop at fork and attach to the child.
    pub const TRACEFORK: Self = Self(1 << 1);
    /// Stop at vfork and attach to the child.
    pub const TRACEVFORK: Self = Self(1 << 2);
    /// Stop at clone and attach to the new thread.
    pub const TRACECLONE: Self = Self(1 << 3);
    /// Stop after a successful execve.
    pub const TRACEEXEC: Self = Self(1 << 4);
    /// Stop early in exit.
    pub const TRACEEXIT: Self = Self(1 << 6);
    /// Kill the thread when the tracer ends.
    pub const EXITKILL: Self = Self(1 << 20);
    /// Suspend the thread's seccomp filters while it is traced.
    pub const SUSPEND_SECCOMP: Self = Self(1 << 21);
}

impl std::ops::BitOr for Options {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a traced thread reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// About to receive this signal: pass it on with [`cont`], or drop it.
    Signal(i32),
    /// After a successful execve; the thread's number before it.
    Exec(pid_t),
    /// After clone; the new thread or process.
    Clone(pid_t),
    /// After fork; the child.
    Fork(pid_t),
    /// After vfork; the child.
    VFork(pid_t),
    /// Early in exit; the wait status to come.
    Exiting(i32),
    /// Stopped by [`interrupt`], or the first stop of a thread that was attached at its birth.
    Interrupt,
    /// Part of a job-control stop by this signal.
    Group(i32),
    /// At the entry or the exit of a system call (only with [`cont_syscall`] and `SYSGOOD`).
    Syscall,
    /// Ended with this status.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
}

/// The rseq registration of a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RseqConfig {
    /// Address of its `struct rseq`, 0 without registration.
    pub address: u64,
    /// Length it was registered with.
    pub len: u32,
    /// The signature in front of its abort handlers.
    pub signature: u32,
    /// Flags of the registration.
    pub flags: u32,
    /// Reserved.
    pub pad: u32,
}

/// System-call user dispatch of a thread; all zero when off.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SudConfig {
    /// 1 when on.
    pub mode: u64,
    /// Address of the byte that allows or blocks calls, 0 without one.
    pub selector: u64,
    /// Start of the text whose calls are always allowed.
    pub offset: u64,
    /// Length of that text.
    pub len: u64,
}

/// A pending signal, as the kernel's `siginfo_t`.
pub type SigInfo = [u8; 128];

const PTRACE_PEEKSIGINFO: u32 = 0x4209;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const PTRACE_EVENT_STOP: c_int = 128;
const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
/// More than any CPU's extended state.
const XSTATE_MAX: usize = 16 << 10;

/// One request. Callers pass either integers or pointers to live memory of the size the request uses.
fn request(
    operation: &'static str,
    code: u32,
    tid: pid_t,
    addr: usize,
    data: usize,
) -> Result<c_long> {
    // SAFETY: every caller in this module passes in `addr` and `data` only integers, or addresses of
    // values it owns or borrows for the call, as large as this request reads or writes.
    let answer = unsafe { libc::ptrace(code, tid, addr as *mut c_void, data as *mut c_void) };
    if answer == -1 {
        Err(TraceError::last(operation, tid))
    } else {
        Ok(answer)
    }
}

/// Attaches to a thread without stopping it.
///
/// # Errors
/// When the kernel refuses: no such thread, already traced, no permission.
pub fn seize(tid: pid_t, options: Options) -> Result<()> {
    request("attaching", libc::PTRACE_SEIZE, tid, 0, options.0 as usize).map(drop)
}

/// Asks the calling process's parent to trace it (for a child between fork and exec).
///
/// # Errors
/// When it is traced already.
pub fn traceme() -> Result<()> {
    request("asking to be traced", libc::PTRACE_TRACEME, 0, 0, 0).map(drop)
}

/// Replaces the options of a stopped thread.
///
/// # Errors
/// When it is not stopped, or an option needs a privilege.
pub fn set_options(tid: pid_t, options: Options) -> Result<()> {
    request(
        "setting trace options",
        libc::PTRACE_SETOPTIONS,
        tid,
        0,
        options.0 as usize,
    )
    .map(drop)
}

/// Makes a running thread report [`Stop::Interrupt`] (or another stop that comes first).
///
/// # Errors
/// When the thread is gone.
pub fn interrupt(tid: pid_t) -> Result<()> {
    request("interrupting", libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped thread run and delivers a signal (0 for none).
///
/// # Errors
/// When it is not stopped.
pub fn cont(tid: pid_t, signal: i32) -> Result<()> {
    request("continuing", libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Like [`cont`], up to the next entry or exit of a system call.
///
/// # Errors
/// When it is not stopped.
pub fn cont_syscall(tid: pid_t, signal: i32) -> Result<()> {
    request(
        "continuing to a system call",
        libc::PTRACE_SYSCALL,
        tid,
        0,
        signal as usize,
    )
    .map(drop)
}

/// Leaves a thread in its job-control stop ([`Stop::Group`]) while it stays traced.
///
/// # Errors
/// When it is not in such a stop.
pub fn listen(tid: pid_t) -> Result<()> {
    request("leaving in its group stop", libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// Executes one instruction, after delivering a signal (0 for none).
///
/// # Errors
/// When it is not stopped.
pub fn step(tid: pid_t, signal: i32) -> Result<()> {
    request("stepping", libc::PTRACE_SINGLESTEP, tid, 0, signal as usize).map(drop)
}

/// Lets a stopped thread go untraced, delivering a signal (0 for none).
///
/// # Errors
/// When it is not stopped.
pub fn detach(tid: pid_t, signal: i32) -> Result<()> {
    request("detaching", libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// General registers of a stopped thread.
///
/// # Errors
/// When it is not stopped.
pub fn regs(tid: pid_t) -> Result<Regs> {
    // SAFETY: the structure is integers alone: zeroes are a value of it.
    let mut regs: Regs = unsafe { std::mem::zeroed() };
    let mut vector = libc::iovec {
        iov_base: (&raw mut regs).cast(),
        iov_len: size_of::<Regs>(),
    };
    request(
        "reading registers",
        libc::PTRACE_GETREGSET,
        tid,
        NT_PRSTATUS,
        (&raw mut vector) as usize,
    )?;
    Ok(regs)
}

/// Sets the general registers of a stopped thread.
///
/// # Errors
/// When it is not stopped, or a register holds what the kernel does not allow.
pub fn set_regs(tid: pid_t, regs: &Regs) -> Result<()> {
    let mut copy = *regs;
    let mut vector = libc::iovec {
        iov_base: (&raw mut copy).cast(),
        iov_len: size_of::<Regs>(),
    };
    request(
        "setting registers",
        libc::PTRACE_SETREGSET,
        tid,
        NT_PRSTATUS,
        (&raw mut vector) as usize,
    )
    .map(drop)
}

/// Words of [`Regs`].
pub const REGISTERS: usize = size_of::<Regs>() / 8;

/// Registers as words, in the kernel's order.
#[must_use]
pub fn to_words(regs: &Regs) -> [u64; REGISTERS] {
    // SAFETY: the structure is REGISTERS 64-bit integers without padding.
    unsafe { std::mem::transmute::<Regs, [u64; REGISTERS]>(*regs) }
}

/// The opposite of [`to_words`].
#[must_use]
pub fn from_words(words: [u64; REGISTERS]) -> Regs {
    // SAFETY: the structure is REGISTERS 64-bit integers without padding, for which all values are valid.
    unsafe { std::mem::transmute::<[u64; REGISTERS], Regs>(words) }
}

/// The extended state (XSAVE format) of a stopped thread, into `state`, which gets its length.
///
/// # Errors
/// When it is not stopped.
pub fn xstate(tid: pid_t, state: &mut Vec<u8>) -> Result<()> {
    state.resize(XSTATE_MAX, 0);
    let mut vector = libc::iovec {
        iov_base: state.as_mut_ptr().cast(),
        iov_len: state.len(),
    };
    request(
        "reading the extended state",
        libc::PTRACE_GETREGSET,
        tid,
        NT_X86_XSTATE,
        (&raw mut vector) as usize,
    )?;
    state.truncate(vector.iov_len);
    Ok(())
}

/// Sets the extended state of a stopped thread.
///
/// # Errors
/// When it is not stopped, the length is not this CPU's, or a feature is not this CPU's.
pub fn set_xstate(tid: pid_t, state: &[u8]) -> Result<()> {
    let mut vector = libc::iovec {
        iov_base: state.as_ptr().cast_mut().cast(),
        iov_len: state.len(),
    };
    request(
        "setting the extended state",
        libc::PTRACE_SETREGSET,
        tid,
        NT_X86_XSTATE,
        (&raw mut vector) as usize,
    )
    .map(drop)
}

/// Blocked signals of a stopped thread, bit n for signal n + 1.
///
/// # Errors
/// When it is not stopped.
pub fn sigmask(tid: pid_t) -> Result<u64> {
    let mut mask = 0u64;
    request(
        "reading the signal mask",
        PTRACE_GETSIGMASK,
        tid,
        size_of::<u64>(),
        (&raw mut mask) as usize,
    )?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped thread.
///
/// # Errors
/// When it is not stopped.
pub fn set_sigmask(tid: pid_t, mask: u64) -> Result<()> {
    request(
        "setting the signal mask",
        PTRACE_SETSIGMASK,
        tid,
        size_of::<u64>(),
        (&raw const mask) as usize,
    )
    .map(drop)
}

/// The rseq registration of a stopped thread.
///
/// # Errors
/// When it is not stopped.
pub fn rseq(tid: pid_t) -> Result<RseqConfig> {
    let mut config = RseqConfig::default();
    let data = (&raw mut config) as usize;
    request(
        "reading the rseq registration",
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<RseqConfig>(),
        data,
    )?;
    Ok(config)
}

/// System-call user dispatch of a stopped thread.
///
/// # Errors
/// When it is not stopped.
pub fn sud(tid: pid_t) -> Result<SudConfig> {
    let mut config = SudConfig::default();
    let data = (&raw mut config) as usize;
    request(
        "reading user dispatch",
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of::<SudConfig>(),
        data,
    )?;
    Ok(config)
}

/// Sets system-call user dispatch of a stopped thread; the default value turns it off.
///
/// # Errors
/// When it is not stopped, or the values are not allowed.
pub fn set_sud(tid: pid_t, config: &SudConfig) -> Result<()> {
    let data = std::ptr::from_ref(config) as usize;
    request(
        "setting user dispatch",
        PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of::<SudConfig>(),
        data,
    )
    .map(drop)
}

/// Signals pending for a stopped thread (or, `shared`, for its whole process), oldest first.
///
/// # Errors
/// When it is not stopped.
pub fn pending(tid: pid_t, shared: bool) -> Result<Vec<SigInfo>> {
    #[repr(C)]
    struct Peek {
        offset: u64,
        flags: u32,
        count: i32,
    }
    const CHUNK: usize = 32;
    let mut all = Vec::new();
    loop {
        let mut chunk = [[0u8; 128]; CHUNK];
        let peek = Peek {
            offset: all.len() as u64,
            flags: u32::from(shared),
            count: CHUNK as i32,
        };
        let (addr, data) = ((&raw const peek) as usize, chunk.as_mut_ptr() as usize);
        let got = request(
            "reading pending signals",
            PTRACE_PEEKSIGINFO,
            tid,
            addr,
            data,
        )? as usize;
        all.extend_from_slice(&chunk[..got]);
        if got < CHUNK {
            return Ok(all);
        }
    }
}

/// The signal that a thread in [`Stop::Signal`] is about to receive.
///
/// # Errors
/// When it is not in such a stop.
pub fn siginfo(tid: pid_t) -> Result<SigInfo> {
    let mut info = [0u8; 128];
    request(
        "reading the signal",
        libc::PTRACE_GETSIGINFO,
        tid,
        0,
        info.as_mut_ptr() as usize,
    )?;
    Ok(info)
}

/// The value of the event that a thread stopped at.
///
/// # Errors
/// When it is not stopped.
pub fn event_message(tid: pid_t) -> Result<u64> {
    let mut message = 0u64;
    request(
        "reading the event",
        libc::PTRACE_GETEVENTMSG,
        tid,
        0,
        (&raw mut message) as usize,
    )?;
    Ok(message)
}

/// Waits until this thread stops or ends.
///
/// # Errors
/// When it is not ours to wait for.
pub fn wait(tid: pid_t) -> Result<Stop> {
    loop {
        if let Some((_, stop)) = reap(tid, libc::__WALL)? {
            return Ok(stop);
        }
    }
}

/// Like [`wait`], but `None` at once when there is nothing to report.
///
/// # Errors
/// When it is not ours to wait for.
pub fn try_wait(tid: pid_t) -> Result<Option<Stop>> {
    Ok(reap(tid, libc::__WALL | libc::WNOHANG)?.map(|(_, stop)| stop))
}

/// Waits until any of our threads and children stops or ends.
///
/// # Errors
/// When there is none.
pub fn wait_any() -> Result<(pid_t, Stop)> {
    loop {
        if let Some(report) = reap(-1, libc::__WALL)? {
            return Ok(report);
        }
    }
}

/// Like [`wait_any`], but `None` at once when there is nothing to report.
///
/// # Errors
/// When there is no child at all.
pub fn try_wait_any() -> Result<Option<(pid_t, Stop)>> {
    reap(-1, libc::__WALL | libc::WNOHANG)
}

fn reap(tid: pid_t, flags: c_int) -> Result<Option<(pid_t, Stop)>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live integer that the call fills.
        let got = unsafe { libc::waitpid(tid, &raw mut status, flags) };
        match got {
            0 => return Ok(None),
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(TraceError::last("waiting", tid)),
            got => return classify(got, status).map(|stop| Some((got, stop))),
        }
    }
}

/// What a wait status of a seized thread means.
fn classify(tid: pid_t, status: c_int) -> Result<Stop> {
    if libc::WIFEXITED(status) {
        return Ok(Stop::Exited(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Ok(Stop::Killed(libc::WTERMSIG(status)));
    }
    let signal = libc::WSTOPSIG(status);
    let message = || event_message(tid).map(|value| value as pid_t);
    Ok(match status >> 16 {
        libc::PTRACE_EVENT_EXEC => Stop::Exec(message()?),
        libc::PTRACE_EVENT_CLONE => Stop::Clone(message()?),
        libc::PTRACE_EVENT_FORK => Stop::Fork(message()?),
        libc::PTRACE_EVENT_VFORK => Stop::VFork(message()?),
        libc::PTRACE_EVENT_EXIT => Stop::Exiting(message()?),
        PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupt,
        PTRACE_EVENT_STOP => Stop::Group(signal),
        _ if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        _ => Stop::Signal(signal),
    })
}

/// Forks a child that runs `child` only once it is traced, and then ends with what `child` returned.
///
/// `child` (which usually ends in execve) runs in a copy of this process with one thread: it must not
/// take locks that other threads of ours may have held, the allocator's among them, unless this process
/// has one thread.
///
/// # Errors
/// When a pipe, fork or attaching fails; the child is then gone.
pub fn fork_seized(options: Options, child: impl FnOnce() -> i32) -> Result<pid_t> {
    let mut ends = [0; 2];
    // SAFETY: the call fills the two integers.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(TraceError::last("making a pipe", 0));
    }
    // SAFETY: both descriptors are new and nobody else's.
    let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: the child only reads, runs `child` (whose limits are documented above) and leaves by _exit.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(TraceError::last("fork", 0));
    }
    if pid == 0 {
        drop(write);
        let mut go = 0u8;
        // SAFETY: one byte is read into a live byte.
        let got = unsafe { libc::read(read.as_raw_fd(), (&raw mut go).cast(), 1) };
        let code = if got == 1 { child() } else { 127 };
        // SAFETY: ends the child at once, without this process's exit handlers.
        unsafe { libc::_exit(code) }
    }
    drop(read);
    let attached = seize(pid, options);
    if attached.is_ok() {
        // SAFETY: one live byte is written; a failure ends the child, which its tracer sees.
        unsafe { libc::write(write.as_raw_fd(), b"g".as_ptr().cast(), 1) };
    } else {
        drop(write);
        // SAFETY: reaps our own child, which ends because its pipe closed.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
    attached.map(|()| pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> pid_t {
        let pid = fork_seized(Options::EXITKILL | Options::SYSGOOD, || {
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        interrupt(pid).unwrap();
        assert_eq!(wait(pid).unwrap(), Stop::Interrupt);
        pid
    }

    fn end(pid: pid_t) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        while !matches!(wait(pid).unwrap(), Stop::Killed(libc::SIGKILL)) {}
    }

    #[test]
    fn state_is_read_and_set_as_one() {
        let pid = sleeper();
        let before = regs(pid).unwrap();
        let mut changed = before;
        changed.r15 = 0x5eed;
        set_regs(pid, &changed).unwrap();
        assert_eq!(regs(pid).unwrap().r15, 0x5eed);
        let mut state = Vec::new();
        xstate(pid, &mut state).unwrap();
        assert!(state.len() >= 576);
        set_xstate(pid, &state).unwrap();
        set_sigmask(pid, 1 << 9).unwrap();
        assert_eq!(sigmask(pid).unwrap(), 1 << 9);
        assert_ne!(rseq(pid).unwrap().address, 0);
        assert_eq!(sud(pid).unwrap(), SudConfig::default());
        let on = SudConfig {
            mode: 1,
            selector: 0,
            offset: 0x1000,
            len: 0x1000,
        };
        set_sud(pid, &on).unwrap();
        assert_eq!(sud(pid).unwrap(), on);
        set_sud(pid, &SudConfig::default()).unwrap();
        end(pid);
    }

    #[test]
    fn pending_signals_are_listed() {
        let pid = sleeper();
        set_sigmask(pid, 1 << (libc::SIGUSR1 - 1)).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGUSR1).unwrap();
        let shared = pending(pid, true).unwrap();
        assert_eq!(shared.len(), 1);
        assert_eq!(
            i32::from_ne_bytes(shared[0][..4].try_into().unwrap()),
            libc::SIGUSR1
        );
        assert!(pending(pid, false).unwrap().is_empty());
        end(pid);
    }

    #[test]
    fn a_child_runs_only_when_traced_and_its_end_is_seen() {
        let pid = fork_seized(Options::NONE, || 7).unwrap();
        assert_eq!(wait(pid).unwrap(), Stop::Exited(7));
        assert!(wait(pid).unwrap_err().is_gone());
    }
}
