//! Time as every state machine here takes it: nanoseconds of the boot-time clock of the own host; and what a host's
//! clocks show, for continuing them on another.

use core::fmt;
use core::ops::{Add, Sub};
use core::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment: nanoseconds since boot, suspended time included (`CLOCK_BOOTTIME`, as it is outside of any time namespace:
/// the kernel's own programs count in it). Never compared between hosts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Now. The clock exists on every kernel this runs on; should reading it fail, the moment is 0, which
    /// every lease and promise takes for expired.
    #[must_use]
    pub fn now() -> Self {
        Self(sys::bpf::boot_ns())
    }

    /// The time from `earlier` until this moment; zero if it lies later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What the clocks of a host show to its processes at one moment, in nanoseconds each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime: i64,
    /// `CLOCK_REALTIME`.
    pub realtime: i64,
    /// The time-stamp counter, in cycles.
    pub cycles: u64,
}

impl Clocks {
    /// Now, one after another.
    #[must_use]
    pub fn now() -> Self {
        Self {
            monotonic: nanos(ClockId::CLOCK_MONOTONIC),
            cycles: sys::cycles::now(),
            boottime: nanos(ClockId::CLOCK_BOOTTIME),
            realtime: nanos(ClockId::CLOCK_REALTIME),
        }
    }
}

/// 0 for a clock that cannot be read.
fn nanos(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

impl Add<Duration> for Nanos {
    type Output = Self;

    fn add(self, d: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for Nanos {
    type Output = Self;

    fn sub(self, d: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:09} s",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000
        )
    }
}
