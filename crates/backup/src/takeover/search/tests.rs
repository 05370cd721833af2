use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::takeover::timeline::Moment;

/// Something that a thread did to what all share, between two of its records.
#[derive(Clone, Copy, Debug)]
struct Deed {
    stream: u32,
    /// The record before it, and the one behind it, which tells how many deeds had been done.
    before: Moment,
    behind: Moment,
    at: u64,
}

/// Threads whose records lie some thousand cycles apart, and deeds at random moments between records.
#[derive(Clone, Debug)]
struct World {
    streams: BTreeMap<u32, Vec<Moment>>,
    deeds: Vec<Deed>,
}

fn world(threads: u32, deeds: usize) -> impl Strategy<Value = World> {
    let gaps = prop::collection::vec(
        prop::collection::vec(2_000..30_000_u64, 200),
        threads as usize,
    );
    let places = prop::collection::vec((0..threads, 0..199_usize, 1..1000_u64), deeds);
    (gaps, places).prop_map(|(gaps, places)| {
        let mut streams = BTreeMap::new();
        for (stream, gaps) in (1..).zip(gaps) {
            let mut moment = Moment {
                position: 0,
                time: 1_000_000,
            };
            let moments = gaps.iter().map(|gap| {
                moment.time += gap;
                moment.position += 16;
                moment
            });
            streams.insert(stream, moments.collect::<Vec<_>>());
        }
        let mut deeds: Vec<Deed> = places
            .iter()
            .map(|&(thread, index, part)| {
                let stream = thread + 1;
                let (before, behind) = (streams[&stream][index], streams[&stream][index + 1]);
                let at = before.time + (behind.time - before.time) * part / 1000;
                Deed {
                    stream,
                    before,
                    behind,
                    at,
                }
            })
            .collect();
        deeds.sort_by_key(|deed| (deed.stream, deed.before.position));
        deeds.dedup_by_key(|deed| (deed.stream, deed.before.position));
        deeds.sort_by_key(|deed| deed.at);
        World { streams, deeds }
    })
}

/// What a replay does: a deed is done when the record before it is taken.
/// Where it tells another number of deeds than when it was recorded, if it does.
fn replay(world: &World, timing: &Timing) -> Option<(u32, u64)> {
    let turn = |deed: &Deed| {
        let moved = timing
            .turns
            .iter()
            .find(|turn| turn.is_of(deed.stream, deed.before.position));
        moved.map_or(deed.before.time, |turn| turn.time)
    };
    let mut order: Vec<usize> = (0..world.deeds.len()).collect();
    order.sort_by_key(|index| turn(&world.deeds[*index]));
    let wrong = order
        .iter()
        .enumerate()
        .find(|(rank, index)| rank != *index);
    wrong.map(|(_, index)| {
        (
            world.deeds[*index].stream,
            world.deeds[*index].behind.position,
        )
    })
}

fn attempts(world: &World) -> u32 {
    let mut search = Search::new(true, Duration::from_secs(1));
    search.timeline = Some(Arc::new(Timeline::from_moments(world.streams.clone())));
    while let Some(place) = replay(world, &search.timing()) {
        search.learn(Some(place), &[]);
        if search.number() > 500 {
            break;
        }
    }
    search.number()
}

/// There are worlds in which no order that is tried leads on.
#[test]
fn a_few_races_take_a_few_attempts_nearly_always() {
    const WORLDS: usize = 1000;
    let (mut runner, strategy) = (TestRunner::deterministic(), world(4, 12));
    let mut next = || strategy.new_tree(&mut runner).unwrap().current();
    let worlds = std::iter::repeat_with(&mut next).take(WORLDS);
    let few = worlds.filter(|world| attempts(world) <= 10).count();
    assert!(few >= WORLDS * 99 / 100, "in {few} of {WORLDS}");
}

#[test]
fn the_first_attempt_is_the_plain_one_and_attempts_by_chance_differ() {
    let mut search = Search::new(true, Duration::ZERO);
    let first = search.timing();
    assert!(first.ordered && first.seed == 0 && first.turns.is_empty());
    let mut seen = vec![first];
    for _ in 0..50 {
        search.missed();
        let next = search.timing();
        assert!(!seen.contains(&next));
        seen.push(next);
    }
    assert!(seen.iter().any(|timing| !timing.ordered));
}

#[test]
fn without_the_order_of_time_no_attempt_keeps_it() {
    let mut search = Search::new(false, Duration::ZERO);
    for _ in 0..50 {
        assert!(!search.timing().ordered);
        search.missed();
    }
}

/// Attempts until a thread starts like that, which is needed from the beginning; every other leaves the log there.
fn attempts_until(start: Start, place: (u32, u64)) -> u32 {
    let moments = |times: [u64; 6]| -> Vec<Moment> {
        let positions = (1..).map(|n| n * 16);
        let all = positions.zip(times);
        all.map(|(position, time)| Moment { position, time })
            .collect()
    };
    let mut search = Search::new(true, Duration::from_secs(1));
    search.timeline = Some(Arc::new(Timeline::from_moments(BTreeMap::from([
        (1, moments([10_000, 20_000, 30_000, 40_000, 50_000, 60_000])),
        (2, moments([55_000, 65_000, 75_000, 85_000, 95_000, 99_000])),
    ]))));
    while !search.timing().starts.contains(&start) && search.number() < 100 {
        search.learn(Some(place), &[]);
    }
    search.number()
}

#[test]
fn a_thread_may_start_behind_what_another_did_before_its_first_record() {
    // What the second does before its first record makes the first leave the log, or the second itself.
    let start = |behind| Start { stream: 2, behind };
    assert!(attempts_until(start(Some((1, 64))), (1, 64)) <= 10);
    assert!(attempts_until(start(None), (2, 16)) <= 10);
    assert!(attempts_until(start(Some((1, 48))), (2, 16)) <= 20);
}
