//! What a protected container tells about itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use stream::clock::Nanos;

use super::egress::Shared;
use super::membership::Membership;
use crate::control::{Handler, Role, State, Status};
use crate::options::{Options, Protection};

/// Pauses that percentiles are taken of.
const PAUSES: usize = 1000;
/// Nanoseconds that replay takes for one byte of log, from the time a record takes and its usual length.
const REPLAY_NS_PER_BYTE: u64 = 5;

/// How long a switchover may take before it is called off: clients wait meanwhile.
const HANDOVER: Duration = Duration::from_secs(10);
/// Between two looks whether it is done.
const LOOK: Duration = Duration::from_millis(2);

/// Figures of a run.
#[derive(Debug, Default)]
pub(super) struct Stats {
    /// The newest committed checkpoint.
    pub(super) epoch: u64,
    /// Bytes of log sent and not acknowledged.
    pub(super) lag: u64,
    /// Records of the log so far, and their bytes.
    pub(super) records: u64,
    pub(super) bytes: u64,
    pauses: VecDeque<Duration>,
}

impl Stats {
    /// Notes a pause.
    pub(super) fn paused(&mut self, pause: Duration) {
        if self.pauses.len() == PAUSES {
            self.pauses.pop_front();
        }
        self.pauses.push_back(pause);
    }

    /// The pause that so many percent do not exceed, in microseconds; 0 before the first.
    fn percentile(&self, percent: usize) -> u64 {
        let mut sorted: Vec<Duration> = self.pauses.iter().copied().collect();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted
            .get((sorted.len() * percent / 100).min(last))
            .map_or(0, |d| d.as_micros() as u64)
    }
}

/// Answers `understudy status`.
#[derive(Debug)]
pub(super) struct Protected {
    name: String,
    address: String,
    backup: String,
    mode: &'static str,
    shared: Arc<Shared>,
    membership: Arc<Membership>,
    pid: i32,
}

impl Protected {
    pub(super) fn new(
        options: &Options,
        protection: &Protection,
        shared: Arc<Shared>,
        membership: Arc<Membership>,
        pid: i32,
    ) -> Self {
        Self {
            name: options.name.clone(),
            address: format!("{}/{}", options.link.address, options.link.prefix),
            backup: protection.backup.to_string(),
            mode: protection.mode.name(),
            shared,
            membership,
            pid,
        }
    }
}

impl Protected {
    /// Waits until the backup says that the container is live there.
    fn is_fenced_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.membership.pulse().lease().fenced().is_none() {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }
}

impl Handler for Protected {
    fn status(&self) -> Status {
        let live = self.membership.pulse().lease().is_live(Nanos::now());
        let stats = self.shared.stats();
        Status {
            name: self.name.clone(),
            role: Role::Primary,
            mode: self.mode.into(),
            epoch: stats.epoch,
            generation: self.membership.generation(),
            log_lag_bytes: stats.lag,
            log_records: stats.records,
            log_bytes: stats.bytes,
            replay_ms_predicted: stats.lag * REPLAY_NS_PER_BYTE / 1_000_000,
            pause_us_p50: stats.percentile(50),
            pause_us_p99: stats.percentile(99),
            backup: self.backup.clone(),
            state: if live && stats.epoch > 0 {
                State::Protected
            } else {
                State::Stalled
            },
            address: self.address.clone(),
            pid: self.pid,
        }
    }

    fn switchover(&self) -> Result<(), String> {
        if self.status().state != State::Protected {
            return Err(format!(
                "{:?} is not protected at the moment, so that nobody can go on with it: see `understudy status`",
                self.name
            ));
        }
        // The gate is closed first: the backup may go live as soon as the heartbeat says so.
        self.shared.lease.set(0);
        let given_up = self.membership.pulse().give_up();
        if given_up.is_ok() && self.is_fenced_within(HANDOVER) {
            return Ok(());
        }
        // No lease comes of it while the backup takes over all the same.
        self.membership.pulse().lease().resume();
        let reason = given_up.map_or_else(|e| e.to_string(), |()| "see what it says".into());
        Err(format!(
            "the backup {} has not gone on with {:?} within {HANDOVER:?}, which goes on here: {reason}",
            self.backup, self.name
        ))
    }
}
