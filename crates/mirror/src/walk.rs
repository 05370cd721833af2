//! Saying which changes make a copy of a directory.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use eventlog::change::{Change, MAX_WRITTEN, plain};
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, readlinkat};
use nix::libc::{S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{Whence, lseek};

use crate::beneath;
use crate::error::WalkError;

/// Permissions, set-user-ID and the like included.
const ALL: u32 = 0o7777;
/// Permissions that something has until all else is done.
const AT_FIRST: u32 = 0o777;
/// Access control lists, which an earlier copy may have left at the directory itself. What is made below a default one
/// inherits it.
const LISTS: [&[u8]; 2] = [b"system.posix_acl_default", b"system.posix_acl_access"];

/// How much a walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Regular files, each once, however many names it has.
    pub files: u64,
    /// Bytes in them, without holes.
    pub bytes: u64,
}

/// Walks a directory and says which changes make a copy of it, whatever the copy holds before. The directory lies at
/// `directory` here and at `as_path` in the container. Devices and what is mounted below it are left out.
///
/// # Errors
/// [`WalkError`], also for what vanishes while it walks.
pub fn walk<E: Display>(
    directory: &Path,
    as_path: &[u8],
    tell: impl FnMut(Change) -> Result<(), E>,
) -> Result<Copied, WalkError<E>> {
    let as_path = plain(as_path);
    let opened = || {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(directory, flags, Mode::empty())?;
        let stat = fstat(&root)?;
        Ok((root, stat))
    };
    let (root, stat) = opened().map_err(|source| WalkError::Read {
        path: as_path.clone(),
        source,
    })?;
    let mut walk = Walk {
        root,
        device: stat.st_dev,
        as_path,
        tell,
        named: HashMap::new(),
        copied: Copied::default(),
    };
    walk.begin(&stat)?;
    walk.descend(stat)?;
    Ok(walk.copied)
}

struct Walk<F> {
    root: OwnedFd,
    device: u64,
    as_path: Vec<u8>,
    tell: F,
    /// First names of files that have several, by device and inode.
    named: HashMap<(u64, u64), Vec<u8>>,
    copied: Copied,
}

/// A directory on the way down. It is found by its path again, not kept open: there may be more levels than descriptors.
struct Level {
    rest: Vec<u8>,
    stat: FileStat,
    /// Names still to come, the last one first.
    names: Vec<CString>,
}

impl<E: Display, F: FnMut(Change) -> Result<(), E>> Walk<F> {
    /// The directory itself is there already. A set-group-ID bit or a list that it has would show in all that is made
    /// below.
    fn begin(&mut self, stat: &FileStat) -> Result<(), WalkError<E>> {
        let path = self.path(b"");
        self.tell(Change::Emptied { path: path.clone() })?;
        for name in LISTS {
            self.tell(Change::Attribute {
                path: path.clone(),
                name: name.to_vec(),
                value: None,
                follows: false,
            })?;
        }
        self.tell(Change::Owner {
            path: path.clone(),
            user: Some(stat.st_uid),
            group: Some(stat.st_gid),
            follows: false,
        })?;
        let mode = stat.st_mode & AT_FIRST;
        self.tell(Change::Mode { path, mode })
    }

    fn descend(&mut self, stat: FileStat) -> Result<(), WalkError<E>> {
        let mut levels = vec![self.level(Vec::new(), stat)?];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.names.pop() {
                let rest = joined(&level.rest, name.to_bytes());
                let below = self.entry(rest)?;
                levels.extend(below);
            } else if let Some(Level { rest, stat, .. }) = levels.pop() {
                let directory = self.found(&rest, self.open(&rest))?;
                self.described(&rest, &directory, &stat)?;
            }
        }
        Ok(())
    }

    fn level(&self, rest: Vec<u8>, stat: FileStat) -> Result<Level, WalkError<E>> {
        let names = self.open(&rest).and_then(beneath::names);
        let mut names = self.found(&rest, names)?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level { rest, stat, names })
    }

    /// Tells of one entry; of a directory not yet what is in it, and how it is described in the end.
    fn entry(&mut self, rest: Vec<u8>) -> Result<Option<Level>, WalkError<E>> {
        let opened = match self.open(&rest) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EXDEV) => {
                self.left_out_mount(&rest);
                return Ok(None);
            }
            opened => opened.and_then(|file| Ok((fstat(&file)?, file))),
        };
        let (stat, file) = self.found(&rest, opened)?;
        match beneath::kind(stat.st_mode) {
            // Of a subvolume, say. Other files of one file system may differ in this on overlays.
            S_IFDIR if stat.st_dev != self.device => self.left_out_mount(&rest),
            S_IFDIR => {
                self.tell(Change::DirectoryMade {
                    path: self.path(&rest),
                    mode: stat.st_mode & AT_FIRST,
                    owner: (stat.st_uid, stat.st_gid),
                })?;
                return self.level(rest, stat).map(Some);
            }
            S_IFREG | S_IFIFO | S_IFSOCK | S_IFLNK => {
                if !self.has_name(&rest, &stat)? {
                    self.file(&rest, &file, &stat)?;
                    self.described(&rest, &file, &stat)?;
                }
            }
            _ => tracing::debug!(
                path = %self.path(&rest).escape_ascii(),
                "a device is left out of the copy"
            ),
        }
        Ok(None)
    }

    fn left_out_mount(&self, rest: &[u8]) {
        tracing::warn!(
            path = %self.path(rest).escape_ascii(),
            "another file system is mounted here; it is left out of the copy"
        );
    }

    /// Whether a file has been told of by another name. It only gets one more then.
    fn has_name(&mut self, rest: &[u8], stat: &FileStat) -> Result<bool, WalkError<E>> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let path = self.path(rest);
        let id = (stat.st_dev, stat.st_ino);
        let Some(from) = self.named.get(&id).cloned() else {
            self.named.insert(id, path);
            return Ok(false);
        };
        self.tell(Change::Linked { from, path })?;
        Ok(true)
    }

    fn file(&mut self, rest: &[u8], file: &OwnedFd, stat: &FileStat) -> Result<(), WalkError<E>> {
        let path = self.path(rest);
        let mode = stat.st_mode & AT_FIRST;
        let owner = (stat.st_uid, stat.st_gid);
        match beneath::kind(stat.st_mode) {
            S_IFIFO => self.tell(Change::FifoMade { path, mode, owner }),
            S_IFSOCK => self.tell(Change::SocketMade { path, mode, owner }),
            S_IFLNK => {
                let target = readlinkat(file, "").map_err(io::Error::from);
                let target = self.found(rest, target)?.into_vec();
                self.tell(Change::Symlinked {
                    path,
                    target,
                    owner,
                })
            }
            _ => {
                self.tell(Change::Opened {
                    path: path.clone(),
                    makes: Some((mode, owner)),
                    empties: true,
                })?;
                self.contents(rest, file)?;
                self.copied.files += 1;
                let len = stat.st_size.cast_unsigned();
                self.tell(Change::Resized { path, len })
            }
        }
    }

    /// What is in a regular file, hole by hole.
    fn contents(&mut self, rest: &[u8], file: &OwnedFd) -> Result<(), WalkError<E>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlag::O_NOATIME.bits());
        let file = self.found(rest, beneath::reopen(file, &options))?;
        let mut end = 0;
        while let Some((mut at, to)) = self.found(rest, data(&file, end))? {
            while at < to {
                let mut bytes =
                    vec![0; MAX_WRITTEN.min(usize::try_from(to - at).unwrap_or(MAX_WRITTEN))];
                self.found(rest, file.read_exact_at(&mut bytes, at))?;
                let len = bytes.len() as u64;
                self.tell(Change::Written {
                    path: self.path(rest),
                    at: Some(at),
                    bytes,
                })?;
                self.copied.bytes += len;
                at += len;
            }
            end = to;
        }
        Ok(())
    }

    /// Permissions, attributes and times, in this order: permissions that come after an access control list change it.
    fn described(
        &mut self,
        rest: &[u8],
        file: &OwnedFd,
        stat: &FileStat,
    ) -> Result<(), WalkError<E>> {
        let path = self.path(rest);
        if beneath::kind(stat.st_mode) != S_IFLNK {
            let mode = stat.st_mode & ALL;
            let path = path.clone();
            self.tell(Change::Mode { path, mode })?;
        }
        for (name, value) in self.found(rest, attributes(file))? {
            self.tell(Change::Attribute {
                path: path.clone(),
                name,
                value: Some(value),
                follows: false,
            })?;
        }
        self.tell(Change::Times {
            path,
            times: [
                (stat.st_atime, stat.st_atime_nsec),
                (stat.st_mtime, stat.st_mtime_nsec),
            ],
            follows: false,
        })
    }

    /// Opens with O_PATH what lies below the directory, on the same mount.
    fn open(&self, rest: &[u8]) -> io::Result<OwnedFd> {
        let rest = if rest.is_empty() { b"." } else { rest };
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        beneath::open(&self.root, rest, flags, ResolveFlag::RESOLVE_NO_XDEV)
    }

    fn path(&self, rest: &[u8]) -> Vec<u8> {
        plain(&joined(&self.as_path, rest))
    }

    fn tell(&mut self, change: Change) -> Result<(), WalkError<E>> {
        (self.tell)(change).map_err(WalkError::Told)
    }

    fn found<T>(&self, rest: &[u8], found: io::Result<T>) -> Result<T, WalkError<E>> {
        found.map_err(|source| WalkError::Read {
            path: self.path(rest),
            source,
        })
    }
}

/// A path of `directory` and a path below it; an empty one of them does not count.
fn joined(directory: &[u8], rest: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return rest.to_vec();
    }
    [directory, b"/", rest].concat()
}

/// The next data of a file, from `at` on: where it begins and ends.
fn data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
    let begin = match lseek(file, at, Whence::SeekData) {
        Err(Errno::ENXIO) => return Ok(None),
        begin => begin?,
    };
    let end = lseek(file, begin, Whence::SeekHole)?;
    Ok(Some((begin.cast_unsigned(), end.cast_unsigned())))
}

/// Extended attributes of what is open. Of those for the kernel's own use some are listed but cannot be read.
fn attributes(file: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = beneath::path_of(file);
    let names = match xattr::list_deref(&path) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOTSUP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut attributes = Vec::new();
    for name in names {
        let value = xattr::get_deref(&path, &name)
            .and_then(|value| value.ok_or_else(|| Errno::ENODATA.into()));
        let name = name.as_bytes().to_vec();
        match value {
            Ok(value) => attributes.push((name, value)),
            Err(_) if name.starts_with(b"security.") || name.starts_with(b"system.") => {}
            Err(error) => return Err(error),
        }
    }
    Ok(attributes)
}
