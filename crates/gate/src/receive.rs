//! The way in: acknowledgements that must be sent by hand, and connections whose bytes nobody reads.
//!
//! The kernel acknowledges on its own what it received; the gate cuts that back to what the log holds and
//! drops what then says nothing. When the log moves on, the next packet of the container carries the news;
//! where none comes (an upload), a pure acknowledgement is injected.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use crate::error::GateError;
use crate::facts::{Handshake, Progress, distance};
use crate::kernel::{Entry, Gate};
use crate::segment::{Segment, flag};
use crate::tuple::Tuple;
use sys::tcp::RawIp;

/// The acknowledgement the peer waits for, if the kernel has wanted to send one that the log now covers.
#[must_use]
pub fn late_acknowledgement(
    handshake: &Handshake,
    progress: &Progress,
) -> Option<Segment<'static>> {
    if progress.over {
        return None;
    }
    let limit = if distance(progress.kernel_ack, progress.released_receive) > 0 {
        progress.released_receive
    } else {
        progress.kernel_ack
    };
    if distance(limit, progress.sent_ack) <= 0 {
        return None;
    }
    // The window's right edge stays where the kernel put it.
    let ahead = distance(progress.kernel_ack, limit).max(0).cast_unsigned();
    let window = progress.window + (ahead >> handshake.local_scale());
    Some(Segment {
        from: handshake.tuple.local,
        to: handshake.tuple.peer,
        seq: progress.snd_nxt,
        ack: limit,
        flags: flag::ACK,
        window: u16::try_from(window).unwrap_or(u16::MAX),
        timestamps: handshake
            .timestamps
            .then_some((progress.tsval, progress.tsecr)),
        payload: &[],
    })
}

/// Sends late acknowledgements from inside the container's network namespace.
#[derive(Debug)]
pub struct Injector(RawIp);

impl Injector {
    /// Call it in the container's network namespace; the injector can be used anywhere afterwards.
    ///
    /// # Errors
    /// [`GateError::System`] without CAP_NET_RAW.
    pub fn open() -> Result<Self, GateError> {
        RawIp::open().map(Self).map_err(|source| GateError::System {
            step: "opening a raw IP socket",
            source,
        })
    }

    /// Sends the acknowledgement that `entry` lacks, if it lacks one. Call it after
    /// [`Gate::allow_receive`] and after the output that the same log position released, which carries
    /// the acknowledgement for nothing. Returns whether one was sent: false, too, while the way to the peer
    /// is full; the next call tries again.
    ///
    /// # Errors
    /// [`GateError::Socket`] if the packet cannot be sent.
    pub fn acknowledge(
        &self,
        gate: &Gate,
        entry: Entry,
        handshake: &Handshake,
    ) -> Result<bool, GateError> {
        let Some(segment) = late_acknowledgement(handshake, &gate.progress(entry)) else {
            return Ok(false);
        };
        let step = "sending a late acknowledgement";
        self.try_send(&segment.packet(), &handshake.tuple, step)
    }

    /// Sends a packet of the container's to a peer; while the way is full it is lost, as packets are.
    pub(crate) fn send(&self, packet: &[u8], tuple: &Tuple) -> Result<(), GateError> {
        self.try_send(packet, tuple, "sending an answer").map(drop)
    }

    /// False while the way is full.
    fn try_send(
        &self,
        packet: &[u8],
        tuple: &Tuple,
        step: &'static str,
    ) -> Result<bool, GateError> {
        match self.0.send(packet, *tuple.peer.ip()) {
            Ok(()) => Ok(true),
            Err(e)
                if e.kind() == ErrorKind::WouldBlock
                    || e.raw_os_error() == Some(nix::libc::ENOBUFS) =>
            {
                Ok(false)
            }
            Err(source) => Err(GateError::Socket {
                tuple: *tuple,
                step,
                source,
            }),
        }
    }
}

/// Finds slow readers: connections with bytes (or an end) from the peer that the log has not held for a
/// while. Their unread bytes should be peeked from the socket into the log, so that the peer is not left
/// waiting; the caller then allows what it logged with [`Gate::allow_receive`].
#[derive(Clone, Debug, Default)]
pub struct SlowReaders {
    /// What was allowed when the connection was first seen behind, and when that was.
    behind: BTreeMap<Entry, (u32, u64)>,
}

impl SlowReaders {
    /// Takes one look at a connection; `now` and `patience` in nanoseconds. Returns how many bytes (a FIN
    /// counts as one) wait beyond what is allowed, once that has not moved for `patience`.
    pub fn look(
        &mut self,
        entry: Entry,
        progress: &Progress,
        now: u64,
        patience: u64,
    ) -> Option<u32> {
        let waiting = distance(progress.peer_nxt, progress.released_receive);
        if waiting <= 0 || progress.over {
            self.behind.remove(&entry);
            return None;
        }
        let (allowed, since) = self
            .behind
            .entry(entry)
            .or_insert((progress.released_receive, now));
        if *allowed != progress.released_receive {
            (*allowed, *since) = (progress.released_receive, now);
        }
        (now.saturating_sub(*since) >= patience).then_some(waiting.cast_unsigned())
    }

    /// Forgets a connection that ended.
    pub fn forget(&mut self, entry: Entry) {
        self.behind.remove(&entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Scale;
    use std::net::{Ipv4Addr, SocketAddrV4};

    fn handshake() -> Handshake {
        let end = |n, p| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), p);
        Handshake {
            tuple: Tuple {
                local: end(1, 80),
                peer: end(2, 999),
            },
            iss: 1000,
            irs: 5000,
            local_mss: 1460,
            peer_mss: 1460,
            scale: Some(Scale { local: 7, peer: 7 }),
            sack: true,
            timestamps: true,
            active: false,
        }
    }

    fn progress() -> Progress {
        Progress {
            una: 1001,
            peer_window: 65535,
            peer_max_window: 65535,
            peer_nxt: 7001,
            peer_fin: false,
            peer_tsval: 3,
            peer_ns: 0,
            snd_nxt: 1001,
            kernel_ack: 7001,
            sent_ack: 5001,
            window: 500,
            edge: 5001 + 65535,
            tsval: 1,
            tsecr: 2,
            ts_ns: 0,
            released_receive: 5001,
            released_send: 1001,
            over: false,
        }
    }

    #[test]
    fn nothing_is_acknowledged_before_the_log_moves() {
        assert_eq!(late_acknowledgement(&handshake(), &progress()), None);
    }

    #[test]
    fn the_edge_of_the_window_stays() {
        let p = Progress {
            released_receive: 6001,
            ..progress()
        };
        let s = late_acknowledgement(&handshake(), &p).unwrap();
        assert_eq!((s.ack, s.seq, s.timestamps), (6001, 1001, Some((1, 2))));
        let kernels = p.kernel_ack + (p.window << 7);
        let ours = s.ack + (u32::from(s.window) << 7);
        assert!(
            ours <= kernels && kernels - ours < 128,
            "{ours} against {kernels}"
        );
    }

    #[test]
    fn what_the_kernel_has_not_acknowledged_is_left_to_it() {
        let p = Progress {
            released_receive: 7001,
            kernel_ack: 5001,
            ..progress()
        };
        assert_eq!(late_acknowledgement(&handshake(), &p), None);
        let p = Progress {
            released_receive: 7001,
            sent_ack: 7001,
            ..progress()
        };
        assert_eq!(late_acknowledgement(&handshake(), &p), None);
    }

    #[test]
    fn only_standing_still_makes_a_slow_reader() {
        let (mut slow, e, p) = (SlowReaders::default(), Entry(3), progress());
        assert_eq!(slow.look(e, &p, 100, 40), None);
        assert_eq!(slow.look(e, &p, 139, 40), None);
        let moved = Progress {
            released_receive: 5002,
            ..p
        };
        assert_eq!(slow.look(e, &moved, 141, 40), None);
        assert_eq!(slow.look(e, &moved, 181, 40), Some(1999));
        let done = Progress {
            released_receive: 7001,
            ..p
        };
        assert_eq!(slow.look(e, &done, 999, 40), None);
        assert_eq!(slow.look(e, &p, 1000, 40), None, "it starts anew");
    }
}
