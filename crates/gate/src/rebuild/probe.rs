//! Segments that takeover makes by hand: pure.

use super::{ConnectionState, Timestamp};
use crate::segment::{Segment, flag};

/// Added to every timestamp: what left last may be newer than what is known.
pub(super) const SLACK_MS: u32 = 50;

/// The timestamp with which a connection goes on.
pub(super) fn next_timestamp(last: Timestamp) -> u32 {
    let age = u32::try_from(last.age.as_millis()).unwrap_or(u32::MAX);
    last.value.wrapping_add(age).wrapping_add(SLACK_MS) & !1
}

/// One old byte, one below what the peer is known to have. Its answer is a duplicate acknowledgement that
/// tells exactly what it has.
#[must_use]
pub fn probe(state: &ConnectionState) -> Segment<'static> {
    let h = &state.handshake;
    Segment {
        from: h.tuple.local,
        to: h.tuple.peer,
        seq: h.send_seq(state.acknowledged).wrapping_sub(1),
        ack: h
            .receive_seq(state.read + state.unread.len() as u64)
            .wrapping_add(u32::from(state.peer_ended)),
        flags: flag::ACK,
        window: 1024,
        timestamps: h
            .timestamps
            .then(|| (state.timestamp.map_or(0, next_timestamp), 0)),
        payload: &[0],
    }
}

/// Tells a peer that its connection is over: with the number that it waits for, which its answer told, it believes it at
/// once (RFC 5961, section 3.2).
#[must_use]
pub fn reset(state: &ConnectionState, expected: u32) -> Segment<'static> {
    Segment {
        seq: expected,
        flags: flag::RST | flag::ACK,
        payload: &[],
        ..probe(state)
    }
}

/// The peer's FIN, as it came once: acknowledged by the old host, it will not come again. To be delivered to
/// the live socket. `snd_una` is what the peer has of the output, `tsval` its clock as it answered the
/// probe: a wrong one would make the kernel refuse what the peer really sends later.
#[must_use]
pub fn forged_end(state: &ConnectionState, snd_una: u32, tsval: u32) -> Segment<'static> {
    let h = &state.handshake;
    Segment {
        from: h.tuple.peer,
        to: h.tuple.local,
        seq: h.receive_seq(state.read + state.unread.len() as u64),
        ack: snd_una,
        flags: flag::FIN | flag::ACK,
        window: u16::try_from(state.peer_window >> h.scale.map_or(0, |s| s.peer))
            .unwrap_or(u16::MAX),
        timestamps: h.timestamps.then_some((tsval, 0)),
        payload: &[],
    }
}
