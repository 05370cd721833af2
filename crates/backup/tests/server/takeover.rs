//! Loss, takeover, fencing, and the ends that are no loss.

use backup::Event;
use backup::arbiter::{Phase, TakeoverError};
use backup::detector::Cause;
use backup::guard::LiveError;
use stream::Nanos;
use stream::checkpoint::Commit;
use stream::control::{self, Request, Response};
use stream::hello::{Channel, Hello, Refusal};
use stream::keys::Security;

use crate::bed::{Backup, QUIET, WITHIN, hello, protected, tls, whole_log};

#[test]
fn a_lost_primary_is_taken_over_and_fenced_for_good() {
    let state = tempfile::tempdir().unwrap();
    let backup = Backup::start(tls(), Some(state.path().to_owned()));
    let (mut p, guard) = protected(&backup);
    assert_eq!(p.generation, 1);
    let n = p.drain(b"first");
    p.acked(n);
    assert_eq!(p.checkpoint(2, Some(1), b"change"), Commit::Done { id: 2 });
    let n = p.drain(b"second");
    p.acked(n);
    p.die();

    assert!(matches!(backup.event(), Event::Suspected(_)));
    assert_eq!(guard.suspicion().unwrap().cause, Cause::Lost);
    let attempt = guard.take_over().unwrap();
    assert!(matches!(
        guard.take_over(),
        Err(TakeoverError::Phase(Phase::TakingOver))
    ));
    assert_eq!(whole_log(&guard), b"second");
    assert_eq!(guard.image().begin.as_ref().map(|b| b.id), Some(2));
    assert_eq!(
        guard.image().image.links(),
        [(1, b"image".to_vec()), (2, b"change".to_vec())]
    );
    let clear = attempt.clear_at();
    assert!(clear > Nanos(0));
    attempt.wait_until_clear();
    assert!(Nanos::now() >= clear);
    attempt.confirm().unwrap();
    assert_eq!(attempt.go_live().unwrap(), 2);

    // The old primary, healed: under its own generation, as any connection of its run, and as a new run.
    let old = Hello {
        generation: 1,
        ..hello(Channel::Heartbeat)
    };
    assert_eq!(
        backup.refusal(&old),
        Refusal::StaleGeneration { theirs: 1, ours: 2 }
    );
    let again = Hello {
        session: 6,
        ..old.clone()
    };
    assert_eq!(
        backup.refusal(&again),
        Refusal::StaleGeneration { theirs: 1, ours: 2 }
    );
    let other = Hello {
        session: 7,
        ..hello(Channel::Log)
    };
    assert!(matches!(backup.refusal(&other), Refusal::NameTaken { .. }));

    // And after a restart of the backup, which has forgotten everything but the generation.
    drop(backup);
    let backup = Backup::start(Security::Insecure, Some(state.path().to_owned()));
    let old = Hello {
        channel: Channel::Log,
        ..old
    };
    assert_eq!(
        backup.refusal(&old),
        Refusal::StaleGeneration { theirs: 1, ours: 2 }
    );
    assert_eq!(
        backup
            .connect(&hello(Channel::Log))
            .unwrap()
            .welcome
            .generation,
        3,
        "a new container"
    );
}

#[test]
fn silence_is_noticed_and_a_live_primary_cannot_be_overrun() {
    let backup = Backup::start(Security::Insecure, None);
    let (p, guard) = protected(&backup);
    // The operator's own takeover of a healthy primary still waits for the promise.
    let attempt = guard.take_over().unwrap();
    let (attempt, e) = attempt.go_live().map(|_| ()).unwrap_err();
    assert!(matches!(e, LiveError::Arbiter(_)), "{e}");
    attempt.wait_until_clear();
    assert!(
        !p.pulse.lease().is_live(Nanos::now()),
        "the lease ended before the promise did"
    );
    assert_eq!(attempt.go_live().unwrap(), 2);
    p.beats.join().unwrap().unwrap();
    assert_eq!(p.pulse.lease().fenced(), Some(2));
}

#[test]
fn a_takeover_called_off_gives_everything_back() {
    let backup = Backup::start(tls(), None);
    let (mut p, guard) = protected(&backup);
    let attempt = guard.take_over().unwrap();
    let n = p.drain(b"meanwhile");
    assert_eq!(p.acks.recv(Some(QUIET)).unwrap(), None);
    assert!(matches!(
        p.checkpoint(2, Some(1), b"x"),
        Commit::Refused { id: 2, .. }
    ));
    attempt.wait_until_clear();
    assert!(!p.pulse.lease().is_live(Nanos::now()));
    assert!(attempt.confirm().is_err(), "the primary was heard");
    drop(attempt);
    p.acked(n);
    while p.outcomes.try_recv().is_ok() {}
    p.wait_for_lease();
    assert_eq!(p.checkpoint(3, Some(1), b"y"), Commit::Done { id: 3 });
    assert_eq!((guard.generation(), guard.phase()), (1, Phase::Guarding));
    assert_eq!(guard.suspicion(), None);
    p.die();
}

#[test]
fn a_primary_lost_while_a_takeover_is_called_off_is_still_suspected() {
    let backup = Backup::start(tls(), None);
    let (p, guard) = protected(&backup);
    let attempt = guard.take_over().unwrap();
    p.pulse.beat().unwrap();
    p.die();
    assert!(matches!(backup.event(), Event::Suspected(_)));
    drop(attempt);
    assert_eq!(guard.suspicion().unwrap().cause, Cause::Lost);
    assert!(guard.take_over().is_ok());
}

#[test]
fn a_primary_that_gives_up_need_not_be_waited_for() {
    let backup = Backup::start(Security::Insecure, None);
    let (p, guard) = protected(&backup);
    p.pulse.give_up().unwrap();
    assert!(matches!(backup.event(), Event::Suspected(_)));
    assert_eq!(guard.suspicion().unwrap().cause, Cause::Yielded);
    let attempt = guard.take_over().unwrap();
    p.pulse.beat().unwrap();
    attempt.confirm().unwrap();
    assert_eq!(attempt.go_live().unwrap(), 2);
}

#[test]
fn an_orderly_end_is_no_loss() {
    let backup = Backup::start(Security::Insecure, None);
    let (mut p, guard) = protected(&backup);
    control::send(&p.control.sender, 1, &Request::Status).unwrap();
    let status: Response = control::recv(&mut p.control.receiver, Some(WITHIN))
        .unwrap()
        .unwrap();
    assert!(matches!(status, Response::Status(h) if h.checkpoint == Some(1) && h.generation == 1));
    control::send(&p.control.sender, 1, &Request::Ended { status: 3 }).unwrap();
    let done: Response = control::recv(&mut p.control.receiver, Some(WITHIN))
        .unwrap()
        .unwrap();
    assert_eq!(done, Response::Done);
    assert!(matches!(backup.event(), Event::Ended(_, 3)));
    p.die_quietly();
    assert_eq!(guard.phase(), Phase::Ended);
    let again = Hello {
        session: 8,
        ..hello(Channel::Log)
    };
    assert_eq!(backup.connect(&again).unwrap().welcome.generation, 2);
    assert!(
        matches!(backup.event(), Event::Connected(_)),
        "no suspicion in between"
    );
}
