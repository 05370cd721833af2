//! What the primary tells its backup beside the guests' records and the memory image: opaque sections of a
//! checkpoint's image, the primary's own stream, and what it says of the container when it connects.
//!
//! * Section [`section::FOLD`]: the fold's snapshot at the cut.
//! * Section [`section::GUEST`]: [`GuestState`], what of the arena an image has to bring.
//! * Section [`section::OUTPUT`]: unacknowledged output at the cut; for each connection with some, entry and
//!   length (32 bits each), then the bytes, the first of which is at the connection's `trimmed`.
//! * Section [`section::HANDSHAKES`]: the records of the primary's own stream before the cut, as far as their
//!   connections are still needed. A HANDSHAKE record whose `arg0` is 1 is of a connection that has ended.
//! * Stream [`crate::recording::OWN_STREAM`]: one record of kind [`crate::record::kind::OPENING`] for each
//!   connection, before its peer knows that there is one; then one of kind
//!   [`crate::record::kind::HANDSHAKE`] when the application has it, before any of its output leaves.

use serde::{Deserialize, Serialize};

use crate::record::{Header, LONG_LEN, stored_len};

/// Kinds of opaque sections: those that the image leaves to its user ([`crate::image::section::OPAQUE`]).
pub mod section {
    /// The fold's snapshot.
    pub const FOLD: u32 = 0x1001;
    /// The arena's state.
    pub const GUEST: u32 = 0x1002;
    /// Output that the clients have not acknowledged.
    pub const OUTPUT: u32 = 0x1003;
    /// Records of the primary's own stream that are still needed.
    pub const HANDSHAKES: u32 = 0x1004;
}

/// A record of the primary's own stream, as its bytes.
#[must_use]
pub fn record(header: Header, payload: &[u8]) -> Vec<u8> {
    let payload_len = payload.len() as u32;
    let header = Header {
        payload_len,
        ..header
    };
    let (head, _) = header.encode();
    let mut bytes = head[..LONG_LEN].to_vec();
    bytes.extend_from_slice(payload);
    bytes.resize(stored_len(true, payload.len()), 0);
    bytes
}

/// The arena at the cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestState {
    /// Number of the next stream.
    pub next_stream: u32,
    /// Version of the order of process numbers.
    pub pids: u64,
    /// Version of the order of standard output.
    pub stdio: u64,
    /// Threads, by ring.
    pub threads: Vec<ThreadState>,
    /// Connections, by entry.
    pub connections: Vec<ConnectionCut>,
    /// Whether one thread runs at a time.
    pub serial: bool,
}

/// A thread's ring at the cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadState {
    /// Index of the ring.
    pub slot: u32,
    /// Its stream.
    pub stream: u32,
    /// Thread number inside the container.
    pub tid: u32,
    /// Process number inside the container.
    pub pid: u32,
    /// Address of the thread's block.
    pub block: u64,
    /// Bytes of the stream before the cut.
    pub position: u64,
}

/// A connection at the cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCut {
    /// Its entry.
    pub index: u32,
    /// How often the entry had been taken.
    pub generation: u32,
    /// Its state, as in the arena.
    pub state: u32,
    /// Descriptors that refer to it.
    pub refs: u32,
    /// The descriptor it came with.
    pub fd: u32,
    /// The process it came to.
    pub pid: u32,
    /// The application ended its output.
    pub shut: u32,
    /// The application read the end of the peer's.
    pub read_end: u32,
    /// The process that read from it last, 0 when none has.
    pub holder: u32,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Bytes the client had acknowledged, as far as was known.
    pub trimmed: u64,
    /// Between whom it is, as in the arena.
    pub ends: u64,
}

/// Payload of a handshake record: `result` is the connection's entry, `version` its generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeRecord {
    /// The gate's description of the handshake, in its own encoding.
    pub handshake: Vec<u8>,
    /// The last timestamp that had left when this was written.
    pub timestamp: u32,
    /// When that was, in nanoseconds since the epoch.
    pub at: u64,
}

/// Payload of an opening's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpeningRecord {
    /// The handshake, and the timestamp of the answer.
    pub known: HandshakeRecord,
    /// The answer (SYN-ACK): an IPv4 packet.
    pub answer: Vec<u8>,
}

/// What a primary says of its container when it connects (`details` of its hello).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// The container's name.
    pub name: String,
    /// Its command, as bytes.
    pub command: Vec<Vec<u8>>,
    /// Its IPv4 address.
    pub address: [u8; 4],
    /// Bits of its network.
    pub prefix: u8,
    /// Where its packets for other networks go.
    pub gateway: Option<[u8; 4]>,
    /// Its link's hardware address.
    pub mac: [u8; 6],
    /// The bridge it is on at the primary: the backup's has the same name unless its operator says another.
    pub bridge: String,
    /// Whether a takeover replays the log behind the last checkpoint. Without, nothing has left the container that no
    /// checkpoint has (`--mode checkpoint`).
    pub replays: bool,
    /// Directories of which the backup keeps copies: absolute paths without links.
    pub mirrors: Vec<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::encode;

    #[test]
    fn the_layout_of_the_arenas_state_is_the_documented_one() {
        let thread = ThreadState {
            slot: 1,
            stream: 2,
            tid: 3,
            pid: 4,
            block: 5,
            position: 6,
        };
        let connection = ConnectionCut {
            index: 1,
            generation: 2,
            state: 3,
            refs: 4,
            fd: 5,
            pid: 6,
            shut: 7,
            read_end: 8,
            holder: 9,
            read: 10,
            written: 11,
            trimmed: 12,
            ends: 13,
        };
        let state = GuestState {
            next_stream: 7,
            pids: 8,
            stdio: 9,
            threads: vec![thread],
            connections: vec![connection],
            serial: true,
        };
        let words = |range: core::ops::RangeInclusive<u32>| {
            range.flat_map(u32::to_le_bytes).collect::<Vec<_>>()
        };
        let longs = |values: &[u64]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            bytes.collect::<Vec<_>>()
        };
        let bytes = [
            words(7..=7),
            longs(&[8, 9, 1]),
            words(1..=4),
            longs(&[5, 6, 1]),
            words(1..=9),
            longs(&[10, 11, 12, 13]),
            vec![1],
        ];
        assert_eq!(encode(&state).unwrap(), bytes.concat());
        assert_eq!(
            [
                section::FOLD,
                section::GUEST,
                section::OUTPUT,
                section::HANDSHAKES
            ],
            [4097, 4098, 4099, 4100]
        );
    }
}
