//! Entries for a fuzzer: each takes any bytes and must neither panic nor allocate beyond its bounds, and
//! what it did decode must come back from its encoding.

use eventlog::codec;
use eventlog::frame::{
    self, Decoder, Frame, GENERATION_AT, HEADER_LEN, Header, KIND_AT, Kind, LENGTH_AT, MAX_BODY,
    POSITION_AT, STREAM_AT, file,
};
use eventlog::fuzz::fuzz_message;
use eventlog::handover::Details;
use eventlog::recording::Meta;

use crate::checkpoint::{self, Begin, Commit, Finish};
use crate::clock::Nanos;
use crate::control::{Held, Request, Response};
use crate::hello::{self, Answer, Hello, Timing, Welcome};
use crate::lease::{BeatAnswer, Heartbeat, Lease, Outcome};

/// A connection's bytes, in pieces of some size; every frame's body is decoded as what its kind says.
pub fn fuzz_frames(data: &[u8]) {
    let mut rest = data;
    let piece = data.len() % 251 + 1;
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

/// Frames one after another, every header made to fit its checksum and the bytes that are there, so that
/// what lies behind it is reached.
#[must_use]
pub fn sealed(data: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::with_capacity(data.len()), data);
    while let Some((&head, after)) = rest.split_first_chunk::<HEADER_LEN>() {
        let word = |at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let len = (word(LENGTH_AT) as usize).min(after.len()).min(MAX_BODY);
        let header = Header {
            kind: Kind::from_byte(head[KIND_AT]).unwrap_or(Kind::Records),
            generation: u64::from(word(GENERATION_AT)),
            stream: word(STREAM_AT),
            position: u64::from(word(POSITION_AT)),
        };
        if header.encode(&[&after[..len]], &mut bytes).is_err() {
            break;
        }
        rest = &after[len..];
    }
    bytes
}

/// The body of one frame.
fn fuzz_body(frame: &Frame<'_>) {
    let again = frame.header.seal(&[frame.body]);
    assert!(again.is_ok_and(|head| {
        frame::decode(&[&head, frame.body].concat(), 0)
            .is_ok_and(|found| found.is_ok_and(|(found, _)| found == *frame))
    }));
    match frame.header.kind {
        Kind::Hello => fuzz_hello(frame.body),
        Kind::Heartbeat => fuzz_heartbeat(frame.body),
        Kind::Checkpoint => {
            drop(checkpoint::decode(frame));
            fuzz_checkpoint(frame.body);
        }
        Kind::Control => fuzz_control(frame.body),
        Kind::Meta => fuzz_message::<Meta>(frame.body),
        Kind::Records | Kind::End | Kind::Drain | Kind::Ack => {}
    }
}

/// A hello or its answer, and what a hello says of its container.
pub fn fuzz_hello(data: &[u8]) {
    fuzz_message::<Hello>(data);
    fuzz_message::<Answer>(data);
    fuzz_message::<Details>(data);
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
    fuzz_message::<Heartbeat>(data);
    fuzz_message::<BeatAnswer>(data);
    let Ok(answer) = codec::decode::<BeatAnswer>(data) else {
        return;
    };
    let timing = Timing {
        heartbeat: hello::MIN_HEARTBEAT,
        detect: hello::MAX_DETECT,
    };
    let welcome = Welcome {
        generation: 1,
        instance: 1,
    };
    let mut lease = Lease::new(timing, welcome);
    lease.beat(Nanos(1));
    let outcome = lease.answered(&answer, Nanos(2));
    let granted = answer.generation == 1 && answer.instance == 1 && answer.seq == 1;
    assert!(granted || !matches!(outcome, Outcome::Extended { .. }));
}

/// A message of the control connection.
pub fn fuzz_control(data: &[u8]) {
    fuzz_message::<Request>(data);
    fuzz_message::<Response>(data);
    fuzz_message::<Held>(data);
}

/// The body of a part of a checkpoint, or of what became of it.
pub fn fuzz_checkpoint(data: &[u8]) {
    fuzz_message::<Begin>(data);
    fuzz_message::<Finish>(data);
    fuzz_message::<Commit>(data);
}

/// The files of a key pair, one behind the other.
pub fn fuzz_keys(data: &[u8]) {
    // The answer is of no interest, only that there is one.
    drop(crate::keys::parse(data, data));
}

/// The file of an offline recording.
pub fn fuzz_file(data: &[u8]) {
    drop(file::read_all::<Meta>(data, |_| {}));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_answered(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            fuzz_frames(&data);
            fuzz_hello(&data);
            fuzz_heartbeat(&data);
            fuzz_control(&data);
            fuzz_checkpoint(&data);
            fuzz_file(&data);
            fuzz_keys(&data);
            fuzz_frames(&sealed(&data));
            fuzz_file(&sealed(&data));
        }

        /// Frames that are right, with bodies that are not: deeper than random bytes get.
        #[test]
        fn any_body_is_answered(frames in proptest::collection::vec(
            (1u8..=9, 0u32..5, proptest::collection::vec(any::<u8>(), 0..200)), 0..10)) {
            let mut data = Vec::new();
            for (kind, stream, body) in &frames {
                let kind = Kind::from_byte(*kind).unwrap();
                Header { kind, generation: 0, stream: *stream, position: 0 }.encode(&[body], &mut data).unwrap();
            }
            fuzz_frames(&data);
        }
    }
}
