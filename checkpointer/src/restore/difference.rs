//! What has to be done to a memory map for it to become another one.

use eventlog::image::{Backing, Mapping, Span};
use sys::proc_maps::VmFlags;

/// Steps from one memory map to another. Mappings of the kernel's are no part of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Taken away first.
    pub(super) unmapped: Vec<Span>,
    /// Then made, empty: whole mappings of the new map, or parts of them.
    pub(super) mapped: Vec<Mapping>,
    /// New protections of what stays.
    pub(super) protected: Vec<(Span, u32)>,
}

impl Difference {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.unmapped.is_empty() && self.mapped.is_empty() && self.protected.is_empty()
    }
}

/// Compares two maps, each in ascending order.
pub(super) fn difference(old: &[Mapping], new: &[Mapping]) -> Difference {
    let edges = |mapping: &Mapping| [mapping.start, mapping.end];
    let mut bounds: Vec<u64> = old.iter().chain(new).flat_map(edges).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let mut difference = Difference::default();
    let (mut before, mut after) = (Cursor(old), Cursor(new));
    for pair in bounds.windows(2) {
        let span = Span {
            start: pair[0],
            end: pair[1],
        };
        match (before.at(span.start), after.at(span.start)) {
            (None, None) => {}
            (Some(_), None) => difference.unmap(span),
            (None, Some(now)) => difference.map(span, now),
            (Some(was), Some(now)) if !stays(was, now) => {
                difference.unmap(span);
                difference.map(span, now);
            }
            (Some(was), Some(now)) if was.protection != now.protection => {
                difference.protect(span, now.protection);
            }
            _ => {}
        }
    }
    difference
}

/// Finds the mappings of ascending addresses.
struct Cursor<'a>(&'a [Mapping]);

impl<'a> Cursor<'a> {
    fn at(&mut self, address: u64) -> Option<&'a Mapping> {
        while let [first, rest @ ..] = self.0
            && first.end <= address
        {
            self.0 = rest;
        }
        let first = self.0.first()?;
        (first.start <= address && !first.is_kernels()).then_some(first)
    }
}

/// Whether an address may keep its mapping and its pages, when both maps have something there.
fn stays(was: &Mapping, now: &Mapping) -> bool {
    let alike = (was.backing, was.shared, flags(was)) == (now.backing, now.shared, flags(now));
    alike
        && match now.backing {
            Backing::Anonymous => true,
            Backing::SharedMemory => same_place(was, now),
            // A file that is opened for reading cannot be made writable while it is shared.
            Backing::File => {
                same_place(was, now)
                    && was.path == now.path
                    && (!now.shared || is_writable(was) == is_writable(now))
            }
        }
}

fn same_place(was: &Mapping, now: &Mapping) -> bool {
    let origin = |mapping: &Mapping| mapping.start.wrapping_sub(mapping.offset);
    (was.device, was.inode, origin(was)) == (now.device, now.inode, origin(now))
}

/// Whether the mapping may be written to.
pub(super) fn is_writable(mapping: &Mapping) -> bool {
    mapping.protection & libc::PROT_WRITE as u32 != 0
}

/// The flags that a mapping is made with.
pub(super) fn flags(mapping: &Mapping) -> VmFlags {
    let stack = if mapping.path == "[stack]" {
        VmFlags::GROWSDOWN
    } else {
        0
    };
    VmFlags(mapping.flags | stack)
}

impl Difference {
    fn unmap(&mut self, span: Span) {
        match self.unmapped.last_mut() {
            Some(last) if last.end == span.start => last.end = span.end,
            _ => self.unmapped.push(span),
        }
    }

    fn map(&mut self, span: Span, whole: &Mapping) {
        match self.mapped.last_mut() {
            // What the last part begins with, this one goes on with: bounds of the old map do not matter.
            Some(last) if last.end == span.start && span.start > whole.start => last.end = span.end,
            _ => self.mapped.push(Mapping {
                start: span.start,
                end: span.end,
                offset: whole.offset + (span.start - whole.start),
                ..whole.clone()
            }),
        }
    }

    fn protect(&mut self, span: Span, protection: u32) {
        match self.protected.last_mut() {
            Some((last, same)) if last.end == span.start && *same == protection => {
                last.end = span.end;
            }
            _ => self.protected.push((span, protection)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(start: u64, end: u64, protection: u32) -> Mapping {
        Mapping {
            start,
            end,
            protection,
            ..Mapping::default()
        }
    }

    fn file(start: u64, end: u64, offset: u64) -> Mapping {
        Mapping {
            backing: Backing::File,
            offset,
            inode: 7,
            path: "/a".to_owned(),
            ..anonymous(start, end, 1)
        }
    }

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    #[test]
    fn what_stays_is_left_alone() {
        let map = [
            anonymous(0x1000, 0x3000, 3),
            file(0x3000, 0x5000, 0),
            Mapping {
                path: "[vdso]".to_owned(),
                ..anonymous(0x8000, 0x9000, 5)
            },
        ];
        assert!(difference(&map, &map).is_empty());
        assert!(difference(&map[2..], &[]).is_empty());
    }

    #[test]
    fn growth_shrinkage_and_protection_touch_only_their_parts() {
        let old = [anonymous(0x2000, 0x6000, 3)];
        let new = [anonymous(0x1000, 0x3000, 3), anonymous(0x3000, 0x5000, 0)];
        let found = difference(&old, &new);
        assert_eq!(found.unmapped, [span(0x5000, 0x6000)]);
        assert_eq!(found.mapped, [anonymous(0x1000, 0x2000, 3)]);
        assert_eq!(found.protected, [(span(0x3000, 0x5000), 0)]);
    }

    #[test]
    fn another_backing_or_place_in_the_file_is_a_new_mapping() {
        let old = [anonymous(0x1000, 0x3000, 3), file(0x3000, 0x6000, 0x2000)];
        let new = [file(0x1000, 0x3000, 0), file(0x3000, 0x6000, 0x3000)];
        let found = difference(&old, &new);
        assert_eq!(found.unmapped, [span(0x1000, 0x6000)]);
        assert_eq!(found.mapped, new);
    }

    #[test]
    fn a_split_of_the_same_file_mapping_stays() {
        let old = [file(0x3000, 0x6000, 0x2000)];
        let new = [file(0x3000, 0x4000, 0x2000), file(0x4000, 0x6000, 0x3000)];
        assert!(difference(&old, &new).is_empty());
        let part = difference(&old[..0], &new[1..]);
        assert_eq!(part.mapped, new[1..]);
    }

    #[test]
    fn a_new_mapping_over_old_bounds_is_made_at_once() {
        let old = [anonymous(0x1000, 0x2000, 3), anonymous(0x2000, 0x3000, 1)];
        let new = [file(0x1000, 0x4000, 0)];
        let found = difference(&old, &new);
        assert_eq!(found.unmapped, [span(0x1000, 0x3000)]);
        assert_eq!(found.mapped, new);
    }

    #[test]
    fn a_shared_file_that_becomes_writable_is_mapped_anew() {
        let was = Mapping {
            shared: true,
            ..file(0x1000, 0x2000, 0)
        };
        let now = Mapping {
            protection: 3,
            ..was.clone()
        };
        assert_eq!(
            difference(std::slice::from_ref(&was), &[now]).mapped.len(),
            1
        );
        let hidden = Mapping {
            protection: 0,
            ..was.clone()
        };
        assert_eq!(difference(&[was], &[hidden]).protected.len(), 1);
    }
}
