//! Fifty connections lose their host and go on at another one. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::buffer::Buffer;
use common::clients::Clients;
use common::primary::{CAPACITY, Logged, Primary, Resumed};
use common::{Bed, MASK, SERVICE, SERVICE_MAC, index, service, until};
use gate::rebuild::{ConnectionState, Probed, Prober, Rebuilder, Timestamp, plan};
use gate::{Config, Gate, OutputBuffer, Tap, position_of};
use sys::packet::PacketSocket;

fn attach(bed: &Bed, port: &'static str, config: Config) -> Gate {
    bed.inside('b', move || {
        Gate::attach(port, &config).expect("the gate attaches")
    })
}

/// What a backup would know of a connection.
fn state_of(l: &Logged, now: u64) -> ConnectionState {
    let written = l.buffer.written();
    ConnectionState {
        handshake: l.handshake,
        timestamp: l.handshake.timestamps.then(|| Timestamp {
            value: l.progress.tsval,
            age: Duration::from_nanos(now - l.progress.ts_ns),
        }),
        read: l.read,
        unread: Vec::new(),
        peer_ended: l.ended,
        written,
        acknowledged: position_of(l.progress.una, written, l.handshake.send_seq(written))
            .min(written)
            .max(l.buffer.trimmed()),
        peer_window: l.progress.peer_window,
        ended: l.ended,
        orphan: l.ended,
    }
}

/// `asks` false: as if no peer answered the probe.
fn takeover(tap: bool, asks: bool, connections: usize, largest: u64) {
    let bed = Bed::new();
    let mask = tap.then_some(MASK);
    let primary_gate = attach(
        &bed,
        "vp",
        Config {
            gate: true,
            mask,
            hold: false,
            answers: false,
        },
    );
    primary_gate.set_lease(u64::MAX);
    let mut gate = attach(
        &bed,
        "vx",
        Config {
            gate: true,
            mask: tap.then_some([2, 0x66, 0xff, 0, 0, 3]),
            hold: true,
            answers: false,
        },
    );
    if tap {
        bed.link("vx", true);
        // What the bridge learnt before the source was masked.
        bed.forget("vp");
    }
    let link = bed.inside('b', || PacketSocket::open(index("vx"), 0).unwrap());
    let announcer = bed.inside('x', || PacketSocket::open(index("eth0"), 0).unwrap());

    let primary = Primary::start(&bed, primary_gate);
    let clients = Clients::start(&bed, connections, largest, Duration::from_millis(5));
    until("some work to be done", || {
        clients.answers.load(Ordering::Relaxed) > 20 * connections as u64
    });

    let calm = clients.forget_worst();
    // The host is lost: its uplink, and everything on it.
    bed.link("vp", false);
    let cut = Instant::now();
    let cut_ns = sys::bpf::boot_ns();
    let log = primary.log.clone();
    let (old, sockets) = primary.stop();
    old.set_lease(0);
    drop(sockets);
    drop(old);

    // The backup: probe, build, go live.
    let begun = Instant::now();
    let now = sys::bpf::boot_ns();
    let history = Tap::since(&gate, cut_ns.saturating_sub(300_000_000));
    let mut prober = bed.inside('x', || Prober::open(history).unwrap());
    let logged: Vec<Logged> = log.lock().unwrap().values().cloned().collect();
    let states: Vec<ConnectionState> = logged.iter().map(|l| state_of(l, now)).collect();
    assert_eq!(states.len(), connections);
    gate.set_lease(u64::MAX);
    if !tap {
        bed.link("vx", true);
    }
    announcer
        .send(&sys::tcp::gratuitous_arp(SERVICE_MAC, SERVICE))
        .unwrap();
    let entries: Vec<_> = states
        .iter()
        .map(|s| gate.adopt(&s.handshake, &s.progress(now)).unwrap())
        .collect();
    for s in states.iter().filter(|_| asks) {
        prober.ask(&gate, s).unwrap();
    }
    let mut answers = std::collections::BTreeMap::new();
    let limit = Instant::now() + Duration::from_millis(25);
    while prober.waiting() > 0 && Instant::now() < limit {
        answers.extend(prober.answers(&gate).into_iter().map(|a| (a.tuple, a.ack)));
    }
    let probed = begun.elapsed();
    let built_by = &gate;
    let (listener, built) = bed.inside('x', || {
        let listener = Rebuilder::listener(service(), 128).unwrap();
        let rebuilder = Rebuilder;
        let built: Vec<_> = states
            .iter()
            .zip(&logged)
            .enumerate()
            .map(|(i, (s, l))| {
                let answer = answers.get(&s.handshake.tuple);
                let plan = plan(
                    s,
                    answer.map_or(Probed::Silent, |ack| Probed::Answered { ack: *ack }),
                )
                .unwrap();
                let mut tail = vec![0; (plan.resend.end - plan.resend.start) as usize];
                l.buffer.copy_out(plan.resend.start, &mut tail);
                built_by.settle(entries[i], &s.handshake, &plan);
                (rebuilder.build(s, &plan, &tail).unwrap(), tail)
            })
            .collect();
        (listener, built)
    });
    let rebuilt = begun.elapsed();
    let resent: usize = built.iter().map(|(_, tail)| tail.len()).sum();
    let mut resumed = Vec::new();
    for ((b, tail), (s, entry)) in built.into_iter().zip(states.iter().zip(&entries)) {
        let state = b.plan().output();
        assert_eq!(b.plan().swallow, 0);
        let stream = TcpStream::from(b.go_live().unwrap());
        stream.set_nodelay(true).unwrap();
        prober.live(&gate, &s.handshake.tuple, *entry);
        resumed.push(Resumed {
            stream,
            entry: *entry,
            handshake: s.handshake,
            buffer: Buffer::resumed(CAPACITY, s.written, &tail),
            read: s.read,
            state,
            ended: s.ended,
        });
    }
    let delivered = prober.deliver(&gate, &link, cut_ns).unwrap();
    let live = begun.elapsed();
    listener_is_nonblocking(&listener);
    let second = Primary::resume(&bed, 'x', gate, listener.into(), resumed);

    // The old host comes back, and is not heard.
    let mut capture = bed.capture();
    bed.link("vp", true);
    let before = clients.answers.load(Ordering::Relaxed);
    until("the clients to go on", || {
        clients.answers.load(Ordering::Relaxed) > before + 20 * connections as u64
    });
    while let Some(frame) = capture.next_of_service(Duration::ZERO) {
        assert!(
            !tap || frame[6..12] != MASK,
            "a frame of the old host after go-live"
        );
    }
    let report = clients.finish();
    let (gate, _) = second.stop();
    assert_eq!(report.broken, Vec::<String>::new());
    assert_eq!(report.worst.len(), connections);
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    println!(
        "takeover: tap {tap}, {connections} connections, requests up to {largest} B: answered {}, resent {resent} B, \
         delivered {delivered} frames; from cut to probing {:.2} ms, probed {:.2}, rebuilt {:.2}, live {:.2} ms; \
         worst answer before {:.1} ms, then p50 {:.1} p90 {:.1} max {:.1} ms; {:?}",
        answers.len(),
        ms(begun - cut),
        ms(probed),
        ms(rebuilt),
        ms(live),
        ms(calm),
        ms(report.worst[connections / 2]),
        ms(report.worst[connections * 9 / 10]),
        ms(report.worst[connections - 1]),
        gate.counters(),
    );
    if tap && asks && largest < 10_000 {
        assert!(
            report.worst[connections / 2] < Duration::from_millis(190),
            "held frames save the clients' time-outs"
        );
    }
}

fn listener_is_nonblocking(listener: &std::os::fd::OwnedFd) {
    std::net::TcpListener::from(listener.try_clone().unwrap())
        .set_nonblocking(true)
        .unwrap();
}

#[test]
fn fifty_connections_go_on_with_the_tap() {
    takeover(true, true, 50, 2_000);
}

#[test]
fn fifty_connections_go_on_without_the_tap() {
    takeover(false, true, 50, 2_000);
}

#[test]
fn large_answers_go_on() {
    takeover(true, true, 20, 60_000);
}

#[test]
fn silent_peers_go_on_too() {
    takeover(true, false, 20, 20_000);
}
