//! The thread's ring: a byte stream in shared memory, written when recording, read in replay.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use eventlog::record::{Header, LONG_LEN, SHORT_LEN};
use guest::abi::{ARENA_BASE, RING_LEN, RINGS_AT, Slot, ThreadBlock, mode, slot};

use crate::thread::{control, slot_of};
use crate::{raw, user};

/// How long a sleeper waits before it looks again, should a wake-up have been lost with a dead host process.
const LOOK_AGAIN_NS: u64 = 2_000_000;
/// Looks before sleeping.
const SPINS: u32 = 300;

/// Address of a ring.
pub(crate) fn base(index: u32) -> u64 {
    ARENA_BASE + RINGS_AT + u64::from(index) * RING_LEN
}

/// Where in a thread's ring bytes of its stream are.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    slot: &'static Slot,
    base: u64,
}

impl Ring {
    /// The ring of a thread.
    #[inline(always)]
    pub(crate) fn of(t: &ThreadBlock) -> Self {
        Self::at(t.slot.load(Relaxed))
    }

    /// The ring with this index.
    #[inline(always)]
    pub(crate) fn at(index: u32) -> Self {
        Self {
            slot: slot_of(index),
            base: base(index),
        }
    }

    /// Waits until `n` bytes fit behind position `at`. Records are never dropped.
    #[inline(always)]
    pub(crate) fn reserve(self, at: u64, n: u64) {
        if at + n - self.slot.tail.load(Acquire) > RING_LEN {
            self.wait_for_room(at, n);
        }
    }

    #[cold]
    fn wait_for_room(self, at: u64, n: u64) {
        while at + n - self.slot.tail.load(Acquire) > RING_LEN {
            self.slot.producer_asleep.store(1, SeqCst);
            wake_drainer();
            if at + n - self.slot.tail.load(SeqCst) > RING_LEN {
                raw::futex_wait_for(&self.slot.producer_asleep, 1, LOOK_AGAIN_NS);
            }
        }
    }

    /// Puts bytes at a stream position. A fault leaves zeroes or old bytes: the record stays well-formed.
    #[inline(always)]
    pub(crate) fn put(self, at: u64, from: u64, n: u64) -> Result<(), user::Fault> {
        let offset = at % RING_LEN;
        let first = n.min(RING_LEN - offset);
        user::copy(self.base + offset, from, first)?;
        if first < n {
            user::copy(self.base, from + first, n - first)
        } else {
            Ok(())
        }
    }

    /// Takes bytes from a stream position.
    #[inline(always)]
    pub(crate) fn get(self, at: u64, to: u64, n: u64) -> Result<(), user::Fault> {
        let offset = at % RING_LEN;
        let first = n.min(RING_LEN - offset);
        user::copy(to, self.base + offset, first)?;
        if first < n {
            user::copy(to + first, self.base, n - first)
        } else {
            Ok(())
        }
    }

    /// The header of the first record of a stream that nobody has read from.
    pub(crate) fn first(self) -> Option<Header> {
        let mut bytes = [0_u8; LONG_LEN];
        if !self.wait_for(SHORT_LEN as u64) {
            return None;
        }
        let _ = self.get(0, bytes.as_mut_ptr() as u64, SHORT_LEN as u64);
        if Header::is_long(&bytes) {
            if !self.wait_for(LONG_LEN as u64) {
                return None;
            }
            let _ = self.get(0, bytes.as_mut_ptr() as u64, LONG_LEN as u64);
        }
        Some(Header::parse(&bytes))
    }

    /// Commits everything before `at`: the host may read it.
    #[inline(always)]
    pub(crate) fn commit(self, at: u64, urgent: bool) {
        self.slot.head.store(at, SeqCst);
        if urgent || at - self.slot.tail.load(Relaxed) > RING_LEN / 2 {
            wake_drainer();
        }
    }

    /// Gives everything before `at` back to the host; the last record of it is of this time, and taken now.
    #[inline(always)]
    pub(crate) fn consumed(self, at: u64, time: u64) {
        // In this order: whoever reads in between takes the next record for older than it is, and looks again.
        self.slot.taken_at.store(raw::cycles(), Release);
        self.slot.tail.store(at, Release);
        self.slot.time.store(time, Release);
    }

    /// Waits until the stream reaches `upto`. False when it ends before, or when replay is over.
    #[inline(always)]
    pub(crate) fn wait_for(self, upto: u64) -> bool {
        self.slot.head.load(Acquire) >= upto || self.wait_longer(upto)
    }

    #[cold]
    fn wait_longer(self, upto: u64) -> bool {
        let mut spins = 0;
        loop {
            if self.slot.head.load(Acquire) >= upto {
                return true;
            }
            if self.slot.end.load(Acquire) != 0 && self.slot.head.load(Acquire) < upto {
                return false;
            }
            spins += 1;
            if spins < SPINS {
                core::hint::spin_loop();
                continue;
            }
            self.slot.consumer_asleep.store(1, SeqCst);
            if self.slot.head.load(SeqCst) < upto && self.slot.end.load(SeqCst) == 0 {
                raw::futex_wait_for(&self.slot.consumer_asleep, 1, LOOK_AGAIN_NS);
            }
        }
    }

    /// Waits at the log's end until the mode is no longer replay.
    #[cold]
    pub(crate) fn park(self) {
        self.slot.state.store(slot::PARKED, Release);
        while control().mode.load(Acquire) == mode::REPLAY {
            raw::futex_wait(&control().mode, mode::REPLAY);
        }
        self.slot.state.store(slot::LIVE, Release);
    }
}

/// Asks the host's drainer to look, and wakes it if it sleeps.
#[inline(always)]
pub(crate) fn wake_drainer() {
    let asleep = &control().drainer_asleep;
    control().drain_wanted.store(1, SeqCst);
    if asleep.load(SeqCst) != 0 && asleep.swap(0, SeqCst) != 0 {
        raw::futex_wake(asleep, 1);
    }
}
