//! Feeding whole streams in the order of time.
//!
//! What a number means to a record is known when all has been folded that happened before it, on whatever thread: the
//! descriptor that a worker watches was accepted by another thread, under a number that a third has closed. Whoever has
//! all streams up to a cut feeds them here. Every record tells how long after the one before it was made, and the
//! first of a thread how long after its maker's last ([`Stream::time`](super::Stream::time)).

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::{FoldError, Merge, StreamId, nr};
use crate::record::{self, Header, Malformed, cycles_of, kind};

/// Why streams cannot be fed.
#[derive(Debug, thiserror::Error)]
pub enum FeedError<E> {
    /// A record cannot be folded.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// What should be a record is longer than any can be.
    #[error("stream {stream} is damaged {offset} bytes behind its beginning")]
    Damaged {
        /// The stream.
        stream: StreamId,
        /// Bytes of it that were fed.
        offset: u64,
    },
    /// A stream could not be read.
    #[error("stream {stream} could not be read")]
    Source {
        /// The stream.
        stream: StreamId,
        /// Why.
        source: E,
    },
}

/// What was fed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Whole records.
    pub records: u64,
    /// Streams that end inside a record.
    pub cut_short: Vec<StreamId>,
}

impl Merge {
    /// Feeds streams to their ends. `more` appends the next bytes of one and says how many; 0 at its end.
    ///
    /// # Errors
    /// [`FeedError`].
    pub fn feed_by_time<E>(
        &mut self,
        streams: impl IntoIterator<Item = StreamId>,
        more: impl FnMut(StreamId, &mut Vec<u8>) -> Result<usize, E>,
    ) -> Result<Fed, FeedError<E>> {
        let mut weaver = Weaver {
            merge: self,
            more,
            readers: streams.into_iter().map(Reader::new).collect(),
            next: BinaryHeap::new(),
            unplaced: BTreeSet::new(),
            fed: Fed::default(),
        };
        weaver.run()?;
        Ok(weaver.fed)
    }

    /// From when on a stream with this first record counts, if that is known.
    fn base(&self, stream: StreamId, first: &Header) -> Option<u64> {
        let known = self.fold.streams.get(&stream);
        let is_placed = known.is_some_and(|s| s.records > 0 || s.time > 0);
        let base = known.map_or(0, |s| s.time);
        (is_placed || first.kind != kind::BIRTH).then_some(base)
    }
}

/// One stream.
struct Reader {
    stream: StreamId,
    bytes: Vec<u8>,
    /// Where in `bytes` its next record begins, and how many bytes of it were before `bytes`.
    at: usize,
    dropped: u64,
    /// When its last record was made.
    time: u64,
}

impl Reader {
    const fn new(stream: StreamId) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            at: 0,
            dropped: 0,
            time: 0,
        }
    }
}

struct Weaver<'a, M> {
    merge: &'a mut Merge,
    more: M,
    readers: Vec<Reader>,
    /// When the next record of each reader was made, the earliest first.
    next: BinaryHeap<Reverse<(u64, usize)>>,
    /// Readers of threads whose makers have not come so far.
    unplaced: BTreeSet<usize>,
    fed: Fed,
}

impl<M, E> Weaver<'_, M>
where
    M: FnMut(StreamId, &mut Vec<u8>) -> Result<usize, E>,
{
    fn run(&mut self) -> Result<(), FeedError<E>> {
        self.unplaced = (0..self.readers.len()).collect();
        self.place()?;
        loop {
            if let Some(Reverse((_, index))) = self.next.pop() {
                self.feed_from(index)?;
            } else if let Some(index) = self.unplaced.pop_first() {
                // Its maker's record is not there.
                self.queue(index)?;
            } else {
                return Ok(());
            }
        }
    }

    /// Feeds one stream as long as nothing of another is earlier.
    fn feed_from(&mut self, index: usize) -> Result<(), FeedError<E>> {
        while let Some(header) = self.peek(index)? {
            let reader = &mut self.readers[index];
            let time = reader.time.saturating_add(cycles_of(header.ticks));
            if let Some(Reverse(other)) = self.next.peek()
                && *other < (time, index)
            {
                self.next.push(Reverse((time, index)));
                break;
            }
            let Ok((record, len)) = record::decode(&reader.bytes[reader.at..]) else {
                break;
            };
            self.merge.feed(reader.stream, &record)?;
            reader.at += len;
            reader.time = time;
            self.fed.records += 1;
            if makes_threads(header.kind) && !self.unplaced.is_empty() {
                self.place()?;
            }
        }
        Ok(())
    }

    /// Queues those of which it is known by now when they begin, and drops those that are empty.
    fn place(&mut self) -> Result<(), FeedError<E>> {
        for index in self.unplaced.clone() {
            let Some(first) = self.peek(index)? else {
                self.unplaced.remove(&index);
                continue;
            };
            let reader = &mut self.readers[index];
            if let Some(base) = self.merge.base(reader.stream, &first) {
                reader.time = base;
                self.unplaced.remove(&index);
                self.queue(index)?;
            }
        }
        Ok(())
    }

    fn queue(&mut self, index: usize) -> Result<(), FeedError<E>> {
        if let Some(header) = self.peek(index)? {
            let begun = self.readers[index].time;
            let time = begun.saturating_add(cycles_of(header.ticks));
            self.next.push(Reverse((time, index)));
        }
        Ok(())
    }

    /// The header of a stream's next record; `None` at its end.
    fn peek(&mut self, index: usize) -> Result<Option<Header>, FeedError<E>> {
        let reader = &mut self.readers[index];
        let stream = reader.stream;
        loop {
            match record::decode(&reader.bytes[reader.at..]) {
                Ok((record, _)) => return Ok(Some(record.header)),
                Err(Malformed::Oversized { .. }) => {
                    let offset = reader.dropped + reader.at as u64;
                    return Err(FeedError::Damaged { stream, offset });
                }
                Err(Malformed::Truncated { .. }) => {}
            }
            reader.dropped += reader.at as u64;
            reader.bytes.drain(..reader.at);
            reader.at = 0;
            let read = (self.more)(stream, &mut reader.bytes);
            if read.map_err(|source| FeedError::Source { stream, source })? == 0 {
                if !reader.bytes.is_empty() && !self.fed.cut_short.contains(&stream) {
                    self.fed.cut_short.push(stream);
                }
                return Ok(None);
            }
        }
    }
}

/// Whether a record may say when a thread was made.
const fn makes_threads(kind: u16) -> bool {
    matches!(
        kind,
        kind::INTENT | nr::CLONE | nr::CLONE3 | nr::FORK | nr::VFORK
    )
}
