//! Events of the calling thread: written when recording, taken and compared in replay.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use eventlog::record::{
    Header, LONG_LEN, MAX_PAYLOAD, SHORT_LEN, cycles_of, kind, stored_len, ticks_of,
};
use guest::abi::{ThreadBlock, failure, mode, slot};

use crate::ring::Ring;
use crate::thread::{control, slot_of};
use crate::{baton, holds, pace, raw, user};

/// What the guest does now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Record,
    Replay,
    Live,
}

/// The container's mode.
#[inline(always)]
pub(crate) fn now() -> Mode {
    match control().mode.load(Acquire) {
        mode::RECORD => Mode::Record,
        mode::REPLAY => Mode::Replay,
        _ => Mode::Live,
    }
}

/// Kinds below this are system calls.
const FIRST_OWN_KIND: u16 = 1024;

/// A record being written.
pub(crate) struct Writer<'a> {
    t: &'a ThreadBlock,
    ring: Ring,
    at: u64,
    end: u64,
}

/// Starts a record: its header is in the ring, not yet committed. `header.payload_len` bytes of payload follow.
#[inline(always)]
pub(crate) fn begin<'a>(t: &'a ThreadBlock, mut header: Header) -> Writer<'a> {
    baton::take(t);
    let last = t.tsc.load(Relaxed);
    header.ticks = ticks_of(raw::cycles().saturating_sub(last));
    // What the packing cuts off is in the next record's.
    t.tsc.store(last + cycles_of(header.ticks), Relaxed);
    t.unlogged.store(0, Relaxed);
    if t.pending.load(Relaxed) != 0 && t.inside.load(Relaxed) == 0 && header.kind < FIRST_OWN_KIND {
        header.signal = true;
        t.follows.store(1, Relaxed);
    }
    let ring = Ring::of(t);
    let at = t.position.load(Relaxed);
    let len = stored_len(header.needs_long(), header.payload_len as usize) as u64;
    ring.reserve(at, len);
    let (bytes, n) = header.encode();
    let _ = ring.put(at, bytes.as_ptr() as u64, n as u64);
    Writer {
        t,
        ring,
        at: at + n as u64,
        end: at + len,
    }
}

impl Writer<'_> {
    /// Adds payload. Bytes behind a bad pointer are logged as zeroes.
    #[inline]
    pub(crate) fn bytes(&mut self, from: u64, len: u64) {
        let len = len.min(self.end - self.at);
        if self.ring.put(self.at, from, len).is_err() {
            self.zeroes(len);
        }
        self.at += len;
    }

    /// Adds one value.
    #[inline]
    pub(crate) fn value<T: user::Plain>(&mut self, value: T) {
        self.bytes((&raw const value) as u64, size_of::<T>() as u64);
    }

    /// Ends the record without committing it: the next one of this thread commits both.
    pub(crate) fn defer(mut self) {
        self.pad();
        self.t.position.store(self.end, Relaxed);
    }

    fn pad(&mut self) {
        if self.at < self.end {
            let left = self.end - self.at;
            self.zeroes(left);
            self.at = self.end;
        }
    }

    fn zeroes(&mut self, len: u64) {
        let zero = [0_u8; 64];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(64);
            let _ = self.ring.put(self.at + done, zero.as_ptr() as u64, n);
            done += n;
        }
    }

    /// Commits the record. `urgent`: somebody waits for what it releases.
    #[inline(always)]
    pub(crate) fn commit(mut self, urgent: bool) {
        self.pad();
        self.t.position.store(self.end, Relaxed);
        self.ring.commit(self.end, urgent);
    }
}

/// Writes a record without payload.
#[inline(always)]
pub(crate) fn emit(t: &ThreadBlock, header: Header) {
    begin(t, header).commit(false);
}

/// A record taken from the log in replay; its payload is still in the ring until it is [`Taken::finish`]ed.
pub(crate) struct Taken<'a> {
    pub(crate) header: Header,
    t: &'a ThreadBlock,
    ring: Ring,
    payload_at: u64,
    end: u64,
}

/// Looks at the next record without taking it. `None` at the log's end.
#[inline(always)]
pub(crate) fn peek(t: &ThreadBlock) -> Option<Taken<'_>> {
    let ring = Ring::of(t);
    let at = t.position.load(Relaxed);
    if !ring.wait_for(at + SHORT_LEN as u64) {
        return None;
    }
    let mut bytes = [0_u8; LONG_LEN];
    let _ = ring.get(at, bytes.as_mut_ptr() as u64, SHORT_LEN as u64);
    let long = Header::is_long(&bytes);
    let mut head_len = SHORT_LEN as u64;
    if long {
        head_len = LONG_LEN as u64;
        if !ring.wait_for(at + head_len) {
            return None;
        }
        let _ = ring.get(at, bytes.as_mut_ptr() as u64, head_len);
    }
    let header = Header::parse(&bytes);
    if header.payload_len as usize > MAX_PAYLOAD {
        diverge(t, failure::CALL, u64::from(header.payload_len), 0);
    }
    let end = at + stored_len(long, header.payload_len as usize) as u64;
    if !ring.wait_for(end) {
        return None;
    }
    t.record.store(at, Relaxed);
    Some(Taken {
        header,
        t,
        ring,
        payload_at: at + head_len,
        end,
    })
}

/// Takes the next record, which must be of this kind. `None` when the log is at its end and the call has to
/// be made live.
#[inline(always)]
pub(crate) fn take(t: &ThreadBlock, kind: u16) -> Option<Taken<'_>> {
    pace::arrive(t);
    match peek_behind(t) {
        Some(taken) => {
            if taken.header.kind != kind {
                diverge(
                    t,
                    failure::CALL,
                    u64::from(taken.header.kind),
                    u64::from(kind),
                );
            }
            Some(taken)
        }
        None => {
            await_end(t);
            None
        }
    }
}

/// Looks at the next record behind a place where the thread waited for others, which was to come before.
pub(crate) fn peek_behind(t: &ThreadBlock) -> Option<Taken<'_>> {
    loop {
        match peek(t) {
            Some(waited) if waited.header.kind == kind::BATON => waited.finish(),
            other => return other,
        }
    }
}

/// Waits at the log's end until replay is over.
pub(crate) fn await_end(t: &ThreadBlock) {
    Ring::of(t).park();
    crate::signals::let_in(t);
}

impl Taken<'_> {
    /// Copies payload out.
    #[inline]
    pub(crate) fn get(&self, offset: u64, to: u64, len: u64) -> Result<(), user::Fault> {
        let have = u64::from(self.header.payload_len).saturating_sub(offset);
        self.ring.get(self.payload_at + offset, to, len.min(have))
    }

    /// Reads one value of the payload.
    #[inline]
    pub(crate) fn value<T: user::Plain + Default>(&self, offset: u64) -> T {
        let mut value = T::default();
        let _ = self.get(offset, (&raw mut value) as u64, size_of::<T>() as u64);
        value
    }

    /// Compares the argument hash.
    #[inline(always)]
    pub(crate) fn check_hash(&self, hash: u16) {
        if self.header.hash != hash {
            let kind = u64::from(self.header.kind) << 32;
            diverge(
                self.t,
                failure::ARGUMENTS,
                kind | u64::from(self.header.hash),
                kind | u64::from(hash),
            );
        }
    }

    /// Compares a part of the payload with bytes that the program passed.
    pub(crate) fn check_bytes(&self, offset: u64, at: u64, len: u64) {
        let (mut logged, mut passed) = ([0_u8; 256], [0_u8; 256]);
        let (mut done, have) = (0, u64::from(self.header.payload_len));
        while done < len {
            let n = (len - done).min(256);
            let whole = offset + done + n <= have;
            let _ = self.get(offset + done, logged.as_mut_ptr() as u64, n);
            // What cannot be read was not read when it was recorded either.
            if user::copy(passed.as_mut_ptr() as u64, at + done, n).is_err() {
                return;
            }
            let n = n as usize;
            if !whole || logged[..n] != passed[..n] {
                self.wrong_payload(offset + done);
            }
            done += n as u64;
        }
    }

    /// Compares one value of the payload with the program's.
    pub(crate) fn check_value<T: user::Plain + Default + PartialEq>(&self, offset: u64, value: T) {
        if self.value::<T>(offset) != value {
            self.wrong_payload(offset);
        }
    }

    /// The parts of the payload end here, as it does, if it is there at all.
    #[inline]
    pub(crate) fn check_end(&self, end: u64) {
        let len = u64::from(self.header.payload_len);
        if len != 0 && len != end {
            self.wrong_payload(end.min(len));
        }
    }

    #[cold]
    fn wrong_payload(&self, offset: u64) -> ! {
        let kind = u64::from(self.header.kind);
        diverge(self.t, failure::PAYLOAD, offset, kind)
    }

    /// Consumes the record.
    #[inline(always)]
    pub(crate) fn finish(self) {
        let time = self
            .t
            .tsc
            .load(Relaxed)
            .saturating_add(cycles_of(self.header.ticks));
        pace::await_time(self.t, time);
        let hold = holds::at(self.t);
        self.t.tsc.store(time, Relaxed);
        self.t.unlogged.store(0, Relaxed);
        if self.header.signal {
            self.t.follows.store(1, Relaxed);
        }
        self.t.position.store(self.end, Relaxed);
        self.ring.consumed(self.end, time);
        pace::moved();
        holds::stay(hold);
    }
}

/// Reports that replay left the log and stops here for good.
#[cold]
pub(crate) fn diverge(t: &ThreadBlock, code: u32, expected: u64, actual: u64) -> ! {
    let f = &control().failure;
    if f.code
        .compare_exchange(0, failure::CLAIMED, Relaxed, Relaxed)
        .is_ok()
    {
        f.stream.store(t.stream.load(Relaxed), Relaxed);
        f.position.store(t.position.load(Relaxed), Relaxed);
        f.expected.store(expected, Relaxed);
        f.actual.store(actual, Relaxed);
        f.code.store(code, Release);
    }
    slot_of(t.slot.load(Relaxed))
        .state
        .store(slot::LOST, Release);
    crate::ring::wake_drainer();
    loop {
        raw::futex_wait(&f.code, code);
    }
}
