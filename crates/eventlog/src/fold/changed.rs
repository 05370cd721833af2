//! What calls do to files below watched directories, as [`Change`]s.
//!
//! A file that has no name any more is in no copy.

use super::calls::Call;
use super::files::text;
use super::message::{int, word};
use super::{Fold, Kind, Pid, nr};
use crate::change::{Change, Owner, below, plain};

const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
const AT_SYMLINK_FOLLOW: u64 = 0x400;
const AT_REMOVEDIR: u64 = 0x200;
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;
const O_APPEND: u32 = 0o2000;
/// O_TMPFILE without the bit that it shares with O_DIRECTORY: a file without a name.
const TMPFILE: u64 = 0o20_000_000;
const S_IFMT: u64 = 0o170_000;
const S_IFREG: u64 = 0o100_000;
const S_IFIFO: u64 = 0o010_000;
const PERMISSIONS: u32 = 0o7777;
const UTIME_NOW: i64 = (1 << 30) - 1;
const UNCHANGED: u32 = u32::MAX;
/// Positions of a pwritev2 that stand for the descriptor's own, and for the file's end.
const AT_OFFSET: u64 = crate::payload::AT_OFFSET;
const AT_END: u64 = crate::payload::AT_END;

/// What is watched, and what happened there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Watched {
    directories: Vec<Vec<u8>>,
    changes: Vec<Change>,
}

impl Fold {
    /// Says from now on what happens to files below these directories (as [`plain`] makes their paths).
    pub fn note_changes_below(&mut self, directories: &[Vec<u8>]) {
        self.watched.directories = directories.to_vec();
    }

    /// What happened there since this was called last, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        core::mem::take(&mut self.watched.changes)
    }

    /// Notes what a call that succeeded did to files. The state is still as before the call.
    pub(super) fn note_changes(&mut self, call: &Call<'_>) {
        if self.watched.directories.is_empty() {
            return;
        }
        let Some(change) = self.change_by(call) else {
            return;
        };
        let (first, second) = change.paths();
        let is_watched = |path: &[u8]| {
            let mut directories = self.watched.directories.iter();
            directories.any(|directory| below(path, directory).is_some())
        };
        if is_watched(first) || second.is_some_and(is_watched) {
            self.watched.changes.push(change);
        }
    }

    fn change_by(&self, call: &Call<'_>) -> Option<Change> {
        match call.nr {
            nr::WRITE | nr::WRITEV | nr::PWRITE64 | nr::PWRITEV | nr::PWRITEV2 => {
                return self.written(call);
            }
            _ => {}
        }
        // Calls that are in no log with their arguments change no file.
        let args = call.args().ok()?;
        let named = |argument| self.named_by(call, AT_FDCWD, argument);
        let named_at =
            |directory: usize, argument| self.named_by(call, int(args[directory]), argument);
        let open = || self.plain_name(call, call.fd);
        let followed = |flags: u64| flags & AT_SYMLINK_NOFOLLOW == 0;
        Some(match call.nr {
            nr::OPEN => self.opens(call, named(0)?, args[1], args[2])?,
            nr::CREAT => self.opens(call, named(0)?, O_CREAT | O_TRUNC, args[1])?,
            nr::OPENAT => self.opens(call, named_at(0, 1)?, args[2], args[3])?,
            nr::OPENAT2 => {
                let how = call.input(2).unwrap_or_default();
                self.opens(call, named_at(0, 1)?, word(how, 0, 8), word(how, 8, 8))?
            }
            nr::TRUNCATE => resized(named(0)?, args[1]),
            nr::FTRUNCATE => resized(open()?, args[1]),
            nr::FALLOCATE => Change::Allocated {
                path: open()?,
                mode: args[1] as u32,
                at: args[2],
                len: args[3],
            },
            nr::BIND => self.bound(call)?,
            nr::MKDIR => self.directory(call, named(0)?, args[1]),
            nr::MKDIRAT => self.directory(call, named_at(0, 1)?, args[2]),
            nr::MKNOD => self.node(call, named(0)?, args[1])?,
            nr::MKNODAT => self.node(call, named_at(0, 1)?, args[2])?,
            nr::SYMLINK => self.symlinked(call, 0, named(1)?),
            nr::SYMLINKAT => self.symlinked(call, 0, named_at(1, 2)?),
            nr::LINK => linked(named(0)?, named(1)?),
            // What a link or a descriptor leads to is looked up by nobody here: a whole copy follows.
            nr::LINKAT if args[4] & AT_SYMLINK_FOLLOW != 0 => linked(Vec::new(), named_at(2, 3)?),
            nr::LINKAT => linked(named_at(0, 1)?, named_at(2, 3)?),
            nr::RENAME => renamed(named(0)?, named(1)?, 0),
            nr::RENAMEAT => renamed(named_at(0, 1)?, named_at(2, 3)?, 0),
            nr::RENAMEAT2 => renamed(named_at(0, 1)?, named_at(2, 3)?, args[4]),
            nr::UNLINK => removed(named(0)?, false),
            nr::RMDIR => removed(named(0)?, true),
            nr::UNLINKAT => removed(named_at(0, 1)?, args[2] & AT_REMOVEDIR != 0),
            nr::CHMOD => moded(named(0)?, args[1]),
            nr::FCHMOD => moded(open()?, args[1]),
            nr::FCHMODAT | nr::FCHMODAT2 => moded(named_at(0, 1)?, args[2]),
            nr::CHOWN => owned(named(0)?, [args[1], args[2]], true),
            nr::LCHOWN => owned(named(0)?, [args[1], args[2]], false),
            nr::FCHOWN => owned(open()?, [args[1], args[2]], true),
            nr::FCHOWNAT => owned(named_at(0, 1)?, [args[2], args[3]], followed(args[4])),
            nr::UTIME => timed(named(0)?, whole_seconds(call.input(1)), true),
            nr::UTIMES => timed(named(0)?, microseconds(call.input(1)), true),
            nr::FUTIMESAT => timed(named_at(0, 1)?, microseconds(call.input(2)), true),
            nr::UTIMENSAT => timed(named_at(0, 1)?, pairs(call.input(2)), followed(args[3])),
            nr::SETXATTR => attribute(call, named(0)?, true, true),
            nr::LSETXATTR => attribute(call, named(0)?, true, false),
            nr::FSETXATTR => attribute(call, open()?, true, true),
            nr::REMOVEXATTR => attribute(call, named(0)?, false, true),
            nr::LREMOVEXATTR => attribute(call, named(0)?, false, false),
            nr::FREMOVEXATTR => attribute(call, open()?, false, true),
            _ => return None,
        })
    }

    /// The path that a buffer of a call names.
    fn named_by(&self, call: &Call<'_>, directory: i32, argument: usize) -> Option<Vec<u8>> {
        let name = text(call.input(argument)?);
        if name.is_empty() {
            return self.plain_name(call, directory);
        }
        Some(plain(&self.resolve(call.pid, directory, name)))
    }

    /// The path of an open file, if it has one.
    fn plain_name(&self, call: &Call<'_>, fd: i32) -> Option<Vec<u8>> {
        match self.descriptor(call.pid, fd)?.1.kind {
            Kind::File(ref file) if !file.unlinked => Some(plain(&file.path)),
            _ => None,
        }
    }

    fn written(&self, call: &Call<'_>) -> Option<Change> {
        let path = self.plain_name(call, call.fd)?;
        let (_, description) = self.descriptor(call.pid, call.fd)?;
        let Kind::File(file) = &description.kind else {
            return None;
        };
        let own = (!file.at_end).then_some(file.offset);
        let at = match call.parsed.position {
            _ if description.flags & O_APPEND != 0 => None,
            Some(AT_END) => None,
            None | Some(AT_OFFSET) => own,
            at => at,
        };
        let bytes = call.data().to_vec();
        (!bytes.is_empty()).then_some(Change::Written { path, at, bytes })
    }

    fn opens(&self, call: &Call<'_>, path: Vec<u8>, flags: u64, mode: u64) -> Option<Change> {
        if flags & TMPFILE != 0 || flags & (O_CREAT | O_TRUNC) == 0 {
            return None;
        }
        let makes = || (self.masked(call.pid, mode), self.owner(call.pid));
        Some(Change::Opened {
            path,
            makes: (flags & O_CREAT != 0).then(makes),
            empties: flags & O_TRUNC != 0,
        })
    }

    fn directory(&self, call: &Call<'_>, path: Vec<u8>, mode: u64) -> Change {
        Change::DirectoryMade {
            path,
            mode: self.masked(call.pid, mode),
            owner: self.owner(call.pid),
        }
    }

    fn node(&self, call: &Call<'_>, path: Vec<u8>, mode: u64) -> Option<Change> {
        let (kind, owner) = (mode & S_IFMT, self.owner(call.pid));
        let mode = self.masked(call.pid, mode);
        match kind {
            S_IFIFO => Some(Change::FifoMade { path, mode, owner }),
            0 | S_IFREG => Some(Change::Opened {
                path,
                makes: Some((mode, owner)),
                empties: false,
            }),
            _ => None,
        }
    }

    /// bind of a UNIX socket to a path.
    fn bound(&self, call: &Call<'_>) -> Option<Change> {
        const UNIX: u64 = 1;
        const EVERYTHING: u64 = 0o777;
        let address = call.input(1)?;
        let name = text(address.get(2..)?);
        if word(address, 0, 2) != UNIX || name.is_empty() {
            return None;
        }
        Some(Change::SocketMade {
            path: plain(&self.resolve(call.pid, AT_FDCWD, name)),
            mode: self.masked(call.pid, EVERYTHING),
            owner: self.owner(call.pid),
        })
    }

    fn symlinked(&self, call: &Call<'_>, target: usize, path: Vec<u8>) -> Change {
        Change::Symlinked {
            path,
            target: text(call.input(target).unwrap_or_default()).to_vec(),
            owner: self.owner(call.pid),
        }
    }

    /// Permissions of what a process makes.
    fn masked(&self, pid: Pid, mode: u64) -> u32 {
        let umask = self.processes.get(&pid).and_then(|process| process.umask);
        mode as u32 & PERMISSIONS & !umask.unwrap_or(0)
    }

    /// Whose is what a process makes.
    fn owner(&self, pid: Pid) -> Owner {
        let credentials = self.processes.get(&pid).map(|process| &process.credentials);
        let effective = |ids: [Option<u32>; 3]| ids[1].unwrap_or(0);
        credentials.map_or((0, 0), |c| (effective(c.users), effective(c.groups)))
    }
}

fn resized(path: Vec<u8>, len: u64) -> Change {
    Change::Resized { path, len }
}

fn linked(from: Vec<u8>, path: Vec<u8>) -> Change {
    Change::Linked { from, path }
}

fn renamed(from: Vec<u8>, to: Vec<u8>, flags: u64) -> Change {
    let flags = flags as u32;
    Change::Renamed { from, to, flags }
}

fn removed(path: Vec<u8>, directory: bool) -> Change {
    Change::Removed { path, directory }
}

fn moded(path: Vec<u8>, mode: u64) -> Change {
    let mode = mode as u32 & PERMISSIONS;
    Change::Mode { path, mode }
}

fn owned(path: Vec<u8>, ids: [u64; 2], follows: bool) -> Change {
    let [user, group] = ids.map(|id| Some(id as u32).filter(|id| *id != UNCHANGED));
    Change::Owner {
        path,
        user,
        group,
        follows,
    }
}

fn timed(path: Vec<u8>, times: [(i64, i64); 2], follows: bool) -> Change {
    Change::Times {
        path,
        times,
        follows,
    }
}

/// `struct timespec[2]`; now without one.
fn pairs(bytes: Option<&[u8]>) -> [(i64, i64); 2] {
    let bytes = bytes.filter(|bytes| bytes.len() >= 32);
    let Some(bytes) = bytes else {
        return [(0, UTIME_NOW); 2];
    };
    let pair = |at| (word(bytes, at, 8) as i64, word(bytes, at + 8, 8) as i64);
    [pair(0), pair(16)]
}

/// `struct timeval[2]`.
fn microseconds(bytes: Option<&[u8]>) -> [(i64, i64); 2] {
    let given = bytes.is_some_and(|bytes| bytes.len() >= 32);
    let nano = |(seconds, micro): (i64, i64)| (seconds, micro.saturating_mul(1000));
    if given {
        pairs(bytes).map(nano)
    } else {
        pairs(None)
    }
}

/// `struct utimbuf`.
fn whole_seconds(bytes: Option<&[u8]>) -> [(i64, i64); 2] {
    match bytes.filter(|bytes| bytes.len() >= 16) {
        Some(bytes) => [0, 8].map(|at| (word(bytes, at, 8) as i64, 0)),
        None => pairs(None),
    }
}

/// setxattr and its like, or removexattr and its like.
fn attribute(call: &Call<'_>, path: Vec<u8>, sets: bool, follows: bool) -> Change {
    Change::Attribute {
        path,
        name: text(call.input(1).unwrap_or_default()).to_vec(),
        value: sets.then(|| call.input(2).unwrap_or_default().to_vec()),
        follows,
    }
}
