//! Processes: descriptors that name them, creation under a chosen number, real-time scheduling.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_long, pid_t};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A descriptor that stands for a process.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// Opens it.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn open(pid: pid_t) -> io::Result<Self> {
        // SAFETY: the call takes integers and returns a new descriptor, which becomes ours alone.
        unsafe {
            let fd = check(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
            Ok(Self {
                fd: OwnedFd::from_raw_fd(fd as RawFd),
            })
        }
    }

    /// The descriptor.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// A duplicate (close-on-exec) of a descriptor of that process.
    ///
    /// # Errors
    /// When it has no such descriptor or may not be traced.
    pub fn take_descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: the call takes integers and returns a new descriptor, which becomes ours alone.
        unsafe {
            let fd = check(libc::syscall(
                libc::SYS_pidfd_getfd,
                self.fd.as_raw_fd(),
                number,
                0,
            ))?;
            Ok(OwnedFd::from_raw_fd(fd as RawFd))
        }
    }

    /// Sends a signal; there is no danger of hitting another process that got the same number.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: the call takes integers and a null pointer.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<u8>(),
                0,
            )
        };
        check(done).map(drop)
    }

    /// Whether the process ends, with all its threads, within so many milliseconds.
    #[must_use]
    pub fn ends_within(&self, milliseconds: u16) -> bool {
        let mut wanted = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::from(milliseconds)).is_ok_and(|n| n > 0)
    }
}

/// Sends a signal to one thread of a process.
///
/// # Errors
/// When there is no such thread.
pub fn signal_thread(pid: pid_t, tid: pid_t, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes integers.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}

/// Queues a signal with a code of the caller's choice, less than 0, for one thread of a process (`rt_tgsigqueueinfo`(2)).
///
/// # Errors
/// When there is no such thread, or the kernel keeps the code to itself.
pub fn queue_to_thread(pid: pid_t, tid: pid_t, signal: i32, code: i32) -> io::Result<()> {
    // The siginfo's number and code; all else is 0.
    let mut info = [0_i32; 32];
    (info[0], info[2]) = (signal, code);
    let at = info.as_ptr();
    // SAFETY: the call reads one siginfo, 128 bytes, which `info` is; the rest are integers.
    check(unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, at) }).map(drop)
}

/// The calling process's file mode creation mask, read without changing it.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn umask() -> io::Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Head and length of a thread's list of robust futexes.
///
/// # Errors
/// When the thread is gone or may not be traced.
pub fn robust_list(tid: pid_t) -> io::Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the call fills the two live words.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })?;
    Ok((head, len))
}

/// Argument of clone3, as the kernel lays it out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// `CLONE_*`.
    pub flags: u64,
    /// Where a pidfd goes.
    pub pidfd: u64,
    /// Where the child's number goes in the child.
    pub child_tid: u64,
    /// Where the child's number goes in the parent.
    pub parent_tid: u64,
    /// Sent to the parent at the child's end.
    pub exit_signal: u64,
    /// Lowest byte of the stack, 0 for the parent's.
    pub stack: u64,
    /// Length of the stack.
    pub stack_size: u64,
    /// Thread-local storage.
    pub tls: u64,
    /// Address of wanted numbers, innermost PID namespace first.
    pub set_tid: u64,
    /// How many they are.
    pub set_tid_size: u64,
    /// A control group's descriptor.
    pub cgroup: u64,
}

impl CloneArgs {
    /// Its bytes, for a call inside another process.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let words = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ];
        let mut bytes = [0; size_of::<Self>()];
        bytes
            .chunks_exact_mut(8)
            .zip(words)
            .for_each(|(place, word)| place.copy_from_slice(&word.to_le_bytes()));
        bytes
    }
}

/// Forks a child with this number in the PID namespace for our children. The child does nothing: it
/// waits to be traced and given another life. Returns its number as we see it.
///
/// # Errors
/// EEXIST while the number is taken (a zombie holds its own), EPERM without the privilege.
pub fn fork_with_pid(wanted: pid_t) -> io::Result<pid_t> {
    let set_tid = wanted;
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: (&raw const set_tid) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the child is a copy of this process on the same (copied) stack, as with
    // fork; it only loops over a system call that takes no arguments.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        loop {
            // SAFETY: waits for a signal; touches no memory.
            unsafe { libc::syscall(libc::SYS_pause) };
        }
    }
    Ok(pid as pid_t)
}

/// The calling thread runs before every ordinary thread until this is dropped, so that it is not kept
/// from threads that it has stopped. Children do not inherit it.
#[derive(Debug)]
pub struct RealTime {
    policy: i32,
    priority: i32,
}

impl RealTime {
    /// Enters SCHED_FIFO with this priority (1 is the lowest).
    ///
    /// # Errors
    /// Without the privilege.
    pub fn enter(priority: i32) -> io::Result<Self> {
        let mut before = libc::sched_param { sched_priority: 0 };
        // SAFETY: both calls use one live structure and name the calling thread.
        let policy = unsafe {
            check(c_long::from(libc::sched_getparam(0, &raw mut before)))?;
            check(c_long::from(libc::sched_getscheduler(0)))? as i32
        };
        set_scheduler(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, priority)?;
        Ok(Self {
            policy,
            priority: before.sched_priority,
        })
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        // Going back to what the thread had cannot be refused; there is nothing to do if it is.
        let _ = set_scheduler(self.policy, self.priority);
    }
}

fn set_scheduler(policy: i32, priority: i32) -> io::Result<()> {
    set_scheduler_of(0, policy, priority)
}

fn set_scheduler_of(tid: pid_t, policy: i32, priority: i32) -> io::Result<()> {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: one live structure; scheduling changes no memory.
    check(c_long::from(unsafe {
        libc::sched_setscheduler(tid, policy, &raw const param)
    }))
    .map(drop)
}

/// An ordinary thread of another process that runs before every other ordinary thread until this is
/// dropped: so that one that shall stop gets to stop. Its nice value is kept. Only a thread that itself
/// goes before it ([`RealTime`] at priority 2 or above) can hurry another, lest it be kept from running.
#[derive(Debug)]
pub struct Hurried {
    tid: pid_t,
    policy: i32,
}

impl Hurried {
    /// Hurries a thread; `None` when it is no ordinary one, or is gone, or the caller does not go before it.
    #[must_use]
    pub fn new(tid: pid_t) -> Option<Self> {
        let mut own = libc::sched_param { sched_priority: 0 };
        // SAFETY: fills one live structure with the calling thread's priority.
        if unsafe { libc::sched_getparam(0, &raw mut own) } != 0 || own.sched_priority < 2 {
            return None;
        }
        // SAFETY: takes and returns integers.
        let policy = unsafe { libc::sched_getscheduler(tid) };
        let ordinary = matches!(
            policy & !libc::SCHED_RESET_ON_FORK,
            libc::SCHED_OTHER | libc::SCHED_BATCH
        );
        if !ordinary {
            return None;
        }
        // What it creates meanwhile is not hurried: nobody would put that back.
        set_scheduler_of(tid, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1).ok()?;
        Some(Self { tid, policy })
    }
}

impl Drop for Hurried {
    fn drop(&mut self) {
        // Refused only when the thread is gone.
        let _ = set_scheduler_of(self.tid, self.policy, 0);
    }
}

/// Keeps all memory this process has now from being paged out.
///
/// # Errors
/// Beyond the limit for locked memory.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: changes no mapping's contents.
    check(c_long::from(unsafe {
        libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT)
    }))
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_descriptor_is_taken_from_a_process() {
        let file = tempfile();
        let own = PidFd::open(std::process::id() as pid_t).unwrap();
        let copy = std::fs::File::from(own.take_descriptor(file.as_raw_fd()).unwrap());
        assert_eq!(
            copy.metadata().unwrap().ino(),
            file.metadata().unwrap().ino()
        );
        assert!(own.take_descriptor(99_999).is_err());
    }

    fn tempfile() -> std::fs::File {
        std::fs::File::open("/proc/self/exe").unwrap()
    }

    #[test]
    fn a_thread_is_real_time_only_while_it_wants_to_be() {
        // SAFETY: no argument is a pointer.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        let guard = RealTime::enter(1).unwrap();
        assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO);
        drop(guard);
        assert_eq!(policy(), before);
    }

    #[test]
    fn clone_arguments_are_laid_out_as_the_kernel_reads_them() {
        let args = CloneArgs {
            set_tid: 7,
            cgroup: 9,
            ..CloneArgs::default()
        };
        let bytes = args.to_bytes();
        assert_eq!((bytes.len(), bytes[64], bytes[80]), (88, 7, 9));
    }
}
