//! A server with a process for each connection, which share memory, a lock and a pipe.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use understudy_bench::rng::Rng;
use understudy_tests::{compile, crowd};

use crate::survives;

#[test]
fn a_process_for_each_connection() {
    survives::<Client>(7000, |directory| command(directory, &[]));
}

#[test]
fn a_process_for_each_connection_that_may_be_killed() {
    survives::<Client>(7000, |directory| command(directory, &["killed"]));
}

fn command(directory: &Path, how: &[&str]) -> Vec<String> {
    let program = directory.join("forking");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/forking.c");
    compile(&source, &program).unwrap();
    let program = program.display().to_string();
    let words = [&program, "7000"].into_iter().chain(how.iter().copied());
    words.map(str::to_owned).collect()
}

/// Asks some times, then ends its connection and with it its process, and begins another.
struct Client {
    reader: BufReader<TcpStream>,
    rng: Rng,
    left: u64,
    asked: u64,
    chain: u64,
    /// What all connections had asked when this client was answered last.
    total: u64,
}

impl crowd::Client for Client {
    fn begin(stream: TcpStream, _: u64, mut rng: Rng) -> Result<Self> {
        Ok(Self {
            reader: BufReader::new(stream),
            left: 1 + rng.below(200),
            rng,
            asked: 0,
            chain: 0xcbf2_9ce4_8422_2325,
            total: 0,
        })
    }

    fn step(&mut self) -> Result<()> {
        if self.left == 0 {
            if self.rng.below(4) == 0 {
                self.is_killed()?;
            }
            self.begin_again()?;
        }
        let request = format!("{}\n", self.rng.below(1 << 40));
        self.reader.get_ref().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        for byte in request.bytes() {
            self.chain = (self.chain ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        (self.left, self.asked) = (self.left - 1, self.asked + 1);
        let (own, total) = line
            .trim_end()
            .rsplit_once(' ')
            .with_context(|| format!("{line:?} is no answer"))?;
        ensure!(
            own == format!("{} {:x}", self.asked, self.chain),
            "answer {} is {line:?}",
            self.asked
        );
        let total = total.parse()?;
        ensure!(
            total > self.total,
            "{total} requests in all behind {}",
            self.total
        );
        self.total = total;
        Ok(())
    }
}

impl Client {
    /// Has the process killed that serves it: its connection ends.
    fn is_killed(&mut self) -> Result<()> {
        self.reader.get_ref().write_all(b"die\n")?;
        let mut line = String::new();
        let len = self.reader.read_line(&mut line)?;
        ensure!(len == 0, "a process that was killed says {line:?}");
        Ok(())
    }

    fn begin_again(&mut self) -> Result<()> {
        let stream = crowd::connect(self.reader.get_ref().peer_addr()?)?;
        let total = self.total;
        *self = crowd::Client::begin(stream, 0, Rng::new(self.rng.below(1 << 40), 0))?;
        self.total = total;
        Ok(())
    }
}
