//! The arena of a restored container, as it was at the cut, in replay mode.

use std::sync::atomic::Ordering::{AcqRel, Release};

use eventlog::handover::{ConnectionCut, GuestState, ThreadState};
use guest::abi::{MAX_CONNS, MAX_SLOTS, OUTPUT_LEN, flag, mode, slot};
use sys::arena::Arena;

use super::checkpoint::Checkpoint;
use super::error::{Result, TakeoverError, io};

/// Makes it.
pub(super) fn filled(checkpoint: &Checkpoint) -> Result<Arena> {
    let flags = flag::OWN_OUTPUT | flag::HOLD_AT_END;
    let arena = Arena::new(mode::REPLAY, flags).map_err(io("making the shared memory"))?;
    let state: GuestState = checkpoint.guest()?;
    let control = arena.control();
    control.next_stream.store(state.next_stream, Release);
    control.pids.version.store(state.pids, Release);
    control.stdio.version.store(state.stdio, Release);
    for thread in &state.threads {
        let index = bounded(thread.slot, MAX_SLOTS, "rings that exist")?;
        fill_ring(&arena, index, thread);
    }
    for connection in &state.connections {
        let index = bounded(connection.index, MAX_CONNS, "connections that exist")?;
        fill_connection(&arena, index, connection);
    }
    for (index, bytes) in checkpoint.output()? {
        if index >= MAX_CONNS || bytes.len() as u64 > OUTPUT_LEN {
            return Err(TakeoverError::Missing {
                what: "output that fits its buffer",
            });
        }
        let at = arena
            .conn(index)
            .trimmed
            .load(std::sync::atomic::Ordering::Acquire);
        arena.write_output(index, at, bytes);
    }
    Ok(arena)
}

fn bounded(index: u32, limit: usize, what: &'static str) -> Result<usize> {
    let index = index as usize;
    if index < limit {
        Ok(index)
    } else {
        Err(TakeoverError::Missing { what })
    }
}

fn fill_ring(arena: &Arena, index: usize, thread: &ThreadState) {
    let ring = arena.slot(index);
    ring.stream.store(thread.stream, Release);
    ring.tid.store(thread.tid, Release);
    ring.pid.store(thread.pid, Release);
    ring.block.store(thread.block, Release);
    ring.head.store(thread.position, Release);
    ring.tail.store(thread.position, Release);
    ring.state.store(slot::LIVE, Release);
}

fn fill_connection(arena: &Arena, index: usize, cut: &ConnectionCut) {
    let c = arena.conn(index);
    for (word, value) in [
        (&c.refs, cut.refs),
        (&c.fd, cut.fd),
        (&c.pid, cut.pid),
        (&c.shut, cut.shut),
        (&c.read_end, cut.read_end),
        (&c.generation, cut.generation),
        // Its host's duplicate comes with the takeover.
        (&c.adopted, 1),
    ] {
        word.store(value, Release);
    }
    c.read.store(cut.read, Release);
    c.written.store(cut.written, Release);
    c.trimmed.store(cut.trimmed, Release);
    c.ends.store(cut.ends, Release);
    c.state.store(cut.state, Release);
    arena.control().taken[index / 64].fetch_or(1 << (index % 64), AcqRel);
}
