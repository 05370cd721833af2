//! How long the steps of a takeover take.

use std::time::{Duration, Instant};

/// Notes how long steps take.
pub(super) struct Clock {
    since: Instant,
    /// Those that are over, in their order.
    pub(super) steps: Vec<(&'static str, Duration)>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            since: Instant::now(),
            steps: Vec::new(),
        }
    }

    /// This one is over.
    pub(super) fn step(&mut self, name: &'static str) {
        let took = self.since.elapsed();
        self.since = Instant::now();
        tracing::info!(step = name, ms = took.as_secs_f64() * 1e3, "takeover");
        self.steps.push((name, took));
    }
}
