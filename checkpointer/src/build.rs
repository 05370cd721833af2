//! What one checkpoint took, and the image it makes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use eventlog::image::{Backing, Image, Mapping, PAGE, Process, Run, Span, Thread};

use crate::capture::{Item, Pages};

/// What one checkpoint took. Turning it into an image is left for after the pause.
#[derive(Debug)]
pub struct Capture {
    pub(crate) sequence: u64,
    pub(crate) base: u64,
    pub(crate) process: Process,
    pub(crate) threads: Vec<Thread>,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) same_mappings: bool,
    pub(crate) vdso: Vec<u8>,
    pub(crate) items: Vec<Item>,
}

/// A page's place: item and byte offset.
type Place = (usize, usize);

impl Capture {
    /// Number of the image.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The image. Its pages are borrowed from the capture; the caller adds sections of its own.
    #[must_use]
    pub fn image(&self) -> Image<'_> {
        let (newest, mut dropped) = self.newest();
        let full = self.base == 0;
        let mut image = Image {
            sequence: self.sequence,
            base: self.base,
            process: self.process.clone(),
            threads: self.threads.clone(),
            mappings: (full || !self.same_mappings).then(|| self.mappings.clone()),
            vdso: Cow::Borrowed(&self.vdso),
            ..Image::default()
        };
        for mapping in &self.mappings {
            let zero_is_nothing = mapping.backing != Backing::File && !mapping.is_kernels();
            for (&address, &place) in newest.range(mapping.start..mapping.end) {
                let page = self.page(place);
                if zero_is_nothing && page.iter().all(|&byte| byte == 0) {
                    drop_page(&mut dropped, address);
                } else {
                    add_page(&mut image, address, page);
                }
            }
        }
        if !full {
            image.dropped = dropped;
        }
        image
    }

    fn pages(&self, item: usize) -> Option<&Pages> {
        match self.items.get(item) {
            Some(Item::Pages(pages)) => Some(pages),
            _ => None,
        }
    }

    fn page(&self, (item, at): Place) -> &[u8] {
        self.pages(item)
            .and_then(|pages| pages.bytes.get(at..at + PAGE as usize))
            .unwrap_or_default()
    }

    /// The newest copy of each page, and the ranges whose older pages are void.
    fn newest(&self) -> (BTreeMap<u64, Place>, Vec<Span>) {
        let mut newest = BTreeMap::new();
        let mut void = Vec::new();
        for (item, what) in self.items.iter().enumerate() {
            match what {
                Item::Void(range) => {
                    let stale: Vec<u64> = newest
                        .range(range.start..range.end)
                        .map(|(&address, _)| address)
                        .collect();
                    for address in stale {
                        newest.remove(&address);
                    }
                    void.push(Span {
                        start: range.start,
                        end: range.end,
                    });
                }
                Item::Pages(pages) => {
                    let addresses = pages
                        .ranges
                        .iter()
                        .flat_map(|range| (range.start..range.end).step_by(PAGE as usize));
                    newest.extend(
                        addresses
                            .enumerate()
                            .map(|(index, address)| (address, (item, index * PAGE as usize))),
                    );
                }
            }
        }
        (newest, void)
    }
}

fn drop_page(dropped: &mut Vec<Span>, address: u64) {
    match dropped.last_mut() {
        Some(last) if last.end == address => last.end += PAGE,
        _ => dropped.push(Span {
            start: address,
            end: address + PAGE,
        }),
    }
}

fn add_page<'a>(image: &mut Image<'a>, address: u64, page: &'a [u8]) {
    match image.runs.last_mut() {
        Some(run) if run.start + run.pages * PAGE == address => run.pages += 1,
        _ => image.runs.push(Run {
            start: address,
            pages: 1,
        }),
    }
    image.pieces.push(Cow::Borrowed(page));
}
