//! Time namespaces: clocks that go on where those of another host stopped (time_namespaces(7)).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, setns, unshare};

/// A new time namespace. nix does not name the flag.
pub const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

const FILE: &str = "/proc/self/timens_offsets";

/// How many nanoseconds the clocks of a time namespace are ahead of the kernel's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// Of `CLOCK_MONOTONIC`, its coarse and raw forms, and timers on it.
    pub monotonic: i64,
    /// Of `CLOCK_BOOTTIME`, timers on it, and `/proc/uptime`.
    pub boottime: i64,
}

/// Those of this process, as they were when it was first asked. None are set on a kernel without time namespaces.
#[must_use]
pub fn own_offsets() -> Offsets {
    static OWN: OnceLock<Offsets> = OnceLock::new();
    *OWN.get_or_init(|| read().unwrap_or_default())
}

/// Puts the calling process, which must have one thread, and all that it forks from now on into a time namespace whose
/// clocks are so far ahead of those it has now.
///
/// # Errors
/// Of the kernel: `EUSERS` with several threads, `EPERM` without `CAP_SYS_ADMIN` or `CAP_SYS_TIME`, `ERANGE` if a clock
/// would be negative; also when `/proc` is not mounted.
pub fn advance(by: Offsets) -> io::Result<()> {
    let now = read()?;
    unshare(NEW_TIME)?;
    let line = |clock: &str, ns: i64| {
        let (seconds, rest) = (ns.div_euclid(NANOS), ns.rem_euclid(NANOS));
        format!("{clock} {seconds} {rest}\n")
    };
    let all = [
        line("monotonic", now.monotonic.saturating_add(by.monotonic)),
        line("boottime", now.boottime.saturating_add(by.boottime)),
    ];
    fs::write(FILE, all.concat())?;
    let entered = File::open("/proc/self/ns/time_for_children")?;
    Ok(setns(entered.as_fd(), NEW_TIME)?)
}

const NANOS: i64 = 1_000_000_000;

fn read() -> io::Result<Offsets> {
    let text = fs::read_to_string(FILE)?;
    let of = |clock| {
        let found = text.lines().find_map(|line| parse(line, clock));
        found.ok_or_else(|| io::Error::other(format!("{FILE} has no offset of {clock}: {text:?}")))
    };
    Ok(Offsets {
        monotonic: of("monotonic")?,
        boottime: of("boottime")?,
    })
}

/// `monotonic  SECONDS  NANOSECONDS`.
fn parse(line: &str, clock: &str) -> Option<i64> {
    let mut words = line.split_whitespace();
    if words.next()? != clock {
        return None;
    }
    let mut number = || words.next()?.parse::<i64>().ok();
    number()?.checked_mul(NANOS)?.checked_add(number()?)
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::time::{ClockId, clock_gettime};
    use nix::unistd::Pid;

    use super::*;
    use crate::namespaces::fork_numbered;

    #[test]
    fn a_process_and_its_children_see_clocks_go_on_elsewhere() {
        const DAY: i64 = 86_400;
        let seconds = |clock| clock_gettime(clock).map_or(0, |t| t.tv_sec());
        let (mono, boot) = (ClockId::CLOCK_MONOTONIC, ClockId::CLOCK_BOOTTIME);
        let before = (seconds(mono), seconds(boot));
        let by = Offsets {
            monotonic: DAY * NANOS + 1,
            boottime: 2 * DAY * NANOS,
        };
        let is_ahead = move || {
            let (mono, boot) = (seconds(mono) - before.0, seconds(boot) - before.1);
            (DAY..DAY + 60).contains(&mono) && (2 * DAY..2 * DAY + 60).contains(&boot)
        };
        let outer = crate::namespaces::fork_pid_one(move || {
            if advance(by).is_err() || !is_ahead() {
                return 1;
            }
            let Ok(inner) = fork_numbered(None, || i32::from(!is_ahead())) else {
                return 2;
            };
            wait(inner.pid)
        })
        .unwrap();
        assert_eq!(wait(outer.pid), 0);
    }

    fn wait(pid: i32) -> i32 {
        match waitpid(Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        assert_eq!(
            parse("monotonic      86400         5", "monotonic"),
            Some(DAY_AND_FIVE)
        );
        assert_eq!(
            parse("boottime          -1 999999999", "boottime"),
            Some(-1)
        );
        assert_eq!(parse("boottime           0         0", "monotonic"), None);
        assert_eq!(parse("boottime", "boottime"), None);
    }

    const DAY_AND_FIVE: i64 = 86_400 * NANOS + 5;
}
