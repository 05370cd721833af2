//! TCP segments as bytes: what probes, late acknowledgements and forged ends are made of, and what is
//! read from held frames. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::tuple::Tuple;

/// Bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
const IP_LEN: usize = 20;
const TCP_LEN: usize = 20;

/// TCP flags.
pub mod flag {
    /// No more bytes follow.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Refuses one.
    pub const RST: u8 = 4;
    /// The receiver should not wait for more.
    pub const PSH: u8 = 8;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// A segment to be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Where it comes from.
    pub from: SocketAddrV4,
    /// Where it goes.
    pub to: SocketAddrV4,
    /// Sequence number of its first byte.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Bits of [`flag`].
    pub flags: u8,
    /// The window field, already scaled down.
    pub window: u16,
    /// Timestamp and its echo.
    pub timestamps: Option<(u32, u32)>,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// A segment that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Where it comes from.
    pub from: SocketAddrV4,
    /// Where it goes.
    pub to: SocketAddrV4,
    /// Sequence number of its first byte.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Bits of [`flag`].
    pub flags: u8,
    /// The window field.
    pub window: u16,
    /// Bytes of payload, whether or not all were kept.
    pub payload: usize,
    /// The first block of a selective acknowledgement. One below `ack` says which segment came twice.
    pub sack: Option<(u32, u32)>,
    /// Timestamp and its echo.
    pub timestamps: Option<(u32, u32)>,
}

impl Parsed {
    /// The sequence number behind its last byte, SYN and FIN counted.
    #[must_use]
    pub const fn end(&self) -> u32 {
        let marks = (self.flags & flag::SYN != 0) as u32 + (self.flags & flag::FIN != 0) as u32;
        self.seq
            .wrapping_add(self.payload as u32)
            .wrapping_add(marks)
    }

    /// The connection it belongs to, if it was sent to the container.
    #[must_use]
    pub const fn tuple_of_receiver(&self) -> Tuple {
        Tuple {
            local: self.to,
            peer: self.from,
        }
    }
}

/// The ones' complement sum of `bytes`, added to `sum`; not yet folded.
fn sum_words(mut sum: u64, bytes: &[u8]) -> u64 {
    let mut pairs = bytes.chunks_exact(2);
    for p in &mut pairs {
        sum += u64::from(u16::from_be_bytes([p[0], p[1]]));
    }
    if let [last] = pairs.remainder() {
        sum += u64::from(*last) << 8;
    }
    sum
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn tcp_checksum(from: Ipv4Addr, to: Ipv4Addr, tcp: &[u8]) -> u16 {
    let mut sum = sum_words(0, &from.octets());
    sum = sum_words(sum, &to.octets());
    fold(sum_words(sum + 6 + tcp.len() as u64, tcp))
}

impl Segment<'_> {
    /// The IPv4 packet, checksums filled in. The payload must fit one packet.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let options = if self.timestamps.is_some() { 12 } else { 0 };
        let total = IP_LEN + TCP_LEN + options + self.payload.len();
        let mut p = vec![0; total];
        p[0] = 0x45;
        p[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        p[6] = 0x40;
        p[8] = 64;
        p[9] = 6;
        p[12..16].copy_from_slice(&self.from.ip().octets());
        p[16..20].copy_from_slice(&self.to.ip().octets());
        let sum = fold(sum_words(0, &p[..IP_LEN]));
        p[10..12].copy_from_slice(&sum.to_be_bytes());

        let t = &mut p[IP_LEN..];
        t[..2].copy_from_slice(&self.from.port().to_be_bytes());
        t[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        t[4..8].copy_from_slice(&self.seq.to_be_bytes());
        t[8..12].copy_from_slice(&self.ack.to_be_bytes());
        t[12] = ((TCP_LEN + options) as u8 / 4) << 4;
        t[13] = self.flags;
        t[14..16].copy_from_slice(&self.window.to_be_bytes());
        if let Some((value, echo)) = self.timestamps {
            t[20..24].copy_from_slice(&[1, 1, 8, 10]);
            t[24..28].copy_from_slice(&value.to_be_bytes());
            t[28..32].copy_from_slice(&echo.to_be_bytes());
        }
        t[TCP_LEN + options..].copy_from_slice(self.payload);
        let sum = tcp_checksum(*self.from.ip(), *self.to.ip(), t);
        t[16..18].copy_from_slice(&sum.to_be_bytes());
        p
    }

    /// The same behind an Ethernet header.
    #[must_use]
    pub fn frame(&self, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
        let mut frame =
            Vec::with_capacity(ETHERNET_LEN + IP_LEN + TCP_LEN + 12 + self.payload.len());
        frame.extend_from_slice(&to);
        frame.extend_from_slice(&from);
        frame.extend_from_slice(&[8, 0]);
        frame.extend_from_slice(&self.packet());
        frame
    }
}

/// Where the parts of a frame with a TCP segment begin.
struct Offsets {
    tcp: usize,
    payload: usize,
    end: usize,
}

fn offsets(frame: &[u8]) -> Option<Offsets> {
    let ip = frame.get(ETHERNET_LEN..ETHERNET_LEN + IP_LEN)?;
    if frame[12..14] != [8, 0] || ip[0] >> 4 != 4 || ip[9] != 6 || ip[6] & 0x3f != 0 || ip[7] != 0 {
        return None;
    }
    let header = usize::from(ip[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let tcp = ETHERNET_LEN + header;
    let head = frame.get(tcp..tcp + TCP_LEN)?;
    let payload = tcp + usize::from(head[12] >> 4) * 4;
    let end = if total == 0 {
        frame.len()
    } else {
        ETHERNET_LEN + total
    };
    // The lengths are the sender's word: its options must be there, and before its end.
    let fits = payload <= end.min(frame.len());
    (header >= IP_LEN && head[12] >> 4 >= 5 && fits).then_some(Offsets { tcp, payload, end })
}

/// Reads the TCP segment of an Ethernet frame; `None` if it holds none, or only a fragment.
#[must_use]
pub fn parse(frame: &[u8]) -> Option<Parsed> {
    let at = offsets(frame)?;
    let address = |o: usize| Ipv4Addr::new(frame[o], frame[o + 1], frame[o + 2], frame[o + 3]);
    let short = |o: usize| u16::from_be_bytes([frame[o], frame[o + 1]]);
    let word = |o: usize| u32::from_be_bytes([frame[o], frame[o + 1], frame[o + 2], frame[o + 3]]);
    let (ip, t) = (ETHERNET_LEN, at.tcp);
    let options = frame.get(t + TCP_LEN..at.payload)?;
    Some(Parsed {
        from: SocketAddrV4::new(address(ip + 12), short(t)),
        to: SocketAddrV4::new(address(ip + 16), short(t + 2)),
        seq: word(t + 4),
        ack: word(t + 8),
        flags: frame[t + 13],
        window: short(t + 14),
        payload: at.end - at.payload,
        sack: pair(options, 5),
        timestamps: pair(options, 8),
    })
}

/// The first two words of the TCP option called `wanted`.
fn pair(mut options: &[u8], wanted: u8) -> Option<(u32, u32)> {
    loop {
        match *options {
            [1, ref rest @ ..] => options = rest,
            [kind, len, a, b, c, d, e, f, g, h, ..] if kind == wanted && len >= 10 => {
                return Some((
                    u32::from_be_bytes([a, b, c, d]),
                    u32::from_be_bytes([e, f, g, h]),
                ));
            }
            [kind, len, ..] if kind != 0 && len >= 2 => {
                options = options.get(usize::from(len)..)?
            }
            _ => return None,
        }
    }
}

/// The frame's TCP segment as frames that can be sent: cut into pieces of at most `mss` bytes of payload,
/// checksums computed, since what was captured on a virtual link may have neither size nor sum of its own.
/// Other frames come back as they are.
#[must_use]
pub fn resendable(frame: &[u8], mss: usize) -> Vec<Vec<u8>> {
    let Some(at) = offsets(frame) else {
        return vec![frame.to_vec()];
    };
    let end = at.end.min(frame.len());
    let (head, payload) = (&frame[..at.payload], &frame[at.payload.min(end)..end]);
    let seq = u32::from_be_bytes([
        head[at.tcp + 4],
        head[at.tcp + 5],
        head[at.tcp + 6],
        head[at.tcp + 7],
    ]);
    let piece = |done: usize, bytes: &[u8], last: bool| {
        let mut f = head.to_vec();
        f.extend_from_slice(bytes);
        let total = (f.len() - ETHERNET_LEN) as u16;
        let ip = &mut f[ETHERNET_LEN..at.tcp];
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[10..12].fill(0);
        let sum = fold(sum_words(0, ip));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let (from, to) = (
            Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]),
            Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]),
        );
        let t = &mut f[at.tcp..];
        t[4..8].copy_from_slice(&seq.wrapping_add(done as u32).to_be_bytes());
        if !last {
            t[13] &= !(flag::FIN | flag::PSH);
        }
        t[16..18].fill(0);
        let sum = tcp_checksum(from, to, t);
        t[16..18].copy_from_slice(&sum.to_be_bytes());
        f
    };
    if payload.is_empty() {
        return vec![piece(0, payload, true)];
    }
    let count = payload.len().div_ceil(mss.max(1));
    payload
        .chunks(mss.max(1))
        .enumerate()
        .map(|(i, bytes)| piece(i * mss.max(1), bytes, i + 1 == count))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn end(last: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), port)
    }

    /// A right checksum sums to zero with its pseudo header.
    fn sums_hold(frame: &[u8]) -> bool {
        let ip = &frame[ETHERNET_LEN..ETHERNET_LEN + IP_LEN];
        let (from, to) = (
            Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]),
            Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]),
        );
        fold(sum_words(0, ip)) == 0 && tcp_checksum(from, to, &frame[ETHERNET_LEN + IP_LEN..]) == 0
    }

    proptest! {
        #[test]
        fn what_is_built_is_read(seq: u32, ack: u32, flags in 0u8..32, window: u16, ts: Option<(u32, u32)>,
                                 payload in proptest::collection::vec(any::<u8>(), 0..1400)) {
            let s = Segment { from: end(1, 5), to: end(2, 6), seq, ack, flags, window, timestamps: ts, payload: &payload };
            let f = s.frame([1; 6], [2; 6]);
            let p = parse(&f).unwrap();
            prop_assert_eq!((p.from, p.to, p.seq, p.ack, p.flags, p.window, p.payload),
                            (s.from, s.to, seq, ack, flags, window, payload.len()));
            prop_assert_eq!(p.timestamps, ts);
            prop_assert!(sums_hold(&f));
        }

        #[test]
        fn pieces_add_up(payload in proptest::collection::vec(any::<u8>(), 0..5000), mss in 1usize..2000, broken: u16) {
            let flags = flag::ACK | flag::FIN | flag::PSH;
            let s = Segment { from: end(1, 5), to: end(2, 6), seq: u32::MAX - 100, ack: 9, flags, window: 3,
                              timestamps: Some((1, 2)), payload: &payload };
            let mut f = s.frame([1; 6], [2; 6]);
            f[ETHERNET_LEN + IP_LEN + 16..ETHERNET_LEN + IP_LEN + 18].copy_from_slice(&broken.to_be_bytes());
            let mut next = s.seq;
            let mut bytes = Vec::new();
            let pieces = resendable(&f, mss);
            for (i, piece) in pieces.iter().enumerate() {
                prop_assert!(sums_hold(piece));
                let p = parse(piece).unwrap();
                prop_assert_eq!(p.seq, next);
                prop_assert_eq!(p.flags & flag::FIN != 0, i + 1 == pieces.len());
                next = p.end();
                bytes.extend_from_slice(&piece[piece.len() - p.payload..]);
            }
            prop_assert_eq!(bytes, payload);
        }

        #[test]
        fn any_bytes_are_read_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = resendable(&bytes, 100);
        }
    }

    #[test]
    fn a_frame_that_ends_within_its_options_comes_back_as_it_is() {
        let segment = Segment {
            from: end(1, 5),
            to: end(2, 6),
            seq: 1,
            ack: 2,
            flags: flag::ACK,
            window: 3,
            timestamps: Some((1, 2)),
            payload: b"payload",
        };
        let whole = segment.frame([1; 6], [2; 6]);
        let cut = &whole[..ETHERNET_LEN + IP_LEN + TCP_LEN + 4];
        assert_eq!(parse(cut), None);
        assert_eq!(resendable(cut, 100), [cut]);
    }

    #[test]
    fn the_segment_that_came_twice_is_named() {
        let stamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let block = [1, 1, 5, 10, 0, 0, 1, 0, 0, 0, 2, 0];
        assert_eq!(pair(&[stamps, block].concat(), 5), Some((256, 512)));
        assert_eq!(pair(&stamps, 5), None);
        assert_eq!(pair(&[5, 10, 1], 5), None);
        assert_eq!(pair(&[8, 200, 1], 5), None);
    }
}
