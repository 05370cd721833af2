//! The first message in each direction: who connects, for which container, for what.

use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Channel {
    /// Records to the backup, acknowledgements to the primary.
    Log,
    /// Heartbeats and answers.
    Heartbeat,
    /// Checkpoints.
    Checkpoint,
    /// Questions and answers.
    Control,
}

/// Times that both sides must agree on; the primary's operator chooses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Silence after which the backup takes the primary for dead.
    pub detect: Duration,
}

/// Shortest interval between heartbeats.
pub const MIN_HEARTBEAT: Duration = Duration::from_millis(1);
/// Longest silence that may be asked for.
pub const MAX_DETECT: Duration = Duration::from_secs(60);

impl Timing {
    /// How long output may leave after the *sending* of a heartbeat that was answered: a sixteenth less
    /// than the silence that the backup waits for, which covers clocks that run differently.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.detect - self.detect / 16
    }

    /// How long the backup stays silent after it answered: the lease, and clocks that differ by 1.5 %.
    #[must_use]
    pub fn promise(&self) -> Duration {
        self.lease() + self.lease() / 64
    }

    /// The same times if they make sense: detection needs at least two heartbeats.
    ///
    /// # Errors
    /// [`Refusal::Timing`] with the times.
    pub fn checked(self) -> Result<Self, Refusal> {
        if self.heartbeat < MIN_HEARTBEAT
            || self.detect > MAX_DETECT
            || self.detect / 2 < self.heartbeat
        {
            return Err(Refusal::Timing { timing: self });
        }
        Ok(self)
    }
}

/// Most bytes of a container's name.
pub const MAX_NAME: usize = 64;
/// Most bytes of [`Hello::details`].
pub const MAX_DETAILS: usize = 256 << 10;
/// Most entries of [`Hello::host`].
pub const MAX_TRAITS: usize = 64;

/// What a primary says first on every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the connection is for.
    pub channel: Channel,
    /// The container's name.
    pub name: String,
    /// A random number of this joining; binds its connections together.
    pub session: u64,
    /// A random number of this run of the container, the same whenever it joins again: a backup that is started again
    /// knows by it whether it was this run that it guarded.
    pub run: u64,
    /// The generation the primary runs under; 0 asks for one.
    pub generation: u64,
    /// Heartbeat and detection.
    pub timing: Timing,
    /// What must be equal on both hosts, as name and value: kernel, processor features.
    pub host: Vec<(String, String)>,
    /// What takeover needs to know about the container; opaque here.
    pub details: Vec<u8>,
}

impl Hello {
    /// Checks what a hostile peer could get wrong.
    ///
    /// # Errors
    /// [`Refusal::Name`], [`Refusal::Timing`] or [`Refusal::TooLong`].
    pub fn check(&self) -> Result<(), Refusal> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty()
            || self.name.len() > MAX_NAME
            || self.name.starts_with('.')
            || !self.name.chars().all(plain)
        {
            return Err(Refusal::Name {
                name: self.name.chars().take(MAX_NAME).collect(),
            });
        }
        if self.details.len() > MAX_DETAILS || self.host.len() > MAX_TRAITS {
            return Err(Refusal::TooLong {
                details: self.details.len(),
                traits: self.host.len(),
            });
        }
        self.timing.checked().map(|_| ())
    }

    /// The first trait that differs from the backup's own, if any.
    #[must_use]
    pub fn differs_from(&self, own: &[(String, String)]) -> Option<Refusal> {
        own.iter().find_map(|(what, backup)| {
            let primary = self
                .host
                .iter()
                .find(|(name, _)| name == what)
                .map_or("", |(_, value)| value.as_str());
            (primary != backup).then(|| Refusal::Host {
                what: what.clone(),
                primary: primary.to_owned(),
                backup: backup.clone(),
            })
        })
    }
}

/// What a backup answers when it takes the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The generation the primary runs under.
    pub generation: u64,
    /// A random number of this run of the backup: another one knows nothing of the log sent so far.
    pub instance: u64,
}

/// What a backup answers to a [`Hello`].
pub type Answer = Result<Welcome, Refusal>;

/// Why a backup does not take a primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The container went live elsewhere: this copy must never speak again.
    StaleGeneration {
        /// The primary's generation.
        theirs: u64,
        /// The generation that is live or was.
        ours: u64,
    },
    /// Another run of that name is protected or hosted.
    NameTaken {
        /// The name.
        name: String,
    },
    /// A second connection for a run that the backup does not know.
    UnknownSession {
        /// The name.
        name: String,
    },
    /// A second connection of the same kind.
    Twice {
        /// The kind.
        channel: Channel,
    },
    /// A name with other characters than letters, digits, `-`, `_` and `.`, or too long.
    Name {
        /// The name, cut.
        name: String,
    },
    /// Times that make no sense.
    Timing {
        /// The times.
        timing: Timing,
    },
    /// Details beyond their bound.
    TooLong {
        /// Bytes of details.
        details: usize,
        /// Entries of host traits.
        traits: usize,
    },
    /// The hosts differ in what replay needs equal.
    Host {
        /// In what.
        what: String,
        /// The primary's.
        primary: String,
        /// The backup's.
        backup: String,
    },
    /// The backup protects as many containers as it can.
    Full {
        /// The limit.
        containers: usize,
    },
    /// The backup cannot keep what it must.
    State {
        /// Its sentence.
        reason: String,
    },
    /// The container was under another backup's guard, which may be alive and take over.
    OtherBackup {
        /// The container's name.
        name: String,
        /// The generation that the primary runs under.
        theirs: u64,
        /// The last one that this backup knows of this name, for this run or another; 0 for none.
        ours: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StaleGeneration { theirs, ours } => write!(
                f,
                "generation {theirs} is stale, the container went on as generation {ours}; this copy must not go on"
            ),
            Self::NameTaken { name } => {
                write!(
                    f,
                    "the name {name} is in use by another container; choose another with --name"
                )
            }
            Self::UnknownSession { name } => write!(
                f,
                "it knows no such run of {name}; start the container again"
            ),
            Self::Twice { channel } => {
                write!(f, "a {channel:?} connection of this run exists already")
            }
            Self::Name { name } => write!(
                f,
                "{name:?} is no container name: use up to {MAX_NAME} letters, digits, '-', '_' and '.'"
            ),
            Self::Timing {
                timing: Timing { heartbeat, detect },
            } => write!(
                f,
                "heartbeat {heartbeat:?} and detection {detect:?} do not fit: heartbeat at least {MIN_HEARTBEAT:?}, \
                 detection at least twice that and at most {MAX_DETECT:?}"
            ),
            Self::TooLong { details, traits } => write!(
                f,
                "{details} bytes of details and {traits} host traits are more than {MAX_DETAILS} and {MAX_TRAITS}"
            ),
            Self::Host {
                what,
                primary,
                backup,
            } => write!(
                f,
                "{what} differs: {primary:?} here, {backup:?} on the backup; replay needs them equal"
            ),
            Self::Full { containers } => write!(
                f,
                "it protects {containers} containers already, as many as it can"
            ),
            Self::OtherBackup { name, theirs, ours } => write!(
                f,
                "it did not guard this run of {name}, of generation {theirs} (it knows of {ours}), and the backup that did may be alive: \
                 start that one again, with its --state"
            ),
            Self::State { reason } => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests;
