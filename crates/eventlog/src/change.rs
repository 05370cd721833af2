//! What happened to files that have names: what a copy of a directory is made of, and kept by.
//!
//! The fold says which changes the calls of a log made ([`crate::fold::Fold::note_changes_below`]); a walk through a directory says
//! which changes make a copy of it. Whoever keeps the copy applies them in their order. Paths are absolute, as the
//! container names them, without `.`, `..` and doubled slashes; they lead through symbolic links as the container's do.

use serde::{Deserialize, Serialize};

/// A user and a group.
pub type Owner = (u32, u32);

/// Most bytes of one [`Change::Written`].
pub const MAX_WRITTEN: usize = 512 << 10;

/// One change. It has happened on the primary, so none of them fails on an exact copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A file was opened in a way that makes it where it is not (as a regular file), or empties it.
    Opened {
        /// Its path; a symbolic link there is followed.
        path: Vec<u8>,
        /// With O_CREAT: permissions it gets, if it was not there, and whose it is then.
        makes: Option<(u32, Owner)>,
        /// With O_TRUNC.
        empties: bool,
    },
    /// Bytes were written into a regular file.
    Written {
        /// Its path, followed.
        path: Vec<u8>,
        /// Where; at its end, wherever that is, if `None`.
        at: Option<u64>,
        /// At most [`MAX_WRITTEN`].
        bytes: Vec<u8>,
    },
    /// A regular file got a length.
    Resized {
        /// Its path, followed.
        path: Vec<u8>,
        /// Its length.
        len: u64,
    },
    /// fallocate(2).
    Allocated {
        /// The file's path, followed.
        path: Vec<u8>,
        /// The mode of the call.
        mode: u32,
        /// From which byte.
        at: u64,
        /// How many.
        len: u64,
    },
    /// A directory was made.
    DirectoryMade {
        /// Its path.
        path: Vec<u8>,
        /// Permissions.
        mode: u32,
        /// Whose it is.
        owner: Owner,
    },
    /// A FIFO was made.
    FifoMade {
        /// Its path.
        path: Vec<u8>,
        /// Permissions.
        mode: u32,
        /// Whose it is.
        owner: Owner,
    },
    /// A socket was bound to a path, where its name is then.
    SocketMade {
        /// Its path.
        path: Vec<u8>,
        /// Permissions.
        mode: u32,
        /// Whose it is.
        owner: Owner,
    },
    /// A symbolic link was made.
    Symlinked {
        /// Its path.
        path: Vec<u8>,
        /// What it says.
        target: Vec<u8>,
        /// Whose it is.
        owner: Owner,
    },
    /// A file got a second name.
    Linked {
        /// The first; a symbolic link there is not followed.
        from: Vec<u8>,
        /// The second.
        path: Vec<u8>,
    },
    /// A name was changed.
    Renamed {
        /// The old one.
        from: Vec<u8>,
        /// The new one.
        to: Vec<u8>,
        /// Flags of renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE.
        flags: u32,
    },
    /// A name was removed.
    Removed {
        /// It.
        path: Vec<u8>,
        /// Of an empty directory, by rmdir.
        directory: bool,
    },
    /// Permissions were changed.
    Mode {
        /// Of what; followed.
        path: Vec<u8>,
        /// Permissions, with the bits for set-user-ID and the like.
        mode: u32,
    },
    /// The owner was changed.
    Owner {
        /// Of what.
        path: Vec<u8>,
        /// The user, if it was changed.
        user: Option<u32>,
        /// The group, if it was changed.
        group: Option<u32>,
        /// Whether a symbolic link is followed.
        follows: bool,
    },
    /// Times were set.
    Times {
        /// Of what.
        path: Vec<u8>,
        /// Last access and last change: seconds and nanoseconds, or UTIME_NOW and UTIME_OMIT as utimensat(2) has them.
        times: [(i64, i64); 2],
        /// Whether a symbolic link is followed.
        follows: bool,
    },
    /// An extended attribute was set or removed.
    Attribute {
        /// Of what.
        path: Vec<u8>,
        /// Its name.
        name: Vec<u8>,
        /// Its value; removed if `None`.
        value: Option<Vec<u8>>,
        /// Whether a symbolic link is followed.
        follows: bool,
    },
    /// Everything below a directory was removed: a whole copy follows.
    Emptied {
        /// The directory's path.
        path: Vec<u8>,
    },
}

impl Change {
    /// About how many bytes it has in a message.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const FIELDS: usize = 64;
        let beside = match self {
            Self::Written { bytes, .. } => bytes.len(),
            Self::Symlinked { target, .. } => target.len(),
            Self::Attribute { name, value, .. } => name.len() + value.as_ref().map_or(0, Vec::len),
            _ => 0,
        };
        let (first, second) = self.paths();
        FIELDS + first.len() + second.map_or(0, <[u8]>::len) + beside
    }

    /// The paths that it names: one, or that of a file and its other name.
    #[must_use]
    pub fn paths(&self) -> (&[u8], Option<&[u8]>) {
        match self {
            Self::Linked { from, path } => (path, Some(from)),
            Self::Renamed { from, to, .. } => (from, Some(to)),
            Self::Opened { path, .. }
            | Self::Written { path, .. }
            | Self::Resized { path, .. }
            | Self::Allocated { path, .. }
            | Self::DirectoryMade { path, .. }
            | Self::FifoMade { path, .. }
            | Self::SocketMade { path, .. }
            | Self::Symlinked { path, .. }
            | Self::Removed { path, .. }
            | Self::Mode { path, .. }
            | Self::Owner { path, .. }
            | Self::Times { path, .. }
            | Self::Attribute { path, .. }
            | Self::Emptied { path } => (path, None),
        }
    }
}

/// A path without `.`, `..` and doubled slashes; the empty one and a relative one begin at the root.
#[must_use]
pub fn plain(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    let mut plain = Vec::with_capacity(path.len());
    for part in parts {
        plain.push(b'/');
        plain.extend_from_slice(part);
    }
    if plain.is_empty() {
        plain.push(b'/');
    }
    plain
}

/// What of `path` lies below `directory`: empty for the directory itself. Both as [`plain`] makes them.
#[must_use]
pub fn below<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    let rest = path.strip_prefix(directory)?;
    match rest {
        [] => Some(rest),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_changes_is_the_documented_one() {
        let path = || b"/f".to_vec();
        let stored = |change: &Change| crate::codec::encode(change).unwrap();
        let begins = |kind: u32| [&kind.to_le_bytes()[..], &2_u64.to_le_bytes(), b"/f"].concat();
        let opened = Change::Opened {
            path: path(),
            makes: Some((0o644, (1, 2))),
            empties: true,
        };
        let rest = [1, 0xa4, 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1];
        assert_eq!(stored(&opened), [begins(0), rest.to_vec()].concat());
        let written = Change::Written {
            path: path(),
            at: Some(3),
            bytes: vec![9],
        };
        let rest = [1, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(stored(&written), [begins(1), rest.to_vec()].concat());
        let removed = Change::Removed {
            path: path(),
            directory: true,
        };
        assert_eq!(stored(&removed), [begins(10), vec![1]].concat());
        assert_eq!(stored(&Change::Emptied { path: path() }), begins(15));
    }

    #[test]
    fn paths_are_made_plain() {
        let cases: [(&[u8], &[u8]); 6] = [
            (b"/a//b/./c", b"/a/b/c"),
            (b"/a/../b", b"/b"),
            (b"/../..", b"/"),
            (b"", b"/"),
            (b"/a/b/", b"/a/b"),
            (b"a/.../b", b"/a/.../b"),
        ];
        for (path, expected) in cases {
            assert_eq!(plain(path), expected);
        }
    }

    #[test]
    fn what_lies_below_a_directory_begins_with_all_of_its_name() {
        assert_eq!(below(b"/a/b/c", b"/a/b"), Some(&b"c"[..]));
        assert_eq!(below(b"/a/b", b"/a/b"), Some(&b""[..]));
        assert_eq!(below(b"/a/bc", b"/a/b"), None);
        assert_eq!(below(b"/a", b"/"), Some(&b"a"[..]));
    }
}
