//! The threads of a container: their numbers there and on the host, and what they do.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::pid_t;

/// Host numbers (process, thread) of the thread with a number in the PID namespace of `init`, which may be any process
/// there. Also of one that has ended and that nobody has waited for.
#[must_use]
pub fn find_thread(init: pid_t, number: u32) -> Option<(pid_t, pid_t)> {
    let inside = File::open(format!("/proc/{init}/ns/pid")).ok()?;
    let process = translate(inside.as_fd(), Wanted::Process, number).ok()?;
    let thread = translate(inside.as_fd(), Wanted::Thread, number).ok()?;
    Some((process, thread))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Thread,
    Process,
}

/// The host number of the thread `number` of a PID namespace, or of its process (ioctl_nsfs(2); since Linux 6.11).
fn translate(inside: BorrowedFd<'_>, wanted: Wanted, number: u32) -> io::Result<pid_t> {
    const NS_GET_PID_FROM_PIDNS: libc::c_ulong = 0x8004_b706;
    const NS_GET_TGID_FROM_PIDNS: libc::c_ulong = 0x8004_b707;
    let request = match wanted {
        Wanted::Thread => NS_GET_PID_FROM_PIDNS,
        Wanted::Process => NS_GET_TGID_FROM_PIDNS,
    };
    // SAFETY: both take a number and touch no memory of ours.
    let found = unsafe { libc::ioctl(inside.as_raw_fd(), request, libc::c_ulong::from(number)) };
    match found {
        ..0 => Err(io::Error::last_os_error()),
        found => Ok(found),
    }
}

/// Fails on a kernel that does not tell what [`find_thread`] asks for.
pub(crate) fn probe() -> io::Result<()> {
    let own = File::open("/proc/self/ns/pid")?;
    let number = std::process::id();
    let found = translate(own.as_fd(), Wanted::Process, number)?;
    if found.cast_unsigned() == number {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "process {number} was found as {found}"
        )))
    }
}

/// Visits the threads of a process and of its descendants, those that have ended and were not waited for among them, by
/// their host numbers (process, thread), until `visit` gives something.
pub fn visit_threads<T>(
    process: pid_t,
    mut visit: impl FnMut(pid_t, pid_t) -> Option<T>,
) -> Option<T> {
    let mut waiting = vec![process];
    while let Some(process) = waiting.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let Some(thread) = task
                .file_name()
                .to_str()
                .and_then(|s| s.parse::<pid_t>().ok())
            else {
                continue;
            };
            if let Some(found) = visit(process, thread) {
                return Some(found);
            }
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            waiting.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|s| s.parse::<pid_t>().ok()),
            );
        }
    }
    None
}

/// What a thread does, as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It runs, or would if it got a processor.
    Runs,
    /// It sleeps in a call.
    Sleeps,
    /// It is stopped, or gone.
    Stands,
}

/// What a thread of the container does; arguments as for [`find_thread`]. See proc_pid_status(5).
#[must_use]
pub fn activity(init: pid_t, number: u32) -> Activity {
    let Some((process, thread)) = find_thread(init, number) else {
        return Activity::Stands;
    };
    let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status"));
    let status = status.unwrap_or_default();
    let state = status.lines().find_map(|l| l.strip_prefix("State:"));
    match state.and_then(|state| state.trim_start().chars().next()) {
        Some('S') => Activity::Sleeps,
        // Stopped, a zombie, dead. One that is traced goes on soon.
        Some('T' | 'Z' | 'X') | None => Activity::Stands,
        Some(_) => Activity::Runs,
    }
}

/// The number of a thread, or of a process that has ended and that nobody has waited for, in its innermost PID namespace.
#[must_use]
pub fn inside_number(tid: pid_t) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}
