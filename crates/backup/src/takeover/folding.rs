//! The state of the container's kernel at the log's end, folded while the container replays.

use std::collections::VecDeque;

use std::sync::atomic::Ordering::{Acquire, Release};

use eventlog::fold::{Merge, Settled};
use eventlog::record::{Malformed, Records};
use guest::abi::{MAX_SLOTS, slot};
use replayer::Source;
use sys::arena::Arena;

use super::error::{Result, TakeoverError};
use super::log::Log;
use crate::store::StreamRange;

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

/// The part of a stream that was not folded yet.
struct Rest {
    stream: u32,
    position: u64,
    bytes: Vec<u8>,
}

/// Folds the log on from the state at the cut.
pub(super) fn fold(mut merge: Merge, log: &Log) -> Result<Folded> {
    let mut events = 0;
    let begin = |range: StreamRange| Rest {
        stream: range.stream,
        position: range.start,
        bytes: Vec::new(),
    };
    let mut left: VecDeque<Rest> = log.streams().map(begin).collect();
    while let Some(mut rest) = left.pop_front() {
        let at = rest.position + rest.bytes.len() as u64;
        let got = log.read(rest.stream, at, STEP, &mut rest.bytes)?;
        let mut records = Records::new(&rest.bytes);
        let mut done = 0;
        while let Some(record) = records.next() {
            let record = match record {
                Ok(record) => record,
                Err(Malformed::Truncated { .. }) => break,
                Err(Malformed::Oversized { .. }) => {
                    return Err(TakeoverError::Malformed {
                        stream: rest.stream,
                        position: rest.position + done as u64,
                    });
                }
            };
            merge.feed(rest.stream, &record)?;
            events += 1;
            done = records.consumed();
        }
        rest.bytes.drain(..done);
        rest.position += done as u64;
        if got > 0 {
            left.push_back(rest);
        }
    }
    for remains in merge.finish() {
        tracing::debug!(?remains, "records that came after something lost");
    }
    let settled = merge.settle();
    Ok(Folded {
        merge,
        events,
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
