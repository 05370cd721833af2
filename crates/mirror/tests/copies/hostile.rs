//! Changes from a container that wants to get at this host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use eventlog::change::Change;

use super::compare::{PATH, Pair, ROOT, contents, open, path, similar, write};

/// Every change there is, to `name` and to what would be below it.
fn everything(name: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    for name in [name, &format!("{name}/victim"), &format!("{name}/new")] {
        let path = path(name);
        changes.extend([
            open(name, Some((0o666, ROOT)), true),
            open(name, None, true),
            write(name, Some(0), b"owned"),
            write(name, None, b"owned"),
            Change::Resized {
                path: path.clone(),
                len: 0,
            },
            Change::Allocated {
                path: path.clone(),
                mode: 0,
                at: 0,
                len: 100,
            },
            Change::Mode {
                path: path.clone(),
                mode: 0o4777,
            },
            Change::Owner {
                path: path.clone(),
                user: Some(66),
                group: Some(66),
                follows: true,
            },
            Change::Times {
                path: path.clone(),
                times: [(1, 1), (1, 1)],
                follows: true,
            },
            Change::Attribute {
                path: path.clone(),
                name: b"user.owned".to_vec(),
                value: Some(vec![1]),
                follows: true,
            },
            Change::Emptied { path },
        ]);
    }
    let below = |name: &str, last: &str| path(&format!("{name}/{last}"));
    changes.extend([
        Change::DirectoryMade {
            path: below(name, "new"),
            mode: 0o777,
            owner: ROOT,
        },
        Change::FifoMade {
            path: below(name, "new"),
            mode: 0o777,
            owner: ROOT,
        },
        Change::Symlinked {
            path: below(name, "new"),
            target: b"/".to_vec(),
            owner: ROOT,
        },
        Change::Linked {
            from: below(name, "victim"),
            path: path("stolen"),
        },
        Change::Linked {
            from: path("mine"),
            path: below(name, "new"),
        },
        Change::Renamed {
            from: below(name, "victim"),
            to: path("stolen"),
            flags: 0,
        },
        Change::Renamed {
            from: below(name, "victim"),
            to: path("mine"),
            flags: 2,
        },
        Change::Removed {
            path: below(name, "victim"),
            directory: false,
        },
        Change::Removed {
            path: below(name, "directory"),
            directory: true,
        },
    ]);
    changes
}

#[test]
fn no_link_leads_outside() {
    let pair = Pair::new();
    fs::write(pair.beside.join("victim"), b"innocent").unwrap();
    fs::set_permissions(
        pair.beside.join("victim"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    fs::create_dir(pair.beside.join("directory")).unwrap();
    let beside = pair.beside.to_str().unwrap();
    let copy = pair.copy.to_str().unwrap();
    let up = format!("{}{}", "../".repeat(30), beside);
    let targets = [
        beside,
        &up,
        "../beside",
        "d/../../beside",
        "d/up/beside",
        "/srv/data/../../..",
        "/srv/data/d/up/beside",
        "/proc/self/cwd",
        "/proc/self/root",
        &format!("{copy}/../beside"),
        "/srv/beside",
        "self",
    ];
    let before = contents(&pair.beside, true);
    for target in targets {
        pair.applied(Change::Emptied { path: PATH.into() });
        pair.directory("d");
        pair.symlink("d/up", "../..");
        pair.written("mine", b"mine");
        pair.symlink("self", target);
        // What follows the link as a whole and what goes through it.
        for change in everything("self") {
            if let Ok(true) = pair.apply(&change) {
                panic!("{target}: {change:?}");
            }
            similar(&before, &contents(&pair.beside, true));
            assert!(!pair.copy.join("stolen").exists(), "{target}");
            assert_eq!(fs::read(pair.copy.join("mine")).unwrap(), b"mine");
        }
    }
}

#[test]
fn what_a_link_leads_to_outside_is_none_of_ours() {
    let pair = Pair::new();
    pair.symlink("link", "/etc/passwd");
    for change in [
        open("link", Some((0o644, ROOT)), true),
        write("link", None, b"owned"),
        Change::Mode {
            path: path("link"),
            mode: 0o777,
        },
    ] {
        assert!(!pair.apply(&change).unwrap());
    }
}

#[test]
fn no_path_leads_outside() {
    let pair = Pair::new();
    let outside = contents(&pair.beside, true);
    for path in [
        "/srv/data/../../etc/passwd",
        "/srv/data/..",
        "/etc/passwd",
        "/srv/database/x",
        "",
        "/",
        "..",
        "srv",
    ] {
        let opened = Change::Opened {
            path: path.into(),
            makes: Some((0o644, ROOT)),
            empties: true,
        };
        assert!(!pair.apply(&opened).unwrap(), "{path}");
        let emptied = Change::Emptied { path: path.into() };
        assert!(!pair.apply(&emptied).unwrap(), "{path}");
    }
    similar(&outside, &contents(&pair.beside, true));
}

#[test]
fn links_in_circles_and_without_end_are_given_up() {
    let pair = Pair::new();
    symlink("b", pair.copy.join("a")).unwrap();
    symlink("/srv/data/a", pair.copy.join("b")).unwrap();
    symlink("./grows/".repeat(500), pair.copy.join("grows")).unwrap();
    for name in ["a", "b/x", "grows", "grows/x"] {
        let error = pair.apply(&open(name, Some((0o644, ROOT)), false));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("symbolic links"), "{error}");
    }
}
