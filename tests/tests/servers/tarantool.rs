//! tarantool with an engine in memory: replaces and selects over its binary protocol.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use understudy_bench::rng::Rng;
use understudy_tests::crowd::{self, ComesAndGoes};

use crate::{leaves, survives};

#[test]
#[ignore = "its threads wake one another by flags without a lock: not every takeover finds their order within the budget"]
fn tarantool() {
    survives::<Client>(3301, |directory| command(directory, "none"));
}

#[test]
#[ignore = "as above"]
fn tarantool_whose_clients_come_and_go() {
    survives::<ComesAndGoes<Client>>(3301, |directory| command(directory, "none"));
}

#[test]
#[ignore = "each request goes through another thread then, woken by a flag without a lock: two takeovers of seven failed"]
fn tarantool_that_writes_its_log() {
    leaves::<Client>(3301, |directory| command(directory, "write"), is_read_again);
}

fn command(directory: &Path, log: &str) -> Vec<String> {
    let program = directory.join("program.lua");
    let work = directory.join("work");
    fs::create_dir(&work).unwrap();
    let lines = format!(
        "box.cfg{{ wal_mode = '{log}', work_dir = '{}', memtx_memory = 64 * 1024 * 1024 }}\n\
         box.schema.user.grant('guest', 'read,write,execute', 'universe', nil, {{ if_not_exists = true }})\n\
         box.schema.space.create('kept', {{ id = {SPACE} }}):create_index('first', {{ parts = {{ 1, 'string' }} }})\n\
         box.cfg{{ listen = 3301 }}\n",
        work.display()
    );
    fs::write(&program, lines).unwrap();
    vec!["tarantool".to_owned(), program.display().to_string()]
}

/// Another tarantool reads what this one has written before each answer: it refuses a log that has a gap, or something
/// twice.
fn is_read_again(copy: &Path) {
    let program = format!(
        "box.cfg{{ work_dir = '{}', log_level = 'error' }} print(box.space.kept:len()) os.exit(0)",
        copy.join("work").display()
    );
    let read = Command::new("tarantool").args(["-e", &program]).output();
    let read = read.unwrap();
    let said = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.success(), "{said}");
    let rows = String::from_utf8_lossy(&read.stdout);
    assert!(rows.trim().parse::<u32>().unwrap() > 0, "{rows} {said}");
}

const SPACE: u16 = 600;
const SELECT: u8 = 1;
const REPLACE: u8 = 3;
/// Keys of header and body (tarantool's binary protocol).
const CODE: u8 = 0;
const SYNC: u8 = 1;
const SPACE_ID: u8 = 0x10;
const INDEX_ID: u8 = 0x11;
const LIMIT: u8 = 0x12;
const OFFSET: u8 = 0x13;
const ITERATOR: u8 = 0x14;
const KEY: u8 = 0x20;
const TUPLE: u8 = 0x21;
const DATA: u8 = 0x30;
const GREETING: usize = 128;

struct Client {
    stream: TcpStream,
    number: u64,
    sync: u32,
    rng: Rng,
    stored: HashMap<String, String>,
}

/// A MessagePack string.
fn text(text: &str) -> Vec<u8> {
    let mut bytes = vec![0xda];
    bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// As tarantool encodes it: as short as can be.
fn short_text(given: &str) -> Vec<u8> {
    match given.len() {
        len @ 0..32 => [&[0xa0 | len as u8], given.as_bytes()].concat(),
        len @ 32..256 => [&[0xd9, len as u8], given.as_bytes()].concat(),
        _ => text(given),
    }
}

impl Client {
    /// Sends a request; the data of its answer.
    fn ask(&mut self, code: u8, body: &[u8]) -> Result<Vec<u8>> {
        self.sync += 1;
        let mut request = vec![0x82, CODE, code, SYNC, 0xce];
        request.extend_from_slice(&self.sync.to_be_bytes());
        request.extend_from_slice(body);
        let len = (request.len() as u32).to_be_bytes();
        self.stream
            .write_all(&[&[0xce], &len[..], &request].concat())?;
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        ensure!(head[0] == 0xce, "an answer begins with {head:?}");
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        ensure!(len < 1 << 20, "an answer of {len} bytes");
        let mut answer = vec![0; len as usize];
        self.stream.read_exact(&mut answer)?;
        self.data(&answer)
    }

    /// Checks an answer's header: a map with code, sync (8 bytes) and the schema's version (4 bytes).
    fn data(&self, answer: &[u8]) -> Result<Vec<u8>> {
        let sync = u64::from(self.sync).to_be_bytes();
        let wanted = [&[0x83, CODE, 0xce, 0, 0, 0, 0, SYNC, 0xcf][..], &sync].concat();
        ensure!(
            answer.starts_with(&wanted),
            "an answer's header: {answer:x?}"
        );
        let body = answer.get(wanted.len() + 6..).unwrap_or_default();
        ensure!(
            body.starts_with(&[0x81, DATA, 0xdd]),
            "an answer's body: {body:x?}"
        );
        Ok(body[3..].to_vec())
    }

    fn rows(key: &str, value: Option<&str>) -> Vec<u8> {
        match value {
            None => vec![0, 0, 0, 0],
            Some(value) => [
                &[0, 0, 0, 1, 0x92][..],
                &short_text(key),
                &short_text(value),
            ]
            .concat(),
        }
    }
}

fn greeted(mut stream: TcpStream) -> Result<TcpStream> {
    let mut greeting = [0; GREETING];
    stream.read_exact(&mut greeting)?;
    ensure!(
        greeting.starts_with(b"Tarantool"),
        "the greeting is {greeting:?}"
    );
    Ok(stream)
}

impl crowd::Returning for Client {
    fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn come_back(&mut self, stream: TcpStream) -> Result<()> {
        self.stream = greeted(stream)?;
        Ok(())
    }
}

impl crowd::Client for Client {
    fn begin(stream: TcpStream, number: u64, rng: Rng) -> Result<Self> {
        Ok(Self {
            stream: greeted(stream)?,
            number,
            sync: 0,
            rng,
            stored: HashMap::new(),
        })
    }

    fn step(&mut self) -> Result<()> {
        let key = format!("{}:{}", self.number, self.rng.below(200));
        let [high, low] = SPACE.to_be_bytes();
        let space = [SPACE_ID, 0xcd, high, low];
        if self.rng.below(2) == 0 {
            let len = usize::try_from(self.rng.below(400))?;
            let value = format!("{:x}.", self.rng.below(u64::MAX)).repeat(len / 8 + 1);
            let tuple = [&[TUPLE, 0x92][..], &text(&key), &text(&value)].concat();
            let data = self.ask(REPLACE, &[&[0x82], &space[..], &tuple].concat())?;
            // What is given back is the tuple as it was sent.
            ensure!(data.ends_with(value.as_bytes()), "replace: {data:x?}");
            self.stored.insert(key, value);
            return Ok(());
        }
        let which = [INDEX_ID, 0, LIMIT, 1, OFFSET, 0, ITERATOR, 0, KEY, 0x91];
        let data = self.ask(SELECT, &[&[0x86], &space[..], &which, &text(&key)].concat())?;
        let value = self.stored.get(&key).map(String::as_str);
        let sent = value.map(|value| [&[0, 0, 0, 1, 0x92][..], &text(&key), &text(value)].concat());
        ensure!(
            data == Self::rows(&key, value) || Some(&data) == sent.as_ref(),
            "select of {key}: {data:x?} instead of {value:?}"
        );
        Ok(())
    }
}
