//! Entries for a fuzzer: each takes any bytes and must neither panic nor allocate beyond its bounds.

use crate::openings;
use crate::segment::{flag, parse, resendable};

/// Payload of the pieces that frames are cut into here.
const PIECE: usize = 256;

/// A frame that was kept for the container: read, and made ready to be delivered.
pub fn fuzz_frame(data: &[u8]) {
    let pieces = resendable(data, PIECE);
    let Some(whole) = parse(data) else {
        return;
    };
    let mut next = whole.seq;
    for (i, piece) in pieces.iter().enumerate() {
        let found = parse(piece);
        assert!(found.is_some_and(|found| {
            let ends = found.flags & flag::FIN != 0;
            found.seq == next
                && found.payload <= PIECE
                && (found.from, found.to) == (whole.from, whole.to)
                && (!ends || i + 1 == pieces.len())
        }));
        next = found.map_or(next, |found| found.seq.wrapping_add(found.payload as u32));
    }
    let kept = next.wrapping_sub(whole.seq) as usize;
    assert!(kept <= whole.payload && kept <= data.len());
}

/// An entry of the ring of answers to connection requests.
pub fn fuzz_opening(data: &[u8]) {
    let found = openings::decode(data);
    assert!(found.is_none_or(|found| found.packet.len() <= data.len()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{ETHERNET_LEN, Segment};
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, SocketAddrV4};

    proptest! {
        #[test]
        fn any_bytes_are_answered(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_frame(&data);
            fuzz_opening(&data);
        }

        #[test]
        fn damaged_frames_are_answered(payload in proptest::collection::vec(any::<u8>(), 0..900), stamps: Option<(u32, u32)>,
                                       damage in proptest::collection::vec((ETHERNET_LEN..70, any::<u8>()), 0..4), len in prop_oneof![0usize..100, 0usize..1000]) {
            let end = |n| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), 80);
            let segment = Segment { from: end(1), to: end(2), seq: u32::MAX - 9, ack: 1, flags: flag::ACK | flag::FIN,
                                    window: 1, timestamps: stamps, payload: &payload };
            let mut frame = segment.frame([1; 6], [2; 6]);
            for (at, byte) in damage {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            frame.truncate(len);
            fuzz_frame(&frame);
        }
    }
}
