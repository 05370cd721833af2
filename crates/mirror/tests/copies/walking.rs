//! Walks, applied to a copy.

use std::convert::Infallible;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use eventlog::change::{Change, MAX_WRITTEN};
use mirror::{Copied, WalkError, walk};
use nix::fcntl::AT_FDCWD;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;

use super::compare::{PATH, Pair};

fn permit(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn set_times(path: &Path, seconds: i64) {
    let times = [
        TimeSpec::new(seconds, 5),
        TimeSpec::new(seconds + 1, 999_999_999),
    ];
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(AT_FDCWD, path, &times[0], &times[1], flags).unwrap();
}

/// Everything that a directory can hold.
fn fill(root: &Path) {
    let deep = root.join("a/b/c");
    fs::create_dir_all(&deep).unwrap();
    fs::write(root.join("a/file"), b"text").unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("long"), vec![7; 2 * MAX_WRITTEN + 3]).unwrap();
    fs::hard_link(root.join("a/file"), root.join("a/b/second")).unwrap();
    fs::hard_link(root.join("a/file"), deep.join("third")).unwrap();

    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"first", 1 << 20).unwrap();
    sparse.write_all_at(b"second", 5 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();

    symlink("a/file", root.join("relative")).unwrap();
    symlink(format!("{PATH}/a/file"), root.join("absolute")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    fs::hard_link(root.join("dangling"), root.join("dangling too")).unwrap();
    lchown(root.join("relative"), Some(1), Some(2)).unwrap();
    mkfifo(&root.join("fifo"), Mode::S_IRUSR).unwrap();
    let _ = UnixListener::bind(root.join("socket")).unwrap();

    chown(root.join("a/file"), Some(1000), Some(1001)).unwrap();
    permit(&root.join("a/file"), 0o4755);
    let shared = root.join("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(3), Some(4)).unwrap();
    permit(&shared, 0o2775);
    fs::create_dir(shared.join("inherits")).unwrap();
    fs::write(shared.join("does not"), b"").unwrap();
    chown(shared.join("does not"), Some(3), Some(5)).unwrap();
    fs::create_dir(root.join("all")).unwrap();
    permit(&root.join("all"), 0o1777);
    permit(&root.join("fifo"), 0o622);
    permit(root, 0o2751);
    chown(root, Some(8), Some(9)).unwrap();

    xattr::set(root.join("a/file"), "user.one", b"1").unwrap();
    xattr::set(root.join("a/file"), "user.none", b"").unwrap();
    xattr::set(root.join("a"), "user.of directory", &[0, 255]).unwrap();
    xattr::set(root, "user.root", b"yes").unwrap();
    xattr::set(root.join("relative"), "trusted.link", b"link").unwrap();
    // Version 2; then what user, group and others may. It would be inherited by what is made below.
    let list = [
        &[2u8, 0, 0, 0][..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[4, 0, 5, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    xattr::set(&shared, "system.posix_acl_default", &list).unwrap();

    let all = "empty|long|sparse|relative|absolute|dangling|fifo|shared|a/file|a/b/c|a/b|a|all";
    for (i, name) in (0..).zip(all.split('|')) {
        set_times(&root.join(name), 1_000_000_000 + 10 * i);
    }
    set_times(&root.join("empty"), -5);
    set_times(root, 1_100_000_000);
}

fn copy(pair: &Pair) -> Copied {
    let tell = |change| {
        assert!(pair.apply(&change).unwrap(), "{change:?}");
        Ok::<_, Infallible>(())
    };
    walk(&pair.real, PATH.as_bytes(), tell).unwrap()
}

#[test]
fn a_copy_is_equal_in_every_respect() {
    let pair = Pair::new();
    fill(&pair.real);
    let copied = copy(&pair);
    pair.exactly_equal();

    assert_eq!(copied.files, 5);
    let fewest = 4 + 2 * MAX_WRITTEN as u64 + 3 + 11;
    assert!((fewest..fewest + (1 << 17)).contains(&copied.bytes));
    let sparse = fs::metadata(pair.copy.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20);
}

#[test]
fn a_copy_replaces_what_was_there() {
    let pair = Pair::new();
    fill(&pair.copy);
    let list = xattr::get(pair.copy.join("shared"), "system.posix_acl_default");
    xattr::remove(&pair.copy, "user.root").unwrap();
    xattr::set(
        &pair.copy,
        "system.posix_acl_default",
        &list.unwrap().unwrap(),
    )
    .unwrap();
    fs::create_dir_all(pair.real.join("new/newer")).unwrap();
    fs::write(pair.real.join("new/file"), b"new").unwrap();
    copy(&pair);
    pair.exactly_equal();
}

#[test]
fn a_walk_says_things_in_their_order() {
    let pair = Pair::new();
    fs::create_dir(pair.real.join("b")).unwrap();
    fs::write(pair.real.join("b/file"), vec![1; MAX_WRITTEN + 1]).unwrap();
    fs::write(pair.real.join("a"), b"").unwrap();
    let mut told = Vec::new();
    let tell = |change| {
        told.push(change);
        Ok::<_, Infallible>(())
    };
    walk(&pair.real, b"//srv/./data/", tell).unwrap();

    assert!(matches!(&told[0], Change::Emptied { path } if path == PATH.as_bytes()));
    let times: Vec<_> = told
        .iter()
        .filter_map(|change| match change {
            Change::Times { path, .. } => Some(String::from_utf8(path.clone()).unwrap()),
            _ => None,
        })
        .collect();
    let expected = [
        "/srv/data/a",
        "/srv/data/b/file",
        "/srv/data/b",
        "/srv/data",
    ];
    assert_eq!(times, expected);
    let pieces: Vec<_> = told
        .iter()
        .filter_map(|change| match change {
            Change::Written { at, bytes, .. } => Some((*at, bytes.len())),
            _ => None,
        })
        .collect();
    assert_eq!(
        pieces,
        [(Some(0), MAX_WRITTEN), (Some(MAX_WRITTEN as u64), 1)]
    );
}

#[test]
fn a_walk_ends_when_nobody_listens_and_when_nothing_is_there() {
    let pair = Pair::new();
    let full = walk(&pair.real, PATH.as_bytes(), |_| Err("full"));
    assert!(matches!(full, Err(WalkError::Told("full"))));
    let gone = pair.real.join("gone");
    let gone = walk(&gone, PATH.as_bytes(), |_| Ok::<_, Infallible>(()));
    assert_eq!(
        gone.unwrap_err().to_string(),
        "/srv/data cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn what_is_mounted_below_is_neither_walked_nor_emptied() {
    use nix::mount::{MsFlags, mount, umount};
    let pair = Pair::new();
    // Mounts of this thread alone.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    mount(none, "/", none, private, none).unwrap();
    for root in [&pair.real, &pair.copy] {
        fs::create_dir_all(root.join("d/mounted")).unwrap();
    }
    let tree = mirror::Tree::open(&[(PATH.into(), pair.copy.clone())]).unwrap();
    let mounted = pair.real.join("d/mounted");
    mount(
        Some("none"),
        &mounted,
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .unwrap();
    fs::write(mounted.join("file"), b"1").unwrap();
    // Of the same file system, but mounted nevertheless.
    fs::write(pair.beside.join("file"), b"1").unwrap();
    let bound = pair.copy.join("d/mounted");
    mount(Some(&pair.beside), &bound, none, MsFlags::MS_BIND, none).unwrap();

    let mut paths = Vec::new();
    walk(&pair.real, PATH.as_bytes(), |change| {
        if let Change::DirectoryMade { path, .. } | Change::Opened { path, .. } = change {
            paths.push(path);
        }
        Ok::<_, Infallible>(())
    })
    .unwrap();
    assert_eq!(paths, [b"/srv/data/d".to_vec()]);

    let emptied = Change::Emptied { path: PATH.into() };
    let error = tree.apply(&emptied).unwrap_err();
    assert!(error.to_string().contains("cannot be emptied"), "{error}");
    assert!(pair.beside.join("file").exists());
    // Or what is mounted would be in the way of removing all this.
    umount(&mounted).unwrap();
    umount(&bound).unwrap();
}
