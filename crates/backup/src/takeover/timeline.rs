//! When each record of a log was made, by the clock of the host that recorded it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use eventlog::record::{Record, Records, cycles_of, kind};
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

/// From a record of a thread to its next, which may be the log's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) stream: u32,
    pub(super) position: u64,
    pub(super) begin: u64,
    pub(super) end: u64,
}

fn index(moments: &[Moment], position: u64) -> Option<usize> {
    let found = moments.binary_search_by_key(&position, |moment| moment.position);
    found.ok()
}

/// clone, fork, vfork, clone3.
const MAKE_CHILDREN: [i64; 4] = [56, 57, 58, 435];

/// The stream of the child that an intent announces, if it announces one.
fn child_of(record: &Record<'_>) -> Option<u32> {
    let header = record.header;
    let announces = header.kind == kind::INTENT && MAKE_CHILDREN.contains(&header.result);
    let stream = record.payload.first_chunk().filter(|_| announces)?;
    Some(u32::from_le_bytes(*stream))
}

/// The records of all threads.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    streams: BTreeMap<u32, Vec<Moment>>,
}

impl Timeline {
    /// That of the log behind a checkpoint.
    pub(super) fn of(checkpoint: &Checkpoint, log: &Log) -> Result<Self> {
        let mut timeline = Self::default();
        let mut begins: Vec<(u32, u64)> = arena::times(checkpoint)?.into_iter().collect();
        while let Some((stream, begin)) = begins.pop() {
            timeline.add(log, stream, begin, &mut begins)?;
        }
        Ok(timeline)
    }

    /// Adds a stream whose time counts from `begin`; `children` hears of those that its thread made.
    fn add(
        &mut self,
        log: &Log,
        stream: u32,
        begin: u64,
        children: &mut Vec<(u32, u64)>,
    ) -> Result<()> {
        let Entry::Vacant(entry) = self.streams.entry(stream) else {
            return Ok(());
        };
        let moments = entry.insert(Vec::new());
        let (mut position, mut bytes, mut time) = (log.start(stream), Vec::new(), begin);
        loop {
            let got = log.read(stream, position + bytes.len() as u64, STEP, &mut bytes)?;
            let (mut records, mut done) = (Records::new(&bytes), 0);
            while let Some(Ok(record)) = records.next() {
                // The child's time counts from the record before it.
                children.extend(child_of(&record).map(|child| (child, time)));
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

    /// When a record was made.
    pub(super) fn time(&self, stream: u32, position: u64) -> Option<u64> {
        let moments = self.streams.get(&stream)?;
        Some(moments[index(moments, position)?].time)
    }

    /// The records of the same thread before one.
    pub(super) fn before(&self, stream: u32, position: u64) -> &[Moment] {
        let moments = self.streams.get(&stream).map_or(&[][..], Vec::as_slice);
        &moments[..index(moments, position).unwrap_or(0)]
    }

    /// The first record of each thread.
    pub(super) fn firsts(&self) -> impl Iterator<Item = (u32, Moment)> + '_ {
        let firsts = self.streams.iter();
        firsts.filter_map(|(stream, moments)| Some((*stream, *moments.first()?)))
    }

    /// The record of the same thread behind one.
    pub(super) fn next(&self, stream: u32, position: u64) -> Option<u64> {
        let moments = self.streams.get(&stream)?;
        let next = moments.get(index(moments, position)? + 1)?;
        Some(next.position)
    }

    /// What other threads did, from a record to the next, of which a part lies between two times.
    pub(super) fn others(&self, stream: u32, from: u64, to: u64) -> Vec<Span> {
        let others = self.streams.iter().filter(|(other, _)| **other != stream);
        let between = others.flat_map(|(stream, moments)| {
            let first = moments.partition_point(|moment| moment.time < from);
            let first = first.saturating_sub(1);
            let ends = moments.iter().skip(first + 1).map(|moment| moment.time);
            let span = |(record, end): (&Moment, u64)| Span {
                stream: *stream,
                position: record.position,
                begin: record.time,
                end,
            };
            let spans = moments[first..].iter().zip(ends.chain([u64::MAX]));
            let spans = spans.map(span).take_while(|span| span.begin <= to);
            spans.collect::<Vec<_>>()
        });
        between.filter(|span| span.end >= from).collect()
    }

    #[cfg(test)]
    pub(super) fn from_moments(streams: BTreeMap<u32, Vec<Moment>>) -> Self {
        Self { streams }
    }
}
