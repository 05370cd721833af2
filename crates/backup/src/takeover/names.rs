//! Names of shared memory in a container that stands by: files in its own `/dev/shm`.
//!
//! Processes in the making have the memory itself under the names of stand-ins ([`checkpointer::names`]). It gets its own
//! names when they are finished, before anybody looks for them; what has lost its name, or is mapped no longer, then
//! loses its stand-in, too.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use checkpointer::ImageStore;
use checkpointer::names::{Directory, STAND_IN, is_named, stand_in};
use eventlog::image::NamedMemory;

use super::error::{Result, io as failed};

/// Device and inode at the primary.
pub(super) type Id = (u64, u64);

/// What these processes map of it.
pub(super) fn mapped(stores: &[ImageStore]) -> BTreeSet<Id> {
    let mappings = stores.iter().flat_map(ImageStore::mappings);
    let named = mappings.filter(|mapping| mapping.shared && is_named(&mapping.path));
    named
        .map(|mapping| (mapping.device, mapping.inode))
        .collect()
}

/// Takes stand-ins away.
pub(super) fn forget<'a>(init: i32, gone: impl Iterator<Item = &'a Id>) -> Result<()> {
    let mut gone = gone.peekable();
    if gone.peek().is_none() {
        return Ok(());
    }
    in_directory(init, "removing shared memory", |directory| {
        let stand_ins = gone.map(|(device, inode)| stand_in(*device, *inode));
        stand_ins
            .map(|name| directory.join(name))
            .try_for_each(|path| remove(&path))
    })
}

/// Makes the directory what `names` say of it.
pub(super) fn put(init: i32, names: &[NamedMemory]) -> Result<()> {
    in_directory(init, "naming shared memory", |directory| {
        place(directory, names)?;
        empty(directory, STAND_IN)
    })
}

/// Takes everything away: what an attempt has left.
pub(super) fn clear(init: i32) -> Result<()> {
    in_directory(init, "removing shared memory", |directory| {
        empty(directory, "")
    })
}

fn in_directory(
    init: i32,
    what: &'static str,
    work: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<()> {
    match Directory::of(init).map_err(failed(what))? {
        Some(directory) => work(&directory.path()).map_err(failed(what)),
        None => Ok(()),
    }
}

fn place(directory: &Path, names: &[NamedMemory]) -> io::Result<()> {
    let mut placed: HashMap<Id, &str> = HashMap::new();
    for named in names {
        let id = (named.device, named.inode);
        let path = directory.join(&named.name);
        if let Some(first) = placed.get(&id) {
            remove(&path)?;
            fs::hard_link(directory.join(first), path)?;
            continue;
        }
        match fs::rename(directory.join(stand_in(id.0, id.1)), &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => remove(&path)?,
            other => other?,
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let file = options.custom_flags(nix::libc::O_NOFOLLOW).open(&path)?;
        file.set_len(named.len)?;
        file.write_all_at(&named.contents, 0)?;
        chown(&path, Some(named.owner), Some(named.group))?;
        // Behind it: a new owner takes bits away.
        file.set_permissions(Permissions::from_mode(named.mode))?;
        placed.insert(id, &named.name);
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes all whose names begin so.
fn empty(directory: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn named(name: &str, inode: u64, len: u64, contents: &[u8]) -> NamedMemory {
        NamedMemory {
            name: name.to_owned(),
            device: 3,
            inode,
            mode: 0o640,
            owner: 33,
            group: 34,
            len,
            contents: contents.to_vec(),
        }
    }

    #[test]
    fn memory_gets_its_names_and_stand_ins_go() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at(&stand_in(3, 7)), [5; 4096]).unwrap();
        fs::write(at(&stand_in(3, 9)), "its name is gone").unwrap();
        fs::write(at("old"), "of another attempt").unwrap();
        let names = [
            named("a", 7, 100, &[]),
            named("b", 7, 100, &[]),
            named("old", 8, 10, b"xyz"),
        ];
        place(directory.path(), &names).unwrap();
        empty(directory.path(), STAND_IN).unwrap();
        assert_eq!(fs::read(at("a")).unwrap(), [5; 100]);
        assert_eq!(fs::read(at("old")).unwrap(), b"xyz\0\0\0\0\0\0\0");
        let (a, b) = (
            fs::metadata(at("a")).unwrap(),
            fs::metadata(at("b")).unwrap(),
        );
        assert_eq!(a.ino(), b.ino());
        assert_eq!((a.mode() & 0o7777, a.uid(), a.gid()), (0o640, 33, 34));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        empty(directory.path(), "").unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
