//! Each stream's bytes since the committed checkpoint, in segments; bounded in memory, spilled if allowed.

use std::collections::{BTreeMap, VecDeque};

use stream::checkpoint::Cut;

use super::StoreError;
use super::spill::{SLOT_LEN, Spill};

/// Most streams that are kept at once.
pub const MAX_STREAMS: usize = 1 << 16;
/// Bytes that a stream counts for beside its segments.
const STREAM_COST: u64 = 128;
/// Segments shorter than this are not worth a slot on disk.
const MIN_SPILL: usize = 16 << 10;

/// The log of one container.
#[derive(Debug)]
pub struct LogStore {
    streams: BTreeMap<u32, Kept>,
    /// Streams below this that are not in `streams` have ended in the committed checkpoint.
    next_stream: u32,
    in_memory: u64,
    on_disk: u64,
    cap: u64,
    spill: Option<Spill>,
    awaited: Option<Cut>,
}

/// What is kept of one stream: `start..end`.
#[derive(Debug, Default)]
struct Kept {
    start: u64,
    end: u64,
    /// Its end at the last drain, and at the one before.
    drained: u64,
    settled: u64,
    segments: VecDeque<Segment>,
}

#[derive(Debug)]
struct Segment {
    start: u64,
    len: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    Disk(u32),
}

/// What is kept of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRange {
    /// The stream.
    pub stream: u32,
    /// The first position kept.
    pub start: u64,
    /// The first position that did not come.
    pub end: u64,
    /// Up to here it is replayed: its end at the last drain. See [`LogStore::mark_drain`].
    pub drained: u64,
    /// Up to here it must have been; see there.
    pub settled: u64,
}

impl LogStore {
    /// An empty log that takes `cap` bytes of memory, and spills beyond it if it may.
    #[must_use]
    pub fn new(cap: u64, spill: Option<Spill>) -> Self {
        Self {
            streams: BTreeMap::new(),
            next_stream: 0,
            in_memory: 0,
            on_disk: 0,
            cap,
            spill,
            awaited: None,
        }
    }

    /// Keeps the next bytes of a stream. The bytes of a stream that has ended in the committed checkpoint
    /// are in its image, and dropped.
    ///
    /// # Errors
    /// [`StoreError::Gap`] and [`StoreError::Streams`] for hostile input, [`StoreError::StateFull`] and
    /// [`StoreError::State`] when spilling fails.
    pub fn append(
        &mut self,
        stream: u32,
        position: u64,
        mut bytes: &[u8],
    ) -> Result<(), StoreError> {
        if !self.streams.contains_key(&stream) {
            if stream < self.next_stream {
                return Ok(());
            }
            if self.streams.len() >= MAX_STREAMS {
                return Err(StoreError::Streams);
            }
            self.streams.insert(
                stream,
                Kept {
                    start: position,
                    end: position,
                    ..Kept::default()
                },
            );
        }
        let Some(kept) = self.streams.get_mut(&stream) else {
            return Ok(());
        };
        if position != kept.end {
            return Err(StoreError::Gap {
                stream,
                expected: kept.end,
                found: position,
            });
        }
        let end = position
            .checked_add(bytes.len() as u64)
            .ok_or(StoreError::Overflow { stream })?;
        kept.end = end;
        self.in_memory += bytes.len() as u64;
        while !bytes.is_empty() {
            let buf = kept.open_segment(end - bytes.len() as u64);
            let (now, later) = bytes.split_at(bytes.len().min(SLOT_LEN - buf.len()));
            buf.extend_from_slice(now);
            bytes = later;
            if let Some(last) = kept.segments.back_mut() {
                last.len += now.len();
            }
        }
        if self.memory() > self.cap {
            self.spill()
        } else {
            Ok(())
        }
    }

    /// True if more may be read from the primary: there is room, or a cut waits for log that lies before it.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.memory() < self.cap || self.awaited.as_ref().is_some_and(|cut| !self.reached(cut))
    }

    /// Says which cut is waited for: until it is reached, the cap does not hold the log back, since the
    /// checkpoint could never be committed then.
    ///
    /// # Errors
    /// [`StoreError::Gap`] if the cut lies further ahead than the cap, so that waiting would not be bounded.
    pub fn await_cut(&mut self, cut: Option<Cut>) -> Result<(), StoreError> {
        let mut total = 0u64;
        for (stream, found) in cut.iter().flat_map(|c| &c.streams) {
            // A stream that is not known yet may start at its position in the cut.
            let Some(Kept { end, .. }) = self.streams.get(stream) else {
                continue;
            };
            total = total.saturating_add(found.saturating_sub(*end));
            if total > self.cap {
                return Err(StoreError::Gap {
                    stream: *stream,
                    expected: *end,
                    found: *found,
                });
            }
        }
        self.awaited = cut;
        Ok(())
    }

    /// True if a cut is waited for and all log before it has come.
    #[must_use]
    pub fn awaited_is_reached(&self) -> bool {
        self.awaited.as_ref().is_some_and(|cut| self.reached(cut))
    }

    /// True if all log before `cut` has come.
    #[must_use]
    pub fn reached(&self, cut: &Cut) -> bool {
        cut.streams
            .iter()
            .all(|(stream, position)| match self.streams.get(stream) {
                Some(kept) => kept.start <= *position && *position <= kept.end,
                None => *position == 0,
            })
    }

    /// Drops what lies before `cut`, whose checkpoint is committed.
    pub fn drop_before(&mut self, cut: &Cut) {
        let at: BTreeMap<u32, u64> = cut.streams.iter().copied().collect();
        self.next_stream = self.next_stream.max(cut.next_stream);
        let spill = &mut self.spill;
        let (in_memory, on_disk) = (&mut self.in_memory, &mut self.on_disk);
        self.streams.retain(|stream, kept| {
            let position = match at.get(stream) {
                Some(position) => *position,
                None if *stream < cut.next_stream => u64::MAX,
                None => return true,
            };
            kept.drop_before(position, |segment| match segment.place {
                Place::Memory(_) => *in_memory -= segment.len as u64,
                Place::Disk(slot) => {
                    *on_disk -= segment.len as u64;
                    if let Some(spill) = spill {
                        spill.release(slot);
                    }
                }
            });
            position != u64::MAX
        });
        for (stream, position) in at {
            self.streams.entry(stream).or_insert(Kept {
                start: position,
                end: position,
                ..Kept::default()
            });
        }
        if self.awaited.as_ref() == Some(cut) {
            self.awaited = None;
        }
    }

    /// Appends up to `max` bytes of a stream from `position` on to `out`; answers how many, 0 at its end.
    ///
    /// # Errors
    /// [`StoreError::Absent`] for a position that is not kept; [`StoreError::State`] if the disk fails.
    pub fn read(
        &self,
        stream: u32,
        position: u64,
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, StoreError> {
        let (start, end) = self
            .streams
            .get(&stream)
            .map_or((0, 0), |k| (k.start, k.end));
        if position < start || position > end {
            return Err(StoreError::Absent {
                stream,
                wanted: position,
                start,
                end,
            });
        }
        let Some(kept) = self.streams.get(&stream) else {
            return Ok(0);
        };
        let first = kept.segments.partition_point(|s| s.end() <= position);
        let before = out.len();
        let mut at = position;
        for segment in kept.segments.iter().skip(first) {
            let from = (at - segment.start) as usize;
            let n = (segment.len - from).min(max - (out.len() - before));
            match &segment.place {
                Place::Memory(bytes) => out.extend_from_slice(&bytes[from..from + n]),
                Place::Disk(slot) => {
                    let old = out.len();
                    out.resize(old + n, 0);
                    if let Some(spill) = &self.spill {
                        spill.get(*slot, from, &mut out[old..])?;
                    }
                }
            }
            at += n as u64;
            if out.len() - before == max {
                break;
            }
        }
        Ok(out.len() - before)
    }

    /// What is kept, stream by stream, in the order of their numbers.
    pub fn streams(&self) -> impl Iterator<Item = StreamRange> {
        self.streams.iter().map(|(stream, k)| StreamRange {
            stream: *stream,
            start: k.start,
            end: k.end,
            drained: k.drained.max(k.start),
            settled: k.settled,
        })
    }

    /// A drain is whole, and with it the log a consistent cut: with a record it has all that came before that one. What
    /// comes behind it is not, until the next is whole: a record may rest on one that did not come.
    ///
    /// That the cut is consistent rests on the clocks of the primary's processors. What lay before the last drain but one
    /// rests on nothing: a record in it may rest on one that came a moment after the look at its stream, and the next
    /// drain has that.
    pub fn mark_drain(&mut self) {
        for kept in self.streams.values_mut() {
            kept.settled = kept.drained;
            kept.drained = kept.end;
        }
    }

    /// Bytes of log kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.in_memory + self.on_disk
    }

    /// Bytes of memory that count against the cap.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.in_memory + self.streams.len() as u64 * STREAM_COST
    }

    /// Moves the older segments of every stream to disk until half of the memory is free.
    fn spill(&mut self) -> Result<(), StoreError> {
        let Some(spill) = &mut self.spill else {
            return Ok(());
        };
        for segment in self.streams.values_mut().flat_map(|k| &mut k.segments) {
            if self.in_memory <= self.cap / 2 {
                return Ok(());
            }
            if let Place::Memory(bytes) = &segment.place
                && bytes.len() >= MIN_SPILL
            {
                segment.place = Place::Disk(spill.put(bytes)?);
                self.in_memory -= segment.len as u64;
                self.on_disk += segment.len as u64;
            }
        }
        Ok(())
    }
}

impl Kept {
    /// The bytes of the last segment, if more may be added to it; otherwise of a new one at `position`.
    fn open_segment(&mut self, position: u64) -> &mut Vec<u8> {
        let open = matches!(self.segments.back(), Some(Segment { place: Place::Memory(b), .. }) if b.len() < SLOT_LEN);
        if !open {
            self.segments.push_back(Segment {
                start: position,
                len: 0,
                place: Place::Memory(Vec::new()),
            });
        }
        match self.segments.back_mut() {
            Some(Segment {
                place: Place::Memory(bytes),
                ..
            }) => bytes,
            _ => unreachable!("a segment in memory was just found or pushed"),
        }
    }

    /// Drops whole segments before `position`, each told to `dropped`. A segment that reaches beyond stays
    /// as it is: it is dropped when the next cut has passed it.
    fn drop_before(&mut self, position: u64, mut dropped: impl FnMut(&Segment)) {
        while let Some(first) = self.segments.front().filter(|s| s.end() <= position) {
            dropped(first);
            self.segments.pop_front();
        }
        self.start = self.start.max(position.min(self.end));
    }
}

impl Segment {
    fn end(&self) -> u64 {
        self.start + self.len as u64
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
