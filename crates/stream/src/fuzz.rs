//! Entries for a fuzzer: each takes any bytes and must neither panic nor allocate beyond its bounds.

use eventlog::codec;
use eventlog::frame::{Decoder, Frame, Kind, file};

use crate::checkpoint;
use crate::control::{Held, Request, Response};
use crate::hello::{Answer, Hello};
use crate::lease::{Beat, BeatAnswer};

/// A connection's bytes, in pieces whose size the first byte gives; every frame's body is decoded as what
/// its kind says.
pub fn fuzz_frames(data: &[u8]) {
    let Some((&first, mut rest)) = data.split_first() else {
        return;
    };
    let piece = usize::from(first) + 1;
    let mut decoder = Decoder::new();
    while !rest.is_empty() {
        let n = decoder.push(&rest[..piece.min(rest.len())]);
        rest = &rest[n..];
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => fuzz_body(&frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    // The answer is of no interest, only that there is one.
    let _ = decoder.finish();
}

/// The body of one frame.
fn fuzz_body(frame: &Frame<'_>) {
    match frame.header.kind {
        Kind::Hello => fuzz_hello(frame.body),
        Kind::Heartbeat => fuzz_heartbeat(frame.body),
        Kind::Checkpoint => drop(checkpoint::decode(frame)),
        Kind::Control | Kind::Meta => fuzz_control(frame.body),
        Kind::Records | Kind::End | Kind::Drain | Kind::Ack => {}
    }
}

/// A hello or its answer.
pub fn fuzz_hello(data: &[u8]) {
    if let Ok(hello) = codec::decode::<Hello>(data)
        && hello.check().is_ok()
    {
        drop(hello.differs_from(&[("kernel".to_owned(), "6.18".to_owned())]));
        let _ = hello.timing.promise();
    }
    if let Ok(Err(refusal)) = codec::decode::<Answer>(data) {
        drop(refusal.to_string());
    }
}

/// A heartbeat or its answer.
pub fn fuzz_heartbeat(data: &[u8]) {
    drop((
        codec::decode::<Beat>(data),
        codec::decode::<BeatAnswer>(data),
    ));
}

/// A control message.
pub fn fuzz_control(data: &[u8]) {
    drop((
        codec::decode::<Request>(data),
        codec::decode::<Response>(data),
        codec::decode::<Held>(data),
    ));
}

/// The file of an offline recording.
pub fn fuzz_file(data: &[u8]) {
    drop(file::read_all::<(String, u64)>(data, |_| {}));
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventlog::frame::Header;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_answered(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            fuzz_frames(&data);
            fuzz_hello(&data);
            fuzz_heartbeat(&data);
            fuzz_control(&data);
            fuzz_file(&data);
        }

        /// Frames that are right, with bodies that are not: deeper than random bytes get.
        #[test]
        fn any_body_is_answered(piece: u8, frames in proptest::collection::vec(
            (1u8..=9, 0u32..5, proptest::collection::vec(any::<u8>(), 0..200)), 0..10)) {
            let mut data = vec![piece];
            for (kind, stream, body) in &frames {
                let kind = Kind::from_byte(*kind).unwrap();
                Header { kind, generation: 0, stream: *stream, position: 0 }.encode(&[body], &mut data).unwrap();
            }
            fuzz_frames(&data);
        }
    }
}
