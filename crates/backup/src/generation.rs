//! The generation of a container, kept on disk: what went live here is remembered across a restart, and which run
//! of the container it was.
//!
//! A file of two slots of 24 bytes, written in turn and in place, so that a later write needs no new room
//! and a torn one leaves the slot before: generation (8 bytes), run (8), CRC32C of both (4), zeroes (4).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Bytes of an entry.
pub(crate) const SLOT: usize = 24;

/// How far the containers of one name have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reached {
    /// Takeovers and starts that the name has behind it; 0 for none.
    pub generation: u64,
    /// The random number of the run that has come there ([`stream::hello::Hello::run`]).
    pub run: u64,
}

/// The file of one container.
#[derive(Debug)]
pub struct GenerationFile {
    file: File,
    path: PathBuf,
    reached: Reached,
}

/// Why it cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("generation file {path} cannot be used: {source}")]
pub struct GenerationError {
    path: PathBuf,
    source: io::Error,
}

impl GenerationFile {
    /// Opens the file of the container `name` in `dir`; a new one holds generation 0.
    ///
    /// # Errors
    /// [`GenerationError`] with the kernel's reason; a file whose both slots are damaged is one.
    pub fn open(dir: &Path, name: &str) -> Result<Self, GenerationError> {
        let path = dir.join(format!("{name}.generation"));
        let failed = |source| GenerationError {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let mut bytes = Vec::with_capacity(2 * SLOT);
        (&file)
            .take(2 * SLOT as u64)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() < SLOT {
            let reached = Reached::default();
            file.write_all_at(&[slot(reached), slot(reached)].concat(), 0)
                .map_err(failed)?;
            file.sync_all().map_err(failed)?;
            return Ok(Self {
                file,
                path,
                reached,
            });
        }
        let damaged = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "both of its entries are damaged",
            )
        };
        Ok(Self {
            reached: newest(&bytes).ok_or_else(|| failed(damaged()))?,
            file,
            path,
        })
    }

    /// What is on disk.
    #[must_use]
    pub fn reached(&self) -> Reached {
        self.reached
    }

    /// Writes where a run has come to and waits until it is on disk.
    ///
    /// # Errors
    /// [`GenerationError`] with the kernel's reason.
    pub fn set(&mut self, reached: Reached) -> Result<(), GenerationError> {
        if reached == self.reached {
            return Ok(());
        }
        let at = (reached.generation % 2) * SLOT as u64;
        self.file
            .write_all_at(&slot(reached), at)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| GenerationError {
                path: self.path.clone(),
                source,
            })?;
        self.reached = reached;
        Ok(())
    }
}

fn slot(Reached { generation, run }: Reached) -> [u8; SLOT] {
    let mut b = [0; SLOT];
    b[..8].copy_from_slice(&generation.to_le_bytes());
    b[8..16].copy_from_slice(&run.to_le_bytes());
    let sum = crc32c::crc32c(&b[..16]);
    b[16..20].copy_from_slice(&sum.to_le_bytes());
    b
}

/// The entry of the highest generation, of those that are undamaged.
pub(crate) fn newest(bytes: &[u8]) -> Option<Reached> {
    let (slots, _) = bytes.as_chunks();
    slots.iter().filter_map(read_slot).max()
}

fn read_slot(b: &[u8; SLOT]) -> Option<Reached> {
    let number = |at: usize| {
        let eight = b.get(at..).and_then(<[u8]>::first_chunk)?;
        Some(u64::from_le_bytes(*eight))
    };
    let reached = Reached {
        generation: number(0)?,
        run: number(8)?,
    };
    (*b == slot(reached)).then_some(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_after_a_restart_and_survives_a_torn_write() {
        let dir = tempfile::tempdir().unwrap();
        let open = || GenerationFile::open(dir.path(), "redis");
        let at = |generation| Reached { generation, run: 9 };
        let mut f = open().unwrap();
        assert_eq!(f.reached(), Reached::default());
        f.set(at(4)).unwrap();
        f.set(at(5)).unwrap();
        assert_eq!(open().unwrap().reached(), at(5));
        f.file.write_all_at(&[7; 5], SLOT as u64).unwrap();
        assert_eq!(open().unwrap().reached(), at(4));
        f.file.write_all_at(&[7; 5], 0).unwrap();
        assert!(open().is_err());
        assert!(GenerationFile::open(&dir.path().join("none"), "redis").is_err());
    }
}
