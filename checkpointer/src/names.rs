//! Names of shared memory: files in the container's own `/dev/shm`, which `shm_open` and `sem_open` make.
//!
//! They are memory, and belong to the checkpoint: what they are called, and what those hold of which no process maps all.
//! What processes map is in their pages.

use std::collections::HashMap;
use std::fs::{self, DirEntry, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use eventlog::image::{MAX_UNMAPPED, NamedMemory};
use libc::pid_t;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{major, minor};
use sys::proc_maps::Mapping;

use crate::CheckpointError;
use crate::capture::object;

/// The directory, with what stands between it and a name.
pub(crate) const DIRECTORY: &str = "/dev/shm/";
/// What [`stand_in`]s begin with.
pub const STAND_IN: &str = ".understudy-";

/// The directory of a container.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// As the container's processes find it; `None` in a root directory without one.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn of(init: pid_t) -> io::Result<Option<Self>> {
        let root = File::open(format!("/proc/{init}/root"))?;
        // No link leads out of the container: with its own root directory another would be emptied.
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        match openat2(&root, DIRECTORY, how) {
            Ok(opened) => Ok(Some(Self(opened))),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Its path in this process.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// The name, in that directory, of memory that is being restored: until all of it is there, and if it has lost its own.
#[must_use]
pub fn stand_in(device: u64, inode: u64) -> String {
    format!("{STAND_IN}{device:x}-{inode:x}")
}

/// The same with its directory, for processes of the container.
pub(crate) fn path_of_stand_in(device: u64, inode: u64) -> String {
    format!("{DIRECTORY}{}", stand_in(device, inode))
}

/// Whether a path of a memory map is, or was, in that directory.
#[must_use]
pub fn is_named(path: &str) -> bool {
    path.starts_with(DIRECTORY)
}

/// What the directory of the container holds, by name. `maps` are those of all its processes.
pub(crate) fn read(init: pid_t, maps: &[&[Mapping]]) -> Result<Vec<NamedMemory>, CheckpointError> {
    let failed = |source| CheckpointError::Process {
        what: "reading the names of shared memory",
        pid: init,
        source,
    };
    let Some(directory) = Directory::of(init).map_err(failed)? else {
        return Ok(Vec::new());
    };
    let entries = fs::read_dir(directory.path()).map_err(failed)?;
    let entries: Vec<DirEntry> = entries.collect::<io::Result<_>>().map_err(failed)?;
    let mut room = MAX_UNMAPPED as u64;
    let mut mapped = None;
    let mut names = Vec::new();
    for entry in entries {
        let refused = || CheckpointError::Named {
            name: entry.file_name().to_string_lossy().into_owned(),
        };
        let metadata = entry.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(refused());
        }
        let name = entry.file_name().into_string().map_err(|_| refused())?;
        let mapped = mapped.get_or_insert_with(|| mapped_parts(maps));
        let mut named = describe(name, &metadata);
        let parts = mapped.get(&(named.device, named.inode));
        if !parts.is_some_and(|parts| cover(parts, named.len)) {
            room = room.checked_sub(named.len).ok_or_else(refused)?;
            named.contents = fs::read(entry.path()).map_err(failed)?;
            let used = named.contents.iter().rposition(|byte| *byte != 0);
            named.contents.truncate(used.map_or(0, |last| last + 1));
        }
        names.push(named);
    }
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(names)
}

fn describe(name: String, metadata: &Metadata) -> NamedMemory {
    let device = metadata.dev();
    NamedMemory {
        name,
        device: major(device) << 32 | minor(device),
        inode: metadata.ino(),
        mode: metadata.mode() & 0o7777,
        owner: metadata.uid(),
        group: metadata.gid(),
        len: metadata.len(),
        contents: Vec::new(),
    }
}

/// Parts of each file that are in pages of an image, by where they begin.
fn mapped_parts(maps: &[&[Mapping]]) -> HashMap<(u64, u64), Vec<(u64, u64)>> {
    let mut all: HashMap<_, Vec<_>> = HashMap::new();
    let shared = |mapping: &&Mapping| mapping.shared && is_named(&mapping.path);
    for mapping in maps.iter().copied().flatten().filter(shared) {
        let ((high, low), inode) = object(mapping);
        let device = u64::from(high) << 32 | u64::from(low);
        let part = (mapping.offset, mapping.offset + mapping.range.len() as u64);
        all.entry((device, inode)).or_default().push(part);
    }
    all.values_mut().for_each(|parts| parts.sort_unstable());
    all
}

/// Whether parts, by where they begin, leave nothing out of the first `len` bytes.
fn cover(parts: &[(u64, u64)], len: u64) -> bool {
    let reached = parts.iter().fold(0, |reached: u64, &(start, end)| {
        if start <= reached {
            reached.max(end)
        } else {
            reached
        }
    });
    reached >= len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_what_they_leave_no_hole_in() {
        assert!(cover(&[], 0));
        assert!(!cover(&[], 1));
        assert!(cover(&[(0, 4096), (0, 8192), (8192, 12288)], 12000));
        assert!(!cover(&[(0, 4096), (8192, 12288)], 12000));
        assert!(!cover(&[(4096, 8192)], 4096));
    }
}
