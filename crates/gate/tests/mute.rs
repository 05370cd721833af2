//! Nothing leaves that must not: lease, kills, acknowledgements. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::primary::{FLIP, Primary, listen, tuple_of};
use common::{Bed, MASK, SERVICE, ethertype, service, until};
use gate::segment::{flag, parse};
use gate::{Config, Gate, distance};

const GATED: Config = Config {
    gate: true,
    mask: Some(MASK),
    hold: false,
    answers: false,
};

fn attach(bed: &Bed, port: &'static str, config: Config) -> Gate {
    bed.inside('b', move || {
        Gate::attach(port, &config).expect("the gate attaches")
    })
}

/// Makes the container send of every kind: ARP for a stranger, UDP, IPv6 neighbour discovery.
fn chatter(bed: &Bed) {
    bed.inside('p', || {
        let s = UdpSocket::bind((SERVICE, 0)).unwrap();
        let _ = s.send_to(b"x", "10.66.0.77:9");
        let _ = s.send_to(b"x", (common::CLIENT, 9));
    });
}

#[test]
fn an_expired_lease_lets_nothing_out() {
    let bed = Bed::new();
    let gate = attach(&bed, "vp", GATED);
    gate.set_lease(u64::MAX);
    let primary = Primary::start(&bed, gate);
    let mut client = bed.inside('c', || TcpStream::connect(service()).unwrap());
    let mut answer = [0; 5];
    client.write_all(b"hello").unwrap();
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, b"hello".map(|b| b ^ FLIP));

    let mut capture = bed.capture();
    chatter(&bed);
    let mut kinds = Vec::new();
    while !(kinds.contains(&0x0806) && kinds.contains(&0x0800)) {
        let frame = capture
            .next_of_service(Duration::from_secs(5))
            .expect("the container's chatter before the expiry");
        assert_eq!(frame[6..12], MASK, "the source is masked");
        kinds.push(ethertype(&frame));
    }

    // From here on nobody renews the lease, as if user space were dead.
    let (gate, _sockets) = primary.stop();
    let end = sys::bpf::boot_ns() + 20_000_000;
    gate.set_lease(end);
    drop(gate);
    until("the lease to end", || sys::bpf::boot_ns() > end);
    capture.clear();
    client.write_all(b"into the void").unwrap();
    chatter(&bed);
    // The client asks who has the address: the container's kernel answers, and must not be heard.
    common::ip(&format!(
        "-n {} neigh flush all",
        bed.path('c').rsplit('/').next().unwrap()
    ));
    client.write_all(b"again").unwrap();
    let leaked = capture.next_of_service(Duration::from_millis(600));
    assert_eq!(leaked, None, "a frame left after the lease");
}

/// Started again by `kill_leaks_nothing` as a process of its own.
#[test]
#[ignore = "a server for other tests"]
fn child_server() {
    let Ok(path) = std::env::var("GATE_TEST_NETNS") else {
        return;
    };
    nix::sched::setns(
        std::fs::File::open(path).unwrap(),
        nix::sched::CloneFlags::CLONE_NEWNET,
    )
    .unwrap();
    let listener = std::net::TcpListener::bind(service()).unwrap();
    println!("ready");
    let streams: Vec<_> = (0..8).map(|_| listener.accept().unwrap().0).collect();
    println!("accepted");
    for mut s in &streams {
        // Half of them leave bytes unread, which makes the kernel send RST instead of FIN.
        s.read_exact(&mut [0; 4]).unwrap();
    }
    println!("read");
    loop {
        std::thread::park();
    }
}

/// A process that does not outlive its test.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Kills a server with eight connections; returns flags of FIN and RST that reached the client's side.
fn killed(gated: bool) -> Vec<u8> {
    let bed = Bed::new();
    let gate = attach(
        &bed,
        "vp",
        Config {
            gate: gated,
            ..GATED
        },
    );
    gate.set_lease(u64::MAX);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_server", "--nocapture"])
        .env("GATE_TEST_NETNS", bed.path('p'))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Server(child);
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(child.0.stdout.take().unwrap()));
    let mut expect =
        |what: &str| while lines.next().expect("the server goes on").unwrap() != what {};
    expect("ready");
    let mut clients: Vec<_> = (0..8)
        .map(|_| bed.inside('c', || TcpStream::connect(service()).unwrap()))
        .collect();
    expect("accepted");
    for (i, c) in clients.iter_mut().enumerate() {
        c.write_all(if i % 2 == 0 {
            b"read"
        } else {
            b"read and unread"
        })
        .unwrap();
    }
    expect("read");
    let mut capture = bed.capture();
    drop(child);
    let mut ends = Vec::new();
    while let Some(frame) = capture.next_of_service(Duration::from_millis(400)) {
        ends.extend(
            parse(&frame)
                .map(|s| s.flags & (flag::FIN | flag::RST))
                .filter(|f| *f != 0),
        );
    }
    if gated {
        let counters = gate.counters();
        assert!(
            counters.reset >= 4 && counters.unreleased >= 4,
            "{counters:?}"
        );
        // A new client is not refused either: it waits.
        let refused = bed.inside('c', || {
            TcpStream::connect_timeout(&service().into(), Duration::from_millis(100))
        });
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }
    ends
}

#[test]
fn a_kill_leaks_neither_fin_nor_rst() {
    assert_eq!(killed(true), []);
    assert!(
        killed(false).len() >= 8,
        "without the gate every client hears of it"
    );
}

#[test]
fn acknowledgements_stay_within_the_log() {
    let bed = Bed::new();
    let mut gate = attach(&bed, "vp", GATED);
    gate.set_lease(u64::MAX);
    let listener = listen(&bed, 'p');
    let injector = bed.inside('p', || gate::Injector::open().unwrap());
    let mut capture = bed.capture();
    let mut client = bed.inside('c', || TcpStream::connect(service()).unwrap());
    listener.set_nonblocking(false).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let (entry, handshake) = gate.register(&tuple_of(&server)).unwrap();

    let patience = Some(Duration::from_secs(10));
    client.set_read_timeout(patience).unwrap();
    server.set_read_timeout(patience).unwrap();
    let highest = |capture: &mut common::Capture, wait| {
        let mut highest = None;
        while let Some(frame) = capture.next_of_service(wait) {
            let Some(s) = parse(&frame) else { continue };
            let better = highest.is_none_or(|h| distance(s.ack, h) > 0);
            highest = if better && s.flags & flag::RST == 0 {
                Some(s.ack)
            } else {
                highest
            };
        }
        highest
    };
    // Within the first congestion window: the client sends no more before it is acknowledged.
    let payload = vec![7; 10_000];
    client.write_all(&payload).unwrap();
    let mut read = vec![0; payload.len()];
    server.read_exact(&mut read).unwrap();
    until("the kernel to acknowledge", || {
        distance(
            gate.progress(entry).kernel_ack,
            handshake.receive_seq(10_000),
        ) >= 0
    });
    let wait = Duration::from_millis(100);
    assert_eq!(
        highest(&mut capture, wait),
        Some(handshake.receive_seq(0)),
        "the log holds nothing"
    );

    for logged in [1, 7_000, 10_000] {
        gate.allow_receive(entry, logged, false);
        assert!(injector.acknowledge(&gate, entry, &handshake).unwrap());
        assert_eq!(
            highest(&mut capture, wait),
            Some(handshake.receive_seq(logged)),
            "after {logged} bytes"
        );
        assert!(
            !injector.acknowledge(&gate, entry, &handshake).unwrap(),
            "once is enough"
        );
    }
    until("the client to hear of it", || {
        sys::tcp::unacknowledged(std::os::fd::AsFd::as_fd(&client)).unwrap() == 0
    });
    assert!(gate.counters().pure_ack > 0);

    // Payload that was not released stays, and its acknowledgement with it.
    client.write_all(b"more").unwrap();
    server.write_all(b"unreleased").unwrap();
    assert_eq!(highest(&mut capture, wait), None);
    gate.allow_send(entry, 10, false);
    let mut got = [0; 10];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"unreleased");
    assert_eq!(
        highest(&mut capture, wait),
        Some(handshake.receive_seq(10_000))
    );

    gate.allow_receive(entry, 10_004, false);
    assert!(injector.acknowledge(&gate, entry, &handshake).unwrap());
    assert_eq!(
        highest(&mut capture, wait),
        Some(handshake.receive_seq(10_004))
    );

    // The client's end stays with it until the log holds it.
    client.shutdown(std::net::Shutdown::Write).unwrap();
    server.read_to_end(&mut read).unwrap();
    assert_eq!(highest(&mut capture, wait), None);
    let progress = gate.progress(entry);
    assert!(progress.peer_fin);
    assert_eq!(progress.peer_nxt, handshake.receive_seq(10_005));
    gate.allow_receive(entry, 10_004, true);
    assert!(injector.acknowledge(&gate, entry, &handshake).unwrap());
    assert_eq!(
        highest(&mut capture, wait),
        Some(handshake.receive_seq(10_005))
    );
}
