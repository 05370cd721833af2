//! Processes that were killed in a container that is live: they gave nothing back themselves.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Acquire, Release};

use guest::abi::{MAX_SLOTS, slot};
use nix::sys::stat::fstat;
use sys::arena::Arena;

/// What the kernel says of the container's processes.
#[derive(Debug, Default)]
pub(super) struct Living {
    /// Numbers in the container.
    numbers: BTreeSet<u32>,
    /// Ours.
    pids: Vec<i32>,
    /// Some were killed since the last look.
    pub(super) has_less: bool,
}

impl Living {
    fn read(pids: Vec<i32>) -> Self {
        let mut living = Self::default();
        for pid in pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
            let number = field("NSpid:").and_then(|l| l.split_ascii_whitespace().next_back());
            let ended = field("State:").is_none_or(|s| s.trim_start().starts_with(['Z', 'X']));
            if let (false, Some(Ok(number))) = (ended, number.map(str::parse)) {
                living.numbers.insert(number);
                living.pids.push(pid);
            }
        }
        living
    }

    /// The sockets that they hold, by inode.
    pub(super) fn sockets(&self) -> BTreeSet<u64> {
        let lists = self
            .pids
            .iter()
            .map(|pid| fs::read_dir(format!("/proc/{pid}/fd")));
        let entries = lists.flatten().flatten().flatten();
        let inodes = entries.filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let inode = target.to_str()?.strip_prefix("socket:[")?;
            inode.strip_suffix(']')?.parse().ok()
        });
        inodes.collect()
    }
}

/// Gives the rings of processes back that are gone; who is left, if that can be told. `processes` lists the container's
/// processes, in our numbering.
pub(super) fn give_back(
    arena: &Arena,
    processes: impl FnOnce() -> Option<Vec<i32>>,
) -> Option<Living> {
    let rings = (0..MAX_SLOTS).map(|index| arena.slot(index));
    let used = rings.filter(|ring| ring.state.load(Acquire) == slot::LIVE);
    let used: Vec<_> = used.map(|ring| (ring, ring.pid.load(Acquire))).collect();
    // Only now: whoever said that it is there is listed if it still is.
    let mut living = Living::read(processes()?);
    for (ring, pid) in used {
        if pid != 0 && !living.numbers.contains(&pid) && ring.pid.load(Acquire) == pid {
            ring.state.store(slot::FREE, Release);
            living.has_less = true;
        }
    }
    Some(living)
}

/// The inode of a socket.
pub(super) fn inode(socket: &OwnedFd) -> Option<u64> {
    fstat(socket).ok().map(|stat| stat.st_ino)
}
