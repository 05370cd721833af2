//! What one connection has written, and therefore what every reply to it must be.
//!
//! No two connections share a key, and a server answers one connection's commands in order: each reply is
//! known when the command is sent. A wrong one is counted once; the model then follows the server.

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use super::data::{BIG_KEYS, DataSet};
use super::faults::{Faults, shown};
use super::lists::{self, List};
use super::resp::{self, Reply};
use crate::rng::Rng;

/// Items of a list before it is read as a whole and deleted.
const LIST_LEN: u64 = 512;

/// How often each command comes, relative to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Read a value.
    pub get: u32,
    /// Write a value.
    pub set: u32,
    /// Count up.
    pub incr: u32,
    /// Append to a list.
    pub push: u32,
}

/// What the reply to a command must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// To SET of this version.
    Stored { key: u64, version: u32 },
    /// To GET: this version; 0 for none.
    Value { key: u64, version: u32 },
    /// To INCR.
    Counted(i64),
    /// To RPUSH onto the list with this serial number.
    Pushed { list: u64, len: u64 },
    /// To LRANGE over a whole list.
    Items { list: u64, len: u64 },
    /// To DEL of a list.
    Deleted { list: u64 },
    /// To PING.
    Pong,
}

/// One connection's part of the data.
#[derive(Debug)]
pub(crate) struct Model {
    set: Rc<DataSet>,
    connection: u64,
    rng: Rng,
    /// Newest version sent and newest acknowledged, of keys written.
    versions: HashMap<u64, (u32, u32)>,
    /// Versions found missing, so that each counts once.
    reported: HashSet<(u64, u32)>,
    sent_count: i64,
    acked_count: i64,
    /// How far the server's counter is from where it ought to be.
    count_shift: i64,
    lists: VecDeque<List>,
    scratch: Vec<u8>,
}

impl Model {
    /// The model of a connection that has sent nothing.
    pub(crate) fn new(set: Rc<DataSet>, connection: u64) -> Self {
        let rng = Rng::new(set.seed, connection);
        Self {
            set,
            connection,
            rng,
            versions: HashMap::new(),
            reported: HashSet::new(),
            sent_count: 0,
            acked_count: 0,
            count_shift: 0,
            lists: VecDeque::from([List::new(0)]),
            scratch: Vec::new(),
        }
    }

    /// A number below `bound`, from the connection's own sequence.
    pub(crate) const fn choose(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }

    /// Appends the next command to `out`.
    pub(crate) fn next(&mut self, mix: Mix, out: &mut Vec<u8>) -> Expected {
        if let Some(expected) = self.retire_list(out) {
            return expected;
        }
        let weights = [mix.get, mix.set, mix.incr, mix.push];
        let mut draw = self.rng.below(weights.iter().map(|&w| u64::from(w)).sum());
        let mut choice = 0;
        while choice < 3 && draw >= u64::from(weights[choice]) {
            draw -= u64::from(weights[choice]);
            choice += 1;
        }
        match choice {
            0 => self.get(out),
            1 => self.store(out),
            2 => {
                self.sent_count += 1;
                resp::command(
                    out,
                    &[b"INCR", self.set.counter(self.connection).as_bytes()],
                );
                Expected::Counted(self.sent_count)
            }
            _ => self.push(out),
        }
    }

    /// One of this connection's keys.
    fn some_key(&mut self) -> u64 {
        let writers = self.set.writers.max(1);
        let own = (self.set.keys + writers - 1 - self.connection) / writers;
        self.rng.below(own) * writers + self.connection
    }

    fn sent_version(&self, key: u64) -> u32 {
        self.versions
            .get(&key)
            .map_or(u32::from(self.set.filled), |&(sent, _)| sent)
    }

    fn get(&mut self, out: &mut Vec<u8>) -> Expected {
        let key = self.some_key();
        resp::command(out, &[b"GET", self.set.key(key).as_bytes()]);
        Expected::Value {
            key,
            version: self.sent_version(key),
        }
    }

    fn store(&mut self, out: &mut Vec<u8>) -> Expected {
        let key = self.some_key();
        let version = self.sent_version(key) + 1;
        self.versions
            .entry(key)
            .or_insert((version, u32::from(self.set.filled)))
            .0 = version;
        self.set.value(key, version, &mut self.scratch);
        resp::command(out, &[b"SET", self.set.key(key).as_bytes(), &self.scratch]);
        Expected::Stored { key, version }
    }

    fn push(&mut self, out: &mut Vec<u8>) -> Expected {
        let serial = self.lists.back().map_or(0, |list| list.serial);
        let name = self.set.list(self.connection, serial);
        let len = self.lists.back_mut().map_or(0, List::send);
        let item = lists::item(self.connection, serial, len - 1);
        resp::command(out, &[b"RPUSH", name.as_bytes(), item.as_bytes()]);
        Expected::Pushed { list: serial, len }
    }

    /// A full list is read as a whole, then deleted; the next one starts empty.
    fn retire_list(&mut self, out: &mut Vec<u8>) -> Option<Expected> {
        let list = self.lists.back_mut().filter(|list| list.sent >= LIST_LEN)?;
        let (serial, len) = (list.serial, list.sent);
        let name = self.set.list(self.connection, serial);
        if !list.read {
            list.read = true;
            resp::command(out, &[b"LRANGE", name.as_bytes(), b"0", b"-1"]);
            return Some(Expected::Items { list: serial, len });
        }
        list.deleting = true;
        self.lists.push_back(List::new(serial + 1));
        resp::command(out, &[b"DEL", name.as_bytes()]);
        Some(Expected::Deleted { list: serial })
    }

    /// Judges the reply to a command, and takes acknowledgements down.
    pub(crate) fn check(&mut self, expected: Expected, reply: &Reply<'_>, faults: &mut Faults) {
        let who = self.connection;
        match (expected, reply) {
            (Expected::Stored { key, version }, Reply::Simple(b"OK")) => {
                if let Some((_, acked)) = self.versions.get_mut(&key) {
                    *acked = version;
                }
            }
            (Expected::Value { key, version }, Reply::Bulk(value)) => {
                self.check_value(key, version..=version, *value, faults);
            }
            (Expected::Counted(count), Reply::Int(said)) => {
                self.acked_count = count;
                self.check_count(count..=count, *said, faults);
            }
            (Expected::Pushed { list, len }, Reply::Int(said)) => {
                if let Some(list) = self.lists.iter_mut().find(|l| l.serial == list) {
                    list.acked = len;
                    list.check_len(who, len, *said, faults);
                }
            }
            (Expected::Items { list, len }, Reply::Array(items)) => {
                if let Some(list) = self.lists.iter_mut().find(|l| l.serial == list) {
                    list.check_items(who, len..=len, items, faults);
                }
            }
            (Expected::Deleted { list }, Reply::Int(1)) => self.lists.retain(|l| l.serial != list),
            (Expected::Pong, Reply::Simple(b"PONG")) => {}
            (expected, reply) => {
                faults.mistake(|| {
                    format!(
                        "connection {who} expected {expected:?} and got {}",
                        described(reply)
                    )
                });
            }
        }
    }

    fn check_value(
        &mut self,
        key: u64,
        allowed: std::ops::RangeInclusive<u32>,
        value: Option<&[u8]>,
        faults: &mut Faults,
    ) {
        let version = match value {
            None => Some(0),
            Some(value) => self.set.version_of(key, value, &mut self.scratch),
        };
        let (who, least) = (self.connection, *allowed.start());
        match version {
            Some(version) if allowed.contains(&version) => {}
            Some(version) if version < least => {
                if self.reported.insert((key, least)) {
                    faults.lose(1, || format!("key {key} of connection {who} has version {version}, {least} was acknowledged"));
                }
            }
            _ => faults.mistake(|| {
                format!(
                    "key {key} of connection {who} must have version {least} and is {}",
                    shown(value.unwrap_or_default())
                )
            }),
        }
    }

    fn check_count(
        &mut self,
        allowed: std::ops::RangeInclusive<i64>,
        said: i64,
        faults: &mut Faults,
    ) {
        let (who, shift) = (self.connection, self.count_shift);
        let (least, most) = (allowed.start() + shift, allowed.end() + shift);
        if said < least {
            faults.lose(said.abs_diff(least), || {
                format!("counter of connection {who} is {said} instead of {least}")
            });
            self.count_shift = said - allowed.start();
        } else if said > most {
            faults.repeat(said.abs_diff(most), || {
                format!("counter of connection {who} is {said} instead of {most}")
            });
            self.count_shift = said - allowed.end();
        }
    }

    /// Commands that read back everything this connection has written.
    pub(crate) fn audit(&self) -> Vec<(Vec<u8>, Audited)> {
        if self.connection >= self.set.writers {
            return Vec::new();
        }
        let command = |words: &[&[u8]]| {
            let mut out = Vec::new();
            resp::command(&mut out, words);
            out
        };
        let mut all = Vec::new();
        for key in (self.connection..self.set.keys).step_by(self.set.writers as usize) {
            if self.sent_version(key) > 0 {
                all.push((
                    command(&[b"GET", self.set.key(key).as_bytes()]),
                    Audited::Key(key),
                ));
            }
        }
        if self.sent_count > 0 {
            let name = self.set.counter(self.connection);
            all.push((command(&[b"GET", name.as_bytes()]), Audited::Counter));
        }
        for list in &self.lists {
            let name = self.set.list(self.connection, list.serial);
            all.push((
                command(&[b"LRANGE", name.as_bytes(), b"0", b"-1"]),
                Audited::List(list.serial),
            ));
        }
        all
    }

    /// Judges a reply to a command of [`Model::audit`]. A command that was sent and never answered may have
    /// been carried out or not; everything acknowledged must be there.
    pub(crate) fn check_audited(&mut self, what: Audited, reply: &Reply<'_>, faults: &mut Faults) {
        let who = self.connection;
        match (what, reply) {
            (Audited::Key(key), Reply::Bulk(value)) => {
                let filled = u32::from(self.set.filled);
                let (sent, acked) = self.versions.get(&key).copied().unwrap_or((filled, filled));
                self.check_value(key, acked..=sent, *value, faults);
            }
            (Audited::Counter, Reply::Bulk(value)) => {
                let text = value
                    .and_then(|v| std::str::from_utf8(v).ok())
                    .unwrap_or("0");
                match text.parse() {
                    Ok(said) => self.check_count(self.acked_count..=self.sent_count, said, faults),
                    Err(_) => faults.mistake(|| {
                        format!("counter of connection {who} is {}", shown(text.as_bytes()))
                    }),
                }
            }
            (Audited::List(serial), Reply::Array(items)) => {
                // Deleted, but the answer did not come: empty is right, too.
                let list = self.lists.iter_mut().find(|l| l.serial == serial);
                if let Some(list) = list.filter(|l| !(l.deleting && items.is_empty())) {
                    list.check_items(who, list.acked..=list.sent, items, faults);
                }
            }
            (what, reply) => {
                faults.mistake(|| {
                    format!(
                        "audit of {what:?} of connection {who} got {}",
                        described(reply)
                    )
                });
            }
        }
    }
}

/// What an audit reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Audited {
    /// A key.
    Key(u64),
    /// The connection's counter.
    Counter,
    /// The list with this serial number.
    List(u64),
}

/// The command that reads a slow reader's value, and what it must answer.
pub(crate) fn read_big(set: &DataSet, reader: u64, out: &mut Vec<u8>) -> Expected {
    let key = BIG_KEYS + reader;
    resp::command(out, &[b"GET", set.key(key).as_bytes()]);
    Expected::Value { key, version: 1 }
}

fn described(reply: &Reply<'_>) -> String {
    match reply {
        Reply::Simple(text) | Reply::Error(text) => shown(text),
        Reply::Int(n) => n.to_string(),
        Reply::Bulk(None) => "nothing".to_owned(),
        Reply::Bulk(Some(value)) => shown(value),
        Reply::Array(items) => format!("{} items", items.len()),
    }
}
