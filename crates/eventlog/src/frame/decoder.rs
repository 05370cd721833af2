//! Bytes in, in pieces of any size; whole frames out. Never holds more than one frame's worth.

use core::ops::Range;

use super::{Frame, FrameError, Header, MAX_FRAME, decode};

/// What a decoder starts with and keeps: small batches never make it grow.
const FIRST_LEN: usize = 64 << 10;

/// A frame that was taken out: its header, and where its body lies until the decoder is fed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The frame's header.
    pub header: Header,
    body: Range<usize>,
}

/// A decoder of a sequence of frames, fed piece by piece.
///
/// The caller alternates: [`Decoder::push`] (or [`Decoder::room`] and [`Decoder::filled`], which spare a
/// copy), then [`Decoder::next_frame`] until there is none. The first error is final: what follows it
/// cannot be trusted, and every further call repeats it.
#[derive(Debug)]
pub struct Decoder {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
    missing: usize,
    failed: Option<FrameError>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the start of its input.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buf: vec![0; FIRST_LEN],
            start: 0,
            end: 0,
            offset: 0,
            missing: 0,
            failed: None,
        }
    }

    /// Offset in the input of the first byte that is not part of a returned frame.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes bytes from the front of `bytes`; answers how many. Fewer than given means: take out frames
    /// first. At least one is taken whenever [`Decoder::next_frame`] has just answered `None`.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let room = self.room();
        let n = room.len().min(bytes.len());
        room[..n].copy_from_slice(&bytes[..n]);
        self.filled(n);
        n
    }

    /// Where the next bytes go; say with [`Decoder::filled`] how many were put there.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let wanted = (self.end - self.start + self.missing).min(MAX_FRAME);
        if self.buf.len() - self.start < wanted || self.buf.len() - self.end < self.buf.len() / 2 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buf.len() < wanted {
            // In steps, so that memory follows the bytes that really came and not what a header claims.
            self.buf
                .resize((self.buf.len() * 2).min(wanted.max(FIRST_LEN)), 0);
        }
        &mut self.buf[self.end..]
    }

    /// The first `n` bytes of the last [`Decoder::room`] are input now; more than its length counts as all.
    pub fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.buf.len());
    }

    /// The next whole frame, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// Any of [`FrameError`] but [`FrameError::Truncated`], with the byte offset of the bad frame.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        Ok(self.next_span()?.map(|span| Frame {
            header: span.header,
            body: self.body(&span),
        }))
    }

    /// As [`Decoder::next_frame`], without borrowing the decoder: for loops that feed it on `None`.
    ///
    /// # Errors
    /// As [`Decoder::next_frame`].
    pub fn next_span(&mut self) -> Result<Option<Span>, FrameError> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        match decode(&self.buf[self.start..self.end], self.offset) {
            Ok(Ok((frame, used))) => {
                let end = self.start + used;
                let span = Span {
                    header: frame.header,
                    body: end - frame.body.len()..end,
                };
                self.start = end;
                self.offset += used as u64;
                self.missing = 0;
                Ok(Some(span))
            }
            Ok(Err(missing)) => {
                self.missing = missing;
                Ok(None)
            }
            Err(e) => {
                self.failed = Some(e);
                Err(e)
            }
        }
    }

    /// The body of the frame last taken out by [`Decoder::next_span`]. It is empty or wrong if the decoder
    /// was fed since: `room` and `push` move what lies behind it.
    #[must_use]
    pub fn body(&self, span: &Span) -> &[u8] {
        self.buf.get(span.body.clone()).unwrap_or(&[])
    }

    /// To be called at the end of the input, when [`Decoder::next_frame`] has no more.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] if the input ends inside a frame, or the error met before.
    pub fn finish(&self) -> Result<(), FrameError> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        if self.start == self.end {
            return Ok(());
        }
        Err(FrameError::Truncated {
            at: self.offset,
            missing: self.missing as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Header, Kind, MAX_BODY};
    use super::*;
    use proptest::prelude::*;

    fn collect(
        d: &mut Decoder,
        mut bytes: &[u8],
        piece: usize,
    ) -> Result<Vec<(Header, Vec<u8>)>, FrameError> {
        let mut got = Vec::new();
        while !bytes.is_empty() {
            let n = d.push(&bytes[..piece.min(bytes.len())]);
            assert!(n > 0);
            bytes = &bytes[n..];
            while let Some(f) = d.next_frame()? {
                got.push((f.header, f.body.to_vec()));
            }
        }
        d.finish()?;
        Ok(got)
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_frames(
            frames in proptest::collection::vec((super::super::tests::header(), proptest::collection::vec(any::<u8>(), 0..500)), 0..12),
            piece in 1usize..700,
        ) {
            let mut bytes = Vec::new();
            for (h, body) in &frames {
                h.encode(&[body], &mut bytes).unwrap();
            }
            let mut d = Decoder::new();
            prop_assert_eq!(collect(&mut d, &bytes, piece).unwrap(), frames);
            prop_assert_eq!(d.offset(), bytes.len() as u64);
        }

        #[test]
        fn damage_names_the_frame_it_is_in(body in proptest::collection::vec(any::<u8>(), 1..200), before in 0usize..5, bit in 0usize..8) {
            let h = Header { kind: Kind::Records, generation: 0, stream: 1, position: 0 };
            let mut bytes = Vec::new();
            for _ in 0..before {
                h.encode(&[&body], &mut bytes).unwrap();
            }
            let at = bytes.len();
            h.encode(&[&body], &mut bytes).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1 << bit;
            let named = matches!(collect(&mut Decoder::new(), &bytes, 64), Err(FrameError::Checksum { at: a, .. }) if a == at as u64);
            prop_assert!(named);
            let cut = matches!(collect(&mut Decoder::new(), &bytes[..last], 64), Err(FrameError::Truncated { at: a, missing: 1 }) if a == at as u64);
            prop_assert!(cut);
        }
    }

    #[test]
    fn the_largest_frames_pass_and_memory_stays_bounded() {
        let body = vec![7; MAX_BODY];
        let mut bytes = Vec::new();
        for position in 0..3 {
            let h = Header {
                kind: Kind::Records,
                generation: 0,
                stream: 1,
                position,
            };
            h.encode(&[&body], &mut bytes).unwrap();
        }
        let mut d = Decoder::new();
        assert_eq!(collect(&mut d, &bytes, 100_000).unwrap().len(), 3);
        assert!(d.buf.len() <= MAX_FRAME);
    }

    #[test]
    fn a_header_alone_does_not_allocate_what_it_claims() {
        let h = Header {
            kind: Kind::Records,
            generation: 0,
            stream: 1,
            position: 0,
        };
        let mut bytes = Vec::new();
        h.encode(&[&vec![0; MAX_BODY]], &mut bytes).unwrap();
        let mut d = Decoder::new();
        d.push(&bytes[..100]);
        assert_eq!(d.next_frame(), Ok(None));
        assert!(d.room().len() <= 2 * FIRST_LEN);
    }

    #[test]
    fn an_error_is_final() {
        let mut d = Decoder::new();
        d.push(b"nonsense");
        let e = d.next_frame().unwrap_err();
        d.push(
            &Header {
                kind: Kind::End,
                generation: 0,
                stream: 0,
                position: 0,
            }
            .seal(&[])
            .unwrap(),
        );
        assert_eq!(d.next_frame(), Err(e));
        assert_eq!(d.finish(), Err(e));
    }
}
