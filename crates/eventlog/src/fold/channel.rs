//! Bytes that were written inside the container and not read yet: pipes and UNIX sockets.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{DescriptionId, FoldError};

/// Most unread bytes of one channel: the largest pipe and socket buffers are smaller.
pub const MAX_UNREAD: u64 = 8 << 20;

/// One direction of a pipe or a pair of sockets.
///
/// The records of its writers and its reader come from different streams, each when its stream is folded. So a read may be
/// folded before the write it read from, and a write before one that was made earlier. What was written is kept in the
/// order of time, and given up for what was read only when all streams have come to a cut ([`Channel::trim`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// Descriptions that hold one of its ends.
    pub ends: u32,
    /// The one that wrote to it, when that has ended: another thread's write through it may be folded later.
    pub ended: Option<DescriptionId>,
    /// Messages keep their boundaries (datagrams, SOCK_SEQPACKET).
    pub messages: bool,
    /// Bytes (or messages) written.
    pub written: u64,
    /// Bytes (or messages) read.
    pub read: u64,
    /// Of these, those that are not in `kept`.
    pub given_up: u64,
    /// What was written otherwise.
    pub kept: VecDeque<Written>,
    /// Bytes in `kept`.
    pub kept_bytes: u64,
    /// Descriptions sent along (SCM_RIGHTS) and not received, one element for each message.
    pub passed: VecDeque<Vec<DescriptionId>>,
}

/// One write to a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// When its record was made, in cycles of the recording host.
    pub time: u64,
    /// Bytes (or messages, which is one).
    pub units: u64,
    /// The bytes; fewer where they are not known.
    pub data: Vec<u8>,
}

impl Channel {
    /// `data` was written, `result` units of it (`data` may be unknown: then only the count moves).
    pub(super) fn write(&mut self, data: &[u8], result: u64, time: u64) -> Result<(), FoldError> {
        let units = if self.messages { 1 } else { result };
        if units == 0 {
            return Ok(());
        }
        super::bump(&mut self.written, units);
        super::bump(&mut self.kept_bytes, data.len() as u64);
        let later = self.kept.iter().rev();
        let later = later.take_while(|other| other.time > time).count();
        let data = data.to_vec();
        let written = Written { time, units, data };
        self.kept.insert(self.kept.len() - later, written);
        if self.is_full() {
            // Where so much is on its way, the order in which it is folded has to do.
            self.trim();
        }
        if self.is_full() {
            return Err(FoldError::TooMany {
                what: "unread bytes of a channel",
                most: MAX_UNREAD,
            });
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.kept_bytes > MAX_UNREAD || self.kept.len() as u64 > MAX_UNREAD / 16
    }

    /// `count` bytes were read (one message, if it keeps boundaries).
    pub(super) fn take(&mut self, count: u64) {
        super::bump(&mut self.read, if self.messages { 1 } else { count });
    }

    /// A write of so many units of which no record came was read.
    pub(super) fn settle(&mut self, units: u64) {
        self.trim();
        super::bump(&mut self.written, units);
        super::bump(&mut self.given_up, units);
    }

    /// Gives up what was read. All streams have come to a cut: nothing older will be written.
    pub(super) fn trim(&mut self) {
        while let Some(first) = self.kept.front_mut() {
            let left = self.read.saturating_sub(self.given_up);
            let gone = first.units.min(left);
            if gone == 0 {
                break;
            }
            super::bump(&mut self.given_up, gone);
            first.units -= gone;
            let bytes = if first.units == 0 {
                first.data.len()
            } else {
                first.data.len().min(gone as usize)
            };
            first.data.drain(..bytes);
            self.kept_bytes -= bytes as u64;
            if first.units == 0 {
                self.kept.pop_front();
            }
        }
    }

    /// What was written and not read, one element for each write.
    pub fn unread(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.read.saturating_sub(self.given_up);
        self.kept.iter().filter_map(move |written| {
            let gone = written.units.min(left);
            left -= gone;
            if gone == written.units {
                return None;
            }
            Some(written.data.get(gone as usize..).unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread(channel: &Channel) -> Vec<&[u8]> {
        channel.unread().collect()
    }

    #[test]
    fn reads_take_from_the_front_whatever_comes_first() {
        for trims in [false, true] {
            let mut pipe = Channel::default();
            pipe.write(b"hello", 5, 1).unwrap();
            pipe.write(b"world", 5, 2).unwrap();
            pipe.take(7);
            if trims {
                pipe.trim();
                assert_eq!(pipe.kept_bytes, 3);
            }
            assert_eq!(unread(&pipe), [b"rld"]);
            pipe.take(10);
            if trims {
                pipe.trim();
            }
            pipe.write(b"0123456789", 10, 3).unwrap();
            assert_eq!(unread(&pipe), [b"789"]);
            assert_eq!((pipe.written, pipe.read), (20, 17));
        }
    }

    #[test]
    fn writes_are_in_the_order_of_time_whoever_is_folded_first() {
        let mut pipe = Channel::default();
        pipe.write(b"second", 6, 20).unwrap();
        pipe.take(8);
        pipe.write(b"fourth", 6, 40).unwrap();
        pipe.write(b"first", 5, 10).unwrap();
        pipe.write(b"third", 5, 30).unwrap();
        assert_eq!(unread(&pipe), [&b"ond"[..], b"third", b"fourth"]);
        pipe.trim();
        assert_eq!(unread(&pipe), [&b"ond"[..], b"third", b"fourth"]);
    }

    #[test]
    fn bytes_that_are_not_known_count() {
        let mut pipe = Channel::default();
        pipe.write(b"", 4, 1).unwrap();
        pipe.write(b"known", 5, 2).unwrap();
        pipe.take(6);
        assert_eq!(unread(&pipe), [b"own"]);
        pipe.trim();
        assert_eq!(unread(&pipe), [b"own"]);
    }

    #[test]
    fn what_is_settled_was_read() {
        let mut pipe = Channel::default();
        pipe.take(3);
        pipe.settle(3);
        pipe.write(b"more", 4, 1).unwrap();
        assert_eq!(unread(&pipe), [b"more"]);
    }

    #[test]
    fn messages_keep_their_boundaries() {
        let mut socket = Channel {
            messages: true,
            ..Channel::default()
        };
        socket.take(100);
        for (time, message) in [&b"first"[..], b"", b"third"].into_iter().enumerate() {
            let len = message.len() as u64;
            socket.write(message, len, time as u64).unwrap();
        }
        assert_eq!(unread(&socket), [&b""[..], b"third"]);
        socket.take(0);
        socket.trim();
        assert_eq!((unread(&socket).len(), socket.kept_bytes), (1, 5));
    }

    #[test]
    fn what_is_unread_is_bounded() {
        let mut pipe = Channel::default();
        let block = vec![0; 1 << 20];
        for time in 0..8 {
            pipe.write(&block, 1 << 20, time).unwrap();
        }
        pipe.take(1 << 20);
        pipe.write(&block, 1 << 20, 8).unwrap();
        assert!(matches!(
            pipe.write(b"x", 1, 9),
            Err(FoldError::TooMany { .. })
        ));
    }
}
