//! Copying what a process has written since it was last looked at.
//!
//! No list of watched ranges is kept: the kernel knows which mappings are registered. A mapping that is
//! not is new (mmap, brk, mremap): everything stored for its addresses is void, it is registered, armed
//! and copied. Arming always comes before copying, so a write in between is found by the next look.

use std::collections::HashSet;
use std::io;

use libc::pid_t;
use sys::memory::{self, Mem, Range};
use sys::pagemap::Pagemap;
use sys::proc_maps::Mapping;
use sys::uffd::Uffd;

use crate::{CheckpointError, names};

const PAGE: usize = 4096;
/// Written ranges longer than this are looked at more closely: they may be holes (MADV_DONTNEED).
const LONG: usize = 64 * PAGE;
/// New pages up to this number are left to the pause.
const FEW: usize = 64;
/// Buffers kept for the pause, and for live rounds.
const READY: usize = 4;
const SPARE: usize = 8;
/// Bytes of one piece of copied memory, so that buffers can be used again.
const CHUNK: usize = 8 << 20;

/// What was seen, in order.
#[derive(Debug)]
pub(crate) enum Item {
    /// What was stored for these addresses is void.
    Void(Range),
    /// Copied pages.
    Pages(Pages),
}

/// Copied ranges and their bytes, one after another.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pub(crate) ranges: Vec<Range>,
    pub(crate) bytes: Vec<u8>,
}

/// What becomes of a mapping's contents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// They are not ours: the kernel's, another file's, or the caller's.
    Leave,
    /// They are copied.
    Copy,
    /// They are copied, if there are any: nobody may touch the mapping now.
    Hidden,
    /// They are copied whole in each pause: they change by way of another mapping, too, unseen.
    Whole,
}

/// Shared memory that several processes map: who writes to it is not seen in one of them.
pub(crate) type Common = HashSet<((u32, u32), u64)>;

/// What tells objects of shared memory apart.
pub(crate) fn object(mapping: &Mapping) -> ((u32, u32), u64) {
    (mapping.device, mapping.inode)
}

/// Whether the contents of a mapping of this map belong to the image.
pub(crate) fn kind(mapping: &Mapping, maps: &[Mapping], skip: &[Range], common: &Common) -> Kind {
    let skipped = skip
        .iter()
        .any(|range| range.start <= mapping.range.start && mapping.range.end <= range.end);
    if skipped || mapping.is_kernels() || mapping.shared && !is_shared_memory(mapping) {
        Kind::Leave
    } else if mapping.shared {
        if common.contains(&object(mapping)) {
            Kind::Whole
        } else {
            shared_kind(mapping, maps)
        }
    } else if mapping.protection() == 0 {
        Kind::Hidden
    } else {
        Kind::Copy
    }
}

/// Shared memory is watched through the mapping that may write it; where several may, it cannot be.
fn shared_kind(mapping: &Mapping, maps: &[Mapping]) -> Kind {
    let part = |of: &Mapping| Range {
        start: of.offset,
        end: of.offset + of.range.len() as u64,
    };
    let own = part(mapping);
    let mut others = maps.iter().filter(|other| {
        let same = (other.device, other.inode) == (mapping.device, mapping.inode) && other.shared;
        same && other.range != mapping.range
            && part(other).start < own.end
            && own.start < part(other).end
    });
    let covers = |other: &Mapping| {
        other.write && part(other).start <= own.start && own.end <= part(other).end
    };
    if mapping.write {
        if others.any(|other| other.write) {
            Kind::Whole
        } else {
            Kind::Copy
        }
    } else if others.any(covers) {
        Kind::Leave
    } else {
        Kind::Whole
    }
}

/// Whether a mapping is memory that is shared, and no file that could be opened again.
pub(crate) fn is_shared_memory(mapping: &Mapping) -> bool {
    let names = ["/memfd:", "/dev/zero (deleted)", "/SYSV", names::DIRECTORY];
    mapping.shared && names.iter().any(|name| mapping.path.starts_with(name))
}

/// Whether pages of the mapping may still be the file's.
fn is_private_file(mapping: &Mapping) -> bool {
    !mapping.shared && mapping.inode != 0
}

/// Copies the memory of one process.
#[derive(Debug)]
pub(crate) struct Copier {
    pid: pid_t,
    uffd: Uffd,
    pagemap: Pagemap,
    mem: Mem,
    skip: Vec<Range>,
    common: Common,
    items: Vec<Item>,
    spare: Vec<Vec<u8>>,
    /// Large buffers whose memory is there: a pause must not wait for page faults of our own.
    ready: Vec<Vec<u8>>,
    stopped: bool,
    written: Vec<Range>,
    strangers: Vec<Mapping>,
}

impl Copier {
    pub(crate) fn new(pid: pid_t, uffd: Uffd, skip: Vec<Range>) -> io::Result<Self> {
        let (pagemap, mem) = (Pagemap::open(pid)?, Mem::open(pid)?);
        let ready = vec![vec![1; CHUNK]; READY];
        Ok(Self {
            pid,
            uffd,
            pagemap,
            mem,
            skip,
            common: Common::new(),
            items: Vec::new(),
            spare: Vec::new(),
            ready,
            stopped: false,
            written: Vec::new(),
            strangers: Vec::new(),
        })
    }

    /// Copies these objects of shared memory whole in each pause from now on.
    pub(crate) fn copy_always(&mut self, common: &Common) {
        if self.common != *common {
            self.common.clone_from(common);
        }
    }

    /// Forgets what was seen: everything is about to be copied again.
    pub(crate) fn start_over(&mut self) {
        self.strangers.clear();
        let items = std::mem::take(&mut self.items);
        self.recycle(items);
    }

    /// Takes what was seen since the last time.
    pub(crate) fn take(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.items)
    }

    /// Keeps buffers for the next time.
    pub(crate) fn recycle(&mut self, items: Vec<Item>) {
        for item in items {
            let Item::Pages(Pages { bytes, .. }) = item else {
                continue;
            };
            if bytes.capacity() >= CHUNK && self.ready.len() < READY {
                self.ready.push(bytes);
            } else if self.spare.len() < SPARE {
                self.spare.push(bytes);
            }
        }
    }

    /// Adds bytes that are known already.
    pub(crate) fn add(&mut self, range: Range, bytes: Vec<u8>) {
        self.items.push(Item::Pages(Pages {
            ranges: vec![range],
            bytes,
        }));
    }

    /// Mappings that live rounds met unregistered since the last call, if they hold so much that they
    /// should not be left to the pause.
    pub(crate) fn strangers(&mut self) -> Option<Vec<Mapping>> {
        let strangers = std::mem::take(&mut self.strangers);
        let mut populated = Vec::new();
        for stranger in &strangers {
            // Gone by now, perhaps: then there is nothing to copy either.
            let _ =
                self.pagemap
                    .populated(stranger.range, is_private_file(stranger), &mut populated);
        }
        let pages: usize = populated.iter().map(|range| range.len() / PAGE).sum();
        (pages > FEW).then_some(strangers)
    }

    /// Registers mappings of a stopped process; what was stored for them is void.
    ///
    /// Those that nobody may touch now are among them where they hold something: they may be opened again
    /// before the pause, and a look would then find no more than what was written since.
    pub(crate) fn register(
        &mut self,
        mappings: &[Mapping],
        maps: &[Mapping],
    ) -> Result<Vec<Mapping>, CheckpointError> {
        let mut wanted = Vec::new();
        for mapping in mappings {
            let is_wanted = match kind(mapping, maps, &self.skip, &self.common) {
                Kind::Copy => true,
                Kind::Hidden => self.holds_something(mapping)?,
                Kind::Leave | Kind::Whole => false,
            };
            if is_wanted {
                self.items.push(Item::Void(mapping.range));
                self.track(mapping.range);
                wanted.push(mapping.clone());
            }
        }
        Ok(wanted)
    }

    /// Arms and copies what was registered, while the process runs.
    pub(crate) fn copy_registered(&mut self, mappings: &[Mapping]) -> Result<u64, CheckpointError> {
        let mut pages = 0;
        for mapping in mappings {
            // Where a part was replaced meanwhile this fails, having armed what lies before: that is copied
            // now or never. The next round meets the part itself, unregistered.
            let _ = self.pagemap.protect(mapping.range);
            let mut populated = Vec::new();
            self.populated(mapping.range, is_private_file(mapping), &mut populated)?;
            pages += self.copy(&populated)?;
        }
        Ok(pages)
    }

    fn track(&self, range: Range) {
        if let Err(error) = self.uffd.track(range) {
            // Such a mapping is copied whole in each pause.
            tracing::debug!(?range, %error, "a mapping cannot be watched");
        }
    }

    /// Copies what was written since the last look. Returns how many pages.
    pub(crate) fn round(
        &mut self,
        maps: &[Mapping],
        stopped: bool,
    ) -> Result<u64, CheckpointError> {
        self.stopped = stopped;
        let mut pages = 0;
        let mut rest = maps;
        while let Some(first) = rest.first() {
            let wanted = kind(first, maps, &self.skip, &self.common);
            let mut len = 1;
            while wanted == Kind::Copy
                && rest.get(len).is_some_and(|next| {
                    next.range.start == rest[len - 1].range.end
                        && kind(next, maps, &self.skip, &self.common) == Kind::Copy
                })
            {
                len += 1;
            }
            let (group, behind) = rest.split_at(len);
            rest = behind;
            pages += match wanted {
                Kind::Leave => 0,
                Kind::Copy => self.look(group, stopped)?,
                Kind::Hidden | Kind::Whole if !stopped => 0,
                Kind::Hidden => self.look_hidden(first)?,
                Kind::Whole => self.copy_whole(first)?,
            };
        }
        Ok(pages)
    }

    /// One look at mappings that follow one another.
    fn look(&mut self, group: &[Mapping], stopped: bool) -> Result<u64, CheckpointError> {
        let range = Range {
            start: group[0].range.start,
            end: group[group.len() - 1].range.end,
        };
        let mut written = std::mem::take(&mut self.written);
        written.clear();
        let outcome = self.pagemap.collect(range, &mut written);
        let mut pages = self.copy_written(&written)?;
        self.written = written;
        match outcome {
            Ok(()) => {}
            Err(_) if group.len() > 1 => {
                for mapping in group {
                    pages += self.look(std::slice::from_ref(mapping), stopped)?;
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && stopped => {
                pages += self.adopt(&group[0])?
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.strangers.extend_from_slice(group)
            }
            Err(source) => {
                return Err(CheckpointError::Process {
                    what: "scanning the pages",
                    pid: self.pid,
                    source,
                });
            }
        }
        Ok(pages)
    }

    /// Takes in a mapping of the stopped process that is not watched yet.
    fn adopt(&mut self, mapping: &Mapping) -> Result<u64, CheckpointError> {
        self.items.push(Item::Void(mapping.range));
        self.track(mapping.range);
        // Fails only where tracking has failed.
        let _ = self.pagemap.protect(mapping.range);
        let mut populated = Vec::new();
        self.populated(mapping.range, is_private_file(mapping), &mut populated)?;
        self.copy(&populated)
    }

    /// A mapping that nobody may touch: new ones are empty, as a rule, and then left alone.
    fn look_hidden(&mut self, mapping: &Mapping) -> Result<u64, CheckpointError> {
        if self.holds_something(mapping)? {
            self.look(std::slice::from_ref(mapping), true)
        } else {
            self.items.push(Item::Void(mapping.range));
            Ok(0)
        }
    }

    fn holds_something(&mut self, mapping: &Mapping) -> Result<bool, CheckpointError> {
        let mut populated = Vec::new();
        self.populated(mapping.range, is_private_file(mapping), &mut populated)?;
        Ok(!populated.is_empty())
    }

    fn copy_whole(&mut self, mapping: &Mapping) -> Result<u64, CheckpointError> {
        // What another process or a write to the file brought is not in this mapping's page table.
        self.copy(&[mapping.range])
    }

    fn populated(
        &mut self,
        range: Range,
        own: bool,
        out: &mut Vec<Range>,
    ) -> Result<(), CheckpointError> {
        let failed = |source| CheckpointError::Process {
            what: "scanning the pages",
            pid: self.pid,
            source,
        };
        self.pagemap.populated(range, own, out).map_err(failed)
    }

    fn copy_written(&mut self, written: &[Range]) -> Result<u64, CheckpointError> {
        if written.iter().all(|range| range.len() <= LONG) {
            return self.copy(written);
        }
        let mut there = Vec::new();
        for &range in written {
            if range.len() <= LONG {
                there.push(range);
            } else {
                self.items.push(Item::Void(range));
                self.populated(range, false, &mut there)?;
            }
        }
        self.copy(&there)
    }

    /// Copies ranges, in chunks.
    fn copy(&mut self, ranges: &[Range]) -> Result<u64, CheckpointError> {
        let mut pages = 0;
        let mut chunk = Vec::new();
        let mut len = 0;
        for &range in ranges {
            let mut start = range.start;
            while start < range.end {
                let end = range.end.min(start + (CHUNK - len) as u64);
                chunk.push(Range { start, end });
                len += (end - start) as usize;
                start = end;
                if len == CHUNK {
                    pages += self.copy_chunk(std::mem::take(&mut chunk), len);
                    len = 0;
                }
            }
        }
        if !chunk.is_empty() {
            pages += self.copy_chunk(chunk, len);
        }
        Ok(pages)
    }

    fn copy_chunk(&mut self, ranges: Vec<Range>, len: usize) -> u64 {
        let ready = if self.stopped { self.ready.pop() } else { None };
        let mut bytes = ready.or_else(|| self.spare.pop()).unwrap_or_default();
        bytes.resize(len, 0);
        let mut pages = Pages { ranges, bytes };
        if memory::read_ranges(self.pid, &pages.ranges, &mut pages.bytes).is_err() {
            pages = self.copy_singly(&pages.ranges, pages.bytes);
        }
        let copied = pages.bytes.len() / PAGE;
        self.items.push(Item::Pages(pages));
        copied as u64
    }

    /// Page by page, by the way that ignores protections. Pages that cannot be read are not there (given
    /// back meanwhile, or behind the end of a file).
    fn copy_singly(&self, ranges: &[Range], mut bytes: Vec<u8>) -> Pages {
        let mut copied = Vec::new();
        bytes.clear();
        for range in ranges {
            for start in (range.start..range.end).step_by(PAGE) {
                let mut page = [0; PAGE];
                if self.mem.read(start, &mut page).is_ok() {
                    copied.push(Range {
                        start,
                        end: start + PAGE as u64,
                    });
                    bytes.extend_from_slice(&page);
                }
            }
        }
        Pages {
            ranges: copied,
            bytes,
        }
    }
}
