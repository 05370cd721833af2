//! A log in memory: the bytes of each stream.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use eventlog::frame::file::{self, FileError};
use eventlog::record::{self, Records};
use eventlog::recording::{LOG_NAME, Meta, OWN_STREAM};

use crate::feed::Source;

/// Why a recording cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Its file could not be read.
    #[error("reading {path} failed: {source}")]
    Read {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Its bytes are not a recording.
    #[error("{path} is not a whole recording: {source}")]
    Format {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: FileError,
    },
    /// A stream holds what is no record.
    #[error("stream {stream} of {path} is malformed at position {position}: {source}")]
    Record {
        /// The path.
        path: PathBuf,
        /// The stream.
        stream: u32,
        /// Where in the stream the record should begin.
        position: u64,
        /// What is wrong.
        source: record::Malformed,
    },
    /// It was made on another kernel.
    #[error("the recording was made on kernel {theirs}, this is {ours}: replay it there")]
    Kernel {
        /// Where it was made.
        theirs: String,
        /// Here.
        ours: String,
    },
}

/// A recording.
#[derive(Clone, Debug)]
pub struct Log {
    /// What it says about itself.
    pub meta: Meta,
    /// The exit status of the recorded run.
    pub status: i32,
    streams: HashMap<u32, Vec<u8>>,
}

impl Log {
    /// Reads and checks the recording in a directory.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn read(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join(LOG_NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(LogError::Read { path, source }),
        };
        let mut streams: HashMap<u32, Vec<u8>> = HashMap::new();
        let meta: Meta = file::read_all(&bytes, |run| {
            streams
                .entry(run.stream)
                .or_default()
                .extend_from_slice(run.bytes);
        })
        .map_err(|source| LogError::Format {
            path: path.clone(),
            source,
        })?;
        let mut numbers: Vec<u32> = streams.keys().copied().collect();
        numbers.sort_unstable();
        for stream in numbers {
            let mut records = Records::new(&streams[&stream]);
            if let Some(Err(source)) = records.find(Result::is_err) {
                let position = records.consumed() as u64;
                return Err(LogError::Record {
                    path,
                    stream,
                    position,
                    source,
                });
            }
        }
        let own = streams.remove(&OWN_STREAM).unwrap_or_default();
        let last = Records::new(&own).next().and_then(Result::ok);
        let status = last.map_or(0, |r| r.header.result as i32);
        Ok(Self {
            meta,
            status,
            streams,
        })
    }

    /// Refuses a recording of another kernel, whose calls may answer differently.
    ///
    /// # Errors
    /// [`LogError::Kernel`].
    pub fn check_kernel(&self, ours: &str) -> Result<(), LogError> {
        if self.meta.kernel == ours {
            return Ok(());
        }
        Err(LogError::Kernel {
            theirs: self.meta.kernel.clone(),
            ours: ours.to_owned(),
        })
    }

    /// The bytes of a stream; empty if the log has none of it.
    #[must_use]
    pub fn stream(&self, number: u32) -> &[u8] {
        self.streams.get(&number).map_or(&[], Vec::as_slice)
    }

    /// The streams of the program's threads.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.streams.keys().copied()
    }

    /// Bytes of all streams.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.streams.values().map(|s| s.len() as u64).sum()
    }

    /// Whether there is no event at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Source for Log {
    type Error = Infallible;

    fn start(&self, _stream: u32) -> u64 {
        0
    }

    fn read(
        &self,
        stream: u32,
        position: u64,
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, Infallible> {
        let bytes = self.stream(stream);
        let left = &bytes[(position as usize).min(bytes.len())..];
        let n = left.len().min(max);
        out.extend_from_slice(&left[..n]);
        Ok(n)
    }
}
