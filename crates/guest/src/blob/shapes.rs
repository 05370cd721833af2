//! Buffers of a call, walked as its row says: for the log, for replay, for hashes.
//!
//! A payload is, for a row with `capture`, the arguments (64 bits each) and each buffer that the call read
//! (32-bit length, bytes); then each buffer that it filled (32-bit length, bytes).

use eventlog::record::{HASH_SEED, MAX_PAYLOAD, fold_hash, mix};
use sysabi::{Arg, Len, Syscall};

use crate::hashes;
use crate::log::{Taken, Writer};
use crate::user::{self, Fault};

/// Longest string or buffer of input that a record keeps.
const MAX_INPUT: u64 = 64 << 10;
/// Longest string.
const MAX_STRING: u64 = 4096;
/// Most entries of an iovec (`UIO_MAXIOV`).
const MAX_VECTORS: u64 = 1024;

/// Offsets in `struct msghdr`.
mod msg {
    pub(super) const NAME: u64 = 0;
    pub(super) const NAME_LEN: u64 = 8;
    pub(super) const VECTOR: u64 = 16;
    pub(super) const COUNT: u64 = 24;
    pub(super) const CONTROL: u64 = 32;
    pub(super) const CONTROL_LEN: u64 = 40;
    pub(super) const FLAGS: u64 = 48;
}

/// A call with what is known of its buffers before it is made.
pub(crate) struct Shape {
    pub(crate) row: &'static Syscall,
    pub(crate) args: [u64; 6],
    pub(crate) kinds: [Arg; 6],
    /// What length words (`socklen_t`) said before the call.
    before: [u32; 6],
    /// For a received message: room for name and control data.
    message: [u32; 2],
}

impl Shape {
    /// Looks at the arguments. `None` if the call's command is not supported.
    #[inline(always)]
    pub(crate) fn of(row: &'static Syscall, args: [u64; 6]) -> Option<Self> {
        let kinds = row.shape(&args)?;
        let mut shape = Self {
            row,
            args,
            kinds,
            before: [0; 6],
            message: [0; 2],
        };
        for i in 0..6 {
            match kinds[i] {
                // Without a buffer (`recv` is `recvfrom` without an address) there is no length either, and looking
                // for one would fault.
                Arg::Out(Len::Pointee(word)) | Arg::InOut(Len::Pointee(word)) if args[i] != 0 => {
                    shape.before[i] = user::read(args[usize::from(word) % 6]).unwrap_or(0);
                }
                Arg::OutMsg => {
                    shape.message = [
                        user::read(args[i] + msg::NAME_LEN).unwrap_or(0),
                        user::read::<u64>(args[i] + msg::CONTROL_LEN).unwrap_or(0) as u32,
                    ];
                }
                _ => {}
            }
        }
        Some(shape)
    }

    /// Hash of the scalar arguments.
    #[inline(always)]
    pub(crate) fn hash(&self) -> u16 {
        let mut h = HASH_SEED;
        for (kind, arg) in self.kinds.iter().zip(self.args) {
            match kind {
                Arg::Int => h = mix(h, arg),
                Arg::Fd => h = mix(h, u64::from(arg as u32)),
                _ => {}
            }
        }
        fold_hash(h)
    }

    fn len_of(&self, i: usize, len: Len, result: i64) -> u64 {
        if self.args[i] == 0 {
            return 0;
        }
        let pointee = match len {
            Len::Pointee(word) => user::read::<u32>(self.args[usize::from(word) % 6])
                .unwrap_or(0)
                .min(self.before[i]),
            _ => 0,
        };
        match len.bytes(&self.args, result, pointee) {
            Some(n) => n,
            None => user::string_len(self.args[i], MAX_STRING).unwrap_or(0),
        }
    }

    /// Calls `visit` with address and length of each input that a capturing record keeps.
    fn inputs(&self, mut visit: impl FnMut(u64, u64)) {
        for i in 0..6 {
            if let Arg::In(len) | Arg::InOut(len) = self.kinds[i] {
                visit(self.args[i], self.len_of(i, len, 0).min(MAX_INPUT));
            }
        }
    }

    /// Calls `visit` for each run of bytes that the call filled.
    fn outputs(&self, result: i64, mut visit: impl FnMut(Run)) {
        for i in 0..6 {
            match self.kinds[i] {
                Arg::Out(len) | Arg::InOut(len) => {
                    visit(Run::Flat(
                        self.args[i],
                        self.len_of(i, len, result).min(MAX_PAYLOAD as u64),
                    ));
                }
                Arg::OutVec => {
                    let count = self.args[(i + 1) % 6];
                    visit(Run::Vector(
                        self.args[i],
                        count,
                        u64::try_from(result).unwrap_or(0),
                    ));
                }
                Arg::OutMsg => self.message_runs(self.args[i], result, &mut visit),
                _ => {}
            }
        }
    }

    fn message_runs(&self, header: u64, result: i64, visit: &mut impl FnMut(Run)) {
        let word = |at: u64| user::read::<u64>(header + at).unwrap_or(0);
        let name_len = user::read::<u32>(header + msg::NAME_LEN)
            .unwrap_or(0)
            .min(self.message[0]);
        let control_len = (word(msg::CONTROL_LEN) as u32).min(self.message[1]);
        let (name, control) = (word(msg::NAME), word(msg::CONTROL));
        visit(Run::Flat(
            name,
            if name == 0 { 0 } else { u64::from(name_len) },
        ));
        visit(Run::Flat(
            control,
            if control == 0 {
                0
            } else {
                u64::from(control_len)
            },
        ));
        visit(Run::Flat(header + msg::FLAGS, 4));
        visit(Run::Vector(
            word(msg::VECTOR),
            word(msg::COUNT),
            u64::try_from(result).unwrap_or(0),
        ));
    }

    fn captures(&self, result: i64) -> bool {
        self.row.captures(result)
    }

    fn fills(&self, result: i64) -> bool {
        self.row.fills(result)
    }

    /// Bytes of the payload of this call's record.
    #[inline(always)]
    pub(crate) fn payload_len(&self, result: i64) -> u64 {
        let mut n = 0;
        if self.captures(result) {
            n += 8 * self.row.arity() as u64;
            self.inputs(|_, len| n += 4 + len);
        }
        if self.fills(result) {
            self.outputs(result, |run| n += 4 + run.len());
        }
        n
    }

    /// Writes the payload.
    #[inline(always)]
    pub(crate) fn write(&self, result: i64, w: &mut Writer<'_>) {
        if self.captures(result) {
            for arg in &self.args[..self.row.arity()] {
                w.value(*arg);
            }
            self.inputs(|at, len| {
                w.value(len as u32);
                w.bytes(at, len);
            });
        }
        if self.fills(result) {
            self.outputs(result, |run| {
                w.value(run.len() as u32);
                run.each(|at, n| w.bytes(at, n));
            });
        }
    }

    /// Compares a record with the arguments of this call: their hash and, of what it keeps, what has no bytes that a
    /// program may leave undefined.
    #[inline(always)]
    pub(crate) fn check(&self, taken: &Taken<'_>) {
        taken.check_hash(self.hash());
        if taken.header.payload_len != 0 && self.captures(taken.header.result) {
            self.check_kept(taken);
        }
    }

    fn check_kept(&self, taken: &Taken<'_>) {
        let mut at = 0;
        for (kind, arg) in self.kinds.iter().zip(self.args).take(self.row.arity()) {
            match kind {
                Arg::Int => taken.check_value(at, arg),
                Arg::Fd => taken.check_value(at, arg as u32),
                _ => {}
            }
            at += 8;
        }
        for i in 0..6 {
            if let Arg::In(len) | Arg::InOut(len) = self.kinds[i] {
                let logged = u64::from(taken.value::<u32>(at));
                if matches!(len, Len::CStr) {
                    taken.check_value(at, self.len_of(i, len, 0).min(MAX_INPUT) as u32);
                    taken.check_bytes(at + 4, self.args[i], logged);
                }
                at += 4 + logged;
            }
        }
    }

    /// Fills the application's buffers from a record.
    #[inline(always)]
    pub(crate) fn fill(&self, taken: &Taken<'_>) {
        let result = taken.header.result;
        let mut at = 0;
        if self.captures(result) {
            at += 8 * self.row.arity() as u64;
            self.inputs(|_, _| at += 4 + u64::from(taken.value::<u32>(at)));
        }
        if !self.fills(result) {
            return;
        }
        for i in 0..6 {
            match self.kinds[i] {
                Arg::Out(_) | Arg::InOut(_) => self.fill_flat(taken, &mut at, self.args[i]),
                Arg::OutVec => fill_vector(taken, &mut at, self.args[i], self.args[(i + 1) % 6]),
                Arg::OutMsg => self.fill_message(taken, &mut at, self.args[i]),
                _ => {}
            }
        }
        taken.check_end(at);
    }

    fn fill_flat(&self, taken: &Taken<'_>, at: &mut u64, to: u64) {
        let len = u64::from(taken.value::<u32>(*at));
        let _ = taken.get(*at + 4, to, len);
        *at += 4 + len;
    }

    fn fill_message(&self, taken: &Taken<'_>, at: &mut u64, header: u64) {
        let word = |offset: u64| user::read::<u64>(header + offset).unwrap_or(0);
        let name_len = taken.value::<u32>(*at);
        self.fill_flat(taken, at, word(msg::NAME));
        let control_len = taken.value::<u32>(*at);
        self.fill_flat(taken, at, word(msg::CONTROL));
        self.fill_flat(taken, at, header + msg::FLAGS);
        let _ = user::write(header + msg::NAME_LEN, &name_len);
        let _ = user::write(header + msg::CONTROL_LEN, &u64::from(control_len));
        fill_vector(taken, at, word(msg::VECTOR), word(msg::COUNT));
    }
}

fn fill_vector(taken: &Taken<'_>, at: &mut u64, vector: u64, count: u64) {
    let len = u64::from(taken.value::<u32>(*at));
    *at += 4;
    let mut from = *at;
    Run::Vector(vector, count, len).each(|to, n| {
        let _ = taken.get(from, to, n);
        from += n;
    });
    *at += len;
}

/// Bytes in the application's memory.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// At one place.
    Flat(u64, u64),
    /// Over an iovec (address, count), so many bytes in all.
    Vector(u64, u64, u64),
}

impl Run {
    /// Bytes of the run.
    pub(crate) const fn len(self) -> u64 {
        match self {
            Self::Flat(_, n) | Self::Vector(_, _, n) => n,
        }
    }

    /// So many bytes of the run, from an offset on.
    pub(crate) fn part(self, from: u64, n: u64) -> Part {
        Part { run: self, from, n }
    }

    /// Calls `visit` with address and length of each piece.
    #[inline(always)]
    pub(crate) fn each(self, mut visit: impl FnMut(u64, u64)) {
        match self {
            Self::Flat(at, n) => {
                if n > 0 {
                    visit(at, n);
                }
            }
            Self::Vector(vector, count, mut left) => {
                for i in 0..count.min(MAX_VECTORS) {
                    if left == 0 {
                        break;
                    }
                    let Ok([at, len]) = user::read::<[u64; 2]>(vector + i * 16) else {
                        break;
                    };
                    let n = len.min(left);
                    if n > 0 {
                        visit(at, n);
                    }
                    left -= n;
                }
            }
        }
    }

    /// Bytes an iovec holds in all.
    pub(crate) fn vector_len(vector: u64, count: u64) -> Result<u64, Fault> {
        let mut n = 0_u64;
        for i in 0..count.min(MAX_VECTORS) {
            n = n.saturating_add(user::read::<[u64; 2]>(vector + i * 16)?[1]);
        }
        Ok(n)
    }

    /// Hash of the bytes.
    pub(crate) fn hash(self) -> u64 {
        self.part(0, self.len()).hash()
    }
}

/// A part of a run.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    run: Run,
    from: u64,
    n: u64,
}

impl Part {
    /// Calls `visit` with address and length of each piece.
    #[inline(always)]
    pub(crate) fn each(self, mut visit: impl FnMut(u64, u64)) {
        let (mut skip, mut left) = (self.from, self.n);
        self.run.each(|at, len| {
            let skipped = skip.min(len);
            skip -= skipped;
            let n = (len - skipped).min(left);
            left -= n;
            if n > 0 {
                visit(at + skipped, n);
            }
        });
    }

    /// Hash of the bytes.
    pub(crate) fn hash(self) -> u64 {
        let mut h = HASH_SEED;
        self.each(|at, n| h = hashes::piece(h, at, n));
        // Zero would make a record without output look like one that has no hash.
        h | 1
    }
}
