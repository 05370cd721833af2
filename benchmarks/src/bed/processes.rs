//! Which processes belong to a host.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

use super::ip;

/// All processes in a network namespace, those started as `roots`, and everything below them: containers
/// have namespaces of their own, but an ancestor on their host. Zombies do not count. This process, which
/// may have a thread on the host, does not either.
pub(super) fn of(netns: &str, roots: &[i32]) -> Vec<i32> {
    let inode = fs::metadata(ip::path(netns)).map(|m| m.ino()).ok();
    let us = std::process::id().cast_signed();
    trees(|pid, parent| {
        let inside = inode.is_some()
            && fs::metadata(format!("/proc/{pid}/ns/net"))
                .map(|m| m.ino())
                .ok()
                == inode;
        // A number in `roots` may have been given to a stranger since: ours are our children.
        pid != us && (inside || (parent == us && roots.contains(&pid)))
    })
}

/// The process `root` and those below it whose command has this name.
#[must_use]
pub fn below(root: i32, command: &str) -> Vec<i32> {
    let mut all = trees(|pid, _| pid == root);
    all.retain(|pid| name(*pid).is_some_and(|found| found == command));
    all
}

/// The processes that `is_root` picks by number and parent, and all below them, without zombies.
fn trees(is_root: impl Fn(i32, i32) -> bool) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let mut zombies = HashSet::new();
    let mut todo: Vec<i32> = Vec::new();
    for (pid, parent, zombie) in all() {
        children.entry(parent).or_default().push(pid);
        if zombie {
            zombies.insert(pid);
        }
        if is_root(pid, parent) {
            todo.push(pid);
        }
    }
    let mut found = HashSet::new();
    while let Some(pid) = todo.pop() {
        if found.insert(pid) {
            todo.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
        .into_iter()
        .filter(|pid| !zombies.contains(pid))
        .collect()
}

/// Number, parent and whether it is dead already, of each process.
fn all() -> Vec<(i32, i32, bool)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before the state may hold anything, parentheses and blanks included.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        let state = fields.next()?;
        Some((
            pid,
            fields.next()?.parse().ok()?,
            matches!(state, "Z" | "X"),
        ))
    })
    .collect()
}

/// SIGKILL; a process that is gone already is no error.
pub(super) fn kill(pid: i32) {
    let _ = send(Pid::from_raw(pid), Signal::SIGKILL);
}

/// The first 15 bytes of the name of what a process runs.
pub(super) fn name(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim_end().to_owned())
}
