//! Servers of every kind survive the loss of their `understudy run`, and clients that check every answer go on.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

mod forking;
mod http;
mod memcached;
mod mqtt;
mod tarantool;
mod threading;

use std::path::Path;

use understudy_bench::bed::Bed;
use understudy_bench::service::{Loss, Protection, Service};
use understudy_tests::crowd::{Client, through_a_loss};
use understudy_tests::{options, scratch, seeds, understudy};

/// Starts a server whose files `prepare` puts into a directory, and takes it through losses.
fn survives<C: Client>(port: u16, prepare: impl Fn(&Path) -> Vec<String>) {
    leaves::<C>(port, prepare, |_| {});
}

/// The same, and looks at the backup's copy of that directory, with which the server has gone on.
fn leaves<C: Client>(port: u16, prepare: impl Fn(&Path) -> Vec<String>, look: impl Fn(&Path)) {
    for seed in seeds() {
        let (bed, scratch) = (Bed::new().unwrap(), scratch().unwrap());
        let files = scratch.path().canonicalize().unwrap().join("files");
        std::fs::create_dir(&files).unwrap();
        let command = prepare(&files);
        let mut options = options();
        options.extend(["--mirror".to_owned(), files.display().to_string()]);
        let protection = Protection {
            understudy: understudy().unwrap(),
            options,
            ..Protection::default()
        };
        let directory = scratch.path().join("service");
        let service = Service::protected(&bed, &directory, &protection, &command, port).unwrap();
        let went_on = through_a_loss::<C>(&bed, &service, Loss::Shim, seed);
        let (longest, line) = went_on.unwrap_or_else(|e| {
            let [run, backup] = ["run", "backup"].map(|name| service.said(name));
            panic!("{seed}: {e:#}; the server said: {run}; the backup: {backup}")
        });
        println!("{seed}: longest reply {longest:.0?}, {line}");
        let name = Path::new(&command[0]).file_name().unwrap();
        drop(service);
        look(&directory.join("state/mirrors").join(name).join("0"));
    }
}
