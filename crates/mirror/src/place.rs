//! Where a path of the container lies in a copy.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use eventlog::change::{below, plain};
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, readlinkat};

use crate::beneath;

/// Most symbolic links on one way, as in the kernel.
const MAX_LINKS: usize = 40;
/// Most names on one way, those in links included. A hostile one could lead on for long.
const MAX_STEPS: usize = 4096;

/// The copied directories.
#[derive(Debug)]
pub(crate) struct Directories(pub(crate) Vec<Directory>);

/// A copied directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Its path in the container, as [`plain`] makes it.
    pub(crate) path: Vec<u8>,
    /// Its copy, opened with O_PATH.
    pub(crate) copy: OwnedFd,
}

/// A name in a directory of a copy; there may be nothing by that name.
#[derive(Debug)]
pub(crate) struct Place {
    /// The directory, opened with O_PATH.
    pub(crate) parent: OwnedFd,
    name: Vec<u8>,
}

impl Directories {
    /// Where `path` leads; `None` if that lies in none of the directories. A symbolic link at its end is followed only
    /// if `follows`, but then there is none at the place.
    pub(crate) fn resolve(&self, path: &[u8], follows: bool) -> io::Result<Option<Place>> {
        if path.contains(&0) {
            return Err(Errno::EINVAL.into());
        }
        let path = plain(path);
        match self.direct(&path) {
            Ok(Some(place)) if !follows || place.link()?.is_none() => return Ok(Some(place)),
            Ok(None) => return Ok(None),
            Err(error) if error.raw_os_error() != Some(nix::libc::ELOOP) => return Err(error),
            Ok(Some(_)) | Err(_) => {}
        }
        self.direct(&self.without_links(&path, follows)?)
    }

    /// The place of a path without symbolic links before its last name; ELOOP if there is one.
    fn direct(&self, path: &[u8]) -> io::Result<Option<Place>> {
        let nearest = self
            .0
            .iter()
            .filter_map(|directory| Some((directory, below(path, &directory.path)?)))
            .min_by_key(|(_, rest)| rest.len());
        let Some((directory, rest)) = nearest else {
            return Ok(None);
        };
        let (parent, name) = match rest.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&rest[..slash], &rest[slash + 1..]),
            None if rest.is_empty() => (&b"."[..], &b"."[..]),
            None => (&b"."[..], rest),
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let parent = beneath::open(&directory.copy, parent, flags, ResolveFlag::empty())?;
        Ok(Some(Place {
            parent,
            name: name.to_vec(),
        }))
    }

    /// The path in the container that `path` leads to. The kernel of this host cannot find it: links may be absolute, or
    /// lead out of a copied directory and back into one. Outside of these directories no links are known; names there
    /// count as they are.
    fn without_links(&self, path: &[u8], follows: bool) -> io::Result<Vec<u8>> {
        let mut done = b"/".to_vec();
        let mut todo = names_from_last(path);
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = todo.pop() {
            steps += 1;
            if links > MAX_LINKS || steps > MAX_STEPS {
                return Err(Errno::ELOOP.into());
            }
            let next = plain(&[&done[..], b"/", &name].concat());
            let leads_on = name != b".." && (follows || !todo.is_empty());
            let place = if leads_on { self.direct(&next)? } else { None };
            match place.map_or(Ok(None), |place| place.link())? {
                Some(target) => {
                    links += 1;
                    if target.starts_with(b"/") {
                        done.truncate(1);
                    }
                    todo.extend(names_from_last(&target));
                }
                None => done = next,
            }
        }
        Ok(done)
    }
}

/// The names of a path, its last one first. `..` stays: where it leads depends on the links before it.
fn names_from_last(path: &[u8]) -> Vec<Vec<u8>> {
    path.rsplit(|byte| *byte == b'/')
        .filter(|name| !matches!(name, [] | [b'.']))
        .map(<[u8]>::to_vec)
        .collect()
}

impl Place {
    /// The name in [`Place::parent`], `.` for a copied directory itself. One name, so it leads nowhere else.
    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    /// The name, for what cannot be done with a copied directory itself.
    pub(crate) fn own_name(&self) -> io::Result<&[u8]> {
        if self.name == b"." {
            return Err(Errno::EBUSY.into());
        }
        Ok(&self.name)
    }

    /// What is there, opened with O_PATH; a symbolic link itself.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        beneath::open(&self.parent, self.name(), flags, ResolveFlag::empty())
    }

    /// What the symbolic link there says; `None` if there is none.
    fn link(&self) -> io::Result<Option<Vec<u8>>> {
        match readlinkat(&self.parent, self.name()) {
            Ok(target) => Ok(Some(target.into_vec())),
            Err(Errno::EINVAL | Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
