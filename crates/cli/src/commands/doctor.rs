//! `understudy doctor`: which kernel features are there.

use std::io::{self, Write};

use sys::features::FEATURES;

use crate::failure::Failure;

pub(crate) fn run() -> Result<i32, Failure> {
    let mut out = io::stdout().lock();
    let mut missing = Vec::new();
    for feature in FEATURES {
        match feature.probe() {
            Ok(()) => writeln!(out, "ok       {:22} {}", feature.name, feature.purpose)?,
            Err(error) => {
                missing.push(feature.name);
                writeln!(
                    out,
                    "missing  {:22} {} ({error})",
                    feature.name, feature.purpose
                )?;
            }
        }
    }
    if missing.is_empty() {
        return Ok(0);
    }
    Err(Failure::new(format!(
        "this machine cannot protect a container, since it lacks {}: see above for what each is for",
        missing.join(", ")
    )))
}
