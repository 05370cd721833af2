//! Servers whose threads race survive, or are given up; none goes on from a past that its clients do not know.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use understudy_bench::bed::Bed;
use understudy_bench::race::{KINDS, Outcome, Race, compile, lose};
use understudy_bench::service::Protection;
use understudy_tests::{Ended, options, repeats, run, understudy};

/// So seldom that a recovery can be expected.
const ONE_IN: u32 = 2000;
/// So often that one attempt without the order of time fails most of the time, and some with it do not.
const OFTEN: u32 = 100;

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

/// Loses a server whose only attempt fails; what the backup has kept of it, under `scratch`.
fn given_up(scratch: &Path) -> PathBuf {
    let program = compile(scratch).unwrap();
    let protection = Protection {
        understudy: understudy().unwrap(),
        backup_options: ["--timing", "off", "--retry-budget", "1ms"]
            .map(str::to_owned)
            .to_vec(),
        options: options(),
    };
    for seed in 1..=20 {
        let race = Race {
            kind: "flag".to_owned(),
            one_in: OFTEN,
            connections: 4,
            seed,
        };
        let (bed, own) = (Bed::new().unwrap(), scratch.join(seed.to_string()));
        let outcome = lose(&bed, &own, &program, &race, &protection).unwrap();
        println!("{seed}: {outcome:?}");
        if let Outcome::Lost(said) = outcome {
            let kept = own.join("state/failed/racy");
            let says = format!("see `understudy replay {}`", kept.display());
            assert!(said.contains(&says), "{said}");
            return kept;
        }
    }
    panic!("no attempt has failed");
}

fn replay(kept: &Path, options: &[&str]) -> Ended {
    let mut command = Command::new(understudy().unwrap());
    run(command.arg("replay").arg(kept).args(options)).unwrap()
}

#[test]
fn what_could_not_be_taken_over_is_kept_and_can_be_replayed() {
    let scratch = TempDir::new().unwrap();
    let kept = given_up(scratch.path());
    let again = replay(&kept, &["--retry-budget", "30s"]);
    let printed = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success(), "{again:?}");
    assert!(printed.starts_with("replayed racy attempts="), "{again:?}");

    // What is damaged is refused.
    for (file, says) in [
        ("log", "log is not a whole log: "),
        ("image", "image is not a checkpoint: "),
    ] {
        let path = kept.join(file);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [&flipped[..], &whole[..whole.len() / 2], &[]] {
            fs::write(&path, damaged).unwrap();
            let refused = replay(&kept, &[]);
            let said = &refused.stderr;
            assert_eq!(refused.status.code(), Some(1), "{refused:?}");
            assert!(said.contains(says) && said.lines().count() == 1, "{said}");
        }
        fs::write(&path, whole).unwrap();
    }
}
