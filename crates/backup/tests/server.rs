//! A whole backup over TCP on loopback: protection, loss, takeover, revocation, fencing, back-pressure.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped here fails the test"
)]

use core::time::Duration;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use backup::arbiter::{Phase, TakeoverError};
use backup::detector::Cause;
use backup::guard::{LiveError, ServeError};
use backup::server::Handle;
use backup::store::{Chain, StoreError};
use backup::{Event, Guard, Options, Server};
use eventlog::frame::{Header, Kind, LENGTH_AT};
use stream::checkpoint::{self, Begin, CheckpointSender, Commit, CommitReceiver, Cut};
use stream::connect::{self, Connection};
use stream::control::{self, Request, Response};
use stream::heartbeat::{Heartbeats, Pulse};
use stream::hello::{Channel, Hello, Refusal, Timing};
use stream::keys::{self, Security};
use stream::lease::{Lease, Outcome};
use stream::log::{self, AckReceiver, LogSender};
use stream::{Nanos, StreamError};

const WITHIN: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(30);
const LOG_CAP: u64 = 1 << 20;

struct Backup {
    addr: SocketAddr,
    handle: Handle<Chain>,
    events: Receiver<Event<Chain>>,
    thread: Option<JoinHandle<()>>,
    security: Security,
}

impl Backup {
    fn start(security: Security, state: Option<PathBuf>) -> Self {
        let options = Options {
            security: security.clone(),
            state,
            log_cap: LOG_CAP,
            image_cap: 1 << 20,
            max_containers: 2,
            host: vec![("kernel".to_owned(), "6.18".to_owned())],
        };
        let (tx, events) = mpsc::channel();
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind(any, options, |o| Chain::new(4 * o.image_cap), tx).unwrap();
        let (addr, handle) = (server.addr(), server.handle());
        let thread = Some(thread::spawn(move || server.run().unwrap()));
        Self {
            addr,
            handle,
            events,
            thread,
            security,
        }
    }

    fn connect(&self, hello: &Hello) -> Result<Connection, StreamError> {
        connect::connect(self.addr, &self.security, hello, WITHIN)
    }

    fn event(&self) -> Event<Chain> {
        self.events.recv_timeout(WITHIN).unwrap()
    }

    fn refusal(&self, hello: &Hello) -> Refusal {
        match self.connect(hello).map(|_| ()).unwrap_err() {
            StreamError::Refused { refusal, .. } => refusal,
            other => panic!("{other}"),
        }
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(t) = self.thread.take() {
            t.join().unwrap();
        }
    }
}

fn hello(channel: Channel) -> Hello {
    Hello {
        channel,
        name: "redis-server".to_owned(),
        session: 5,
        generation: 0,
        timing: Timing {
            heartbeat: Duration::from_millis(5),
            detect: Duration::from_millis(150),
        },
        host: vec![("kernel".to_owned(), "6.18".to_owned())],
        details: Vec::new(),
    }
}

/// A primary with every connection; its heartbeats run on a thread.
struct Primary {
    log: LogSender,
    acks: AckReceiver,
    checkpoints: CheckpointSender,
    commits: CommitReceiver,
    control: Connection,
    pulse: Pulse,
    beats: JoinHandle<Result<(), StreamError>>,
    outcomes: Receiver<Outcome>,
    position: u64,
    drain: u64,
    generation: u64,
}

impl Primary {
    fn connect(backup: &Backup) -> Self {
        let (log, acks) = log::primary(backup.connect(&hello(Channel::Log)).unwrap());
        let (checkpoints, commits) =
            checkpoint::primary(backup.connect(&hello(Channel::Checkpoint)).unwrap());
        let control = backup.connect(&hello(Channel::Control)).unwrap();
        let heartbeat = backup.connect(&hello(Channel::Heartbeat)).unwrap();
        let generation = heartbeat.welcome.generation;
        let lease = Lease::new(hello(Channel::Heartbeat).timing, heartbeat.welcome);
        let beats = Heartbeats::new(heartbeat, lease);
        let pulse = beats.pulse();
        let (tx, outcomes) = mpsc::channel();
        let beats = thread::spawn(move || beats.run(|o| tx.send(o).unwrap_or_default()));
        Self {
            log,
            acks,
            checkpoints,
            commits,
            control,
            pulse,
            beats,
            outcomes,
            position: 0,
            drain: 0,
            generation,
        }
    }

    fn drain(&mut self, bytes: &[u8]) -> u64 {
        self.log.records(1, self.position, &[bytes]).unwrap();
        self.position += bytes.len() as u64;
        self.drain += 1;
        self.log.drain(self.drain).unwrap();
        self.drain
    }

    fn acked(&mut self, drain: u64) {
        while self
            .acks
            .recv(Some(WITHIN))
            .unwrap()
            .expect("an acknowledgement in time")
            < drain
        {}
    }

    fn begin(&self, id: u64, base: Option<u64>, position: u64, image: &[u8]) -> Begin {
        let cut = Cut {
            streams: vec![(1, position)],
            next_stream: 2,
        };
        Begin {
            id,
            base,
            cut,
            image_len: image.len() as u64,
        }
    }

    fn checkpoint(&mut self, id: u64, base: Option<u64>, image: &[u8]) -> Commit {
        let begin = self.begin(id, base, self.position, image);
        self.checkpoints.begin(&begin).unwrap();
        self.checkpoints.chunk(image).unwrap();
        self.checkpoints.finish().unwrap();
        self.commits
            .recv(Some(WITHIN))
            .unwrap()
            .expect("an answer in time")
    }

    fn wait_for_lease(&self) {
        loop {
            if let Outcome::Extended { .. } = self.outcomes.recv_timeout(WITHIN).unwrap() {
                return;
            }
        }
    }

    /// All connections end at once, as when the shim is killed.
    fn die(self) {
        self.pulse.stop();
        self.log.shutdown();
        self.checkpoints.shutdown();
        self.control.sender.shutdown();
        self.beats.join().unwrap().unwrap();
    }
}

fn tls() -> Security {
    let dir = tempfile::tempdir().unwrap();
    keys::generate(dir.path()).unwrap();
    Security::load(dir.path()).unwrap()
}

fn protected(backup: &Backup) -> (Primary, Arc<Guard<Chain>>) {
    let mut p = Primary::connect(backup);
    assert!(matches!(backup.event(), Event::Connected(_)));
    assert_eq!(p.checkpoint(1, None, b"image"), Commit::Done { id: 1 });
    let Event::Protected(guard) = backup.event() else {
        panic!()
    };
    p.wait_for_lease();
    (p, guard)
}

fn whole_log(guard: &Guard<Chain>) -> Vec<u8> {
    let log = guard.log();
    let (mut out, start) = (
        Vec::new(),
        log.streams().find(|s| s.stream == 1).unwrap().start,
    );
    log.read(1, start, usize::MAX, &mut out).unwrap();
    out
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

    let Event::Suspected(_, suspicion) = backup.event() else {
        panic!()
    };
    assert_eq!(suspicion.cause, Cause::Lost);
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
    drop(attempt);
    p.acked(n);
    while p.outcomes.try_recv().is_ok() {}
    p.wait_for_lease();
    assert_eq!(p.checkpoint(3, Some(1), b"y"), Commit::Done { id: 3 });
    assert_eq!((guard.generation(), guard.phase()), (1, Phase::Guarding));
    p.die();
}

#[test]
fn a_primary_that_gives_up_need_not_be_waited_for() {
    let backup = Backup::start(Security::Insecure, None);
    let (p, guard) = protected(&backup);
    p.pulse.give_up().unwrap();
    let Event::Suspected(_, suspicion) = backup.event() else {
        panic!()
    };
    assert_eq!(suspicion.cause, Cause::Yielded);
    assert_eq!(guard.take_over().unwrap().go_live().unwrap(), 2);
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

impl Primary {
    /// The backup has ended the connections already.
    fn die_quietly(self) {
        self.pulse.stop();
        drop(self.beats.join().unwrap());
    }
}

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
fn what_does_not_fit_is_refused() {
    let backup = Backup::start(Security::Insecure, None);
    let first = backup.connect(&hello(Channel::Log)).unwrap();
    assert_eq!(
        backup.refusal(&hello(Channel::Log)),
        Refusal::Twice {
            channel: Channel::Log
        }
    );
    let unknown = Hello {
        session: 1,
        name: "other".to_owned(),
        ..hello(Channel::Checkpoint)
    };
    assert!(matches!(
        backup.refusal(&unknown),
        Refusal::UnknownSession { .. }
    ));
    let kernel = Hello {
        host: vec![("kernel".to_owned(), "6.1".to_owned())],
        ..hello(Channel::Log)
    };
    assert!(matches!(backup.refusal(&kernel), Refusal::Host { .. }));
    let taken = Hello {
        session: 9,
        ..hello(Channel::Log)
    };
    assert!(matches!(backup.refusal(&taken), Refusal::NameTaken { .. }));
    let second = backup
        .connect(&Hello {
            name: "second".to_owned(),
            ..hello(Channel::Log)
        })
        .unwrap();
    let third = Hello {
        name: "third".to_owned(),
        ..hello(Channel::Log)
    };
    assert_eq!(backup.refusal(&third), Refusal::Full { containers: 2 });
    // What was never protected is gone with its primary, and leaves room.
    drop((first, second));
    let admitted = std::iter::repeat_with(|| backup.connect(&third)).find_map(Result::ok);
    assert_eq!(admitted.unwrap().welcome.generation, 1);
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

/// Strangers send nonsense, half a frame, a huge header, or nothing at all, and go.
#[test]
fn nonsense_does_not_disturb_the_others() {
    for security in [Security::Insecure, tls()] {
        let backup = Backup::start(security, None);
        let (mut p, _guard) = protected(&backup);
        let mut head = Header {
            kind: Kind::Hello,
            generation: 0,
            stream: 0,
            position: 0,
        }
        .seal(&[])
        .unwrap();
        head[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let noise: Vec<u8> = (0..70_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &head,
            &head[..20],
            &noise,
            &[],
        ] {
            let mut socket = TcpStream::connect(backup.addr).unwrap();
            // The backup may hang up before everything is sent.
            let _ = socket.write_all(bytes);
        }
        let n = p.drain(b"still here");
        p.acked(n);
        p.die();
    }
}

#[test]
fn a_gap_in_the_log_ends_its_connection() {
    let backup = Backup::start(Security::Insecure, None);
    let (mut p, _guard) = protected(&backup);
    p.drain(b"abc");
    p.position += 1;
    p.drain(b"def");
    let Event::Failed(_, channel, e) = backup.event() else {
        panic!()
    };
    assert_eq!(channel, Channel::Log);
    assert!(
        matches!(
            e,
            ServeError::Store(StoreError::Gap {
                expected: 3,
                found: 4,
                ..
            })
        ),
        "{e}"
    );
    let told = std::iter::repeat_with(|| p.acks.recv(Some(WITHIN))).find_map(Result::err);
    assert!(matches!(told, Some(StreamError::Closed { .. })), "{told:?}");
    p.die();
}
