//! Frames that came for the container while it could not take them.
//!
//! On the backup the gate of the standby's veth keeps what bridges flood to it: nobody is woken, the
//! newest frames overwrite the oldest. At takeover the peers' answers to probes are read here, and what was
//! sent during the outage is delivered when the sockets exist, so that no peer waits for its own
//! retransmission.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Acquire;

use crate::kernel::Gate;
use crate::layout::{config, held};
use crate::segment::{self, Parsed};

/// A frame as it came, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFrame {
    /// Boot time in nanoseconds.
    pub at: u64,
    /// From the Ethernet header on. Its checksums may be unfinished: see [`segment::resendable`].
    pub bytes: Vec<u8>,
}

impl HeldFrame {
    /// Its TCP segment, if it holds one.
    #[must_use]
    pub fn segment(&self) -> Option<Parsed> {
        segment::parse(&self.bytes)
    }
}

/// A reader of kept frames.
#[derive(Clone, Debug, Default)]
pub struct Tap {
    /// Slots read so far.
    next: u64,
    /// A frame whose first pieces were read: bytes so far.
    partial: BTreeMap<(u64, u32), Vec<u8>>,
    /// Slots that were overwritten before they were read.
    lost: u64,
}

impl Tap {
    /// A reader that begins with the first frame that came at `since` or later (boot time in nanoseconds)
    /// and is still there. `u64::MAX` begins with the next frame to come.
    #[must_use]
    pub fn since(gate: &Gate, since: u64) -> Self {
        let mut next = gate.config.long(config::HELD).load(Acquire);
        let oldest = next.saturating_sub(u64::from(held::SLOTS));
        if let Some(map) = gate.held() {
            let ns = |use_: u64| {
                map.long((use_ % u64::from(held::SLOTS)) as usize * held::LEN + held::NS)
            };
            while next > oldest && ns(next - 1).load(Acquire) >= since {
                next -= 1;
            }
        }
        Self {
            next,
            ..Self::default()
        }
    }

    /// Slots that were overwritten before they could be read.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The frames that came since the last call, in order; at most what the memory holds.
    pub fn read(&mut self, gate: &Gate) -> Vec<HeldFrame> {
        let Some(map) = gate.held() else {
            return Vec::new();
        };
        let head = gate.config.long(config::HELD).load(Acquire);
        let slots = u64::from(held::SLOTS);
        if head.saturating_sub(self.next) > slots {
            self.lost += head - slots - self.next;
            self.next = head - slots;
            self.partial.clear(); // what is missing of them may never come
        }
        let mut frames = Vec::new();
        while self.next < head {
            let base = (self.next % slots) as usize * held::LEN;
            let stamp = || map.long(base + held::STAMP).load(Acquire);
            if stamp() == 0 {
                break; // being written: it will be read next time
            }
            let at = map.long(base + held::NS).load(Acquire);
            let len = map.word(base + held::FRAME_LEN).load(Acquire);
            let offset = map.word(base + held::OFFSET).load(Acquire);
            let want = (len.saturating_sub(offset) as usize).min(held::DATA_LEN);
            let mut piece = vec![0; want];
            map.read(base + held::DATA, &mut piece);
            let whole = stamp() == self.next + 1;
            self.next += 1;
            if !whole {
                self.lost += 1;
                self.partial.clear();
                continue;
            }
            frames.extend(self.join(at, len, offset, piece));
        }
        frames
    }

    /// Puts pieces together. Pieces of one frame come in order, though not always side by side.
    fn join(&mut self, at: u64, len: u32, offset: u32, piece: Vec<u8>) -> Option<HeldFrame> {
        if offset == 0 && piece.len() == len as usize {
            return Some(HeldFrame { at, bytes: piece });
        }
        let key = (at, len);
        if offset == 0 {
            self.partial.insert(key, piece);
            return None;
        }
        let bytes = self.partial.get_mut(&key)?;
        if bytes.len() != offset as usize {
            self.partial.remove(&key);
            return None;
        }
        bytes.extend_from_slice(&piece);
        if bytes.len() < len as usize {
            return None;
        }
        self.partial
            .remove(&key)
            .map(|bytes| HeldFrame { at, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_joined_in_order_and_gaps_give_nothing() {
        let mut tap = Tap::default();
        assert_eq!(tap.join(1, 6, 0, vec![1, 2, 3]), None);
        assert_eq!(
            tap.join(2, 2, 0, vec![9, 9]).map(|f| f.bytes),
            Some(vec![9, 9])
        );
        assert_eq!(
            tap.join(1, 6, 3, vec![4, 5, 6]).map(|f| f.bytes),
            Some(vec![1, 2, 3, 4, 5, 6])
        );
        assert_eq!(tap.join(3, 6, 3, vec![4, 5, 6]), None);
        assert_eq!(tap.join(4, 9, 0, vec![1, 2, 3]), None);
        assert_eq!(tap.join(4, 9, 6, vec![7, 8, 9]), None);
        assert!(tap.partial.is_empty());
    }
}
