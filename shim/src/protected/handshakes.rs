//! The handshakes that a takeover would need: the primary's own stream, and its snapshot for checkpoints.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eventlog::codec;
use eventlog::handover::{HandshakeRecord, OpeningRecord, record};
use eventlog::record::{Header, kind};
use gate::{Handshake, Opening, Tuple};

use crate::Error;

/// Openings younger than this are kept without a question.
const YOUNG: Duration = Duration::from_secs(1);
/// A peer that has not completed its handshake after so long has given up: the kernel's own last answer
/// leaves after about a minute.
const GIVEN_UP: Duration = Duration::from_secs(130);
/// Openings kept at most; the gate keeps as many.
const MOST: usize = 16_384;

/// A record of the primary's own stream, and where it begins there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) position: u64,
    pub(super) record: Vec<u8>,
}

/// What is known of connections that are in the making, open, or ended since the last checkpoint.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    /// Where the stream ends.
    position: u64,
    openings: BTreeMap<Tuple, Kept>,
    /// By entry.
    open: BTreeMap<usize, (Header, Vec<u8>)>,
    /// Records of connections that have ended. The next checkpoint's cut may lie before their ends.
    ended: Vec<u8>,
}

#[derive(Debug)]
struct Kept {
    iss: u32,
    since: Instant,
    record: Vec<u8>,
}

impl Handshakes {
    /// Where the stream ends.
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// The container's kernel wants to answer a connection request.
    pub(super) fn opens(&mut self, opening: &Opening) -> Result<Placed, Error> {
        let payload = codec::encode(&OpeningRecord {
            known: described(&opening.handshake, opening.timestamp)?,
            answer: opening.packet.clone(),
        })?;
        let header = Header {
            kind: kind::OPENING,
            ..Header::default()
        };
        let record = record(header, &payload);
        if self.openings.len() >= MOST {
            let oldest = self.openings.iter().min_by_key(|(_, kept)| kept.since);
            if let Some(tuple) = oldest.map(|(tuple, _)| *tuple) {
                self.openings.remove(&tuple);
            }
        }
        let kept = Kept {
            iss: opening.handshake.iss,
            since: Instant::now(),
            record: record.clone(),
        };
        self.openings.insert(opening.handshake.tuple, kept);
        Ok(self.place(record))
    }

    /// The application has a connection; `timestamp` is the last that left.
    pub(super) fn opened(
        &mut self,
        index: usize,
        generation: u32,
        handshake: &Handshake,
        timestamp: u32,
    ) -> Result<Placed, Error> {
        let payload = codec::encode(&described(handshake, timestamp)?)?;
        let header = Header {
            kind: kind::HANDSHAKE,
            result: index as i64,
            version: u64::from(generation),
            ..Header::default()
        };
        let known = self.openings.get(&handshake.tuple);
        if known.is_some_and(|kept| kept.iss == handshake.iss) {
            self.openings.remove(&handshake.tuple);
        }
        let record = record(header, &payload);
        self.open.insert(index, (header, payload));
        Ok(self.place(record))
    }

    /// A connection has ended, and its peer has everything.
    pub(super) fn ended(&mut self, index: usize) {
        if let Some((header, payload)) = self.open.remove(&index) {
            let header = Header { arg0: 1, ..header };
            self.ended.extend(record(header, &payload));
        }
    }

    /// All records that are needed, and the position up to which they stand for the stream. `established`
    /// tells of the connection under these addresses ([`gate::Gate::established`]).
    pub(super) fn snapshot(
        &mut self,
        established: impl Fn(&Tuple) -> Option<u32>,
    ) -> (Vec<u8>, u64) {
        self.openings.retain(|tuple, kept| {
            let age = kept.since.elapsed();
            age < YOUNG
                || match established(tuple) {
                    Some(iss) => iss == kept.iss,
                    None => age < GIVEN_UP,
                }
        });
        let mut all = std::mem::take(&mut self.ended);
        for kept in self.openings.values() {
            all.extend_from_slice(&kept.record);
        }
        for (header, payload) in self.open.values() {
            all.extend(record(*header, payload));
        }
        (all, self.position)
    }

    fn place(&mut self, record: Vec<u8>) -> Placed {
        let position = self.position;
        self.position += record.len() as u64;
        Placed { position, record }
    }
}

fn described(handshake: &Handshake, timestamp: u32) -> Result<HandshakeRecord, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(HandshakeRecord {
        handshake: codec::encode(handshake)?,
        timestamp,
        at: now.map_or(0, |d| d.as_nanos() as u64),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use eventlog::record::Records;

    use super::*;

    fn handshake(iss: u32) -> Handshake {
        let end = |n| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), 80);
        Handshake {
            tuple: Tuple {
                local: end(1),
                peer: end(2),
            },
            iss,
            irs: 5,
            local_mss: 1460,
            peer_mss: 1460,
            scale: None,
            sack: true,
            timestamps: true,
            active: false,
        }
    }

    fn kinds(records: &[u8]) -> Vec<(u16, u32)> {
        let all = Records::new(records).map(|r| r.unwrap().header);
        all.map(|h| (h.kind, h.arg0)).collect()
    }

    #[test]
    fn a_connection_is_kept_from_its_opening_to_the_checkpoint_behind_its_end() {
        let mut all = Handshakes::default();
        let opening = Opening {
            handshake: handshake(9),
            timestamp: 1,
            packet: vec![0; 60],
        };
        let first = all.opens(&opening).unwrap();
        let is_kept = |_: &Tuple| None;
        assert_eq!(
            all.snapshot(is_kept),
            (first.record.clone(), first.record.len() as u64)
        );
        let second = all.opened(3, 1, &handshake(9), 2).unwrap();
        assert_eq!(second.position, first.record.len() as u64);
        assert_eq!(all.snapshot(is_kept).0, second.record);
        all.ended(3);
        assert_eq!(kinds(&all.snapshot(is_kept).0), [(kind::HANDSHAKE, 1)]);
        let end = second.position + second.record.len() as u64;
        assert_eq!(all.snapshot(is_kept), (Vec::new(), end));
    }

    #[test]
    fn an_opening_is_dropped_when_its_peer_has_begun_another() {
        let mut all = Handshakes::default();
        let opening = |iss| Opening {
            handshake: handshake(iss),
            timestamp: 1,
            packet: Vec::new(),
        };
        all.opens(&opening(1)).unwrap();
        let second = all.opens(&opening(2)).unwrap();
        assert_eq!(all.snapshot(|_| Some(2)).0, second.record);
        if let Some(kept) = all.openings.values_mut().next() {
            kept.since -= YOUNG;
        }
        assert_eq!(all.snapshot(|_| Some(2)).0, second.record);
        assert!(all.snapshot(|_| Some(3)).0.is_empty());
    }
}
