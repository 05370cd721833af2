//! From the gate to the drain thread: answers to connection requests, which wait for the log.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use gate::Openings;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::egress::Shared;

/// How often the end of the run is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// The thread that waits for them.
pub(super) fn run(mut openings: Openings, shared: &Shared) {
    let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX);
    let mut new = Vec::new();
    while !shared.stop.load(Acquire) {
        let ready = poll(
            &mut [PollFd::new(openings.as_fd(), PollFlags::POLLIN)],
            timeout,
        );
        if let Err(error) = ready
            && error != nix::Error::EINTR
        {
            eprintln!("understudy: new connections cannot be seen any more: {error}");
            return;
        }
        openings.read(&mut new);
        if new.is_empty() {
            continue;
        }
        shared.openings().append(&mut new);
        shared.arena.ask_for_look();
    }
}
