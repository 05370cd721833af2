//! Servers whose threads race survive, or are given up; none goes on from a past that its clients do not know.

use tempfile::TempDir;
use understudy_bench::bed::Bed;
use understudy_bench::race::{KINDS, Outcome, Race, compile, lose};
use understudy_bench::service::Protection;
use understudy_tests::{options, repeats, understudy};

/// So seldom that a recovery can be expected.
const ONE_IN: u32 = 2000;

#[test]
fn every_kind_of_race() {
    let scratch = TempDir::new().unwrap();
    let program = compile(scratch.path()).unwrap();
    let protection = Protection {
        understudy: understudy().unwrap(),
        options: options(),
        ..Protection::default()
    };
    for seed in 1..=u64::from(repeats()) {
        for kind in KINDS {
            let race = Race {
                kind: kind.to_owned(),
                one_in: ONE_IN,
                connections: 4,
                seed,
            };
            let (bed, own) = (Bed::new().unwrap(), TempDir::new().unwrap());
            let outcome = lose(&bed, own.path(), &program, &race, &protection).unwrap();
            println!("{kind} {seed}: {outcome:?}");
            assert!(
                matches!(outcome, Outcome::Recovered { .. }),
                "{kind} {seed}"
            );
        }
    }
}
