//! Applying changes.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use eventlog::change::{Change, MAX_WRITTEN, Owner, plain};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, RenameFlags, ResolveFlag, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use crate::beneath;
use crate::error::MirrorError;
use crate::place::{Directories, Directory, Place};
use crate::remove;

/// Bits of a mode that can be set.
const PERMISSIONS: u32 = 0o7777;
const SET_GROUP_ID: u32 = nix::libc::S_ISGID;

/// Copies of directories of a container.
#[derive(Debug)]
pub struct Tree {
    directories: Directories,
}

impl Tree {
    /// Opens copies that are there, if only as empty directories. Each comes with the path in the container of what it
    /// is a copy of. Where one of these lies in another, what is below both belongs to the inner one.
    ///
    /// # Errors
    /// [`MirrorError::Copy`].
    pub fn open(directories: &[(Vec<u8>, PathBuf)]) -> Result<Self, MirrorError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = |(path, copy): &(Vec<u8>, PathBuf)| {
            let path = plain(path);
            match nix::fcntl::open(copy, flags, Mode::empty()) {
                Ok(copy) => Ok(Directory { path, copy }),
                Err(error) => Err(MirrorError::Copy {
                    copy: copy.clone(),
                    path,
                    source: error.into(),
                }),
            }
        };
        let directories = directories.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self {
            directories: Directories(directories),
        })
    }

    /// Applies a change. What happened outside of the copied directories, or to something that is no file of theirs but
    /// a device, a FIFO or a socket, is none of ours: `false`.
    ///
    /// # Errors
    /// [`MirrorError`]; the copy is not exact any more.
    pub fn apply(&self, change: &Change) -> Result<bool, MirrorError> {
        match change {
            Change::Linked { from, path } => return self.linked(from, path),
            Change::Renamed { from, to, flags } => return self.renamed(from, to, *flags),
            Change::Written { path, bytes, .. } if bytes.len() > MAX_WRITTEN => {
                return Err(MirrorError::TooLong {
                    path: path.clone(),
                    len: bytes.len(),
                });
            }
            _ => {}
        }
        let (attempted, path, follows) = subject(change);
        let place = self.place(attempted, path, follows)?;
        let Some(place) = place else {
            return Ok(false);
        };
        applied(&place, change).map_err(failed(attempted, path))
    }

    fn linked(&self, from: &[u8], path: &[u8]) -> Result<bool, MirrorError> {
        let attempted = "linked";
        let Some(to) = self.place(attempted, path, false)? else {
            return Ok(false);
        };
        let first = self.place(attempted, from, false)?;
        let first = first.ok_or_else(|| outside(from, path))?;
        link(&first, &to).map_err(failed(attempted, path))?;
        Ok(true)
    }

    fn renamed(&self, from: &[u8], to: &[u8], flags: u32) -> Result<bool, MirrorError> {
        let attempted = "renamed";
        let old = self.place(attempted, from, false)?;
        let new = self.place(attempted, to, false)?;
        if old.is_none() && new.is_none() {
            return Ok(false);
        }
        let known = RenameFlags::from_bits(flags)
            .filter(|flags| !flags.contains(RenameFlags::RENAME_WHITEOUT))
            .ok_or_else(|| MirrorError::RenameFlags {
                from: from.to_vec(),
                flags,
            })?;
        match (old, new) {
            (Some(old), Some(new)) => rename(&old, &new, known),
            (Some(_), None) if known.contains(RenameFlags::RENAME_EXCHANGE) => {
                return Err(outside(to, from));
            }
            (Some(old), None) => {
                let removed = old
                    .own_name()
                    .and_then(|name| remove::remove(&old.parent, name));
                return removed.map(|()| true).map_err(failed("removed", from));
            }
            (None, _) => return Err(outside(from, to)),
        }
        .map_err(failed(attempted, from))?;
        Ok(true)
    }

    fn place(
        &self,
        attempted: &'static str,
        path: &[u8],
        follows: bool,
    ) -> Result<Option<Place>, MirrorError> {
        self.directories
            .resolve(path, follows)
            .map_err(failed(attempted, path))
    }
}

fn failed(attempted: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> MirrorError {
    move |source| MirrorError::Failed {
        attempted,
        path: path.to_vec(),
        source,
    }
}

fn outside(from: &[u8], path: &[u8]) -> MirrorError {
    MirrorError::ComesFromOutside {
        from: from.to_vec(),
        path: path.to_vec(),
    }
}

/// What a change does, to which path, and whether it follows a symbolic link there.
fn subject(change: &Change) -> (&'static str, &[u8], bool) {
    match change {
        Change::Opened { path, .. } => ("opened", path, true),
        Change::Written { path, .. } => ("written", path, true),
        Change::Resized { path, .. } => ("resized", path, true),
        Change::Allocated { path, .. } => ("allocated", path, true),
        Change::DirectoryMade { path, .. }
        | Change::FifoMade { path, .. }
        | Change::SocketMade { path, .. }
        | Change::Symlinked { path, .. } => ("made", path, false),
        Change::Linked { path, .. } => ("linked", path, false),
        Change::Renamed { from, .. } => ("renamed", from, false),
        Change::Removed { path, .. } => ("removed", path, false),
        Change::Mode { path, .. } => ("given its permissions", path, true),
        Change::Owner { path, follows, .. } => ("given its owner", path, *follows),
        Change::Times { path, follows, .. } => ("given its times", path, *follows),
        Change::Attribute { path, follows, .. } => ("given its attribute", path, *follows),
        Change::Emptied { path } => ("emptied", path, false),
    }
}

/// Applies what concerns one place.
fn applied(place: &Place, change: &Change) -> io::Result<bool> {
    match change {
        Change::Opened { makes, empties, .. } => return opened(place, *makes, *empties),
        Change::Written { at, bytes, .. } => return written(place, *at, bytes),
        Change::Resized { len, .. } => return on_file(place, |file| file.set_len(*len)),
        Change::Allocated { mode, at, len, .. } => {
            return on_file(place, |file| allocate(file, *mode, *at, *len));
        }
        Change::DirectoryMade { mode, owner, .. } => make_directory(place, *mode, *owner)?,
        Change::FifoMade { mode, owner, .. } => make_node(place, SFlag::S_IFIFO, *mode, *owner)?,
        Change::SocketMade { mode, owner, .. } => {
            make_node(place, SFlag::S_IFSOCK, *mode, *owner)?;
        }
        Change::Symlinked { target, owner, .. } => make_link(place, target, *owner)?,
        Change::Removed { directory, .. } => unlink(place, *directory)?,
        Change::Mode { mode, .. } => permit(&place.open()?, *mode)?,
        Change::Owner { user, group, .. } => own(&place.open()?, *user, *group)?,
        Change::Times { times, .. } => set_times(place, times)?,
        Change::Attribute { name, value, .. } => {
            set_attribute(&place.open()?, OsStr::from_bytes(name), value.as_deref())?;
        }
        Change::Emptied { .. } => empty(place)?,
        Change::Linked { .. } | Change::Renamed { .. } => return Err(Errno::EINVAL.into()),
    }
    Ok(true)
}

fn opened(place: &Place, makes: Option<(u32, Owner)>, empties: bool) -> io::Result<bool> {
    match (place.open(), makes) {
        (Ok(file), _) if !is_regular(&file)? => Ok(false),
        (Ok(file), _) => {
            if empties {
                beneath::reopen(&file, OpenOptions::new().write(true))?.set_len(0)?;
            }
            Ok(true)
        }
        (Err(error), Some((mode, owner))) if error.kind() == io::ErrorKind::NotFound => {
            let file = beneath::create(&place.parent, place.own_name()?)?;
            own(&file, Some(owner.0), Some(group(place, owner)?.0))?;
            permit(&file, mode)?;
            Ok(true)
        }
        (Err(error), _) => Err(error),
    }
}

fn written(place: &Place, at: Option<u64>, bytes: &[u8]) -> io::Result<bool> {
    let Some(at) = at else {
        let options = OpenOptions::new().append(true).clone();
        return on_file_opened(place, &options, |mut file| file.write_all(bytes));
    };
    on_file(place, |file| file.write_all_at(bytes, at))
}

/// Does something with a regular file, opened for writing; `false` if it is something else.
fn on_file(place: &Place, act: impl FnOnce(&File) -> io::Result<()>) -> io::Result<bool> {
    on_file_opened(place, OpenOptions::new().write(true), act)
}

fn on_file_opened(
    place: &Place,
    options: &OpenOptions,
    act: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<bool> {
    let file = place.open()?;
    if !is_regular(&file)? {
        return Ok(false);
    }
    act(&beneath::reopen(&file, options)?)?;
    Ok(true)
}

fn is_regular(file: &OwnedFd) -> io::Result<bool> {
    Ok(beneath::kind(fstat(file)?.st_mode) == nix::libc::S_IFREG)
}

fn allocate(file: &File, mode: u32, at: u64, len: u64) -> io::Result<()> {
    let offset = |n: u64| i64::try_from(n).map_err(|_| Errno::EFBIG);
    let mode = FallocateFlags::from_bits_retain(mode.cast_signed());
    Ok(fallocate(file, mode, offset(at)?, offset(len)?)?)
}

fn make_directory(place: &Place, mode: u32, owner: Owner) -> io::Result<()> {
    mkdirat(&place.parent, place.own_name()?, Mode::S_IRWXU)?;
    let made = place.open()?;
    let (group, inherited) = group(place, owner)?;
    own(&made, Some(owner.0), Some(group))?;
    permit(&made, mode | if inherited { SET_GROUP_ID } else { 0 })
}

/// A FIFO, or the name of a socket that nobody listens at.
fn make_node(place: &Place, kind: SFlag, mode: u32, owner: Owner) -> io::Result<()> {
    mknodat(&place.parent, place.own_name()?, kind, Mode::S_IRUSR, 0)?;
    let made = place.open()?;
    own(&made, Some(owner.0), Some(group(place, owner)?.0))?;
    permit(&made, mode)
}

fn make_link(place: &Place, target: &[u8], owner: Owner) -> io::Result<()> {
    symlinkat(target, &place.parent, place.own_name()?)?;
    own(&place.open()?, Some(owner.0), Some(group(place, owner)?.0))
}

/// The group of something new, and whether it is the one of the directory that it is in.
fn group(place: &Place, owner: Owner) -> io::Result<(u32, bool)> {
    let parent = fstat(&place.parent)?;
    if parent.st_mode & SET_GROUP_ID != 0 {
        return Ok((parent.st_gid, true));
    }
    Ok((owner.1, false))
}

/// Permissions go through a path: of what is open with O_PATH they cannot be changed. They come after the owner, since
/// a change of that takes set-user-ID bits away.
fn permit(file: &OwnedFd, mode: u32) -> io::Result<()> {
    let permissions = Permissions::from_mode(mode & PERMISSIONS);
    std::fs::set_permissions(beneath::path_of(file), permissions)
}

fn own(file: &OwnedFd, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
    Ok(fchownat(file, "", user, group, AtFlags::AT_EMPTY_PATH)?)
}

fn set_times(place: &Place, times: &[(i64, i64); 2]) -> io::Result<()> {
    let [access, change] = times.map(|(seconds, nanoseconds)| TimeSpec::new(seconds, nanoseconds));
    let flags = UtimensatFlags::NoFollowSymlink;
    Ok(utimensat(
        &place.parent,
        place.name(),
        &access,
        &change,
        flags,
    )?)
}

fn set_attribute(file: &OwnedFd, name: &OsStr, value: Option<&[u8]>) -> io::Result<()> {
    let path = beneath::path_of(file);
    let Some(value) = value else {
        // Where there are no attributes at all, this one is not there either.
        let gone = [nix::libc::ENODATA, nix::libc::ENOTSUP].map(Some);
        return match xattr::remove_deref(path, name) {
            Err(error) if gone.contains(&error.raw_os_error()) => Ok(()),
            done => done,
        };
    };
    xattr::set_deref(path, name, value)
}

fn link(first: &Place, second: &Place) -> io::Result<()> {
    let (from, to) = (first.own_name()?, second.own_name()?);
    Ok(linkat(
        &first.parent,
        from,
        &second.parent,
        to,
        AtFlags::empty(),
    )?)
}

fn rename(old: &Place, new: &Place, flags: RenameFlags) -> io::Result<()> {
    let (from, to) = (old.own_name()?, new.own_name()?);
    Ok(renameat2(&old.parent, from, &new.parent, to, flags)?)
}

fn unlink(place: &Place, directory: bool) -> io::Result<()> {
    let flags = if directory {
        UnlinkatFlags::RemoveDir
    } else {
        UnlinkatFlags::NoRemoveDir
    };
    Ok(unlinkat(&place.parent, place.own_name()?, flags)?)
}

fn empty(place: &Place) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let directory = beneath::open(&place.parent, place.name(), flags, ResolveFlag::empty())?;
    remove::empty(directory)
}
