//! Memory files in place of what the image's process shared between mappings.
//!
//! What has, or had, a name in the directory of shared memory is a file there, under the name of a
//! [stand-in](names::stand_in): whichever process maps it finds it, and the caller gives it its own name in the end.
//! Other objects are memory files without a name, which children inherit.
//!
//! The pages of an object are written into its file. Which page of which mapping was the newest is not
//! known once mappings of the object come or go, or pages go: its file is then written anew, whole.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;

use eventlog::image::{Backing, Mapping};
use libc::pid_t;
use nix::fcntl::{FallocateFlags, fallocate};
use sys::process::PidFd;
use sys::remote::Batch;

use super::data::Data;
use super::difference::is_writable;
use super::{RestoreError, Result};
use crate::names;
use crate::store::ImageStore;

/// Memory files that a process makes with one batch of calls at most.
const MADE: usize = 256;

/// Device and inode in the image.
type Id = (u64, u64);

fn id(mapping: &Mapping) -> Id {
    (mapping.device, mapping.inode)
}

/// A memory file: its number in the process, and our own descriptor.
#[derive(Debug)]
struct Object {
    number: RawFd,
    file: File,
    len: u64,
}

/// All memory files of a process.
#[derive(Debug, Default)]
pub(super) struct Shared {
    objects: HashMap<Id, Object>,
    stale: HashSet<Id>,
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> RestoreError {
    move |error| RestoreError::Io {
        what,
        source: error.into(),
    }
}

fn of_shared_memory(mappings: &[Mapping]) -> impl Iterator<Item = &Mapping> {
    mappings
        .iter()
        .filter(|mapping| mapping.backing == Backing::SharedMemory && !mapping.is_kernels())
}

impl Shared {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The same files in a child that has just been made, under the same numbers.
    pub(super) fn inherited(&self) -> Result<Self> {
        let mut objects = HashMap::new();
        for (id, object) in &self.objects {
            let file = object.file.try_clone();
            let object = Object {
                number: object.number,
                file: file.map_err(failed("sharing a memory file"))?,
                len: object.len,
            };
            objects.insert(*id, object);
        }
        Ok(Self {
            objects,
            stale: HashSet::new(),
        })
    }

    /// Makes the files that these mappings need and lets go of those that they do not.
    pub(super) fn provide(&mut self, pid: pid_t, scratch: u64, mappings: &[Mapping]) -> Result<()> {
        let mut lengths: HashMap<Id, u64> = HashMap::new();
        let mut named: HashSet<Id> = HashSet::new();
        for mapping in of_shared_memory(mappings) {
            let len = lengths.entry(id(mapping)).or_default();
            *len = (*len).max(mapping.offset + mapping.end - mapping.start);
            if names::is_named(&mapping.path) {
                named.insert(id(mapping));
            }
        }
        let mut batch = Batch::new();
        self.objects.retain(|id, object| {
            let stays = lengths.contains_key(id);
            if !stays {
                batch.push(libc::SYS_close, [object.number as u64, 0, 0, 0, 0, 0]);
            }
            stays
        });
        self.stale.retain(|id| lengths.contains_key(id));
        if !batch.is_empty() {
            batch.run_checked(pid, scratch)?;
        }
        let all = lengths.keys().copied();
        let made: Vec<Id> = all.filter(|id| !self.objects.contains_key(id)).collect();
        for part in made.chunks(MADE) {
            self.make(pid, scratch, part, &named)?;
        }
        self.resize(&lengths)
    }

    /// Has the process make, or open, files.
    fn make(&mut self, pid: pid_t, scratch: u64, made: &[Id], named: &HashSet<Id>) -> Result<()> {
        let (mut batch, mut data) = (Batch::new(), Data::new(pid, scratch));
        let nameless = data.put_path("restored")?;
        for id in made {
            if named.contains(id) {
                let path = data.put_path(&names::path_of_stand_in(id.0, id.1))?;
                let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC) as u64;
                batch.push(libc::SYS_open, [path, flags, 0o600, 0, 0, 0]);
            } else {
                let flags = u64::from(libc::MFD_CLOEXEC);
                batch.push(libc::SYS_memfd_create, [nameless, flags, 0, 0, 0, 0]);
            }
        }
        let numbers = batch.run_checked(pid, scratch)?;
        self.adopt(pid, made, &numbers)
    }

    /// Takes hold of files that the process has just made.
    fn adopt(&mut self, pid: pid_t, made: &[Id], numbers: &[u64]) -> Result<()> {
        let process = PidFd::open(pid).map_err(failed("opening the child"))?;
        for (id, number) in made.iter().zip(numbers) {
            let number = *number as RawFd;
            let file = process
                .take_descriptor(number)
                .map_err(failed("sharing a memory file"))?;
            let file = File::from(file);
            // Another process may have made it, and map more of it.
            let len = file
                .metadata()
                .map_err(failed("looking at a memory file"))?
                .len();
            let object = Object { number, file, len };
            self.objects.insert(*id, object);
        }
        Ok(())
    }

    fn resize(&mut self, lengths: &HashMap<Id, u64>) -> Result<()> {
        for (id, object) in &mut self.objects {
            let len = lengths.get(id).copied().unwrap_or_default();
            // Another process may map more of it.
            if len > object.len {
                object
                    .file
                    .set_len(len)
                    .map_err(failed("sizing a memory file"))?;
                object.len = len;
            }
        }
        Ok(())
    }

    /// The number in the process of the file behind a mapping.
    pub(super) fn number(&self, mapping: &Mapping) -> Option<RawFd> {
        self.objects.get(&id(mapping)).map(|object| object.number)
    }

    /// Has the object behind a mapping written anew by [`refill`](Self::refill).
    pub(super) fn distrust(&mut self, mapping: &Mapping) {
        self.stale.insert(id(mapping));
    }

    /// Writes a page that a mapping has at this address.
    pub(super) fn write(&self, mapping: &Mapping, address: u64, page: &[u8]) -> Result<()> {
        let key = id(mapping);
        let Some(object) = self
            .objects
            .get(&key)
            .filter(|_| !self.stale.contains(&key))
        else {
            return Ok(());
        };
        let at = address - mapping.start + mapping.offset;
        object
            .file
            .write_all_at(page, at)
            .map_err(failed("filling shared memory"))
    }

    /// Writes all objects anew that are not trusted.
    pub(super) fn refill(&mut self, store: &ImageStore) -> Result<()> {
        for key in std::mem::take(&mut self.stale) {
            let Some(object) = self.objects.get(&key) else {
                continue;
            };
            let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            for mapping in of_shared_memory(store.mappings()).filter(|mapping| id(mapping) == key) {
                let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                let (at, len) = (mapping.offset, mapping.end - mapping.start);
                fallocate(&object.file, how, number(at), number(len))
                    .map_err(failed("emptying shared memory"))?;
            }
            // Pages are up to date where the process may write: those come last.
            for writable in [false, true] {
                let these = of_shared_memory(store.mappings())
                    .filter(|mapping| id(mapping) == key && is_writable(mapping) == writable);
                for mapping in these {
                    for (address, page) in store.pages(mapping.start, mapping.end) {
                        self.write(mapping, address, page)?;
                    }
                }
            }
        }
        Ok(())
    }
}
