//! Whole connections over TCP on loopback, encrypted and plain, with good peers and bad ones.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped here fails the test"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use eventlog::change::Change;
use eventlog::codec;
use eventlog::frame::{Decoder, Header, Kind, MAX_BODY, VERSION, VERSION_AT};
use stream::checkpoint::{self, Batch, Begin, Commit, Cut, Part};
use stream::connect::{self, Connection};
use stream::control::{self, Request, Response};
use stream::hello::{Channel, Hello, Refusal, Timing, Welcome};
use stream::keys::{self, Security};
use stream::lease::{BeatAnswer, Heartbeat, Lease, Outcome, Verdict};
use stream::log::{self, Entry};
use stream::{Nanos, StreamError, heartbeat};

const WITHIN: Duration = Duration::from_secs(5);
const WELCOME: Welcome = Welcome {
    generation: 7,
    instance: 99,
};

fn hello(channel: Channel) -> Hello {
    Hello {
        channel,
        name: "redis-server".to_owned(),
        session: 5,
        run: 9,
        generation: 0,
        timing: Timing {
            heartbeat: Duration::from_millis(5),
            detect: Duration::from_millis(500),
        },
        host: Vec::new(),
        details: b"details".to_vec(),
    }
}

fn tls() -> Security {
    let dir = tempfile::tempdir().unwrap();
    keys::generate(dir.path()).unwrap();
    Security::load(dir.path()).unwrap()
}

fn both() -> [Security; 2] {
    [Security::Insecure, tls()]
}

fn listener() -> (TcpListener, SocketAddr) {
    let l = connect::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = l.local_addr().unwrap();
    (l, addr)
}

/// Both ends of a connection whose keys fit.
fn pair(security: &Security, channel: Channel) -> (Connection, Connection) {
    let (l, addr) = listener();
    let theirs = security.clone();
    let backup = thread::spawn(move || {
        let (socket, peer) = l.accept().unwrap();
        let pending = connect::accept(socket, peer, &theirs, WITHIN).unwrap();
        let (hello, connection) = pending.welcome(WELCOME).unwrap();
        assert_eq!(hello.details, b"details");
        connection
    });
    let primary = connect::connect(addr, security, &hello(channel), WITHIN).unwrap();
    assert_eq!(primary.welcome, WELCOME);
    (primary, backup.join().unwrap())
}

/// What each side says when a primary with `ours` meets a backup with `theirs`.
fn meet(ours: &Security, theirs: &Security) -> (StreamError, StreamError) {
    let (l, addr) = listener();
    let theirs = theirs.clone();
    let backup = thread::spawn(move || {
        let (socket, peer) = l.accept().unwrap();
        connect::accept(socket, peer, &theirs, WITHIN)
            .map(|_| ())
            .unwrap_err()
    });
    let primary = connect::connect(addr, ours, &hello(Channel::Log), WITHIN)
        .map(|_| ())
        .unwrap_err();
    (primary, backup.join().unwrap())
}

#[test]
fn batches_cross_and_are_acknowledged() {
    for security in both() {
        let (primary, backup) = pair(&security, Channel::Log);
        let (mut sender, mut acks) = log::primary(primary);
        let (ack, mut receiver) = log::backup(backup);
        let server = thread::spawn(move || {
            let mut got: Vec<u8> = Vec::new();
            loop {
                match receiver.recv(None) {
                    Ok(Some(Entry::Records {
                        stream,
                        position,
                        bytes,
                    })) => {
                        assert_eq!((stream, position), (3, got.len() as u64));
                        got.extend_from_slice(bytes);
                    }
                    Ok(Some(Entry::Drain(n))) => ack.ack(n).unwrap(),
                    Ok(None) => panic!("no time-out was asked for"),
                    Err(StreamError::Closed { .. }) => return got,
                    Err(e) => panic!("{e}"),
                }
            }
        });
        let mut expected = Vec::new();
        assert!(matches!(acks.recv(Some(Duration::ZERO)), Ok(None)));
        for n in 1..=300u64 {
            let run: Vec<u8> = (0..n * 7).map(|i| (i * n) as u8).collect();
            let (a, b) = run.split_at(run.len() / 3);
            sender.records(3, expected.len() as u64, &[a, b]).unwrap();
            expected.extend_from_slice(&run);
            sender.drain(n).unwrap();
            assert_eq!(acks.recv(Some(WITHIN)).unwrap(), Some(n));
        }
        let big: Vec<u8> = (0..2 * MAX_BODY + 17).map(|i| (i % 251) as u8).collect();
        sender.records(3, expected.len() as u64, &[&big]).unwrap();
        expected.extend_from_slice(&big);
        sender.drain(301).unwrap();
        assert_eq!(acks.recv(Some(WITHIN)).unwrap(), Some(301));
        sender.shutdown();
        assert!(server.join().unwrap() == expected);
    }
}

/// Both directions full at once: a sender that waits for room must not keep its own side from reading.
#[test]
fn full_duplex_does_not_lock_up() {
    for security in both() {
        let (a, b) = pair(&security, Channel::Log);
        let frames = 64;
        let run = |c: Connection| {
            let sender = c.sender.clone();
            let out = thread::spawn(move || {
                for position in 0..frames {
                    let h = Header {
                        kind: Kind::Control,
                        generation: 0,
                        stream: 0,
                        position,
                    };
                    sender.send(&h, &vec![1; MAX_BODY]).unwrap();
                }
            });
            let mut receiver = c.receiver;
            let keep = c.sender;
            let inward = thread::spawn(move || {
                for position in 0..frames {
                    let f = receiver
                        .recv(Some(Duration::from_secs(60)))
                        .unwrap()
                        .unwrap();
                    assert_eq!((f.header.position, f.body.len()), (position, MAX_BODY));
                }
                drop(keep);
            });
            [out, inward]
        };
        for t in run(a).into_iter().chain(run(b)) {
            t.join().unwrap();
        }
    }
}

#[test]
fn frames_out_of_place_are_refused() {
    let (primary, backup) = pair(&Security::Insecure, Channel::Log);
    let (_ack, mut receiver) = log::backup(backup);
    let (mut sender, _acks) = log::primary(primary);
    sender.drain(2).unwrap();
    let e = receiver.recv(Some(WITHIN)).unwrap_err();
    assert!(
        matches!(
            e,
            StreamError::Order {
                found: 2,
                expected: 1,
                ..
            }
        ),
        "{e}"
    );

    let (primary, backup) = pair(&Security::Insecure, Channel::Log);
    let (_ack, mut receiver) = log::backup(backup);
    primary
        .sender
        .send(
            &Header {
                kind: Kind::Drain,
                generation: 6,
                stream: 0,
                position: 1,
            },
            &[],
        )
        .unwrap();
    let e = receiver.recv(Some(WITHIN)).unwrap_err();
    assert!(
        matches!(
            e,
            StreamError::Generation {
                theirs: 6,
                ours: 7,
                ..
            }
        ),
        "{e}"
    );

    let (primary, backup) = pair(&Security::Insecure, Channel::Log);
    let (_ack, mut receiver) = log::backup(backup);
    primary
        .sender
        .send_bytes(b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    let e = receiver.recv(Some(WITHIN)).unwrap_err();
    assert!(matches!(e, StreamError::Frame { .. }), "{e}");
}

#[test]
fn another_key_is_one_sentence_on_both_sides() {
    let (primary, backup) = meet(&tls(), &tls());
    assert!(matches!(primary, StreamError::WrongKey { .. }), "{primary}");
    assert!(matches!(backup, StreamError::WrongKey { .. }), "{backup}");
}

/// A backup that would take any client still meets a primary that checks, and the other way round.
#[test]
fn an_encrypted_side_never_falls_back() {
    let (primary, backup) = meet(&tls(), &Security::Insecure);
    assert!(
        matches!(primary, StreamError::PeerIsPlain { .. }),
        "{primary}"
    );
    assert!(
        matches!(backup, StreamError::PeerIsEncrypted { .. }),
        "{backup}"
    );
    let (primary, backup) = meet(&Security::Insecure, &tls());
    assert!(
        matches!(primary, StreamError::PeerIsEncrypted { .. }),
        "{primary}"
    );
    assert!(
        matches!(backup, StreamError::PeerIsPlain { .. }),
        "{backup}"
    );
}

#[test]
fn a_refusal_reaches_the_primary() {
    for security in both() {
        let (l, addr) = listener();
        let theirs = security.clone();
        let backup = thread::spawn(move || {
            let (socket, peer) = l.accept().unwrap();
            let pending = connect::accept(socket, peer, &theirs, WITHIN).unwrap();
            pending
                .refuse(Refusal::StaleGeneration { theirs: 1, ours: 2 })
                .unwrap();
        });
        let e = connect::connect(addr, &security, &hello(Channel::Log), WITHIN)
            .map(|_| ())
            .unwrap_err();
        let stale = Refusal::StaleGeneration { theirs: 1, ours: 2 };
        assert!(
            matches!(&e, StreamError::Refused { refusal, .. } if *refusal == stale),
            "{e}"
        );
        backup.join().unwrap();
    }
}

#[test]
fn a_bad_hello_is_answered_with_the_reason() {
    let (l, addr) = listener();
    let backup = thread::spawn(move || {
        let (socket, peer) = l.accept().unwrap();
        connect::accept(socket, peer, &Security::Insecure, WITHIN)
            .map(|_| ())
            .unwrap_err()
    });
    let bad = Hello {
        name: "../etc".to_owned(),
        ..hello(Channel::Log)
    };
    let e = connect::connect(addr, &Security::Insecure, &bad, WITHIN)
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(
            &e,
            StreamError::Refused {
                refusal: Refusal::Name { .. },
                ..
            }
        ),
        "{e}"
    );
    assert!(matches!(
        backup.join().unwrap(),
        StreamError::Refused { .. }
    ));
}

/// The bytes of a hello of another version, sent by hand; and such an answer.
#[test]
fn another_version_is_one_sentence_on_both_sides() {
    let other = |body: &[u8]| {
        let mut b = Vec::new();
        Header {
            kind: Kind::Hello,
            generation: 0,
            stream: 0,
            position: 0,
        }
        .encode(&[body], &mut b)
        .unwrap();
        b[VERSION_AT] = 250;
        b
    };
    let (l, addr) = listener();
    let backup = thread::spawn(move || {
        let (socket, peer) = l.accept().unwrap();
        connect::accept(socket, peer, &Security::Insecure, WITHIN)
            .map(|_| ())
            .unwrap_err()
    });
    let mut socket = TcpStream::connect(addr).unwrap();
    socket
        .write_all(&other(&codec::encode(&hello(Channel::Log)).unwrap()))
        .unwrap();
    let e = backup.join().unwrap();
    assert!(
        matches!(
            e,
            StreamError::Version {
                theirs: 250,
                ours: VERSION,
                ..
            }
        ),
        "{e}"
    );
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let mut decoder = Decoder::new();
    decoder.push(&answer);
    assert_eq!(
        decoder.next_frame().unwrap().unwrap().header.kind,
        Kind::Hello,
        "it says its version"
    );

    let (l, addr) = listener();
    let backup = thread::spawn(move || {
        let (mut socket, _) = l.accept().unwrap();
        let mut decoder = Decoder::new();
        while decoder.next_frame().unwrap().is_none() {
            let n = socket.read(decoder.room()).unwrap();
            decoder.filled(n);
        }
        socket.write_all(&other(&[])).unwrap();
    });
    let e = connect::connect(addr, &Security::Insecure, &hello(Channel::Log), WITHIN)
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(e, StreamError::Version { theirs: 250, .. }), "{e}");
    backup.join().unwrap();
}

#[test]
fn a_silent_peer_does_not_hold_us() {
    for security in both() {
        let (l, addr) = listener();
        let limit = Duration::from_millis(50);
        let e = connect::connect(addr, &security, &hello(Channel::Log), limit)
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(e, StreamError::Timeout { .. }), "{e}");
        let silent = TcpStream::connect(addr).unwrap();
        let accepted = std::iter::from_fn(|| l.accept().ok())
            .find(|(_, p)| *p == silent.local_addr().unwrap());
        let (socket, peer) = accepted.unwrap();
        let e = connect::accept(socket, peer, &security, limit)
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(e, StreamError::Timeout { .. }), "{e}");
    }
}

#[test]
fn nobody_there_and_address_taken_are_named() {
    let (l, addr) = listener();
    assert!(matches!(
        connect::listen(addr),
        Err(StreamError::Listen { .. })
    ));
    drop(l);
    let e = connect::connect(addr, &Security::Insecure, &hello(Channel::Log), WITHIN)
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(e, StreamError::Unreachable { .. }), "{e}");
}

#[test]
fn checkpoints_cross_whole() {
    for security in both() {
        let (primary, backup) = pair(&security, Channel::Checkpoint);
        let server = thread::spawn(move || {
            let Connection {
                sender,
                mut receiver,
                welcome,
            } = backup;
            let (mut image, mut begun, mut files) = (Vec::new(), None, Vec::new());
            loop {
                let frame = receiver.recv(Some(WITHIN)).unwrap().unwrap();
                match checkpoint::decode(&frame).unwrap() {
                    Part::Begin(b) => begun = Some(b),
                    Part::Chunk { offset, bytes } => {
                        assert_eq!(offset, image.len() as u64);
                        image.extend_from_slice(bytes);
                    }
                    Part::Files { changes, len } => {
                        assert!(len <= MAX_BODY);
                        files.extend(changes);
                    }
                    Part::Finish(f) => {
                        let begin: Begin = begun.unwrap();
                        assert_eq!((f.id, f.crc), (begin.id, crc32c::crc32c(&image)));
                        checkpoint::answer(&sender, welcome.generation, &Commit::Done { id: f.id })
                            .unwrap();
                        return (begin, image, files);
                    }
                }
            }
        });
        let image: Vec<u8> = (0..3 * MAX_BODY + 5).map(|i| (i % 253) as u8).collect();
        let cut = Cut {
            streams: vec![(1, 100), (4, 0)],
            next_stream: 6,
        };
        let begin = Begin {
            id: 12,
            base: None,
            cut,
            image_len: image.len() as u64,
        };
        let (mut sender, mut commits) = checkpoint::primary(primary);
        sender.begin(&begin).unwrap();
        let written = |at| Change::Written {
            path: b"/srv/file".to_vec(),
            at: Some(at),
            bytes: vec![at as u8; 300 << 10],
        };
        let mut batch = Batch::default();
        for at in 0..5 {
            batch.add(written(at), &mut sender).unwrap();
        }
        batch.flush(&mut sender).unwrap();
        sender.chunk(&image[..77]).unwrap();
        sender.chunk(&image[77..]).unwrap();
        sender.finish().unwrap();
        assert_eq!(
            commits.recv(Some(WITHIN)).unwrap(),
            Some(Commit::Done { id: 12 })
        );
        let files: Vec<Change> = (0..5).map(written).collect();
        assert!(server.join().unwrap() == (begin, image, files));
    }
}

#[test]
fn control_asks_and_answers() {
    let (mut primary, mut backup) = pair(&tls(), Channel::Control);
    control::send(&primary.sender, 7, &Request::Ended { status: 3 }).unwrap();
    let request: Request = control::recv(&mut backup.receiver, Some(WITHIN))
        .unwrap()
        .unwrap();
    assert_eq!(request, Request::Ended { status: 3 });
    control::send(&backup.sender, 7, &Response::Done).unwrap();
    let response: Response = control::recv(&mut primary.receiver, Some(WITHIN))
        .unwrap()
        .unwrap();
    assert_eq!(response, Response::Done);
}

/// The lease follows the answers; when the backup fences, the loop ends.
#[test]
fn heartbeats_extend_the_lease_until_they_are_fenced() {
    for security in both() {
        let (primary, backup) = pair(&security, Channel::Heartbeat);
        let server = thread::spawn(move || {
            let Connection {
                sender,
                mut receiver,
                ..
            } = backup;
            for n in 1.. {
                let frame = receiver.recv(Some(WITHIN)).unwrap().unwrap();
                let Heartbeat { beat, .. } = codec::decode(frame.body).unwrap();
                assert_eq!((beat.seq, beat.generation), (n, 7));
                let verdict = if n < 5 {
                    Verdict::Granted
                } else {
                    Verdict::Fenced
                };
                let generation = if n < 5 { 7 } else { 8 };
                let answer = BeatAnswer {
                    seq: n,
                    generation,
                    instance: 99,
                    verdict,
                };
                sender
                    .message(&heartbeat::header(generation, n), &answer)
                    .unwrap();
                if n == 5 {
                    return;
                }
            }
        });
        let beats = heartbeat::Heartbeats::new(
            primary,
            Lease::new(hello(Channel::Heartbeat).timing, WELCOME),
        );
        let pulse = beats.pulse();
        let (tx, rx) = mpsc::channel();
        beats
            .run(|outcome| tx.send((outcome, Nanos::now())).unwrap())
            .unwrap();
        drop(tx);
        server.join().unwrap();
        let outcomes: Vec<_> = rx.iter().collect();
        assert_eq!(outcomes.len(), 5);
        for pair in outcomes[..4].windows(2) {
            let [
                (Outcome::Extended { until: a }, _),
                (Outcome::Extended { until: b }, at),
            ] = pair
            else {
                panic!("{outcomes:?}")
            };
            assert!(a < b && at < b);
        }
        assert_eq!(outcomes[4].0, Outcome::Fenced { generation: 8 });
        assert!(!pulse.lease().is_live(Nanos::now()));
    }
}

#[test]
fn a_stopped_pulse_ends_the_loop() {
    let (primary, backup) = pair(&Security::Insecure, Channel::Heartbeat);
    let beats = heartbeat::Heartbeats::new(
        primary,
        Lease::new(hello(Channel::Heartbeat).timing, WELCOME),
    );
    let pulse = beats.pulse();
    let t = thread::spawn(move || beats.run(|_| {}));
    pulse.stop();
    t.join().unwrap().unwrap();
    drop(backup);
}
