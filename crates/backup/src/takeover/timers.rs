//! Timers expire when they would have on the primary, or at once if that is over.

use std::collections::BTreeMap;

use eventlog::fold::{Armed, Fold, Kind, Pid, PosixTimer};
use nix::libc;

use super::continued::Continued;
use super::error::Result;
use super::session::Session;

/// The highest number of a timer that is made again.
const LAST_TIMER: u32 = 1 << 16;
/// `TFD_TIMER_ABSTIME` and `TIMER_ABSTIME`.
const ABSOLUTE: u32 = 1;
const NANOS: i64 = 1_000_000_000;
const MICROS: i64 = 1_000_000;
const NANOS_OF_MICRO: i64 = 1000;

/// Arms all timers of process `pid`, whose descriptors are in place.
pub(super) fn arm(session: &mut Session, fold: &Fold, pid: Pid, clocks: &Continued) -> Result<()> {
    let entries = fold.table(pid).map(|table| table.entries.iter());
    let mut done = Vec::new();
    for (number, entry) in entries.into_iter().flatten() {
        let description = fold.descriptions().get(&entry.description);
        if let Some(Kind::Timer {
            clock,
            armed: Some(armed),
        }) = description.map(|d| &d.kind)
            && !done.contains(&entry.description)
        {
            done.push(entry.description);
            let Some((flags, setting)) = rest(armed, *clock, clocks) else {
                continue;
            };
            let args = [*number as u64, u64::from(flags), 0, 0, 0, 0];
            let setting = Some((2, &setting[..]));
            session.call("timerfd_settime", libc::SYS_timerfd_settime, args, setting)?;
        }
    }
    if let Some(process) = fold.processes().get(&pid) {
        posix_timers(session, &process.posix_timers, clocks)?;
        for (kind, armed) in &process.interval_timers {
            let args = [u64::from(*kind), 0, 0, 0, 0, 0];
            let setting = interval_rest(armed, *kind, clocks);
            let setting = Some((1, &setting[..]));
            session.call("setitimer", libc::SYS_setitimer, args, setting)?;
        }
    }
    session.flush("arming timers")?;
    Ok(())
}

/// Makes POSIX timers under their numbers. The kernel counts those that a process makes, from 0: what is missing in
/// between is made, too, and deleted when the last is there.
fn posix_timers(
    session: &mut Session,
    timers: &BTreeMap<u32, PosixTimer>,
    clocks: &Continued,
) -> Result<()> {
    const SIGEV_NONE: u8 = 1;
    let mut nobodys = [0; 64];
    nobodys[12] = SIGEV_NONE;
    let Some((last, _)) = timers.last_key_value() else {
        return Ok(());
    };
    if *last > LAST_TIMER {
        tracing::error!(number = last, "no timer can be given so high a number");
        return Ok(());
    }
    // Where the kernel tells the number: known already.
    let room = session.put(&[0; 16])?;
    for number in 0..=*last {
        let (clock, event) = match timers.get(&number) {
            Some(timer) => (timer.clock, timer.event.as_slice()),
            None => (libc::CLOCK_MONOTONIC.cast_unsigned(), &nobodys[..]),
        };
        let args = [u64::from(clock), 0, room, 0, 0, 0];
        let event = (!event.is_empty()).then_some((1, event));
        session.call("timer_create", libc::SYS_timer_create, args, event)?;
    }
    for number in (0..*last).filter(|number| !timers.contains_key(number)) {
        let args = [u64::from(number), 0, 0, 0, 0, 0];
        session.call("timer_delete", libc::SYS_timer_delete, args, None)?;
    }
    for (number, timer) in timers {
        let armed = timer.armed.as_ref();
        let Some((flags, setting)) = armed.and_then(|armed| rest(armed, timer.clock, clocks))
        else {
            continue;
        };
        let args = [u64::from(*number), u64::from(flags), 0, 0, 0, 0];
        let setting = Some((2, &setting[..]));
        session.call("timer_settime", libc::SYS_timer_settime, args, setting)?;
    }
    Ok(())
}

/// Flags and setting (`itimerspec`) that let a timer on `clock` go on; `None` for one that has expired for good. One on
/// a clock that does not tell the time (of a processor) starts anew.
fn rest(armed: &Armed, clock: u32, clocks: &Continued) -> Option<(u32, Vec<u8>)> {
    let as_it_was = || Some((armed.flags, armed.setting.clone()));
    if armed.seen.is_some() && !armed.is_periodic() {
        return None;
    }
    let Some(now) = clocks.now(clock.cast_signed()) else {
        return as_it_was();
    };
    let Some([interval, value]) = times(&armed.setting, NANOS) else {
        return as_it_was();
    };
    let is_absolute = armed.flags & ABSOLUTE != 0;
    let age = match is_absolute {
        true => Some(now),
        false => clocks.age(armed.at),
    };
    let Some(age) = age else {
        return as_it_was();
    };
    let seen = armed.seen.and_then(|cycles| clocks.age(cycles));
    let left = left([interval, value], age, seen);
    // In the past it expires at once, and the kernel counts how often it has.
    let (flags, value) = match left > 0 && !is_absolute {
        true => (armed.flags, left),
        false => {
            let host = now.saturating_sub(clocks.ahead_of_kernel(clock.cast_signed()));
            (armed.flags | ABSOLUTE, host.saturating_add(left).max(1))
        }
    };
    Some((flags, setting([interval, value], NANOS)))
}

/// The same for one of setitimer(2) (`itimerval`).
fn interval_rest(armed: &Armed, which: u32, clocks: &Continued) -> Vec<u8> {
    let known = times(&armed.setting, MICROS).zip(clocks.age(armed.at));
    let Some(([interval, value], age)) = known.filter(|_| which == libc::ITIMER_REAL as u32) else {
        return armed.setting.clone();
    };
    let seen = armed.seen.and_then(|cycles| clocks.age(cycles));
    let times = [interval, value].map(|time| time.saturating_mul(NANOS_OF_MICRO));
    let left = left(times, age, seen) / NANOS_OF_MICRO;
    setting([interval, left.max(1)], MICROS)
}

/// Nanoseconds until a timer expires next, negative if that is over, that was set `age` ago to `value` and expires every
/// `interval` from then on, if that is not 0; the program has seen that it expired `seen` ago.
fn left([interval, value]: [i64; 2], age: i64, seen: Option<i64>) -> i64 {
    let first = value.saturating_sub(age);
    let Some(seen) = seen.filter(|_| interval > 0) else {
        return first;
    };
    let since_first = seen.saturating_neg().saturating_sub(first);
    let steps = since_first.div_euclid(interval).saturating_add(1).max(0);
    first.saturating_add(steps.saturating_mul(interval))
}

/// Interval and value of a setting, in its smaller unit, of which a second has so many.
fn times(setting: &[u8], units: i64) -> Option<[i64; 2]> {
    let (words, []) = setting.as_chunks::<8>() else {
        return None;
    };
    let &[interval, interval_part, value, value_part] = words else {
        return None;
    };
    let time = |whole, part| {
        let (whole, part) = (i64::from_ne_bytes(whole), i64::from_ne_bytes(part));
        whole.saturating_mul(units).saturating_add(part)
    };
    Some([time(interval, interval_part), time(value, value_part)])
}

fn setting(times: [i64; 2], units: i64) -> Vec<u8> {
    let words = times.map(|time| [time.div_euclid(units), time.rem_euclid(units)]);
    let words = words.into_iter().flatten();
    words.flat_map(i64::to_ne_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_the_rest_or_the_interval() {
        assert_eq!(left([0, 500], 120, None), 380);
        assert_eq!(left([0, 500], 620, None), -120, "nobody has seen it");
        assert_eq!(
            left([100, 500], 620, None),
            -120,
            "the kernel counts the second"
        );
        assert_eq!(
            left([100, 500], 620, Some(110)),
            -20,
            "it has expired again"
        );
        assert_eq!(left([100, 500], 620, Some(20)), 80);
        assert_eq!(left([100, 500], 620, Some(15)), 80, "seen a little late");
        assert_eq!(
            left([100, 500], 100, Some(3)),
            400,
            "what was seen was another's"
        );
        left([1, i64::MAX], i64::MIN, Some(i64::MIN));
        left([1, i64::MIN], i64::MAX, Some(i64::MIN));
    }

    #[test]
    fn settings_come_back() {
        let spec = setting([1_500_000_000, 7], NANOS);
        assert_eq!(spec.len(), 32);
        assert_eq!(times(&spec, NANOS), Some([1_500_000_000, 7]));
        assert_eq!(times(&spec[1..], NANOS), None);
    }
}
