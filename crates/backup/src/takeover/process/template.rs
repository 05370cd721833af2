//! A process that stands by and never runs: each attempt gets a copy of it.

use std::{fs, io};

use checkpointer::ImageStore;
use shim::container::Empty;
use sys::process::PidFd;

use super::{Checkpoint, Making, Member, RawFd, Result, failed};

/// A template has a descriptor with this number, so that its copies begin with tables of descriptors that large: the
/// kernel takes some milliseconds to enlarge one that threads share.
pub(super) const HIGH_FD: RawFd = 4095;

/// A number that nobody in the container has, nor gets within the time of a log: they are given in turn.
pub(super) fn number(store: &ImageStore) -> io::Result<i32> {
    let most = fs::read_to_string("/proc/sys/kernel/pid_max")?;
    let most: u32 = most.trim().parse().map_err(io::Error::other)?;
    let is_free = |number: &u32| store.threads().iter().all(|thread| thread.tid != *number);
    let free = (1..most).rev().find(is_free).unwrap_or(most);
    free.try_into().map_err(io::Error::other)
}

impl Making {
    /// The number of the template, if there is one.
    pub(in crate::takeover) fn template(&self) -> Option<i32> {
        let template = self.members.first().filter(|_| self.template)?;
        template.empty.as_ref().map(|empty| empty.number)
    }

    /// Copies of the template.
    pub(super) fn copies(&self, checkpoint: &Checkpoint) -> Result<Vec<Member>> {
        let copies = self.members.iter().zip(checkpoint.processes());
        let copies = copies.map(|(template, store)| {
            let prepared = template.prepared.copy()?;
            let pid = prepared.pid();
            let pidfd = PidFd::open(pid).map_err(failed("opening a process"))?;
            let mut copy = Member {
                number: template.number,
                kin: template.kin,
                empty: Some(Empty {
                    pid,
                    number: template.number.cast_signed(),
                    pidfd: pidfd.into_fd(),
                }),
                prepared,
            };
            copy.move_to(store.process().kin)?;
            Ok(copy)
        });
        copies.collect()
    }
}
