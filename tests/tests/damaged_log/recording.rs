//! A recording, taken apart into records and put together again: with right frames and checksums, whatever the records
//! say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use eventlog::frame::file::{self, Writer};
use eventlog::record::{Header, Records, kind, stored_len};
use eventlog::recording::{LOG_NAME, Meta, OWN_STREAM};
use tempfile::TempDir;
use understudy_tests::{Ended, run, understudy};

/// Bytes of input that the program finds.
const ENTRIES: usize = 4096;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

impl Entry {
    fn len(&self) -> usize {
        stored_len(self.header.needs_long(), self.payload.len())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (bytes, n) = self.header.encode();
        let end = out.len() + self.len();
        out.extend_from_slice(&bytes[..n]);
        out.extend_from_slice(&self.payload);
        out.resize(end, 0);
    }
}

/// Which record: its stream, and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) stream: u32,
    pub(crate) index: usize,
}

/// All records of a recording.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    meta: Meta,
    pub(crate) all: BTreeMap<u32, Vec<Entry>>,
}

impl Streams {
    fn read(log: &Path) -> Self {
        let bytes = fs::read(log.join(LOG_NAME)).unwrap();
        let mut runs: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let meta = file::read_all(&bytes, |run| {
            runs.entry(run.stream)
                .or_default()
                .extend_from_slice(run.bytes);
        });
        let entries = |bytes: &Vec<u8>| {
            let records = Records::new(bytes).map(|record| {
                let record = record.unwrap();
                Entry {
                    header: record.header,
                    payload: record.payload.to_vec(),
                }
            });
            records.collect()
        };
        let all = runs.iter().map(|(n, bytes)| (*n, entries(bytes))).collect();
        Self {
            meta: meta.unwrap(),
            all,
        }
    }

    pub(crate) fn write(&self, log: &Path) {
        let mut out = Vec::new();
        let mut writer = Writer::begin(&self.meta, &mut out).unwrap();
        for (stream, entries) in &self.all {
            let mut bytes = Vec::new();
            entries.iter().for_each(|entry| entry.encode(&mut bytes));
            writer.records(*stream, &bytes, &mut out).unwrap();
        }
        writer.end(&mut out).unwrap();
        fs::write(log.join(LOG_NAME), out).unwrap();
    }

    /// Where the records of a stream begin, and where the last one ends.
    pub(crate) fn boundaries(&self, stream: u32) -> Vec<u64> {
        let mut at = 0;
        let mut all = vec![0];
        for entry in self.all.get(&stream).into_iter().flatten() {
            at += entry.len() as u64;
            all.push(at);
        }
        all
    }

    pub(crate) fn entry(&mut self, place: Place) -> &mut Entry {
        &mut self.all.get_mut(&place.stream).unwrap()[place.index]
    }

    pub(crate) fn remove(&mut self, place: Place) -> Entry {
        self.all.get_mut(&place.stream).unwrap().remove(place.index)
    }

    pub(crate) fn double(&mut self, place: Place) {
        let again = self.entry(place).clone();
        let entries = self.all.get_mut(&place.stream).unwrap();
        entries.insert(place.index, again);
    }

    pub(crate) fn position(&self, place: Place) -> u64 {
        self.boundaries(place.stream)[place.index]
    }

    /// The program's records that are wanted, stream by stream.
    pub(crate) fn places(&self, wanted: impl Fn(u32, &Entry) -> bool) -> Vec<Place> {
        let mut places = Vec::new();
        for (stream, entries) in self.all.iter().filter(|(n, _)| **n != OWN_STREAM) {
            let found = entries.iter().enumerate();
            let found = found.filter(|(_, entry)| wanted(*stream, entry));
            places.extend(found.map(|(index, _)| Place {
                stream: *stream,
                index,
            }));
        }
        places
    }

    /// The streams of those who take the lock that this record is of, if it is of one.
    pub(crate) fn takers(&self, entry: &Entry) -> BTreeSet<u32> {
        let lock = (entry.header.kind, entry.header.hash);
        let of_lock = |_, other: &Entry| {
            lock.0 == kind::LOCK && lock == (other.header.kind, other.header.hash)
        };
        let places = self.places(of_lock);
        places.into_iter().map(|place| place.stream).collect()
    }

    /// In words, for a failure.
    pub(crate) fn describe(&self, place: Place) -> String {
        let entry = &self.all[&place.stream][place.index];
        format!(
            "stream {}, record {} at position {}: {:?}",
            place.stream,
            place.index,
            self.position(place),
            entry.header
        )
    }
}

/// A recorded run of `ledger.c`.
pub(crate) struct Recording {
    scratch: TempDir,
    pub(crate) streams: Streams,
    pub(crate) stdout: Vec<u8>,
}

impl Recording {
    pub(crate) fn make() -> Self {
        let scratch = TempDir::new().unwrap();
        let source = scratch.path().join("ledger.c");
        fs::write(&source, include_str!("../programs/ledger.c")).unwrap();
        let mut entries = 7_u32;
        let entries: Vec<u8> = (0..ENTRIES)
            .map(|_| {
                entries = entries.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (entries >> 24) as u8
            })
            .collect();
        fs::write(scratch.path().join("entries"), entries).unwrap();
        let mut compiler = Command::new("gcc");
        compiler.args(["-O1", "-pthread", "-o", "ledger", "ledger.c"]);
        let compiled = run(compiler.current_dir(scratch.path())).unwrap();
        assert!(compiled.status.success(), "{}", compiled.stderr);
        let log = scratch.path().join("log");
        let mut recorder = Command::new(understudy().unwrap());
        recorder.args(["record", "--out"]).arg(&log);
        let recorded = run(recorder.args(["--", "./ledger"]).current_dir(&scratch)).unwrap();
        assert!(recorded.status.success(), "{recorded:?}");
        let streams = Streams::read(&log);
        assert!(
            streams.places(|_, e| e.header.kind == kind::LOCK).len() > 50,
            "{:?}",
            streams.all.keys()
        );
        Self {
            scratch,
            streams,
            stdout: recorded.stdout,
        }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// Replays the log as it is now.
    pub(crate) fn replay(&self) -> Ended {
        let mut replay = Command::new(understudy().unwrap());
        run(replay.arg("replay").arg(self.log())).unwrap()
    }
}
