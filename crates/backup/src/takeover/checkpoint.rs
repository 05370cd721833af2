//! The committed image of a container: what checkpoints are applied to.

use checkpointer::ImageStore;
use eventlog::codec;
use eventlog::handover::{GuestState, section};
use stream::checkpoint::Begin;

use super::error::{Result, TakeoverError, damaged};
use crate::store::Image;

/// A process as of the last committed checkpoint.
#[derive(Debug, Default)]
pub struct Checkpoint {
    store: ImageStore,
}

impl Checkpoint {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory, registers and all else that belongs to the process.
    #[must_use]
    pub const fn store(&self) -> &ImageStore {
        &self.store
    }

    /// The same, for a process that follows it.
    pub(super) const fn store_mut(&mut self) -> &mut ImageStore {
        &mut self.store
    }

    /// The arena at the cut.
    pub(crate) fn guest(&self) -> Result<GuestState> {
        codec::decode(self.section(section::GUEST, "state of the guest")?)
            .map_err(damaged("the state of the guest"))
    }

    /// The fold's snapshot.
    pub(crate) fn fold(&self) -> Result<&[u8]> {
        self.section(section::FOLD, "state of the kernel")
    }

    /// Unacknowledged output: entry and bytes.
    pub(crate) fn output(&self) -> Result<Vec<(usize, &[u8])>> {
        const WHAT: &str = "whole unacknowledged output";
        let missing = || TakeoverError::Missing { what: WHAT };
        let mut rest = self.section(section::OUTPUT, WHAT)?;
        let mut all = Vec::new();
        while !rest.is_empty() {
            let (entry, after) = rest.split_first_chunk::<4>().ok_or_else(missing)?;
            let (len, after) = after.split_first_chunk::<4>().ok_or_else(missing)?;
            let len = u32::from_le_bytes(*len) as usize;
            let (bytes, after) = after.split_at_checked(len).ok_or_else(missing)?;
            all.push((u32::from_le_bytes(*entry) as usize, bytes));
            rest = after;
        }
        Ok(all)
    }

    /// Records of the primary's own stream from before the cut.
    pub(crate) fn handshakes(&self) -> Result<&[u8]> {
        self.section(section::HANDSHAKES, "handshakes")
    }

    fn section(&self, kind: u32, what: &'static str) -> Result<&[u8]> {
        self.store
            .opaque(kind)
            .ok_or(TakeoverError::Missing { what })
    }
}

impl Image for Checkpoint {
    fn apply(&mut self, _begin: &Begin, image: Vec<u8>) -> std::result::Result<(), String> {
        let image = eventlog::image::decode(&image).map_err(|e| e.to_string())?;
        self.store.apply(&image).map_err(|e| e.to_string())
    }
}
