//! Naming a connection: the two addresses, and the form in which the eBPF maps key it.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

/// Both ends of a connection, seen from the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tuple {
    /// The container's end.
    pub local: SocketAddrV4,
    /// The other end.
    pub peer: SocketAddrV4,
}

/// A tuple as the maps key it: both addresses IPv4-mapped, then both ports in network order.
pub(crate) type Key = [u8; 36];

impl Tuple {
    pub(crate) fn key(&self) -> Key {
        let mut key = [0; 36];
        key[..16].copy_from_slice(&self.local.ip().to_ipv6_mapped().octets());
        key[16..32].copy_from_slice(&self.peer.ip().to_ipv6_mapped().octets());
        key[32..34].copy_from_slice(&self.local.port().to_be_bytes());
        key[34..].copy_from_slice(&self.peer.port().to_be_bytes());
        key
    }

    /// The tuple of a key; `None` for one that is not IPv4.
    pub(crate) fn of_key(key: &Key) -> Option<Self> {
        let address = |at: usize| {
            let bytes: [u8; 16] = key[at..at + 16].try_into().ok()?;
            std::net::Ipv6Addr::from(bytes).to_ipv4_mapped()
        };
        let port = |at: usize| u16::from_be_bytes([key[at], key[at + 1]]);
        let end = |address: Ipv4Addr, port: u16| SocketAddrV4::new(address, port);
        Some(Self {
            local: end(address(0)?, port(32)),
            peer: end(address(16)?, port(34)),
        })
    }
}

impl std::fmt::Display for Tuple {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.local, self.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_names_its_tuple(a: u32, b: u32, p: u16, q: u16) {
            let t = Tuple { local: SocketAddrV4::new(a.into(), p), peer: SocketAddrV4::new(b.into(), q) };
            prop_assert_eq!(Tuple::of_key(&t.key()), Some(t));
        }
    }

    #[test]
    fn a_key_of_ipv6_is_no_tuple() {
        assert_eq!(Tuple::of_key(&[7; 36]), None);
    }
}
