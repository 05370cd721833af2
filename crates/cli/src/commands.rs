//! One module for each command: arguments in, exit status out.

pub(crate) mod backup;
pub(crate) mod doctor;
pub(crate) mod keygen;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod switchover;

use std::ffi::OsString;
use std::path::Path;

use shim::options::Security;

use crate::arguments::SecurityArguments;
use crate::failure::Failure;

/// What `--tls` and `--insecure` say; one of them must be there.
fn security(arguments: SecurityArguments) -> Result<Security, Failure> {
    match (arguments.tls, arguments.insecure) {
        (Some(directory), false) => {
            existing_directory(&directory, "--tls", "make it with `understudy keygen`")?;
            Ok(Security::Tls(directory))
        }
        (None, true) => Ok(Security::Insecure),
        // The parser lets both through nowhere.
        _ => Err(Failure::usage(
            "neither --tls nor --insecure is given: name the directory of keys with --tls DIR, or \
             do without protection of the stream with --insecure",
        )),
    }
}

/// The command after `--`.
fn command(command: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    if command.first().is_none_or(|name| name.is_empty()) {
        return Err(Failure::usage(
            "there is no command to run: give it after `--`",
        ));
    }
    Ok(command)
}

/// Checks that a flag's directory is there.
fn existing_directory(path: &Path, flag: &str, advice: &str) -> Result<(), Failure> {
    if path.is_dir() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{flag} {}: there is no such directory; {advice}",
        path.display()
    )))
}
