//! Opening, closing and duplicating descriptors.
//!
//! In replay a descriptor is real only where its file can be mapped: regular files and memory files are
//! opened for real, at the logged numbers. All others exist in the log alone.

use guest::abi::{ARENA_FD, REPLAY_STDERR_FD, REPLAY_STDOUT_FD, ROOM_FD, ThreadBlock};
use sysabi::Syscall;

use crate::connections;
use crate::dispatch::{self, Changed, executed, fed, record};
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::order::{self, DESCRIPTORS};
use crate::raw::{self, nr};
use crate::shapes::Shape;
use crate::tables::{self, Kind};

const O_CREAT: u64 = 0o100;
const O_EXCL: u64 = 0o200;
const O_TRUNC: u64 = 0o1000;
const O_CLOEXEC: u64 = 0o2_000_000;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;

const OPEN: u64 = 2;
const CREAT: u64 = 85;
const MEMFD_CREATE: u64 = 319;

/// `open` and its kin, `memfd_create`.
pub(crate) fn open(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let args = regs.args();
    let Some(shape) = Shape::of(row, args) else {
        return -raw::EINVAL;
    };
    if log::now() == Mode::Replay
        && let Some(taken) = log::take(t, row.nr)
    {
        shape.check(&taken);
        let (result, version) = (taken.header.result, taken.header.version);
        taken.finish();
        if result >= 0 {
            dispatch::in_turn(t, version, || {
                let kind = if reopen(regs.rax, &args, result.cast_unsigned()) {
                    Kind::File
                } else {
                    Kind::Other
                };
                tables::of(t).set_kind(result.cast_unsigned(), kind);
            });
        }
        return result;
    }
    let Changed {
        result,
        version,
        held,
    } = dispatch::change_descriptors(t, regs, &args);
    if result >= 0 {
        let kind = if is_regular(result.cast_unsigned()) {
            Kind::File
        } else {
            Kind::Other
        };
        tables::of(t).set_kind(result.cast_unsigned(), kind);
    }
    if log::now() == Mode::Record {
        record(t, &shape, result, version);
    }
    drop(held);
    result
}

/// Opens a file again in replay, without making or emptying it, and moves it to its logged number.
fn reopen(call: u64, args: &[u64; 6], number: u64) -> bool {
    const MAKES: u64 = O_CREAT | O_EXCL | O_TRUNC;
    let mut again = *args;
    let mut call = call;
    let how: [u64; 3];
    match call {
        OPEN => again[1] &= !MAKES,
        CREAT => (call, again[1]) = (OPEN, 1),
        nr::OPENAT => again[2] &= !MAKES,
        MEMFD_CREATE => {}
        _ => {
            let Ok(asked) = crate::user::read::<[u64; 3]>(args[2]) else {
                return false;
            };
            how = [asked[0] & !MAKES, 0, asked[2]];
            again[2] = how.as_ptr() as u64;
            again[3] = 24;
        }
    }
    let got = raw::call(call, again);
    if got < 0 {
        return false;
    }
    let got = got.cast_unsigned();
    let regular = is_regular(got);
    if got == number {
        if !regular {
            close_raw(got);
        }
        return regular;
    }
    if regular {
        raw::call(nr::DUP3, [got, number, O_CLOEXEC, 0, 0, 0]);
    }
    close_raw(got);
    regular
}

/// `ftruncate`, `fallocate`. Replay makes memory files as long as they were; what has a name is so already, and longer by
/// what was written since.
pub(crate) fn resize(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    if log::now() == Mode::Replay && has_name(regs.rdi) {
        fed(t, regs, row)
    } else {
        executed(t, regs, row)
    }
}

/// `struct stat`, in 32-bit words: where the number of names and the mode are.
type Stat = [u32; 36];
const NAMES: usize = 4;
const MODE: usize = 6;

fn stat(fd: u64) -> Option<Stat> {
    let mut stat = [0; 36];
    let result = raw::call(nr::FSTAT, [fd, stat.as_mut_ptr() as u64, 0, 0, 0, 0]);
    (result == 0).then_some(stat)
}

fn is_regular(fd: u64) -> bool {
    stat(fd).is_some_and(|stat| stat[MODE] & S_IFMT == S_IFREG)
}

/// Whether a descriptor is of a file that is found under a name. Memory files are not.
fn has_name(fd: u64) -> bool {
    stat(fd).is_some_and(|stat| stat[NAMES] != 0)
}

fn close_raw(fd: u64) {
    raw::call(nr::CLOSE, [fd, 0, 0, 0, 0, 0]);
}

/// Descriptors that are the guest's: the application does not know them.
fn is_own(fd: u64) -> bool {
    let fd = fd as u32 as i32;
    fd == ARENA_FD
        || (fd == ROOM_FD && connections::owned())
        || (log::now() == Mode::Replay && (fd == REPLAY_STDOUT_FD || fd == REPLAY_STDERR_FD))
}

/// `close`.
pub(crate) fn close(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let fd = regs.rdi;
    if is_own(fd) {
        return -raw::EBADF;
    }
    let set = tables::of(t);
    if let Some(index) = connections::index_of(set.kind(fd)) {
        connections::await_adoption(index);
    }
    let mut connection = None;
    let result = dispatch::changing_descriptors(t, regs, row, |result| {
        // The kernel frees the number even when close reports an error (close(2)); EBADF alone says it did not.
        if result == -raw::EBADF {
            return;
        }
        let before = set.kind(fd);
        connection = connections::index_of(before);
        if before == Kind::File && log::now() == Mode::Replay {
            close_raw(fd);
        }
        set.set_kind(fd, Kind::Closed);
    });
    if let Some(index) = connection {
        connections::release(index);
    }
    result
}

/// `dup`, `dup2`, `dup3`, `fcntl`.
pub(crate) fn duplicate(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    const F_DUPFD: u64 = 0;
    const F_DUPFD_CLOEXEC: u64 = 1030;
    let (fd, second) = (regs.rdi, regs.rsi);
    let copies =
        u64::from(row.nr) != nr::FCNTL || matches!(second as u32 as u64, F_DUPFD | F_DUPFD_CLOEXEC);
    if is_own(fd) {
        return -raw::EBADF;
    }
    if copies && matches!(row.nr, 33 | 292) && is_own(second) {
        return -raw::EBUSY;
    }
    let set = tables::of(t);
    if copies
        && let Some(index) =
            connections::index_of(set.kind(second)).filter(|_| matches!(row.nr, 33 | 292))
    {
        connections::await_adoption(index);
    }
    let mut replaced = None;
    let result = dispatch::changing_descriptors(t, regs, row, |result| {
        let made = result.cast_unsigned();
        if result < 0 || !copies || made == fd {
            return;
        }
        let (kind, before) = (set.kind(fd), set.kind(made));
        if log::now() == Mode::Replay {
            if kind == Kind::File {
                raw::call(nr::DUP3, [fd, made, O_CLOEXEC, 0, 0, 0]);
            } else if before == Kind::File {
                close_raw(made);
            }
        }
        if let Some(index) = connections::index_of(kind) {
            connections::retain(index);
        }
        replaced = connections::index_of(before);
        set.set_kind(made, kind);
    });
    if let Some(index) = replaced {
        connections::release(index);
    }
    result
}

/// `close_range`: the guest's own descriptor stays.
pub(crate) fn close_range(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    const CLOSE_RANGE_CLOEXEC: u64 = 4;
    let args = regs.args();
    let [first, last, flags, ..] = args;
    let Some(shape) = Shape::of(row, args) else {
        return -raw::EINVAL;
    };
    let (first, last) = (u64::from(first as u32), u64::from(last as u32));
    let closes = flags & CLOSE_RANGE_CLOEXEC == 0;
    if log::now() == Mode::Replay
        && let Some(taken) = log::take(t, row.nr)
    {
        shape.check(&taken);
        let (result, version) = (taken.header.result, taken.header.version);
        taken.finish();
        dispatch::in_turn(t, version, || {
            if result == 0 && closes {
                close_files(t, first, last);
                forget(t, first, last);
            }
        });
        return result;
    }
    let held = order::lock(t, &DESCRIPTORS);
    let result = close_around(first, last, flags);
    let version = if result < 0 { 0 } else { held.stamp() };
    if log::now() == Mode::Record {
        record(t, &shape, result, version);
    }
    if result == 0 && closes {
        forget(t, first, last);
    }
    drop(held);
    result
}

/// Descriptors of a range are closed.
fn forget(t: &ThreadBlock, first: u64, last: u64) {
    let set = tables::of(t);
    for fd in first..=last.min(set.end()) {
        if let Some(index) = connections::index_of(set.kind(fd)) {
            connections::release(index);
        }
        set.set_kind(fd, Kind::Closed);
    }
}

fn close_around(first: u64, last: u64, flags: u64) -> i64 {
    let own = ARENA_FD as u64;
    let part = |a: u64, b: u64| raw::call(nr::CLOSE_RANGE, [a, b, flags, 0, 0, 0]);
    if first > own || last < own || first > last {
        return part(first, last);
    }
    let mut result = 0;
    if first < own {
        result = part(first, own - 1);
    }
    if result == 0 && last > own {
        result = part(own + 1, last);
    }
    result
}

fn close_files(t: &ThreadBlock, first: u64, last: u64) {
    let set = tables::of(t);
    for fd in first..=last.min(set.end()) {
        if set.kind(fd) == Kind::File {
            close_raw(fd);
        }
    }
}
