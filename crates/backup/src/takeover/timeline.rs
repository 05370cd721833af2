//! When each record of a log was made, by the clock of the host that recorded it.

use std::collections::BTreeMap;

use eventlog::record::{Records, cycles_of};
use replayer::Source;

use super::arena;
use super::checkpoint::Checkpoint;
use super::error::Result;
use super::log::Log;

/// Bytes read at a time.
const STEP: usize = 256 << 10;

/// A record: its position in its stream, and its time in cycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) position: u64,
    pub(super) time: u64,
}

/// The records of all threads that lived at the checkpoint. Those of threads that were made since are not among them:
/// their clocks begin with records of others.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    streams: BTreeMap<u32, Vec<Moment>>,
}

impl Timeline {
    /// That of the log behind a checkpoint.
    pub(super) fn of(checkpoint: &Checkpoint, log: &Log) -> Result<Self> {
        let mut timeline = Self::default();
        let begins = arena::times(checkpoint)?;
        for range in log.streams() {
            if let Some(begin) = begins.get(&range.stream) {
                timeline.add(log, range.stream, *begin)?;
            }
        }
        Ok(timeline)
    }

    fn add(&mut self, log: &Log, stream: u32, mut time: u64) -> Result<()> {
        let moments = self.streams.entry(stream).or_default();
        let (mut position, mut bytes) = (log.start(stream), Vec::new());
        loop {
            let got = log.read(stream, position + bytes.len() as u64, STEP, &mut bytes)?;
            let (mut records, mut done) = (Records::new(&bytes), 0);
            while let Some(Ok(record)) = records.next() {
                time += cycles_of(record.header.ticks);
                let position = position + done as u64;
                moments.push(Moment { position, time });
                done = records.consumed();
            }
            bytes.drain(..done);
            position += done as u64;
            if got == 0 {
                return Ok(());
            }
        }
    }

    /// A record, and the one of the same thread before it.
    pub(super) fn pair(&self, stream: u32, position: u64) -> Option<(Moment, Moment)> {
        let moments = self.streams.get(&stream)?;
        let index = moments.binary_search_by_key(&position, |moment| moment.position);
        let before = index.ok()?.checked_sub(1)?;
        Some((moments[before], moments[before + 1]))
    }

    /// When other threads made records, of all between two times.
    pub(super) fn others(&self, stream: u32, from: u64, to: u64) -> Vec<u64> {
        let others = self.streams.iter().filter(|(other, _)| **other != stream);
        let between = others.flat_map(|(_, moments)| {
            let first = moments.partition_point(|moment| moment.time < from);
            moments[first..]
                .iter()
                .map_while(move |moment| (moment.time <= to).then_some(moment.time))
        });
        between.collect()
    }

    #[cfg(test)]
    pub(super) fn from_moments(streams: BTreeMap<u32, Vec<Moment>>) -> Self {
        Self { streams }
    }
}
