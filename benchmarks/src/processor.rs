//! Processor time of processes, as the kernel's scheduler counts it, and their memory.

use std::collections::HashMap;
use std::fs;
use std::iter::Sum;
use std::ops::Add;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use anyhow::{Context, Result};

/// What threads took from the processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// User and system time, nanoseconds.
    pub ns: u64,
    /// How often they went to sleep by themselves, to be woken again.
    pub sleeps: u64,
}

impl Add for Spent {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ns: self.ns + other.ns,
            sleeps: self.sleeps + other.sleeps,
        }
    }
}

impl Sum for Spent {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// What each thread of some processes has taken since it began.
#[derive(Clone, Debug, Default)]
pub struct Reading(HashMap<i32, Spent>);

impl Reading {
    /// Reads the threads of `processes`; those that end meanwhile do not count.
    #[must_use]
    pub fn of(processes: &[i32]) -> Self {
        let each = threads(processes).into_iter();
        Self(
            each.filter_map(|(pid, tid)| Some((tid, spent(pid, tid)?)))
                .collect(),
        )
    }

    /// What was taken since an earlier reading. A thread that ended in between does not count.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Spent {
        let each = self.0.iter().map(|(tid, now)| {
            let then = earlier.0.get(tid).copied().unwrap_or_default();
            Spent {
                ns: now.ns.saturating_sub(then.ns),
                sleeps: now.sleeps.saturating_sub(then.sleeps),
            }
        });
        each.sum()
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> Spent {
        self.0.values().copied().sum()
    }
}

/// Bytes of memory without a file behind it that these processes hold; what several of them share counts once.
#[must_use]
pub fn memory(processes: &[i32]) -> u64 {
    let of = |pid: &i32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss_Anon:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    processes.iter().map(of).sum()
}

/// Binds every thread of `processes` to one processor. What they start is bound, too.
///
/// # Errors
/// If there is no such processor.
pub fn bind(processes: &[i32], processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)
        .with_context(|| format!("{processor} is no number of a processor"))?;
    for (_, tid) in threads(processes) {
        match sched_setaffinity(Pid::from_raw(tid), &set) {
            // It has ended.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(e).with_context(|| format!("there is no processor {processor}")),
        }
    }
    Ok(())
}

/// Process and thread numbers.
fn threads(processes: &[i32]) -> Vec<(i32, i32)> {
    let of = |&pid: &i32| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        let names = tasks.into_iter().flatten().flatten();
        names.filter_map(move |task| Some((pid, task.file_name().to_str()?.parse().ok()?)))
    };
    processes.iter().flat_map(of).collect()
}

fn spent(pid: i32, tid: i32) -> Option<Spent> {
    let read = |file| fs::read_to_string(format!("/proc/{pid}/task/{tid}/{file}")).ok();
    let ns = read("schedstat")?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()?;
    let status = read("status")?;
    let sleeps = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    Some(Spent {
        ns,
        sleeps: sleeps.trim().parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_counts_from_the_earlier_reading_on() {
        let spent = |ns, sleeps| Spent { ns, sleeps };
        let earlier = Reading(HashMap::from([(1, spent(100, 1)), (2, spent(50, 2))]));
        let now = Reading(HashMap::from([(1, spent(130, 4)), (3, spent(7, 1))]));
        assert_eq!(now.since(&earlier), spent(37, 4));
        assert_eq!(now.total(), spent(137, 5));
    }

    #[test]
    fn work_is_seen() {
        let own = [std::process::id().cast_signed()];
        let before = Reading::of(&own);
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_millis(50) {}
        assert!(Reading::of(&own).since(&before).ns > 1_000_000);
    }
}
