//! One connection in an awkward state loses its host: half-closed, unread, orphaned, written twice. Needs
//! root.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use common::primary::{listen, tuple_of};
use common::{Bed, MASK, SERVICE_MAC, index, service, until};
use gate::rebuild::{
    ConnectionState, Plan, Probed, Prober, Rebuilder, Timestamp, forged_end, plan,
};
use gate::{Config, Entry, Gate, Handshake, Injector, Tap};
use sys::packet::PacketSocket;

/// One client, one server that logs by hand, and a standby.
struct Scene {
    bed: Bed,
    gate: Gate,
    client: TcpStream,
    server: TcpStream,
    entry: Entry,
    handshake: Handshake,
    injector: Injector,
    standby: Gate,
    prober: Prober,
    link: PacketSocket,
}

impl Scene {
    fn new() -> Self {
        let bed = Bed::new();
        let config = Config {
            gate: true,
            mask: Some(MASK),
            hold: false,
            answers: false,
        };
        let mut gate = bed.inside('b', || Gate::attach("vp", &config).unwrap());
        gate.set_lease(u64::MAX);
        let config = Config {
            hold: true,
            answers: false,
            ..config
        };
        let standby = bed.inside('b', || Gate::attach("vx", &config).unwrap());
        bed.link("vx", true);
        let listener = listen(&bed, 'p');
        listener.set_nonblocking(false).unwrap();
        let client = bed.inside('c', || TcpStream::connect(service()).unwrap());
        let (server, _) = listener.accept().unwrap();
        for s in [&client, &server] {
            s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        let (entry, handshake) = gate.register(&tuple_of(&server)).unwrap();
        let injector = bed.inside('p', || Injector::open().unwrap());
        let prober = bed.inside('x', || {
            Prober::open(Tap::since(&standby, u64::MAX)).unwrap()
        });
        let link = bed.inside('b', || PacketSocket::open(index("vx"), 0).unwrap());
        Self {
            bed,
            gate,
            client,
            server,
            entry,
            handshake,
            injector,
            standby,
            prober,
            link,
        }
    }

    /// The log holds this much of what the client sent, and the client hears of it.
    fn logged(&self, bytes: u64, end: bool) {
        let want = self
            .handshake
            .receive_seq(bytes)
            .wrapping_add(u32::from(end));
        until("the segment to arrive", || {
            self.gate.progress(self.entry).peer_nxt == want
        });
        self.gate.allow_receive(self.entry, bytes, end);
        until("the client to be told", || {
            let _ = self
                .injector
                .acknowledge(&self.gate, self.entry, &self.handshake)
                .unwrap();
            sys::tcp::unacknowledged(self.client.as_fd()).unwrap() == 0
        });
    }

    /// What the fold would know, with nothing read or written.
    fn state(&self) -> ConnectionState {
        let p = self.gate.progress(self.entry);
        ConnectionState {
            handshake: self.handshake,
            timestamp: Some(Timestamp {
                value: p.tsval,
                age: Duration::from_nanos(sys::bpf::boot_ns() - p.ts_ns),
            }),
            read: 0,
            unread: Vec::new(),
            peer_ended: false,
            written: 0,
            acknowledged: 0,
            peer_window: p.peer_window,
            ended: false,
            orphan: false,
        }
    }

    /// Cuts the primary off and goes on at the standby.
    fn take_over(
        mut self,
        state: &ConnectionState,
        tail: impl Fn(&Plan) -> Vec<u8>,
    ) -> (Bed, TcpStream, OwnedFd, Plan) {
        let entry = self.cut(state);
        self.go_on(entry, state, tail)
    }

    /// Cuts the primary off; the standby knows the connection from then on.
    fn cut(&mut self, state: &ConnectionState) -> Entry {
        self.bed.link("vp", false);
        self.standby.set_lease(u64::MAX);
        self.standby
            .adopt(&state.handshake, &state.progress(sys::bpf::boot_ns()))
            .unwrap()
    }

    /// Probes, builds and goes live.
    fn go_on(
        mut self,
        entry: Entry,
        state: &ConnectionState,
        tail: impl Fn(&Plan) -> Vec<u8>,
    ) -> (Bed, TcpStream, OwnedFd, Plan) {
        drop(self.server);
        self.prober.ask(&self.standby, state).unwrap();
        let limit = Instant::now() + Duration::from_secs(5);
        let answer = loop {
            if let Some(answer) = self.prober.answers(&self.standby).pop() {
                break answer;
            }
            assert!(
                Instant::now() < limit,
                "the client does not answer the probe"
            );
        };
        let plan = plan(state, Probed::Answered { ack: answer.ack }).unwrap();
        self.standby.settle(entry, &state.handshake, &plan);
        let tail = tail(&plan);
        let rebuilt = self
            .bed
            .inside('x', || Rebuilder.build(state, &plan, &tail).unwrap());
        let socket = rebuilt.go_live_with(&tail).unwrap();
        self.prober
            .live(&self.standby, &state.handshake.tuple, entry);
        self.prober.deliver(&self.standby, &self.link, 0).unwrap();
        if plan.forge_end {
            let end = forged_end(state, plan.snd_una, answer.tsval.unwrap_or(0));
            self.link
                .send(&end.frame([2, 0, 0, 0, 0, 9], SERVICE_MAC))
                .unwrap();
        }
        self.standby.allow_receive(entry, 1 << 30, true);
        let sent = plan.output().released() + plan.swallow;
        self.standby.allow_send(entry, sent + 100, true);
        (self.bed, self.client, socket, plan)
    }
}

fn blocking(socket: OwnedFd) -> TcpStream {
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

#[test]
fn an_end_that_was_acknowledged_is_met_again() {
    let mut scene = Scene::new();
    scene.client.write_all(b"last words").unwrap();
    scene.client.shutdown(Shutdown::Write).unwrap();
    scene.logged(10, true);
    let state = ConnectionState {
        read: 4,
        unread: b" words".to_vec(),
        peer_ended: true,
        ..scene.state()
    };
    let (_bed, mut client, socket, plan) = scene.take_over(&state, |_| Vec::new());
    assert!(plan.forge_end);
    let mut server = blocking(socket);
    let mut rest = Vec::new();
    server.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b" words");
    server.write_all(b"answer").unwrap();
    drop(server);
    rest.clear();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"answer");
}

#[test]
fn an_orphan_delivers_its_tail_and_its_end() {
    let mut scene = Scene::new();
    // The gate lets nothing of this out: it is the tail.
    scene.server.write_all(b"the unsent tail").unwrap();
    let state = ConnectionState {
        written: 15,
        ended: true,
        orphan: true,
        ..scene.state()
    };
    let (_bed, mut client, socket, plan) = scene.take_over(&state, |_| b"the unsent tail".to_vec());
    assert_eq!((plan.resend, plan.finish, plan.over), (0..15, true, false));
    drop(socket);
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"the unsent tail");
}

#[test]
fn a_write_whose_record_was_lost_is_not_sent_twice() {
    let mut scene = Scene::new();
    scene.gate.allow_send(scene.entry, 10, false);
    scene.server.write_all(b"0123456789").unwrap();
    let mut got = [0; 10];
    scene.client.read_exact(&mut got).unwrap();
    until("the acknowledgement", || {
        scene.gate.progress(scene.entry).una == scene.handshake.send_seq(10)
    });
    // The log ends after the fourth byte.
    let state = ConnectionState {
        written: 4,
        acknowledged: 4,
        ..scene.state()
    };
    let (_bed, mut client, socket, plan) = scene.take_over(&state, |_| Vec::new());
    assert_eq!((plan.swallow, plan.output().sent_to()), (6, 10));
    let mut server = blocking(socket);
    // The application writes 456789 again, which is swallowed, then goes on.
    server.write_all(b"abc").unwrap();
    let mut got = [0; 3];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"abc");
    client.write_all(b"?").unwrap();
    server.read_exact(&mut got[..1]).unwrap();
    assert_eq!(got[0], b'?');
}

#[test]
fn an_end_of_ours_that_the_client_has_does_not_disturb() {
    let mut scene = Scene::new();
    scene.gate.allow_send(scene.entry, 3, true);
    scene.server.write_all(b"bye").unwrap();
    scene.server.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    scene.client.read_to_end(&mut all).unwrap();
    until("the end to be acknowledged", || {
        scene.gate.progress(scene.entry).una == scene.handshake.send_seq(3).wrapping_add(1)
    });
    let state = ConnectionState {
        written: 3,
        acknowledged: 3,
        ended: true,
        ..scene.state()
    };
    let (_bed, mut client, socket, plan) = scene.take_over(&state, |_| Vec::new());
    assert_eq!((plan.swallow, plan.finish), (0, true));
    let mut server = blocking(socket);
    client.write_all(b"still talking").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    server.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"still talking");
}

#[test]
fn a_distant_peer_is_held_while_the_others_are_live() {
    let mut scene = Scene::new();
    let state = scene.state();
    let entry = scene.cut(&state);
    // The others are live, and nothing is held in general; this one's answer is still on its way.
    assert_eq!(
        scene
            .prober
            .deliver(&scene.standby, &scene.link, 0)
            .unwrap(),
        0
    );
    scene.client.write_all(b"early").unwrap();
    until("the bytes to be held", || scene.standby.counters().held > 0);
    assert_eq!(scene.standby.counters().reset, 0, "no kernel saw them");
    let (_bed, _client, socket, _) = scene.go_on(entry, &state, |_| Vec::new());
    let mut got = [0; 5];
    blocking(socket).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
}
