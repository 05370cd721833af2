//! The kept log as a takeover reads it: as of the moment it began.

use std::collections::BTreeMap;
use std::sync::Arc;

use eventlog::codec;
use eventlog::handover::HandshakeRecord;
use eventlog::record::{Records, kind};
use eventlog::recording::OWN_STREAM;
use gate::Handshake;
use replayer::Source;

use super::checkpoint::Checkpoint;
use super::error::{Result, damaged};
use crate::guard::Guard;
use crate::store::{StoreError, StreamRange};

/// The log of one container, cut at what had come when this was made: what comes later was not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Log {
    guard: Arc<Guard<Checkpoint>>,
    ranges: BTreeMap<u32, StreamRange>,
}

/// A connection's handshake, and the last timestamp that was known to have left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) handshake: Handshake,
    pub(super) timestamp: u32,
    /// When that was, in nanoseconds since the epoch.
    pub(super) at: u64,
}

impl Log {
    pub(super) fn new(guard: Arc<Guard<Checkpoint>>) -> Self {
        let ranges = guard.log().streams().map(|r| (r.stream, r)).collect();
        Self { guard, ranges }
    }

    /// The guests' streams.
    pub(super) fn streams(&self) -> impl Iterator<Item = StreamRange> + '_ {
        let all = self.ranges.values().copied();
        all.filter(|range| range.stream != OWN_STREAM)
    }

    /// The handshakes, by entry and generation.
    pub(super) fn handshakes(&self) -> Result<BTreeMap<(usize, u32), Known>> {
        let mut all = BTreeMap::new();
        let mut bytes = Vec::new();
        self.read(OWN_STREAM, self.start(OWN_STREAM), usize::MAX, &mut bytes)?;
        for record in Records::new(&bytes) {
            // The stream may end within a record.
            let Ok(record) = record else { break };
            if record.header.kind != kind::HANDSHAKE {
                continue;
            }
            let said: HandshakeRecord =
                codec::decode(record.payload).map_err(damaged("a handshake's record"))?;
            let handshake =
                codec::decode(&said.handshake).map_err(damaged("a connection's handshake"))?;
            let entry = usize::try_from(record.header.result).unwrap_or(usize::MAX);
            let known = Known {
                handshake,
                timestamp: said.timestamp,
                at: said.at,
            };
            all.insert((entry, record.header.version as u32), known);
        }
        Ok(all)
    }
}

impl Source for Log {
    type Error = StoreError;

    fn start(&self, stream: u32) -> u64 {
        self.ranges.get(&stream).map_or(0, |range| range.start)
    }

    fn read(
        &self,
        stream: u32,
        position: u64,
        max: usize,
        out: &mut Vec<u8>,
    ) -> std::result::Result<usize, StoreError> {
        let end = self.ranges.get(&stream).map_or(0, |range| range.end);
        let left = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(0);
        }
        self.guard.log().read(stream, position, max.min(left), out)
    }
}
