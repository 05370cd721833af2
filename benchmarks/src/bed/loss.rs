//! Losing a host: its uplink goes down and everything on it dies, in random order.

use std::time::Instant;

use anyhow::Result;

use super::{Host, processes};
use crate::rng::Rng;

impl Host {
    /// The processes of this host, containers included.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        processes::of(self.netns(), &self.roots())
    }

    /// The processes of this host, containers included, whose command has this name.
    #[must_use]
    pub fn processes_named(&self, name: &str) -> Vec<i32> {
        let mut all = self.processes();
        all.retain(|pid| processes::name(*pid).is_some_and(|found| found == name));
        all
    }

    /// Cuts the host off and kills everything on it; `rng` decides the order, in which the uplink may come
    /// first, last or between two processes. Returns when the first blow fell.
    ///
    /// # Errors
    /// If the uplink cannot be taken down, or a process is still there ten seconds later.
    pub fn lose(&self, rng: &mut Rng) -> Result<Instant> {
        let mut blows: Vec<Option<i32>> = self
            .processes()
            .into_iter()
            .map(Some)
            .chain([None])
            .collect();
        rng.shuffle(&mut blows);
        let start = Instant::now();
        for blow in blows {
            match blow {
                Some(pid) => processes::kill(pid),
                None => self.set_uplink(false)?,
            }
        }
        // What was being forked meanwhile.
        let left = self.kill_all();
        anyhow::ensure!(
            left.is_empty(),
            "on {} these processes survive SIGKILL: {left:?}",
            self.name()
        );
        Ok(start)
    }
}
