//! How a command fails: a sentence and an exit status.

use std::error::Error;
use std::process::ExitCode;

/// Exit status of a wrong command line.
const USAGE: u8 = 2;
/// Exit status of everything else that goes wrong.
const FAILED: u8 = 1;

/// A failed command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    status: u8,
    sentence: String,
}

impl Failure {
    /// The command line makes no sense.
    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self {
            status: USAGE,
            sentence: sentence.into(),
        }
    }

    /// It makes sense, but cannot be done.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self {
            status: FAILED,
            sentence: sentence.into(),
        }
    }

    /// Tells it, on one line of standard error, and gives the status to exit with.
    pub(crate) fn report(&self) -> ExitCode {
        let line: Vec<&str> = self.sentence.split_whitespace().collect();
        eprintln!("understudy: {}", line.join(" "));
        ExitCode::from(self.status)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}
