//! Entries for a fuzzer: each takes any bytes and must neither panic nor allocate beyond its bounds, and
//! what it did decode must come back from its encoding.

use std::collections::BTreeMap;
use std::convert::Infallible;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fold::Merge;
use crate::image;
use crate::record::{self, Header, Record, Records, kind};
use crate::{codec, payload};

/// Streams of the container that [`fuzz_fold`] makes.
const STREAMS: u8 = 8;

/// A message of type `T`.
pub fn fuzz_message<T: Serialize + DeserializeOwned + PartialEq>(data: &[u8]) {
    if let Ok(value) = codec::decode::<T>(data) {
        let again = codec::encode(&value).and_then(|bytes| codec::decode::<T>(&bytes));
        assert!(again.is_ok_and(|again| again == value));
    }
}

/// Records one after another, the payload of each taken apart.
pub fn fuzz_records(data: &[u8]) {
    let mut stored = Vec::new();
    for record in Records::new(data).flatten() {
        let (head, len) = record.header.encode();
        stored.clear();
        stored.extend_from_slice(&head[..len]);
        stored.extend_from_slice(record.payload);
        stored.resize(stored.len().next_multiple_of(8), 0);
        assert_eq!(record::decode(&stored), Ok((record, stored.len())));
        let call = match record.header.kind {
            kind::INTENT => record.header.result.cast_unsigned(),
            other => u64::from(other),
        };
        if let Some(row) = sysabi::lookup(call) {
            // The answer is of no interest, only that there is one.
            let _ = payload::parse(row, &record.header, record.payload);
        }
    }
}

/// Records of several streams, a byte before each that says which, merged and folded; then the state as a
/// snapshot and back.
pub fn fuzz_fold(data: &[u8]) {
    let mut merge = Merge::new();
    let mut rest = data;
    let mut ok = merge.introduce(1, 1, 1).is_ok();
    let mut by_time = merge.clone();
    let mut streams = BTreeMap::<u32, Vec<u8>>::new();
    while let Some((stream, after)) = rest.split_first() {
        let Ok((record, used)) = record::decode(after) else {
            break;
        };
        rest = &after[used..];
        let stream = u32::from(stream % STREAMS);
        streams.entry(stream).or_default().extend(&after[..used]);
        ok &= merge.feed(stream, &record).is_ok();
    }
    let names: Vec<u32> = streams.keys().copied().collect();
    let fed = by_time.feed_by_time(names, |stream, out| {
        let mut bytes = streams.remove(&stream).unwrap_or_default();
        let n = bytes.len();
        out.append(&mut bytes);
        Ok::<_, Infallible>(n)
    });
    if fed.is_ok() {
        assert!(comes_back(&mut by_time));
    }
    // After a refusal, the state is not to be trusted; it can be looked at all the same.
    let _ = merge.fold().describe();
    if ok {
        assert!(comes_back(&mut merge));
    }
}

/// A snapshot of the fold; then what was restored from it, with every call fed to it.
pub fn fuzz_snapshot(data: &[u8]) {
    let Ok(mut merge) = Merge::restore(data) else {
        return;
    };
    assert!(comes_back(&mut merge));
    for nr in 0..=kind::BATON {
        let record = Record {
            header: Header {
                kind: nr,
                arg0: u32::from(nr % 8),
                ..Header::default()
            },
            payload: &[],
        };
        // Refused or not: the state came from anywhere.
        let _ = merge.feed(u32::from(nr % 3), &record);
    }
    let _ = merge.fold().describe();
    let _ = merge.remains();
}

/// True if the state is what its snapshot restores, or is too large for one.
fn comes_back(merge: &mut Merge) -> bool {
    let Ok(bytes) = merge.snapshot() else {
        return true;
    };
    Merge::restore(&bytes).is_ok_and(|again| again == *merge)
}

/// An image, as it is and [`sealed`].
pub fn fuzz_image(data: &[u8]) {
    // The answer is of no interest, only that there is one.
    let _ = image::decode(data);
    let _ = image::split(data);
    let bytes = sealed(data);
    if let Ok(found) = image::decode(&bytes) {
        let stored = image::encode(&found);
        assert!(image::decode(&stored).is_ok_and(|again| image::encode(&again) == stored));
    }
}

/// `data` as an image whose lengths and checksums fit, so that what lies behind them is reached: at most
/// a header longer than `data`.
#[must_use]
pub fn sealed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().next_multiple_of(8).max(image::HEADER_LEN), 0);
    bytes[..8].copy_from_slice(&image::MAGIC.to_le_bytes());
    bytes[image::VERSION_AT..image::SECTIONS_AT]
        .copy_from_slice(&u32::from(image::VERSION).to_le_bytes());
    let (mut at, mut count) = (image::HEADER_LEN, 0u32);
    while let Some(len) = section_len(&bytes, at) {
        let payload = at + image::SECTION_LEN;
        let head = crc32c::crc32c(&[&bytes[at..at + 4], &bytes[at + 8..payload]].concat());
        let crc = crc32c::crc32c_append(head, &bytes[payload..payload + len]);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at = payload + len.next_multiple_of(8);
        count += 1;
    }
    bytes.truncate(at);
    let length = bytes.len() as u64;
    bytes[image::SECTIONS_AT..image::SEQUENCE_AT].copy_from_slice(&count.to_le_bytes());
    bytes[image::LENGTH_AT..image::LENGTH_AT + 8].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..image::HEADER_CRC_AT]);
    bytes[image::HEADER_CRC_AT..image::HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The length of the section at `at`, if it is whole.
fn section_len(bytes: &[u8], at: usize) -> Option<usize> {
    let len = bytes.get(at + 8..at + image::SECTION_LEN)?;
    let len = usize::try_from(u64::from_le_bytes(len.try_into().ok()?)).ok()?;
    let left = bytes.len() - at - image::SECTION_LEN;
    (len <= left && len.next_multiple_of(8) <= left).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Image, section};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_answered(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            fuzz_message::<crate::handover::GuestState>(&data);
            fuzz_records(&data);
            fuzz_fold(&data);
            fuzz_snapshot(&data);
            fuzz_image(&data);
        }
    }

    #[test]
    fn an_image_that_is_right_stays_as_it_is_when_sealed() {
        let image = Image {
            sequence: 3,
            mappings: Some(Vec::new()),
            opaque: vec![(section::OPAQUE, b"seven by".to_vec().into())],
            ..Image::default()
        };
        let bytes = image::encode(&image);
        assert_eq!(sealed(&bytes), bytes);
        let mut damaged = bytes.clone();
        damaged[60] ^= 1;
        assert!(image::decode(&damaged).is_err());
    }
}
