//! What of the arena belongs to a checkpoint: which threads there are and how far their logs go, what clients have not
//! acknowledged.

use std::sync::atomic::Ordering::{Acquire, Release};

use eventlog::handover::{ConnectionCut, GuestState, ThreadState};
use guest::abi::{MAX_CONNS, MAX_SLOTS, conn, flag, slot};
use sys::arena::Arena;

/// What is read from the arena while all processes stand still.
#[derive(Debug, Default)]
pub(super) struct AtCut {
    pub(super) state: GuestState,
    /// The processes that live.
    pub(super) living: Vec<u32>,
    /// Streams of processes that were killed, and where they end.
    pub(super) killed: Vec<(u32, u64)>,
    pub(super) output: Vec<u8>,
}

impl AtCut {
    /// Every thread of the container stands still; `living` are its processes.
    pub(super) fn read(arena: &Arena, living: &[u32]) -> Self {
        let control = arena.control();
        let mut cut = Self {
            living: living.to_vec(),
            ..Self::default()
        };
        cut.state.next_stream = control.next_stream.load(Acquire);
        cut.state.pids = control.pids.version.load(Acquire);
        cut.state.stdio = control.stdio.version.load(Acquire);
        cut.state.serial = control.flags.load(Acquire) & flag::SERIAL != 0;
        for index in 0..MAX_SLOTS {
            let ring = arena.slot(index);
            if ring.state.load(Acquire) == slot::LIVE {
                let pid = ring.pid.load(Acquire);
                if pid != 0 && !living.contains(&pid) {
                    // Killed: nobody says so but the kernel.
                    let end = (ring.stream.load(Acquire), ring.head.load(Acquire));
                    cut.killed.push(end);
                    ring.state.store(slot::DONE, Release);
                    continue;
                }
                cut.state.threads.push(ThreadState {
                    slot: index as u32,
                    stream: ring.stream.load(Acquire),
                    tid: ring.tid.load(Acquire),
                    pid: ring.pid.load(Acquire),
                    block: ring.block.load(Acquire),
                    position: ring.head.load(Acquire),
                });
            }
        }
        for word in 0..MAX_CONNS / 64 {
            let mut left = control.taken[word].load(Acquire);
            while left != 0 {
                cut.connection(arena, word * 64 + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
        cut
    }

    fn connection(&mut self, arena: &Arena, index: usize) {
        let c = arena.conn(index);
        let (written, trimmed) = (c.written.load(Acquire), c.trimmed.load(Acquire));
        let state = c.state.load(Acquire);
        if state != conn::OPEN && state != conn::CLOSED {
            return;
        }
        self.state.connections.push(ConnectionCut {
            index: index as u32,
            generation: c.generation.load(Acquire),
            state,
            refs: c.refs.load(Acquire),
            fd: c.fd.load(Acquire),
            pid: c.pid.load(Acquire),
            shut: c.shut.load(Acquire),
            read_end: c.read_end.load(Acquire),
            holder: c.holder.load(Acquire),
            read: c.read.load(Acquire),
            written,
            trimmed,
            ends: c.ends.load(Acquire),
        });
        if written > trimmed {
            self.output.extend_from_slice(&(index as u32).to_le_bytes());
            self.output
                .extend_from_slice(&((written - trimmed) as u32).to_le_bytes());
            arena.read_output(index, trimmed, written, &mut self.output);
        }
    }
}
