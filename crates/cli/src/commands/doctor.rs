//! `understudy doctor`: which kernel features are there, and what is promised whatever they are.

use std::io::{self, Write};

use sys::features::FEATURES;

use crate::failure::Failure;

/// What a program may rely on less than on the rest, by name.
const NOTES: [(&str, &str); 1] = [(
    "shared-memory",
    "between processes it is kept and replayed, but what they do to it at the same moment without locks or calls \
     may take several attempts of a takeover",
)];

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
    for (name, promise) in NOTES {
        writeln!(out, "note     {name:22} {promise}")?;
    }
    if missing.is_empty() {
        return Ok(0);
    }
    Err(Failure::new(format!(
        "this machine cannot protect a container, since it lacks {}: see above for what each is for",
        missing.join(", ")
    )))
}
