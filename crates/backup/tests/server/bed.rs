//! A backup, and a primary with every connection.

use core::time::Duration;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use backup::server::Handle;
use backup::store::Chain;
use backup::{Event, Guard, Options, Server};
use eventlog::codec;
use eventlog::handover::Details;
use stream::StreamError;
use stream::checkpoint::{self, Begin, CheckpointSender, Commit, CommitReceiver, Cut};
use stream::connect::{self, Connection};
use stream::heartbeat::{Heartbeats, Pulse};
use stream::hello::{Channel, Hello, Refusal, Timing};
use stream::keys::{self, Security};
use stream::lease::{Lease, Outcome};
use stream::log::{self, AckReceiver, LogSender};

pub(crate) const WITHIN: Duration = Duration::from_secs(10);

pub(crate) const QUIET: Duration = Duration::from_millis(30);

pub(crate) const LOG_CAP: u64 = 1 << 20;

pub(crate) struct Backup {
    pub(crate) addr: SocketAddr,
    pub(crate) handle: Handle<Chain>,
    pub(crate) events: Receiver<Event<Chain>>,
    pub(crate) thread: Option<JoinHandle<()>>,
    pub(crate) security: Security,
}

impl Backup {
    pub(crate) fn start(security: Security, state: Option<PathBuf>) -> Self {
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

    pub(crate) fn connect(&self, hello: &Hello) -> Result<Connection, StreamError> {
        connect::connect(self.addr, &self.security, hello, WITHIN)
    }

    pub(crate) fn event(&self) -> Event<Chain> {
        self.events.recv_timeout(WITHIN).unwrap()
    }

    pub(crate) fn refusal(&self, hello: &Hello) -> Refusal {
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

pub(crate) fn hello(channel: Channel) -> Hello {
    Hello {
        channel,
        name: "redis-server".to_owned(),
        session: 5,
        run: 9,
        generation: 0,
        timing: Timing {
            heartbeat: Duration::from_millis(5),
            detect: Duration::from_millis(150),
        },
        host: vec![("kernel".to_owned(), "6.18".to_owned())],
        details: codec::encode(&Details::default()).unwrap(),
    }
}

/// A primary with every connection; its heartbeats run on a thread.
pub(crate) struct Primary {
    pub(crate) log: LogSender,
    pub(crate) acks: AckReceiver,
    pub(crate) checkpoints: CheckpointSender,
    pub(crate) commits: CommitReceiver,
    pub(crate) control: Connection,
    pub(crate) pulse: Pulse,
    pub(crate) beats: JoinHandle<Result<(), StreamError>>,
    pub(crate) outcomes: Receiver<Outcome>,
    pub(crate) position: u64,
    pub(crate) drain: u64,
    pub(crate) generation: u64,
}

impl Primary {
    pub(crate) fn connect(backup: &Backup) -> Self {
        Self::connect_as(backup, &hello(Channel::Log))
    }

    /// The run that `hello` introduces.
    pub(crate) fn connect_as(backup: &Backup, hello: &Hello) -> Self {
        let open = |channel| {
            let hello = Hello {
                channel,
                ..hello.clone()
            };
            backup.connect(&hello).unwrap()
        };
        let (log, acks) = log::primary(open(Channel::Log));
        let (checkpoints, commits) = checkpoint::primary(open(Channel::Checkpoint));
        let control = open(Channel::Control);
        let heartbeat = open(Channel::Heartbeat);
        let generation = heartbeat.welcome.generation;
        let lease = Lease::new(hello.timing, heartbeat.welcome);
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

    pub(crate) fn drain(&mut self, bytes: &[u8]) -> u64 {
        self.log.records(1, self.position, &[bytes]).unwrap();
        self.position += bytes.len() as u64;
        self.drain += 1;
        self.log.drain(self.drain).unwrap();
        self.drain
    }

    pub(crate) fn acked(&mut self, drain: u64) {
        while self
            .acks
            .recv(Some(WITHIN))
            .unwrap()
            .expect("an acknowledgement in time")
            < drain
        {}
    }

    pub(crate) fn begin(&self, id: u64, base: Option<u64>, position: u64, image: &[u8]) -> Begin {
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

    pub(crate) fn checkpoint(&mut self, id: u64, base: Option<u64>, image: &[u8]) -> Commit {
        let begin = self.begin(id, base, self.position, image);
        self.checkpoints.begin(&begin).unwrap();
        self.checkpoints.chunk(image).unwrap();
        self.checkpoints.finish().unwrap();
        self.commits
            .recv(Some(WITHIN))
            .unwrap()
            .expect("an answer in time")
    }

    pub(crate) fn wait_for_lease(&self) {
        loop {
            if let Outcome::Extended { .. } = self.outcomes.recv_timeout(WITHIN).unwrap() {
                return;
            }
        }
    }

    /// All connections end at once, as when the shim is killed.
    pub(crate) fn die(self) {
        self.pulse.stop();
        self.log.shutdown();
        self.checkpoints.shutdown();
        self.control.sender.shutdown();
        self.beats.join().unwrap().unwrap();
    }

    /// The backup has ended the connections already.
    pub(crate) fn die_quietly(self) {
        self.pulse.stop();
        drop(self.beats.join().unwrap());
    }
}

pub(crate) fn tls() -> Security {
    let dir = tempfile::tempdir().unwrap();
    keys::generate(dir.path()).unwrap();
    Security::load(dir.path()).unwrap()
}

pub(crate) fn protected(backup: &Backup) -> (Primary, Arc<Guard<Chain>>) {
    let mut p = Primary::connect(backup);
    assert!(matches!(backup.event(), Event::Connected(_)));
    assert_eq!(p.checkpoint(1, None, b"image"), Commit::Done { id: 1 });
    let Event::Protected(guard) = backup.event() else {
        panic!()
    };
    p.wait_for_lease();
    (p, guard)
}

pub(crate) fn whole_log(guard: &Guard<Chain>) -> Vec<u8> {
    let log = guard.log();
    let (mut out, start) = (
        Vec::new(),
        log.streams().find(|s| s.stream == 1).unwrap().start,
    );
    log.read(1, start, usize::MAX, &mut out).unwrap();
    out
}
