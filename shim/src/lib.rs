//! The primary's runtime: one container, and everything that is wired around it.
//!
//! In: what `understudy run` was asked for ([`options::Options`]). Out: a program that runs in a
//! container of its own ([`container`]), watched and steered over a control socket ([`control`]).

pub mod container;
pub mod control;
pub mod options;
pub mod preflight;
pub mod signals;
mod unprotected;

/// Runs a command in a container, protected or bare, and gives the exit code a shell would show.
///
/// Call it before the process has other threads: signals to the process go to the command.
pub fn run(options: &options::Options) -> Result<i32, Error> {
    preflight::check(options)?;
    match &options.protection {
        None => unprotected::run(options),
        Some(_) => Err(Error::Unprotectable),
    }
}

/// Why a run could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Found before anything was made.
    #[error(transparent)]
    Preflight(#[from] preflight::Error),
    /// The container.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// Protection was asked for.
    #[error("protection by a backup is not part of this build: use --backup none")]
    Unprotectable,
}
