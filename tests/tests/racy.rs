//! Servers whose threads race survive, or are given up; none goes on from a past that its clients do not know.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use tempfile::TempDir;
use understudy_bench::bed::Bed;
use understudy_bench::race::{KINDS, Outcome, Race, compile, lose};
use understudy_bench::service::Protection;
use understudy_tests::{options, repeats, understudy};

/// So seldom that a recovery can be expected.
const ONE_IN: u32 = 2000;

#[test]
fn every_kind_of_race() {
    recovered(ONE_IN, &[]);
}

#[test]
fn races_in_every_request_where_one_thread_runs_at_a_time() {
    recovered(1, &["--serial"]);
}

fn recovered(one_in: u32, more: &[&str]) {
    let scratch = TempDir::new().unwrap();
    let program = compile(scratch.path()).unwrap();
    let given = options().into_iter();
    let protection = Protection {
        understudy: understudy().unwrap(),
        options: given.chain(more.iter().map(|&o| o.to_owned())).collect(),
        ..Protection::default()
    };
    for seed in 1..=u64::from(repeats()) {
        for kind in KINDS {
            let race = Race {
                kind: kind.to_owned(),
                one_in,
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
