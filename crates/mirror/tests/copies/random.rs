//! Anything done in any order.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use eventlog::change::Change;
use mirror::Tree;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use proptest::prelude::*;

use super::compare::{Pair, ROOT};

const NAMES: [&str; 6] = ["a", "b", "c", "a/a", "a/b", "b/c"];
/// What links say; some of it leads nowhere, in circles or outside. The absolute ones begin in the directory.
const TARGETS: [&str; 6] = ["a", "../b", "/c", "/a/../b/c", "nowhere", "b/./c"];

#[derive(Clone, Debug)]
enum Operation {
    Make(bool),
    Write(u64, Vec<u8>),
    Append(Vec<u8>),
    Truncate(u64),
    MakeDirectory,
    RemoveDirectory,
    Rename(usize, u32),
    Unlink,
    Link(usize),
    Symlink(usize),
    Mode(u32),
}

fn operation() -> impl Strategy<Value = Operation> {
    let bytes = || proptest::collection::vec(any::<u8>(), 1..20);
    prop_oneof![
        4 => any::<bool>().prop_map(Operation::Make),
        3 => (0u64..10_000, bytes()).prop_map(|(at, bytes)| Operation::Write(at, bytes)),
        3 => bytes().prop_map(Operation::Append),
        2 => (0u64..10_000).prop_map(Operation::Truncate),
        5 => Just(Operation::MakeDirectory),
        2 => Just(Operation::RemoveDirectory),
        4 => (0..NAMES.len(), 0u32..3).prop_map(|(to, flags)| Operation::Rename(to, flags)),
        2 => Just(Operation::Unlink),
        2 => (0..NAMES.len()).prop_map(Operation::Link),
        2 => (0..TARGETS.len()).prop_map(Operation::Symlink),
        2 => (0u32..0o10000).prop_map(Operation::Mode),
    ]
}

/// Does it for real; which change that was, if it could be done.
fn done(root: &Path, name: &str, operation: &Operation) -> io::Result<Change> {
    let here = root.join(name);
    let path = |name: &str| root.join(name).into_os_string().into_vec();
    let written = |at, bytes: &[u8]| Change::Written {
        path: path(name),
        at,
        bytes: bytes.into(),
    };
    let file = || OpenOptions::new().write(true).open(&here);
    Ok(match operation {
        Operation::Make(empties) => {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(*empties)
                .open(&here)?;
            Change::Opened {
                path: path(name),
                makes: Some((0o644, ROOT)),
                empties: *empties,
            }
        }
        Operation::Write(at, bytes) => {
            file()?.write_all_at(bytes, *at)?;
            written(Some(*at), bytes)
        }
        Operation::Append(bytes) => {
            let mut file = OpenOptions::new().append(true).open(&here)?;
            file.write_all(bytes)?;
            written(None, bytes)
        }
        Operation::Truncate(len) => {
            file()?.set_len(*len)?;
            Change::Resized {
                path: path(name),
                len: *len,
            }
        }
        Operation::MakeDirectory => {
            fs::create_dir(&here)?;
            Change::DirectoryMade {
                path: path(name),
                mode: 0o755,
                owner: ROOT,
            }
        }
        Operation::RemoveDirectory => {
            fs::remove_dir(&here)?;
            Change::Removed {
                path: path(name),
                directory: true,
            }
        }
        Operation::Rename(to, flags) => {
            let bits = RenameFlags::from_bits_retain(*flags);
            renameat2(AT_FDCWD, &here, AT_FDCWD, &root.join(NAMES[*to]), bits)?;
            Change::Renamed {
                from: path(name),
                to: path(NAMES[*to]),
                flags: *flags,
            }
        }
        Operation::Unlink => {
            nix::unistd::unlink(&here)?;
            Change::Removed {
                path: path(name),
                directory: false,
            }
        }
        Operation::Link(to) => {
            fs::hard_link(&here, root.join(NAMES[*to]))?;
            Change::Linked {
                from: path(name),
                path: path(NAMES[*to]),
            }
        }
        Operation::Symlink(target) => {
            let target = match TARGETS[*target].strip_prefix('/') {
                Some(below) => root.join(below),
                None => TARGETS[*target].into(),
            };
            symlink(&target, &here)?;
            Change::Symlinked {
                path: path(name),
                target: target.into_os_string().into_vec(),
                owner: ROOT,
            }
        }
        Operation::Mode(mode) => {
            fs::set_permissions(&here, Permissions::from_mode(*mode))?;
            Change::Mode {
                path: path(name),
                mode: *mode,
            }
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The directory has its own path in the container, so that absolute links lead into it for real.
    #[test]
    fn a_copy_stays_equal(operations in proptest::collection::vec((0..NAMES.len(), operation()), 1..60)) {
        let pair = Pair::new();
        let path = pair.real.as_os_str().as_bytes().to_vec();
        let tree = Tree::open(&[(path, pair.copy.clone())]).unwrap();
        for (name, operation) in &operations {
            if let Ok(change) = done(&pair.real, NAMES[*name], operation) {
                let applied = tree.apply(&change);
                prop_assert!(applied.is_ok(), "{change:?}: {applied:?}");
            }
        }
        pair.equal();
    }
}
