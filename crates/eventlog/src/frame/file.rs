//! An offline recording as bytes: one [`Kind::Meta`] frame, [`Kind::Records`] frames, one [`Kind::End`].
//!
//! The writer makes the bytes, the reader checks them: every stream's records are without gap, the end
//! is there and counts the frames before it, nothing follows it.

use std::collections::HashMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Decoder, Frame, FrameError, Header, Kind, MAX_BODY};
use crate::codec::{self, CodecError};

/// Most streams that one file may hold: a bound on what a reader keeps for hostile bytes.
pub const MAX_STREAMS: usize = 1 << 20;

/// Why bytes are not a recording. `at` is the offset of the frame in the file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A frame is damaged or cut short.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The metadata cannot be written or read.
    #[error(transparent)]
    Meta(#[from] CodecError),
    /// The file ends without its last frame: the recording was cut off.
    #[error("recording ends at byte {at} without its end frame: it was cut short")]
    NoEnd {
        /// Bytes in the file.
        at: u64,
    },
    /// A frame that does not belong there.
    #[error("frame at byte {at} is of kind {found:?}, which does not belong there")]
    Unexpected {
        /// Offset of the frame.
        at: u64,
        /// Its kind.
        found: Kind,
    },
    /// Bytes of a stream are missing or come twice.
    #[error(
        "frame at byte {at} holds stream {stream} from position {found}, but position {expected} comes next"
    )]
    Gap {
        /// Offset of the frame.
        at: u64,
        /// The stream.
        stream: u32,
        /// The position that comes next.
        expected: u64,
        /// The frame's position.
        found: u64,
    },
    /// The end frame counts other frames than there are.
    #[error("end frame at byte {at} counts {found} frames, but {expected} came before it")]
    Count {
        /// Offset of the frame.
        at: u64,
        /// Frames that came.
        expected: u64,
        /// Frames counted.
        found: u64,
    },
    /// More streams than [`MAX_STREAMS`].
    #[error("recording of more than {MAX_STREAMS} streams at byte {at}")]
    Streams {
        /// Offset of the frame.
        at: u64,
    },
}

/// Makes the bytes of a recording, one frame after another.
#[derive(Debug, Default)]
pub struct Writer {
    next: HashMap<u32, u64>,
    frames: u64,
}

impl Writer {
    /// Appends the first frame, with `meta`, to `out`.
    ///
    /// # Errors
    /// [`FileError::Meta`] if `meta` cannot be encoded.
    pub fn begin<T: Serialize>(meta: &T, out: &mut Vec<u8>) -> Result<Self, FileError> {
        let body = codec::encode(meta)?;
        Header {
            kind: Kind::Meta,
            generation: 0,
            stream: 0,
            position: 0,
        }
        .encode(&[&body], out)?;
        Ok(Self {
            next: HashMap::new(),
            frames: 1,
        })
    }

    /// Appends the next bytes of `stream` to `out`, in as many frames as needed.
    ///
    /// # Errors
    /// None that a caller can cause; the type is that of encoding.
    pub fn records(
        &mut self,
        stream: u32,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), FileError> {
        let next = self.next.entry(stream).or_insert(0);
        for part in bytes.chunks(MAX_BODY) {
            Header {
                kind: Kind::Records,
                generation: 0,
                stream,
                position: *next,
            }
            .encode(&[part], out)?;
            *next += part.len() as u64;
            self.frames += 1;
        }
        Ok(())
    }

    /// Appends the last frame to `out`.
    ///
    /// # Errors
    /// None that a caller can cause; the type is that of encoding.
    pub fn end(self, out: &mut Vec<u8>) -> Result<(), FileError> {
        Header {
            kind: Kind::End,
            generation: 0,
            stream: 0,
            position: self.frames,
        }
        .encode(&[], out)?;
        Ok(())
    }
}

/// A run of records of one stream, as a reader returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// The stream.
    pub stream: u32,
    /// Position of the first byte in the stream; runs of a stream follow one another without gap.
    pub position: u64,
    /// The records; a record may go on in the stream's next run.
    pub bytes: &'a [u8],
}

/// Reads a recording, fed piece by piece like a [`Decoder`].
///
/// First [`Reader::meta`] until it has the metadata, then [`Reader::next_run`] until there is none, with
/// [`Reader::push`] whenever they answer `None`; at the end of the file, [`Reader::finish`].
#[derive(Debug, Default)]
pub struct Reader {
    decoder: Decoder,
    next: HashMap<u32, u64>,
    frames: u64,
    ended: bool,
}

impl Reader {
    /// A reader at the start of a file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `bytes`; answers how many (see [`Decoder::push`]).
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        self.decoder.push(bytes)
    }

    /// The metadata, once, from the first frame; `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`FileError::Unexpected`] if another frame comes first; otherwise as for decoding.
    pub fn meta<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FileError> {
        let at = self.decoder.offset();
        let Some(frame) = self.decoder.next_frame()? else {
            return Ok(None);
        };
        if frame.header.kind != Kind::Meta || self.frames != 0 {
            return Err(FileError::Unexpected {
                at,
                found: frame.header.kind,
            });
        }
        self.frames = 1;
        Ok(Some(codec::decode(frame.body)?))
    }

    /// The next run of records; `None` if more bytes are needed, or after the end.
    ///
    /// # Errors
    /// Any of [`FileError`], with the byte offset of the frame.
    pub fn next_run(&mut self) -> Result<Option<Run<'_>>, FileError> {
        let at = self.decoder.offset();
        let Some(Frame { header, body }) = self.decoder.next_frame()? else {
            return Ok(None);
        };
        let Header {
            kind,
            stream,
            position,
            ..
        } = header;
        if self.ended || self.frames == 0 || !matches!(kind, Kind::Records | Kind::End) {
            return Err(FileError::Unexpected { at, found: kind });
        }
        if kind == Kind::End {
            if position != self.frames {
                return Err(FileError::Count {
                    at,
                    expected: self.frames,
                    found: position,
                });
            }
            self.ended = true;
            return Ok(None);
        }
        if self.next.len() >= MAX_STREAMS && !self.next.contains_key(&stream) {
            return Err(FileError::Streams { at });
        }
        let next = self.next.entry(stream).or_insert(0);
        if position != *next {
            return Err(FileError::Gap {
                at,
                stream,
                expected: *next,
                found: position,
            });
        }
        *next += body.len() as u64;
        self.frames += 1;
        Ok(Some(Run {
            stream,
            position,
            bytes: body,
        }))
    }

    /// To be called at the end of the file, when [`Reader::next_run`] has no more.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] inside a frame, [`FileError::NoEnd`] without the end frame.
    pub fn finish(&self) -> Result<(), FileError> {
        self.decoder.finish()?;
        if self.ended {
            Ok(())
        } else {
            Err(FileError::NoEnd {
                at: self.decoder.offset(),
            })
        }
    }
}

/// Reads a whole recording from `bytes`: its metadata, and every run given to `each` in the file's order.
///
/// # Errors
/// Any of [`FileError`], with the byte offset of the frame.
pub fn read_all<T: DeserializeOwned>(
    mut bytes: &[u8],
    mut each: impl FnMut(Run<'_>),
) -> Result<T, FileError> {
    let mut reader = Reader::new();
    let mut meta = None;
    loop {
        let n = reader.push(bytes);
        bytes = &bytes[n..];
        if meta.is_none() {
            meta = reader.meta()?;
        }
        if meta.is_some() {
            while let Some(run) = reader.next_run()? {
                each(run);
            }
        }
        if bytes.is_empty() && (n == 0 || reader.finish().is_ok()) {
            reader.finish()?;
            return meta.ok_or(FileError::NoEnd {
                at: reader.decoder.offset(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn recording(runs: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut w = Writer::begin(&("redis-server".to_owned(), 7u64), &mut out).unwrap();
        for (stream, bytes) in runs {
            w.records(*stream, bytes, &mut out).unwrap();
        }
        w.end(&mut out).unwrap();
        out
    }

    fn read(bytes: &[u8]) -> Result<HashMap<u32, Vec<u8>>, FileError> {
        let mut streams: HashMap<u32, Vec<u8>> = HashMap::new();
        let meta: (String, u64) = read_all(bytes, |run| {
            streams
                .entry(run.stream)
                .or_default()
                .extend_from_slice(run.bytes)
        })?;
        assert_eq!(meta, ("redis-server".to_owned(), 7));
        Ok(streams)
    }

    fn runs() -> impl Strategy<Value = Vec<(u32, Vec<u8>)>> {
        proptest::collection::vec(
            (0u32..4, proptest::collection::vec(any::<u8>(), 1..100)),
            0..20,
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(runs in runs()) {
            let mut expected: HashMap<u32, Vec<u8>> = HashMap::new();
            for (s, b) in &runs {
                expected.entry(*s).or_default().extend_from_slice(b);
            }
            prop_assert_eq!(read(&recording(&runs)).unwrap(), expected);
        }

        #[test]
        fn any_cut_and_any_flipped_bit_is_an_error(runs in runs(), place: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = recording(&runs);
            let i = place.index(bytes.len());
            prop_assert!(read(&bytes[..i]).is_err());
            bytes[i] ^= 1 << bit;
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn a_missing_frame_is_an_error(runs in runs(), place: prop::sample::Index) {
            prop_assume!(!runs.is_empty());
            let whole = recording(&runs);
            let mut ends = vec![0];
            while let Some(&at) = ends.last().filter(|&&at| at < whole.len()) {
                ends.push(at + super::super::decode(&whole[at..], 0).unwrap().unwrap().1);
            }
            let gone = place.index(ends.len() - 1);
            let without = [&whole[..ends[gone]], &whole[ends[gone + 1]..]].concat();
            prop_assert!(read(&without).is_err());
        }
    }

    #[test]
    fn large_runs_are_split_and_the_end_is_needed() {
        let big = vec![5; 2 * MAX_BODY + 9];
        let bytes = recording(&[(3, big.clone())]);
        assert_eq!(read(&bytes).unwrap()[&3], big);
        let cut = bytes.len() - super::super::HEADER_LEN;
        let e = read(&bytes[..cut]).unwrap_err();
        assert!(
            matches!(e, FileError::NoEnd { at } if at == cut as u64),
            "{e}"
        );
        let twice = [&bytes[..], &bytes[cut..]].concat();
        assert!(matches!(
            read(&twice),
            Err(FileError::Unexpected {
                found: Kind::End,
                ..
            })
        ));
        assert!(matches!(read(&[]), Err(FileError::NoEnd { at: 0 })));
    }
}
