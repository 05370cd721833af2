//! A container that could not be taken over: its attempts, again.

use std::path::Path;

use backup::{evidence, takeover};
use shim::preflight;

use crate::arguments::RetryArguments;
use crate::failure::Failure;

pub(super) fn run(directory: &Path, retry: RetryArguments) -> Result<i32, Failure> {
    preflight::root()?;
    preflight::features(|_| true)?;
    let guard = evidence::open(directory)?;
    let name = guard.hello().name.clone();
    check_host(&guard.hello().host)?;
    let mut search = retry.search();
    let told = name.clone();
    let tell = Box::new(move |attempt, error: &takeover::TakeoverError| {
        eprintln!("understudy: replay of {told}, attempt {attempt}: {error}");
    });
    takeover::rehearse(&guard, &mut search, tell).map_err(|error| {
        let attempt = search.number();
        Failure::new(format!(
            "{name} could not be replayed, attempt {attempt}: {error}; --retry-budget gives it more time"
        ))
    })?;
    println!("replayed {name} attempts={}", search.number());
    Ok(0)
}

/// Where calls may answer otherwise, a replay tells nothing.
fn check_host(theirs: &[(String, String)]) -> Result<(), Failure> {
    let ours = shim::host_traits()?;
    // Another build may well make the attempts: that is what one would want to know of a newer one.
    let counts = |one: &&(String, String)| one.0 != shim::BUILD && !ours.contains(one);
    match theirs.iter().find(counts) {
        None => Ok(()),
        Some((what, value)) => Err(Failure::new(format!(
            "the container ran on a host with {what} {value}, which this host has not: replay it there"
        ))),
    }
}
