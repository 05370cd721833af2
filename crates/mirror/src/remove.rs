//! Removing whole trees. They may be deeper than any path is long: a hostile container moves one below another.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::beneath;

/// A directory on the way down to where things are being removed.
struct Level {
    /// Its name in the one above.
    name: CString,
    /// Its device and inode.
    id: (u64, u64),
    /// Directories in it that are still to be removed. It holds nothing else any more.
    directories: Vec<CString>,
}

/// Removes a file, or a directory with all that is below it.
pub(crate) fn remove(parent: impl AsFd, name: &[u8]) -> io::Result<()> {
    match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => {}
        done => return Ok(done?),
    }
    empty(enter(&parent, name)?)?;
    Ok(unlinkat(&parent, name, UnlinkatFlags::RemoveDir)?)
}

/// Removes everything below a directory. Holds one descriptor, however deep it gets; what is mounted there is in the way.
pub(crate) fn empty(directory: OwnedFd) -> io::Result<()> {
    let mut here = directory;
    let mut levels = vec![swept(&here, CString::default())?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.directories.pop() {
            here = enter(&here, name.as_c_str())?;
            levels.push(swept(&here, name)?);
            continue;
        }
        let name = levels.pop().map(|level| level.name).unwrap_or_default();
        if let Some(above) = levels.last() {
            here = leave(&here, above.id)?;
            unlinkat(&here, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
    }
    Ok(())
}

/// Removes what is not a directory, and says what is.
fn swept(directory: &OwnedFd, name: CString) -> io::Result<Level> {
    let mut directories = Vec::new();
    for name in beneath::names(directory)? {
        match unlinkat(directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => directories.push(name),
            done => done?,
        }
    }
    Ok(Level {
        name,
        id: id(directory)?,
        directories,
    })
}

fn enter<P: NixPath + ?Sized>(parent: impl AsFd, name: &P) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    beneath::open(parent, name, flags, ResolveFlag::RESOLVE_NO_XDEV)
}

/// Back to the directory above, if it is still the one that was left.
fn leave(directory: &OwnedFd, expected: (u64, u64)) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let above = openat2(directory, "..", how)?;
    if id(&above)? != expected {
        return Err(io::Error::other(
            "a directory was moved while it was emptied",
        ));
    }
    Ok(above)
}

fn id(directory: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}
