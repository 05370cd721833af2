//! The protocol between the two hosts, in simulated time and over a simulated network.
//!
//! In: a seed, which decides everything: what is lost, late, doubled or cut off, one way or both; which host stands
//! still, dies, or restarts without its memory; how the clocks differ and drift. Out: what happened, or the first moment
//! at which something was true that must never be. Lease, acknowledgements, detector, arbiter, log and staging of
//! checkpoints are the product's own; around them is as little as they need.
//!
//! What must hold at every step:
//! * never do both hosts speak;
//! * nothing that a client has got is missing from the state that a takeover goes live with;
//! * that state is the primary's at the same point, event for event;
//! * nothing is refused that an honest host sent.
//!
//! And when the faults end: somebody speaks, if a host and its data are left.

mod backup;
mod faults;
mod network;
mod primary;
mod world;

use backup::Backup;
use network::{Clock, Network, chance};
use primary::Primary;
use world::World;

/// A mistake that is made on purpose, to see it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The primary takes an acknowledgement of a backup that was, for one of the backup that is.
    OldAcknowledgement,
    /// The primary counts its lease from the answer to a heartbeat, not from the heartbeat.
    LeaseFromReceipt,
    /// The backup commits a checkpoint without waiting for the log before it.
    CommitBeforeLog,
}

impl Plant {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 3] = [
        ("old-acknowledgement", Self::OldAcknowledgement),
        ("lease-from-receipt", Self::LeaseFromReceipt),
        ("commit-before-log", Self::CommitBeforeLog),
    ];
}

/// What happened in one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Takeovers that went live.
    pub live: u64,
    /// Takeovers that were called off.
    pub revoked: u64,
    /// Restarts of the backup.
    pub restarted: u64,
    /// The primary died.
    pub died: u64,
    /// Checkpoints that were committed.
    pub committed: u64,
    /// Events whose output has left.
    pub released: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.live += other.live;
        self.revoked += other.revoked;
        self.restarted += other.restarted;
        self.died += other.died;
        self.committed += other.committed;
        self.released += other.released;
    }
}

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, at {at} ms: {what}; before it: {}", events.join(", "))]
pub struct Violation {
    /// The seed that shows it again.
    pub seed: u64,
    /// When, in milliseconds of simulated time.
    pub at: u64,
    /// What.
    pub what: String,
    /// The faults and changes until then.
    pub events: Vec<String>,
}

/// Runs one seed to its end.
///
/// # Errors
/// The first [`Violation`].
pub fn run(seed: u64, plant: Option<Plant>) -> Result<Tally, Violation> {
    World::new(seed, plant).run()
}
