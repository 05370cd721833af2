//! What a process has yet to hear of its children: SIGCHLD is pending when it goes live if there is news, and only then.
//!
//! While it replays, the kernel holds back the signals that its children's ends cause. One of them may be of a child of
//! whose end the log says that it was told, and one may be missing because another was pending at that time.

use std::fs;

use eventlog::fold::Fold;
use nix::libc;
use sys::ptrace::{self, SigInfo};
use sys::threads::inside_number;

use super::error::Result;
use super::session::Session;

/// Where number, code, child, its user and its status lie in a SIGCHLD's `siginfo_t`.
const NUMBER_AT: usize = 0;
pub(super) const CODE_AT: usize = 8;
const CHILD_AT: usize = 16;
const USER_AT: usize = 20;
const STATUS_AT: usize = 24;
/// A child has ended: by itself, killed, or killed with a core file.
const ENDED: [i32; 3] = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED];
/// Fields of /proc/PID/stat behind the name: state and status (proc_pid_stat(5)).
const STATE_FIELD: usize = 0;
const STATUS_FIELD: usize = 49;

/// Before a stopped process goes live. `number` is its number in the container, `process` ours.
pub(super) fn settle(
    session: &mut Session,
    fold: &Fold,
    (number, process): (u32, i32),
) -> Result<()> {
    let is_told = |child| fold.processes().get(&child).is_some_and(|c| c.told);
    let pending = ptrace::pending(process, true)?;
    let mut waits = pending.iter().any(|info| signal_of(info) == libc::SIGCHLD);
    if pending.iter().filter_map(ended_in).any(is_told) {
        tracing::debug!(number, "is not told of a child's end again");
        drop_one(session)?;
        waits = false;
    }
    let news = dead_children(process).find(|dead| !is_told(dead.number));
    if let Some(dead) = news.filter(|_| !waits) {
        tracing::debug!(number, ?dead, "is told of a child's end");
        let info = dead.info();
        let args = [number.into(), libc::SIGCHLD as u64, 0, 0, 0, 0];
        // From the process to itself: nobody else may say such a thing.
        session.call("SIGCHLD", libc::SYS_rt_sigqueueinfo, args, Some((2, &info)))?;
    }
    Ok(())
}

/// Takes the pending SIGCHLD away.
fn drop_one(session: &mut Session) -> Result<()> {
    let set = 1_u64 << (libc::SIGCHLD - 1);
    let at_once = session.put(&[0; 16])?;
    let args = [0, 0, at_once, size_of_val(&set) as u64, 0, 0];
    let set = set.to_ne_bytes();
    session.call("SIGCHLD", libc::SYS_rt_sigtimedwait, args, Some((0, &set)))?;
    session.flush("SIGCHLD").map(drop)
}

pub(super) fn word(info: &SigInfo, at: usize) -> i32 {
    let mut word = [0; 4];
    word.copy_from_slice(&info[at..at + 4]);
    i32::from_ne_bytes(word)
}

pub(super) fn signal_of(info: &SigInfo) -> i32 {
    word(info, NUMBER_AT)
}

/// The number of the child of whose end a signal tells.
fn ended_in(info: &SigInfo) -> Option<u32> {
    let tells = signal_of(info) == libc::SIGCHLD && ENDED.contains(&word(info, CODE_AT));
    tells.then(|| word(info, CHILD_AT).cast_unsigned())
}

/// A child that has ended and that nobody has waited for.
#[derive(Debug, PartialEq, Eq)]
struct Dead {
    /// Its number in the container.
    number: u32,
    user: u32,
    /// As wait4 gives it.
    status: i32,
}

impl Dead {
    fn read(process: i32) -> Option<Self> {
        let status = end_in(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)?;
        let about = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let user = about.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        Some(Self {
            number: inside_number(process)?,
            user: user.split_ascii_whitespace().next()?.parse().ok()?,
            status,
        })
    }

    /// What the kernel says of it to its parent.
    fn info(&self) -> SigInfo {
        let killed_by = self.status & 0x7f;
        let (code, status) = match (killed_by, self.status & 0x80) {
            (0, _) => (libc::CLD_EXITED, self.status >> 8),
            (_, 0) => (libc::CLD_KILLED, killed_by),
            _ => (libc::CLD_DUMPED, killed_by),
        };
        let mut info: SigInfo = [0; 128];
        let words = [
            (NUMBER_AT, libc::SIGCHLD),
            (CODE_AT, code),
            (CHILD_AT, self.number.cast_signed()),
            (USER_AT, self.user.cast_signed()),
            (STATUS_AT, status),
        ];
        for (at, word) in words {
            info[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        info
    }
}

/// The status of a process that has ended, from its /proc/PID/stat.
fn end_in(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let has_ended = *fields.get(STATE_FIELD)? == "Z";
    let status = fields.get(STATUS_FIELD)?.parse().ok();
    status.filter(|_| has_ended)
}

fn dead_children(process: i32) -> impl Iterator<Item = Dead> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    let lists = tasks.into_iter().flatten().flatten();
    let lists = lists.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children = lists.flat_map(|list| {
        let numbers = list.split_ascii_whitespace().map(str::parse);
        numbers.flatten().collect::<Vec<i32>>()
    });
    children.filter_map(Dead::read)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_that_has_ended_is_found_and_told_of_as_the_kernel_does() {
        let ends = |script: &str| {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let id = child.id().cast_signed();
            let dead = loop {
                let mut all = dead_children(std::process::id().cast_signed());
                if let Some(dead) = all.find(|dead| dead.number == id.cast_unsigned()) {
                    break dead;
                }
                std::thread::yield_now();
            };
            child.wait().unwrap();
            (id, dead.info())
        };
        for (script, code, status) in [
            ("exit 7", libc::CLD_EXITED, 7),
            ("kill -TERM $$", libc::CLD_KILLED, libc::SIGTERM),
        ] {
            let (id, info) = ends(script);
            assert_eq!(ended_in(&info), Some(id.cast_unsigned()));
            assert_eq!(
                (word(&info, CODE_AT), word(&info, STATUS_AT)),
                (code, status)
            );
        }
    }

    #[test]
    fn one_that_lives_is_not_dead() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(end_in(&stat), None);
        assert_eq!(end_in("1 (a) b) Z 0"), None);
    }
}
