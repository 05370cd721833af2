//! Hosts that come back when their service runs elsewhere.

use tempfile::TempDir;
use understudy_bench::fault::{self, KINDS};
use understudy_bench::service::Protection;
use understudy_tests::{options, repeats, understudy};

#[test]
fn a_host_that_stood_still_is_mute_when_it_goes_on() {
    let frozen = KINDS.iter().find(|kind| kind.name == "frozen");
    let frozen = frozen.expect("there is such a kind of fault");
    for seed in 1..=u64::from(repeats()) {
        let scratch = TempDir::new().expect("a directory can be made");
        let protection = Protection {
            understudy: understudy().expect("there is a program to test"),
            options: options(),
            ..Protection::default()
        };
        let outcome = fault::inject(frozen, seed, &protection, scratch.path());
        let outcome = outcome.expect("it comes so far as to be struck");
        assert!(outcome.complaints.is_empty(), "{outcome:#?}");
    }
}
