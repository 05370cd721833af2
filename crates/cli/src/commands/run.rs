//! `understudy run`: a container around a command.

use std::path::{Path, PathBuf};
use std::{fs, io};

use shim::container::Link;
use shim::options::{Mode, OnBackupLoss, Options, Protection};

use super::{command, existing_directory, security};
use crate::arguments::{LossArgument, ModeArgument, RunArguments, Switch};
use crate::failure::Failure;
use crate::values::{self, Backup};

pub(crate) fn run(arguments: Box<RunArguments>) -> Result<i32, Failure> {
    Ok(shim::run(&options(*arguments)?)?)
}

/// What the arguments mean together.
fn options(arguments: RunArguments) -> Result<Options, Failure> {
    let command = command(arguments.command)?;
    let name = arguments
        .name
        .map_or_else(|| values::default_name(&command[0]), Ok);
    let name = name.map_err(Failure::usage)?;
    let mirrors = mirrors(&arguments.mirror)?;
    let (heartbeat, detect) = (arguments.heartbeat, arguments.detect);
    if detect <= heartbeat {
        return Err(Failure::usage(format!(
            "--detect {detect:?} is not longer than --heartbeat {heartbeat:?}: every silence \
             between two heartbeats would count as a loss"
        )));
    }
    let protection = match arguments.backup {
        Backup::None => None,
        Backup::At(backup) => Some(Protection {
            backup,
            security: security(arguments.security)?,
            mirrors,
            mode: match arguments.mode {
                ModeArgument::Hybrid => Mode::Hybrid,
                ModeArgument::Checkpoint => Mode::Checkpoint,
                ModeArgument::Active => Mode::Active,
            },
            epoch: arguments.epoch,
            heartbeat,
            detect,
            on_backup_loss: match arguments.on_backup_loss {
                LossArgument::Stall => OnBackupLoss::Stall,
                LossArgument::Continue => OnBackupLoss::Continue,
            },
            serial: arguments.serial,
            tap: arguments.tap == Switch::On,
        }),
    };
    let link = Link {
        address: arguments.ip.address,
        prefix: arguments.ip.prefix,
        gateway: arguments.gateway,
        bridge: arguments.bridge,
    };
    Ok(Options {
        name,
        command,
        link,
        protection,
    })
}

/// The directories that are mirrored, by their absolute paths. What a program does to files is known by the paths that it
/// names, so no symbolic link may lead there.
fn mirrors(named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut mirrors: Vec<PathBuf> = Vec::new();
    for directory in named {
        existing_directory(directory, "--mirror", "name one that is there")?;
        let refused =
            |why: String| Failure::usage(format!("--mirror {}: {why}", directory.display()));
        let unread = |error: io::Error| refused(format!("it cannot be looked up: {error}"));
        let real = fs::canonicalize(directory).map_err(unread)?;
        let plain: PathBuf = std::path::absolute(directory)
            .map_err(unread)?
            .components()
            .collect();
        if real != plain {
            let real = real.display();
            return Err(refused(format!(
                "a link leads there; name {real}, and let the program use that path, too"
            )));
        }
        if real == Path::new("/") {
            return Err(refused("all files of a host cannot be mirrored; name the directories that the program writes to".to_owned()));
        }
        let nested = mirrors
            .iter()
            .find(|other| real.starts_with(other) || other.starts_with(&real));
        if let Some(other) = nested {
            return Err(refused(format!(
                "it and {} lie within one another; name the outer one alone",
                other.display()
            )));
        }
        mirrors.push(real);
    }
    Ok(mirrors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::Parser;
    use std::time::Duration;

    fn parse(line: &str) -> Result<Options, Failure> {
        let words = ["understudy", "run"]
            .into_iter()
            .chain(line.split_whitespace());
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Run(arguments) => options(*arguments),
            other => panic!("{other:?}"),
        }
    }

    const BASE: &str = "--ip 10.0.0.10/24 --bridge br0";

    #[test]
    fn defaults_are_the_contract() {
        let options = parse(&format!(
            "--backup 10.0.0.2:7000 {BASE} --insecure -- /bin/redis a -b"
        ));
        let options = options.unwrap();
        assert_eq!((options.name.as_str(), options.command.len()), ("redis", 3));
        let protection = options.protection.unwrap();
        assert_eq!(protection.mode, Mode::Hybrid);
        assert_eq!(protection.epoch, Duration::from_millis(100));
        assert_eq!(protection.heartbeat, Duration::from_millis(10));
        assert_eq!(protection.detect, Duration::from_millis(50));
        assert_eq!(protection.on_backup_loss, OnBackupLoss::Stall);
        assert!(protection.tap);
    }

    #[test]
    fn everything_can_be_said() {
        let line = format!(
            "--backup 10.0.0.2:7000 {BASE} --name n --mirror /tmp --mirror /var --mode active --epoch 1s \
             --heartbeat 5ms --detect 20ms --on-backup-loss continue --tap off --tls /tmp -- cmd"
        );
        let protection = parse(&line).unwrap().protection.unwrap();
        assert_eq!(protection.mirrors.len(), 2);
        assert_eq!(
            (protection.mode, protection.epoch),
            (Mode::Active, Duration::from_secs(1))
        );
        assert_eq!(protection.on_backup_loss, OnBackupLoss::Continue);
        assert!(!protection.tap);
    }

    #[test]
    fn a_bare_run_needs_no_security() {
        assert_eq!(
            parse(&format!("--backup none {BASE} -- cmd"))
                .unwrap()
                .protection,
            None
        );
    }
}
