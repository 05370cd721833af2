//! A primary whose backup is started again.

use stream::checkpoint::Commit;
use stream::hello::{Channel, Hello, Refusal};
use stream::keys::Security;

use crate::bed::{Backup, Primary, QUIET, WITHIN, hello, protected, whole_log};

#[test]
fn a_primary_joins_the_next_run_of_its_own_backup_and_no_other() {
    let state = tempfile::tempdir().unwrap();
    let start = || Backup::start(Security::Insecure, Some(state.path().to_owned()));
    let backup = start();
    let (mut before, _guard) = protected(&backup);
    let n = before.drain(b"before");
    before.acked(n);
    let again = Hello {
        session: 6,
        generation: before.generation,
        ..hello(Channel::Log)
    };
    assert!(
        matches!(backup.refusal(&again), Refusal::NameTaken { .. }),
        "it lives"
    );
    drop(backup);
    before.die_quietly();

    let stranger = Backup::start(Security::Insecure, None);
    assert_eq!(
        stranger.refusal(&again),
        Refusal::OtherBackup {
            name: again.name.clone(),
            theirs: 1,
            ours: 0
        }
    );

    // One of another host, that guarded a container of the same name.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Backup::start(Security::Insecure, Some(elsewhere.path().to_owned()));
    let namesake = Hello {
        run: 10,
        ..hello(Channel::Log)
    };
    assert_eq!(other.connect(&namesake).unwrap().welcome.generation, 1);
    drop(other);
    let other = Backup::start(Security::Insecure, Some(elsewhere.path().to_owned()));
    assert_eq!(
        other.refusal(&again),
        Refusal::OtherBackup {
            name: again.name.clone(),
            theirs: 1,
            ours: 1
        }
    );

    let backup = start();
    let mut after = Primary::connect_as(&backup, &again);
    assert_eq!(after.generation, 1);
    // It is told where the stream stands, and holds nothing of what lies before.
    after.position = 6;
    after.log.records(1, 6, &[]).unwrap();
    let n = after.drain(b"after");
    assert_eq!(after.acks.recv(Some(QUIET)).unwrap(), None);
    let begin = after.begin(7, None, 6, b"image");
    after.checkpoints.begin(&begin).unwrap();
    after.checkpoints.chunk(b"image").unwrap();
    after.checkpoints.finish().unwrap();
    let committed = after.commits.recv(Some(WITHIN)).unwrap();
    assert_eq!(committed, Some(Commit::Done { id: 7 }));
    after.acked(n);
    after.wait_for_lease();
    let guard = backup.handle.guards().remove(0);
    assert_eq!(whole_log(&guard), b"after");
    after.die();
}
