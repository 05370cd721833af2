//! Descriptors under their numbers: passed to the process, parked above all others, then put in place.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use guest::abi::{ARENA_FD, REPLAY_STDERR_FD, REPLAY_STDOUT_FD, ROOM_FD};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use sys::descriptors::{self, MAX_PASSED};

use super::error::{Result, TakeoverError, io};
use super::process::PASS_FD;
use super::session::Session;

/// A descriptor to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Index of the object.
    pub(super) object: usize,
    /// Its number.
    pub(super) number: RawFd,
    /// Closed by execve.
    pub(super) cloexec: bool,
}

/// Gives the process those of `objects` that `targets` name, under their numbers, and takes all other descriptors away, but for
/// the guest's own. `limit` is what the process set as its limit of descriptors (soft, hard).
pub(super) fn place(
    session: &mut Session,
    pass: &OwnedFd,
    objects: &[&OwnedFd],
    targets: &[Target],
    limit: Option<(u64, u64)>,
) -> Result<()> {
    let mut used: Vec<usize> = targets.iter().map(|t| t.object).collect();
    used.sort_unstable();
    used.dedup();
    let objects: Vec<&OwnedFd> = used.iter().map(|at| objects[*at]).collect();
    let highest = targets.iter().map(|t| t.number).max().unwrap_or(0);
    let floor = highest.max(ARENA_FD) as u64 + 1;
    let before = match limit {
        Some(limit) => limit,
        None => getrlimit(Resource::RLIMIT_NOFILE).map_err(io("reading a limit"))?,
    };
    let enough = floor + objects.len() as u64 + 1;
    raise(session, (before.0.max(enough), before.1.max(enough)))?;
    close_range(session, 0, PASS_FD as u64 - 1)?;
    receive(session, pass, &objects, floor)?;
    // The guest's own descriptors stay.
    for fd in [PASS_FD, REPLAY_STDOUT_FD, REPLAY_STDERR_FD] {
        session.call("close", libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0], None)?;
    }
    close_range(session, ARENA_FD as u64 + 1, floor - 1)?;
    for target in targets
        .iter()
        .filter(|t| ![ARENA_FD, ROOM_FD].contains(&t.number))
    {
        let flags = if target.cloexec { libc::O_CLOEXEC } else { 0 };
        let at = used.partition_point(|object| *object < target.object);
        let from = floor + at as u64;
        let args = [from, target.number as u64, flags as u64, 0, 0, 0];
        session.call("placing a descriptor", libc::SYS_dup3, args, None)?;
    }
    close_range(session, floor, u64::from(u32::MAX))?;
    raise(session, before)?;
    session.flush("placing descriptors")?;
    Ok(())
}

/// Objects come to the lowest free numbers, from 0 on, and are moved to `floor` and above.
fn receive(session: &mut Session, pass: &OwnedFd, objects: &[&OwnedFd], floor: u64) -> Result<()> {
    let mut parked = floor;
    for part in objects.chunks(MAX_PASSED) {
        let numbers: Vec<RawFd> = part.iter().map(|fd| fd.as_raw_fd()).collect();
        descriptors::send(pass.as_fd(), b"x", &numbers).map_err(io("passing descriptors"))?;
        if session.room() < 1024 {
            session.flush("receiving descriptors")?;
        }
        let byte = session.put(&[0; 16])?;
        let vector = session.put(&words(&[byte, 1]))?;
        // A header of 16 bytes, then 32-bit numbers, in whole words.
        let room = 16 + (4 * part.len()).next_multiple_of(8);
        let control = session.put(&vec![0; room])?;
        let header = words(&[0, 0, vector, 1, control, room as u64, 0]);
        let args = [PASS_FD as u64, 0, libc::MSG_CMSG_CLOEXEC as u64, 0, 0, 0];
        session.call(
            "receiving descriptors",
            libc::SYS_recvmsg,
            args,
            Some((1, &header)),
        )?;
        for got in 0..part.len() as u64 {
            let args = [got, parked, libc::O_CLOEXEC as u64, 0, 0, 0];
            session.call("parking a descriptor", libc::SYS_dup3, args, None)?;
            parked += 1;
        }
        close_range(session, 0, part.len() as u64 - 1)?;
        let results = session.flush("receiving descriptors")?;
        if results.iter().any(|result| *result < 0) {
            return Err(TakeoverError::Missing {
                what: "way for its descriptors",
            });
        }
    }
    Ok(())
}

fn words(all: &[u64]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn close_range(session: &mut Session, first: u64, last: u64) -> Result<()> {
    if first > last {
        return Ok(());
    }
    let args = [first, last, 0, 0, 0, 0];
    session.call("closing descriptors", libc::SYS_close_range, args, None)
}

fn raise(session: &mut Session, (soft, hard): (u64, u64)) -> Result<()> {
    let args = [0, u64::from(libc::RLIMIT_NOFILE), 0, 0, 0, 0];
    let limit = words(&[soft, hard]);
    session.call(
        "limiting descriptors",
        libc::SYS_prlimit64,
        args,
        Some((2, &limit)),
    )
}
