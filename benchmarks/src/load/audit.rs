//! Reading everything back at the end, and writing what must be there at the beginning.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::data::{BIG_KEYS, DataSet};
use super::faults::Faults;
use super::model::{Audited, Model};
use super::resp::{self, Reply};

/// Commands on their way at a time.
const BATCH: usize = 128;

/// What the audit came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Audit {
    /// Keys, counters and lists read back.
    pub read: u64,
    /// Why not everything could be read, if so; then what is missing in the counts is unknown.
    pub failed: Option<String>,
}

/// A connection that waits for its replies.
struct Plain {
    stream: TcpStream,
    input: Vec<u8>,
    at: usize,
}

impl Plain {
    fn open(server: SocketAddrV4, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server.into(), patience)
            .with_context(|| format!("{server} cannot be reached"))?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            at: 0,
        })
    }

    fn reply<T>(&mut self, judge: impl FnOnce(&Reply<'_>) -> T) -> Result<T> {
        loop {
            if let Some((reply, used)) = resp::parse(&self.input[self.at..])? {
                let verdict = judge(&reply);
                self.at += used;
                return Ok(verdict);
            }
            self.input.drain(..self.at);
            self.at = 0;
            let held = self.input.len();
            self.input.resize(held + (256 << 10), 0);
            let got = self.stream.read(&mut self.input[held..]);
            self.input.truncate(held + *got.as_ref().unwrap_or(&0));
            if got.context("a reply did not come")? == 0 {
                bail!("end of file instead of a reply");
            }
        }
    }
}

/// Writes version 1 of every key (if the set says so) and the values of the slow readers.
///
/// # Errors
/// If the server cannot be reached or refuses a write.
pub(crate) fn fill(
    set: &DataSet,
    slow: usize,
    server: SocketAddrV4,
    patience: Duration,
) -> Result<()> {
    let mut plain = Plain::open(server, patience)?;
    let keys = if set.filled { set.keys } else { 0 };
    let mut all = (0..keys).chain(BIG_KEYS..BIG_KEYS + slow as u64).peekable();
    let (mut out, mut value) = (Vec::new(), Vec::new());
    while all.peek().is_some() {
        out.clear();
        let mut sent = 0;
        for key in all.by_ref().take(BATCH) {
            set.value(key, 1, &mut value);
            resp::command(&mut out, &[b"SET", set.key(key).as_bytes(), &value]);
            sent += 1;
        }
        plain
            .stream
            .write_all(&out)
            .context("the data could not be written")?;
        for _ in 0..sent {
            let refused = plain.reply(|reply| match reply {
                Reply::Simple(b"OK") => None,
                other => Some(format!("{other:?}")),
            })?;
            if let Some(said) = refused {
                bail!("{server} answered a write with {said}");
            }
        }
    }
    Ok(())
}

/// Reads back what all `models` have written.
pub(crate) fn audit(
    models: &mut [Model],
    server: SocketAddrV4,
    patience: Duration,
    faults: &mut Faults,
) -> Audit {
    let mut audit = Audit::default();
    if let Err(e) = read_all(models, server, patience, faults, &mut audit.read) {
        audit.failed = Some(format!("{e:#}"));
    }
    audit
}

fn read_all(
    models: &mut [Model],
    server: SocketAddrV4,
    patience: Duration,
    faults: &mut Faults,
    read: &mut u64,
) -> Result<()> {
    let mut plain = Plain::open(server, patience)?;
    for model in models {
        for batch in model.audit().chunks(BATCH) {
            let out: Vec<u8> = batch.iter().flat_map(|(bytes, _)| bytes).copied().collect();
            plain
                .stream
                .write_all(&out)
                .context("the audit could not be sent")?;
            for (_, what) in batch {
                let what: Audited = *what;
                plain.reply(|reply| model.check_audited(what, reply, faults))?;
                *read += 1;
            }
        }
    }
    Ok(())
}
