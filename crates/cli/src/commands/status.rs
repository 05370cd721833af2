//! `understudy status`: how the containers of this machine are.

use std::io::{self, Write};
use std::path::Path;

use shim::control::{self, Answer, Request, Status};

use crate::arguments::StatusArguments;
use crate::failure::Failure;

pub(crate) fn run(arguments: &StatusArguments) -> Result<i32, Failure> {
    let directory = control::directory();
    let text = match &arguments.name {
        Some(name) => {
            let status = ask(&control::find(&directory, name)?)?;
            if arguments.json {
                serde_json::to_string(&status)? + "\n"
            } else {
                details(&status)
            }
        }
        None => {
            // One that ends between being listed and being asked is not there any more.
            let paths = control::list(&directory)?;
            let all: Vec<Status> = paths.iter().filter_map(|path| ask(path).ok()).collect();
            if arguments.json {
                serde_json::to_string(&all)? + "\n"
            } else {
                table(&all)
            }
        }
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(0)
}

fn ask(path: &Path) -> Result<Status, Failure> {
    match control::ask(path, Request::Status)? {
        Answer::Status(status) => Ok(*status),
        Answer::Refused(reason) => Err(Failure::new(reason)),
        Answer::Done => Err(Failure::new(format!("{} gives no status", path.display()))),
    }
}

/// A field as it is shown: name and value.
fn fields(status: &Status) -> [(&'static str, String); 15] {
    // Role and state are shown by the words they have in JSON.
    let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    [
        ("name", status.name.clone()),
        ("role", word(&status.role)),
        ("state", word(&status.state)),
        ("mode", status.mode.clone()),
        ("address", status.address.clone()),
        ("pid", status.pid.to_string()),
        ("backup", status.backup.clone()),
        ("generation", status.generation.to_string()),
        ("epoch", status.epoch.to_string()),
        ("log_lag_bytes", status.log_lag_bytes.to_string()),
        ("log_records", status.log_records.to_string()),
        ("log_bytes", status.log_bytes.to_string()),
        (
            "replay_ms_predicted",
            status.replay_ms_predicted.to_string(),
        ),
        ("pause_us_p50", status.pause_us_p50.to_string()),
        ("pause_us_p99", status.pause_us_p99.to_string()),
    ]
}

fn details(status: &Status) -> String {
    fields(status)
        .iter()
        .map(|(name, value)| format!("{name:20} {value}\n"))
        .collect()
}

/// The first seven fields of each, in columns.
fn table(all: &[Status]) -> String {
    const COLUMNS: usize = 7;
    if all.is_empty() {
        return "no container runs here\n".into();
    }
    let rows: Vec<_> = all.iter().map(fields).collect();
    let mut lines = vec![rows[0].clone().map(|(name, _)| name.to_uppercase())];
    lines.extend(rows.into_iter().map(|row| row.map(|(_, value)| value)));
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let format = |line: &[String; 15]| {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(format).collect()
}
