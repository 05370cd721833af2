//! Log that does not fit into memory: slots of one size in a file without a name, gone with its process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::StoreError;

/// Bytes of a slot: the most that one segment holds.
pub(super) const SLOT_LEN: usize = 256 << 10;

/// The file and which of its slots are free.
#[derive(Debug)]
pub struct Spill {
    file: File,
    dir: PathBuf,
    free: Vec<u32>,
    pub(super) slots: u32,
}

impl Spill {
    /// A new file in `dir`, which nobody else can open.
    ///
    /// # Errors
    /// [`StoreError::State`] if the directory cannot be used.
    pub fn new(dir: &Path) -> Result<Self, StoreError> {
        let flags = nix::fcntl::OFlag::O_TMPFILE.bits();
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .mode(0o600)
            .open(dir)
            .map_err(|source| StoreError::State {
                dir: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            file,
            dir: dir.to_owned(),
            free: Vec::new(),
            slots: 0,
        })
    }

    /// Writes `bytes`, at most a slot, and answers where.
    ///
    /// # Errors
    /// [`StoreError::StateFull`] when the disk is.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<u32, StoreError> {
        let slot = self.free.last().copied().unwrap_or(self.slots);
        self.file
            .write_all_at(bytes, at(slot))
            .map_err(|e| self.failed(e))?;
        if self.free.pop().is_none() {
            self.slots += 1;
        }
        Ok(slot)
    }

    /// Reads `out.len()` bytes of a slot from `offset` on.
    ///
    /// # Errors
    /// [`StoreError::State`] if the disk fails.
    pub(super) fn get(&self, slot: u32, offset: usize, out: &mut [u8]) -> Result<(), StoreError> {
        self.file
            .read_exact_at(out, at(slot) + offset as u64)
            .map_err(|e| self.failed(e))
    }

    /// The slot may be written again.
    pub(super) fn release(&mut self, slot: u32) {
        self.free.push(slot);
    }

    fn failed(&self, source: io::Error) -> StoreError {
        let dir = self.dir.clone();
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => StoreError::StateFull { dir },
            _ => StoreError::State { dir, source },
        }
    }
}

fn at(slot: u32) -> u64 {
    u64::from(slot) * SLOT_LEN as u64
}
