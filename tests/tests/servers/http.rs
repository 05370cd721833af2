//! Web servers, with one process or several, which answer from files of many sizes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use understudy_bench::rng::Rng;
use understudy_bench::servers::{self, FILES, LIGHTTPD_PORT, NGINX_PORT, content};
use understudy_tests::crowd::{self, ComesAndGoes};

use crate::survives;

#[test]
fn lighttpd() {
    survives::<Client>(LIGHTTPD_PORT, |directory| {
        servers::lighttpd(directory).unwrap()
    });
}

#[test]
fn nginx_with_one_process() {
    survives::<Client>(NGINX_PORT, |directory| {
        servers::nginx(directory, None).unwrap()
    });
}

/// A master, and workers that gave their privileges up, accept from the same listener and share memory.
#[test]
fn nginx_with_two_workers() {
    survives::<Client>(NGINX_PORT, |directory| {
        servers::nginx(directory, Some(2)).unwrap()
    });
}

#[test]
fn lighttpd_whose_clients_come_and_go() {
    survives::<ComesAndGoes<Client>>(LIGHTTPD_PORT, |directory| {
        servers::lighttpd(directory).unwrap()
    });
}

#[test]
fn nginx_with_two_workers_whose_clients_come_and_go() {
    survives::<ComesAndGoes<Client>>(NGINX_PORT, |directory| {
        servers::nginx(directory, Some(2)).unwrap()
    });
}

struct Client {
    reader: BufReader<TcpStream>,
    rng: Rng,
    contents: Vec<Vec<u8>>,
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
    fn begin(stream: TcpStream, _: u64, rng: Rng) -> Result<Self> {
        Ok(Self {
            reader: BufReader::new(stream),
            rng,
            contents: (0..FILES).map(content).collect(),
        })
    }

    fn step(&mut self) -> Result<()> {
        let number = usize::try_from(self.rng.below(FILES))?;
        let request = format!("GET /{number} HTTP/1.1\r\nHost: here\r\n\r\n");
        self.reader.get_ref().write_all(request.as_bytes())?;
        let mut len = None;
        for index in 0.. {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let line = line
                .strip_suffix("\r\n")
                .with_context(|| format!("{line:?} is no line"))?;
            if index == 0 {
                ensure!(line == "HTTP/1.1 200 OK", "the answer begins with {line:?}");
            } else if line.is_empty() {
                break;
            } else if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("content-length")
            {
                len = Some(value.parse()?);
            }
        }
        let mut body = vec![0; len.context("an answer without a length")?];
        self.reader.read_exact(&mut body)?;
        ensure!(
            body == self.contents[number],
            "file {number} has another content"
        );
        Ok(())
    }
}
