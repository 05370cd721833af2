//! Samples, what they come to, and how it is shown.

use anyhow::Result;
use serde::Serialize;

use crate::commands::median;

/// How the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Way {
    /// As it is.
    Plain,
    /// `understudy record`: the log goes to a file, and the server sends for itself.
    Recorded,
    /// `understudy run --backup none`.
    Contained,
    /// `understudy run`, and no checkpoint after the first.
    Log,
    /// `understudy run`.
    Checkpoints,
}

impl Way {
    /// In the order in which they alternate.
    pub(super) const ALL: [Self; 5] = [
        Self::Plain,
        Self::Recorded,
        Self::Contained,
        Self::Log,
        Self::Checkpoints,
    ];

    /// What it is compared with: the same way through the network, without Understudy.
    const fn base(self) -> Self {
        match self {
            Self::Plain | Self::Recorded => Self::Plain,
            Self::Contained | Self::Log | Self::Checkpoints => Self::Contained,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Recorded => "recorded",
            Self::Contained => "contained",
            Self::Log => "log",
            Self::Checkpoints => "checkpoints",
        }
    }

    pub(super) const fn has_backup(self) -> bool {
        matches!(self, Self::Log | Self::Checkpoints)
    }
}

/// One measurement; times in microseconds for a request.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Sample {
    /// Requests a second.
    pub(super) rate: f64,
    /// User and system time of the server's processes.
    pub(super) server: f64,
    /// How often a thread of the server went to sleep, for each request.
    pub(super) sleeps: f64,
    /// Time of `understudy` on the primary.
    pub(super) shim: f64,
    /// Time of `understudy` on the backup.
    pub(super) backup: f64,
    /// Records of the log for each request.
    pub(super) records: f64,
    /// Their bytes.
    pub(super) bytes: f64,
    /// Checkpoints that were committed meanwhile.
    pub(super) epochs: f64,
    /// Memory of the server without a file behind it, MiB.
    pub(super) memory: f64,
}

/// Of all turns: half of them lie between the quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    median: f64,
    lower: f64,
    upper: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median: median(sorted.iter().copied()),
            lower: at(last / 4),
            upper: at((3 * last).div_ceil(4)),
        }
    }
}

/// What the turns of one way came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Row {
    way: Way,
    /// The median of each figure by itself.
    middle: Sample,
    /// The server's time, compared with that of the same turn without Understudy.
    ratio: Spread,
    /// The same of server and shim together.
    primary: Spread,
}

/// A row for each way, in the order of [`Way::ALL`]; each has its samples in the order of the turns.
pub(super) fn rows(all: &[Vec<Sample>]) -> Vec<Row> {
    let row = |(way, samples): (Way, &Vec<Sample>)| {
        let base = Way::ALL
            .into_iter()
            .zip(all)
            .find(|(base, _)| *base == way.base());
        let base = base.map_or(&[][..], |(_, samples)| samples);
        let compared = |cost: fn(&Sample) -> f64| {
            Spread::of(
                samples
                    .iter()
                    .zip(base)
                    .map(move |(s, base)| cost(s) / cost(base)),
            )
        };
        Row {
            way,
            middle: middle(samples),
            ratio: compared(|s| s.server),
            primary: compared(|s| s.server + s.shim),
        }
    };
    Way::ALL.into_iter().zip(all).map(row).collect()
}

fn middle(samples: &[Sample]) -> Sample {
    let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field));
    Sample {
        rate: of(|s| s.rate),
        server: of(|s| s.server),
        sleeps: of(|s| s.sleeps),
        shim: of(|s| s.shim),
        backup: of(|s| s.backup),
        records: of(|s| s.records),
        bytes: of(|s| s.bytes),
        epochs: of(|s| s.epochs),
        memory: of(|s| s.memory),
    }
}

/// One line of JSON.
pub(super) fn json(server: &str, rows: &[Row]) -> Result<String> {
    #[derive(Serialize)]
    struct Table<'a> {
        server: &'a str,
        ways: &'a [Row],
    }
    Ok(serde_json::to_string(&Table { server, ways: rows })?)
}

/// Prints the rows in columns.
pub(super) fn print(rows: &[Row]) {
    println!(
        "{:<12}{:>8}{:>8}{:>18}{:>18}{:>8}{:>8}{:>8}{:>9}{:>7}{:>12}{:>8}",
        "",
        "req/s",
        "server",
        "ratio",
        "primary ratio",
        "sleeps",
        "shim",
        "backup",
        "records",
        "bytes",
        "checkpoints",
        "MiB"
    );
    for Row {
        way,
        middle: s,
        ratio,
        primary,
    } in rows
    {
        let spread = |s: &Spread| format!("{:.2} ({:.2}–{:.2})", s.median, s.lower, s.upper);
        println!(
            "{:<12}{:>8.0}{:>8.2}{:>18}{:>18}{:>8.2}{:>8.2}{:>8.2}{:>9.2}{:>7.0}{:>12.0}{:>8.1}",
            way.name(),
            s.rate,
            s.server,
            spread(ratio),
            spread(primary),
            s.sleeps,
            s.shim,
            s.backup,
            s.records,
            s.bytes,
            s.epochs,
            s.memory,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_compared_each_with_its_own_baseline() {
        let samples = |all: [(f64, f64); 3]| {
            let sample = |(server, shim)| Sample {
                server,
                shim,
                ..Sample::default()
            };
            all.map(sample).to_vec()
        };
        let all = [
            samples([(10.0, 0.0), (20.0, 0.0), (40.0, 0.0)]),
            samples([(11.0, 1.0), (20.0, 2.0), (60.0, 4.0)]),
        ];
        let rows = rows(&all);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].ratio.lower, rows[0].ratio.upper), (1.0, 1.0));
        assert_eq!((rows[1].way, rows[1].middle.server), (Way::Recorded, 20.0));
        let Spread {
            median,
            lower,
            upper,
        } = rows[1].ratio;
        assert_eq!((median, lower, upper), (1.1, 1.0, 1.5));
        assert_eq!(rows[1].primary.upper, 1.6);
        assert_eq!(Spread::of((0..9).map(f64::from)).lower, 2.0);
    }
}
