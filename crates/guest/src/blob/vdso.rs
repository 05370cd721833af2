//! Clock reads: the vDSO's entry points in the guest's copy lead here; the kernel's own vDSO still answers.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use eventlog::record::{Header, kind};
use guest::abi::{Boot, ThreadBlock};
use sysabi::Syscall;

use crate::dispatch::{self, hold_if_asked};
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::thread::{self, control};
use crate::user;

const NANOS: i64 = 1_000_000_000;
const CLOCK_REALTIME: u64 = 0;
const CLOCK_REALTIME_COARSE: u64 = 5;
const CLOCK_TAI: u64 = 11;

/// Start and end of the kernel's vDSO, then its entry points: clock_gettime, gettimeofday, time, getcpu.
static KERNEL: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

/// Learns where the kernel's vDSO is.
pub(crate) fn init(boot: &Boot) {
    for (to, from) in KERNEL
        .iter()
        .zip(boot.vdso.iter().chain(&boot.vdso_entries))
    {
        to.store(*from, Relaxed);
    }
}

/// Whether an address lies in the kernel's vDSO: its fallback calls are part of a clock read.
pub(crate) fn contains(rip: u64) -> bool {
    (KERNEL[0].load(Relaxed)..KERNEL[1].load(Relaxed)).contains(&rip)
}

/// How far what the container is to see of a clock is ahead of what the kernel shows, in nanoseconds.
#[inline(always)]
pub(crate) fn lead(id: u64) -> i64 {
    match id {
        CLOCK_REALTIME | CLOCK_REALTIME_COARSE | CLOCK_TAI => {
            control().realtime_lead.load(Relaxed) as i64
        }
        _ => 0,
    }
}

/// Reads a clock in nanoseconds, or −errno.
pub(crate) fn clock(id: u64) -> i64 {
    let mut time = [0_i64; 2];
    let entry = KERNEL[2].load(Relaxed);
    let result = if entry == 0 {
        raw::call(nr::CLOCK_GETTIME, [id, (&raw mut time) as u64, 0, 0, 0, 0])
    } else {
        // SAFETY: the address of `__vdso_clock_gettime` in the kernel's own vDSO, as the injector found it;
        // it writes one timespec.
        let entry: extern "C" fn(u64, *mut [i64; 2]) -> i64 =
            unsafe { core::mem::transmute(entry) };
        entry(id, &raw mut time)
    };
    if result < 0 {
        result
    } else {
        time[0] * NANOS + time[1] + lead(id)
    }
}

/// A moment of the container's time of day as the kernel has it: what absolute time-outs are counted in.
pub(crate) fn to_kernel(id: u64, [seconds, nanos]: [i64; 2]) -> [i64; 2] {
    let lead = lead(id);
    if lead == 0 || seconds < 0 || !(0..NANOS).contains(&nanos) {
        return [seconds, nanos];
    }
    let at = seconds.saturating_mul(NANOS).saturating_add(nanos - lead);
    // It has passed; the kernel takes no moment before 1970.
    let at = at.max(0);
    [at / NANOS, at % NANOS]
}

/// clock_gettime, gettimeofday and time as system calls, from programs that do without the vDSO.
pub(crate) fn called(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    const GETTIMEOFDAY: u64 = 96;
    dispatch::fed_by(t, regs, row, |args| {
        let is_clock = regs.rax == nr::CLOCK_GETTIME;
        let id = if is_clock { args[0] } else { CLOCK_REALTIME };
        let result = match regs.rax {
            _ if lead(id) == 0 => dispatch::perform(t, regs, args),
            nr::CLOCK_GETTIME => give_timespec(clock(id), args[1]),
            GETTIMEOFDAY => give_timeval(clock(id), args[0], args[1]),
            _ => give_seconds(clock(id), args[0]),
        };
        (result, 0)
    })
}

/// The recorded value of a clock.
fn read(id: u64) -> i64 {
    let t = thread::current();
    t.inside.store(1, Relaxed);
    let value = recorded(t, id);
    t.inside.store(0, Relaxed);
    hold_if_asked(t);
    crate::starved::at_return(t);
    value
}

#[inline(always)]
fn recorded(t: &ThreadBlock, id: u64) -> i64 {
    crate::delivery::at_lock(t);
    if log::now() == Mode::Replay
        && let Some(taken) = log::take(t, kind::CLOCK)
    {
        taken.check_hash(id as u16);
        let value = taken.header.result;
        taken.finish();
        return value;
    }
    let value = clock(id);
    if log::now() == Mode::Record {
        log::emit(
            t,
            Header {
                kind: kind::CLOCK,
                hash: id as u16,
                result: value,
                ..Header::default()
            },
        );
    }
    value
}

/// `clock_gettime(2)`.
#[unsafe(no_mangle)]
extern "C" fn vdso_clock_gettime(id: u64, to: u64) -> i64 {
    give_timespec(read(id), to)
}

/// `gettimeofday(2)`.
#[unsafe(no_mangle)]
extern "C" fn vdso_gettimeofday(to: u64, zone: u64) -> i64 {
    give_timeval(read(CLOCK_REALTIME), to, zone)
}

/// `time(2)`.
#[unsafe(no_mangle)]
extern "C" fn vdso_time(to: u64) -> i64 {
    give_seconds(read(CLOCK_REALTIME), to)
}

/// Answers with a clock's value, or its errno.
fn give_timespec(value: i64, to: u64) -> i64 {
    if (-4095..0).contains(&value) {
        return value;
    }
    match user::write(to, &[value.div_euclid(NANOS), value.rem_euclid(NANOS)]) {
        Ok(()) => 0,
        Err(user::Fault) => -raw::EFAULT,
    }
}

fn give_timeval(value: i64, to: u64, zone: u64) -> i64 {
    if to != 0 && user::write(to, &[value / NANOS, value % NANOS / 1000]).is_err() {
        return -raw::EFAULT;
    }
    if zone != 0 && user::write(zone, &0_u64).is_err() {
        return -raw::EFAULT;
    }
    0
}

fn give_seconds(value: i64, to: u64) -> i64 {
    let value = value / NANOS;
    if to != 0 && user::write(to, &value).is_err() {
        return -raw::EFAULT;
    }
    value
}

/// `getcpu(2)`: always the first processor, which is as true as any other answer a moment later.
#[unsafe(no_mangle)]
extern "C" fn vdso_getcpu(cpu: u64, node: u64) -> i64 {
    for at in [cpu, node] {
        if at != 0 && user::write(at, &0_u32).is_err() {
            return -raw::EFAULT;
        }
    }
    0
}

/// Entry points that are not supported, so that the C library falls back to the system call.
#[unsafe(no_mangle)]
extern "C" fn vdso_refused() -> i64 {
    -raw::ENOSYS
}
