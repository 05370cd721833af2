//! A takeover without clients: a container that was kept is replayed to the end of its log, and goes no further.

use std::sync::Arc;

use eventlog::fold::Merge;
use shim::container::{Isolation, Spec};

use super::checkpoint::Checkpoint;
use super::clock::Clock;
use super::error::Result;
use super::log::Log;
use super::process;
use super::search::Search;
use super::stage::{Director, Past, Stage};
use super::waiting::Tell;
use crate::guard::Guard;

/// Replays a container in attempts, as many as `search` allows; `tell` hears of those that failed. What was replayed is
/// gone afterwards.
///
/// # Errors
/// That of the last attempt.
pub fn rehearse(guard: &Arc<Guard<Checkpoint>>, search: &mut Search, mut tell: Tell) -> Result<()> {
    loop {
        let error = match once(guard, search, &mut tell) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !error.may_come_right() || !search.may_go_on() {
            return Err(error);
        }
        // The container has ended with its program.
        tell(search.number(), &error);
        search.missed();
    }
}

fn once(guard: &Arc<Guard<Checkpoint>>, search: &mut Search, tell: &mut Tell) -> Result<()> {
    let mut stage = Stage::prepare(&Spec {
        mounts: Vec::new(),
        name: format!("replay-{}", std::process::id()),
        isolation: Isolation::Full,
        link: None,
    })?;
    // As a standby does before it is needed.
    while stage.follow(guard) {}
    let mut clock = Clock::start();
    let mut committed = guard.image();
    let checkpoint = &mut committed.image;
    let log = Log::new(Arc::clone(guard));
    let merge = Merge::restore(checkpoint.fold()?)?;
    let files = process::files(merge.fold());
    let past = Past {
        files: &files,
        log: &log,
    };
    let mut director = Director {
        is_needed: &|| Ok(()),
        tell,
    };
    stage.replay(checkpoint, &past, search, &mut clock, &mut director)?;
    Ok(())
}
