//! What the gate saw of a connection: the handshake, and the last word of each side.

use serde::{Deserialize, Serialize};

use crate::tuple::Tuple;

/// What the two sides agreed on when the connection was set up. Never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// Its ends.
    pub tuple: Tuple,
    /// The container's initial sequence number.
    pub iss: u32,
    /// The peer's initial sequence number.
    pub irs: u32,
    /// The largest segment the container announced.
    pub local_mss: u16,
    /// The largest segment the peer announced.
    pub peer_mss: u16,
    /// Shift counts of the windows, if both sides scale.
    pub scale: Option<Scale>,
    /// Both sides take selective acknowledgements.
    pub sack: bool,
    /// Both sides send timestamps.
    pub timestamps: bool,
    /// The container connected; otherwise it accepted.
    pub active: bool,
}

/// Shift counts of window fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scale {
    /// Of windows the container announces.
    pub local: u8,
    /// Of windows the peer announces.
    pub peer: u8,
}

/// What changes with every packet. All sequence numbers are as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Highest sequence number the peer acknowledged.
    pub una: u32,
    /// Bytes it takes beyond that.
    pub peer_window: u32,
    /// The most it ever took.
    pub peer_max_window: u32,
    /// End of what the peer sent, its FIN included.
    pub peer_nxt: u32,
    /// Its FIN was seen.
    pub peer_fin: bool,
    /// Its last timestamp.
    pub peer_tsval: u32,
    /// Boot time of its last packet, in nanoseconds.
    pub peer_ns: u64,
    /// End of what left towards the peer, a FIN included.
    pub snd_nxt: u32,
    /// Highest acknowledgement the container's kernel wanted to send.
    pub kernel_ack: u32,
    /// Highest acknowledgement that left.
    pub sent_ack: u32,
    /// Window field that came with `kernel_ack`, not scaled.
    pub window: u32,
    /// Highest right edge of the window that left.
    pub edge: u32,
    /// Last timestamp that left.
    pub tsval: u32,
    /// Last echo the kernel wanted to send.
    pub tsecr: u32,
    /// Boot time when `tsval` left, in nanoseconds.
    pub ts_ns: u64,
    /// No acknowledgement beyond this leaves.
    pub released_receive: u32,
    /// No payload and no FIN beyond this leaves.
    pub released_send: u32,
    /// The peer sent a reset, or a newer connection has the tuple.
    pub over: bool,
}

impl Handshake {
    /// Sequence number of the stream's byte `position` from the container (0 is its first).
    #[must_use]
    pub const fn send_seq(&self, position: u64) -> u32 {
        self.iss.wrapping_add(1).wrapping_add(position as u32)
    }

    /// Sequence number of the stream's byte `position` from the peer (0 is its first).
    #[must_use]
    pub const fn receive_seq(&self, position: u64) -> u32 {
        self.irs.wrapping_add(1).wrapping_add(position as u32)
    }

    /// The shift count of windows the container announces.
    #[must_use]
    pub const fn local_scale(&self) -> u8 {
        match self.scale {
            Some(s) => s.local,
            None => 0,
        }
    }
}

/// Signed distance from `b` to `a`: positive if `a` is later.
#[must_use]
pub const fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

/// The stream position of sequence number `seq`, where `near` (a position at most 2 GiB away) has
/// sequence number `near_seq`; never below 0.
#[must_use]
pub const fn position_of(seq: u32, near: u64, near_seq: u32) -> u64 {
    near.saturating_add_signed(distance(seq, near_seq) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_survive_wrapping(iss: u32, near in 0u64..1 << 40, step in -1_000_000i64..1_000_000) {
            let seq = |p: u64| iss.wrapping_add(1).wrapping_add(p as u32);
            let at = near.saturating_add_signed(step);
            prop_assert_eq!(position_of(seq(at), near, seq(near)), at);
        }
    }
}
