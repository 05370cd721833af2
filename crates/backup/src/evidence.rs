//! Checkpoint and log of a container that could not be taken over, kept on disk so that it can be replayed again and
//! looked into.
//!
//! A directory that only its owner can read, for it holds the container's memory:
//!
//! ```text
//! image   the images of its processes, one after another, as eventlog::image draws them
//! log     a recording as eventlog::frame::file draws it: what it says about itself ([`About`]), then the bytes of each
//!         stream, whose positions in the file count from the first that is kept
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;

use eventlog::frame::file::{self, FileError, Writer};
use eventlog::image;
use serde::{Deserialize, Serialize};
use stream::checkpoint::Begin;
use stream::hello::Hello;

use crate::guard::Guard;
use crate::store::{Image, LogStore, StoreError, StreamRange};
use crate::takeover::Checkpoint;

/// Version of the layout.
const VERSION: u32 = 1;
const IMAGE: &str = "image";
const LOG: &str = "log";
/// Pages of a container that is not kept: more than 4 GiB.
const MOST_PAGES: usize = 1 << 20;
/// Bytes of log written at once.
const PIECE: usize = 256 << 10;

/// Why it cannot be kept, or read again.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The disk.
    #[error("{action} {path} failed: {source}")]
    Disk {
        /// What was done.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A container that is too large.
    #[error("it has {pages} pages of memory, and no more than {MOST_PAGES} are kept")]
    TooLarge {
        /// What it has.
        pages: usize,
    },
    /// The file of the log.
    #[error("{path} is not a whole log: {source}")]
    Format {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: FileError,
    },
    /// The file of the image.
    #[error("{path} is not a checkpoint: {reason}")]
    Image {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It was kept by another version.
    #[error(
        "{path} is of version {found}, this is version {VERSION}: use the understudy that made it"
    )]
    Version {
        /// The path.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The log in memory.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a kept log says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    version: u32,
    hello: Hello,
    checkpoint: Option<Begin>,
    streams: Vec<Kept>,
}

/// A stream: see [`StreamRange`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Kept {
    stream: u32,
    start: u64,
    drained: u64,
    settled: u64,
}

/// Whether a directory holds what [`keep`] writes.
#[must_use]
pub fn is_kept_in(directory: &Path) -> bool {
    directory.join(IMAGE).exists()
}

/// Writes what a backup holds of a container to a directory, in place of what was kept there before. Commits wait
/// meanwhile.
///
/// # Errors
/// [`EvidenceError`]; nothing new stays there then.
pub fn keep(guard: &Guard<Checkpoint>, directory: &Path) -> Result<(), EvidenceError> {
    let mut name = directory.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let written = write(guard, &part).and_then(|()| {
        remove(directory)?;
        fs::rename(&part, directory).map_err(disk("naming", directory))
    });
    if written.is_err() {
        // What could not be written whole is of no use.
        let _ = fs::remove_dir_all(&part);
    }
    written
}

fn write(guard: &Guard<Checkpoint>, directory: &Path) -> Result<(), EvidenceError> {
    let committed = guard.image();
    let pages = committed.image.page_count();
    if pages > MOST_PAGES {
        return Err(EvidenceError::TooLarge { pages });
    }
    remove(directory)?;
    let mut builder = DirBuilder::new();
    let made = builder.mode(0o700).recursive(true).create(directory);
    made.map_err(disk("making", directory))?;
    let path = directory.join(IMAGE);
    let mut out = File::create_new(&path).map_err(disk("making", &path))?;
    for process in committed.image.processes() {
        let bytes = image::encode(&process.full_image());
        out.write_all(&bytes).map_err(disk("writing", &path))?;
    }
    write_log(guard, committed.begin.clone(), &directory.join(LOG))
}

fn write_log(
    guard: &Guard<Checkpoint>,
    checkpoint: Option<Begin>,
    path: &Path,
) -> Result<(), EvidenceError> {
    let ranges: Vec<StreamRange> = guard.log().streams().collect();
    let about = About {
        version: VERSION,
        hello: guard.hello().clone(),
        checkpoint,
        streams: ranges.iter().map(Kept::of).collect(),
    };
    let failed = |source| EvidenceError::Format {
        path: path.to_owned(),
        source,
    };
    let mut file = File::create_new(path).map_err(disk("making", path))?;
    let mut out = Vec::new();
    let mut writer = Writer::begin(&about, &mut out).map_err(failed)?;
    for range in ranges {
        let mut position = range.start;
        while position < range.end {
            let mut bytes = Vec::new();
            let left = usize::try_from(range.end - position).unwrap_or(PIECE);
            let n = guard
                .log()
                .read(range.stream, position, left.min(PIECE), &mut bytes)?;
            if n == 0 {
                break;
            }
            writer
                .records(range.stream, &bytes, &mut out)
                .map_err(failed)?;
            file.write_all(&out).map_err(disk("writing", path))?;
            out.clear();
            position += n as u64;
        }
    }
    writer.end(&mut out).map_err(failed)?;
    file.write_all(&out).map_err(disk("writing", path))
}

/// Reads it again: a container whose primary is lost.
///
/// # Errors
/// [`EvidenceError`].
pub fn open(directory: &Path) -> Result<Arc<Guard<Checkpoint>>, EvidenceError> {
    let path = directory.join(LOG);
    let bytes = fs::read(&path).map_err(disk("reading", &path))?;
    let mut streams: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let gather = |run: file::Run<'_>| {
        let stream = streams.entry(run.stream).or_default();
        stream.extend_from_slice(run.bytes);
    };
    let about: About = file::read_all(&bytes, gather).map_err(|source| EvidenceError::Format {
        path: path.clone(),
        source,
    })?;
    if about.version != VERSION {
        let found = about.version;
        return Err(EvidenceError::Version { path, found });
    }
    let log = log_of(&about.streams, &streams)?;
    let path = directory.join(IMAGE);
    let bytes = fs::read(&path).map_err(disk("reading", &path))?;
    let mut checkpoint = Checkpoint::new();
    let committed = about
        .checkpoint
        .ok_or_else(|| "none was committed".to_owned());
    let applied = committed.and_then(|begin| {
        checkpoint.apply(&begin, bytes)?;
        Ok(begin)
    });
    let begin = applied.map_err(|reason| EvidenceError::Image { path, reason })?;
    let guard = Guard::new(about.hello, 0, 0, log, checkpoint, None, channel().0);
    guard.image().begin = Some(begin);
    Ok(Arc::new(guard))
}

/// The log, with the drains that it had.
fn log_of(kept: &[Kept], streams: &BTreeMap<u32, Vec<u8>>) -> Result<LogStore, StoreError> {
    let mut log = LogStore::new(u64::MAX, None);
    let mut append = |to: fn(&Kept) -> u64, drained: bool| {
        for one in kept {
            let bytes = streams.get(&one.stream).map_or(&[][..], Vec::as_slice);
            let known = log.streams().find(|range| range.stream == one.stream);
            let from = known.map_or(one.start, |range| range.end);
            let at = |position: u64| {
                let offset = position.saturating_sub(one.start);
                usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()))
            };
            let part = bytes.get(at(from)..at(to(one))).unwrap_or_default();
            log.append(one.stream, from, part)?;
        }
        if drained {
            log.mark_drain();
        }
        Ok::<(), StoreError>(())
    };
    append(|one| one.settled, true)?;
    append(|one| one.drained, true)?;
    append(|_| u64::MAX, false)?;
    Ok(log)
}

impl Kept {
    fn of(range: &StreamRange) -> Self {
        Self {
            stream: range.stream,
            start: range.start,
            drained: range.drained,
            settled: range.settled,
        }
    }
}

fn remove(directory: &Path) -> Result<(), EvidenceError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(disk("removing", directory)(error))
        }
        _ => Ok(()),
    }
}

fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EvidenceError {
    let path = path.to_owned();
    move |source| EvidenceError::Disk {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_its_drains_again() {
        let mut log = LogStore::new(u64::MAX, None);
        log.append(1, 480, b"before both").unwrap();
        log.mark_drain();
        log.append(1, 491, b" before one").unwrap();
        log.append(7, 0, b"begun").unwrap();
        log.mark_drain();
        log.append(1, 502, b" behind").unwrap();
        log.append(9, 96, b"").unwrap();

        let ranges: Vec<StreamRange> = log.streams().collect();
        let kept: Vec<Kept> = ranges.iter().map(Kept::of).collect();
        let bytes = |range: &StreamRange| {
            let mut bytes = Vec::new();
            log.read(range.stream, range.start, usize::MAX, &mut bytes)
                .unwrap();
            (range.stream, bytes)
        };
        let streams: BTreeMap<u32, Vec<u8>> = ranges.iter().map(bytes).collect();
        let again = log_of(&kept, &streams).unwrap();
        let clamp = |range: StreamRange| StreamRange {
            // What was settled before the first that is kept is.
            settled: range.settled.max(range.start),
            ..range
        };
        let (before, after) = (ranges.into_iter().map(clamp), again.streams().map(clamp));
        assert!(
            before.eq(after),
            "{:?}",
            again.streams().collect::<Vec<_>>()
        );
        let mut whole = Vec::new();
        again.read(1, 480, usize::MAX, &mut whole).unwrap();
        assert_eq!(whole, b"before both before one behind");
    }
}
