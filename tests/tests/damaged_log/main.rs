//! A log with one thing wrong in its records, and its frames and checksums right: `understudy replay` stops where it
//! leaves the log, and names the place; or, where the damage has no consequence, prints what was recorded.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

mod recording;
mod verdict;

use std::collections::BTreeMap;
use std::fs;

use eventlog::record::kind;
use eventlog::recording::LOG_NAME;
use understudy_bench::rng::Rng;
use understudy_tests::repeats;

use recording::{Entry, Place, Recording, Streams};
use verdict::{Verdict, number, refused, replayed};

const READ: u16 = 0;
const WRITE: u16 = 1;
const GETRANDOM: u16 = 318;

/// So many of these, spread over all of them.
fn spread(places: &[Place], wanted: usize, rng: &mut Rng) -> Vec<Place> {
    let wanted = wanted * repeats() as usize;
    assert!(!places.is_empty(), "the log has no such record");
    let bound = |n: usize| n * places.len() / wanted;
    let parts = (0..wanted).map(|n| bound(n)..bound(n + 1).max(bound(n) + 1));
    let chosen = parts.map(|part| part.start + rng.below(part.len() as u64) as usize);
    chosen.map(|index| places[index]).collect()
}

/// Damages one record at each of some places, and wants replay to refuse it.
fn each_is_refused(
    what: &str,
    wanted: usize,
    eligible: impl Fn(&Streams, u32, &Entry) -> bool,
    damage: impl Fn(&mut Streams, Place, &mut Rng),
) {
    let (recording, mut rng) = (Recording::make(), Rng::new(11, wanted as u64));
    let streams = &recording.streams;
    let places = streams.places(|stream, entry| eligible(streams, stream, entry));
    for place in spread(&places, wanted, &mut rng) {
        let mut damaged = recording.streams.clone();
        damage(&mut damaged, place, &mut rng);
        let words = format!("{what}, {}", recording.streams.describe(place));
        refused(&recording, &damaged, &words);
    }
}

fn flip(entry: &mut Entry, rng: &mut Rng) {
    let byte = rng.below(entry.payload.len() as u64) as usize;
    entry.payload[byte] ^= 1 << rng.below(8);
}

#[test]
fn an_undamaged_log_that_was_put_together_again_is_replayed() {
    let recording = Recording::make();
    let verdict = replayed(&recording, &recording.streams, "no damage");
    assert_eq!(verdict, Verdict::Same);
}

#[test]
fn a_dropped_record_is_named() {
    let drop = |streams: &mut Streams, place: Place, _: &mut Rng| drop(streams.remove(place));
    each_is_refused("a record was dropped", 8, |_, _, _| true, drop);
    each_is_refused("a lock's record was dropped", 5, is_of_shared_lock, drop);
}

#[test]
fn a_record_that_comes_twice_is_named() {
    let double = |streams: &mut Streams, place: Place, _: &mut Rng| streams.double(place);
    each_is_refused("a record comes twice", 8, |_, _, _| true, double);
    each_is_refused("a lock's record comes twice", 5, is_of_shared_lock, double);
}

fn is_of_shared_lock(streams: &Streams, _: u32, entry: &Entry) -> bool {
    streams.takers(entry).len() > 1
}

/// Nobody else is concerned with what a thread reads: it leaves the log at the very place of the damage.
#[test]
fn a_read_that_is_dropped_or_comes_twice_is_named_exactly() {
    let (recording, mut rng) = (Recording::make(), Rng::new(15, 0));
    let streams = &recording.streams;
    let reads = streams.places(|stream, entry| {
        stream > 1 && matches!(entry.header.kind, READ | GETRANDOM) && entry.header.result > 0
    });
    for place in spread(&reads, 5, &mut rng) {
        let words = streams.describe(place);
        let mut without = streams.clone();
        drop(without.remove(place));
        let named = refused(&recording, &without, &format!("dropped: {words}"));
        assert_eq!(named, (place.stream, streams.position(place)), "{words}");
        let mut twice = streams.clone();
        twice.double(place);
        let named = refused(&recording, &twice, &format!("doubled: {words}"));
        let second = Place {
            index: place.index + 1,
            ..place
        };
        assert_eq!(named, (place.stream, streams.position(second)), "{words}");
    }
}

/// Behind the last record of a thread nothing follows that would not fit.
#[test]
fn an_end_that_is_missing_or_comes_twice_is_named() {
    let recording = Recording::make();
    let streams = &recording.streams;
    let ends = streams.places(|_, entry| entry.header.kind == kind::EXIT);
    assert_eq!(ends.len(), 4, "{ends:?}");
    for end in &ends {
        let mut twice = streams.clone();
        twice.double(*end);
        let named = refused(
            &recording,
            &twice,
            &format!("doubled: {}", streams.describe(*end)),
        );
        let second = streams.boundaries(end.stream)[end.index + 1];
        assert_eq!(named, (end.stream, second));
    }
    let first = ends[0];
    let mut without = streams.clone();
    drop(without.remove(first));
    let named = refused(&recording, &without, "the program's end was dropped");
    assert_eq!(named, (first.stream, streams.position(first)));
}

/// The version of one record, and of no other, is another one.
#[test]
fn a_gap_in_the_versions_of_a_lock_is_named() {
    each_is_refused(
        "a gap in the versions",
        8,
        is_of_shared_lock,
        |streams, place, rng| streams.entry(place).header.result += 1 + rng.below(3).cast_signed(),
    );
}

#[test]
fn a_gap_in_the_versions_of_the_memory_map_is_named() {
    let of_memory = |entry: &Entry| matches!(entry.header.kind, 9..=12 | 25);
    each_is_refused(
        "a gap in the versions",
        3,
        |_, _, entry| of_memory(entry) && entry.header.version != 0,
        |streams, place, _| streams.entry(place).header.version += 1,
    );
}

/// Input shows in what the program prints, and what it writes is in the log twice.
#[test]
fn a_flipped_byte_of_input_or_output_is_named() {
    each_is_refused(
        "a flipped byte of payload",
        14,
        |_, stream, entry| {
            let kind = entry.header.kind;
            stream > 1
                && matches!(kind, READ | WRITE | GETRANDOM | kind::INTENT)
                && !entry.payload.is_empty()
        },
        |streams, place, rng| {
            flip(streams.entry(place), rng);
        },
    );
}

/// What the C library reads of a file's state has bytes that nobody looks at.
#[test]
fn a_flipped_byte_of_any_payload_is_named_or_has_no_consequence() {
    let (recording, mut rng) = (Recording::make(), Rng::new(12, 0));
    let places = recording
        .streams
        .places(|_, entry| !entry.payload.is_empty());
    for place in spread(&places, 10, &mut rng) {
        let mut damaged = recording.streams.clone();
        flip(damaged.entry(place), &mut rng);
        let words = recording.streams.describe(place);
        let verdict = replayed(&recording, &damaged, &words);
        println!("{verdict:?}: {words}");
    }
}

/// Two threads exchange their turns at a lock, for every turn at it twice in a row by different threads.
#[test]
fn acquisitions_that_were_swapped_are_named_or_have_no_consequence() {
    let (recording, mut rng) = (Recording::make(), Rng::new(13, 0));
    let pairs = neighbours(&recording.streams);
    let firsts: Vec<Place> = pairs.iter().map(|(first, _)| *first).collect();
    for first in spread(&firsts, 10, &mut rng) {
        let second = pairs.iter().find(|(place, _)| *place == first).unwrap().1;
        let mut damaged = recording.streams.clone();
        damaged.entry(first).header.result += 1;
        damaged.entry(second).header.result -= 1;
        let words = format!(
            "swapped: {} and {}",
            recording.streams.describe(first),
            recording.streams.describe(second)
        );
        let verdict = replayed(&recording, &damaged, &words);
        println!("{verdict:?}: {words}");
    }
}

/// Acquisitions of one lock, one right after the other, by different threads.
fn neighbours(streams: &Streams) -> Vec<(Place, Place)> {
    let mut turns: BTreeMap<(u16, i64), Vec<Place>> = BTreeMap::new();
    for place in streams.places(|_, entry| entry.header.kind == kind::LOCK) {
        let header = streams.all[&place.stream][place.index].header;
        turns
            .entry((header.hash, header.result))
            .or_default()
            .push(place);
    }
    let next = |(lock, version): &(u16, i64)| turns.get(&(*lock, version + 1));
    let pairs = turns.iter().filter_map(|(turn, places)| {
        match (places.as_slice(), next(turn)?.as_slice()) {
            ([first], [second]) if first.stream != second.stream => Some((*first, *second)),
            _ => None,
        }
    });
    pairs.collect()
}

/// Without a right checksum, the file's byte is named before anything runs.
#[test]
fn damage_that_the_checksums_tell_is_named_by_its_byte() {
    let (recording, mut rng) = (Recording::make(), Rng::new(14, 0));
    let file = recording.log().join(LOG_NAME);
    let whole = fs::read(&file).unwrap();
    for _ in 0..20 {
        let mut damaged = whole.clone();
        let at = rng.below(whole.len() as u64) as usize;
        damaged[at] ^= 1 << rng.below(8);
        is_named_by_its_byte(&recording, &damaged, at, "flipped");
        is_named_by_its_byte(&recording, &whole[..at], at, "cut");
    }
}

fn is_named_by_its_byte(recording: &Recording, damaged: &[u8], at: usize, how: &str) {
    fs::write(recording.log().join(LOG_NAME), damaged).unwrap();
    let ended = recording.replay();
    let said = ended.stderr.trim_end();
    assert_eq!(ended.status.code(), Some(1), "{how} at {at}: {ended:?}");
    assert!(ended.stdout.is_empty(), "{how} at {at}: {ended:?}");
    // The frame that the byte belongs to.
    let named = number(said, "at byte ");
    assert!(
        named.is_some_and(|named| named <= at as u64) && said.lines().count() == 1,
        "{how} at {at}: {said}"
    );
}
