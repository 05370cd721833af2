//! Address resolution frames: asking whether an address is taken, and announcing one.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use sys::packet::PacketSocket;

/// Ethertype of ARP.
pub(super) const ETHERTYPE: u16 = 0x0806;
const FRAME: usize = 42;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const BROADCAST: [u8; 6] = [0xff; 6];

/// One Ethernet and IPv4 ARP frame.
fn frame(operation: u8, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> [u8; FRAME] {
    let mut bytes = [0; FRAME];
    bytes[0..6].copy_from_slice(&BROADCAST);
    bytes[6..12].copy_from_slice(&sender.0);
    // Ethertype, hardware type 1 (Ethernet), protocol 0x0800 (IPv4), their address lengths.
    bytes[12..20].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4]);
    bytes[21] = operation;
    bytes[22..28].copy_from_slice(&sender.0);
    bytes[28..32].copy_from_slice(&sender.1.octets());
    bytes[32..38].copy_from_slice(&target.0);
    bytes[38..42].copy_from_slice(&target.1.octets());
    bytes
}

/// Asks who has `address` without claiming it (RFC 5227, section 2.1.1: sender address zero).
fn probe(mac: [u8; 6], address: Ipv4Addr) -> [u8; FRAME] {
    frame(REQUEST, (mac, Ipv4Addr::UNSPECIFIED), ([0; 6], address))
}

/// The hardware address of whoever says in `bytes` that `address` is theirs.
pub(crate) fn claim(bytes: &[u8], address: Ipv4Addr) -> Option<[u8; 6]> {
    let arp = bytes.get(12..FRAME)?;
    let is_arp = arp[..8] == [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4];
    (is_arp && arp[16..20] == address.octets()).then(|| arp[10..16].try_into().ok())?
}

/// Asks three times on a link whether somebody has `address`; gives the hardware address of the first
/// to answer. Takes 150 ms when nobody does.
pub(super) fn holder(
    socket: &PacketSocket,
    own: [u8; 6],
    address: Ipv4Addr,
) -> io::Result<Option<[u8; 6]>> {
    let mut bytes = [0; 64];
    for _ in 0..3 {
        socket.send(&probe(own, address))?;
        let deadline = Instant::now() + Duration::from_millis(50);
        while let Some(length) = socket.receive(&mut bytes, deadline)? {
            let found = claim(&bytes[..length.min(bytes.len())], address);
            if let Some(mac) = found.filter(|mac| *mac != own) {
                return Ok(Some(mac));
            }
        }
    }
    Ok(None)
}

/// Tells everybody that `address` is at `mac`: once as a request and once as a reply, since some
/// neighbours take up only one of them.
pub(super) fn announce(socket: &PacketSocket, mac: [u8; 6], address: Ipv4Addr) -> io::Result<()> {
    socket.send(&frame(REQUEST, (mac, address), ([0; 6], address)))?;
    socket.send(&frame(REPLY, (mac, address), (BROADCAST, address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0x75, 10, 0, 0, 1];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    #[test]
    fn a_probe_claims_nothing_and_an_announcement_does() {
        assert_eq!(claim(&probe(MAC, ADDRESS), ADDRESS), None);
        let told = frame(REPLY, (MAC, ADDRESS), (BROADCAST, ADDRESS));
        assert_eq!(claim(&told, ADDRESS), Some(MAC));
        assert_eq!(claim(&told, Ipv4Addr::new(10, 0, 0, 2)), None);
        assert_eq!(claim(&told[..41], ADDRESS), None);
    }

    #[test]
    fn a_probe_is_what_the_standard_says() {
        let bytes = probe(MAC, ADDRESS);
        assert_eq!(
            bytes[..14],
            [255, 255, 255, 255, 255, 255, 2, 0x75, 10, 0, 0, 1, 8, 6]
        );
        assert_eq!(bytes[14..22], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(bytes[28..32], [0; 4]);
        assert_eq!(bytes[38..], [10, 0, 0, 1]);
    }
}
