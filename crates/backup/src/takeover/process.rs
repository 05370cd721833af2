//! The process of a container, from its image to the moment it replays.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use checkpointer::{ExtraMapping, ImageStore, Plan, Prepared, Restored};
use eventlog::fold::{Fold, Kind};
use guest::abi::{ARENA_BASE, ARENA_FD, ARENA_LEN, REPLAY_STDERR_FD, REPLAY_STDOUT_FD, ROOM_FD};
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use shim::container::{Container, Empty};
use sys::arena::Arena;
use sys::memory::{self, Range};
use sys::process::RealTime;
use sys::remote::Batch;

use super::arena;
use super::checkpoint::Checkpoint;
use super::error::{Result, TakeoverError, io as failed};

/// Where the process keeps its end of the socket by which descriptors come.
pub(super) const PASS_FD: RawFd = 1018;

/// Priority of the thread that finishes a process, among real-time ones.
const PRIORITY: i32 = 1;

/// A process that replays.
#[derive(Debug)]
pub(super) struct Process {
    /// In our numbering.
    pub(super) pid: i32,
    /// In the container's.
    pub(super) number: u32,
    /// Our end of the socket by which descriptors come.
    pub(super) pass: OwnedFd,
}

/// A regular file that was open at the cut: replay may map it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OpenFile {
    number: RawFd,
    path: Vec<u8>,
    flags: u32,
}

/// The regular files of a process, by number, the highest first.
pub(super) fn files(fold: &Fold, pid: u32) -> Vec<OpenFile> {
    let entries = fold.table(pid).map(|table| table.entries.iter().rev());
    let files = entries.into_iter().flatten().filter_map(|(number, entry)| {
        match &fold.descriptions().get(&entry.description)?.kind {
            Kind::File(file) if is_regular(&file.path) => Some(OpenFile {
                number: *number,
                path: file.path.clone(),
                flags: file.flags,
            }),
            _ => None,
        }
    });
    files.collect()
}

/// What the process shares with its host.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) arena: Arc<Arena>,
    /// Tells that there is room for output again.
    pub(super) room: Arc<OwnedFd>,
}

impl Shared {
    /// Makes it, empty.
    pub(super) fn new() -> Result<Self> {
        let room = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(failed("making an eventfd"))?;
        Ok(Self {
            arena: Arc::new(arena::empty()?),
            room: Arc::new(OwnedFd::from(room)),
        })
    }
}

/// A process that is not finished: it stands still and has descriptors, and memory that follows the
/// checkpoints.
#[derive(Debug)]
pub(super) struct Making {
    prepared: Prepared,
    empty: Empty,
    pass: OwnedFd,
}

impl Making {
    /// Begins with one inside the container, for the images of a process.
    pub(super) fn begin(
        container: &mut Container,
        store: &ImageStore,
        shared: &Shared,
    ) -> Result<Self> {
        let kind = SockType::Stream;
        let (pass, inner) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
            .map_err(failed("making a socket pair"))?;
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let own: [(BorrowedFd<'_>, RawFd); 5] = [
            (inner.as_fd(), PASS_FD),
            (shared.room.as_fd(), ROOM_FD),
            (stdout.as_fd(), REPLAY_STDOUT_FD),
            (stderr.as_fd(), REPLAY_STDERR_FD),
            (shared.arena.file(), ARENA_FD),
        ];
        let mut made = None;
        let plan = Plan {
            extra: vec![ExtraMapping {
                range: Range {
                    start: ARENA_BASE,
                    end: ARENA_BASE + ARENA_LEN,
                },
                protection: (libc::PROT_READ | libc::PROT_WRITE) as u32,
                shared: true,
                fd: ARENA_FD,
                offset: 0,
            }],
            keep: own.iter().map(|(_, number)| *number).collect(),
            child: Some(Box::new(|number| {
                let number = i32::try_from(number).map_err(io::Error::other)?;
                // Not the container's program yet: that one's end is the container's.
                let empty = container
                    .spawn(Some(number), false, &own)
                    .map_err(io::Error::other)?;
                Ok(made.insert(empty).pid)
            })),
        };
        let prepared = Prepared::new(store, plan)?;
        let empty = made.ok_or(TakeoverError::Missing { what: "process" })?;
        Ok(Self {
            prepared,
            empty,
            pass,
        })
    }

    /// Brings it closer to a checkpoint, by up to `most` pages; true once nothing is missing.
    pub(super) fn update(&mut self, checkpoint: &mut Checkpoint, most: usize) -> Result<bool> {
        Ok(self.prepared.update(checkpoint.store_mut(), most)?)
    }

    /// The image that it follows.
    pub(super) fn sequence(&self) -> u64 {
        self.prepared.sequence()
    }

    /// Pages that it lacks of that image.
    pub(super) fn missing(&self) -> usize {
        self.prepared.missing()
    }

    /// Makes it the checkpoint's process and the container's program, and lets it go: it replays from the
    /// arena. `files` were open at the cut.
    pub(super) fn finish(
        self,
        container: &mut Container,
        checkpoint: &mut Checkpoint,
        files: &[OpenFile],
    ) -> Result<Process> {
        // Many short waits for the process: each would let others go first. Without the privilege it takes
        // longer.
        let _priority = RealTime::enter(PRIORITY);
        let restored = self.prepared.finish(checkpoint.store_mut())?;
        let pid = restored.pid();
        let number = checkpoint.store().process().pid;
        let mut batch = Batch::new();
        batch.push(libc::SYS_setsid, [0; 6]);
        restored.run(pid, &batch)?;
        open_files(&restored, files)?;
        container.set_program(self.empty)?;
        restored.finish(&[])?;
        let pass = self.pass;
        Ok(Process { pid, number, pass })
    }
}

/// Number 0 is free until it is a file's itself, which comes last.
fn open_files(restored: &Restored, files: &[OpenFile]) -> Result<()> {
    let mut at = restored.data().start;
    let mut batch = Batch::new();
    for file in files {
        let path = [&file.path[..], &[0]].concat();
        if at + path.len() as u64 > restored.data().end || batch.len() > 4000 {
            restored.run(restored.pid(), &std::mem::take(&mut batch))?;
            at = restored.data().start;
        }
        memory::write(restored.pid(), at, &path)?;
        let makes = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC) as u32;
        let flags = u64::from(file.flags & !makes);
        batch.push(libc::SYS_open, [at, flags, 0, 0, 0, 0]);
        if file.number != 0 {
            let to = [0, file.number as u64, libc::O_CLOEXEC as u64, 0, 0, 0];
            batch.push(libc::SYS_dup3, to);
            batch.push(libc::SYS_close, [0; 6]);
        }
        at += path.len() as u64;
    }
    restored.run(restored.pid(), &batch)?;
    Ok(())
}

fn is_regular(path: &[u8]) -> bool {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    fs::metadata(path).is_ok_and(|m| m.is_file())
}

/// Whether a thread of the process sleeps in the kernel. `number` is in the container's numbering.
pub(super) fn sleeps(pid: i32, number: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().any(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let inside = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
        let inside = inside.and_then(|l| l.split_ascii_whitespace().next_back()?.parse().ok());
        let state = status.lines().find_map(|l| l.strip_prefix("State:"));
        inside == Some(number) && state.is_some_and(|s| s.trim_start().starts_with('S'))
    })
}
