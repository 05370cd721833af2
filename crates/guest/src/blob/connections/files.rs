//! `sendfile` to a connection.

use core::sync::atomic::Ordering::{Relaxed, Release};

use eventlog::record::{MAX_PAYLOAD, kind};
use guest::abi::{ARENA_BASE, Conn, OUTPUT_LEN, OUTPUTS_AT, ThreadBlock};

use super::written::{
    EPIPE, OUTPUT_HEAD, WITH_BYTES, broken, broken_pipe, commit, is_nonblocking, lock, publish,
    put, refuse, wait_for_room,
};
use super::{entry, room};
use crate::log::{self, Mode, Taken};
use crate::raw::{self, nr};
use crate::shapes::{Run, Shape};
use crate::{epoll, user};

/// Most bytes that one sendfile moves.
const FILE_CHUNK: u64 = 64 << 10;

/// `sendfile` to an owned connection: the file's bytes go through the buffer and, since the file may be
/// another one when the log is replayed, through the log.
pub(crate) fn send_file(t: &ThreadBlock, shape: &Shape, index: u32) -> i64 {
    let c = entry(index);
    if log::now() == Mode::Replay
        && let Some(taken) = log::take(t, kind::OUTPUT)
    {
        return replay_file(taken, shape, c, index);
    }
    let [_, file, offset, count, ..] = shape.args;
    lock(c);
    let result = loop {
        if let Some(error) = broken(c) {
            break refuse(t, shape, error);
        }
        let at = c.written.load(Relaxed) % OUTPUT_LEN;
        let n = count.min(room(c)).min(OUTPUT_LEN - at).min(FILE_CHUNK);
        if n == 0 && count > 0 {
            if is_nonblocking(shape.args[0]) {
                epoll::mute(index, c);
                if room(c) == 0 {
                    break refuse(t, shape, -raw::EAGAIN);
                }
            } else {
                wait_for_room(c);
            }
            continue;
        }
        break take_file(t, shape, index, [file, offset, n], at);
    };
    c.lock.store(0, Release);
    if result == -EPIPE {
        broken_pipe(t, shape);
    }
    result
}

fn take_file(
    t: &ThreadBlock,
    shape: &Shape,
    index: u32,
    [file, offset, n]: [u64; 3],
    at: u64,
) -> i64 {
    const PREAD: u64 = 17;
    let to = ARENA_BASE + OUTPUTS_AT + u64::from(index) * OUTPUT_LEN + at;
    let got = if offset == 0 {
        raw::call(nr::READ, [file, to, n, 0, 0, 0])
    } else {
        let from = user::read::<u64>(offset).unwrap_or(0);
        raw::call(PREAD, [file, to, n, from, 0, 0])
    };
    if got <= 0 {
        return refuse(t, shape, got);
    }
    let got = got.cast_unsigned();
    move_offset(offset, got);
    commit(
        t,
        shape,
        index,
        Run::Flat(to, got).part(0, got),
        got,
        WITH_BYTES,
    );
    got.cast_signed()
}

fn move_offset(offset: u64, by: u64) {
    if offset != 0 {
        let from = user::read::<u64>(offset).unwrap_or(0);
        let _ = user::write(offset, &(from + by));
    }
}

fn replay_file(taken: Taken<'_>, shape: &Shape, c: &Conn, index: u32) -> i64 {
    taken.check_hash(shape.hash());
    let result = taken.header.result;
    if result > 0 {
        let mut block = [0_u8; 1024];
        let (mut done, n) = (0, result.cast_unsigned().min(MAX_PAYLOAD as u64));
        while done < n {
            let len = (n - done).min(1024);
            let _ = taken.get(OUTPUT_HEAD + done, block.as_mut_ptr() as u64, len);
            let _ = put(
                index,
                c.written.load(Relaxed) + done,
                block.as_ptr() as u64,
                len,
            );
            done += len;
        }
        publish(&taken, c);
        move_offset(shape.args[2], n);
    }
    taken.finish();
    result
}
