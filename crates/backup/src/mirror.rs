//! The copies of a container's directories, kept as they were at the committed checkpoint.
//!
//! They lie in the state directory, under `mirrors/NAME`, one directory for each that is mirrored, by number. A
//! container that is taken over has them in the places of the originals, and goes on with them: from then on they are all
//! there is of its files, which a file `live` beside them says, and no other run of that name begins them anew.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use eventlog::change::Change;
use mirror::{MirrorError, Tree};

/// Why copies of files cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is nowhere to keep them.
    #[error("it has no place for the files of --mirror: start it with --state DIR")]
    NoState,
    /// A path that is not absolute, or one directory within another.
    #[error(
        "{path:?} cannot be mirrored: its path must be absolute, and not below another that is mirrored"
    )]
    Path {
        /// The path.
        path: String,
    },
    /// A container has gone on with what is there.
    #[error(
        "{dir:?} holds the files of a container of that name that has gone on here: move it away, or it would be lost"
    )]
    Lived {
        /// Where.
        dir: PathBuf,
    },
    /// Their place cannot be used.
    #[error("{dir:?} cannot be used for the files of --mirror: {source}")]
    Place {
        /// Where.
        dir: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A change cannot be applied.
    #[error(transparent)]
    Change(#[from] MirrorError),
    /// What is there is not what the primary's changes begin with.
    #[error("the copy of the container's files is not whole; it has to be made anew")]
    NotWhole,
}

/// What the copies are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// What they are copies of is not known.
    Unknown,
    /// A whole copy is coming.
    Coming,
    /// As at the committed checkpoint.
    Committed,
}

/// The copies of one container's directories.
#[derive(Debug)]
pub struct Mirror {
    place: PathBuf,
    directories: Vec<(Vec<u8>, PathBuf)>,
    tree: Tree,
    state: State,
}

/// Says that a container has gone on with the copies beside it.
const LIVED: &str = "live";

impl Mirror {
    /// The place for copies of `directories` of the container `name`; `None` if there are none to keep.
    ///
    /// # Errors
    /// Any of [`FilesError`] but those of changes.
    pub fn open(
        state: Option<&Path>,
        name: &str,
        directories: &[Vec<u8>],
    ) -> Result<Option<Self>, FilesError> {
        if directories.is_empty() {
            return Ok(None);
        }
        check(directories)?;
        let place = state.ok_or(FilesError::NoState)?.join("mirrors").join(name);
        if place.join(LIVED).exists() {
            return Err(FilesError::Lived { dir: place });
        }
        let here = |number: usize| place.join(number.to_string());
        let directories: Vec<(Vec<u8>, PathBuf)> =
            directories.iter().cloned().zip((0..).map(here)).collect();
        for (_, dir) in &directories {
            fs::create_dir_all(dir).map_err(|source| FilesError::Place {
                dir: dir.clone(),
                source,
            })?;
        }
        let tree = Tree::open(&directories)?;
        Ok(Some(Self {
            place,
            directories,
            tree,
            state: State::Unknown,
        }))
    }

    /// Where each directory's copy lies, and where the container is to have it.
    pub fn mounts(&self) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        let pairs = self.directories.iter();
        pairs.map(move |(inside, here)| (here.clone(), path(inside)))
    }

    /// A part of a whole copy, whose first part begins by emptying the first directory: what there was is of no use any
    /// more.
    ///
    /// # Errors
    /// [`FilesError::Change`]; [`FilesError::NotWhole`] for a part behind one that could not be applied.
    pub fn copy(&mut self, changes: &[Change]) -> Result<(), FilesError> {
        let (first, _) = &self.directories[0];
        if matches!(changes, [Change::Emptied { path }, ..] if path == first) {
            self.state = State::Coming;
        }
        if self.state != State::Coming {
            return Err(FilesError::NotWhole);
        }
        self.apply_or_forget(changes)
    }

    /// They are not those of the committed checkpoint any more.
    pub fn forget(&mut self) {
        self.state = State::Unknown;
    }

    /// What happened to the files up to a checkpoint that is being committed.
    ///
    /// # Errors
    /// [`FilesError::NotWhole`], or [`FilesError::Change`]: the copies have to be made anew then.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), FilesError> {
        if self.state == State::Unknown {
            return Err(FilesError::NotWhole);
        }
        self.apply_or_forget(changes)?;
        self.state = State::Committed;
        Ok(())
    }

    /// What happened to the files behind the committed checkpoint, up to the log's end. Should the primary be back after
    /// all, they have to be made anew.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn finish(&mut self, changes: &[Change]) -> Result<(), FilesError> {
        if self.state != State::Committed {
            return Err(FilesError::NotWhole);
        }
        self.apply_or_forget(changes)?;
        self.forget();
        Ok(())
    }

    /// The container goes on with them. Brings to the disk what it has reason to believe is there.
    ///
    /// # Errors
    /// [`FilesError::Place`].
    pub fn goes_live(&self) -> Result<(), FilesError> {
        let path = self.place.join(LIVED);
        let marked = fs::File::create(&path).and_then(|file| {
            nix::unistd::syncfs(&file)?;
            Ok(())
        });
        marked.map_err(|source| FilesError::Place { dir: path, source })
    }

    fn apply_or_forget(&mut self, changes: &[Change]) -> Result<(), FilesError> {
        self.apply(changes).inspect_err(|_| self.forget())
    }

    fn apply(&self, changes: &[Change]) -> Result<(), FilesError> {
        for change in changes {
            self.tree.apply(change)?;
        }
        Ok(())
    }
}

/// Paths come from the primary: each is absolute and plain, and none lies below another.
fn check(directories: &[Vec<u8>]) -> Result<(), FilesError> {
    use eventlog::change::{below, plain};
    for (i, path) in directories.iter().enumerate() {
        let nested = |(j, other): (usize, &Vec<u8>)| i != j && below(path, other).is_some();
        let is_root = path == b"/";
        if is_root || plain(path) != *path || directories.iter().enumerate().any(nested) {
            let path = String::from_utf8_lossy(path).into_owned();
            return Err(FilesError::Path { path });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn open(state: &TempDir) -> Mirror {
        let directories = [b"/srv/data".to_vec()];
        let mirror = Mirror::open(Some(state.path()), "db", &directories);
        mirror.unwrap().unwrap()
    }

    fn emptied() -> Change {
        let path = b"/srv/data".to_vec();
        Change::Emptied { path }
    }

    fn made(name: &str) -> Change {
        Change::DirectoryMade {
            path: [b"/srv/data/", name.as_bytes()].concat(),
            mode: 0o755,
            owner: (0, 0),
        }
    }

    #[test]
    fn changes_count_behind_a_whole_copy_alone() {
        let state = TempDir::new().unwrap();
        let mut mirror = open(&state);
        assert!(matches!(
            mirror.commit(&[made("a")]),
            Err(FilesError::NotWhole)
        ));
        mirror.copy(&[emptied(), made("a")]).unwrap();
        // Not even a takeover may use it: which checkpoint it belongs to is not known yet.
        assert!(matches!(mirror.finish(&[]), Err(FilesError::NotWhole)));
        mirror.commit(&[]).unwrap();
        mirror.commit(&[made("b")]).unwrap();
        let copy = state.path().join("mirrors/db/0");
        assert!(copy.join("a").is_dir() && copy.join("b").is_dir());
        // What cannot be has gone wrong before.
        assert!(matches!(
            mirror.commit(&[made("b")]),
            Err(FilesError::Change(_))
        ));
        assert!(matches!(mirror.commit(&[]), Err(FilesError::NotWhole)));
        mirror.copy(&[emptied(), made("c")]).unwrap();
        mirror.commit(&[]).unwrap();
        assert!(!copy.join("a").exists() && copy.join("c").is_dir());
    }

    #[test]
    fn a_copy_of_which_a_part_failed_is_none() {
        let state = TempDir::new().unwrap();
        let mut mirror = open(&state);
        mirror.copy(&[emptied(), made("a")]).unwrap();
        assert!(matches!(
            mirror.copy(&[made("a")]),
            Err(FilesError::Change(_))
        ));
        assert!(matches!(
            mirror.copy(&[made("b")]),
            Err(FilesError::NotWhole)
        ));
        assert!(matches!(mirror.commit(&[]), Err(FilesError::NotWhole)));
        mirror.copy(&[emptied(), made("a")]).unwrap();
        mirror.copy(&[made("b")]).unwrap();
        mirror.commit(&[]).unwrap();
    }

    #[test]
    fn a_takeover_that_is_called_off_needs_another_copy() {
        let state = TempDir::new().unwrap();
        let mut mirror = open(&state);
        mirror.copy(&[emptied()]).unwrap();
        mirror.commit(&[]).unwrap();
        mirror.finish(&[made("a")]).unwrap();
        assert!(matches!(mirror.commit(&[]), Err(FilesError::NotWhole)));
    }

    #[test]
    fn copies_that_a_container_goes_on_with_are_left_alone() {
        let state = TempDir::new().unwrap();
        open(&state).goes_live().unwrap();
        let again = Mirror::open(Some(state.path()), "db", &[b"/srv/data".to_vec()]);
        assert!(matches!(again, Err(FilesError::Lived { .. })));
        let other = Mirror::open(Some(state.path()), "db2", &[b"/srv/data".to_vec()]);
        assert!(other.unwrap().is_some());
    }

    #[test]
    fn directories_are_checked() {
        let state = TempDir::new().unwrap();
        let open = |paths: &[&str]| {
            let paths: Vec<Vec<u8>> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
            Mirror::open(Some(state.path()), "db", &paths)
        };
        for paths in [
            &["/"][..],
            &["srv"],
            &["/a/../b"],
            &["/a/"],
            &["/a", "/a/b"],
            &["/a", "/a"],
        ] {
            assert!(
                matches!(open(paths), Err(FilesError::Path { .. })),
                "{paths:?}"
            );
        }
        assert!(open(&["/a", "/ab"]).unwrap().is_some());
        assert!(open(&[]).unwrap().is_none());
        let nowhere = Mirror::open(None, "db", &[b"/a".to_vec()]);
        assert!(matches!(nowhere, Err(FilesError::NoState)));
    }
}
