//! The process of a container, from its image to the moment it replays.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use checkpointer::{ExtraMapping, ImageStore, Plan, Restored};
use eventlog::fold::{Fold, Kind};
use guest::abi::{ARENA_BASE, ARENA_FD, ARENA_LEN, REPLAY_STDERR_FD, REPLAY_STDOUT_FD, ROOM_FD};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use shim::container::Container;
use sys::arena::Arena;
use sys::memory::{self, Range};
use sys::remote::Batch;

use super::error::{Result, io as failed};

/// Where the process keeps its end of the socket by which descriptors come.
pub(super) const PASS_FD: RawFd = 1018;

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

/// Makes the process inside the container and lets it go: it replays from the arena. `files` were open at
/// the cut.
pub(super) fn restore(
    container: &mut Container,
    store: &ImageStore,
    arena: &Arena,
    room: &OwnedFd,
    files: Vec<OpenFile>,
) -> Result<Process> {
    let kind = SockType::Stream;
    let (pass, inner) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
        .map_err(failed("making a socket pair"))?;
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let own: [(BorrowedFd<'_>, RawFd); 5] = [
        (inner.as_fd(), PASS_FD),
        (room.as_fd(), ROOM_FD),
        (stdout.as_fd(), REPLAY_STDOUT_FD),
        (stderr.as_fd(), REPLAY_STDERR_FD),
        (arena.file(), ARENA_FD),
    ];
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
        child: Some(Box::new(|number, files| {
            let passed: Vec<_> = own.iter().chain(files).copied().collect();
            let number = i32::try_from(number).map_err(io::Error::other)?;
            let empty = container
                .spawn(Some(number), true, &passed)
                .map_err(io::Error::other)?;
            Ok(empty.pid)
        })),
        ..Plan::default()
    };
    let restored = checkpointer::restore(store, plan)?;
    let pid = restored.pid();
    let number = store.process().pid;
    open_files(&restored, files)?;
    restored.finish(&[])?;
    Ok(Process { pid, number, pass })
}

/// Number 0 is free until it is a file's itself, which comes last.
fn open_files(restored: &Restored, files: Vec<OpenFile>) -> Result<()> {
    let mut at = restored.data().start;
    let mut batch = Batch::new();
    for mut file in files {
        file.path.push(0);
        if at + file.path.len() as u64 > restored.data().end || batch.len() > 4000 {
            restored.run(restored.pid(), &std::mem::take(&mut batch))?;
            at = restored.data().start;
        }
        memory::write(restored.pid(), at, &file.path)?;
        let makes = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC) as u32;
        let flags = u64::from(file.flags & !makes);
        batch.push(libc::SYS_open, [at, flags, 0, 0, 0, 0]);
        if file.number != 0 {
            let to = [0, file.number as u64, libc::O_CLOEXEC as u64, 0, 0, 0];
            batch.push(libc::SYS_dup3, to);
            batch.push(libc::SYS_close, [0; 6]);
        }
        at += file.path.len() as u64;
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
