//! A recording on disk: `DIR/log`, frames as [`eventlog::frame`] draws them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Release};
use std::thread::{self, JoinHandle};

use eventlog::frame::file::{FileError, Writer};
use eventlog::record::{Header, kind};
use eventlog::recording::{LOG_NAME, Meta, OWN_STREAM};
use sys::arena::Arena;
use sys::follow::{FollowError, Follower};

use crate::drain::{Drainer, Sink};

/// Why a recording failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory or the log could not be written.
    #[error("writing {path} failed: {source}")]
    Write {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The recording's bytes could not be made.
    #[error(transparent)]
    Format(#[from] FileError),
    /// The program could not be followed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// A thread of the recorder ended abnormally.
    #[error("the recorder's drain thread panicked")]
    Panicked,
}

/// A recording under way.
#[derive(Debug)]
pub struct Recording {
    follower: Follower,
    drain: JoinHandle<Result<LogFile, Error>>,
    stop: Arc<AtomicBool>,
}

impl Recording {
    /// Begins to record a program that waits before its first execve; `arena` is one of its descriptors.
    /// `init` and `program` are host numbers.
    ///
    /// # Errors
    /// When the log cannot be made or the program cannot be traced.
    pub fn begin(
        dir: &Path,
        meta: &Meta,
        arena: Arc<Arena>,
        init: i32,
        program: i32,
    ) -> Result<Self, Error> {
        let log = LogFile::create(dir, meta)?;
        let follower = Follower::attach(Arc::clone(&arena), init, program)?;
        let stop = Arc::new(AtomicBool::new(false));
        let drainer = Drainer::new(arena, log, follower.caller());
        let flag = Arc::clone(&stop);
        let spawned = thread::Builder::new()
            .name("drain".into())
            .spawn(move || drainer.run(&flag));
        let drain = spawned.map_err(FollowError::Thread)?;
        Ok(Self {
            follower,
            drain,
            stop,
        })
    }

    /// Waits until the program's first image runs under the guest.
    ///
    /// # Errors
    /// When it could not be injected.
    pub fn started(&self) -> Result<(), Error> {
        Ok(self.follower.started()?)
    }

    /// Ends the recording: all processes of the container have ended, with this status. The log is whole
    /// afterwards.
    ///
    /// # Errors
    /// The first error that came up while recording.
    pub fn finish(self, status: i32) -> Result<(), Error> {
        self.stop.store(true, Release);
        let log = self.drain.join().map_err(|_| Error::Panicked)??;
        let failed = self.follower.error();
        log.end(status)?;
        failed.map_or(Ok(()), |e| Err(e.into()))
    }

    /// The program could not be started, and its container is gone: nothing of the recording stays.
    pub fn abandon(self) {
        self.stop.store(true, Release);
        if let Ok(Ok(log)) = self.drain.join() {
            log.remove();
        }
    }
}

/// The log file.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    writer: Writer,
    pending: Vec<u8>,
    /// The directory was not there before.
    made_directory: bool,
}

/// Bytes gathered before they are written.
const GATHER: usize = 256 << 10;

impl LogFile {
    fn create(dir: &Path, meta: &Meta) -> Result<Self, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Write { path, source }
        };
        let made_directory = !dir.exists();
        fs::create_dir_all(dir).map_err(failed(dir))?;
        let path = dir.join(LOG_NAME);
        let file = File::create(&path).map_err(failed(&path))?;
        let mut pending = Vec::with_capacity(2 * GATHER);
        let writer = Writer::begin(meta, &mut pending)?;
        Ok(Self {
            path,
            file,
            writer,
            pending,
            made_directory,
        })
    }

    /// Removes what [`Self::create`] has made; what is left after an error here is empty.
    fn remove(self) {
        let _ = fs::remove_file(&self.path);
        if let Some(dir) = self.path.parent().filter(|_| self.made_directory) {
            let _ = fs::remove_dir(dir);
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let written = self.file.write_all(&self.pending);
        self.pending.clear();
        written.map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })
    }

    fn end(mut self, status: i32) -> Result<(), Error> {
        let last = Header {
            kind: kind::EXIT,
            result: i64::from(status),
            ..Header::default()
        };
        let (bytes, len) = last.encode();
        self.writer
            .records(OWN_STREAM, &bytes[..len], &mut self.pending)?;
        self.flush()?;
        self.writer.end(&mut self.pending)?;
        let written = self
            .file
            .write_all(&self.pending)
            .and_then(|()| self.file.sync_data());
        written.map_err(|source| Error::Write {
            path: self.path,
            source,
        })
    }
}

impl Sink for LogFile {
    type Error = Error;

    fn begin(&mut self) {}

    fn records(
        &mut self,
        stream: u32,
        _position: u64,
        bytes: &[u8],
        _records: u64,
    ) -> Result<(), Error> {
        self.writer.records(stream, bytes, &mut self.pending)?;
        if self.pending.len() >= GATHER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn round(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn refused(&mut self, number: u16) {
        let name = sysabi::lookup(u64::from(number)).map_or("unknown", |row| row.name);
        eprintln!(
            "understudy: the system call {name} is not supported and was answered with ENOSYS"
        );
    }
}
