//! Entries for a fuzzer: what a primary may send, given to the store without a connection between, and what
//! lies on disk. They must neither panic nor keep more than their bounds.

use eventlog::frame::{Decoder, Kind};
use eventlog::fuzz::{fuzz_snapshot, sealed};
use stream::checkpoint::{self, Begin, Cut, Part};

use crate::generation;
use crate::store::{Chain, Image as _, LogStore, Staging, Whole};
use crate::takeover::{Checkpoint, Handshakes};

/// Bytes of log and of images that the entries may keep.
const CAP: u64 = 1 << 16;

/// A sequence of frames: records go to a log, parts of checkpoints to a staging area and an image, as a
/// guard would hand them on.
pub fn fuzz_store(data: &[u8]) {
    let (mut log, mut staging, mut image) =
        (LogStore::new(CAP, None), Staging::new(CAP), Chain::new(CAP));
    let mut decoder = Decoder::new();
    let mut rest = data;
    while !rest.is_empty() {
        let n = decoder.push(rest);
        rest = &rest[n..];
        while let Ok(Some(frame)) = decoder.next_frame() {
            match frame.header.kind {
                Kind::Records if log.has_room() => {
                    // Refused or kept: the bound is what counts.
                    let _ = log.append(frame.header.stream, frame.header.position, frame.body);
                }
                Kind::Checkpoint => {
                    let Ok(part) = checkpoint::decode(&frame) else {
                        continue;
                    };
                    if let Some(Whole {
                        begin,
                        image: bytes,
                        ..
                    }) = stage(&mut staging, part)
                    {
                        commit(&mut log, &mut image, &begin, bytes);
                    }
                }
                _ => {}
            }
        }
        if n == 0 {
            break;
        }
    }
    let mut out = Vec::new();
    for range in log.streams() {
        out.clear();
        // Memory alone, which cannot fail for a range that the log itself named.
        let _ = log.read(range.stream, range.start, CAP as usize, &mut out);
    }
}

/// An image whose lengths and checksums fit, as a commit takes it and a takeover reads it.
pub fn fuzz_checkpoint(data: &[u8]) {
    let image = sealed(data);
    let begin = Begin {
        id: 1,
        base: None,
        cut: Cut::default(),
        image_len: image.len() as u64,
    };
    let mut checkpoint = Checkpoint::new();
    if checkpoint.apply(&begin, image).is_err() {
        return;
    }
    // Refused or not: the sections are opaque to the image.
    drop(checkpoint.guest());
    if let Ok(fold) = checkpoint.fold() {
        fuzz_snapshot(fold);
    }
    if let Ok(records) = checkpoint.handshakes() {
        fuzz_handshakes(records);
    }
    if let Ok(output) = checkpoint.output() {
        let bytes: usize = output.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= data.len());
    }
}

/// Records of the primary's own stream.
pub fn fuzz_handshakes(data: &[u8]) {
    let mut handshakes = Handshakes::default();
    if handshakes.take(data).is_ok() {
        handshakes.leave_out_bound();
    }
}

/// The file of a container's generation and run.
pub fn fuzz_generation(data: &[u8]) {
    let found = generation::newest(data);
    assert!(found.is_none() || data.len() >= generation::SLOT);
}

fn stage(staging: &mut Staging, part: Part<'_>) -> Option<Whole> {
    match part {
        Part::Begin(begin) => staging.begin(begin).map(|()| None).unwrap_or(None),
        Part::Chunk { offset, bytes } => {
            staging.chunk(offset, bytes).map(|()| None).unwrap_or(None)
        }
        Part::Finish(finish) => staging.finish(&finish).ok(),
        Part::Files { changes, len } => staging.files(changes, len).map(|()| None).unwrap_or(None),
    }
}

fn commit(log: &mut LogStore, image: &mut Chain, begin: &Begin, bytes: Vec<u8>) {
    let awaited = log.await_cut(Some(begin.cut.clone()));
    if awaited.is_ok() && log.reached(&begin.cut) && image.apply(begin, bytes).is_ok() {
        log.drop_before(&begin.cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventlog::codec;
    use eventlog::frame::Header;
    use proptest::prelude::*;
    use stream::checkpoint::{Finish, part};

    /// One frame of a primary that may lie about everything.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let small = proptest::collection::vec(any::<u8>(), 0..50);
        let cut = (
            proptest::collection::vec((0u32..4, 0u64..60), 0..5),
            0u32..5,
        )
            .prop_map(|(streams, next_stream)| Cut {
                streams,
                next_stream,
            });
        let encode = |kind, stream, position, body: Vec<u8>| {
            let mut out = Vec::new();
            Header {
                kind,
                generation: 0,
                stream,
                position,
            }
            .encode(&[&body], &mut out)
            .unwrap();
            out
        };
        prop_oneof![
            (0u32..4, 0u64..60, small.clone()).prop_map(move |(s, p, b)| encode(
                Kind::Records,
                s,
                p,
                b
            )),
            (0u64..9, any::<Option<u64>>(), cut, 0u64..60).prop_map(
                move |(id, base, cut, image_len)| {
                    let begin = Begin {
                        id,
                        base,
                        cut,
                        image_len,
                    };
                    encode(
                        Kind::Checkpoint,
                        part::BEGIN,
                        id,
                        codec::encode(&begin).unwrap(),
                    )
                }
            ),
            (0u64..60, small).prop_map(move |(at, b)| encode(Kind::Checkpoint, part::CHUNK, at, b)),
            (0u64..9, Just(0u32)).prop_map(move |(id, crc)| {
                encode(
                    Kind::Checkpoint,
                    part::FINISH,
                    id,
                    codec::encode(&Finish { id, crc }).unwrap(),
                )
            }),
        ]
    }

    proptest! {
        #[test]
        fn any_frames_are_answered(frames in proptest::collection::vec(frame(), 0..60)) {
            fuzz_store(&frames.concat());
        }

        #[test]
        fn any_bytes_are_answered(data in proptest::collection::vec(any::<u8>(), 0..500)) {
            fuzz_store(&data);
            fuzz_checkpoint(&data);
            fuzz_handshakes(&data);
            fuzz_generation(&data);
        }
    }
}
