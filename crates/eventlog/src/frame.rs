//! Frames: the unit on the wire between primary and backup, and in the file of an offline recording.
//!
//! A frame is a header of 40 bytes and a body of at most [`MAX_BODY`] bytes. All integers are
//! little-endian:
//!
//! ```text
//!  0             4        6      7      8                             16
//!  | magic       | version| kind | zero | generation                  |
//!  | stream      | length             | position                      |
//!  16            20                   24                              32
//!  | flags, zero | CRC32C | body ...
//!  32            36       40          40 + length
//! ```
//!
//! * `magic`: [`MAGIC`], the letters `USFR`.
//! * `version`: [`VERSION`]; a reader accepts its own alone.
//! * `kind`: one of [`Kind`].
//! * `generation`: how many takeovers the container has behind it; 0 in a file.
//! * `stream`: the thread's log that a run of records belongs to; 0 where there is none.
//! * `length`: bytes of the body.
//! * `position`: of the body's first byte in its stream, or the number that the kind defines.
//! * `CRC32C`: of the header's first 36 bytes followed by the body.
//!
//! The two fields marked zero are zero; a reader refuses anything else, so that they can be used later.

mod decoder;
pub mod file;

pub use decoder::{Decoder, Span};

/// First word of every frame.
pub const MAGIC: u32 = u32::from_le_bytes(*b"USFR");
/// Version of this layout and of everything inside it.
pub const VERSION: u16 = 1;
/// Bytes of a header.
pub const HEADER_LEN: usize = 40;
/// Most bytes of a body.
pub const MAX_BODY: usize = 1 << 20;
/// Most bytes of a whole frame.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_BODY;

/// Offset of the magic.
pub const MAGIC_AT: usize = 0;
/// Offset of the version.
pub const VERSION_AT: usize = 4;
/// Offset of the kind.
pub const KIND_AT: usize = 6;
/// Offset of the first byte that is zero.
pub const ZERO_AT: usize = 7;
/// Offset of the generation.
pub const GENERATION_AT: usize = 8;
/// Offset of the stream's number.
pub const STREAM_AT: usize = 16;
/// Offset of the body's length.
pub const LENGTH_AT: usize = 20;
/// Offset of the position.
pub const POSITION_AT: usize = 24;
/// Offset of the flags, which are zero.
pub const FLAGS_AT: usize = 32;
/// Offset of the checksum.
pub const CRC_AT: usize = 36;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// First frame of a file: metadata in the body.
    Meta = 1,
    /// A run of records of `stream`, whose first byte is at `position`.
    Records = 2,
    /// Last frame of a file; `position` counts the frames before it.
    End = 3,
    /// Everything drained up to here belongs to drain `position`: the backup acknowledges that number.
    Drain = 4,
    /// The backup holds every drain up to and with `position`.
    Ack = 5,
    /// First frame each side of a connection sends: who it is and what it wants.
    Hello = 6,
    /// A heartbeat or its answer.
    Heartbeat = 7,
    /// A part of a checkpoint; the body says which.
    Checkpoint = 8,
    /// A control message.
    Control = 9,
}

impl Kind {
    /// The kind stored as `byte`.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Meta,
            2 => Self::Records,
            3 => Self::End,
            4 => Self::Drain,
            5 => Self::Ack,
            6 => Self::Hello,
            7 => Self::Heartbeat,
            8 => Self::Checkpoint,
            9 => Self::Control,
            _ => return None,
        })
    }
}

/// A frame's header, without what the body decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: Kind,
    /// Takeovers so far.
    pub generation: u64,
    /// The stream, or 0.
    pub stream: u32,
    /// Position in the stream, or the number that the kind defines.
    pub position: u64,
}

/// A frame in place: its body is borrowed from the bytes it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// The body, checked.
    pub body: &'a [u8],
}

/// Why bytes are not a frame. `at` is the offset of the frame's first byte since the start of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No frame starts here.
    #[error("no frame at byte {at}: it starts with {found:#010x}")]
    BadMagic {
        /// Offset of the frame.
        at: u64,
        /// The first word.
        found: u32,
    },
    /// A frame of another version.
    #[error(
        "frame at byte {at} has format version {theirs}, this build reads version {ours}: use the same build on both sides"
    )]
    Version {
        /// Offset of the frame.
        at: u64,
        /// The frame's version.
        theirs: u16,
        /// [`VERSION`].
        ours: u16,
    },
    /// A kind that no [`Kind`] stands for.
    #[error("frame at byte {at} is of unknown kind {found}")]
    BadKind {
        /// Offset of the frame.
        at: u64,
        /// The byte.
        found: u8,
    },
    /// A field that must be zero is not.
    #[error("frame at byte {at} has {found:#x} where zero must be")]
    Reserved {
        /// Offset of the frame.
        at: u64,
        /// The value.
        found: u32,
    },
    /// A body longer than [`MAX_BODY`].
    #[error("frame at byte {at} has a body of {len} bytes, more than {MAX_BODY}")]
    Oversized {
        /// Offset of the frame.
        at: u64,
        /// The length.
        len: u64,
    },
    /// The checksum does not fit: a bit was flipped.
    #[error(
        "frame at byte {at} is damaged: checksum {found:#010x}, but its bytes give {computed:#010x}"
    )]
    Checksum {
        /// Offset of the frame.
        at: u64,
        /// The checksum stored.
        found: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The input ends inside a frame.
    #[error("frame at byte {at} is cut short, {missing} bytes missing")]
    Truncated {
        /// Offset of the frame.
        at: u64,
        /// Bytes missing at least.
        missing: u64,
    },
}

impl Header {
    /// The header of a frame that belongs to no stream.
    #[must_use]
    pub const fn of(kind: Kind, generation: u64, position: u64) -> Self {
        Self {
            kind,
            generation,
            stream: 0,
            position,
        }
    }

    /// The stored header of a frame whose body is `parts` one after another.
    ///
    /// A caller with room for the body elsewhere (a vectored write, a ring that wraps) needs no copy.
    ///
    /// # Errors
    /// [`FrameError::Oversized`] above [`MAX_BODY`] bytes.
    pub fn seal(&self, parts: &[&[u8]]) -> Result<[u8; HEADER_LEN], FrameError> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        if len > MAX_BODY {
            return Err(FrameError::Oversized {
                at: 0,
                len: len as u64,
            });
        }
        let mut b = [0; HEADER_LEN];
        b[MAGIC_AT..VERSION_AT].copy_from_slice(&MAGIC.to_le_bytes());
        b[VERSION_AT..KIND_AT].copy_from_slice(&VERSION.to_le_bytes());
        b[KIND_AT] = self.kind as u8;
        b[GENERATION_AT..STREAM_AT].copy_from_slice(&self.generation.to_le_bytes());
        b[STREAM_AT..LENGTH_AT].copy_from_slice(&self.stream.to_le_bytes());
        b[LENGTH_AT..POSITION_AT].copy_from_slice(&(len as u32).to_le_bytes());
        b[POSITION_AT..FLAGS_AT].copy_from_slice(&self.position.to_le_bytes());
        let crc = parts
            .iter()
            .fold(crc32c::crc32c(&b[..CRC_AT]), |crc, part| {
                crc32c::crc32c_append(crc, part)
            });
        b[CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        Ok(b)
    }

    /// Appends the frame with this header and the body `parts` to `out`.
    ///
    /// # Errors
    /// [`FrameError::Oversized`] above [`MAX_BODY`] bytes; `out` is then as it was.
    pub fn encode(&self, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let head = self.seal(parts)?;
        out.extend_from_slice(&head);
        for part in parts {
            out.extend_from_slice(part);
        }
        Ok(())
    }
}

/// Reads the frame at the start of `bytes`, which lie at `at` in their input: the frame and the bytes it
/// took, or the bytes that are missing at least. A header that cannot be right is refused before its body
/// has come.
///
/// # Errors
/// Any of [`FrameError`] but [`FrameError::Truncated`].
pub fn decode(bytes: &[u8], at: u64) -> Result<Result<(Frame<'_>, usize), usize>, FrameError> {
    if bytes.len() >= 4 && word(bytes, MAGIC_AT) != MAGIC {
        return Err(FrameError::BadMagic {
            at,
            found: word(bytes, MAGIC_AT),
        });
    }
    if bytes.len() < HEADER_LEN {
        return Ok(Err(HEADER_LEN - bytes.len()));
    }
    let theirs = u16::from_le_bytes([bytes[VERSION_AT], bytes[VERSION_AT + 1]]);
    if theirs != VERSION {
        return Err(FrameError::Version {
            at,
            theirs,
            ours: VERSION,
        });
    }
    let len = word(bytes, LENGTH_AT);
    if len as usize > MAX_BODY {
        return Err(FrameError::Oversized {
            at,
            len: u64::from(len),
        });
    }
    let total = HEADER_LEN + len as usize;
    if bytes.len() < total {
        return Ok(Err(total - bytes.len()));
    }
    let body = &bytes[HEADER_LEN..total];
    let found = word(bytes, CRC_AT);
    let computed = crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_AT]), body);
    if found != computed {
        return Err(FrameError::Checksum {
            at,
            found,
            computed,
        });
    }
    let kind = Kind::from_byte(bytes[KIND_AT]).ok_or(FrameError::BadKind {
        at,
        found: bytes[KIND_AT],
    })?;
    for found in [u32::from(bytes[ZERO_AT]), word(bytes, FLAGS_AT)] {
        if found != 0 {
            return Err(FrameError::Reserved { at, found });
        }
    }
    let header = Header {
        kind,
        generation: long(bytes, GENERATION_AT),
        stream: word(bytes, STREAM_AT),
        position: long(bytes, POSITION_AT),
    };
    Ok(Ok((Frame { header, body }, total)))
}

fn word(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn long(b: &[u8], at: usize) -> u64 {
    u64::from(word(b, at)) | u64::from(word(b, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn header() -> impl Strategy<Value = Header> {
        (1u8..=9, any::<u64>(), any::<u32>(), any::<u64>()).prop_map(
            |(k, generation, stream, position)| Header {
                kind: Kind::from_byte(k).unwrap(),
                generation,
                stream,
                position,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(h in header(), body in proptest::collection::vec(any::<u8>(), 0..300), split in 0usize..300) {
            let split = split.min(body.len());
            let mut bytes = Vec::new();
            h.encode(&[&body[..split], &body[split..]], &mut bytes).unwrap();
            let (frame, used) = decode(&bytes, 0).unwrap().unwrap();
            prop_assert_eq!(frame, Frame { header: h, body: &body });
            prop_assert_eq!(used, bytes.len());
            for cut in 0..bytes.len() {
                prop_assert!(matches!(decode(&bytes[..cut], 0), Ok(Err(missing)) if missing <= bytes.len() - cut));
            }
        }

        #[test]
        fn every_flipped_bit_is_found(h in header(), body in proptest::collection::vec(any::<u8>(), 0..40), at: u64) {
            let mut bytes = Vec::new();
            h.encode(&[&body], &mut bytes).unwrap();
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                // A length that grew asks for more bytes, which then fail the checksum or never come.
                prop_assert!(!matches!(decode(&bytes, at), Ok(Ok(_))));
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
            let mut bytes = bytes;
            if magic {
                bytes.splice(..0, [&MAGIC.to_le_bytes()[..], &VERSION.to_le_bytes()[..]].concat());
            }
            let _ = decode(&bytes, 0);
        }
    }

    #[test]
    fn a_wrong_header_is_refused_before_its_body_comes() {
        let h = Header {
            kind: Kind::Records,
            generation: 1,
            stream: 2,
            position: 3,
        };
        let whole = h.seal(&[]).unwrap();
        let mut b = whole;
        b[LENGTH_AT..POSITION_AT].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            decode(&b, 7),
            Err(FrameError::Oversized {
                at: 7,
                len: u64::from(u32::MAX)
            })
        );
        let mut b = whole;
        b[VERSION_AT] = 9;
        assert_eq!(
            decode(&b, 7),
            Err(FrameError::Version {
                at: 7,
                theirs: 9,
                ours: VERSION
            })
        );
        assert_eq!(
            decode(b"GET / HTTP/1.1", 0),
            Err(FrameError::BadMagic {
                at: 0,
                found: word(b"GET ", 0)
            })
        );
        assert!(matches!(
            h.seal(&[&[0; MAX_BODY], &[0]]),
            Err(FrameError::Oversized { .. })
        ));
        assert!(h.seal(&[&[0; MAX_BODY]]).is_ok());
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let h = Header {
            kind: Kind::Records,
            generation: 0x0807_0605_0403_0201,
            stream: 0x0c0b_0a09,
            position: 5,
        };
        let b = h.seal(&[b"abc"]).unwrap();
        assert_eq!(&b[..8], b"USFR\x01\x00\x02\x00");
        assert_eq!(b[8..20], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(b[20..36], [3, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
