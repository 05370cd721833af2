//! The command line: a contract, since scripts elsewhere call it.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use backup::takeover::Search;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::values::{self, Backup, Network};

/// Keeps an unmodified server alive through the loss of its host.
#[derive(Debug, Parser)]
#[command(name = "understudy", version, propagate_version = false)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Stand by for a primary and take over when it is lost.
    Backup(BackupArguments),
    /// Run a command in a container of its own, protected by a backup.
    Run(Box<RunArguments>),
    /// Tell how the containers of this machine are.
    Status(StatusArguments),
    /// Hand a container over to its backup.
    Switchover(SwitchoverArguments),
    /// Tell which kernel features are there and which are missing.
    Doctor,
    /// Make the keys that primary and backup share.
    Keygen(KeygenArguments),
    /// Run a command and record it.
    Record(RecordArguments),
    /// Run a recording again; prints what the recorded command printed.
    Replay(ReplayArguments),
}

/// How the connection between the hosts is protected: one of the two.
#[derive(Debug, Args)]
pub(crate) struct SecurityArguments {
    /// Authenticate and encrypt with the keys in this directory (`understudy keygen` makes them).
    #[arg(long, value_name = "DIR", conflicts_with = "insecure")]
    pub(crate) tls: Option<PathBuf>,
    /// Neither authenticate nor encrypt.
    #[arg(long)]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BackupArguments {
    /// Where primaries connect to.
    #[arg(long, value_name = "IP:PORT", value_parser = values::endpoint)]
    pub(crate) listen: SocketAddr,
    /// The bridge that containers join when they are taken over; without it, the one of the same
    /// name as on the primary.
    #[arg(long, value_name = "BR", value_parser = values::bridge)]
    pub(crate) bridge: Option<String>,
    /// Where checkpoints and logs are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/understudy")]
    pub(crate) state: PathBuf,
    #[command(flatten)]
    pub(crate) retry: RetryArguments,
    /// When all attempts have failed and the primary is silent: keep the container dead, or let it go on from its last
    /// checkpoint, without what it did and answered since, and without its connections.
    #[arg(long, value_enum, default_value = "refuse")]
    pub(crate) on_replay_failure: FailureArgument,
    #[command(flatten)]
    pub(crate) security: SecurityArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailureArgument {
    Refuse,
    Checkpoint,
}

/// How often a takeover is tried, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub(crate) struct RetryArguments {
    /// How long a takeover that left the log is tried again, each time with other timing.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = values::budget)]
    pub(crate) retry_budget: Duration,
    /// Replay the events of different threads in the order of their times, where an attempt does not try another.
    #[arg(long, value_enum, default_value = "on")]
    pub(crate) timing: Switch,
}

impl RetryArguments {
    /// What is learnt from one attempt for the next; the time for them counts from now on.
    pub(crate) fn search(self) -> Search {
        Search::new(self.timing == Switch::On, self.retry_budget)
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ModeArgument {
    Hybrid,
    Checkpoint,
    Active,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LossArgument {
    Stall,
    Continue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The backup to protect with; `none` runs the same container bare.
    #[arg(long, value_name = "IP:PORT|none")]
    pub(crate) backup: Backup,
    /// The container's address.
    #[arg(long, value_name = "A.B.C.D/LEN")]
    pub(crate) ip: Network,
    /// The bridge it joins.
    #[arg(long, value_name = "BR", value_parser = values::bridge)]
    pub(crate) bridge: String,
    /// Where its packets for other networks go.
    #[arg(long, value_name = "A.B.C.D")]
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Its name; the command's base name without.
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    pub(crate) name: Option<String>,
    /// A directory whose files the backup keeps, too. May be given more than once.
    #[arg(long, value_name = "DIR")]
    pub(crate) mirror: Vec<PathBuf>,
    /// One thread of the container runs at a time: programs whose threads race, or have locks of their own, are
    /// replayed, too.
    #[arg(long)]
    pub(crate) serial: bool,
    /// When output is released, and whether the backup replays meanwhile.
    #[arg(long, value_enum, default_value = "hybrid")]
    pub(crate) mode: ModeArgument,
    /// Time between checkpoints.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = values::epoch)]
    pub(crate) epoch: Duration,
    /// Time between heartbeats.
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = values::heartbeat)]
    pub(crate) heartbeat: Duration,
    /// Silence after which the other side counts as lost.
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = values::detect)]
    pub(crate) detect: Duration,
    /// Without the backup: hold all output, or go on unprotected.
    #[arg(long, value_enum, default_value = "stall")]
    pub(crate) on_backup_loss: LossArgument,
    /// Let the bridges send what is for the container to both hosts, so that the backup has what clients send
    /// during the outage. Without it, they send it again after their own time-out.
    #[arg(long, value_enum, default_value = "on")]
    pub(crate) tap: Switch,
    #[command(flatten)]
    pub(crate) security: SecurityArguments,
    /// The command and its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// One container; all without.
    #[arg(value_name = "NAME", value_parser = values::name)]
    pub(crate) name: Option<String>,
    /// Print JSON: one object, or an array without a name.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SwitchoverArguments {
    /// The container.
    #[arg(value_name = "NAME", value_parser = values::name)]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct KeygenArguments {
    /// The directory; made if it is not there.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RecordArguments {
    /// Where the recording goes.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// One thread runs at a time: programs whose threads race, or have locks of their own, are replayed, too.
    #[arg(long)]
    pub(crate) serial: bool,
    /// The command and its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArguments {
    /// The recording, or what a backup has kept of a container that it could not take over.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    #[command(flatten)]
    pub(crate) retry: RetryArguments,
}
