//! The committed image of a container: what checkpoints are applied to.

use checkpointer::ImageStore;
use eventlog::codec;
use eventlog::handover::{GuestState, section};
use eventlog::image::{self, Image as Bytes};
use stream::checkpoint::Begin;

use super::error::{Result, TakeoverError, damaged};
use crate::store::Image;

/// The processes of a container as of the last committed checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// The container's program first, each other behind its parent. Before the first checkpoint: one empty store.
    processes: Vec<ImageStore>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            processes: vec![ImageStore::new()],
        }
    }
}

impl Checkpoint {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory, registers and all else that belongs to the container's program.
    #[must_use]
    pub fn program(&self) -> &ImageStore {
        &self.processes[0]
    }

    /// The same of every process, the program first, each other behind its parent.
    #[must_use]
    pub fn processes(&self) -> &[ImageStore] {
        &self.processes
    }

    /// The same, for processes that follow them.
    pub(super) fn processes_mut(&mut self) -> &mut [ImageStore] {
        &mut self.processes
    }

    /// The process with this number.
    pub(super) fn process(&self, number: u32) -> Option<&ImageStore> {
        let mut all = self.processes.iter();
        all.find(|store| store.process().pid == number)
    }

    /// Pages held, of all processes.
    pub(crate) fn page_count(&self) -> usize {
        self.processes.iter().map(ImageStore::page_count).sum()
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
        self.program()
            .opaque(kind)
            .ok_or(TakeoverError::Missing { what })
    }

    /// The store that an image belongs to: that of the same process, which one with the same number need not be.
    fn place(stores: &[ImageStore], image: &Bytes<'_>) -> Option<usize> {
        let name = (image.process.pid, image.process.kin.birth);
        let is_its = |s: &ImageStore| (s.process().pid, s.process().kin.birth) == name;
        stores.iter().position(is_its)
    }

    fn check(&self, image: &Bytes<'_>) -> std::result::Result<(), String> {
        let held =
            Self::place(&self.processes, image).map_or(0, |at| self.processes[at].sequence());
        if image.base == 0 || image.base == held {
            return Ok(());
        }
        let (pid, base) = (image.process.pid, image.base);
        Err(format!(
            "the image of process {pid} changes image {base}, but image {held} is held"
        ))
    }
}

impl Image for Checkpoint {
    fn apply(&mut self, _begin: &Begin, bytes: Vec<u8>) -> std::result::Result<(), String> {
        let parts = image::split(&bytes).map_err(|e| e.to_string())?;
        let decoded = parts.into_iter().map(image::decode);
        let images: Vec<Bytes<'_>> = decoded
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| e.to_string())?;
        if images.is_empty() {
            return Err("the checkpoint holds no process".to_owned());
        }
        images.iter().try_for_each(|image| self.check(image))?;
        let mut old = std::mem::take(&mut self.processes);
        for image in &images {
            let place = Self::place(&old, image);
            let mut store = place.map_or_else(ImageStore::new, |at| old.swap_remove(at));
            let applied = store.apply(image).map_err(|e| e.to_string());
            self.processes.push(store);
            // Cannot be: it was checked, and no process has two images.
            applied?;
        }
        Ok(())
    }
}
