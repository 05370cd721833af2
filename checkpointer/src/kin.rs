//! Which processes there are in a container, and how they belong together.

use std::collections::VecDeque;
use std::fs;
use std::io;

use eventlog::image::{Dead, Kin};
use libc::pid_t;

use crate::CheckpointError;

/// Field of `/proc/PID/stat` (proc_pid_stat(5)) that says when the process was made.
const START_TIME: usize = 22;
/// … how many threads it has …
const THREADS: usize = 20;
/// … and how it ended.
const EXIT_CODE: usize = 52;

fn failed(what: &'static str, pid: pid_t) -> impl Fn(io::Error) -> CheckpointError {
    move |source| match source.raw_os_error() {
        // The file was there, and its process has gone since.
        Some(libc::ESRCH | libc::ENOENT) => CheckpointError::Gone { pid },
        _ => CheckpointError::Process { what, pid, source },
    }
}

/// The processes of a container but its init, by the numbers that we see.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// The program first, then each behind its parent.
    pub(crate) living: Vec<pid_t>,
    /// Those that have ended and were not waited for.
    pub(crate) dead: Vec<pid_t>,
}

impl Listed {
    /// Walks down from the container's init. Complete only while all of them stand still.
    pub(crate) fn read(init: pid_t, program: pid_t) -> Self {
        let mut listed = Self::default();
        let mut waiting: VecDeque<pid_t> = children(init).into();
        waiting.retain(|pid| *pid != program);
        waiting.push_front(program);
        while let Some(pid) = waiting.pop_front() {
            match Stat::read(pid) {
                Ok(stat) if stat.has_ended() => listed.dead.push(pid),
                Ok(_) => {
                    listed.living.push(pid);
                    waiting.extend(children(pid));
                }
                // Gone meanwhile, and what it had made has another parent now.
                Err(_) => {}
            }
        }
        listed
    }
}

fn children(pid: pid_t) -> Vec<pid_t> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let mut all = Vec::new();
    for task in tasks.flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(
            text.split_ascii_whitespace()
                .filter_map(|n| n.parse::<pid_t>().ok()),
        );
    }
    all
}

/// The place of a process among the others.
pub(crate) fn of(pid: pid_t) -> Result<Kin, CheckpointError> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(failed("reading the status", pid))?;
    let birth = Stat::read(pid)?.number(START_TIME);
    let own = |name| innermost(&status, name);
    let parent = match own("PPid:") {
        Some(parent @ 1..) => inside(parent),
        _ => 0,
    };
    Ok(Kin {
        parent,
        group: own("NSpgid:").unwrap_or(0),
        session: own("NSsid:").unwrap_or(0),
        birth,
    })
}

/// When the process was made: with its number it is a name that is never used again.
pub(crate) fn birth(pid: pid_t) -> Result<u64, CheckpointError> {
    Ok(Stat::read(pid)?.number(START_TIME))
}

/// Whether a process has ended, or is gone.
pub(crate) fn has_ended(pid: pid_t) -> bool {
    Stat::read(pid).map_or(true, |stat| stat.has_ended())
}

/// Whether a thread has ended, or is gone.
pub(crate) fn has_thread_ended(tid: pid_t) -> bool {
    Stat::read(tid).map_or(true, |stat| stat.is_dead())
}

/// Whether a process lives on without its first thread.
pub(crate) fn is_without_leader(pid: pid_t) -> bool {
    Stat::read(pid).is_ok_and(|stat| stat.is_dead() && !stat.has_ended())
}

/// How a process ended; `None` for one that lives, or that was waited for.
pub(crate) fn dead(pid: pid_t) -> Option<Dead> {
    let stat = Stat::read(pid).ok().filter(Stat::has_ended)?;
    Some(Dead {
        pid: inside(u32::try_from(pid).ok()?),
        status: stat.number(EXIT_CODE) as u32,
        kin: of(pid).ok()?,
    })
}

/// A process's number in its innermost PID namespace; 0 when it is gone.
fn inside(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    innermost(&status, "NSpid:").unwrap_or(0)
}

/// The last number of a line, which is that of the innermost namespace.
fn innermost(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

/// What `/proc/PID/stat` has behind the process's name.
struct Stat(String);

impl Stat {
    fn read(pid: pid_t) -> Result<Self, CheckpointError> {
        let text =
            fs::read_to_string(format!("/proc/{pid}/stat")).map_err(failed("reading stat", pid))?;
        // The name may hold anything, blanks and brackets too.
        let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        Ok(Self(rest.to_owned()))
    }

    /// A field by the number that proc(5) gives it.
    fn field(&self, number: usize) -> &str {
        self.0
            .split_ascii_whitespace()
            .nth(number - 3)
            .unwrap_or_default()
    }

    fn number(&self, number: usize) -> u64 {
        self.field(number).parse().unwrap_or(0)
    }

    /// Whether the thread has ended that this is of.
    fn is_dead(&self) -> bool {
        matches!(self.field(3), "Z" | "X")
    }

    /// Whether the process has ended. Others of its threads may go on without the first.
    fn has_ended(&self) -> bool {
        self.is_dead() && self.number(THREADS) <= 1
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn children_are_listed_behind_their_parents_and_the_dead_with_their_status() {
        let own = std::process::id() as pid_t;
        let mut living = Command::new("sleep").arg("60").spawn().unwrap();
        let mut ended = Command::new("false").spawn().unwrap();
        let (first, second) = (living.id() as pid_t, ended.id() as pid_t);
        while dead(second).is_none() {
            std::thread::yield_now();
        }
        let listed = Listed::read(own, first);
        assert_eq!(listed.living.first(), Some(&first));
        assert!(listed.dead.contains(&second));
        let told = dead(second).unwrap();
        assert_eq!((told.status, told.pid), (1 << 8, ended.id()));
        assert_eq!(told.kin.parent, own as u32);
        assert!(dead(first).is_none());
        assert_eq!(of(first).unwrap().birth, birth(first).unwrap());
        living.kill().unwrap();
        living.wait().unwrap();
        ended.wait().unwrap();
        assert!(matches!(birth(first), Err(CheckpointError::Gone { .. })));
    }
}
