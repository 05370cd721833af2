//! The generation of a container, kept on disk: what went live here is remembered across a restart.
//!
//! A file of two slots of 16 bytes, written in turn and in place, so that a later write needs no new room
//! and a torn one leaves the slot before: generation (8 bytes), CRC32C of it (4), zeroes (4).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Bytes of an entry.
pub(crate) const SLOT: usize = 16;

/// The file of one container.
#[derive(Debug)]
pub struct GenerationFile {
    file: File,
    path: PathBuf,
    generation: u64,
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
            file.write_all_at(&[slot(0), slot(0)].concat(), 0)
                .map_err(failed)?;
            file.sync_all().map_err(failed)?;
            return Ok(Self {
                file,
                path,
                generation: 0,
            });
        }
        let damaged = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "both of its entries are damaged",
            )
        };
        Ok(Self {
            generation: newest(&bytes).ok_or_else(|| failed(damaged()))?,
            file,
            path,
        })
    }

    /// The generation on disk.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Writes a generation and waits until it is on disk.
    ///
    /// # Errors
    /// [`GenerationError`] with the kernel's reason.
    pub fn set(&mut self, generation: u64) -> Result<(), GenerationError> {
        if generation == self.generation {
            return Ok(());
        }
        let at = (generation % 2) * SLOT as u64;
        self.file
            .write_all_at(&slot(generation), at)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| GenerationError {
                path: self.path.clone(),
                source,
            })?;
        self.generation = generation;
        Ok(())
    }
}

fn slot(generation: u64) -> [u8; SLOT] {
    let mut b = [0; SLOT];
    let value = generation.to_le_bytes();
    b[..8].copy_from_slice(&value);
    b[8..12].copy_from_slice(&crc32c::crc32c(&value).to_le_bytes());
    b
}

/// The highest generation that an undamaged entry holds.
pub(crate) fn newest(bytes: &[u8]) -> Option<u64> {
    let (slots, _) = bytes.as_chunks();
    slots.iter().filter_map(read_slot).max()
}

fn read_slot(b: &[u8; SLOT]) -> Option<u64> {
    let generation = u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    (*b == slot(generation)).then_some(generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_after_a_restart_and_survives_a_torn_write() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = GenerationFile::open(dir.path(), "redis").unwrap();
        assert_eq!(f.generation(), 0);
        f.set(4).unwrap();
        f.set(5).unwrap();
        assert_eq!(
            GenerationFile::open(dir.path(), "redis")
                .unwrap()
                .generation(),
            5
        );
        f.file.write_all_at(&[7; 5], SLOT as u64).unwrap();
        assert_eq!(
            GenerationFile::open(dir.path(), "redis")
                .unwrap()
                .generation(),
            4
        );
        f.file.write_all_at(&[7; 5], 0).unwrap();
        assert!(GenerationFile::open(dir.path(), "redis").is_err());
        assert!(GenerationFile::open(&dir.path().join("none"), "redis").is_err());
    }
}
