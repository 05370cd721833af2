//! An echo server with the shim's part of the work: what it reads is "logged" at once, what it writes goes
//! through a [`Sender`].

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gate::{
    Adopted, End, Entry, Gate, Handshake, Injector, Outcome, OutputState, Progress, Sender, Tuple,
};

use super::buffer::Buffer;
use super::{Bed, service};

pub const CAPACITY: u64 = 256 << 10;
pub const FLIP: u8 = 0x5a;

/// What a log would hold of one connection.
#[derive(Clone)]
pub struct Logged {
    pub handshake: Handshake,
    pub progress: Progress,
    pub read: u64,
    pub ended: bool,
    pub buffer: Arc<Buffer>,
}

struct Session {
    stream: TcpStream,
    entry: Entry,
    handshake: Handshake,
    buffer: Arc<Buffer>,
    read: u64,
    pending: Vec<u8>,
    ended: bool,
}

pub fn listen(bed: &Bed, n: char) -> TcpListener {
    let listener = bed.inside(n, || TcpListener::bind(service()).expect("bind"));
    listener.set_nonblocking(true).unwrap();
    listener
}

pub fn tuple_of(stream: &TcpStream) -> Tuple {
    let v4 = |a| match a {
        SocketAddr::V4(a) => a,
        SocketAddr::V6(a) => panic!("{a} is not IPv4"),
    };
    Tuple {
        local: v4(stream.local_addr().unwrap()),
        peer: v4(stream.peer_addr().unwrap()),
    }
}

/// Serves until `stop`; returns everything as it stood, the sockets still open.
pub struct Primary {
    pub log: Arc<Mutex<BTreeMap<Tuple, Logged>>>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(Gate, Vec<OwnedFd>)>,
}

/// A connection that was rebuilt.
pub struct Resumed {
    pub stream: TcpStream,
    pub entry: Entry,
    pub handshake: Handshake,
    pub buffer: Arc<Buffer>,
    pub read: u64,
    pub state: OutputState,
    pub ended: bool,
}

impl Primary {
    pub fn start(bed: &Bed, gate: Gate) -> Self {
        Self::resume(bed, 'p', gate, listen(bed, 'p'), Vec::new())
    }

    pub fn resume(
        bed: &Bed,
        n: char,
        mut gate: Gate,
        listener: TcpListener,
        resumed: Vec<Resumed>,
    ) -> Self {
        let injector = bed.inside(n, || Injector::open().unwrap());
        let log = Arc::new(Mutex::new(BTreeMap::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log2, stop2) = (log.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut sender = Sender::new().unwrap();
            let mut sessions: BTreeMap<usize, Session> = BTreeMap::new();
            let mut next = 0;
            for r in resumed {
                sessions.insert(next, adopt(r, &mut sender, next));
                next += 1;
            }
            while !stop2.load(Ordering::Relaxed) {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nodelay(true).unwrap();
                    let (entry, handshake) = gate.register(&tuple_of(&stream)).unwrap();
                    let (buffer, state) = (Buffer::new(CAPACITY), OutputState::default());
                    let fresh = Resumed {
                        stream,
                        entry,
                        handshake,
                        buffer,
                        read: 0,
                        state,
                        ended: false,
                    };
                    sessions.insert(next, adopt(fresh, &mut sender, next));
                    next += 1;
                }
                for (slot, s) in &mut sessions {
                    serve(*slot, s, &mut gate, &mut sender, &log2);
                    injector.acknowledge(&gate, s.entry, &s.handshake).unwrap();
                }
                for outcome in sender.turn(Duration::ZERO, Some(&mut gate)).unwrap() {
                    match outcome {
                        Outcome::Freed { slot } => {
                            let s = sessions.remove(&slot).unwrap();
                            log2.lock().unwrap().remove(&s.handshake.tuple);
                        }
                        Outcome::Failed { slot, error } => panic!("slot {slot}: {error}"),
                    }
                }
            }
            let sockets = sessions
                .into_values()
                .map(|s| OwnedFd::from(s.stream))
                .collect();
            drop(sender);
            drop(listener);
            (gate, sockets)
        });
        Self { log, stop, thread }
    }

    pub fn stop(self) -> (Gate, Vec<OwnedFd>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the primary's thread")
    }
}

fn adopt(r: Resumed, sender: &mut Sender<Arc<Buffer>>, slot: usize) -> Session {
    r.stream.set_nonblocking(true).unwrap();
    let adopted = Adopted {
        socket: r.stream.try_clone().unwrap().into(),
        buffer: r.buffer.clone(),
        gated: Some((r.entry, r.handshake)),
        state: r.state,
    };
    sender.adopt(slot, adopted).unwrap();
    Session {
        stream: r.stream,
        entry: r.entry,
        handshake: r.handshake,
        buffer: r.buffer,
        read: r.read,
        pending: Vec::new(),
        ended: r.ended,
    }
}

fn serve(
    slot: usize,
    s: &mut Session,
    gate: &mut Gate,
    sender: &mut Sender<Arc<Buffer>>,
    log: &Mutex<BTreeMap<Tuple, Logged>>,
) {
    if s.pending.is_empty() && !s.ended {
        let mut bytes = [0; 16 << 10];
        match s.stream.read(&mut bytes) {
            Ok(0) => s.ended = true,
            Ok(n) => {
                s.read += n as u64;
                s.pending.extend(bytes[..n].iter().map(|b| b ^ FLIP));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(e) => panic!("{e}"),
        }
    }
    let n = s.buffer.write(&s.pending);
    s.pending.drain(..n);
    let done = s.ended && s.pending.is_empty();
    // The log: nothing may leave that is not in it.
    let entry = Logged {
        handshake: s.handshake,
        progress: gate.progress(s.entry),
        read: s.read - s.pending.len() as u64,
        ended: done,
        buffer: s.buffer.clone(),
    };
    log.lock().unwrap().insert(s.handshake.tuple, entry);
    gate.allow_receive(s.entry, s.read - s.pending.len() as u64, done);
    let written = gate::OutputBuffer::written(&s.buffer);
    sender
        .release(slot, written, done.then_some(End::Close), Some(gate))
        .unwrap();
}
