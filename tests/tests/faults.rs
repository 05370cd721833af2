//! Hosts that come back: the old one when the service runs elsewhere, and the backup's.

use tempfile::TempDir;
use understudy_bench::fault::{self, KINDS};
use understudy_bench::service::Protection;
use understudy_tests::{options, repeats, understudy};

/// Strikes redis under load, as often as the tests are to be repeated.
fn strike(kind: &str) {
    let kind = KINDS.iter().find(|one| one.name == kind);
    let kind = kind.expect("there is such a kind of fault");
    for seed in 1..=u64::from(repeats()) {
        let scratch = TempDir::new().expect("a directory can be made");
        let protection = Protection {
            understudy: understudy().expect("there is a program to test"),
            options: options(),
            ..Protection::default()
        };
        let outcome = fault::inject(kind, seed, &protection, scratch.path());
        let outcome = outcome.expect("it comes so far as to be struck");
        assert!(outcome.complaints.is_empty(), "{outcome:#?}");
    }
}

#[test]
fn a_host_that_stood_still_is_mute_when_it_goes_on() {
    strike("frozen");
}

#[test]
fn the_service_goes_on_when_its_backup_is_back_and_survives_its_host_then() {
    strike("backup-host");
}
