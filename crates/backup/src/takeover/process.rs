//! The processes of a container, from their images to the moment they replay.

mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use checkpointer::{ExtraMapping, ImageStore, MakeChild, Plan, Prepared, Restored};
use eventlog::fold::{Fold, Kind};
use eventlog::image::Kin;
use guest::abi::{ARENA_BASE, ARENA_FD, ARENA_LEN, REPLAY_STDERR_FD, REPLAY_STDOUT_FD, ROOM_FD};
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use shim::container::{Container, Empty};
use sys::arena::Arena;
use sys::clocks::NEW_TIME;
use sys::memory::{self, Range};
use sys::process::RealTime;
use sys::remote::Batch;

use super::arena;
use super::checkpoint::Checkpoint;
use super::error::{Result, TakeoverError, io as failed};
use super::names;

/// Where the process keeps its end of the socket by which descriptors come.
pub(super) const PASS_FD: RawFd = 1018;

/// Priority of the thread that finishes processes, among real-time ones.
const PRIORITY: i32 = 1;

/// The processes of a container, which replay.
#[derive(Debug)]
pub(super) struct Processes {
    /// The container's program, in our numbering.
    pub(super) program: i32,
    /// The same in the container's.
    pub(super) number: u32,
    /// Our end of the socket by which descriptors come, one process after another.
    pub(super) pass: OwnedFd,
}

/// A regular file that was open at the cut: replay may map it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OpenFile {
    number: RawFd,
    path: Vec<u8>,
    flags: u32,
    /// From where it would be read or written next.
    offset: u64,
}

/// The regular files of each process, by number, the highest first.
pub(super) type OpenFiles = BTreeMap<u32, Vec<OpenFile>>;

/// The regular files of all processes.
pub(super) fn files(fold: &Fold) -> OpenFiles {
    let all = fold.processes().keys();
    all.map(|pid| (*pid, files_of(fold, *pid))).collect()
}

fn files_of(fold: &Fold, pid: u32) -> Vec<OpenFile> {
    let entries = fold.table(pid).map(|table| table.entries.iter().rev());
    let files = entries.into_iter().flatten().filter_map(|(number, entry)| {
        match &fold.descriptions().get(&entry.description)?.kind {
            Kind::File(file) if is_regular(&file.path) => Some(OpenFile {
                number: *number,
                path: file.path.clone(),
                flags: file.flags,
                offset: file.offset,
            }),
            _ => None,
        }
    });
    files.collect()
}

/// What the processes share with their host.
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

/// Processes that are not finished: they stand still and have descriptors, and memory that follows the
/// checkpoints.
#[derive(Debug)]
pub(super) struct Making {
    /// In the checkpoint's order: parents before their children.
    members: Vec<Member>,
    /// Whether the only one is a template: it has another number, never runs, and each attempt gets a copy of it. A process
    /// with children cannot be: they would not be the copy's.
    template: bool,
    /// Shared memory with names, or that had some, which they map.
    memory: BTreeSet<names::Id>,
    pass: OwnedFd,
    /// The end that every process has as [`PASS_FD`].
    inner: OwnedFd,
}

/// One of them.
#[derive(Debug)]
struct Member {
    /// Its number in the container, and its place among the others as far as it was given to it.
    number: u32,
    kin: Kin,
    prepared: Prepared,
    /// For a child of the container's init.
    empty: Option<Empty>,
}

impl Making {
    /// None yet. `template`: whether there may be one.
    pub(super) fn begin(template: bool) -> Result<Self> {
        let kind = SockType::Stream;
        let (pass, inner) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
            .map_err(failed("making a socket pair"))?;
        Ok(Self {
            members: Vec::new(),
            template,
            memory: BTreeSet::new(),
            pass,
            inner,
        })
    }

    /// Brings them closer to a checkpoint, by up to `most` pages each; true once nothing is missing.
    pub(super) fn update(
        &mut self,
        container: &mut Container,
        shared: &Shared,
        checkpoint: &mut Checkpoint,
        most: usize,
    ) -> Result<bool> {
        if self.template && checkpoint.processes().len() > 1 {
            self.members.clear();
            self.template = false;
        }
        self.bury(checkpoint)?;
        let mut done = true;
        for (at, store) in checkpoint.processes_mut().iter_mut().enumerate() {
            if self.members.get(at).is_none_or(|m| !m.is_of(store)) {
                let made = self.make(container, shared, store)?;
                self.members.insert(at, made);
            }
            let member = &mut self.members[at];
            if !self.template {
                member.move_to(store.process().kin)?;
            }
            done &= member.prepared.update(store, most)?;
        }
        let memory = names::mapped(checkpoint.processes());
        names::forget(container.init_pid(), self.memory.difference(&memory))?;
        self.memory = memory;
        if self.template && self.members.iter().any(|m| !m.prepared.can_be_copied()) {
            self.members.clear();
            self.template = false;
            return self.update(container, shared, checkpoint, most);
        }
        Ok(done)
    }

    /// Ends those that the checkpoint does not have, children before their parents.
    fn bury(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let stores = checkpoint.processes();
        for at in (0..self.members.len()).rev() {
            if stores.iter().any(|store| self.members[at].is_of(store)) {
                continue;
            }
            let Member {
                number,
                kin,
                prepared,
                ..
            } = self.members.remove(at);
            drop(prepared);
            if let Some(parent) = parent(&self.members, kin) {
                parent.prepared.bury(number)?;
            }
        }
        // The others keep their order, as in the checkpoint.
        let place = |m: &Member| stores.iter().position(|store| m.is_of(store));
        self.members.sort_by_key(place);
        Ok(())
    }

    fn make(
        &self,
        container: &mut Container,
        shared: &Shared,
        store: &ImageStore,
    ) -> Result<Member> {
        let (number, kin) = (store.process().pid, store.process().kin);
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let mut own: Vec<(BorrowedFd<'_>, RawFd)> = vec![
            (self.inner.as_fd(), PASS_FD),
            (shared.room.as_fd(), ROOM_FD),
            (stdout.as_fd(), REPLAY_STDOUT_FD),
            (stderr.as_fd(), REPLAY_STDERR_FD),
            (shared.arena.file(), ARENA_FD),
        ];
        let mut empty = None;
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
            child: None,
        };
        if self.template {
            own.push((shared.room.as_fd(), template::HIGH_FD));
        }
        let prepared = if let Some(parent) = parent(&self.members, kin) {
            parent.prepared.beget(store, plan)?
        } else {
            let made = |number| {
                let number = match self.template {
                    true => template::number(store)?,
                    false => i32::try_from(number).map_err(io::Error::other)?,
                };
                // Not the container's program yet: that one's end is the container's.
                let made = container
                    .spawn(Some(number), false, &own)
                    .map_err(io::Error::other)?;
                Ok(empty.insert(made).pid)
            };
            let child: Option<Box<MakeChild<'_>>> = Some(Box::new(made));
            Prepared::new(store, Plan { child, ..plan })?
        };
        Ok(Member {
            number,
            kin: Kin {
                group: 0,
                session: 0,
                ..kin
            },
            prepared,
            empty,
        })
    }

    /// The image that they follow.
    pub(super) fn sequence(&self) -> u64 {
        self.members.first().map_or(0, |m| m.prepared.sequence())
    }

    /// Pages that they lack of that image.
    pub(super) fn missing(&self) -> usize {
        self.members.iter().map(|m| m.prepared.missing()).sum()
    }

    /// Makes them the checkpoint's processes, the first of them the container's program, and lets them go: they
    /// replay from the arena; threads with the numbers `late` in the container stay stopped. `files` were open at the cut. Only a [template](Self::template) can do so again.
    pub(super) fn finish(
        &mut self,
        container: &mut Container,
        shared: &Shared,
        checkpoint: &mut Checkpoint,
        files: &OpenFiles,
        late: &[u32],
    ) -> Result<Processes> {
        // Many short waits for the processes: each would let others go first. Without the privilege it takes
        // longer.
        let _priority = RealTime::enter(PRIORITY);
        self.update(container, shared, checkpoint, usize::MAX)?;
        let members = match self.template {
            true => self.copies(checkpoint)?,
            false => std::mem::take(&mut self.members),
        };
        for dead in checkpoint.program().dead() {
            // Of one that was its child, init would not have left it.
            if let Some(parent) = parent(&members, dead.kin) {
                parent.prepared.beget_dead(dead)?;
            }
        }
        names::put(container.init_pid(), checkpoint.program().names())?;
        members.iter().try_for_each(Member::join_clocks)?;
        let number = checkpoint.program().process().pid;
        let mut program = None;
        let mut all = Vec::new();
        for (member, store) in members.into_iter().zip(checkpoint.processes_mut()) {
            let restored = member.prepared.finish(store)?;
            open_files(
                &restored,
                files.get(&member.number).map_or(&[], Vec::as_slice),
            )?;
            if all.is_empty() {
                program = member.empty;
            }
            all.push(restored);
        }
        let program = program.ok_or(TakeoverError::Missing { what: "program" })?;
        let pid = program.pid;
        container.set_program(program)?;
        // Not before all are there: one may look for another.
        for restored in all {
            restored.finish(late)?;
        }
        let pass = self.pass.try_clone();
        Ok(Processes {
            program: pid,
            number,
            pass: pass.map_err(failed("duplicating a socket"))?,
        })
    }
}

/// The one among them that is the parent.
fn parent(members: &[Member], kin: Kin) -> Option<&Member> {
    members.iter().find(|member| member.number == kin.parent)
}

impl Member {
    fn is_of(&self, store: &ImageStore) -> bool {
        let process = store.process();
        (self.number, self.kin.birth) == (process.pid, process.kin.birth)
    }

    /// Gives it its session and process group, before it has children that inherit them.
    fn move_to(&mut self, kin: Kin) -> Result<()> {
        let mut batch = Batch::new();
        if kin.session != self.kin.session && kin.session == self.number {
            batch.push(libc::SYS_setsid, [0; 6]);
        }
        if kin.group != self.kin.group && kin.group != kin.session {
            batch.push(libc::SYS_setpgid, [0, kin.group.into(), 0, 0, 0, 0]);
        }
        self.kin = kin;
        if batch.is_empty() {
            return Ok(());
        }
        for result in self.prepared.run(&batch)? {
            if result < 0 {
                let (number, error) = (self.number, io::Error::from_raw_os_error(-result as i32));
                tracing::warn!(number, ?kin, %error, "a process cannot be put into its group");
            }
        }
        Ok(())
    }

    /// Enters the time namespace of the container's init, which a process can as long as it has one thread (setns(2)).
    fn join_clocks(&self) -> Result<()> {
        const INIT: u64 = 1;
        let call = |nr, args| {
            let mut batch = Batch::new();
            batch.push(nr, args);
            let result = self.prepared.run(&batch)?.first().copied();
            Ok::<_, TakeoverError>(result.unwrap_or_default())
        };
        let init = call(libc::SYS_pidfd_open, [INIT, 0, 0, 0, 0, 0])?;
        let entering = [init.cast_unsigned(), NEW_TIME.bits() as u64, 0, 0, 0, 0];
        let entered = call(libc::SYS_setns, entering)?;
        call(libc::SYS_close, [init.cast_unsigned(), 0, 0, 0, 0, 0])?;
        if entered < 0 {
            let (number, error) = (self.number, io::Error::from_raw_os_error(-entered as i32));
            tracing::error!(number, %error, "a process's clocks cannot go on; they show this host's");
        }
        Ok(())
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
        // Replay writes to memory.
        let start = [
            file.number as u64,
            file.offset,
            libc::SEEK_SET as u64,
            0,
            0,
            0,
        ];
        batch.push(libc::SYS_lseek, start);
        at += path.len() as u64;
    }
    restored.run(restored.pid(), &batch)?;
    Ok(())
}

fn is_regular(path: &[u8]) -> bool {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    // Those have their names in the container alone.
    if path.to_str().is_some_and(checkpointer::names::is_named) {
        return true;
    }
    fs::metadata(path).is_ok_and(|m| m.is_file())
}
