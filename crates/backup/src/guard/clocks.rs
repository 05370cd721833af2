//! The primary's clocks as heartbeats tell them, for a container that is to see them go on.

use stream::Clocks;

/// After so long, in nanoseconds, what a heartbeat told of the difference between clocks is forgotten: they drift.
const WINDOW: i64 = 5_000_000_000;
/// Nanoseconds between two heartbeats that tell how fast the primary's time-stamp counter counts.
const BASELINE: i64 = 1_000_000;

/// What is known of them.
#[derive(Clone, Debug, Default)]
pub struct PrimaryClocks {
    /// The first heartbeat's, and the last's.
    ends: Option<[Clocks; 2]>,
    /// The greatest leads of this window and of the one before. The way of a heartbeat makes a lead look smaller than
    /// it is, never greater.
    leads: [Option<Lead>; 2],
    /// When this window began, by our monotonic clock.
    began: i64,
}

/// How many nanoseconds the primary's clocks are ahead of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lead {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime: i64,
    /// `CLOCK_REALTIME`.
    pub realtime: i64,
}

impl Lead {
    fn of(theirs: &Clocks, ours: &Clocks) -> Self {
        Self {
            monotonic: theirs.monotonic.saturating_sub(ours.monotonic),
            boottime: theirs.boottime.saturating_sub(ours.boottime),
            realtime: theirs.realtime.saturating_sub(ours.realtime),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            monotonic: self.monotonic.max(other.monotonic),
            boottime: self.boottime.max(other.boottime),
            realtime: self.realtime.max(other.realtime),
        }
    }
}

impl PrimaryClocks {
    /// A heartbeat came that told `theirs`, when ours showed `ours`.
    pub(crate) fn heard(&mut self, theirs: &Clocks, ours: &Clocks) {
        let [first, _] = self.ends.unwrap_or([*theirs; 2]);
        self.ends = Some([first, *theirs]);
        if ours.monotonic.saturating_sub(self.began) >= WINDOW {
            self.leads = [None, self.leads[0]];
            self.began = ours.monotonic;
        }
        let lead = Lead::of(theirs, ours);
        self.leads[0] = Some(self.leads[0].map_or(lead, |known| known.max(lead)));
    }

    /// How far they are ahead, at most by the way of a heartbeat more than this. `None` before the first heartbeat.
    #[must_use]
    pub fn lead(&self) -> Option<Lead> {
        self.leads.into_iter().flatten().reduce(Lead::max)
    }

    /// What the primary's monotonic clock showed when its time-stamp counter showed `cycles`. `None` as long as two
    /// heartbeats do not tell how fast that counts.
    #[must_use]
    pub fn monotonic_at(&self, cycles: u64) -> Option<i64> {
        let [first, last] = self.ends?;
        let [passed, counted] = {
            let passed = i128::from(last.monotonic) - i128::from(first.monotonic);
            [passed, i128::from(last.cycles) - i128::from(first.cycles)]
        };
        if passed < i128::from(BASELINE) || counted <= 0 {
            return None;
        }
        let since = i128::from(last.cycles) - i128::from(cycles);
        let at = i128::from(last.monotonic) - since * passed / counted;
        i64::try_from(at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    const START: u64 = 1 << 50;

    /// A primary that is 7 s ahead in `CLOCK_MONOTONIC`, with a counter of 2 GHz.
    fn at(ms: i64) -> [Clocks; 2] {
        let clocks = |ns: i64| Clocks {
            monotonic: ns,
            boottime: ns,
            realtime: ns,
            cycles: START.wrapping_add_signed(2 * ns),
        };
        [clocks(7_000 * MS + ms * MS), clocks(ms * MS)]
    }

    fn heard(clocks: &mut PrimaryClocks, sent: i64, came: i64) {
        let ([theirs, _], [_, ours]) = (at(sent), at(came));
        clocks.heard(&theirs, &ours);
    }

    #[test]
    fn the_fastest_heartbeat_tells_how_far_clocks_are_apart_and_is_forgotten() {
        let mut clocks = PrimaryClocks::default();
        assert_eq!(clocks.lead(), None);
        let lead = |clocks: &PrimaryClocks| clocks.lead().unwrap().monotonic;
        heard(&mut clocks, 10_000, 10_005);
        assert_eq!(lead(&clocks), 6_995 * MS);
        heard(&mut clocks, 10_010, 10_011);
        heard(&mut clocks, 10_020, 10_120);
        assert_eq!(lead(&clocks), 6_999 * MS);
        heard(&mut clocks, 16_000, 16_004);
        assert_eq!(lead(&clocks), 6_999 * MS, "of the window before");
        heard(&mut clocks, 22_000, 22_003);
        assert_eq!(lead(&clocks), 6_997 * MS);
    }

    #[test]
    fn moments_of_the_counter_are_moments_of_the_clock() {
        let mut clocks = PrimaryClocks::default();
        heard(&mut clocks, 0, 1);
        assert_eq!(
            clocks.monotonic_at(5),
            None,
            "how fast it counts is not known"
        );
        heard(&mut clocks, 1_000, 1_001);
        let cycles = |ms: i64| at(ms)[0].cycles;
        for ms in [-500, 0, 400, 1_500] {
            assert_eq!(clocks.monotonic_at(cycles(ms)), Some((7_000 + ms) * MS));
        }
    }

    #[test]
    fn nonsense_is_survived() {
        let extremes = [i64::MIN, -1, 0, i64::MAX];
        let all = extremes.map(|time| Clocks {
            monotonic: time,
            boottime: time,
            realtime: time,
            cycles: time.cast_unsigned(),
        });
        let mut clocks = PrimaryClocks::default();
        for (theirs, ours) in all.iter().flat_map(|a| all.iter().map(move |b| (a, b))) {
            clocks.heard(theirs, ours);
            let _ = (
                clocks.lead(),
                clocks.monotonic_at(u64::MAX),
                clocks.monotonic_at(0),
            );
        }
    }
}
