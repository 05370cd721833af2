//! What came of a run.

use std::time::Instant;

use serde::Serialize;

use super::driver::Driver;
use super::timeline::{self, Gap};
use super::{Audit, Faults, Latency};

/// What the clients saw.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// When the first command was sent.
    #[serde(skip)]
    pub start: Instant,
    /// How long commands were sent.
    pub seconds: f64,
    /// Replies to everybody.
    pub replies: u64,
    /// Replies a second to closed-loop and pipelining connections.
    pub replies_per_second: f64,
    /// Lost, repeated, wrong.
    pub faults: Faults,
    /// Connections that ended, or left a command unanswered.
    pub broken: u64,
    /// Those of them that were reset or refused.
    pub resets: u64,
    /// The longest time without any reply to closed-loop and pipelining connections.
    pub longest_gap: Option<Gap>,
    /// Of closed-loop and pipelining connections.
    pub latency: Latency,
    /// Reading everything back.
    pub audit: Audit,
    /// Replies to closed-loop and pipelining connections in each ten milliseconds.
    pub per_10ms: Vec<u32>,
    /// Times without any such reply of one millisecond or more.
    #[serde(skip)]
    pub gaps: Vec<Gap>,
}

impl Report {
    pub(super) fn of(driver: &Driver, start: Instant) -> Self {
        let per_10ms = driver.line.counts().to_vec();
        let seconds = driver.took.as_secs_f64();
        let latency = driver.latency.latency();
        Self {
            start,
            seconds,
            replies: driver.replies,
            replies_per_second: if seconds > 0.0 {
                latency.count as f64 / seconds
            } else {
                0.0
            },
            faults: Faults::default(),
            broken: driver.broken,
            resets: driver.resets,
            longest_gap: timeline::longest(driver.line.gaps()),
            latency,
            audit: Audit::default(),
            per_10ms,
            gaps: driver.line.gaps().to_vec(),
        }
    }

    /// The time without any reply that a fault at this moment has made.
    #[must_use]
    pub fn gap_around(&self, fault: Instant) -> Option<Gap> {
        timeline::around(&self.gaps, fault.saturating_duration_since(self.start))
    }

    /// True if the clients have nothing to complain of: nothing lost, repeated, wrong or broken, and
    /// everything could be read back.
    #[must_use]
    pub const fn flawless(&self) -> bool {
        self.faults.none() && self.broken == 0 && self.audit.failed.is_none()
    }
}
