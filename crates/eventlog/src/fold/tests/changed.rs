//! What calls do to files below a watched directory.

use super::tape::*;
use crate::change::Change;
use crate::fold::Merge;
use crate::payload::{AT_END, AT_OFFSET};

const CWD: u64 = -100_i64 as u64;
const APPEND: u64 = 0o2000;
const MAKES: u64 = 0o101;

/// A container that starts in `/srv`, with what is below `/srv/data` watched.
fn watched() -> Merge {
    let mut merge = Merge::new();
    merge.start_in(b"/srv", 0o027);
    merge.introduce(1, 1, 1).unwrap();
    merge.note_changes_below(&[b"/srv/data".to_vec()]);
    merge
}

fn changes(events: impl IntoIterator<Item = Event>) -> Vec<Change> {
    let mut merge = watched();
    play(&mut merge, events);
    merge.take_changes()
}

fn open(path: &[u8], flags: u64, fd: i64) -> Event {
    Event::call("openat", &[CWD, 0, flags, 0o666], fd, &[path])
}

fn written(at: Option<u64>, bytes: &[u8]) -> Change {
    let (path, bytes) = (b"/srv/data/f".to_vec(), bytes.to_vec());
    Change::Written { path, at, bytes }
}

#[test]
fn paths_are_where_the_process_is() {
    let made = changes([
        open(b"data/f\0", MAKES, 3),
        open(b"/srv/./data/../data//f\0", MAKES, 4),
        open(b"/srv/other\0", MAKES, 5),
        Event::call("chdir", &[0], 0, &[b"data\0"]),
        open(b"f\0", MAKES, 6),
        open(b"g\0", 0, 7),
        open(b".\0", 0o200_000, 8),
        Event::call("mkdirat", &[8, 0, 0o777], 0, &[b"d\0"]),
    ]);
    let opened = Change::Opened {
        path: b"/srv/data/f".to_vec(),
        makes: Some((0o640, (0, 0))),
        empties: false,
    };
    let directory = Change::DirectoryMade {
        path: b"/srv/data/d".to_vec(),
        mode: 0o750,
        owner: (0, 0),
    };
    assert_eq!(made, [opened.clone(), opened.clone(), opened, directory]);
}

#[test]
fn writes_go_where_the_offset_is_or_the_call_says() {
    let position = |at: u64, bytes: &[u8]| [&at.to_le_bytes()[..], bytes].concat();
    let made = changes([
        open(b"data/f\0", 1, 3),
        Event::call("write", &[3], 4, &[]).data(b"abcd"),
        // Less than was given.
        Event::call("write", &[3], 2, &[]).data(b"efgh"),
        Event::call("pwrite64", &[3], 2, &[]).data(&position(9, b"xy")),
        Event::call("pwritev2", &[3], 1, &[]).data(&position(AT_OFFSET, b"i")),
        Event::call("pwritev2", &[3], 1, &[]).data(&position(AT_END, b"z")),
        Event::call("lseek", &[3, 1, 0], 1, &[]),
        Event::call("writev", &[3], 1, &[]).data(b"B"),
        open(b"data/f\0", 1 | APPEND, 4),
        Event::call("write", &[4], 1, &[]).data(b"!"),
        Event::call("pwrite64", &[4], 1, &[]).data(&position(0, b"?")),
    ]);
    let expected = [
        written(Some(0), b"abcd"),
        written(Some(4), b"ef"),
        written(Some(9), b"xy"),
        written(Some(6), b"i"),
        written(None, b"z"),
        written(Some(1), b"B"),
        written(None, b"!"),
        written(None, b"?"),
    ];
    assert_eq!(made, expected);
}

#[test]
fn open_files_follow_their_names_and_those_without_are_left_alone() {
    let made = changes([
        open(b"data/old\0", 1, 3),
        Event::call("rename", &[0, 0], 0, &[b"data/old\0", b"data/f\0"]),
        Event::call("write", &[3], 1, &[]).data(b"a"),
        Event::call("unlink", &[0], 0, &[b"data/f\0"]),
        Event::call("write", &[3], 1, &[]).data(b"b"),
        Event::call("ftruncate", &[3, 9], 0, &[]),
    ]);
    let renamed = Change::Renamed {
        from: b"/srv/data/old".to_vec(),
        to: b"/srv/data/f".to_vec(),
        flags: 0,
    };
    let removed = Change::Removed {
        path: b"/srv/data/f".to_vec(),
        directory: false,
    };
    assert_eq!(made, [renamed, written(Some(0), b"a"), removed]);
}

#[test]
fn what_comes_from_or_goes_to_other_directories_is_told() {
    let made = changes([
        Event::call("rename", &[0, 0], 0, &[b"/tmp/a\0", b"data/a\0"]),
        Event::call("rename", &[0, 0], 0, &[b"data/a\0", b"/tmp/a\0"]),
        Event::call("rename", &[0, 0], 0, &[b"/tmp/a\0", b"/tmp/b\0"]),
        Event::call("link", &[0, 0], 0, &[b"/tmp/a\0", b"data/a\0"]),
    ]);
    assert_eq!(made.len(), 3, "{made:?}");
}

#[test]
fn roots_and_users_count() {
    let made = changes([
        Event::call("chroot", &[0], 0, &[b"/srv/data\0"]),
        Event::call("chdir", &[0], 0, &[b"/\0"]),
        Event::call("setresgid", &[7, 8, 9], 0, &[]),
        Event::call("setresuid", &[5, 6, 7], 0, &[]),
        Event::call("umask", &[0o077], 0o027, &[]),
        open(b"/f\0", MAKES | 0o1000, 3),
        Event::call("write", &[3], 1, &[]).data(b"a"),
        Event::call("symlinkat", &[0, CWD, 0], 0, &[b"f\0", b"l\0"]),
    ]);
    let opened = Change::Opened {
        path: b"/srv/data/f".to_vec(),
        makes: Some((0o600, (6, 8))),
        empties: true,
    };
    let linked = Change::Symlinked {
        path: b"/srv/data/l".to_vec(),
        target: b"f".to_vec(),
        owner: (6, 8),
    };
    assert_eq!(made, [opened, written(Some(0), b"a"), linked]);
}

#[test]
fn sockets_times_and_attributes_are_told() {
    let times: Vec<u8> = [5_u64, 6, 7, 8]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    let address = [&[1, 0][..], b"data/s\0"].concat();
    let made = changes([
        Event::call("socket", &[1, 1, 0], 3, &[]),
        Event::call("bind", &[3, 0, 9], 0, &[&address]),
        Event::call("utimensat", &[CWD, 0, 0, 0x100], 0, &[b"data/s\0", &times]),
        Event::call("utimensat", &[CWD, 0, 0, 0], 0, &[b"data/s\0", b""]),
        Event::call(
            "setxattr",
            &[0, 0, 0, 1, 0],
            0,
            &[b"data/s\0", b"user.n\0", b"v"],
        ),
        Event::call("lchown", &[0, u64::from(u32::MAX), 4], 0, &[b"data/s\0"]),
    ]);
    let path = b"/srv/data/s".to_vec();
    let timed = |times, follows| Change::Times {
        path: path.clone(),
        times,
        follows,
    };
    let now = (0, (1 << 30) - 1);
    let expected = [
        Change::SocketMade {
            path: path.clone(),
            mode: 0o750,
            owner: (0, 0),
        },
        timed([(5, 6), (7, 8)], false),
        timed([now, now], true),
        Change::Attribute {
            path: path.clone(),
            name: b"user.n".to_vec(),
            value: Some(b"v".to_vec()),
            follows: true,
        },
        Change::Owner {
            path,
            user: None,
            group: Some(4),
            follows: false,
        },
    ];
    assert_eq!(made, expected);
}
