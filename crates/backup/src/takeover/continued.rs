//! The clocks of a container go on where the primary's stopped, whatever this host's show: its processes enter a time
//! namespace, and what is left of a timer is counted from when it was set.

use nix::libc;
use shim::container::Container;
use stream::Clocks;
use sys::clocks::Offsets;

use crate::guard::{Lead, PrimaryClocks};

/// A container's clocks, of which the primary's heartbeats told.
#[derive(Clone, Debug)]
pub(super) struct Continued {
    primary: PrimaryClocks,
    lead: Lead,
}

impl Continued {
    /// Sets the clocks of the container's init, whose time namespace the other processes join before they run. Where
    /// nothing is known, before the first heartbeat, or the kernel refuses, this host's are the container's.
    pub(super) fn begin(primary: PrimaryClocks, container: &Container) -> Self {
        let lead = primary.lead().unwrap_or_default();
        let by = Offsets {
            monotonic: lead.monotonic,
            boottime: lead.boottime,
        };
        tracing::debug!(?lead, "the primary's clocks go on");
        match container.advance_clocks(by) {
            Ok(()) => Self { primary, lead },
            Err(error) => {
                tracing::error!(%error, "the container's clocks cannot go on; they show this host's");
                Self {
                    primary: PrimaryClocks::default(),
                    lead: Lead {
                        realtime: lead.realtime,
                        ..Lead::default()
                    },
                }
            }
        }
    }

    /// How far the time of day, which no namespace keeps, is to be ahead of this host's so that it does not go back.
    pub(super) fn realtime_lead(&self) -> i64 {
        self.lead.realtime.max(0)
    }

    /// How long ago, in nanoseconds, the primary's time-stamp counter showed `cycles`, if that is known.
    pub(super) fn age(&self, cycles: u64) -> Option<i64> {
        let then = self.primary.monotonic_at(cycles)?;
        let now = Clocks::now().monotonic.saturating_add(self.lead.monotonic);
        Some(now.saturating_sub(then))
    }

    /// How far what a clock shows to the container is ahead of what the kernel takes for its time.
    pub(super) fn ahead_of_kernel(&self, clock: libc::clockid_t) -> i64 {
        match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => self.realtime_lead(),
            // In the time namespace both are the same.
            _ => 0,
        }
    }

    /// What a clock shows to the container now; `None` for one that does not tell the time.
    pub(super) fn now(&self, clock: libc::clockid_t) -> Option<i64> {
        let host = Clocks::now();
        match clock {
            libc::CLOCK_MONOTONIC => Some(host.monotonic.saturating_add(self.lead.monotonic)),
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => {
                Some(host.boottime.saturating_add(self.lead.boottime))
            }
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => {
                Some(host.realtime.saturating_add(self.realtime_lead()))
            }
            _ => None,
        }
    }
}
