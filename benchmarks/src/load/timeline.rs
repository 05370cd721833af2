//! When replies came: counts per ten milliseconds, and the silences between.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Width of one count.
pub const STEP: Duration = Duration::from_millis(10);
/// Shorter silences are not kept.
const SHORTEST: Duration = Duration::from_millis(1);
/// A fault shows in the first silence that ends this long behind it at the latest, if it ends at all.
const SHOWS_WITHIN: Duration = Duration::from_secs(2);

/// A time without any reply.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gap {
    /// Since the start of the load.
    pub start_ms: f64,
    /// Its length.
    pub ms: f64,
    /// False if no reply came behind it.
    pub ended: bool,
}

/// Replies over time.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    start: Instant,
    counts: Vec<u32>,
    last: Instant,
    gaps: Vec<Gap>,
}

impl Timeline {
    pub(crate) const fn new(start: Instant) -> Self {
        Self {
            start,
            counts: Vec::new(),
            last: start,
            gaps: Vec::new(),
        }
    }

    /// Counts a reply.
    pub(crate) fn reply(&mut self, now: Instant) {
        self.advance(now);
        if let Some(count) = self.counts.last_mut() {
            *count += 1;
        }
        self.silence(now, true);
        self.last = now;
    }

    /// Makes room up to `now`; returns how many counts are complete.
    pub(crate) fn advance(&mut self, now: Instant) -> usize {
        let index = now.saturating_duration_since(self.start).as_nanos() / STEP.as_nanos();
        let index = usize::try_from(index).unwrap_or_default();
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        index
    }

    fn silence(&mut self, now: Instant, ended: bool) {
        let length = now.saturating_duration_since(self.last);
        if length >= SHORTEST {
            let start_ms = millis(self.last.saturating_duration_since(self.start));
            self.gaps.push(Gap {
                start_ms,
                ms: millis(length),
                ended,
            });
        }
    }

    /// The end of the load: a silence that lasts until now counts, unended.
    pub(crate) fn finish(&mut self, now: Instant) {
        self.advance(now);
        self.silence(now, false);
    }

    pub(crate) fn counts(&self) -> &[u32] {
        &self.counts
    }

    pub(crate) fn gaps(&self) -> &[Gap] {
        &self.gaps
    }
}

/// The longest of the gaps.
pub(crate) fn longest<'a>(gaps: impl IntoIterator<Item = &'a Gap>) -> Option<Gap> {
    gaps.into_iter()
        .copied()
        .max_by(|a, b| a.ms.total_cmp(&b.ms))
}

/// The gap that a fault so long behind the start has made.
pub(crate) fn around(gaps: &[Gap], fault: Duration) -> Option<Gap> {
    let fault = millis(fault);
    let shows = fault + millis(SHOWS_WITHIN);
    longest(
        gaps.iter()
            .filter(|gap| gap.start_ms + gap.ms >= fault && gap.start_ms <= shows),
    )
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silences_are_found_and_the_one_of_a_fault_told_from_others() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut line = Timeline::new(start);
        for ms in [5, 15, 16, 516, 520, 5000, 5100] {
            line.reply(at(ms));
        }
        line.finish(at(5200));
        assert_eq!(&line.counts()[..3], &[1, 2, 0]);
        assert_eq!(line.counts().len(), 521);
        let whole = longest(line.gaps()).unwrap();
        assert_eq!(
            (whole.start_ms, whole.ms, whole.ended),
            (520.0, 4480.0, true)
        );
        assert_eq!(
            around(line.gaps(), Duration::from_millis(5050)).unwrap().ms,
            100.0
        );
        let last = around(line.gaps(), Duration::from_millis(5150)).unwrap();
        assert_eq!((last.ms, last.ended), (100.0, false));
    }
}
