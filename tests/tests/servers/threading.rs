//! A server with a thread for each connection: one thread gets the number of the descriptor that another closes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use understudy_bench::race;
use understudy_bench::rng::Rng;
use understudy_tests::crowd;

use crate::survives;

#[test]
fn a_thread_for_each_of_many_connections() {
    survives::<Client>(7000, |directory| {
        let program = race::compile(directory).unwrap().display().to_string();
        // That seldom it never races.
        let words = [&program, "unlocked-counter", "1000000000", "7000"];
        words.map(str::to_owned).to_vec()
    });
}

/// Asks some times, then ends its connection and with it its thread, and begins another.
struct Client {
    reader: BufReader<TcpStream>,
    rng: Rng,
    left: u64,
    chain: u64,
    /// What all connections had asked when this client was answered last.
    total: u64,
}

impl crowd::Client for Client {
    fn begin(stream: TcpStream, _: u64, mut rng: Rng) -> Result<Self> {
        Ok(Self {
            reader: BufReader::new(stream),
            left: 1 + rng.below(6),
            rng,
            chain: 0xcbf2_9ce4_8422_2325,
            total: 0,
        })
    }

    fn step(&mut self) -> Result<()> {
        if self.left == 0 {
            let stream = crowd::connect(self.reader.get_ref().peer_addr()?)?;
            let total = self.total;
            *self = crowd::Client::begin(stream, 0, Rng::new(self.rng.below(1 << 40), 0))?;
            self.total = total;
        }
        self.reader.get_ref().write_all(b"next\n")?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let (value, chain) = line
            .trim_end()
            .split_once(' ')
            .with_context(|| format!("{line:?} is no answer"))?;
        let total = u64::from_str_radix(value, 16)?;
        self.chain = (self.chain ^ total).wrapping_mul(0x100_0000_01b3);
        ensure!(
            chain == format!("{:x}", self.chain),
            "another past: {line:?}"
        );
        ensure!(
            total > self.total,
            "{total} requests in all behind {}",
            self.total
        );
        (self.left, self.total) = (self.left - 1, total);
        Ok(())
    }
}
