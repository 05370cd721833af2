//! What must be done for one connection: pure.

use std::ops::Range;

use super::ConnectionState;
use crate::facts::{Handshake, distance};
use crate::output::OutputState;
use sys::tcp::Window;

/// What the peer answered to the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// Its acknowledgement number: exactly what it has.
    Answered {
        /// As on the wire.
        ack: u32,
    },
    /// Nothing came in time.
    Silent,
}

/// How the tail is given to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The socket starts at what the peer has, and the tail is sent as usual: at once on the wire.
    Send,
    /// The socket starts at the lower bound with the tail in its queue: a second slower, and right
    /// wherever in the tail the peer stands.
    Queue,
}

/// What to do for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// First sequence number of the send queue.
    pub snd_una: u32,
    /// First sequence number of the receive queue.
    pub rcv_nxt: u32,
    /// Positions of output to be sent again.
    pub resend: Range<u64>,
    /// How the output gets to the peer.
    pub delivery: Delivery,
    /// Bytes the application will write again although the peer has them.
    pub swallow: u64,
    /// Both windows, once the unread bytes are in.
    pub window: Window,
    /// The peer's FIN was acknowledged and will not come again: it has to be forged.
    pub forge_end: bool,
    /// A FIN follows the output.
    pub finish: bool,
    /// No descriptor is needed when the output is gone.
    pub orphan: bool,
    /// The peer has everything, the end included, and nobody reads: nothing to build.
    pub over: bool,
}

impl Plan {
    /// Where the output stands when the socket goes live: what [`crate::Sender`] goes on from.
    #[must_use]
    pub const fn output(&self) -> OutputState {
        let Range { start, end } = self.resend;
        match self.delivery {
            Delivery::Send => OutputState::resume(start + self.swallow, start + self.swallow, end),
            Delivery::Queue => OutputState::resume(start, end, end),
        }
    }
}

/// The state cannot be continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// The peer has bytes behind the end of the stream.
    #[error("the peer acknowledged {beyond} bytes behind the end of a stream of {written}")]
    BehindEnd {
        /// How many.
        beyond: u64,
        /// The stream's length.
        written: u64,
    },
    /// The peer has less than it had.
    #[error("the peer acknowledges position {position}, but it had acknowledged {known}")]
    Receded {
        /// What it says.
        position: u64,
        /// What it had.
        known: u64,
    },
    /// More was acknowledged than written, according to what is known.
    #[error("the peer is known to have {known} bytes, the log knows of {written}")]
    Unwritten {
        /// What it has.
        known: u64,
        /// What was written.
        written: u64,
    },
    /// The handshake agreed on timestamps, and none is known.
    #[error("the connection uses timestamps and none is known")]
    NoTimestamp,
}

/// Where in its stream the peer stands, relative to what was written: −n behind, +n beyond.
fn standing(handshake: &Handshake, written: u64, ack: u32) -> i64 {
    i64::from(distance(ack, handshake.send_seq(written)))
}

/// Plans the rebuilding of one connection.
///
/// # Errors
/// [`Impossible`] if what is known contradicts itself: the connection is lost.
pub fn plan(state: &ConnectionState, probed: Probed) -> Result<Plan, Impossible> {
    let h = &state.handshake;
    if h.timestamps && state.timestamp.is_none() {
        return Err(Impossible::NoTimestamp);
    }
    let (standing, delivery) = match probed {
        Probed::Answered { ack } => (standing(h, state.written, ack), Delivery::Send),
        Probed::Silent if state.acknowledged > state.written => {
            return Err(Impossible::Unwritten {
                known: state.acknowledged,
                written: state.written,
            });
        }
        Probed::Silent if state.acknowledged == state.written => (0, Delivery::Send),
        Probed::Silent => {
            let behind = i64::try_from(state.written - state.acknowledged).unwrap_or(i64::MAX);
            (-behind, Delivery::Queue)
        }
    };
    let has_end = state.ended && standing == 1;
    let beyond = if has_end {
        0
    } else {
        standing.max(0).unsigned_abs()
    };
    if state.ended && beyond > 0 {
        return Err(Impossible::BehindEnd {
            beyond,
            written: state.written,
        });
    }
    let position = if has_end {
        state.written
    } else {
        state.written.saturating_add_signed(standing)
    };
    if position < state.acknowledged {
        return Err(Impossible::Receded {
            position,
            known: state.acknowledged,
        });
    }
    let from = position.min(state.written);
    let snd_una = h.send_seq(position);
    let rcv_nxt = h.receive_seq(state.read);
    let received = rcv_nxt.wrapping_add(state.unread.len() as u32);
    let tail = u32::try_from(state.written - from).unwrap_or(u32::MAX);
    // A window smaller than the tail would leave the tail to the persist timer.
    let snd_wnd = state.peer_window.max(tail).max(u32::from(h.peer_mss));
    Ok(Plan {
        snd_una,
        rcv_nxt,
        resend: from..state.written,
        delivery,
        swallow: beyond,
        window: Window {
            snd_wl1: received.wrapping_sub(1),
            snd_wnd,
            max_window: snd_wnd,
            rcv_wnd: RECEIVE_WINDOW,
            rcv_wup: received,
        },
        forge_end: state.peer_ended,
        finish: state.ended,
        orphan: state.orphan,
        over: state.orphan && has_end && state.peer_ended,
    })
}

/// What a rebuilt socket offers at first; the kernel moves on from there.
const RECEIVE_WINDOW: u32 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Scale;
    use crate::rebuild::Timestamp;
    use crate::tuple::Tuple;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::time::Duration;

    fn state(written: u64, acknowledged: u64) -> ConnectionState {
        let end = |n, p| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), p);
        ConnectionState {
            handshake: Handshake {
                tuple: Tuple {
                    local: end(1, 80),
                    peer: end(2, 999),
                },
                iss: u32::MAX - 50,
                irs: 7,
                local_mss: 1460,
                peer_mss: 1460,
                scale: Some(Scale { local: 7, peer: 8 }),
                sack: true,
                timestamps: true,
                active: false,
            },
            timestamp: Some(Timestamp {
                value: 1,
                age: Duration::ZERO,
            }),
            read: 10,
            unread: vec![1, 2, 3],
            peer_ended: false,
            written,
            acknowledged,
            peer_window: 1000,
            ended: false,
            orphan: false,
        }
    }

    fn answered(s: &ConnectionState, position: u64) -> Probed {
        Probed::Answered {
            ack: s.handshake.send_seq(position),
        }
    }

    proptest! {
        #[test]
        fn the_tail_begins_where_the_peer_stands(written in 0u64..1 << 40, lag in 0u64..100_000, stand in 0u64..200_000) {
            let acknowledged = written.saturating_sub(lag);
            let s = state(written, acknowledged);
            let at = acknowledged + stand;
            let p = plan(&s, answered(&s, at)).unwrap();
            prop_assert_eq!(p.snd_una, s.handshake.send_seq(at));
            prop_assert_eq!(p.resend.clone(), at.min(written)..written);
            prop_assert_eq!(p.swallow, at.saturating_sub(written));
            prop_assert!(u64::from(p.window.snd_wnd) >= p.resend.end - p.resend.start);
            prop_assert_eq!(p.delivery, Delivery::Send);
            let output = p.output();
            prop_assert_eq!((output.sent_to(), output.acknowledged(), output.released()), (at, at, written));
        }
    }

    #[test]
    fn a_silent_peer_gets_the_queue_from_the_lower_bound() {
        let s = state(500, 400);
        let p = plan(&s, Probed::Silent).unwrap();
        assert_eq!(
            (p.resend, p.delivery, p.snd_una),
            (400..500, Delivery::Queue, s.handshake.send_seq(400))
        );
        assert_eq!(
            plan(&s, Probed::Silent).unwrap().output().sent_to(),
            500,
            "the queue has it all"
        );
        let s = state(500, 500);
        assert_eq!(plan(&s, Probed::Silent).unwrap().delivery, Delivery::Send);
        assert_eq!(
            plan(&state(5, 6), Probed::Silent),
            Err(Impossible::Unwritten {
                known: 6,
                written: 5
            })
        );
    }

    #[test]
    fn windows_count_from_behind_the_unread_bytes() {
        let p = plan(&state(0, 0), Probed::Silent).unwrap();
        assert_eq!(
            (p.rcv_nxt, p.window.rcv_wup, p.window.snd_wl1),
            (18, 21, 20)
        );
    }

    #[test]
    fn an_acknowledged_end_is_no_swallowed_byte() {
        let mut s = state(100, 100);
        s.ended = true;
        let p = plan(&s, answered(&s, 101)).unwrap();
        assert_eq!(
            (p.swallow, p.finish, p.over, p.snd_una),
            (0, true, false, s.handshake.send_seq(100))
        );
        s.orphan = true;
        s.peer_ended = true;
        assert!(plan(&s, answered(&s, 101)).unwrap().over);
        assert_eq!(
            plan(&s, answered(&s, 102)),
            Err(Impossible::BehindEnd {
                beyond: 2,
                written: 100
            })
        );
    }

    #[test]
    fn an_orphan_with_output_is_built() {
        let s = ConnectionState {
            ended: true,
            orphan: true,
            ..state(100, 40)
        };
        let p = plan(&s, answered(&s, 60)).unwrap();
        assert!(p.orphan && p.finish && !p.over);
        assert_eq!(p.resend, 60..100);
    }

    #[test]
    fn a_peer_does_not_go_back() {
        let s = state(100, 50);
        assert_eq!(
            plan(&s, answered(&s, 49)),
            Err(Impossible::Receded {
                position: 49,
                known: 50
            })
        );
    }

    #[test]
    fn timestamps_need_one() {
        let s = ConnectionState {
            timestamp: None,
            ..state(1, 1)
        };
        assert_eq!(plan(&s, Probed::Silent), Err(Impossible::NoTimestamp));
    }
}
