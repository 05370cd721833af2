//! A layout of `docs/FORMATS.md` that takes two crates to write.

use std::net::{Ipv4Addr, SocketAddrV4};

use eventlog::codec::encode;
use gate::{Handshake, Scale, Tuple};

#[test]
fn the_layout_of_a_handshake_is_the_documented_one() {
    let end = |n, port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), port);
    let handshake = Handshake {
        tuple: Tuple {
            local: end(1, 0x0201),
            peer: end(2, 0x0403),
        },
        iss: 0x0807_0605,
        irs: 9,
        local_mss: 10,
        peer_mss: 11,
        scale: Some(Scale { local: 7, peer: 8 }),
        sack: true,
        timestamps: false,
        active: true,
    };
    let ends = [10, 0, 0, 1, 1, 2, 10, 0, 0, 2, 3, 4];
    let numbers = [5, 6, 7, 8, 9, 0, 0, 0, 10, 0, 11, 0];
    let agreed = [1, 7, 8, 1, 0, 1];
    assert_eq!(
        encode(&handshake).unwrap(),
        [&ends[..], &numbers, &agreed].concat()
    );
}
