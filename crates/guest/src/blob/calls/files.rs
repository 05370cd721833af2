//! Opening, closing and duplicating descriptors.
//!
//! In replay a descriptor is real only where its file can be mapped: regular files and memory files are
//! opened for real, at the logged numbers. All others exist in the log alone.
//!
//! Files in `/dev/shm` are memory with a name (`shm_open`, `sem_open`), and the directory is the container's own: there
//! replay makes them, and what is done to their names is done again.

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
                let is_memory = makes_memory(row, &args);
                let kind = if !reopen(regs.rax, &args, result.cast_unsigned(), is_memory) {
                    Kind::Other
                } else if is_memory {
                    Kind::Memory
                } else {
                    Kind::File
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
        let kind = if !is_regular(result.cast_unsigned()) {
            Kind::Other
        } else if makes_memory(row, &args) {
            Kind::Memory
        } else {
            Kind::File
        };
        tables::of(t).set_kind(result.cast_unsigned(), kind);
    }
    if log::now() == Mode::Record {
        record(t, &shape, result, version);
    }
    drop(held);
    result
}

/// Whether a call that opens opens memory.
fn makes_memory(row: &Syscall, args: &[u64; 6]) -> bool {
    match u64::from(row.nr) {
        MEMFD_CREATE => true,
        OPEN | CREAT => names_memory(args[0]),
        _ => names_memory(args[1]),
    }
}

/// Whether a path leads to the container's directory of shared memory.
fn names_memory(path: u64) -> bool {
    crate::user::read::<[u8; 9]>(path).is_ok_and(|start| start == *b"/dev/shm/")
}

/// Calls on names: link, unlink, rename, chmod, chown and their kin. Replay does to shared memory what they did.
pub(crate) fn named(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    // unlink, link, rename, chmod, chown; the others begin with a directory
    let path = if matches!(row.nr, 82 | 86 | 87 | 90 | 92) {
        regs.rdi
    } else {
        regs.rsi
    };
    if names_memory(path) {
        executed(t, regs, row)
    } else {
        fed(t, regs, row)
    }
}

/// Brings the position of memory to where a call has left it that replay does not make.
pub(crate) fn moved(t: &ThreadBlock, fd: u64, by: i64, from: u64) {
    const LSEEK: u64 = 8;
    if log::now() == Mode::Replay && tables::of(t).kind(fd) == Kind::Memory {
        raw::call(LSEEK, [fd, by.cast_unsigned(), from, 0, 0, 0]);
    }
}

/// Opens a file again in replay, and moves it to its logged number. It is not made or emptied, unless it is memory.
fn reopen(call: u64, args: &[u64; 6], number: u64, is_memory: bool) -> bool {
    // Who came first is in the log; both may find it here.
    let left_out = match is_memory {
        true => O_EXCL,
        false => O_CREAT | O_EXCL | O_TRUNC,
    };
    let mut again = *args;
    let mut call = call;
    let how: [u64; 3];
    match call {
        OPEN => again[1] &= !left_out,
        CREAT if is_memory => {}
        CREAT => (call, again[1]) = (OPEN, 1),
        nr::OPENAT => again[2] &= !left_out,
        MEMFD_CREATE => {}
        _ => {
            let Ok(asked) = crate::user::read::<[u64; 3]>(args[2]) else {
                return false;
            };
            let mode = if is_memory { asked[1] } else { 0 };
            how = [asked[0] & !left_out, mode, asked[2]];
            again[2] = how.as_ptr() as u64;
            again[3] = 24;
        }
    }
    let mut spins = 0;
    let got = loop {
        let got = raw::call(call, again);
        // Somebody else makes it, or gives it its name, and is not there yet. Who waits in vain is found by his standing still.
        if got != -raw::ENOENT || !is_memory || log::now() != Mode::Replay {
            break got;
        }
        order::pause(&mut spins);
    };
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

/// `ftruncate`, `fallocate`, `fchmod`, `fchown`. Replay does to memory what they did; a file that has a name is so already,
/// and longer by what was written since.
pub(crate) fn change(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let resizes = matches!(row.nr, 77 | 285);
    let again = || tables::of(t).kind(regs.rdi) == Kind::Memory || resizes && !has_name(regs.rdi);
    if log::now() == Mode::Replay && !again() {
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
        if before.is_real() && log::now() == Mode::Replay {
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
            if kind.is_real() {
                raw::call(nr::DUP3, [fd, made, O_CLOEXEC, 0, 0, 0]);
            } else if before.is_real() {
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
        if set.kind(fd).is_real() {
            close_raw(fd);
        }
    }
}
