//! Time as every state machine here takes it: nanoseconds of the boot-time clock of the own host.

use core::fmt;
use core::ops::{Add, Sub};
use core::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment: nanoseconds since boot, suspended time included (`CLOCK_BOOTTIME`). Never compared between hosts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Now. The clock exists on every kernel this runs on; should reading it fail, the moment is 0, which
    /// every lease and promise takes for expired.
    #[must_use]
    pub fn now() -> Self {
        let Ok(t) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
            return Self(0);
        };
        let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
        Self(seconds * 1_000_000_000 + u64::try_from(t.tv_nsec()).unwrap_or(0))
    }

    /// The time from `earlier` until this moment; zero if it lies later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
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
