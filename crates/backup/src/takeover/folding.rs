//! The state of the container's kernel at the log's end, folded while the container replays.

use std::collections::BTreeMap;

use std::sync::atomic::Ordering::{Acquire, Release};

use eventlog::fold::{FeedError, Merge, Settled};
use guest::abi::{MAX_SLOTS, slot};
use replayer::Source;
use sys::arena::Arena;

use super::error::{Result, TakeoverError};
use super::log::Log;

/// Bytes taken of one stream at a time: what waits for other streams stays little.
const STEP: usize = 256 << 10;

/// What folding gives.
#[derive(Debug)]
pub(super) struct Folded {
    pub(super) merge: Merge,
    /// Records of the log.
    pub(super) events: u64,
    /// Writes whose effect is known by what was read.
    pub(super) settled: Vec<Settled>,
}

/// Folds the log on from the state at the cut.
pub(super) fn fold(mut merge: Merge, log: &Log) -> Result<Folded> {
    let mut positions: BTreeMap<u32, u64> = log.streams().map(|r| (r.stream, r.start)).collect();
    let streams: Vec<u32> = positions.keys().copied().collect();
    let fed = merge.feed_by_time(streams, |stream, out| {
        let position = positions.entry(stream).or_default();
        let n = log.read(stream, *position, STEP, out)?;
        *position += n as u64;
        Ok(n)
    });
    let fed = fed.map_err(|error| match error {
        FeedError::Fold(error) => error.into(),
        FeedError::Source { source, .. } => source,
        FeedError::Damaged { stream, offset } => TakeoverError::Malformed {
            stream,
            position: log.start(stream) + offset,
        },
    })?;
    for remains in merge.finish() {
        tracing::debug!(?remains, "records that came after something lost");
    }
    let settled = merge.settle();
    Ok(Folded {
        merge,
        events: fed.records,
        settled,
    })
}

/// Tells threads how much readers have of the writes that they are about to make again.
pub(super) fn tell_settled(arena: &Arena, settled: &[Settled]) {
    for ring in (0..MAX_SLOTS).map(|index| arena.slot(index)) {
        let stream = ring.stream.load(Acquire);
        let own = settled.iter().find(|settled| settled.stream == stream);
        if let Some(Settled { taken, .. }) = own
            && ring.state.load(Acquire) == slot::PARKED
        {
            tracing::debug!(stream, taken, "a write is settled");
            ring.settled.store(*taken, Release);
        }
    }
}
