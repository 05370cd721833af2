//! `load`: load by hand.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use understudy_bench::load::{self, Config, Mix};

/// The options of `load`.
#[derive(Args)]
pub(crate) struct Load {
    /// The server, IP:PORT
    server: SocketAddr,
    /// How long to send commands
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Decides commands, keys and values
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Closed-loop connections
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// Pipelining connections
    #[arg(long, default_value_t = 0)]
    pipelined: usize,
    /// Commands on the way on each pipelining connection
    #[arg(long, default_value_t = 16)]
    depth: usize,
    /// Connections that read values of 1 MiB slowly
    #[arg(long, default_value_t = 0)]
    slow: usize,
    /// Connections that close their sending side behind the last command of a batch
    #[arg(long, default_value_t = 0)]
    half_closing: usize,
    /// Connections that do next to nothing
    #[arg(long, default_value_t = 0)]
    idle: usize,
    /// How often GET, SET, INCR and RPUSH come, relative to each other
    #[arg(long, default_value = "1,1,1,1", value_parser = mix)]
    mix: Mix,
    /// Bytes of a value
    #[arg(long, default_value_t = 64)]
    value_len: usize,
    /// MiB of values to write before the load
    #[arg(long, default_value_t = 0)]
    fill_mib: u64,
    /// Most commands a second of all closed-loop connections together
    #[arg(long)]
    rate: Option<u32>,
    /// Seconds to wait for connections and outstanding replies
    #[arg(long, default_value_t = 10.0)]
    patience: f64,
}

impl Load {
    fn config(&self) -> Result<Config> {
        let seconds = |s| {
            Duration::try_from_secs_f64(s).with_context(|| format!("{s} is no number of seconds"))
        };
        Ok(Config {
            duration: seconds(self.seconds)?,
            seed: self.seed,
            closed: self.clients,
            pipelined: self.pipelined,
            depth: self.depth,
            slow: self.slow,
            half_closing: self.half_closing,
            idle: self.idle,
            mix: self.mix,
            value_len: self.value_len,
            fill_mib: self.fill_mib,
            rate: self.rate,
            patience: seconds(self.patience)?,
            ..Config::new(self.server)
        })
    }
}

/// Four weights with commas between.
fn mix(text: &str) -> Result<Mix, String> {
    let weights: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
    match weights.as_deref() {
        Ok(&[get, set, incr, push]) => Ok(Mix {
            get,
            set,
            incr,
            push,
        }),
        _ => Err("four numbers with commas between are needed, such as 1,1,1,1".to_owned()),
    }
}

pub(crate) fn run(options: &Load) -> Result<ExitCode> {
    let report = load::run(&options.config()?, None)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(if report.flawless() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
