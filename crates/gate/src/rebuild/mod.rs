//! Building a connection again on another host, in the middle of its stream.
//!
//! In: a [`ConnectionState`] from the log's fold, the gate's facts and replay, and the peer's answer to a
//! probe. Out: a socket in the same state, with its output on the way. [`plan`] is pure and says what to do;
//! [`Rebuilder`] does it.

mod carry_out;
mod plan;
mod probe;
mod prober;

pub use carry_out::{Rebuilder, Rebuilt};
pub use plan::{Delivery, Impossible, Plan, Probed, plan};
pub use probe::{forged_end, probe, reset};
pub use prober::{Answer, Prober};

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::facts::{Handshake, Progress};

/// The last timestamp that left, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Its value, in milliseconds of the old host's clock.
    pub value: u32,
    /// How long ago that was.
    pub age: Duration,
}

/// Everything that is known of a connection when its host is lost. Positions are stream positions: 0 is
/// the first byte behind the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionState {
    /// What was agreed when it was set up.
    pub handshake: Handshake,
    /// The last timestamp that left; the newer, the better. Needed if the handshake agreed on timestamps.
    pub timestamp: Option<Timestamp>,
    /// Bytes the application has read, or that lie in `unread`: nothing beyond was acknowledged. The
    /// bytes in `unread` are not counted.
    pub read: u64,
    /// Bytes the log holds beyond `read`: acknowledged perhaps, and not read.
    pub unread: Vec<u8>,
    /// The log holds the end of the peer's stream (behind `unread`).
    pub peer_ended: bool,
    /// Bytes the application has written, according to replay.
    pub written: u64,
    /// Bytes the peer is known to have: a lower bound.
    pub acknowledged: u64,
    /// The window the peer offered last, in bytes; what is known from the handshake will do.
    pub peer_window: u32,
    /// The application shut its sending side or closed.
    pub ended: bool,
    /// The application closed: nobody will have a descriptor.
    pub orphan: bool,
}

impl ConnectionState {
    /// The state as the gate of the new host should know it before the peer was probed ([`Gate::adopt`]);
    /// `now` is boot time there, in nanoseconds. [`Gate::settle`] corrects it by the plan.
    ///
    /// [`Gate::adopt`]: crate::Gate::adopt
    /// [`Gate::settle`]: crate::Gate::settle
    #[must_use]
    pub fn progress(&self, now: u64) -> Progress {
        let h = &self.handshake;
        let una = h.send_seq(self.acknowledged);
        let written = h.send_seq(self.written).wrapping_add(u32::from(self.ended));
        let received = h
            .receive_seq(self.read + self.unread.len() as u64)
            .wrapping_add(u32::from(self.peer_ended));
        let tsval = self.timestamp.map_or(0, probe::next_timestamp);
        Progress {
            una,
            peer_window: self.peer_window,
            peer_max_window: self.peer_window,
            peer_nxt: received,
            peer_fin: self.peer_ended,
            peer_tsval: 0,
            peer_ns: now,
            snd_nxt: una,
            kernel_ack: received,
            sent_ack: received,
            window: 0,
            edge: received,
            tsval,
            tsecr: 0,
            ts_ns: now,
            released_receive: received,
            released_send: written,
            over: false,
        }
    }
}
