//! Each kind of change, against the same done for real.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use eventlog::change::{Change, MAX_WRITTEN};
use mirror::{MirrorError, Tree};
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;

use super::compare::{PATH, Pair, ROOT, open, path, write};

fn permit(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn files_are_made_emptied_and_written() {
    let pair = Pair::new();
    pair.both(open("file", Some((0o4766, (7, 8))), false), |real| {
        fs::write(real.join("file"), b"").unwrap();
        chown(real.join("file"), Some(7), Some(8)).unwrap();
        permit(&real.join("file"), 0o4766);
    });
    pair.both(write("file", Some(3), b"text"), |real| {
        let file = OpenOptions::new().write(true).open(real.join("file"));
        file.unwrap().write_all_at(b"text", 3).unwrap();
    });
    pair.both(write("file", None, b" appended"), |real| {
        let file = OpenOptions::new().append(true).open(real.join("file"));
        file.unwrap().write_all(b" appended").unwrap();
    });
    // It is there: neither emptied, nor given permissions or an owner.
    pair.both(open("file", Some((0o600, ROOT)), false), |_| {});
    let len = 5;
    let path = path("file");
    pair.both(Change::Resized { path, len }, |real| {
        let file = OpenOptions::new().write(true).open(real.join("file"));
        file.unwrap().set_len(5).unwrap();
    });
    pair.both(open("file", None, true), |real| {
        let file = OpenOptions::new().write(true).open(real.join("file"));
        file.unwrap().set_len(0).unwrap();
    });
}

#[test]
fn what_is_missing_or_too_long_is_an_error() {
    let pair = Pair::new();
    let error = pair.apply(&open("file", None, true)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the copy of /srv/data/file cannot be opened: No such file or directory (os error 2)"
    );
    pair.opened("file", 0o644);
    let most = vec![0; MAX_WRITTEN];
    pair.applied(write("file", None, &most));
    let error = pair.apply(&write("file", None, &[&most[..], b"1"].concat()));
    assert!(matches!(error, Err(MirrorError::TooLong { .. })));
    for name in ["f\0ile", "f\0", "\0/x"] {
        let error = pair.apply(&open(name, Some((0o644, ROOT)), false));
        assert!(matches!(error, Err(MirrorError::Failed { .. })));
    }
    let missing = Tree::open(&[(PATH.into(), pair.copy.join("missing"))]);
    assert!(matches!(missing, Err(MirrorError::Copy { .. })));
}

#[test]
fn a_dangling_link_is_where_a_file_is_made() {
    let pair = Pair::new();
    for (name, target) in [("link", "made"), ("second", "/srv/data/also made")] {
        pair.symlink(name, target);
        symlink(target, pair.real.join(name)).unwrap();
    }
    pair.both(open("link", Some((0o644, ROOT)), false), |real| {
        fs::write(real.join("made"), b"").unwrap();
    });
    pair.both(open("second", Some((0o644, ROOT)), false), |real| {
        fs::write(real.join("also made"), b"").unwrap();
    });
}

#[test]
fn links_lead_where_they_do_in_the_container() {
    let pair = Pair::new();
    for name in ["d", "d/e", "other"] {
        pair.directory(name);
    }
    pair.written("other/file", b"");
    pair.symlink("d/e/back", "../../other");
    pair.symlink("d/e/by name", "/srv/data/other/../other");
    pair.symlink("d/e/out and in", "../../../../srv/data/other");
    pair.symlink("short", "d/e");
    pair.symlink("d/e/through", "../e/by name/file");
    let names = [
        "d/e/back/file",
        "d/e/by name/file",
        "d/e/out and in/file",
        "short/back/file",
        "short/through",
    ];
    for (i, name) in names.iter().enumerate() {
        pair.applied(write(name, None, &[b'0' + i as u8]));
    }
    assert_eq!(fs::read(pair.copy.join("other/file")).unwrap(), b"01234");
}

#[test]
fn fallocate_does_what_it_does() {
    let pair = Pair::new();
    let bytes = vec![1; 1 << 16];
    pair.written("file", &bytes);
    fs::write(pair.real.join("file"), &bytes).unwrap();
    let (keep, punch, zero) = (1, 2, 16);
    for (mode, at, len) in [
        (0, 1 << 16, 4096),
        (keep, 1 << 20, 4096),
        (keep | punch, 4096, 8192),
        (zero, 100, 200),
    ] {
        let change = Change::Allocated {
            path: path("file"),
            mode,
            at,
            len,
        };
        pair.both(change, |real| {
            let file = OpenOptions::new().write(true).open(real.join("file"));
            let mode = FallocateFlags::from_bits_retain(mode.cast_signed());
            fallocate(file.unwrap(), mode, at as i64, len as i64).unwrap();
        });
    }
    let blocks = |root: &Path| fs::metadata(root.join("file")).unwrap().blocks();
    assert_eq!(blocks(&pair.real), blocks(&pair.copy));
}

#[test]
fn directories_fifos_and_links_are_made() {
    let pair = Pair::new();
    let made = Change::DirectoryMade {
        path: path("d"),
        mode: 0o1737,
        owner: (1, 2),
    };
    pair.both(made, |real| {
        fs::create_dir(real.join("d")).unwrap();
        chown(real.join("d"), Some(1), Some(2)).unwrap();
        permit(&real.join("d"), 0o1737);
    });
    let made = Change::FifoMade {
        path: path("fifo"),
        mode: 0o666,
        owner: (3, 4),
    };
    pair.both(made, |real| {
        mkfifo(&real.join("fifo"), Mode::empty()).unwrap();
        chown(real.join("fifo"), Some(3), Some(4)).unwrap();
        permit(&real.join("fifo"), 0o666);
    });
    let made = Change::Symlinked {
        path: path("link"),
        target: b"/etc/passwd".to_vec(),
        owner: (5, 6),
    };
    pair.both(made, |real| {
        symlink("/etc/passwd", real.join("link")).unwrap();
        lchown(real.join("link"), Some(5), Some(6)).unwrap();
    });
    for (from, to) in [("fifo", "d/fifo"), ("link", "d/link")] {
        let linked = Change::Linked {
            from: path(from),
            path: path(to),
        };
        pair.both(linked, |real| {
            fs::hard_link(real.join(from), real.join(to)).unwrap();
        });
    }
}

#[test]
fn groups_come_from_directories_that_say_so() {
    let pair = Pair::new();
    for root in [&pair.real, &pair.copy] {
        chown(root, None, Some(77)).unwrap();
        permit(root, 0o2755);
    }
    let owner = (0, 5);
    pair.both(open("file", Some((0o644, owner)), false), |real| {
        fs::write(real.join("file"), b"").unwrap();
    });
    let made = Change::DirectoryMade {
        path: path("d"),
        mode: 0o755,
        owner,
    };
    pair.both(made, |real| fs::create_dir(real.join("d")).unwrap());
    let made = Change::FifoMade {
        path: path("d/fifo"),
        mode: 0o644,
        owner,
    };
    pair.both(made, |real| {
        mkfifo(&real.join("d/fifo"), Mode::empty()).unwrap();
        permit(&real.join("d/fifo"), 0o644);
    });
    let made = Change::Symlinked {
        path: path("link"),
        target: b"d".to_vec(),
        owner,
    };
    pair.both(made, |real| symlink("d", real.join("link")).unwrap());
    assert_eq!(fs::metadata(pair.copy.join("d/fifo")).unwrap().gid(), 77);
}

#[test]
fn modes_owners_times_and_attributes_are_set() {
    let pair = Pair::new();
    for root in [&pair.real, &pair.copy] {
        fs::write(root.join("file"), b"").unwrap();
        symlink("file", root.join("link")).unwrap();
    }
    // Of the directory itself, of a file, of a link, and through it.
    for (name, follows) in [("", false), ("file", true), ("link", false), ("link", true)] {
        let here = |real: &Path| {
            if name.is_empty() {
                real.into()
            } else {
                real.join(name)
            }
        };
        let owner = Change::Owner {
            path: path(name),
            user: Some(11),
            group: None,
            follows,
        };
        pair.both(owner, |real| {
            let own = if follows { chown } else { lchown };
            own(here(real), Some(11), None).unwrap();
        });
        let mode = Change::Mode {
            path: path(name),
            mode: 0o6711,
        };
        pair.both(mode, |real| permit(&here(real), 0o6711));
        let value = name.len() as u8;
        let attribute = |value: Option<Vec<u8>>| Change::Attribute {
            path: path(name),
            name: b"trusted.name".to_vec(),
            value,
            follows,
        };
        pair.both(attribute(Some(vec![value, 0])), |real| {
            let set = if follows {
                xattr::set_deref
            } else {
                xattr::set
            };
            set(here(real), "trusted.name", &[value, 0]).unwrap();
        });
        pair.both(attribute(None), |real| {
            let remove = if follows {
                xattr::remove_deref
            } else {
                xattr::remove
            };
            remove(here(real), "trusted.name").unwrap();
        });
        pair.applied(attribute(None));
        let seconds = 1_000_000 + i64::from(value) * 2 + i64::from(follows);
        let times = Change::Times {
            path: path(name),
            times: [(seconds, 1), (seconds, 2)],
            follows,
        };
        pair.applied(times);
        let flags = if follows {
            UtimensatFlags::FollowSymlink
        } else {
            UtimensatFlags::NoFollowSymlink
        };
        let times = [TimeSpec::new(seconds, 1), TimeSpec::new(seconds, 2)];
        utimensat(AT_FDCWD, &here(&pair.real), &times[0], &times[1], flags).unwrap();
        let both = [&pair.real, &pair.copy].map(|root| fs::symlink_metadata(here(root)).unwrap());
        assert_eq!(both[0].mtime(), both[1].mtime());
        assert_eq!(both[0].mtime_nsec(), both[1].mtime_nsec());
    }
    pair.exactly_equal();
}

#[test]
fn times_may_stay_or_be_now() {
    let pair = Pair::new();
    pair.written("file", b"");
    let times = |times| Change::Times {
        path: path("file"),
        times,
        follows: true,
    };
    let (now, omit) = (nix::libc::UTIME_NOW, nix::libc::UTIME_OMIT);
    pair.applied(times([(5, 6), (7, 8)]));
    pair.applied(times([(0, omit), (0, now)]));
    let stat = fs::metadata(pair.copy.join("file")).unwrap();
    assert_eq!((stat.atime(), stat.atime_nsec()), (5, 6));
    assert!(stat.modified().unwrap().elapsed().unwrap().as_secs() < 60);
}

#[test]
fn names_are_changed_exchanged_and_removed() {
    let pair = Pair::new();
    for root in [&pair.real, &pair.copy] {
        fs::create_dir_all(root.join("d/e")).unwrap();
        fs::write(root.join("one"), b"1").unwrap();
        fs::write(root.join("two"), b"2").unwrap();
        symlink("d", root.join("link")).unwrap();
    }
    let renames = [
        ("one", "d/one", 0),
        ("d/one", "two", 0),
        ("two", "three", 1),
        ("three", "d", 2),
        ("link", "link again", 0),
        ("three/e", "e", 0),
    ];
    for (from, to, flags) in renames {
        let renamed = Change::Renamed {
            from: path(from),
            to: path(to),
            flags,
        };
        pair.both(renamed, |real| {
            let (from, to) = (real.join(from), real.join(to));
            let flags = RenameFlags::from_bits_retain(flags);
            renameat2(AT_FDCWD, &from, AT_FDCWD, &to, flags).unwrap();
        });
    }
    let removed = |name, directory| Change::Removed {
        path: path(name),
        directory,
    };
    pair.both(removed("link again", false), |real| {
        fs::remove_file(real.join("link again")).unwrap();
    });
    pair.both(removed("e", true), |real| {
        fs::remove_dir(real.join("e")).unwrap()
    });
    for (name, directory) in [("three", false), ("d", true), ("", true), ("", false)] {
        assert!(pair.apply(&removed(name, directory)).is_err());
    }
    pair.equal();
}

#[test]
fn renames_lead_in_out_and_across() {
    let pair = Pair::new();
    let second = pair.beside.join("second");
    fs::create_dir(&second).unwrap();
    let both = [
        (PATH.into(), pair.copy.clone()),
        (b"/opt".to_vec(), second.clone()),
    ];
    let tree = Tree::open(&both).unwrap();
    pair.directory("d");
    pair.directory("d/e");
    pair.written("d/e/file", b"text");
    pair.written("file", b"text");
    let renamed = |from: &[u8], to: &[u8], flags| {
        tree.apply(&Change::Renamed {
            from: from.into(),
            to: to.into(),
            flags,
        })
    };

    assert!(renamed(b"/srv/data/file", b"/opt/file", 0).unwrap());
    assert!(second.join("file").exists() && !pair.copy.join("file").exists());
    for flags in [0, 1, 2] {
        let came = renamed(b"/tmp/file", b"/opt/came", flags).unwrap_err();
        assert!(matches!(came, MirrorError::ComesFromOutside { .. }));
    }
    let exchanged = renamed(b"/opt/file", b"/tmp/file", 2).unwrap_err();
    assert!(matches!(exchanged, MirrorError::ComesFromOutside { .. }));
    let unknown = renamed(b"/opt/file", b"/opt/other", 4).unwrap_err();
    assert!(matches!(unknown, MirrorError::RenameFlags { flags: 4, .. }));
    assert!(!renamed(b"/tmp/a", b"/tmp/b", 4).unwrap());
    assert!(renamed(b"/srv/data", b"/tmp/data", 0).is_err());
    assert!(pair.copy.join("d/e/file").exists());

    assert!(renamed(b"/opt/file", b"/tmp/file", 0).unwrap());
    assert!(renamed(b"/srv/data/d", b"/tmp/d", 0).unwrap());
    assert!(renamed(b"/srv/data/d", b"/tmp/d", 0).is_err());
    assert_eq!(fs::read_dir(&pair.copy).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&second).unwrap().count(), 0);

    let linked = |from: &[u8], path: &[u8]| {
        tree.apply(&Change::Linked {
            from: from.into(),
            path: path.into(),
        })
    };
    let came = linked(b"/tmp/file", b"/opt/came").unwrap_err();
    assert!(matches!(came, MirrorError::ComesFromOutside { .. }));
    assert!(!linked(b"/opt/file", b"/tmp/file").unwrap());
}

#[test]
fn a_deep_tree_is_emptied() {
    let pair = Pair::new();
    // Deeper than a path is long, and than there are descriptors.
    for i in 0..40 {
        let deep = vec!["d"; 100].join("/");
        fs::create_dir_all(pair.copy.join("new").join(&deep)).unwrap();
        fs::write(pair.copy.join("new/file"), b"").unwrap();
        if i > 0 {
            fs::rename(
                pair.copy.join("old"),
                pair.copy.join("new").join(deep).join("e"),
            )
            .unwrap();
        }
        fs::rename(pair.copy.join("new"), pair.copy.join("old")).unwrap();
    }
    symlink(&pair.beside, pair.copy.join("old/link")).unwrap();
    fs::write(pair.beside.join("stays"), b"").unwrap();
    mkfifo(&pair.copy.join("old/fifo"), Mode::S_IRUSR).unwrap();
    pair.applied(Change::Emptied { path: PATH.into() });
    assert_eq!(fs::read_dir(&pair.copy).unwrap().count(), 0);
    assert!(pair.beside.join("stays").exists());
}

#[test]
fn what_is_no_file_is_never_opened() {
    let pair = Pair::new();
    pair.directory("d");
    pair.applied(Change::FifoMade {
        path: path("fifo"),
        mode: 0o644,
        owner: ROOT,
    });
    pair.symlink("link", "fifo");
    for name in ["fifo", "link", "d", ""] {
        for change in [
            open(name, Some((0o644, ROOT)), true),
            open(name, None, true),
            write(name, Some(0), b"text"),
            write(name, None, b"text"),
            Change::Resized {
                path: path(name),
                len: 1,
            },
        ] {
            assert!(!pair.apply(&change).unwrap(), "{change:?}");
        }
    }
}

#[test]
fn the_inner_of_two_directories_has_what_is_below_both() {
    let pair = Pair::new();
    let inner = [
        (b"/srv".to_vec(), pair.copy.clone()),
        (PATH.into(), pair.real.clone()),
    ];
    let tree = Tree::open(&inner).unwrap();
    assert!(
        tree.apply(&open("file", Some((0o644, ROOT)), false))
            .unwrap()
    );
    assert!(pair.real.join("file").exists());
    assert_eq!(fs::read_dir(&pair.copy).unwrap().count(), 0);
}
