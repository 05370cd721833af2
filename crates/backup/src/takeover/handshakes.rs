//! What checkpoint and log tell of the container's handshakes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Acquire;

use eventlog::codec;
use eventlog::handover::{HandshakeRecord, OpeningRecord};
use eventlog::record::{Record, Records, kind};
use eventlog::recording::OWN_STREAM;
use gate::{Handshake, Tuple};
use guest::abi::{Conn, MAX_CONNS, ends_between};
use replayer::Source;
use sys::arena::Arena;

use super::checkpoint::Checkpoint;
use super::error::{Result, damaged};
use super::log::Log;

/// A connection's handshake, and the last timestamp that was known to have left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) handshake: Handshake,
    pub(super) timestamp: u32,
    /// When that was, in nanoseconds since the epoch.
    pub(super) at: u64,
}

/// A connection that the application has not accepted.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) known: Known,
    /// The answer to its request (SYN-ACK), which its peer may not have; empty where it certainly has.
    pub(super) answer: Vec<u8>,
}

/// All handshakes.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    /// By entry and generation.
    open: BTreeMap<(usize, u32), Known>,
    /// Those of `open` that have ended.
    ended: Vec<(usize, u32)>,
    /// A newer one under the same addresses says that the older is over.
    openings: BTreeMap<Tuple, Opening>,
    /// Of connections that do not go on.
    pub(super) forsaken: Vec<Known>,
}

impl Handshakes {
    /// Reads them.
    pub(super) fn read(checkpoint: &Checkpoint, log: &Log) -> Result<Self> {
        let mut all = Self::default();
        all.take(checkpoint.handshakes()?)?;
        let mut bytes = Vec::new();
        log.read(OWN_STREAM, log.start(OWN_STREAM), usize::MAX, &mut bytes)?;
        all.take(&bytes)?;
        all.leave_out_bound();
        Ok(all)
    }

    /// Openings that the application had on the lost host are told by its own records.
    pub(crate) fn leave_out_bound(&mut self) {
        let numbers = |h: &Handshake| (h.tuple, h.iss, h.irs);
        let bound: BTreeSet<_> = self.open.values().map(|k| numbers(&k.handshake)).collect();
        self.openings
            .retain(|_, o| !bound.contains(&numbers(&o.known.handshake)));
    }

    /// Takes in records of the primary's own stream.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        for record in Records::new(bytes) {
            // The stream may end within a record.
            let Ok(record) = record else { break };
            match record.header.kind {
                kind::HANDSHAKE => self.opened(&record)?,
                kind::OPENING => self.opening(&record)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn opened(&mut self, record: &Record<'_>) -> Result<()> {
        let said: HandshakeRecord =
            codec::decode(record.payload).map_err(damaged("a handshake's record"))?;
        let entry = usize::try_from(record.header.result).unwrap_or(usize::MAX);
        let key = (entry, record.header.version as u32);
        if record.header.arg0 == 1 {
            self.ended.push(key);
        }
        self.open.insert(key, known(&said)?);
        Ok(())
    }

    fn opening(&mut self, record: &Record<'_>) -> Result<()> {
        let said: OpeningRecord =
            codec::decode(record.payload).map_err(damaged("a connection request's record"))?;
        let (known, answer) = (known(&said.known)?, said.answer);
        let tuple = known.handshake.tuple;
        self.openings.insert(tuple, Opening { known, answer });
        Ok(())
    }

    /// That of a connection which the application has. The log may end before its own record.
    pub(super) fn of(&mut self, index: usize, c: &Conn) -> Option<Known> {
        let bound = self.open.get(&(index, c.generation.load(Acquire)));
        bound.copied().or_else(|| {
            let ends = c.ends.load(Acquire);
            let tuple = *self.openings.keys().find(|tuple| ends_of(tuple) == ends)?;
            Some(self.openings.remove(&tuple)?.known)
        })
    }

    /// None of those that have not ended goes on.
    pub(super) fn forsake(&mut self) {
        let open = std::mem::take(&mut self.open).into_iter();
        let open = open.filter(|(key, _)| !self.ended.contains(key));
        let openings = std::mem::take(&mut self.openings).into_values();
        let known = openings.map(|opening| opening.known);
        self.forsaken = open.map(|(_, known)| known).chain(known).collect();
    }

    /// Those of connections that the replayed application has not accepted.
    pub(super) fn not_accepted(self, arena: &Arena) -> Vec<Opening> {
        let mut waiting: Vec<Opening> = self.openings.into_values().collect();
        for (key, known) in self.open {
            let (index, generation) = key;
            // The number of an entry's uses only grows.
            let accepted = index >= MAX_CONNS || {
                let uses = arena.conn(index).generation.load(Acquire);
                uses != 0 && uses.wrapping_sub(generation).cast_signed() >= 0
            };
            if !accepted && !self.ended.contains(&key) && !known.handshake.active {
                waiting.push(Opening {
                    known,
                    answer: Vec::new(),
                });
            }
        }
        waiting
    }
}

fn known(said: &HandshakeRecord) -> Result<Known> {
    Ok(Known {
        handshake: codec::decode(&said.handshake).map_err(damaged("a connection's handshake"))?,
        timestamp: said.timestamp,
        at: said.at,
    })
}

fn ends_of(tuple: &Tuple) -> u64 {
    ends_between(tuple.peer, tuple.local.port())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::sync::atomic::Ordering::Release;

    use eventlog::handover::record;
    use eventlog::record::Header;
    use guest::abi::mode;

    use super::*;

    fn handshake(port: u16, iss: u32) -> Handshake {
        let end = |n, port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), port);
        Handshake {
            tuple: Tuple {
                local: end(1, 80),
                peer: end(2, port),
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

    fn said(handshake: &Handshake) -> HandshakeRecord {
        HandshakeRecord {
            handshake: codec::encode(handshake).unwrap(),
            timestamp: 1,
            at: 2,
        }
    }

    fn opening(handshake: &Handshake) -> Vec<u8> {
        let payload = codec::encode(&OpeningRecord {
            known: said(handshake),
            answer: vec![1],
        });
        let kind = kind::OPENING;
        record(
            Header {
                kind,
                ..Header::default()
            },
            &payload.unwrap(),
        )
    }

    fn open(index: i64, generation: u64, ended: u32, handshake: &Handshake) -> Vec<u8> {
        let header = Header {
            kind: kind::HANDSHAKE,
            result: index,
            version: generation,
            arg0: ended,
            ..Header::default()
        };
        record(header, &codec::encode(&said(handshake)).unwrap())
    }

    fn taken(records: &[Vec<u8>]) -> Handshakes {
        let mut all = Handshakes::default();
        all.take(&records.concat()).unwrap();
        all.leave_out_bound();
        all
    }

    fn waiting(all: Handshakes, arena: &Arena) -> Vec<u32> {
        let waiting = all.not_accepted(arena);
        waiting.iter().map(|o| o.known.handshake.iss).collect()
    }

    #[test]
    fn what_the_replayed_application_did_not_accept_waits() {
        let arena = Arena::new(mode::REPLAY, 0).unwrap();
        arena.conn(7).generation.store(3, Release);
        let all = taken(&[
            opening(&handshake(1, 100)),
            // Accepted, in replay too.
            opening(&handshake(2, 200)),
            open(7, 3, 0, &handshake(2, 200)),
            // Accepted before, in an entry that is another's now.
            open(7, 2, 0, &handshake(3, 300)),
            // Accepted on the lost host alone.
            opening(&handshake(4, 400)),
            open(8, 1, 0, &handshake(4, 400)),
            // Over, and its entry was free at the cut.
            open(9, 5, 1, &handshake(5, 500)),
            // Asked again with another number.
            opening(&handshake(1, 101)),
        ]);
        let mut waiting = waiting(all, &arena);
        waiting.sort_unstable();
        assert_eq!(waiting, [101, 400]);
    }

    #[test]
    fn an_accept_without_its_handshake_finds_the_opening() {
        let arena = Arena::new(mode::REPLAY, 0).unwrap();
        let c = arena.conn(3);
        c.generation.store(1, Release);
        c.ends.store(ends_of(&handshake(9, 0).tuple), Release);
        let mut all = taken(&[opening(&handshake(9, 900)), opening(&handshake(8, 800))]);
        let found = all.of(3, c).map(|known| known.handshake.iss);
        assert_eq!(found, Some(900));
        assert_eq!(waiting(all, &arena), [800]);
    }
}
