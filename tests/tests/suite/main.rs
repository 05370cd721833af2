//! Small programs that check themselves, one for each primitive and kernel object: each recorded and replayed, and
//! taken through a loss while it is at work and while it stands.
//!
//! A new program is a file in `programs` and a line in [`table::PROGRAMS`]. `UNDERSTUDY_SUITE` names the only ones to
//! run, by how their names begin.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

mod losses;
mod replays;
mod table;

use std::path::{Path, PathBuf};

use anyhow::Error;
use tempfile::TempDir;
use understudy_tests::{Ended, run, scratch};

use table::{PROGRAMS, Program};

/// The programs that are asked for, built in one directory.
struct Built {
    directory: TempDir,
    programs: Vec<&'static Program>,
}

impl Built {
    fn all() -> Self {
        let directory = scratch().unwrap();
        let only = std::env::var("UNDERSTUDY_SUITE").unwrap_or_default();
        let programs: Vec<_> = PROGRAMS
            .iter()
            .filter(|program| program.file.starts_with(&only))
            .collect();
        assert!(!programs.is_empty(), "no program begins with {only:?}");
        std::thread::scope(|scope| {
            for program in &programs {
                let to = directory.path().join(program.name());
                scope.spawn(move || build(program, &to));
            }
        });
        Self {
            directory,
            programs,
        }
    }

    fn path(&self, program: &Program) -> PathBuf {
        self.directory.path().join(program.name())
    }
}

fn build(program: &Program, to: &Path) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/programs");
    let ended = run(program
        .compiler()
        .arg("-o")
        .arg(to)
        .arg(sources.join(program.file)))
    .unwrap();
    assert!(
        ended.status.success() && ended.stderr.is_empty(),
        "{}: {}",
        program.file,
        ended.stderr
    );
}

/// Fails with all that went wrong, so that one program hides no other.
fn none(failures: &[(String, Error)]) {
    let all: Vec<_> = failures
        .iter()
        .map(|(what, e)| format!("{what}: {e:#}"))
        .collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

/// How a run ended that should have ended well.
fn well(ended: &Ended) -> Result<(), Error> {
    let said = String::from_utf8_lossy(&ended.stdout);
    anyhow::ensure!(
        ended.status.success() && said.ends_with("done\n"),
        "{}, {}; it printed: {said}",
        ended.status,
        ended.stderr.trim()
    );
    Ok(())
}
