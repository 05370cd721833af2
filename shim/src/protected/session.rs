//! The connections of one protected run to its backup.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use eventlog::codec;
use eventlog::handover::Details;
use stream::connect::{Connection, connect};
use stream::control::{Request, Response, recv, send};
use stream::hello::{Channel, Hello, Timing};
use stream::keys::Security as Keys;

use crate::Error;
use crate::container::mac_of;
use crate::options::{Mode, Options, Protection, Security};

/// How long the backup may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// All connections, and what was agreed.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) log: Connection,
    pub(super) heartbeat: Connection,
    pub(super) checkpoint: Connection,
    pub(super) control: Control,
    pub(super) timing: Timing,
}

/// The control connection.
#[derive(Debug)]
pub(super) struct Control(Connection);

/// What a backup knows a run of a container by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    run: u64,
    /// 0 until a backup has given one.
    pub(super) generation: u64,
}

impl Identity {
    /// Of a container that nobody guards yet.
    pub(super) fn new() -> Self {
        Self {
            run: random(),
            generation: 0,
        }
    }
}

/// Unlike any other on either host; nobody is to be kept from guessing it.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Session {
    /// Introduces the container and opens every connection.
    pub(super) fn open(
        options: &Options,
        protection: &Protection,
        identity: Identity,
    ) -> Result<Self, Error> {
        let keys = match &protection.security {
            Security::Insecure => Keys::Insecure,
            Security::Tls(dir) => Keys::load(dir)?,
        };
        let timing = Timing {
            heartbeat: protection.heartbeat,
            detect: protection.detect,
        };
        let mut hello = Hello {
            channel: Channel::Heartbeat,
            name: options.name.clone(),
            session: random(),
            run: identity.run,
            generation: identity.generation,
            timing,
            host: host_traits()?,
            details: codec::encode(&details(options, protection))?,
        };
        let mut open = |channel| {
            hello.channel = channel;
            let connection = connect(protection.backup, &keys, &hello, PATIENCE)?;
            hello.generation = connection.welcome.generation;
            Ok::<_, Error>(connection)
        };
        Ok(Self {
            // The log's connection is the one that introduces a run.
            log: open(Channel::Log)?,
            heartbeat: open(Channel::Heartbeat)?,
            checkpoint: open(Channel::Checkpoint)?,
            control: Control(open(Channel::Control)?),
            timing,
        })
    }
}

impl Control {
    /// Tells the backup that the container has ended in order. A backup that is gone does not need to know.
    pub(super) fn ended(&mut self, status: i32) {
        let generation = self.0.welcome.generation;
        if send(&self.0.sender, generation, &Request::Ended { status }).is_ok() {
            let _ = recv::<Response>(&mut self.0.receiver, Some(PATIENCE));
        }
    }
}

fn details(options: &Options, protection: &Protection) -> Details {
    let link = &options.link;
    Details {
        name: options.name.clone(),
        command: options
            .command
            .iter()
            .map(|a| a.as_bytes().to_vec())
            .collect(),
        address: link.address.octets(),
        prefix: link.prefix,
        gateway: link.gateway.map(|gateway| gateway.octets()),
        mac: mac_of(link.address),
        bridge: link.bridge.clone(),
        replays: protection.mode != Mode::Checkpoint,
        mirrors: mirrors(protection),
    }
}

/// The mirrored directories' paths, as bytes.
pub(super) fn mirrors(protection: &Protection) -> Vec<Vec<u8>> {
    let paths = protection.mirrors.iter();
    paths
        .map(|path| path.as_os_str().as_bytes().to_vec())
        .collect()
}

/// The name of that which tells builds of this program apart, among [`host_traits`].
pub const BUILD: &str = "understudy";

/// What has to be equal on both hosts, as name and value.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn host_traits() -> Result<Vec<(String, String)>, Error> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").map_err(Error::Arena)?;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").map_err(Error::Arena)?;
    let flags = cpu
        .lines()
        .find_map(|l| l.strip_prefix("flags"))
        .unwrap_or_default();
    Ok(vec![
        (BUILD.into(), own_build()),
        ("kernel".into(), kernel.trim().into()),
        (
            "processor features".into(),
            format!("{:08x}", crc(flags.as_bytes())),
        ),
    ])
}

/// Which build this is: its version, and a sum of the code that it puts into processes.
fn own_build() -> String {
    let guest = crc(guest::Blob::file());
    format!("{} {guest:08x}", env!("CARGO_PKG_VERSION"))
}

/// Features are compared, not read: a short sum of the line will do.
fn crc(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(5381, |h: u32, b| h.wrapping_mul(33) ^ u32::from(*b))
}
