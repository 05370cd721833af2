//! memcached with all its threads, which share what they do not lock, at its default options.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{Result, ensure};
use understudy_bench::rng::Rng;
use understudy_bench::servers::{self, MEMCACHED_PORT};
use understudy_tests::crowd::{self, ComesAndGoes};

use crate::survives;

#[test]
fn memcached() {
    survives::<Client>(MEMCACHED_PORT, |_| servers::memcached());
}

/// One thread accepts and gets the numbers of descriptors that others have closed, and hands them to others.
#[test]
fn memcached_whose_clients_come_and_go() {
    survives::<ComesAndGoes<Client>>(MEMCACHED_PORT, |_| servers::memcached());
}

/// What a client has stored: nobody else writes its keys.
struct Client {
    number: u64,
    reader: BufReader<TcpStream>,
    rng: Rng,
    stored: HashMap<String, String>,
}

impl Client {
    fn ask(&mut self, request: &str) -> Result<String> {
        self.reader.get_ref().write_all(request.as_bytes())?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        ensure!(line.ends_with("\r\n"), "{line:?} is no line");
        line.truncate(line.len() - 2);
        Ok(line)
    }

    fn store(&mut self, key: String) -> Result<()> {
        let len = usize::try_from(self.rng.below(400))?;
        let value = format!("{:x}.", self.rng.below(u64::MAX)).repeat(len / 8 + 1);
        let said = self.ask(&format!("set {key} 0 0 {}\r\n{value}\r\n", value.len()))?;
        ensure!(said == "STORED", "set: {said:?}");
        self.stored.insert(key, value);
        Ok(())
    }

    fn check(&mut self, key: &str) -> Result<()> {
        let said = self.ask(&format!("get {key}\r\n"))?;
        let Some(wanted) = self.stored.get(key).cloned() else {
            ensure!(said == "END", "get of nothing: {said:?}");
            return Ok(());
        };
        ensure!(
            said == format!("VALUE {key} 0 {}", wanted.len()),
            "get: {said:?}"
        );
        let mut value = vec![0; wanted.len() + 2];
        self.reader.read_exact(&mut value)?;
        ensure!(
            value == format!("{wanted}\r\n").into_bytes(),
            "another value of {key}"
        );
        let end = self.line()?;
        ensure!(end == "END", "behind a value: {end:?}");
        Ok(())
    }
}

impl crowd::Returning for Client {
    fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    fn come_back(&mut self, stream: TcpStream) -> Result<()> {
        self.reader = BufReader::new(stream);
        Ok(())
    }
}

impl crowd::Client for Client {
    fn begin(stream: TcpStream, number: u64, rng: Rng) -> Result<Self> {
        Ok(Self {
            number,
            reader: BufReader::new(stream),
            rng,
            stored: HashMap::new(),
        })
    }

    fn step(&mut self) -> Result<()> {
        let key = format!("{}:{}", self.number, self.rng.below(200));
        if self.rng.below(2) == 0 {
            self.store(key)
        } else {
            self.check(&key)
        }
    }
}
