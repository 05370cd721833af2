//! The arena of a restored container, in replay mode: made empty, then brought to what it was at the cut.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::atomic::Ordering::{AcqRel, Release};

use eventlog::handover::{ConnectionCut, GuestState, ThreadState};
use eventlog::image::PAGE;
use guest::abi::{MAX_CONNS, MAX_SLOTS, OUTPUT_LEN, RESTORED, ThreadBlock, flag, mode, slot};
use sys::arena::Arena;

use super::checkpoint::Checkpoint;
use super::error::{Result, TakeoverError, io};
use super::pending;

/// Its switches.
const FLAGS: u32 = flag::OWN_OUTPUT | flag::HOLD_AT_END;

/// Makes it.
pub(super) fn empty() -> Result<Arena> {
    Arena::new(mode::REPLAY, FLAGS).map_err(io("making the shared memory"))
}

/// Makes it empty again.
pub(super) fn clear(arena: &Arena) -> Result<()> {
    let cleared = arena.clear(mode::REPLAY, FLAGS);
    cleared.map_err(io("emptying the shared memory"))
}

/// Fills an empty one.
pub(super) fn fill(arena: &Arena, checkpoint: &Checkpoint) -> Result<()> {
    let state: GuestState = checkpoint.guest()?;
    let control = arena.control();
    control.next_stream.store(state.next_stream, Release);
    control.pids.version.store(state.pids, Release);
    control.stdio.version.store(state.stdio, Release);
    if state.serial {
        control.flags.fetch_or(flag::SERIAL, Release);
    }
    for thread in &state.threads {
        let index = bounded(thread.slot, MAX_SLOTS, "rings that exist")?;
        fill_ring(arena, index, thread);
        let time = time_of(checkpoint, thread).ok_or(TakeoverError::Missing {
            what: "block of each thread",
        })?;
        arena.slot(index).time.store(time, Release);
        control.slots.fetch_max(thread.slot + 1, AcqRel);
    }
    for connection in &state.connections {
        let index = bounded(connection.index, MAX_CONNS, "connections that exist")?;
        fill_connection(arena, index, connection);
    }
    pending::fill(arena, checkpoint, &state.threads);
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
    Ok(())
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
    ring.taken_at.store(RESTORED, Release);
    ring.state.store(slot::LIVE, Release);
}

/// When the thread of each stream made its last record before the cut.
pub(super) fn times(checkpoint: &Checkpoint) -> Result<BTreeMap<u32, u64>> {
    let threads = checkpoint.guest()?.threads;
    let known = threads
        .iter()
        .filter_map(|thread| Some((thread.stream, time_of(checkpoint, thread)?)));
    Ok(known.collect())
}

/// When the thread made its last record before the cut.
fn time_of(checkpoint: &Checkpoint, thread: &ThreadState) -> Option<u64> {
    let time = of_block(checkpoint, thread, offset_of!(ThreadBlock, tsc))?;
    Some(u64::from_le_bytes(time))
}

/// The signal that the thread was about to be given at the cut, behind its record; 0 for none.
pub(super) fn delivered_to(checkpoint: &Checkpoint, thread: &ThreadState) -> u32 {
    let signal = of_block(checkpoint, thread, offset_of!(ThreadBlock, delivering));
    signal.map_or(0, u32::from_le_bytes)
}

/// What lies at an offset in the thread's block.
fn of_block<const N: usize>(
    checkpoint: &Checkpoint,
    thread: &ThreadState,
    offset: usize,
) -> Option<[u8; N]> {
    let at = thread.block.checked_add(offset as u64)?;
    let (page, offset) = (at & !(PAGE - 1), (at & (PAGE - 1)) as usize);
    // A page that nothing was ever written to is not there.
    let Some(bytes) = checkpoint.process(thread.pid)?.page(page) else {
        return Some([0; N]);
    };
    bytes.get(offset..offset + N)?.try_into().ok()
}

fn fill_connection(arena: &Arena, index: usize, cut: &ConnectionCut) {
    let c = arena.conn(index);
    for (word, value) in [
        (&c.refs, cut.refs),
        (&c.fd, cut.fd),
        (&c.pid, cut.pid),
        (&c.shut, cut.shut),
        (&c.read_end, cut.read_end),
        (&c.holder, cut.holder),
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
