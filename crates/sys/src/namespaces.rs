//! Processes in namespaces of their own: the forks that make and enter them, and what a child does
//! before its execve.
//!
//! The functions that fork are safe to call because the child runs a closure and then leaves by
//! `_exit`: it never returns into the caller's stack. A child of a process with several threads has
//! only the forking thread; glibc repairs its own locks there, other locks may stay held for ever, so
//! the closures must not use anything that another thread may have locked (logging, for one).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// What a child leaves with when its closure panicked.
const PANICKED: i32 = 101;

/// A child and the descriptor that stands for it.
#[derive(Debug)]
pub struct Child {
    /// Its number, as the process that forked it sees it.
    pub pid: i32,
    /// Readable once it has ended; signals sent through it cannot hit another process.
    pub pidfd: OwnedFd,
}

/// Forks the first process of a new PID namespace; `run` is its whole life and gives its exit code.
///
/// The calling thread keeps its own namespace: a helper thread does the work. Fails with `EPERM`
/// without `CAP_SYS_ADMIN`, with `ENOSPC` beyond 32 levels of namespaces.
pub fn fork_pid_one<F>(run: F) -> io::Result<Child>
where
    F: FnOnce() -> i32 + Send,
{
    on_helper_thread(move || {
        unshare(CloneFlags::CLONE_NEWPID)?;
        // SAFETY: the child runs `run` and leaves by `_exit` inside `finish`, so nothing of the
        // parent's stack is unwound twice; glibc's fork leaves its allocator usable in the child.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => finish(run),
            _ => Ok(Child {
                pid,
                pidfd: pidfd_open(pid)?,
            }),
        }
    })
}

/// Forks the calling process, which must have a single thread, and asks for number `pid` in its PID
/// namespace if given; `run` is the child's whole life and gives its exit code.
///
/// Fails with `EINVAL` in a process with several threads, `EEXIST` if the number is taken (also by a
/// process that was not reaped yet), `EPERM` without `CAP_CHECKPOINT_RESTORE` in the namespace.
pub fn fork_numbered<F>(pid: Option<i32>, run: F) -> io::Result<Child>
where
    F: FnOnce() -> i32,
{
    // The kernel allows this flag (and then does nothing) exactly when there is one thread.
    unshare(CloneFlags::CLONE_THREAD)?;
    let mut pidfd: RawFd = -1;
    let wanted = pid.unwrap_or(0);
    // SAFETY: all-zero is a valid `clone_args`: no flags, no pointers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_PIDFD as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if pid.is_some() {
        arguments.set_tid = &raw const wanted as u64;
        arguments.set_tid_size = 1;
    }
    // SAFETY: `arguments` and what it points to outlive the call; without CLONE_VM the child has its
    // own copy of the memory, and with one thread no lock can be held by a thread it does not have.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => finish(run),
        child => {
            // SAFETY: the kernel has just stored a new descriptor there, and nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child {
                pid: child as i32,
                pidfd,
            })
        }
    }
}

/// Which namespaces of a process to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enter {
    /// Its network.
    pub network: bool,
    /// Its mounts, host name and IPC objects.
    pub rest: bool,
}

/// Runs `work` in a process of its own inside the PID namespace of the process behind `pidfd` (and the
/// namespaces `enter` names), with number `number` there if given, and returns its exit code.
///
/// The process is a child of nobody inside: its parent number reads 0. Meant for short errands.
pub fn run_inside<F>(
    pidfd: BorrowedFd<'_>,
    enter: Enter,
    number: Option<i32>,
    work: F,
) -> io::Result<i32>
where
    F: FnOnce() -> i32,
{
    let mut flags = CloneFlags::CLONE_NEWPID;
    if enter.network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if enter.rest {
        flags |= CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    }
    let errand = move || -> io::Result<i32> {
        setns(pidfd, flags)?;
        let inside = fork_numbered(number, work)?;
        wait_code(inside.pid)
    };
    // SAFETY: as in `fork_pid_one`: the child leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => finish(move || errand().unwrap_or(PANICKED)),
        _ => wait_code(pid),
    }
}

/// Waits for a child and gives its exit code, 128 and the signal's number when a signal ended it.
fn wait_code(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the result.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            let code = if libc::WIFSIGNALED(status) {
                128 + libc::WTERMSIG(status)
            } else {
                libc::WEXITSTATUS(status)
            };
            return Ok(code);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The end of every child that these functions fork.
fn finish<F: FnOnce() -> i32>(run: F) -> ! {
    let code = catch_unwind(AssertUnwindSafe(run)).unwrap_or(PANICKED);
    // SAFETY: ends the process at once; no destructor or exit handler of the parent's runs twice.
    unsafe { libc::_exit(code) }
}

/// Runs `work` on a thread that lives only for it, so that it may change the thread's namespaces.
pub fn on_helper_thread<T, F>(work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    thread::scope(|scope| {
        let helper = thread::Builder::new()
            .name("namespaces".into())
            .spawn_scoped(scope, work)?;
        helper
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the helper thread panicked")))
    })
}

/// Runs `work` in the network namespace behind `network` (a descriptor of `/proc/PID/ns/net`, or a
/// pidfd); the calling thread stays where it is.
pub fn in_network<T, F>(network: BorrowedFd<'_>, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    let network = network.as_raw_fd();
    on_helper_thread(move || {
        // SAFETY: the caller's borrow outlives the helper thread, which is joined before returning.
        let network = unsafe { BorrowedFd::borrow_raw(network) };
        setns(network, CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// Runs `work` in the network and the mount namespace behind these descriptors (of `/proc/PID/ns`); the calling thread
/// stays where it is.
pub fn in_container<T, F>(network: BorrowedFd<'_>, mounts: BorrowedFd<'_>, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    on_helper_thread(move || {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        // A thread that shares root and working directory with others may not (setns(2)).
        unshare(CloneFlags::CLONE_FS)?;
        setns(mounts, CloneFlags::CLONE_NEWNS)?;
        work()
    })
}

/// A descriptor for a process of this PID namespace.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal to exactly the process behind `pidfd`. `ESRCH` once it is gone.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed: siginfo is null, which means "as kill would".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The number, in the caller's PID namespace, of the process behind `pidfd`; `None` once it was reaped
/// or if it is not visible from here.
pub fn pidfd_number(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    Ok(number.filter(|pid: &i32| *pid > 0))
}

/// Switches address-space randomisation off for the images that this process will execve.
pub fn fixed_addresses() -> io::Result<()> {
    // SAFETY: `personality` takes an integer; all ones asks without changing.
    let now = unsafe { libc::personality(0xffff_ffff) };
    if now < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let set = unsafe { libc::personality((now | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) };
    if set < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives every signal its default disposition and unblocks all: what a program expects at its start. Ignored ones
/// are among them: a program may ask, and its replay, begun by somebody else, must be told the same.
pub fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default disposition runs no code of ours. SIGKILL, SIGSTOP and libc's own are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: `empty` is initialised by sigemptyset before use.
    unsafe {
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
    }
}

/// Waits for signals for ever; one that ends the process ends it here.
pub fn pause_for_ever() -> ! {
    loop {
        // SAFETY: takes nothing, changes nothing.
        unsafe { libc::pause() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn first_process_is_number_one() {
        let child = fork_pid_one(|| nix::unistd::getpid().as_raw() + 40).unwrap();
        assert_eq!(wait_code(child.pid).unwrap(), 41);
    }

    #[test]
    fn numbered_child_gets_its_number_and_init_adopts_nobody_elses() {
        let child = fork_pid_one(|| {
            let inner = fork_numbered(Some(77), || nix::unistd::getpid().as_raw());
            inner.and_then(|inner| wait_code(inner.pid)).unwrap_or(1)
        });
        assert_eq!(wait_code(child.unwrap().pid).unwrap(), 77);
    }

    #[test]
    fn a_taken_number_is_refused() {
        let child = fork_pid_one(|| match fork_numbered(Some(1), || 0) {
            Err(error) => error.raw_os_error().unwrap_or(0),
            Ok(_) => 0,
        });
        assert_eq!(wait_code(child.unwrap().pid).unwrap(), libc::EEXIST);
    }

    #[test]
    fn a_process_with_threads_cannot_fork_numbered() {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let other = thread::spawn(move || told.recv());
        let refused = fork_numbered(None, || 0).unwrap_err();
        drop(tell);
        let _ = other.join();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn errand_runs_inside() {
        let child = fork_pid_one(|| pause_for_ever()).unwrap();
        let enter = Enter {
            network: false,
            rest: false,
        };
        let code = run_inside(child.pidfd.as_fd(), enter, Some(99), || {
            nix::unistd::getpid().as_raw() + nix::unistd::getppid().as_raw()
        });
        assert_eq!(pidfd_number(child.pidfd.as_fd()).unwrap(), Some(child.pid));
        pidfd_signal(child.pidfd.as_fd(), libc::SIGKILL).unwrap();
        assert_eq!(wait_code(child.pid).unwrap(), 128 + libc::SIGKILL);
        assert_eq!(code.unwrap(), 99);
    }
}
