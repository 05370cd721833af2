//! What came of it, on one screen.

use std::fmt::Write;
use std::time::Instant;

use understudy_bench::load::{Gap, Report, STEP};

/// Most wrongs that are spelt out.
const EXAMPLES: usize = 3;

/// The closing words.
pub(super) fn text(
    report: &Report,
    lost_at: Instant,
    gap: Option<Gap>,
    unprotected: bool,
    takeover: &Option<String>,
) -> String {
    let lost_at = lost_at.saturating_duration_since(report.start);
    let split = usize::try_from(lost_at.as_nanos() / STEP.as_nanos()).unwrap_or(usize::MAX);
    let (before, after) = report.per_10ms.split_at(split.min(report.per_10ms.len()));
    let mut lines = vec![
        (
            "host lost after",
            format!("{:.2} s, under load", lost_at.as_secs_f64()),
        ),
        ("without an answer", silence(gap)),
        (
            "answered",
            format!("{} before the loss, {} behind it", sum(before), sum(after)),
        ),
        ("acknowledged, lost", known(report, report.faults.lost)),
        ("done twice", known(report, report.faults.twice)),
        ("wrong replies", report.faults.wrong.to_string()),
        (
            "connections broken",
            format!("{} (reset or refused: {})", report.broken, report.resets),
        ),
        (
            "latency",
            format!(
                "half within {:.0} µs, 99 % within {:.0} µs",
                report.latency.p50_us, report.latency.p99_us
            ),
        ),
    ];
    match &report.audit.failed {
        None => lines.push((
            "read back at the end",
            format!("{} keys, counters and lists", report.audit.read),
        )),
        Some(why) => lines.push(("read back at the end", format!("not possible: {why}"))),
    }
    match (takeover, unprotected) {
        (Some(line), _) => lines.push(("the backup said", line.clone())),
        (None, true) => lines.push((
            "protection",
            "none, as asked for: the service is gone with its host".to_owned(),
        )),
        (None, false) => lines.push(("the backup said", "nothing about a takeover".to_owned())),
    }
    let mut text = String::new();
    for (what, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:>21}  {value}");
    }
    for example in report.faults.examples.iter().take(EXAMPLES) {
        let _ = writeln!(text, "{:>21}  {example}", "seen");
    }
    text
}

/// A count that is complete only if everything could be read back.
fn known(report: &Report, count: u64) -> String {
    if report.audit.failed.is_some() {
        format!("unknown ({count} seen before the loss)")
    } else {
        count.to_string()
    }
}

fn silence(gap: Option<Gap>) -> String {
    match gap {
        Some(gap) if gap.ended => format!("{:.0} ms", gap.ms),
        Some(_) => "for ever: no answer came after the loss".to_owned(),
        None => "less than 1 ms".to_owned(),
    }
}

fn sum(counts: &[u32]) -> u64 {
    counts.iter().map(|&count| u64::from(count)).sum()
}
