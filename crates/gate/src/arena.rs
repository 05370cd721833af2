//! Output buffers in the arena, the memory that the guest and the host share.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use guest::abi::{Conn, OUTPUT_LEN, conn};
use sys::arena::{Arena, futex_wake};

use crate::buffer::OutputBuffer;

/// The output of one of the arena's connections.
#[derive(Clone, Debug)]
pub struct ArenaOutput {
    arena: Arc<Arena>,
    index: usize,
    /// The guest's eventfd that tells epoll sets of room.
    room: Option<Arc<OwnedFd>>,
}

/// A full buffer has room again when so much of it is free: an application that is woken for every
/// acknowledged byte writes one byte at a time.
const ROOM: u64 = OUTPUT_LEN / 4;

impl ArenaOutput {
    /// The output of entry `index`; `room` is signalled when a full buffer has drained.
    ///
    /// # Panics
    /// If the arena has no such entry.
    #[must_use]
    pub fn new(arena: Arc<Arena>, index: usize, room: Option<Arc<OwnedFd>>) -> Self {
        let _ = arena.conn(index);
        Self { arena, index, room }
    }

    fn entry(&self) -> &Conn {
        self.arena.conn(self.index)
    }

    fn wake(&self) {
        let entry = self.entry();
        if entry.full.compare_exchange(1, 0, AcqRel, Acquire).is_ok() {
            futex_wake(&entry.full);
            if let Some(fd) = &self.room
                && let Err(e) = nix::unistd::write(fd, &1_u64.to_ne_bytes())
            {
                // EAGAIN: its counter is full, so that it is readable anyway.
                tracing::debug!(index = self.index, error = %e, "room cannot be signalled");
            }
        }
    }
}

impl OutputBuffer for ArenaOutput {
    fn written(&self) -> u64 {
        self.entry().written.load(Acquire)
    }

    fn copy_out(&self, from: u64, out: &mut [u8]) {
        let mut bytes = Vec::with_capacity(out.len());
        self.arena
            .read_output(self.index, from, from + out.len() as u64, &mut bytes);
        out.copy_from_slice(&bytes);
    }

    fn set_trimmed(&self, to: u64) {
        let entry = self.entry();
        entry.trimmed.store(to, Release);
        if entry.full.load(Acquire) != 0
            && entry.written.load(Acquire).saturating_sub(to) <= OUTPUT_LEN - ROOM
        {
            self.wake();
        }
    }

    fn set_error(&self, errno: i32) {
        self.entry().error.store(errno.unsigned_abs(), Release);
        self.wake();
    }

    fn free(&self) {
        self.entry().adopted.store(0, Release);
        let taken = &self.arena.control().taken[self.index / 64];
        taken.fetch_and(!(1 << (self.index % 64)), AcqRel);
        self.entry().state.store(conn::FREE, Release);
    }

    fn capacity(&self) -> u64 {
        OUTPUT_LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest::abi::mode;
    use std::sync::atomic::Ordering::Relaxed;

    fn output() -> (Arc<Arena>, ArenaOutput) {
        let arena = Arc::new(Arena::new(mode::RECORD, 0).unwrap());
        (arena.clone(), ArenaOutput::new(arena, 9, None))
    }

    #[test]
    fn bytes_come_out_across_the_end_of_the_circle() {
        let (arena, output) = output();
        let at = 3 * OUTPUT_LEN - 2;
        arena.write_output(9, at, b"abcd");
        arena.conn(9).written.store(at + 4, Relaxed);
        let mut out = [0; 4];
        output.copy_out(at, &mut out);
        assert_eq!(&out, b"abcd");
        assert_eq!(output.written(), at + 4);
    }

    #[test]
    fn a_writer_is_woken_by_a_quarter_of_room() {
        let (arena, output) = output();
        let entry = arena.conn(9);
        entry.written.store(OUTPUT_LEN, Relaxed);
        entry.full.store(1, Relaxed);
        output.set_trimmed(ROOM - 1);
        assert_eq!(entry.full.load(Relaxed), 1);
        output.set_trimmed(ROOM);
        assert_eq!(
            (entry.full.load(Relaxed), entry.trimmed.load(Relaxed)),
            (0, ROOM)
        );
    }

    #[test]
    fn an_error_wakes_writers_too() {
        let (arena, output) = output();
        arena.conn(9).full.store(1, Relaxed);
        output.set_error(104);
        assert_eq!(
            (
                arena.conn(9).full.load(Relaxed),
                arena.conn(9).error.load(Relaxed)
            ),
            (0, 104)
        );
        arena.conn(9).state.store(conn::CLOSED, Relaxed);
        output.free();
        assert_eq!(arena.conn(9).state.load(Relaxed), conn::FREE);
    }
}
