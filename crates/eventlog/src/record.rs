//! One event of one thread: the fixed header and the payload behind it.
//!
//! A stream (one thread's log, from its first to its last event) is these records one after another,
//! without gaps. All integers are little-endian, every record starts at a multiple of eight.
//!
//! Short form, 16 bytes, for events without payload, version or first argument (clock reads, uncontended
//! locks, plain results):
//!
//! ```text
//!  0        2        4                 8                                16
//!  | kind   | hash   | ticks           | result                         |
//! ```
//!
//! Long form, 32 bytes and a payload padded with zeroes to a multiple of eight; bit 15 of `kind` is set:
//!
//! ```text
//!  0        2        4                 8                                16
//!  | kind   | hash   | ticks           | result                         |
//!  | payload length  | arg0            | version                        |
//!  16                20                24                               32
//!  | payload, padded                                                    |
//! ```
//!
//! * `kind`: a system-call number (0 to 1023) or one of [`kind`]'s own (1024 to 16383). Bit 14 is set when
//!   the record behind this one is a signal that was delivered at the call's end.
//! * `hash`: [`fold_hash`] of the call's scalar arguments; replay compares it.
//! * `ticks`: time since the thread's last record (a thread's first: since its creator's last), as
//!   [`ticks_of`] packs it: exact up to some seconds, beyond that to 27 digits.
//! * `result`: what the call returned (−errno on failure), or the event's own value.
//! * `arg0`: the call's first argument cut to 32 bits: for most calls, the descriptor.
//! * `version`: of the shared object that the call was ordered by; for an output call, the hash of the
//!   bytes that were accepted.

/// Bytes of a short record.
pub const SHORT_LEN: usize = 16;
/// Bytes of a long record without its payload.
pub const LONG_LEN: usize = 32;
/// Set in the stored `kind` of a long record.
pub const LONG_FLAG: u16 = 0x8000;
/// Set in the stored `kind` when a signal was delivered at the call's end: its record follows.
pub const SIGNAL_FLAG: u16 = 0x4000;
/// Most bytes of payload in one record: larger transfers are split by the guest into several calls.
pub const MAX_PAYLOAD: usize = 512 << 10;
/// Cycles of the time-stamp counter are stored divided by two to this power.
pub const TICK_SHIFT: u32 = 6;
/// Digits of packed ticks; the bits above are the power of two they are multiplied by.
const TICK_DIGITS: u32 = 27;

/// Packs a number of cycles. What is cut off is no more than one part in 2^26, or one unit.
#[inline]
#[must_use]
pub const fn ticks_of(cycles: u64) -> u32 {
    let units = cycles >> TICK_SHIFT;
    let power = (u64::BITS - units.leading_zeros()).saturating_sub(TICK_DIGITS);
    (units >> power) as u32 | power << TICK_DIGITS
}

/// The number of cycles that was packed, or somewhat less.
#[inline]
#[must_use]
pub const fn cycles_of(ticks: u32) -> u64 {
    let (digits, power) = (ticks & ((1 << TICK_DIGITS) - 1), ticks >> TICK_DIGITS);
    // A power that nothing was packed with loses digits, and nothing else.
    ((digits as u64) << power) << TICK_SHIFT
}

/// Offset of `kind` in a stored record.
pub const KIND_AT: usize = 0;
/// Offset of `hash`.
pub const HASH_AT: usize = 2;
/// Offset of `ticks`.
pub const TICKS_AT: usize = 4;
/// Offset of `result`.
pub const RESULT_AT: usize = 8;
/// Offset of the payload's length (long form).
pub const PAYLOAD_LEN_AT: usize = 16;
/// Offset of `arg0` (long form).
pub const ARG0_AT: usize = 20;
/// Offset of `version` (long form).
pub const VERSION_AT: usize = 24;

/// Hash of a SIGNAL that was delivered in the application's own code, at a place that the record tells.
pub const SIGNAL_AT_PLACE: u16 = 4;

/// Kinds of record that are not system calls.
pub mod kind {
    /// First record of a program image. Payload: the 16 bytes that AT_RANDOM points to, then the numbers
    /// of the descriptors it inherited (32 bits each).
    pub const EXEC: u16 = 1024;
    /// First record of a thread's or child's stream. `result`: its thread number in the container.
    pub const BIRTH: u16 = 1025;
    /// A signal delivered to the application. Payload: the siginfo. `hash`: where (docs/FORMATS.md has the values);
    /// 0 behind a record with the signal flag: at that call's end; 0 otherwise: before the call that follows, which
    /// then starts anew.
    pub const SIGNAL: u16 = 1026;
    /// Clock read through the vDSO. `hash`: the clock; `result`: nanoseconds.
    pub const CLOCK: u16 = 1027;
    /// A lock taken. `result`: the lock's version; bit 62 for a robust mutex whose owner had ended.
    pub const LOCK: u16 = 1028;
    /// An attempt to take a lock. `result`: the lock's version, or −errno.
    pub const TRYLOCK: u16 = 1029;
    /// End of a wait on a condition variable. `result`: 0 or the error; the re-taken lock's record follows.
    pub const CONDWAIT: u16 = 1030;
    /// The thread leaves (`exit`) or its process does (`exit_group`). `result`: the status.
    pub const EXIT: u16 = 1031;
    /// Committed before a call whose effect others can see. `result`: the call; arguments as in its record.
    pub const INTENT: u16 = 1032;
    /// The processor and node that getcpu answered.
    pub const GETCPU: u16 = 1033;
    /// Output accepted on a connection. `arg0`: descriptor; `result`: bytes; `version`: their hash. Payload:
    /// the connection's entry and flags (32 bits each; bit 0: more of the same call follows, bit 1: the
    /// bytes themselves follow), and the position behind the bytes in the connection's stream.
    pub const OUTPUT: u16 = 1034;
    /// A connection got an output entry; just before the record of the accept or connect that made it.
    /// `arg0`: descriptor; `result`: entry; `version`: its generation. Payload: two socket addresses of 28
    /// bytes each, own and peer's.
    pub const CONNECTION: u16 = 1035;
    /// In the primary's own stream: a connection's handshake. `result`: entry; `version`: its generation.
    /// Payload: [`crate::handover`]'s `HandshakeRecord`.
    pub const HANDSHAKE: u16 = 1036;
    /// In the primary's own stream: the container's kernel answers a connection request; before the answer
    /// leaves. Payload: [`crate::handover`]'s `OpeningRecord`.
    pub const OPENING: u16 = 1037;
    /// The thread runs the function of a `pthread_once`. `hash`: the object.
    pub const ONCE: u16 = 1038;
    /// The thread goes on behind others that have run, and has no other record of its own for that (`--serial`).
    /// `result`: how many calls without a record it made since its last one.
    pub const BATON: u16 = 1039;
}

/// A record's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// System-call number or one of [`kind`].
    pub kind: u16,
    /// Hash of the arguments.
    pub hash: u16,
    /// Time since the thread's last record; see [`ticks_of`].
    pub ticks: u32,
    /// The result.
    pub result: i64,
    /// First argument, cut to 32 bits.
    pub arg0: u32,
    /// Version of the shared object, or hash of the output.
    pub version: u64,
    /// Bytes of payload, without padding.
    pub payload_len: u32,
    /// A signal was delivered at the call's end.
    pub signal: bool,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The stream ends inside a record: this many bytes more are needed at least.
    Truncated {
        /// Bytes missing.
        missing: usize,
    },
    /// The payload is longer than [`MAX_PAYLOAD`].
    Oversized {
        /// The length found.
        len: u32,
    },
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated { missing } => write!(f, "record cut short, {missing} bytes missing"),
            Self::Oversized { len } => write!(
                f,
                "record with a payload of {len} bytes, more than {MAX_PAYLOAD}"
            ),
        }
    }
}

impl core::error::Error for Malformed {}

/// A record in place: header and payload, borrowed from the bytes they were read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The header.
    pub header: Header,
    /// The payload, without padding.
    pub payload: &'a [u8],
}

/// Bytes that a record with this payload takes in a stream.
#[must_use]
pub const fn stored_len(long: bool, payload_len: usize) -> usize {
    if long {
        LONG_LEN + payload_len.next_multiple_of(8)
    } else {
        SHORT_LEN
    }
}

impl Header {
    /// True if the short form cannot hold it.
    #[must_use]
    pub const fn needs_long(&self) -> bool {
        self.payload_len != 0 || self.version != 0 || self.arg0 != 0
    }

    /// The stored form; the second value says how many of the bytes count.
    #[must_use]
    pub fn encode(&self) -> ([u8; LONG_LEN], usize) {
        let mut b = [0; LONG_LEN];
        let long = self.needs_long();
        let mut kind = self.kind;
        if long {
            kind |= LONG_FLAG;
        }
        if self.signal {
            kind |= SIGNAL_FLAG;
        }
        b[KIND_AT..HASH_AT].copy_from_slice(&kind.to_le_bytes());
        b[HASH_AT..TICKS_AT].copy_from_slice(&self.hash.to_le_bytes());
        b[TICKS_AT..RESULT_AT].copy_from_slice(&self.ticks.to_le_bytes());
        b[RESULT_AT..PAYLOAD_LEN_AT].copy_from_slice(&self.result.to_le_bytes());
        if !long {
            return (b, SHORT_LEN);
        }
        b[PAYLOAD_LEN_AT..ARG0_AT].copy_from_slice(&self.payload_len.to_le_bytes());
        b[ARG0_AT..VERSION_AT].copy_from_slice(&self.arg0.to_le_bytes());
        b[VERSION_AT..LONG_LEN].copy_from_slice(&self.version.to_le_bytes());
        (b, LONG_LEN)
    }
}

impl Header {
    /// True if the stored header is of the long form.
    #[inline]
    #[must_use]
    pub const fn is_long(bytes: &[u8; LONG_LEN]) -> bool {
        u16_at(bytes, KIND_AT) & LONG_FLAG != 0
    }

    /// Reads a stored header; of a short one, the bytes behind [`SHORT_LEN`] do not count.
    #[inline]
    #[must_use]
    pub const fn parse(bytes: &[u8; LONG_LEN]) -> Self {
        let stored = u16_at(bytes, KIND_AT);
        let long = stored & LONG_FLAG != 0;
        Self {
            kind: stored & !(LONG_FLAG | SIGNAL_FLAG),
            signal: stored & SIGNAL_FLAG != 0,
            hash: u16_at(bytes, HASH_AT),
            ticks: u32_at(bytes, TICKS_AT),
            result: u64_at(bytes, RESULT_AT).cast_signed(),
            payload_len: if long {
                u32_at(bytes, PAYLOAD_LEN_AT)
            } else {
                0
            },
            arg0: if long { u32_at(bytes, ARG0_AT) } else { 0 },
            version: if long { u64_at(bytes, VERSION_AT) } else { 0 },
        }
    }
}

const fn u16_at(b: &[u8; LONG_LEN], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

const fn u32_at(b: &[u8; LONG_LEN], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

const fn u64_at(b: &[u8; LONG_LEN], at: usize) -> u64 {
    u32_at(b, at) as u64 | (u32_at(b, at + 4) as u64) << 32
}

/// Reads the record at the start of `bytes`; the second value is the bytes it took.
///
/// # Errors
/// [`Malformed::Truncated`] if the record is not whole, [`Malformed::Oversized`] if it cannot be one.
pub fn decode(bytes: &[u8]) -> Result<(Record<'_>, usize), Malformed> {
    let need = |n: usize| {
        if bytes.len() < n {
            Err(Malformed::Truncated {
                missing: n - bytes.len(),
            })
        } else {
            Ok(())
        }
    };
    need(SHORT_LEN)?;
    let mut head = [0; LONG_LEN];
    head[..SHORT_LEN].copy_from_slice(&bytes[..SHORT_LEN]);
    if !Header::is_long(&head) {
        return Ok((
            Record {
                header: Header::parse(&head),
                payload: &[],
            },
            SHORT_LEN,
        ));
    }
    need(LONG_LEN)?;
    head.copy_from_slice(&bytes[..LONG_LEN]);
    let header = Header::parse(&head);
    let len = header.payload_len as usize;
    if len > MAX_PAYLOAD {
        return Err(Malformed::Oversized {
            len: header.payload_len,
        });
    }
    let total = stored_len(true, len);
    need(total)?;
    Ok((
        Record {
            header,
            payload: &bytes[LONG_LEN..LONG_LEN + len],
        },
        total,
    ))
}

/// Walks the whole records at the start of `bytes`.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// A walk over `bytes`, which start at a record.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes consumed by the records returned so far.
    #[must_use]
    pub const fn consumed(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.bytes.len() {
            return None;
        }
        match decode(&self.bytes[self.at..]) {
            Ok((record, n)) => {
                self.at += n;
                Some(Ok(record))
            }
            Err(e) => {
                self.bytes = &self.bytes[..self.at];
                Some(Err(e))
            }
        }
    }
}

/// Mixes one word into a running 64-bit hash (multiply and rotate; fast, not cryptographic).
#[inline]
#[must_use]
pub const fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
}

/// Cuts a running hash to the 16 bits a record keeps.
#[inline]
#[must_use]
pub const fn fold_hash(hash: u64) -> u16 {
    let h = hash ^ (hash >> 32);
    (h ^ (h >> 16)) as u16
}

/// Start value of [`mix`].
pub const HASH_SEED: u64 = 0x243f_6a88_85a3_08d3;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn time_is_packed_closely(cycles: u64) {
            let back = cycles_of(ticks_of(cycles));
            prop_assert!(back <= cycles);
            prop_assert!(cycles - back < 64.max(cycles >> 26));
            let again = ticks_of(back);
            prop_assert_eq!(cycles_of(again), back);
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(kind in 0u16..0x4000, signal: bool, hash: u16, ticks: u32, result: i64, arg0: u32,
                                      version: u64, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let header = Header { kind, hash, ticks, result, arg0, version, payload_len: payload.len() as u32, signal };
            let (b, n) = header.encode();
            let mut bytes = b[..n].to_vec();
            bytes.extend_from_slice(&payload);
            bytes.resize(stored_len(header.needs_long(), payload.len()), 0);
            let (got, used) = decode(&bytes).unwrap();
            prop_assert_eq!(got.header, header);
            prop_assert_eq!(got.payload, &payload[..]);
            prop_assert_eq!(used, bytes.len());
            for cut in 0..bytes.len() {
                let cut_short = matches!(decode(&bytes[..cut]), Err(Malformed::Truncated { .. }));
                prop_assert!(cut_short);
            }
        }

        #[test]
        fn any_bytes_are_walked_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut walk = Records::new(&bytes);
            for record in walk.by_ref().flatten() {
                prop_assert!(record.payload.len() <= MAX_PAYLOAD);
            }
            prop_assert!(walk.consumed() <= bytes.len());
        }
    }
}
