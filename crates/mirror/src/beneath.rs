//! Opening what lies below a directory, and reaching what is open by a path.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::NixPath;
use nix::dir::Dir;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// Opens what lies below `directory`. No symbolic link is followed and no `..` leads out of it.
pub(crate) fn open<P: NixPath + ?Sized>(
    directory: impl AsFd,
    path: &P,
    flags: OFlag,
    also: ResolveFlag,
) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(confined() | also);
    Ok(openat2(directory, path, how)?)
}

/// Makes a regular file that nobody but root can open yet.
pub(crate) fn create(directory: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC)
        .mode(Mode::S_IRUSR | Mode::S_IWUSR)
        .resolve(confined());
    Ok(openat2(directory, name, how)?)
}

fn confined() -> ResolveFlag {
    ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_SYMLINKS
}

/// A path of what is open, be it with O_PATH. Calls that follow links reach it by this one and go no further, even
/// where it is a symbolic link itself.
pub(crate) fn path_of(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Opens again, for real, what is open with O_PATH. The caller knows that it is a regular file: opening others may
/// block, or do worse.
pub(crate) fn reopen(file: &OwnedFd, options: &OpenOptions) -> io::Result<File> {
    options.open(path_of(file))
}

/// The names in a directory, in no order.
pub(crate) fn names(directory: impl AsFd) -> io::Result<Vec<CString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOATIME;
    let mut directory = Dir::openat(directory, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in directory.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// The bits of a mode that say what kind of file it is.
pub(crate) fn kind(mode: u32) -> u32 {
    mode & nix::libc::S_IFMT
}
