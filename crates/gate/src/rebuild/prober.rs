//! Asking every peer where it stands, and keeping what peers send meanwhile.

use std::collections::BTreeMap;

use sys::packet::PacketSocket;
use sys::tcp::RawIp;

use super::ConnectionState;
use super::probe::{probe, reset};
use crate::error::GateError;
use crate::facts::distance;
use crate::kernel::{Entry, Gate};
use crate::segment::{Parsed, flag, resendable};
use crate::tap::{HeldFrame, Tap};
use crate::tuple::Tuple;

/// A peer's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The connection.
    pub tuple: Tuple,
    /// What the peer has, as on the wire.
    pub ack: u32,
    /// Its clock, if the connection uses timestamps.
    pub tsval: Option<u32>,
}

/// What is known of a connection that was probed.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Sequence number of the probe's byte.
    seq: u32,
    /// The peer's acknowledgements name what came twice.
    sack: bool,
    /// Everything before this is in the log already.
    received: u32,
    /// The acknowledgement of the whole output, its end included, if it has ended.
    whole: Option<u32>,
    answered: bool,
    /// What the peer said it has.
    has: Option<u32>,
    /// The peer knows no such connection.
    refused: bool,
    /// Its socket takes frames.
    live: bool,
}

/// Probes connections through a gate that holds ([`crate::Config::hold`]) and has adopted them.
#[derive(Debug)]
pub struct Prober {
    raw: RawIp,
    tap: Tap,
    asked: BTreeMap<Tuple, Asked>,
    frames: Vec<HeldFrame>,
    ready: Vec<Answer>,
}

/// Payload of the pieces in which large frames are delivered: every interface takes them.
const PIECE: usize = 1400;

impl Prober {
    /// Call it in the container's network namespace; the prober can be used anywhere afterwards. `tap`
    /// says from where on frames count: from somewhat before the old host's last acknowledged log, with a
    /// standby that was flooded all the time ([`Tap::since`]).
    ///
    /// # Errors
    /// [`GateError::System`] without CAP_NET_RAW.
    pub fn open(tap: Tap) -> Result<Self, GateError> {
        let raw = RawIp::open().map_err(|source| GateError::System {
            step: "opening a raw IP socket",
            source,
        })?;
        Ok(Self {
            raw,
            tap,
            asked: BTreeMap::new(),
            frames: Vec::new(),
            ready: Vec::new(),
        })
    }

    /// Asks one peer. Asking again is allowed and harmless. What the peer sent before is read first, so
    /// that it is not taken for the answer.
    ///
    /// # Errors
    /// [`GateError::Socket`] if the packet cannot be sent.
    pub fn ask(&mut self, gate: &Gate, state: &ConnectionState) -> Result<(), GateError> {
        self.listen(gate);
        let segment = probe(state);
        let tuple = state.handshake.tuple;
        let asked = Asked {
            seq: segment.seq,
            sack: state.handshake.sack,
            received: segment.ack,
            whole: state
                .ended
                .then(|| state.handshake.send_seq(state.written).wrapping_add(1)),
            answered: false,
            has: None,
            refused: false,
            live: false,
        };
        self.asked.entry(tuple).or_insert(asked);
        self.raw
            .send(&segment.packet(), *tuple.peer.ip())
            .map_err(|source| GateError::Socket {
                tuple,
                step: "sending a probe",
                source,
            })
    }

    /// Answers that came since the last call, each connection's once. Does not wait.
    pub fn answers(&mut self, gate: &Gate) -> Vec<Answer> {
        self.listen(gate);
        std::mem::take(&mut self.ready)
    }

    fn listen(&mut self, gate: &Gate) {
        let new = self.tap.read(gate);
        for segment in new.iter().filter_map(HeldFrame::segment) {
            let tuple = segment.tuple_of_receiver();
            if let Some(asked) = self.asked.get_mut(&tuple)
                && !asked.answered
                && asked.is_refusal(&segment)
            {
                (asked.answered, asked.refused) = (true, true);
            } else if let Some(asked) = self.asked.get_mut(&tuple)
                && !asked.answered
                && asked.is_answer(&segment)
            {
                (asked.answered, asked.has) = (true, Some(segment.ack));
                let tsval = segment.timestamps.map(|(value, _)| value);
                self.ready.push(Answer {
                    tuple,
                    ack: segment.ack,
                    tsval,
                });
            }
        }
        self.frames.extend(new);
    }

    /// Sends a connection's answer (SYN-ACK) again, whose peer may not have it. Peers that have it do not mind.
    ///
    /// # Errors
    /// [`GateError::Socket`] if the packet cannot be sent.
    pub fn answer_again(&self, tuple: &Tuple, packet: &[u8]) -> Result<(), GateError> {
        self.raw
            .send(packet, *tuple.peer.ip())
            .map_err(|source| GateError::Socket {
                tuple: *tuple,
                step: "answering a connection request again",
                source,
            })
    }

    /// Ends a connection whose peer has answered, and that does not go on.
    ///
    /// # Errors
    /// [`GateError::Socket`] if the packet cannot be sent.
    pub fn reset(&self, state: &ConnectionState, answer: &Answer) -> Result<(), GateError> {
        let tuple = state.handshake.tuple;
        self.raw
            .send(&reset(state, answer.ack).packet(), *tuple.peer.ip())
            .map_err(|source| GateError::Socket {
                tuple,
                step: "resetting a connection",
                source,
            })
    }

    /// Whether this peer answered that it knows no such connection.
    #[must_use]
    pub fn is_refused(&self, tuple: &Tuple) -> bool {
        self.asked.get(tuple).is_some_and(|asked| asked.refused)
    }

    /// How many have not answered yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.asked.values().filter(|a| !a.answered).count()
    }

    /// The connection's socket is live: its peer's frames can be delivered. Also to be called for what
    /// was rebuilt without an answer.
    pub fn live(&mut self, gate: &Gate, tuple: &Tuple, entry: Entry) {
        gate.live(entry);
        if let Some(asked) = self.asked.get_mut(tuple) {
            (asked.answered, asked.live) = (true, true);
        }
    }

    /// Stops holding, except for connections that are adopted and not yet [`Prober::live`], and delivers
    /// through `link` (the host's end of the veth) what was held for the others and the log does not have.
    /// Call it when the listeners and the first sockets are live, and again whenever more are. Of peers
    /// that were not asked (new ones, and ones that ended long ago) only frames count that came after
    /// `since`, the boot time in nanoseconds of the old host's last sign of life. Returns how many frames
    /// were delivered.
    ///
    /// # Errors
    /// [`GateError::System`] if a frame cannot be sent.
    pub fn deliver(
        &mut self,
        gate: &Gate,
        link: &PacketSocket,
        since: u64,
    ) -> Result<usize, GateError> {
        gate.set_hold(false);
        self.listen(gate);
        let mut delivered = 0;
        for frame in std::mem::take(&mut self.frames) {
            let asked = frame
                .segment()
                .and_then(|s| self.asked.get(&s.tuple_of_receiver()));
            if asked.is_some_and(|a| !a.live) {
                self.frames.push(frame);
                continue;
            }
            if !self.is_news(&frame, since) {
                continue;
            }
            for piece in resendable(&frame.bytes, PIECE) {
                link.send(&piece).map_err(|source| GateError::System {
                    step: "delivering a held frame",
                    source,
                })?;
            }
            delivered += 1;
        }
        Ok(delivered)
    }

    /// False for a frame of which the log has all bytes and that acknowledges nothing of ours, or that belongs to
    /// nothing any more.
    fn is_news(&self, frame: &HeldFrame, since: u64) -> bool {
        let asked = frame
            .segment()
            .and_then(|s| self.asked.get(&s.tuple_of_receiver()).map(|a| (a, s)));
        match asked {
            None => frame.at >= since,
            Some((asked, s)) => {
                // An acknowledgement of what only the new socket can have sent: nobody says it again.
                let acknowledges = asked.has.is_some_and(|has| distance(s.ack, has) > 0);
                s.flags & (flag::SYN | flag::RST) == 0
                    && (distance(s.end(), asked.received) > 0 || acknowledges)
            }
        }
    }
}

impl Asked {
    /// A reset that answers the probe, as from a host without the connection, carries the probe's
    /// acknowledgement as its number.
    fn is_refusal(&self, segment: &Parsed) -> bool {
        segment.flags & flag::RST != 0 && segment.seq == self.received
    }

    /// Any acknowledgement could have been on its way before the probe: the answer is the one that names
    /// the probe's byte as received twice. Peers without selective acknowledgements cannot say so.
    fn is_answer(&self, segment: &Parsed) -> bool {
        let plain = segment.flags & (flag::SYN | flag::RST | flag::ACK) == flag::ACK;
        // Nothing can come behind the acknowledgement of everything, and closed sockets name no blocks.
        let everything = self.whole == Some(segment.ack);
        plain
            && if everything {
                true
            } else if self.sack {
                segment.sack.is_some_and(|(from, _)| from == self.seq)
            } else {
                segment.payload == 0
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddrV4};

    fn segment(sack: Option<(u32, u32)>, flags: u8) -> Parsed {
        let end = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        Parsed {
            from: end,
            to: end,
            seq: 9,
            ack: 5,
            flags,
            window: 1,
            payload: 0,
            sack,
            timestamps: None,
        }
    }

    #[test]
    fn only_the_echo_of_the_probe_is_an_answer() {
        let asked = Asked {
            seq: 77,
            sack: true,
            received: 40,
            whole: Some(90),
            answered: false,
            has: None,
            refused: false,
            live: false,
        };
        assert!(asked.is_answer(&segment(Some((77, 78)), flag::ACK)));
        assert!(!asked.is_answer(&segment(Some((78, 79)), flag::ACK)));
        assert!(!asked.is_answer(&segment(None, flag::ACK)));
        assert!(!asked.is_answer(&segment(Some((77, 78)), flag::ACK | flag::RST)));
        let whole = Parsed {
            ack: 90,
            ..segment(None, flag::ACK)
        };
        assert!(asked.is_answer(&whole));
        let reset = |seq| Parsed {
            seq,
            ..segment(None, flag::RST)
        };
        assert!(asked.is_refusal(&reset(40)) && !asked.is_refusal(&reset(41)));
        assert!(
            Asked {
                sack: false,
                ..asked
            }
            .is_answer(&segment(None, flag::ACK))
        );
    }
}
