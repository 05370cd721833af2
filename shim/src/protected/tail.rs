//! The log since the last cut: the fold is brought up to each cut from it, off the hot path.

use std::collections::BTreeMap;

/// Bytes of each stream from the last cut on.
#[derive(Debug, Default)]
pub(super) struct Tail {
    streams: BTreeMap<u32, Run>,
}

#[derive(Debug, Default)]
struct Run {
    start: u64,
    bytes: Vec<u8>,
}

impl Tail {
    /// Takes the next bytes of a stream.
    pub(super) fn push(&mut self, stream: u32, position: u64, bytes: &[u8]) {
        let run = self.streams.entry(stream).or_insert_with(|| Run {
            start: position,
            bytes: Vec::new(),
        });
        run.bytes.extend_from_slice(bytes);
    }

    /// Where a stream ends so far.
    pub(super) fn end(&self, stream: u32) -> u64 {
        self.streams
            .get(&stream)
            .map_or(0, |run| run.start + run.bytes.len() as u64)
    }

    /// Where each stream that goes on ends so far.
    pub(super) fn ends(&self) -> Vec<(u32, u64)> {
        let ends = self
            .streams
            .keys()
            .map(|stream| (*stream, self.end(*stream)));
        ends.collect()
    }

    /// Takes out everything before the cut: for streams in `cut`, up to the position there; of streams that
    /// are not, all, if they began before `next_stream`.
    pub(super) fn take(
        &mut self,
        cut: &BTreeMap<u32, u64>,
        next_stream: u32,
    ) -> Vec<(u32, Vec<u8>)> {
        let mut taken = Vec::new();
        self.streams.retain(|stream, run| {
            let all = run.bytes.len();
            let n = match cut.get(stream) {
                Some(position) => (position.saturating_sub(run.start) as usize).min(all),
                None if *stream < next_stream => all,
                None => 0,
            };
            let rest = run.bytes.split_off(n);
            let before = std::mem::replace(&mut run.bytes, rest);
            run.start += n as u64;
            if !before.is_empty() {
                taken.push((*stream, before));
            }
            cut.contains_key(stream) || *stream >= next_stream
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_takes_what_lies_before_it() {
        let mut tail = Tail::default();
        tail.push(1, 0, b"abcdef");
        tail.push(2, 0, b"gone");
        tail.push(3, 0, b"new");
        let taken = tail.take(&BTreeMap::from([(1, 4)]), 3);
        assert_eq!(taken, [(1, b"abcd".to_vec()), (2, b"gone".to_vec())]);
        assert_eq!((tail.end(1), tail.end(2), tail.end(3)), (6, 0, 3));
        tail.push(1, 6, b"gh");
        assert_eq!(
            tail.take(&BTreeMap::from([(1, 8), (3, 3)]), 4),
            [(1, b"efgh".to_vec()), (3, b"new".to_vec())]
        );
    }
}
