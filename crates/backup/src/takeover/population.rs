//! The processes that are there when replay has come to its end: those of the checkpoint, less those that ended
//! since, and those that were made.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering::Acquire;

use eventlog::fold::Fold;
use guest::abi::{MAX_SLOTS, slot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sys::arena::Arena;
use sys::follow::find_thread;

use super::error::{Result, TakeoverError};

/// Numbers in the container, and ours.
#[derive(Debug)]
pub(super) struct Population(BTreeMap<u32, i32>);

impl Population {
    /// Reads it from the rings of a container whose replay is over. `init` is the container's, in our numbering.
    ///
    /// # Errors
    /// [`TakeoverError::Processes`] when the log knows nothing of one of them.
    pub(super) fn read(arena: &Arena, init: i32, fold: &Fold) -> Result<Self> {
        let mut all = BTreeMap::new();
        for ring in (0..MAX_SLOTS).map(|index| arena.slot(index)) {
            let state = ring.state.load(Acquire);
            if matches!(state, slot::FREE | slot::CLAIMED | slot::DONE) {
                continue;
            }
            let number = ring.pid.load(Acquire);
            if all.contains_key(&number) {
                continue;
            }
            let known = fold.processes().get(&number);
            let lives = known.is_some_and(|p| p.ended.is_none() && !p.reaped);
            match find_thread(init, number).filter(|_| lives) {
                Some((process, _)) => all.insert(number, process),
                None => return Err(TakeoverError::Processes { number }),
            };
        }
        tracing::debug!(?all, "processes after replay");
        Ok(Self(all))
    }

    /// The numbers in the container.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.0.keys().copied().collect()
    }

    /// The processes: number in the container, and ours.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, i32)> + '_ {
        self.0.iter().map(|(number, process)| (*number, *process))
    }

    /// Tells each process once more of children that have ended and that it has not waited for: while it replayed,
    /// signals that came by themselves were not its own. One that is told twice finds nothing the second time.
    pub(super) fn tell_of_the_dead(&self) {
        for (number, process) in self.iter() {
            if has_dead_children(process) {
                let told = kill(Pid::from_raw(process), Signal::SIGCHLD);
                tracing::debug!(number, ?told, "children have ended");
            }
        }
    }
}

fn has_dead_children(process: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    let lists = tasks.into_iter().flatten().flatten();
    let lists = lists.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.into_iter().any(|list| {
        list.split_ascii_whitespace().any(|child| {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
            state.is_some_and(|rest| rest.starts_with('Z'))
        })
    })
}
