//! A process in the making, which follows the images until it is needed.

use std::os::fd::RawFd;

use eventlog::image::{Mapping, Span};
use libc::pid_t;
use sys::memory::{Mem, Range};
use sys::proc_maps::VmFlags;
use sys::remote::SCRATCH_LEN;

use super::difference::{difference, flags};
use super::shared::Shared;
use super::{
    Child, Plan, RestoreError, Restored, Result, blank, check, fill, identity, make_child,
    mappings, threads, vdso_group,
};
use crate::changes::Changes;
use crate::store::ImageStore;

/// A process with the image's number, or one that is to be copied, with another; its memory is brought to what the image
/// says and follows it from one checkpoint to the next. It has one thread, which stands still, traced by the thread that made this;
/// that thread must do everything with it. It is killed when this is dropped, or that thread ends.
///
/// After an error it is of no use any more.
#[derive(Debug)]
pub struct Prepared {
    child: Child,
    scratch: u64,
    keep: Vec<RawFd>,
    mem: Mem,
    number: u32,
    vdso: (Vec<u8>, Option<Range>),
    /// Scratch and the caller's additions: the image has nothing there.
    taken: Vec<Range>,
    /// The image that `mappings` and `pending` follow.
    sequence: u64,
    mappings: Vec<Mapping>,
    shared: Shared,
    /// Addresses of pages that may differ from the image's, by address.
    pending: Vec<u64>,
}

impl Prepared {
    /// Makes the process, with nothing but the plan's own mappings.
    ///
    /// # Errors
    /// When it cannot be made; nothing is left behind then.
    pub fn new(store: &ImageStore, mut plan: Plan<'_>) -> Result<Self> {
        check(store)?;
        let child = make_child(store.process().pid, plan.child.take())?;
        Self::around(child, store, plan)
    }

    /// Makes a stopped process one for the images of `store`.
    pub(super) fn around(child: Child, store: &ImageStore, plan: Plan<'_>) -> Result<Self> {
        let number = store.process().pid;
        let scratch = blank::make(child.pid, store.mappings(), &plan.extra)?;
        let mem = Mem::open(child.pid).map_err(|source| RestoreError::Io {
            what: "opening the child's memory",
            source,
        })?;
        let mut taken: Vec<_> = plan.extra.iter().map(|extra| extra.range).collect();
        taken.push(Range {
            start: scratch,
            end: scratch + SCRATCH_LEN,
        });
        Ok(Self {
            child,
            scratch,
            keep: plan.keep,
            mem,
            number,
            vdso: (store.vdso().to_vec(), vdso_group(store.mappings())),
            taken,
            sequence: 0,
            mappings: Vec::new(),
            shared: Shared::default(),
            pending: Vec::new(),
        })
    }

    /// Shares the memory files of its parent, whose descriptors it has.
    pub(super) fn share(&mut self, parent: &Self) -> Result<()> {
        self.shared = parent.shared.inherited()?;
        Ok(())
    }

    /// Its number as we see it.
    #[must_use]
    pub const fn pid(&self) -> pid_t {
        self.child.pid
    }

    /// Address of the scratch mapping.
    pub(super) const fn scratch(&self) -> u64 {
        self.scratch
    }

    /// The number of the image that the process follows; what it may still lack are pages.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Pages that it is known to lack of that image.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.pending.len()
    }

    /// Brings the process closer to what the store holds: its whole memory map, and up to `most` pages.
    /// True once nothing is missing.
    ///
    /// It takes the store's changes, so that one process can follow a store.
    ///
    /// # Errors
    /// When the process is gone or cannot become what the store holds.
    pub fn update(&mut self, store: &mut ImageStore, most: usize) -> Result<bool> {
        if self.sequence != store.sequence() {
            let changes = store.take_changes();
            self.follow(store, changes)?;
        }
        self.fill(store, most)
    }

    /// Brings the process to what the store holds and gives it all that belongs to a process beside its
    /// memory. All its threads are traced by the calling thread and stopped, with registers set such that
    /// letting them go continues at the cut; user dispatch is still off ([`Restored::arm`]).
    ///
    /// # Errors
    /// As [`update`](Self::update). The process is gone then.
    pub fn finish(mut self, store: &mut ImageStore) -> Result<Restored> {
        self.update(store, usize::MAX)?;
        self.complete(store)
    }

    /// Whether a [`copy`](Self::copy) has the same memory: nothing of it is shared with others, and there is nothing that
    /// a child does not get.
    #[must_use]
    pub fn can_be_copied(&self) -> bool {
        let lost = [VmFlags::DONTFORK, VmFlags::WIPEONFORK, VmFlags::LOCKED];
        let is_lost = |mapping: &Mapping| lost.iter().any(|flag| flags(mapping).has(*flag));
        self.shared.is_empty() && !self.mappings.iter().any(is_lost)
    }

    /// Makes another process for the same images, with their number, beside this one, whose memory as it is now it
    /// shares until either writes to it. This one must have another number, and nothing to be [filled](Self::update)
    /// any more, and [be such](Self::can_be_copied).
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn copy(&self) -> Result<Self> {
        let failed = |source| RestoreError::Io {
            what: "opening the copy's memory",
            source,
        };
        let (pid, beside) = (self.child.pid, libc::CLONE_PARENT);
        let pid = threads::create_one(pid, self.scratch, self.number, beside, 0)?;
        let child = Child { pid };
        Ok(Self {
            mem: Mem::open(pid).map_err(failed)?,
            child,
            scratch: self.scratch,
            keep: self.keep.clone(),
            number: self.number,
            vdso: self.vdso.clone(),
            taken: self.taken.clone(),
            sequence: self.sequence,
            mappings: self.mappings.clone(),
            shared: Shared::default(),
            pending: Vec::new(),
        })
    }

    /// Takes over the store's memory map, and notes which pages may differ.
    pub(super) fn follow(&mut self, store: &ImageStore, changes: Changes) -> Result<()> {
        self.check(store)?;
        match changes.pages_since(self.sequence) {
            Some(pages) => self.pending.extend(pages),
            None if self.sequence == 0 => {
                let kernels = store.mappings().iter().filter(|m| m.is_kernels());
                kernels.for_each(|mapping| self.await_pages(store, mapping));
            }
            // What went meanwhile is not known.
            None => {
                let what = "changes that it missed";
                return Err(RestoreError::Stranger { what });
            }
        }
        self.map(store)?;
        self.pending.sort_unstable();
        self.pending.dedup();
        self.sequence = store.sequence();
        Ok(())
    }

    /// What an image may not change in a process that is there.
    fn check(&self, store: &ImageStore) -> Result<()> {
        let vdso_is_same =
            store.vdso() == self.vdso.0 && vdso_group(store.mappings()) == self.vdso.1;
        let overlaps = |range: &Range, mapping: &Mapping| {
            mapping.start < range.end && range.start < mapping.end
        };
        let is_taken = |mapping: &Mapping| self.taken.iter().any(|range| overlaps(range, mapping));
        let differs = [
            (store.process().pid != self.number, "its number"),
            (!vdso_is_same, "its vDSO"),
            (
                store.mappings().iter().any(is_taken),
                "a mapping in our way",
            ),
        ];
        match differs.into_iter().find(|(differs, _)| *differs) {
            Some((_, what)) => Err(RestoreError::Stranger { what }),
            None => Ok(()),
        }
    }

    fn map(&mut self, store: &ImageStore) -> Result<()> {
        let wanted = store.mappings();
        if self.mappings == wanted {
            return Ok(());
        }
        let difference = difference(&self.mappings, wanted);
        if !difference.is_empty() {
            let pid = self.child.pid;
            self.shared.provide(pid, self.scratch, wanted)?;
            mappings::change(pid, self.scratch, &difference, &self.shared)?;
            let goes = |mapping: &&Mapping| {
                let meets = |span: &Span| span.start < mapping.end && mapping.start < span.end;
                difference.unmapped.iter().any(meets)
            };
            for mapping in self.mappings.iter().filter(goes) {
                self.shared.distrust(mapping);
            }
            for mapping in &difference.mapped {
                self.shared.distrust(mapping);
                self.await_pages(store, mapping);
            }
        }
        self.mappings = wanted.to_vec();
        Ok(())
    }

    fn await_pages(&mut self, store: &ImageStore, mapping: &Mapping) {
        let pages = store.pages(mapping.start, mapping.end);
        self.pending.extend(pages.map(|(address, _)| address));
    }

    pub(super) fn fill(&mut self, store: &ImageStore, most: usize) -> Result<bool> {
        let rest = self.pending.len().saturating_sub(most);
        let part = self.pending.split_off(rest);
        let process = (self.child.pid, self.scratch, &self.mem);
        fill::put(process, store, &part, &mut self.shared)?;
        if self.pending.is_empty() {
            self.shared.refill(store)?;
        }
        Ok(self.pending.is_empty())
    }

    pub(super) fn complete(self, store: &ImageStore) -> Result<Restored> {
        let pid = self.child.pid;
        let mut restored = Restored::new(pid, self.scratch, self.keep);
        threads::create(&mut restored, store)?;
        identity::assume(pid, self.scratch, store.process(), restored.kept())?;
        threads::register(&mut restored, store)?;
        self.child.keep();
        Ok(restored)
    }
}
