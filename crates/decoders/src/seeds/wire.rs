//! Messages, and frames of every kind.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use eventlog::change::Change;
use eventlog::codec::{self, CodecError};
use eventlog::frame::file::Writer;
use eventlog::frame::{self, Kind};
use eventlog::handover::{
    ConnectionCut, Details, GuestState, HandshakeRecord, OpeningRecord, ThreadState,
};
use eventlog::record::{Header, kind};
use eventlog::recording::Meta;
use gate::{Handshake, Scale, Tuple};
use stream::Clocks;
use stream::checkpoint::{Begin, Commit, Cut, Finish, part};
use stream::control::{Held, Request, Response};
use stream::hello::{Answer, Channel, Hello, Refusal, Timing, Welcome};
use stream::lease::{Beat, BeatAnswer, Condition, Heartbeat, Verdict};

use super::memory;
use crate::calls;

/// A connection's bytes: each message in its frame, a drain of log, a checkpoint; and a recording's file.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = bodies()
        .into_iter()
        .flatten()
        .map(|(kind, stream, body)| connection(&[(kind, stream, 1, &body)]))
        .collect();
    let log: Vec<u8> = calls::life().into_iter().flat_map(|(_, r)| r).collect();
    seeds.push(connection(&[
        (Kind::Records, 1, 0, &log),
        (Kind::Records, 1, log.len() as u64, &log),
        (Kind::Drain, 0, 1, &[]),
        (Kind::Ack, 0, 1, &[]),
    ]));
    if let Some(image) = memory::images().pop() {
        seeds.extend(checkpoint(&image));
    }
    seeds.extend(file(&log));
    seeds
}

/// The body of every message.
pub(crate) fn messages() -> Vec<Vec<u8>> {
    let handover = [
        codec::encode(&guest()),
        codec::encode(&handshake()),
        codec::encode(&said()),
        codec::encode(&opening()),
        codec::encode(&details()),
    ];
    bodies()
        .into_iter()
        .map(|body| body.map(|(_, _, bytes)| bytes))
        .chain(handover)
        .flatten()
        .collect()
}

/// Frames one after another.
fn connection(frames: &[(Kind, u32, u64, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(kind, stream, position, body) in frames {
        let header = frame::Header {
            kind,
            generation: 1,
            stream,
            position,
        };
        // Too long for a frame is too long for a seed.
        let _ = header.encode(&[body], &mut bytes);
    }
    bytes
}

fn checkpoint(image: &[u8]) -> Result<Vec<u8>, CodecError> {
    let begin = codec::encode(&Begin {
        id: 1,
        base: None,
        cut: Cut::default(),
        image_len: image.len() as u64,
    })?;
    let crc = crc32c::crc32c(image);
    let finish = codec::encode(&Finish { id: 1, crc })?;
    let files = codec::encode(&changes())?;
    Ok(connection(&[
        (Kind::Checkpoint, part::FILES, 0, &files),
        (Kind::Checkpoint, part::BEGIN, 1, &begin),
        (Kind::Checkpoint, part::FILES, 1, &files),
        (Kind::Checkpoint, part::CHUNK, 0, image),
        (Kind::Checkpoint, part::FINISH, 1, &finish),
    ]))
}

/// What happened to mirrored files.
fn changes() -> Vec<Change> {
    let path = || b"/srv/file".to_vec();
    vec![
        Change::Opened {
            path: path(),
            makes: Some((0o644, (0, 0))),
            empties: true,
        },
        Change::Written {
            path: path(),
            at: Some(4),
            bytes: b"text".to_vec(),
        },
        Change::Renamed {
            from: path(),
            to: b"/srv/other".to_vec(),
            flags: 2,
        },
        Change::Attribute {
            path: path(),
            name: b"user.n".to_vec(),
            value: None,
            follows: false,
        },
    ]
}

fn file(log: &[u8]) -> Option<Vec<u8>> {
    let meta = Meta {
        command: vec![b"redis-server".to_vec()],
        environment: vec![(b"HOME".to_vec(), b"/".to_vec())],
        directory: b"/".to_vec(),
        kernel: "6.18".into(),
        serial: true,
    };
    let mut bytes = Vec::new();
    let mut writer = Writer::begin(&meta, &mut bytes).ok()?;
    writer.records(1, log, &mut bytes).ok()?;
    writer.end(&mut bytes).ok()?;
    Some(bytes)
}

type Body = Result<(Kind, u32, Vec<u8>), CodecError>;

/// Every message, with the kind and the stream of its frame.
fn bodies() -> Vec<Body> {
    let hello = |message| Ok((Kind::Hello, 0, message?));
    let heartbeat = |message| Ok((Kind::Heartbeat, 0, message?));
    let control = |message| Ok((Kind::Control, 0, message?));
    let part = |number| move |message: Result<_, _>| Ok((Kind::Checkpoint, number, message?));
    let welcome = Welcome {
        generation: 1,
        instance: 2,
    };
    let mut all: Vec<Body> = vec![
        hello(codec::encode(&greeting())),
        hello(codec::encode(&Answer::Ok(welcome))),
        heartbeat(codec::encode(&Heartbeat {
            beat: Beat {
                seq: 1,
                generation: 1,
                condition: Condition::Yielded,
            },
            clocks: Clocks::default(),
        })),
        heartbeat(codec::encode(&BeatAnswer {
            seq: 1,
            generation: 1,
            instance: 1,
            verdict: Verdict::Granted,
        })),
        part(part::BEGIN)(codec::encode(&Begin {
            id: 2,
            base: Some(1),
            cut: Cut {
                streams: vec![(1, 80), (3, 16)],
                next_stream: 4,
            },
            image_len: 4096,
        })),
        part(part::FINISH)(codec::encode(&Finish { id: 2, crc: 9 })),
        part(part::FILES)(codec::encode(&changes())),
        part(part::ANSWER)(codec::encode(&Commit::Done { id: 2 })),
        part(part::ANSWER)(codec::encode(&Commit::Refused {
            id: 2,
            reason: "full".into(),
        })),
        control(codec::encode(&Request::Ended { status: 3 })),
        control(codec::encode(&Request::Switchover)),
        control(codec::encode(&Response::Failed {
            reason: "no".into(),
        })),
        control(codec::encode(&Response::Status(Held {
            checkpoint: Some(2),
            ..Held::default()
        }))),
    ];
    all.extend(
        refusals()
            .into_iter()
            .map(|refusal| hello(codec::encode(&Answer::Err(refusal)))),
    );
    all
}

fn greeting() -> Hello {
    Hello {
        channel: Channel::Log,
        name: "redis".into(),
        session: 1,
        run: 2,
        generation: 0,
        timing: timing(),
        host: vec![("kernel".into(), "6.18".into())],
        details: codec::encode(&details()).unwrap_or_default(),
    }
}

fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(10),
        detect: Duration::from_millis(50),
    }
}

fn refusals() -> [Refusal; 10] {
    let name = || "redis".to_owned();
    [
        Refusal::StaleGeneration { theirs: 1, ours: 2 },
        Refusal::NameTaken { name: name() },
        Refusal::UnknownSession { name: name() },
        Refusal::Twice {
            channel: Channel::Control,
        },
        Refusal::Name { name: name() },
        Refusal::Timing { timing: timing() },
        Refusal::TooLong {
            details: 1,
            traits: 2,
        },
        Refusal::Host {
            what: name(),
            primary: name(),
            backup: name(),
        },
        Refusal::Full { containers: 3 },
        Refusal::State { reason: name() },
    ]
}

fn details() -> Details {
    Details {
        name: "redis".into(),
        command: vec![b"redis-server".to_vec()],
        address: [10, 0, 0, 10],
        prefix: 24,
        gateway: Some([10, 0, 0, 1]),
        mac: [2, 0, 0, 0, 0, 1],
        bridge: "br0".into(),
        replays: true,
        mirrors: vec![b"/srv".to_vec()],
    }
}

fn guest() -> GuestState {
    GuestState {
        next_stream: 3,
        threads: vec![ThreadState::default(); 2],
        connections: vec![ConnectionCut::default(); 2],
        ..GuestState::default()
    }
}

/// The primary's own stream: a connection request, and its connection.
pub(crate) fn own_stream() -> Vec<u8> {
    let opening = codec::encode(&opening()).unwrap_or_default();
    let said = codec::encode(&said()).unwrap_or_default();
    let header = Header {
        kind: kind::HANDSHAKE,
        result: 7,
        version: 3,
        ..Header::default()
    };
    [
        calls::event(kind::OPENING, 0, 0, &opening),
        calls::record(header, &said),
    ]
    .concat()
}

fn said() -> HandshakeRecord {
    HandshakeRecord {
        handshake: codec::encode(&handshake()).unwrap_or_default(),
        timestamp: 5,
        at: 6,
    }
}

fn opening() -> OpeningRecord {
    OpeningRecord {
        known: said(),
        answer: vec![0x45; 60],
    }
}

fn handshake() -> Handshake {
    let end = |n, port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), port);
    Handshake {
        tuple: Tuple {
            local: end(10, 6379),
            peer: end(2, 40000),
        },
        iss: 1,
        irs: 2,
        local_mss: 1460,
        peer_mss: 1460,
        scale: Some(Scale { local: 7, peer: 7 }),
        sack: true,
        timestamps: true,
        active: false,
    }
}
