//! The gap as a drawing: answered requests around the loss of the host.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use understudy_bench::load::{Gap, Report, STEP};

/// What is shown before the loss and behind the gap, at least, in milliseconds.
const MARGIN: f64 = 500.0;

/// Draws `report` around `lost_at` into a file.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn draw(path: &Path, report: &Report, lost_at: Instant, gap: Option<Gap>) -> Result<()> {
    drawn(path, report, lost_at, gap)
        .map_err(|e| anyhow!("{} could not be drawn: {e}", path.display()))
}

fn drawn(
    path: &Path,
    report: &Report,
    lost_at: Instant,
    gap: Option<Gap>,
) -> Result<(), Box<dyn std::error::Error>> {
    let step = STEP.as_secs_f64() * 1000.0;
    let lost = lost_at
        .saturating_duration_since(report.start)
        .as_secs_f64()
        * 1000.0;
    let end_of_all = report.per_10ms.len() as f64 * step;
    let behind = gap
        .filter(|gap| gap.ended)
        .map_or(lost, |gap| gap.start_ms + gap.ms);
    let (from, to) = (
        (lost - MARGIN).max(0.0),
        (behind + 2.0 * MARGIN).min(end_of_all),
    );
    let bars: Vec<(f64, u32)> = report
        .per_10ms
        .iter()
        .enumerate()
        .map(|(n, count)| (n as f64 * step, *count))
        .collect();
    let shown = || bars.iter().filter(|(at, _)| *at >= from && *at < to);
    let most = shown().map(|(_, count)| *count).max().unwrap_or(1).max(1) as f64 * 1.1;

    let area = SVGBackend::new(path, (1000, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(caption(gap), ("sans-serif", 28))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(52)
        .y_label_area_size(84)
        .build_cartesian_2d(from - lost..to - lost, 0.0..most)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("milliseconds since the host was lost")
        .y_desc("requests answered per 10 ms")
        .x_label_formatter(&|ms| format!("{ms:.0}"))
        .y_label_formatter(&|count| format!("{count:.0}"))
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 18))
        .axis_desc_style(("sans-serif", 20))
        .draw()?;
    if let Some(gap) = gap {
        let right = if gap.ended { gap.start_ms + gap.ms } else { to };
        let corners = [(gap.start_ms - lost, 0.0), (right - lost, most)];
        chart.draw_series([Rectangle::new(corners, RGBColor(255, 224, 224).filled())])?;
    }
    chart.draw_series(shown().map(|(at, count)| {
        let corners = [(at - lost, 0.0), (at + step - lost, f64::from(*count))];
        Rectangle::new(corners, RGBColor(38, 110, 180).filled())
    }))?;
    chart.draw_series([PathElement::new(
        [(0.0, 0.0), (0.0, most)],
        RED.stroke_width(2),
    )])?;
    area.present()?;
    Ok(())
}

fn caption(gap: Option<Gap>) -> String {
    match gap {
        Some(gap) if gap.ended => format!("The host is lost: {:.0} ms without an answer", gap.ms),
        Some(_) => "The host is lost, and no answer comes any more".to_owned(),
        None => "The host is lost, and less than 1 ms passes without an answer".to_owned(),
    }
}
