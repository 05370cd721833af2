//! The simulated protocol: no seed finds a violation, and every mistake that is made on purpose is found.

use understudy_bench::sim::{self, Plant, Tally};

const SEEDS: u64 = 100_000;
/// Within so many seeds, a mistake must be found.
const FOUND: u64 = 1000;

#[test]
fn no_seed_finds_a_violation() {
    let threads = 2;
    let run = |first: u64| {
        let mut all = Tally::default();
        for seed in (first..SEEDS).step_by(threads) {
            all += sim::run(seed, None).unwrap_or_else(|violation| panic!("{violation}"));
        }
        all
    };
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let halves = [0, 1].map(|first| scope.spawn(move || run(first)));
        for half in halves {
            all += half.join().expect("a seed finds one");
        }
    });
    // The faults that matter did happen.
    let counts = [
        all.live,
        all.revoked,
        all.restarted,
        all.died,
        all.committed,
    ];
    assert!(counts.iter().all(|count| *count > SEEDS / 10), "{all:?}");
}

#[test]
fn every_planted_mistake_is_found() {
    for (name, plant) in Plant::ALL {
        let found = (0..FOUND).find_map(|seed| sim::run(seed, Some(plant)).err());
        assert!(found.is_some(), "{name} is not found within {FOUND} seeds");
    }
}
