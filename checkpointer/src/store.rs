//! The newest state of a process, from a full image and the differences that follow.
//!
//! Pages live in slabs and are overwritten in place, so that the store is as large as the process and
//! does not grow with the number of checkpoints.

use std::borrow::Cow;
use std::collections::BTreeMap;

use eventlog::image::{Dead, Image, Mapping, NamedMemory, PAGE, Process, Run, Span, Thread};

use crate::changes::Changes;

const PAGES_PER_SLAB: usize = 256;

/// A difference that does not belong to what the store holds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It changes another image than the one held.
    #[error("image {sequence} changes image {base}, but the store holds {held}")]
    Base {
        /// The new image.
        sequence: u64,
        /// The one it changes.
        base: u64,
        /// The one that is held, 0 for none.
        held: u64,
    },
}

/// The newest state of a process.
#[derive(Debug, Default)]
pub struct ImageStore {
    sequence: u64,
    process: Process,
    threads: Vec<Thread>,
    dead: Vec<Dead>,
    names: Vec<NamedMemory>,
    mappings: Vec<Mapping>,
    vdso: Vec<u8>,
    opaque: Vec<(u32, Vec<u8>)>,
    index: BTreeMap<u64, u32>,
    slabs: Vec<Box<[u8]>>,
    free: Vec<u32>,
    changes: Changes,
}

impl ImageStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of the image that is held, 0 for none.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its threads, the leader first.
    #[must_use]
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }

    /// Processes of its container that have ended and were not waited for: in the store of the program.
    #[must_use]
    pub fn dead(&self) -> &[Dead] {
        &self.dead
    }

    /// Names of its container's shared memory: in the store of the program.
    #[must_use]
    pub fn names(&self) -> &[NamedMemory] {
        &self.names
    }

    /// Its memory map.
    #[must_use]
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// The vDSO of the kernel it ran on.
    #[must_use]
    pub fn vdso(&self) -> &[u8] {
        &self.vdso
    }

    /// A section of the caller's own, as in the newest image.
    #[must_use]
    pub fn opaque(&self, kind: u32) -> Option<&[u8]> {
        self.opaque
            .iter()
            .find(|(own, _)| *own == kind)
            .map(|(_, bytes)| &bytes[..])
    }

    /// Pages that are held.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.index.len()
    }

    /// The held pages between two addresses, by address.
    pub fn pages(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &[u8])> {
        self.index
            .range(start..end)
            .map(|(&address, &slot)| (address, self.slot(slot)))
    }

    /// The held page at this address.
    #[must_use]
    pub fn page(&self, address: u64) -> Option<&[u8]> {
        self.index.get(&address).map(|&slot| self.slot(slot))
    }

    /// The pages that came, changed or went since the last call; everything, at the first.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::replace(&mut self.changes, Changes::since(self.sequence))
    }

    /// Takes in an image: a full one replaces what is held, a difference changes it. Nothing changes when
    /// it is refused.
    ///
    /// # Errors
    /// When it is the difference to another image.
    pub fn apply(&mut self, image: &Image<'_>) -> Result<(), StoreError> {
        if image.base != 0 && image.base != self.sequence {
            let (sequence, base, held) = (image.sequence, image.base, self.sequence);
            return Err(StoreError::Base {
                sequence,
                base,
                held,
            });
        }
        if image.base == 0 {
            self.drop_pages(Span {
                start: 0,
                end: u64::MAX,
            });
            self.vdso = image.vdso.to_vec();
        }
        self.sequence = image.sequence;
        self.process = image.process.clone();
        self.threads.clone_from(&image.threads);
        self.dead.clone_from(&image.dead);
        self.names.clone_from(&image.names);
        self.opaque = image
            .opaque
            .iter()
            .map(|(kind, bytes)| (*kind, bytes.to_vec()))
            .collect();
        image.dropped.iter().for_each(|span| self.drop_pages(*span));
        self.store_pages(image);
        if let Some(mappings) = &image.mappings {
            self.mappings.clone_from(mappings);
            self.drop_unmapped();
        }
        self.changes.bound(self.index.len());
        Ok(())
    }

    /// All that is held, as one full image.
    #[must_use]
    pub fn full_image(&self) -> Image<'_> {
        let mut runs: Vec<Run> = Vec::new();
        for &address in self.index.keys() {
            match runs.last_mut() {
                Some(run) if run.start + run.pages * PAGE == address => run.pages += 1,
                _ => runs.push(Run {
                    start: address,
                    pages: 1,
                }),
            }
        }
        Image {
            sequence: self.sequence,
            base: 0,
            process: self.process.clone(),
            threads: self.threads.clone(),
            dead: self.dead.clone(),
            names: self.names.clone(),
            mappings: Some(self.mappings.clone()),
            dropped: Vec::new(),
            runs,
            pieces: self
                .index
                .values()
                .map(|&slot| Cow::Borrowed(self.slot(slot)))
                .collect(),
            vdso: Cow::Borrowed(&self.vdso),
            opaque: self
                .opaque
                .iter()
                .map(|(kind, bytes)| (*kind, Cow::Borrowed(&bytes[..])))
                .collect(),
        }
    }

    fn slot(&self, slot: u32) -> &[u8] {
        let (slab, at) = place(slot);
        &self.slabs[slab][at..at + PAGE as usize]
    }

    fn store_pages(&mut self, image: &Image<'_>) {
        let addresses = image
            .runs
            .iter()
            .flat_map(|run| (0..run.pages).map(|page| run.start + page * PAGE));
        let pages = image
            .pieces
            .iter()
            .flat_map(|piece| piece.chunks_exact(PAGE as usize));
        for (address, page) in addresses.zip(pages) {
            self.changes.note(address);
            let slot = match self.index.get(&address) {
                Some(&slot) => slot,
                None => self.new_slot(address),
            };
            let (slab, at) = place(slot);
            self.slabs[slab][at..at + PAGE as usize].copy_from_slice(page);
        }
    }

    fn new_slot(&mut self, address: u64) -> u32 {
        if self.free.is_empty() {
            let first = (self.slabs.len() * PAGES_PER_SLAB) as u32;
            self.slabs
                .push(vec![0; PAGES_PER_SLAB * PAGE as usize].into());
            self.free
                .extend((first..first + PAGES_PER_SLAB as u32).rev());
        }
        let slot = self.free.pop().unwrap_or_default();
        self.index.insert(address, slot);
        slot
    }

    fn drop_pages(&mut self, span: Span) {
        let stale: Vec<u64> = self
            .index
            .range(span.start..span.end)
            .map(|(&address, _)| address)
            .collect();
        for address in stale {
            self.free.extend(self.index.remove(&address));
            self.changes.note(address);
        }
    }

    fn drop_unmapped(&mut self) {
        let mut at = 0;
        let mut holes = Vec::new();
        for mapping in &self.mappings {
            if at < mapping.start {
                holes.push(Span {
                    start: at,
                    end: mapping.start,
                });
            }
            at = mapping.end;
        }
        holes.push(Span {
            start: at,
            end: u64::MAX,
        });
        holes.into_iter().for_each(|hole| self.drop_pages(hole));
    }
}

fn place(slot: u32) -> (usize, usize) {
    (
        slot as usize / PAGES_PER_SLAB,
        slot as usize % PAGES_PER_SLAB * PAGE as usize,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(sequence: u64, base: u64, pages: &[(u64, u8)]) -> Image<'static> {
        let mapping = Mapping {
            start: 0x10000,
            end: 0x20000,
            ..Mapping::default()
        };
        Image {
            sequence,
            base,
            mappings: (base == 0).then(|| vec![mapping]),
            runs: pages
                .iter()
                .map(|&(start, _)| Run { start, pages: 1 })
                .collect(),
            pieces: pages
                .iter()
                .map(|&(_, fill)| Cow::Owned(vec![fill; PAGE as usize]))
                .collect(),
            ..Image::default()
        }
    }

    fn held(store: &ImageStore) -> Vec<(u64, u8)> {
        store
            .pages(0, u64::MAX)
            .map(|(address, page)| (address, page[4095]))
            .collect()
    }

    #[test]
    fn differences_follow_one_another() {
        let mut store = ImageStore::new();
        store
            .apply(&image(1, 0, &[(0x10000, 1), (0x11000, 2), (0x1f000, 3)]))
            .unwrap();
        let mut second = image(2, 1, &[(0x11000, 9), (0x12000, 4)]);
        second.dropped = vec![Span {
            start: 0x10000,
            end: 0x12000,
        }];
        store.apply(&second).unwrap();
        assert_eq!(held(&store), [(0x11000, 9), (0x12000, 4), (0x1f000, 3)]);
        let error = store.apply(&image(4, 3, &[])).unwrap_err();
        assert_eq!(
            error,
            StoreError::Base {
                sequence: 4,
                base: 3,
                held: 2
            }
        );
        let mut copy = ImageStore::new();
        copy.apply(&store.full_image()).unwrap();
        assert_eq!(held(&copy), held(&store));
        assert_eq!(copy.sequence(), 2);
    }

    #[test]
    fn changes_name_every_page_that_came_changed_or_went() {
        let mut store = ImageStore::new();
        let first = [(0x10000, 1), (0x11000, 2), (0x1f000, 3)];
        store.apply(&image(1, 0, &first)).unwrap();
        assert_eq!(store.take_changes().pages_since(0), None);
        let mut second = image(2, 1, &[(0x12000, 4)]);
        second.dropped = vec![Span {
            start: 0x11000,
            end: 0x12000,
        }];
        store.apply(&second).unwrap();
        let mut third = image(3, 2, &[(0x10000, 7)]);
        third.mappings = Some(vec![Mapping {
            start: 0x10000,
            end: 0x18000,
            ..Mapping::default()
        }]);
        store.apply(&third).unwrap();
        let mut pages = store.take_changes().pages_since(1).unwrap();
        pages.sort_unstable();
        assert_eq!(pages, [0x10000, 0x11000, 0x12000, 0x1f000]);
        assert_eq!(store.take_changes().pages_since(3), Some(Vec::new()));
        assert_eq!(store.take_changes().pages_since(2), None);
    }

    #[test]
    fn changes_that_nobody_takes_do_not_pile_up() {
        let mut store = ImageStore::new();
        store.apply(&image(1, 0, &[(0x10000, 1)])).unwrap();
        drop(store.take_changes());
        for sequence in 2..20_000 {
            let next = image(sequence, sequence - 1, &[(0x10000, 1)]);
            store.apply(&next).unwrap();
            assert!(store.changes.len() < 10_000);
        }
        assert_eq!(store.take_changes().pages_since(1), None);
    }

    #[test]
    fn pages_without_a_mapping_are_dropped_and_their_room_is_used_again() {
        let mut store = ImageStore::new();
        store
            .apply(&image(1, 0, &[(0x10000, 1), (0x1f000, 3)]))
            .unwrap();
        for sequence in 2..2000 {
            let mut next = image(
                sequence,
                sequence - 1,
                &[(0x10000 + sequence % 8 * PAGE, 5)],
            );
            next.mappings = Some(vec![Mapping {
                start: 0x10000,
                end: 0x18000,
                ..Mapping::default()
            }]);
            next.dropped = vec![Span {
                start: 0x10000,
                end: 0x20000,
            }];
            store.apply(&next).unwrap();
        }
        assert_eq!(store.page_count(), 1);
        assert_eq!(store.slabs.len(), 1);
    }
}
