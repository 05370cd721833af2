//! What a backup keeps: log, checkpoints, and how it holds a primary that sends more.

use core::time::Duration;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use backup::Event;
use backup::arbiter::TakeoverError;
use backup::store::StoreError;
use stream::Nanos;
use stream::checkpoint::Commit;
use stream::hello::Channel;
use stream::keys::Security;
use stream::lease::Outcome;

use crate::bed::{Backup, LOG_CAP, Primary, QUIET, WITHIN, hello, protected, tls, whole_log};

#[test]
fn a_primary_that_leaves_unprotected_is_forgotten() {
    let backup = Backup::start(Security::Insecure, None);
    let connection = backup.connect(&hello(Channel::Log)).unwrap();
    let Event::Connected(connected) = backup.event() else {
        panic!()
    };
    connection.sender.shutdown();
    assert!(matches!(backup.event(), Event::Forgotten(gone) if Arc::ptr_eq(&gone, &connected)));
    assert!(backup.handle.guards().is_empty());
}

#[test]
fn without_a_committed_checkpoint_the_gate_stays_shut() {
    for security in [Security::Insecure, tls()] {
        let backup = Backup::start(security, None);
        let mut p = Primary::connect(&backup);
        let Event::Connected(guard) = backup.event() else {
            panic!()
        };
        let n = p.drain(b"before");
        assert_eq!(
            p.outcomes.recv_timeout(WITHIN).unwrap(),
            Outcome::Unchanged,
            "no lease"
        );
        assert_eq!(
            p.acks.recv(Some(QUIET)).unwrap(),
            None,
            "no acknowledgement"
        );
        assert!(matches!(
            guard.take_over(),
            Err(TakeoverError::NoCheckpoint)
        ));
        assert_eq!(p.checkpoint(1, None, b"image"), Commit::Done { id: 1 });
        p.acked(n);
        p.wait_for_lease();
        assert!(p.pulse.lease().is_live(Nanos::now()));
        p.die();
    }
}

#[test]
fn a_full_log_holds_the_primary_until_a_checkpoint_commits() {
    let backup = Backup::start(Security::Insecure, None);
    let (mut p, guard) = protected(&backup);
    let piece = vec![9; 100_000];
    let mut acked = 0;
    let mut sent = 0;
    // Enough to fill the cap and stay in the sockets.
    while p.position < LOG_CAP + 600_000 {
        sent = p.drain(&piece);
        while let Some(n) = p.acks.recv(Some(Duration::ZERO)).unwrap() {
            acked = n;
        }
    }
    // One more batch is taken in than fits, but its drain's end is not read.
    let fits = LOG_CAP / 100_000;
    while acked < fits {
        acked = p.acks.recv(Some(WITHIN)).unwrap().unwrap();
    }
    assert_eq!(
        (acked, p.acks.recv(Some(QUIET)).unwrap()),
        (fits, None),
        "back-pressure"
    );
    assert!(guard.log().memory() < LOG_CAP + 200_000);
    // Its cut lies behind log that is still on its way: it must not wait for room that only it can make.
    assert_eq!(p.checkpoint(2, Some(1), b"later"), Commit::Done { id: 2 });
    p.acked(sent);
    assert_eq!(guard.log().bytes(), 0);
    p.die();
}

#[test]
fn a_state_directory_takes_what_memory_does_not() {
    let state = tempfile::tempdir().unwrap();
    let backup = Backup::start(Security::Insecure, Some(state.path().to_owned()));
    let (mut p, guard) = protected(&backup);
    let piece: Vec<u8> = (0..100_000).map(|i| (i % 249) as u8).collect();
    let mut n = 0;
    for _ in 0..50 {
        n = p.drain(&piece);
    }
    p.acked(n);
    assert!(guard.log().memory() <= LOG_CAP);
    let kept = whole_log(&guard);
    assert!(kept.len() == 5_000_000 && kept.chunks(100_000).all(|c| c == piece));
    p.die();
    drop((guard, backup));
    let left: Vec<_> = std::fs::read_dir(state.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["redis-server.generation"]);
}

/// `/dev/full` is no directory, so a full disk is made of a small tmpfs in a mount namespace of its own.
#[test]
fn a_full_state_directory_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let inside = thread::spawn(move || in_small_tmpfs(&path));
    match inside.join().unwrap() {
        Some(e) => assert!(matches!(&e, StoreError::StateFull { .. }), "{e}"),
        None => eprintln!("not root: the full disk is not tested"),
    }
}

fn in_small_tmpfs(dir: &Path) -> Option<StoreError> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    // Of this thread alone, which ends with the test; so do namespace and mount.
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).ok()?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .ok()?;
    mount(
        Some("tmpfs"),
        dir,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=2m"),
    )
    .ok()?;
    let spill = backup::store::Spill::new(dir).unwrap();
    let mut log = backup::store::LogStore::new(1 << 20, Some(spill));
    (0..100).find_map(|i| log.append(1, i * 100_000, &[1; 100_000]).err())
}

#[test]
fn a_bad_checkpoint_leaves_the_one_before() {
    let backup = Backup::start(Security::Insecure, None);
    let (mut p, guard) = protected(&backup);
    for (id, base, image) in [
        (2, Some(7), vec![0; 9]),
        (2, Some(1), vec![0; 9]),
        (3, None, vec![0; 2 << 20]),
    ] {
        assert!(matches!(
            p.checkpoint(id, base, &image),
            Commit::Refused { .. }
        ));
        assert_eq!(guard.image().begin.as_ref().map(|b| b.id), Some(1));
    }
    // Half a checkpoint, then the next.
    let begin = p.begin(4, Some(1), p.position, b"four");
    p.checkpoints.begin(&begin).unwrap();
    p.checkpoints.chunk(b"fo").unwrap();
    assert_eq!(p.checkpoint(5, Some(1), b"five"), Commit::Done { id: 5 });
    assert_eq!(guard.image().image.links().len(), 2);
    p.die();
}
