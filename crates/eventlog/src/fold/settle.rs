//! Writes inside the container whose results the log does not have, at the log's end.
//!
//! Such a write has had its effect or not. It has as far as a reader took bytes that nobody is known to have written:
//! the log has the read. The rest is the writer's to write again.

use super::message::word;
use super::{DescriptionId, Fold, Kind, Merge, StreamId, nr};

/// A write that was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Its thread's stream.
    pub stream: StreamId,
    /// Bytes of it that a reader has.
    pub taken: u64,
}

impl Merge {
    /// Counts what was taken of intended writes as written, once the log has ended. Where several writers may have
    /// written the same bytes, those of lower streams come first.
    pub fn settle(&mut self) -> Vec<Settled> {
        let fold = &mut self.fold;
        let streams: Vec<StreamId> = fold.streams.keys().copied().collect();
        let settled = streams.into_iter().filter_map(|stream| {
            let taken = fold.settle(stream)?;
            (taken > 0).then_some(Settled { stream, taken })
        });
        settled.collect()
    }
}

impl Fold {
    fn settle(&mut self, id: StreamId) -> Option<u64> {
        let stream = self.streams.get(&id)?;
        let intent = stream.intent.as_ref()?;
        if !matches!(intent.nr, nr::WRITE | nr::WRITEV | nr::SENDTO | nr::SENDMSG) {
            return None;
        }
        let (len, value) = (intent.payload.len() as u64, word(&intent.payload, 0, 8));
        let (pid, fd) = (stream.pid, intent.arg0.cast_signed());
        self.now = stream.time;
        let target = self.meant(pid, fd);
        self.now = 0;
        self.owed(target?, len, value)
    }

    /// What readers have of `len` bytes that were to go into a description, an eventfd among them with this `value`.
    fn owed(&mut self, target: DescriptionId, len: u64, value: u64) -> Option<u64> {
        let kind = self.descriptions.get_mut(&target).map(|is| &mut is.kind);
        let channel = match kind {
            None => self.written_by_ended(target)?,
            Some(Kind::Event { added, taken, .. }) => {
                if taken.wrapping_sub(*added).cast_signed() <= 0 {
                    return None;
                }
                *added = added.wrapping_add(value);
                return Some(len);
            }
            Some(Kind::Pipe { channel, .. }) => *channel,
            Some(Kind::Socket(socket)) => socket.channels?.1,
            Some(_) => return None,
        };
        let channel = self.channels.get_mut(&channel)?;
        let owed = channel.read.saturating_sub(channel.written);
        let (units, taken) = if channel.messages {
            (owed.min(1), if owed > 0 { len } else { 0 })
        } else {
            (owed.min(len), owed.min(len))
        };
        channel.settle(units);
        Some(taken)
    }
}
