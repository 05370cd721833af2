//! The kept log as a takeover reads it: as of the moment it began.

use std::collections::BTreeMap;
use std::sync::Arc;

use eventlog::recording::OWN_STREAM;
use replayer::Source;

use super::checkpoint::Checkpoint;
use crate::guard::Guard;
use crate::store::{StoreError, StreamRange};

/// The log of one container, cut at the last drain that had come when this was made: what came later was not
/// acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Log {
    guard: Arc<Guard<Checkpoint>>,
    ranges: BTreeMap<u32, StreamRange>,
}

impl Log {
    pub(super) fn new(guard: Arc<Guard<Checkpoint>>) -> Self {
        let cut = |range: StreamRange| StreamRange {
            end: range.drained,
            ..range
        };
        let ranges = guard.log().streams().map(|r| (r.stream, cut(r))).collect();
        Self { guard, ranges }
    }

    /// None of it: of a container that goes on from its checkpoint.
    pub(super) fn none(guard: Arc<Guard<Checkpoint>>) -> Self {
        let cut = |range: StreamRange| StreamRange {
            end: range.start,
            drained: range.start,
            settled: range.start,
            ..range
        };
        let ranges = guard.log().streams().map(|r| (r.stream, cut(r))).collect();
        Self { guard, ranges }
    }

    /// The guests' streams.
    pub(super) fn streams(&self) -> impl Iterator<Item = StreamRange> + '_ {
        let all = self.ranges.values().copied();
        all.filter(|range| range.stream != OWN_STREAM)
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
    ) -> Result<usize, StoreError> {
        let end = self.ranges.get(&stream).map_or(0, |range| range.end);
        let left = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(0);
        }
        self.guard.log().read(stream, position, max.min(left), out)
    }
}
