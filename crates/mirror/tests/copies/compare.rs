//! A directory and its copy, and whether they are equal.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use eventlog::change::{Change, Owner};
use mirror::{MirrorError, Tree};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tempfile::TempDir;

/// The directory's path in the container.
pub(crate) const PATH: &str = "/srv/data";
pub(crate) const ROOT: Owner = (0, 0);

/// A directory, and a copy that is empty at first; beside them, what nobody may touch.
pub(crate) struct Pair {
    pub(crate) real: PathBuf,
    pub(crate) copy: PathBuf,
    pub(crate) beside: PathBuf,
    pub(crate) tree: Tree,
    _all: TempDir,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let all = tempfile::tempdir().unwrap();
        let [real, copy, beside] = ["real", "copy", "beside"].map(|name| all.path().join(name));
        for directory in [&real, &copy, &beside] {
            fs::create_dir(directory).unwrap();
        }
        let tree = Tree::open(&[(PATH.into(), copy.clone())]).unwrap();
        Self {
            real,
            copy,
            beside,
            tree,
            _all: all,
        }
    }

    pub(crate) fn apply(&self, change: &Change) -> Result<bool, MirrorError> {
        self.tree.apply(change)
    }

    /// Applies what must be ours, and succeed.
    #[track_caller]
    pub(crate) fn applied(&self, change: Change) {
        assert!(self.apply(&change).unwrap(), "{change:?}");
    }

    /// Does something for real and to the copy, and compares.
    #[track_caller]
    pub(crate) fn both(&self, change: Change, real: impl FnOnce(&Path)) {
        real(&self.real);
        self.applied(change);
        self.equal();
    }

    #[track_caller]
    pub(crate) fn equal(&self) {
        similar(&contents(&self.real, false), &contents(&self.copy, false));
    }

    /// Equal in every respect, times included.
    #[track_caller]
    pub(crate) fn exactly_equal(&self) {
        similar(&contents(&self.real, true), &contents(&self.copy, true));
    }

    pub(crate) fn opened(&self, name: &str, mode: u32) {
        self.applied(open(name, Some((mode, ROOT)), false));
    }

    pub(crate) fn written(&self, name: &str, bytes: &[u8]) {
        self.opened(name, 0o644);
        self.applied(write(name, Some(0), bytes));
    }

    pub(crate) fn directory(&self, name: &str) {
        self.applied(Change::DirectoryMade {
            path: path(name),
            mode: 0o755,
            owner: ROOT,
        });
    }

    pub(crate) fn symlink(&self, name: &str, target: &str) {
        self.applied(Change::Symlinked {
            path: path(name),
            target: target.into(),
            owner: ROOT,
        });
    }
}

/// The path in the container of what has a name in the directory.
pub(crate) fn path(name: &str) -> Vec<u8> {
    if name.is_empty() {
        return PATH.into();
    }
    format!("{PATH}/{name}").into()
}

pub(crate) fn open(name: &str, makes: Option<(u32, Owner)>, empties: bool) -> Change {
    Change::Opened {
        path: path(name),
        makes,
        empties,
    }
}

pub(crate) fn write(name: &str, at: Option<u64>, bytes: &[u8]) -> Change {
    Change::Written {
        path: path(name),
        at,
        bytes: bytes.into(),
    }
}

/// All that one name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    mode: u32,
    owner: Owner,
    links: u64,
    /// The first name of the same file.
    first: PathBuf,
    len: u64,
    bytes: Vec<u8>,
    target: Option<PathBuf>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    times: Option<[(i64, i64); 2]>,
}

#[track_caller]
pub(crate) fn similar(left: &BTreeMap<PathBuf, Entry>, right: &BTreeMap<PathBuf, Entry>) {
    let names = |entries: &BTreeMap<PathBuf, Entry>| entries.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(left), names(right));
    for (name, entry) in left {
        assert_eq!(Some(entry), right.get(name), "{}", name.display());
    }
}

/// Everything below a directory, and the directory itself.
pub(crate) fn contents(directory: &Path, with_times: bool) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    let mut firsts = HashMap::new();
    while let Some(name) = todo.pop() {
        let here = directory.join(&name);
        let stat = fs::symlink_metadata(&here).unwrap();
        let kind = stat.file_type();
        let first = firsts.entry(stat.ino()).or_insert_with(|| name.clone());
        let first = first.clone();
        if kind.is_dir() {
            todo.extend(names(&here).iter().map(|below| name.join(below)));
        }
        // Reading a link for the walk may have changed when it was last read.
        let accessed = (stat.atime(), stat.atime_nsec());
        let accessed = if kind.is_symlink() { (0, 0) } else { accessed };
        let times = [accessed, (stat.mtime(), stat.mtime_nsec())];
        let listed = xattr::list(&here).unwrap();
        entries.insert(
            name,
            Entry {
                mode: stat.mode(),
                owner: (stat.uid(), stat.gid()),
                links: stat.nlink(),
                first,
                len: if kind.is_file() { stat.len() } else { 0 },
                bytes: if kind.is_file() {
                    read(&here)
                } else {
                    Vec::new()
                },
                target: kind.is_symlink().then(|| fs::read_link(&here).unwrap()),
                attributes: listed
                    .map(|name| {
                        let value = xattr::get(&here, &name).unwrap().unwrap();
                        (name.into_vec(), value)
                    })
                    .collect(),
                times: with_times.then_some(times),
            },
        );
    }
    entries
}

/// The names in a directory, sorted, without a trace of having been read.
fn names(directory: &Path) -> Vec<OsString> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOATIME;
    let mut directory = Dir::open(directory, flags, Mode::empty()).unwrap();
    let mut names: Vec<_> = directory
        .iter()
        .map(|entry| OsString::from_vec(entry.unwrap().file_name().to_bytes().to_vec()))
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

/// What is in a file, likewise.
fn read(file: &Path) -> Vec<u8> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NOATIME.bits());
    let mut bytes = Vec::new();
    options
        .open(file)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .unwrap();
    bytes
}
