//! Latencies, to within 1.6 % at any scale.

use std::time::Duration;

use serde::Serialize;

/// Each power of two is divided into so many equal parts.
const PARTS: u32 = 64;

/// Counts of durations.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

/// What a histogram says, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Half were faster.
    pub p50_us: f64,
    /// 90 % were faster.
    pub p90_us: f64,
    /// 99 % were faster.
    pub p99_us: f64,
    /// 99.9 % were faster.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; (64 * PARTS) as usize],
            total: 0,
            max: 0,
        }
    }

    fn bucket(nanos: u64) -> usize {
        let shift = (nanos | u64::from(PARTS)).ilog2() - PARTS.ilog2();
        (shift * PARTS) as usize + (nanos >> shift) as usize
    }

    /// The smallest duration that falls behind a bucket.
    fn end_of(bucket: usize) -> u64 {
        let parts = PARTS as usize;
        if bucket < 2 * parts {
            return bucket as u64 + 1;
        }
        let shift = bucket / parts - 1;
        ((bucket - shift * parts + 1) as u64) << shift
    }

    /// Counts one.
    pub(crate) fn add(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / 2);
        self.counts[Self::bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// The duration that this share of all did not exceed, in microseconds.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= wanted {
                return Self::end_of(bucket).min(self.max) as f64 / 1000.0;
            }
        }
        0.0
    }

    /// The usual figures.
    pub(crate) fn latency(&self) -> Latency {
        Latency {
            count: self.total,
            p50_us: self.quantile(0.5),
            p90_us: self.quantile(0.9),
            p99_us: self.quantile(0.99),
            p999_us: self.quantile(0.999),
            max_us: self.max as f64 / 1000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_known_numbers() {
        let mut all = Histogram::new();
        for micros in 1..=1000 {
            all.add(Duration::from_micros(micros));
        }
        let said = all.latency();
        assert_eq!((said.count, said.max_us), (1000, 1000.0));
        for (got, wanted) in [
            (said.p50_us, 500.0),
            (said.p90_us, 900.0),
            (said.p99_us, 990.0),
            (said.p999_us, 999.0),
        ] {
            assert!((got / wanted - 1.0).abs() < 0.02, "{got} for {wanted}");
        }
        assert_eq!(Histogram::new().latency(), Latency::default());
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_falls_into_it(nanos in 0..u64::MAX / 4) {
            let end = Histogram::end_of(Histogram::bucket(nanos));
            prop_assert!(nanos < end && (end - nanos) as f64 <= 1.0 + nanos as f64 / 32.0);
        }
    }
}
