//! Bytes that were written inside the container and not read yet: pipes and UNIX sockets.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{DescriptionId, FoldError};

/// Most unread bytes of one channel: the largest pipe and socket buffers are smaller.
pub const MAX_UNREAD: u64 = 8 << 20;

/// One direction of a pipe or a pair of sockets.
///
/// The records of its writer and its reader come from different streams, so that a read may be folded
/// before the write it read from: then `read` runs ahead until the write arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// Descriptions that hold one of its ends.
    pub ends: u32,
    /// Messages keep their boundaries (datagrams, SOCK_SEQPACKET).
    pub messages: bool,
    /// Bytes (or messages) written.
    pub written: u64,
    /// Bytes (or messages) read.
    pub read: u64,
    /// What was written and not read, one element for each write.
    pub unread: VecDeque<Vec<u8>>,
    /// Bytes in `unread`.
    pub unread_bytes: u64,
    /// Descriptions sent along (SCM_RIGHTS) and not received, one element for each message.
    pub passed: VecDeque<Vec<DescriptionId>>,
}

impl Channel {
    /// `data` was written, `result` units of it (`data` may be unknown: then only the count moves).
    pub(super) fn write(&mut self, data: &[u8], result: u64) -> Result<(), FoldError> {
        let units = if self.messages { 1 } else { result };
        let owed = self.read.saturating_sub(self.written).min(units);
        super::bump(&mut self.written, units);
        let skip = if self.messages {
            if owed == 0 { 0 } else { data.len() }
        } else {
            owed as usize
        };
        let fresh = data.get(skip..).unwrap_or_default();
        if !fresh.is_empty() || (self.messages && owed == 0) {
            super::bump(&mut self.unread_bytes, fresh.len() as u64);
            if self.unread_bytes > MAX_UNREAD || self.unread.len() as u64 > MAX_UNREAD / 16 {
                return Err(FoldError::TooMany {
                    what: "unread bytes of a channel",
                    most: MAX_UNREAD,
                });
            }
            self.unread.push_back(fresh.to_vec());
        }
        Ok(())
    }

    /// `count` bytes were read (one message, if it keeps boundaries).
    pub(super) fn take(&mut self, count: u64) {
        let mut left = if self.messages { 1 } else { count };
        super::bump(&mut self.read, left);
        while left > 0 {
            let Some(first) = self.unread.front_mut() else {
                break;
            };
            let len = first.len() as u64;
            if self.messages || len <= left {
                left -= if self.messages { 1 } else { len };
                self.unread_bytes -= len;
                self.unread.pop_front();
            } else {
                first.drain(..left as usize);
                self.unread_bytes -= left;
                left = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_take_from_the_front_whatever_comes_first() {
        let mut pipe = Channel::default();
        pipe.write(b"hello", 5).unwrap();
        pipe.write(b"world", 5).unwrap();
        pipe.take(7);
        assert_eq!(pipe.unread, [b"rld".to_vec()]);
        pipe.take(10);
        pipe.write(b"0123456789", 10).unwrap();
        assert_eq!(pipe.unread, [b"789".to_vec()]);
        assert_eq!((pipe.written, pipe.read, pipe.unread_bytes), (20, 17, 3));
    }

    #[test]
    fn messages_keep_their_boundaries() {
        let mut socket = Channel {
            messages: true,
            ..Channel::default()
        };
        socket.take(100);
        for message in [&b"first"[..], b"", b"third"] {
            socket.write(message, message.len() as u64).unwrap();
        }
        assert_eq!(socket.unread, [b"".to_vec(), b"third".to_vec()]);
        socket.take(0);
        assert_eq!((socket.unread.len(), socket.unread_bytes), (1, 5));
    }

    #[test]
    fn what_is_unread_is_bounded() {
        let mut pipe = Channel::default();
        let block = vec![0; 1 << 20];
        for _ in 0..8 {
            pipe.write(&block, 1 << 20).unwrap();
        }
        assert!(matches!(
            pipe.write(b"x", 1),
            Err(FoldError::TooMany { .. })
        ));
    }
}
