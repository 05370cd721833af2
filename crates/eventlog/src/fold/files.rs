//! Files and other descriptors that are not sockets: opening, offsets, duplicates, names.

use super::calls::Call;
use super::channel::Channel;
use super::message::{int, word};
use super::{Description, DescriptionId, File, Fold, FoldError, Kind, Pid, nr};

/// Flags of open.
const O_ACCMODE: u32 = 3;
const O_APPEND: u32 = 0x400;
/// The same bit as SOCK_NONBLOCK, EFD_NONBLOCK, TFD_NONBLOCK.
pub(super) const O_NONBLOCK: u32 = 0x800;
/// The same bit as SOCK_CLOEXEC and its like.
pub(super) const O_CLOEXEC: u32 = 0x8_0000;
/// What F_SETFL can change: append, non-blocking, asynchronous, direct, no access time.
const SETTABLE: u32 = O_APPEND | O_NONBLOCK | 0x2000 | 0x4000 | 0x4_0000;
const AT_FDCWD: i32 = -100;
const MFD_CLOEXEC: u32 = 1;
const EFD_SEMAPHORE: u32 = 1;
const CLOSE_RANGE_UNSHARE: u64 = 2;
const CLOSE_RANGE_CLOEXEC: u64 = 4;
/// ioctl requests.
const FIONBIO: u64 = 0x5421;
const FIONCLEX: u64 = 0x5450;
const FIOCLEX: u64 = 0x5451;
/// Longest path that is kept.
const MAX_PATH: usize = 16 << 10;

impl Fold {
    pub(super) fn opened(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.args()?;
        let (directory, path, flags) = match call.nr {
            nr::OPEN => (AT_FDCWD, 0, args[1]),
            nr::CREAT => (AT_FDCWD, 0, 0o1101),
            nr::OPENAT => (int(args[0]), 1, args[2]),
            _ => (
                int(args[0]),
                1,
                word(call.input(2).unwrap_or_default(), 0, 8),
            ),
        };
        let flags = flags as u32;
        let path = self.resolve(
            call.pid,
            directory,
            text(call.input(path).unwrap_or_default()),
        );
        let file = File {
            path,
            flags,
            offset: 0,
            at_end: false,
            unlinked: false,
        };
        self.open(
            call.at(call.result),
            Kind::File(file),
            flags & (O_ACCMODE | SETTABLE),
            flags & O_CLOEXEC != 0,
        )
    }

    /// Descriptors that have no name.
    pub(super) fn made(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.args()?;
        let arg = |i: usize| args[i] as u32;
        let (kind, flags) = match call.nr {
            nr::PIPE | nr::PIPE2 => return self.pipe(call, arg(1)),
            nr::MEMFD_CREATE => {
                let name = text(call.input(0).unwrap_or_default()).to_vec();
                let kind = Kind::Memfd {
                    name,
                    flags: arg(1),
                    size: 0,
                    offset: 0,
                    seals: 0,
                };
                return self.open(call.at(call.result), kind, 2, arg(1) & MFD_CLOEXEC != 0);
            }
            nr::EVENTFD => (
                Kind::Event {
                    added: args[0] & 0xffff_ffff,
                    taken: 0,
                    semaphore: false,
                },
                0,
            ),
            nr::EVENTFD2 => {
                let semaphore = arg(1) & EFD_SEMAPHORE != 0;
                (
                    Kind::Event {
                        added: args[0] & 0xffff_ffff,
                        taken: 0,
                        semaphore,
                    },
                    arg(1),
                )
            }
            nr::TIMERFD_CREATE => (
                Kind::Timer {
                    clock: arg(0),
                    armed: None,
                },
                arg(1),
            ),
            nr::SIGNALFD | nr::SIGNALFD4 => {
                let mask = call.input(1).unwrap_or_default().to_vec();
                if int(args[0]) >= 0 {
                    if let Some(Description {
                        kind: Kind::Signal(old),
                        ..
                    }) = self.description_mut(call)
                    {
                        *old = mask;
                    }
                    return Ok(());
                }
                (
                    Kind::Signal(mask),
                    if call.nr == nr::SIGNALFD4 { arg(3) } else { 0 },
                )
            }
            nr::INOTIFY_INIT | nr::INOTIFY_INIT1 => (Kind::Inotify(Default::default()), arg(0)),
            nr::PIDFD_OPEN => (Kind::Process(arg(0)), arg(1) | O_CLOEXEC),
            nr::EPOLL_CREATE1 => (Kind::Epoll(Default::default()), arg(0)),
            _ => (Kind::Epoll(Default::default()), 0),
        };
        self.open(
            call.at(call.result),
            kind,
            2 | flags & O_NONBLOCK,
            flags & O_CLOEXEC != 0,
        )
    }

    fn pipe(&mut self, call: &Call<'_>, flags: u32) -> Result<(), FoldError> {
        let channel = self.fresh_id();
        self.channels.insert(
            channel,
            Channel {
                ends: 2,
                ..Channel::default()
            },
        );
        for (i, writes) in [false, true].into_iter().enumerate() {
            let fd = word(call.filled(0), 4 * i, 4) as i64;
            let kind = Kind::Pipe {
                channel,
                writes,
                capacity: None,
            };
            self.open(
                call.at(fd),
                kind,
                u32::from(writes) | flags & O_NONBLOCK,
                flags & O_CLOEXEC != 0,
            )?;
        }
        Ok(())
    }

    pub(super) fn closed(&mut self, call: &Call<'_>) {
        if !self.close(call.pid, call.fd, call.version) {
            super::bump(&mut self.strays, 1);
        }
    }

    pub(super) fn closed_range(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.args()?;
        let (first, last, flags) = (args[0] & 0xffff_ffff, args[1] & 0xffff_ffff, args[2]);
        if flags & CLOSE_RANGE_UNSHARE != 0 {
            self.unshare_table(call.pid);
        }
        let within = |fd: &i32| (first..=last).contains(&u64::try_from(*fd).unwrap_or(u64::MAX));
        let Some(table) = self.table_mut(call.pid) else {
            return Ok(());
        };
        if flags & CLOSE_RANGE_CLOEXEC != 0 {
            table
                .entries
                .iter_mut()
                .filter(|(fd, _)| within(fd))
                .for_each(|(_, entry)| entry.cloexec = true);
            return Ok(());
        }
        let closing: Vec<i32> = table.entries.keys().copied().filter(within).collect();
        for fd in closing {
            self.close(call.pid, fd, call.version);
        }
        Ok(())
    }

    pub(super) fn duplicated(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let cloexec = call.nr == nr::DUP3 && call.args()?[2] as u32 & O_CLOEXEC != 0;
        self.duplicate(call, cloexec);
        Ok(())
    }

    fn duplicate(&mut self, call: &Call<'_>, cloexec: bool) {
        let (Ok(new), Some(id)) = (i32::try_from(call.result), self.named(call)) else {
            return;
        };
        if new != call.fd {
            self.install(call.pid, new, id, cloexec, call.version);
        }
    }

    pub(super) fn controlled(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.args()?;
        let (command, value) = (args[1] & 0xffff_ffff, args[2] as u32);
        match command {
            0 | 1030 => self.duplicate(call, command == 1030),
            2 => self.set_cloexec(call, value & 1 != 0),
            _ => {
                let result = call.result.unsigned_abs();
                let Some(description) = self.description_mut(call) else {
                    return Ok(());
                };
                match (command, &mut description.kind) {
                    (4, _) => description.flags = description.flags & !SETTABLE | value & SETTABLE,
                    (8, _) => {
                        description.owner =
                            Some((value.cast_signed(), description.owner.map_or(0, |o| o.1)))
                    }
                    (10, _) => {
                        description.owner =
                            Some((description.owner.map_or(0, |o| o.0), value.cast_signed()))
                    }
                    (1031, Kind::Pipe { capacity, .. }) => *capacity = Some(result),
                    (1033, Kind::Memfd { seals, .. }) => *seals |= value,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub(super) fn ioctl(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        match call.args()?[1] & 0xffff_ffff {
            FIONBIO => {
                let on = word(call.input(2).unwrap_or_default(), 0, 4) != 0;
                if let Some(description) = self.description_mut(call) {
                    description.flags =
                        description.flags & !O_NONBLOCK | if on { O_NONBLOCK } else { 0 };
                }
            }
            request @ (FIOCLEX | FIONCLEX) => self.set_cloexec(call, request == FIOCLEX),
            _ => {}
        }
        Ok(())
    }

    fn set_cloexec(&mut self, call: &Call<'_>, on: bool) {
        match self
            .table_mut(call.pid)
            .and_then(|table| table.entries.get_mut(&call.fd))
        {
            Some(entry) => entry.cloexec = on,
            None => super::bump(&mut self.strays, 1),
        }
    }

    /// lseek, ftruncate, fallocate, getdents, flock.
    pub(super) fn positioned(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.parsed.args.unwrap_or_default();
        let Some(description) = self.description_mut(call) else {
            return Ok(());
        };
        let result = call.result.unsigned_abs();
        match (call.nr, &mut description.kind) {
            (nr::FLOCK, _) => {
                description.lock = Some(args[1] as u32 & 3).filter(|_| args[1] & 8 == 0)
            }
            (nr::LSEEK, Kind::File(file)) => (file.offset, file.at_end) = (result, false),
            (nr::LSEEK, Kind::Memfd { offset, .. }) => *offset = result,
            (nr::FTRUNCATE, Kind::Memfd { size, .. }) => *size = args[1],
            (nr::FALLOCATE, Kind::Memfd { size, .. }) => {
                *size = (*size).max(args[2].saturating_add(args[3]))
            }
            (nr::GETDENTS | nr::GETDENTS64, Kind::File(file)) => {
                if let Some(next) = last_entry(call.filled(1)) {
                    file.offset = next;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Open files follow their names.
    pub(super) fn renamed(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.args()?;
        let name = |i: usize| text(call.input(i).unwrap_or_default());
        let (old, new) = match call.nr {
            nr::RENAME => (
                self.resolve(call.pid, AT_FDCWD, name(0)),
                Some(self.resolve(call.pid, AT_FDCWD, name(1))),
            ),
            nr::UNLINK | nr::RMDIR => (self.resolve(call.pid, AT_FDCWD, name(0)), None),
            nr::UNLINKAT => (self.resolve(call.pid, int(args[0]), name(1)), None),
            _ => {
                let new = self.resolve(call.pid, int(args[2]), name(3));
                (self.resolve(call.pid, int(args[0]), name(1)), Some(new))
            }
        };
        for description in self.descriptions.values_mut() {
            let Kind::File(file) = &mut description.kind else {
                continue;
            };
            if Some(&file.path) == new.as_ref() && file.path != old {
                file.unlinked = true;
            } else if let Some(below) = file.path.strip_prefix(&old[..])
                && !file.unlinked
                && (below.is_empty() || below.starts_with(b"/"))
            {
                match &new {
                    Some(new) => file.path = [new, below].concat(),
                    None => file.unlinked = true,
                }
            }
        }
        Ok(())
    }

    /// chdir, fchdir, chroot, getcwd, umask.
    pub(super) fn moved_to(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let path = match call.nr {
            nr::CHDIR | nr::CHROOT => {
                self.resolve(call.pid, AT_FDCWD, text(call.input(0).unwrap_or_default()))
            }
            nr::FCHDIR => self.resolve(call.pid, call.fd, b""),
            nr::GETCWD => self.resolve(call.pid, AT_FDCWD, text(call.filled(0))),
            _ => Vec::new(),
        };
        let Some(process) = self.processes.get_mut(&call.pid) else {
            return Ok(());
        };
        match call.nr {
            nr::UMASK => process.umask = Some(call.fd.cast_unsigned() & 0o777),
            nr::CHROOT => process.root = path,
            _ if !path.is_empty() => process.cwd = path,
            _ => {}
        }
        Ok(())
    }

    /// A path as the process names it, joined with its root directory, its working directory or a directory it has open.
    pub(super) fn resolve(&self, pid: Pid, directory: i32, path: &[u8]) -> Vec<u8> {
        if path.starts_with(b"/") {
            let root = self.processes.get(&pid).map(|process| &process.root[..]);
            return [root.unwrap_or_default(), path].concat();
        }
        let base = if directory == AT_FDCWD {
            self.processes.get(&pid).map(|process| process.cwd.clone())
        } else {
            match self.descriptor(pid, directory) {
                Some((
                    _,
                    Description {
                        kind: Kind::File(file),
                        ..
                    },
                )) => Some(file.path.clone()),
                _ => None,
            }
        };
        let mut joined = base.unwrap_or_default();
        if !joined.is_empty() && !joined.ends_with(b"/") && !path.is_empty() {
            joined.push(b'/');
        }
        joined.extend_from_slice(path);
        joined.truncate(MAX_PATH);
        joined
    }

    /// inotify watches.
    pub(super) fn watch(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.args()?;
        let path = self.resolve(call.pid, AT_FDCWD, text(call.input(1).unwrap_or_default()));
        let result = call.result as i32;
        if let Some(Description {
            kind: Kind::Inotify(watches),
            ..
        }) = self.description_mut(call)
        {
            if call.nr == nr::INOTIFY_ADD_WATCH {
                watches.insert(result, (path, args[2] as u32));
            } else {
                watches.remove(&int(args[1]));
            }
        }
        Ok(())
    }

    pub(super) fn description_mut(&mut self, call: &Call<'_>) -> Option<&mut Description> {
        let id: DescriptionId = self.named(call)?;
        self.descriptions.get_mut(&id)
    }
}

/// A string without its terminating zero.
pub(super) fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Where the directory goes on: `d_off` of the last entry of a `linux_dirent` or `linux_dirent64`.
fn last_entry(mut bytes: &[u8]) -> Option<u64> {
    let mut next = None;
    while bytes.len() >= 18 {
        next = Some(word(bytes, 8, 8));
        let len = word(bytes, 16, 2) as usize;
        bytes = bytes.get(len.max(18)..).unwrap_or_default();
    }
    next
}
