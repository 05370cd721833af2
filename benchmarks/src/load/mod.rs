//! A redis load generator that remembers every acknowledged write and checks every byte of every reply.

mod audit;
mod connection;
mod data;
mod driver;
mod faults;
mod histogram;
mod lists;
mod model;
mod report;
mod resp;
mod timeline;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

pub use audit::Audit;
pub use faults::Faults;
pub use histogram::Latency;
pub use model::Mix;
pub use report::Report;
pub(crate) use resp::{Reply, command, parse};
pub use timeline::{Gap, STEP};

use connection::Kind;
use data::DataSet;
use driver::Driver;

/// Keys of each writing connection when there is no data to begin with.
const KEYS_EACH: u64 = 16;

/// What load to make.
#[derive(Clone, Debug)]
pub struct Config {
    /// The redis server.
    pub server: SocketAddr,
    /// How long commands are sent.
    pub duration: Duration,
    /// Decides commands, keys and values.
    pub seed: u64,
    /// Connections that send a command when the last was answered.
    pub closed: usize,
    /// Connections that keep [`Config::depth`] commands on their way.
    pub pipelined: usize,
    /// Commands on the way on a pipelining connection.
    pub depth: usize,
    /// Connections that read values of 1 MiB at about 4 MiB/s.
    pub slow: usize,
    /// Connections that send a batch, close their sending side, read until end of file and come again.
    pub half_closing: usize,
    /// Connections that say something at the beginning and at the end only.
    pub idle: usize,
    /// How often each command comes.
    pub mix: Mix,
    /// Bytes of a value, at least 48.
    pub value_len: usize,
    /// MiB of values written before the load; 0 for none.
    pub fill_mib: u64,
    /// Commands a second of all closed-loop connections together; as fast as they can if absent.
    pub rate: Option<u32>,
    /// How long to wait for connections, for outstanding replies, and for each reply of the audit.
    pub patience: Duration,
}

/// Ten milliseconds of a run, for those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Counts the steps from 0.
    pub index: usize,
    /// Replies to closed-loop and pipelining connections.
    pub replies: u32,
    /// Lost, repeated and wrong so far.
    pub faults: u64,
    /// Connections broken so far.
    pub broken: u64,
}

impl Config {
    /// One closed-loop connection for ten seconds.
    #[must_use]
    pub const fn new(server: SocketAddr) -> Self {
        Self {
            server,
            duration: Duration::from_secs(10),
            seed: 1,
            closed: 1,
            pipelined: 0,
            depth: 16,
            slow: 0,
            half_closing: 0,
            idle: 0,
            mix: Mix {
                get: 1,
                set: 1,
                incr: 1,
                push: 1,
            },
            value_len: 64,
            fill_mib: 0,
            rate: None,
            patience: Duration::from_secs(10),
        }
    }

    /// The kind of each connection; those that write come first.
    fn kinds(&self) -> Vec<Kind> {
        let mut kinds = vec![Kind::Loop { depth: 1 }; self.closed];
        kinds.extend(vec![Kind::Loop { depth: self.depth }; self.pipelined]);
        kinds.extend(vec![Kind::HalfClosing; self.half_closing]);
        kinds.extend((0..self.slow).map(|reader| Kind::Slow {
            reader: reader as u64,
        }));
        kinds.extend(vec![Kind::Idle; self.idle]);
        kinds
    }

    fn data_set(&self) -> DataSet {
        let writers = (self.closed + self.pipelined + self.half_closing) as u64;
        let filled = (self.fill_mib << 20) / self.value_len as u64;
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        DataSet {
            seed: self.seed,
            prefix: format!("{:x}:", since.as_nanos() & 0xffff_ffff_ffff),
            value_len: self.value_len,
            keys: filled.max(writers * KEYS_EACH),
            writers,
            filled: filled > 0,
        }
    }
}

/// Makes the load from this thread, in whose network namespace it is, and reads everything back at the
/// end. `steps` is told of each step when it is over. The data stays in the server.
///
/// # Errors
/// If the configuration makes no sense, the server cannot be reached or filled at the beginning, or not
/// all connections are accepted. What happens later is in the report.
pub fn run(config: &Config, steps: Option<Sender<Step>>) -> Result<Report> {
    ensure!(
        config.value_len >= data::MIN_LEN,
        "values of {} bytes are too short, {} is the least",
        config.value_len,
        data::MIN_LEN
    );
    ensure!(config.depth > 0, "a pipeline of depth 0 sends nothing");
    let Mix {
        get,
        set,
        incr,
        push,
    } = config.mix;
    ensure!(
        [get, set, incr, push].iter().any(|&weight| weight > 0),
        "the mix holds no command"
    );
    let server = connection::ipv4(config.server)?;
    let set = Rc::new(config.data_set());
    audit::fill(&set, config.slow, server, config.patience).context("before the load")?;
    let mut driver = Driver::connect(config, &set, server)?;
    let start = driver.run(config, steps)?;
    let mut report = Report::of(&driver, start);
    let (mut models, mut faults) = driver.into_models();
    report.audit = audit::audit(&mut models, server, config.patience, &mut faults);
    report.faults = faults;
    Ok(report)
}
