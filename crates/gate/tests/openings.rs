//! Connections in the making: no peer has an answer before the log has it. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::primary::{listen, tuple_of};
use common::{Bed, SERVICE, service, until};
use gate::{Config, Gate, Injector, Opening, Openings};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

#[test]
fn an_answer_waits_for_the_log() {
    let bed = Bed::new();
    let mut gate = attach(&bed);
    gate.set_lease(u64::MAX);
    let injector = bed.inside('p', || Injector::open().unwrap());
    let mut openings = gate.openings().unwrap();
    assert!(gate.openings().is_none());
    let listener = listen(&bed, 'p');
    std::thread::scope(|scope| {
        let client = scope.spawn(|| bed.inside('c', || TcpStream::connect(service()).unwrap()));
        let opening = next(&mut openings);
        let handshake = opening.handshake;
        assert_eq!(handshake.tuple.local, service());
        assert!(!handshake.active && handshake.timestamps && handshake.sack);
        assert_eq!(opening.packet[12..16], SERVICE.octets());
        // The kernel has answered, and the peer has not heard it.
        assert_eq!(gate.counters().answers, 1);
        assert_eq!(gate.established(&handshake.tuple), None);
        assert!(listener.accept().is_err());

        let began = Instant::now();
        gate.answer(&opening, &injector).unwrap();
        let client = client.join().unwrap();
        assert!(
            began.elapsed() < Duration::from_millis(500),
            "the peer got the kernel's second answer, not this one"
        );
        until("the connection is there", || {
            gate.established(&handshake.tuple) == Some(handshake.iss)
        });
        let (server, _) = listener.accept().unwrap();
        assert_eq!(tuple_of(&server), handshake.tuple);
        let (_, registered) = gate.register(&handshake.tuple).unwrap();
        assert_eq!(registered, handshake);
        drop(client);
    });
}

/// The container's kernel would answer again after a second.
#[test]
fn an_answer_waits_for_a_lease() {
    let bed = Bed::new();
    let mut gate = attach(&bed);
    let injector = bed.inside('p', || Injector::open().unwrap());
    let mut openings = gate.openings().unwrap();
    let _listener = listen(&bed, 'p');
    let connect = || bed.inside('c', || TcpStream::connect(service()).unwrap());
    std::thread::scope(|scope| {
        // The second time the client knows the container's hardware address.
        for lease in [u64::MAX, 0] {
            gate.set_lease(lease);
            let client = scope.spawn(connect);
            let opening = next(&mut openings);
            assert_eq!(gate.established(&opening.handshake.tuple), None);
            let began = Instant::now();
            gate.set_lease(u64::MAX);
            gate.answer(&opening, &injector).unwrap();
            client.join().unwrap();
            assert!(began.elapsed() < Duration::from_millis(500));
        }
        assert_eq!(gate.counters().answers, 2);
    });
}

/// The gate of the host `p`, closed.
fn attach(bed: &Bed) -> Gate {
    let config = Config {
        gate: true,
        answers: true,
        ..Config::default()
    };
    bed.inside('b', || Gate::attach("vp", &config).unwrap())
}

/// Waits for the next answer that waits.
fn next(openings: &mut Openings) -> Opening {
    let mut wanted = [PollFd::new(openings.as_fd(), PollFlags::POLLIN)];
    poll(&mut wanted, PollTimeout::from(5000_u16)).unwrap();
    let mut new = Vec::new();
    openings.read(&mut new);
    new.pop().unwrap()
}
