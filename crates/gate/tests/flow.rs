//! Bytes flow: uploads with late acknowledgements, downloads through the sender. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::buffer::Buffer;
use common::primary::{listen, tuple_of};
use common::{Bed, service, until};
use gate::{
    Adopted, Config, End, Entry, Gate, Handshake, Injector, Outcome, OutputState, Sender,
    SlowReaders,
};

struct Pair {
    bed: Bed,
    gate: Gate,
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
    entry: Entry,
    handshake: Handshake,
}

fn pair() -> Pair {
    let bed = Bed::new();
    let config = Config {
        gate: true,
        mask: None,
        hold: false,
        answers: false,
    };
    let mut gate = bed.inside('b', || Gate::attach("vp", &config).unwrap());
    gate.set_lease(u64::MAX);
    let listener = listen(&bed, 'p');
    listener.set_nonblocking(false).unwrap();
    let client = bed.inside('c', || TcpStream::connect(service()).unwrap());
    let (server, _) = listener.accept().unwrap();
    for s in [&client, &server] {
        s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    let (entry, handshake) = gate.register(&tuple_of(&server)).unwrap();
    Pair {
        bed,
        gate,
        listener,
        client,
        server,
        entry,
        handshake,
    }
}

/// Uploads for `time`; returns bytes per second. The log's round trip goes through another thread.
fn upload(gated: bool, late: bool, time: Duration) -> f64 {
    let Pair {
        bed,
        gate,
        mut client,
        mut server,
        entry,
        handshake,
        ..
    } = pair();
    let injector = bed.inside('p', || Injector::open().unwrap());
    if !gated {
        gate.set_gate(false);
    }
    let (to_log, log) = mpsc::channel::<u64>();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let gate = &gate;
        scope.spawn(move || {
            while let Ok(mut logged) = log.recv() {
                while let Ok(more) = log.try_recv() {
                    logged = more;
                }
                gate.allow_receive(entry, logged, false);
                if gated && late {
                    injector.acknowledge(gate, entry, &handshake).unwrap();
                }
            }
        });
        client
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        scope.spawn(move || {
            let block = vec![1; 256 << 10];
            while began.elapsed() < time {
                if let Err(e) = client.write_all(&block) {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock);
                }
            }
            client.shutdown(std::net::Shutdown::Both).unwrap();
        });
        let (mut block, mut read) = (vec![0; 256 << 10], 0_u64);
        server
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        while began.elapsed() < time {
            match server.read(&mut block) {
                Ok(0) => break,
                Ok(n) => {
                    read += n as u64;
                    to_log.send(read).unwrap();
                }
                Err(e) => assert!(
                    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset),
                    "{e}"
                ),
            }
        }
        drop(to_log);
        gate.set_gate(false);
        read as f64 / time.as_secs_f64()
    })
}

#[test]
fn uploads_do_not_stall() {
    let time = Duration::from_millis(1500);
    let free = upload(false, false, time);
    let held = upload(true, true, time);
    let stalled = upload(true, false, time);
    let gbit = |rate: f64| rate * 8.0 / 1e9;
    println!(
        "upload: {:.2} Gbit/s without the gate, {:.2} clamped with late acknowledgements, {:.3} clamped without",
        gbit(free),
        gbit(held),
        gbit(stalled)
    );
    assert!(
        held > free / 4.0,
        "late acknowledgements keep an upload going"
    );
    assert!(
        stalled < held / 4.0,
        "the test sees what late acknowledgements are for"
    );
}

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8
}

/// Releases everything written, as fast as the buffer takes it, for a client that is slow at first.
#[test]
fn downloads_are_whole_and_end_when_all_is_acknowledged() {
    const TOTAL: u64 = 24 << 20;
    let Pair {
        bed: _bed,
        mut gate,
        mut client,
        server,
        entry,
        handshake,
        ..
    } = pair();
    let buffer = Buffer::new(256 << 10);
    let mut sender = Sender::new().unwrap();
    let socket = server.try_clone().unwrap().into();
    let state = OutputState::default();
    sender
        .adopt(
            5,
            Adopted {
                socket,
                buffer: buffer.clone(),
                gated: Some((entry, handshake)),
                state,
            },
        )
        .unwrap();
    // The application closes its descriptor long before the client has everything.
    drop(server);
    let (go, wait) = mpsc::channel::<()>();
    let reader = std::thread::spawn(move || {
        wait.recv().unwrap();
        let (mut block, mut got) = (vec![0; 100_000], 0_u64);
        loop {
            let n = client.read(&mut block).unwrap();
            if n == 0 {
                return got;
            }
            for (i, b) in block[..n].iter().enumerate() {
                assert_eq!(*b, byte(got + i as u64), "byte {}", got + i as u64);
            }
            got += n as u64;
        }
    });
    let mut written = 0;
    let mut full = false;
    let mut freed = false;
    let limit = Instant::now() + Duration::from_secs(30);
    while !freed {
        assert!(
            Instant::now() < limit,
            "{written} written, {:?}",
            sender.state(5)
        );
        let block: Vec<u8> = (written..TOTAL.min(written + 50_000)).map(byte).collect();
        let n = buffer.write(&block) as u64;
        if n == 0 && written < TOTAL && !full {
            // The client reads nothing: its window and both buffers are full. Now it starts.
            full = true;
            go.send(()).unwrap();
        }
        written += n;
        let end = (written == TOTAL).then_some(End::Close);
        if n > 0 || end.is_some() {
            sender.release(5, written, end, Some(&mut gate)).unwrap();
        }
        for outcome in sender.turn(Duration::ZERO, Some(&mut gate)).unwrap() {
            assert!(matches!(outcome, Outcome::Freed { slot: 5 }), "{outcome:?}");
            freed = true;
        }
    }
    assert_eq!(reader.join().unwrap(), TOTAL);
    assert!(full && buffer.freed());
    assert_eq!(buffer.trimmed(), TOTAL);
    assert_eq!(gate.counters().unreleased, 0);
}

#[test]
fn a_close_without_lingering_resets_the_peer() {
    let Pair {
        bed: _bed,
        mut gate,
        mut client,
        server,
        entry,
        handshake,
        ..
    } = pair();
    let buffer = Buffer::new(4096);
    let mut sender = Sender::new().unwrap();
    let socket = server.into();
    let state = OutputState::default();
    sender
        .adopt(
            0,
            Adopted {
                socket,
                buffer: buffer.clone(),
                gated: Some((entry, handshake)),
                state,
            },
        )
        .unwrap();
    let outcome = sender
        .release(0, 0, Some(End::Reset), Some(&mut gate))
        .unwrap();
    assert!(matches!(outcome, Some(Outcome::Freed { slot: 0 })));
    assert_eq!(
        client.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn a_peer_that_resets_fails_its_connection_and_frees_it_on_close() {
    let Pair {
        bed: _bed,
        mut gate,
        client,
        server,
        entry,
        handshake,
        ..
    } = pair();
    let buffer = Buffer::new(4096);
    let mut sender = Sender::new().unwrap();
    let state = OutputState::default();
    let socket = server.try_clone().unwrap().into();
    sender
        .adopt(
            0,
            Adopted {
                socket,
                buffer: buffer.clone(),
                gated: Some((entry, handshake)),
                state,
            },
        )
        .unwrap();
    nix::sys::socket::setsockopt(
        &client,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .unwrap();
    drop(client);
    let mut failed = false;
    until("the failure to be seen", || {
        let outcomes = sender
            .turn(Duration::from_millis(5), Some(&mut gate))
            .unwrap();
        failed |= outcomes
            .iter()
            .any(|o| matches!(o, Outcome::Failed { slot: 0, .. }));
        failed
    });
    let error = (&server).read(&mut [0]).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::ConnectionReset,
        "the application still finds the error"
    );
    assert_ne!(buffer.error(), 0, "so does its next write");
    assert_eq!(buffer.write(&[0; 100]), 100);
    let outcome = sender
        .release(0, 100, Some(End::Close), Some(&mut gate))
        .unwrap();
    assert!(matches!(outcome, Some(Outcome::Freed { slot: 0 })));
    assert_eq!(buffer.trimmed(), 100, "nobody waits for room for ever");
}

#[test]
fn without_a_gate_the_socket_says_what_the_peer_has() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let buffer = Buffer::new(64 << 10);
    let mut sender = Sender::new().unwrap();
    let state = OutputState::default();
    sender
        .adopt(
            1,
            Adopted {
                socket: server.into(),
                buffer: buffer.clone(),
                gated: None,
                state,
            },
        )
        .unwrap();
    assert_eq!(buffer.write(&[9; 5000]), 5000);
    sender.release(1, 3000, None, None).unwrap();
    let mut got = vec![0; 3000];
    client.read_exact(&mut got).unwrap();
    until("the trim", || {
        sender.turn(Duration::ZERO, None).unwrap();
        buffer.trimmed() == 3000
    });
    client.set_nonblocking(true).unwrap();
    assert_eq!(
        client.read(&mut got).unwrap_err().kind(),
        ErrorKind::WouldBlock,
        "2000 bytes are not released"
    );
    client.set_nonblocking(false).unwrap();
    sender.release(1, 5000, Some(End::Close), None).unwrap();
    got.clear();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, [9; 2000]);
    until("the slot to be freed", || {
        sender.turn(Duration::ZERO, None).unwrap();
        buffer.freed()
    });
}

#[test]
fn a_slow_reader_is_found_and_its_client_told() {
    let Pair {
        bed,
        gate,
        mut client,
        server,
        entry,
        handshake,
        ..
    } = pair();
    let injector = bed.inside('p', || Injector::open().unwrap());
    let mut slow = SlowReaders::default();
    client.write_all(&[3; 5000]).unwrap();
    let patience = 40_000_000;
    let began = Instant::now();
    let mut found = None;
    until("the slow reader to be found", || {
        found = slow.look(entry, &gate.progress(entry), sys::bpf::boot_ns(), patience);
        found.is_some()
    });
    assert!(began.elapsed() >= Duration::from_nanos(patience));
    assert_eq!(found, Some(5000));
    assert_eq!(sys::tcp::unread(server.as_fd()).unwrap(), 5000);
    // The shim peeks them into the log.
    let mut peeked = [0; 8000];
    assert_eq!(server.peek(&mut peeked).unwrap(), 5000);
    gate.allow_receive(entry, 5000, false);
    until("the client to be told", || {
        injector.acknowledge(&gate, entry, &handshake).unwrap();
        sys::tcp::unacknowledged(client.as_fd()).unwrap() == 0
    });
    assert_eq!(
        slow.look(entry, &gate.progress(entry), sys::bpf::boot_ns(), patience),
        None
    );
}

#[test]
fn entries_come_back() {
    let Pair {
        bed,
        mut gate,
        listener,
        client,
        server,
        entry,
        ..
    } = pair();
    let tuple = tuple_of(&server);
    drop((client, server));
    gate.finish(entry, true).unwrap();
    assert!(gate.register(&tuple).is_err());
    // Unregistered connections are swept once they are silent.
    let clients: Vec<_> = (0..20)
        .map(|_| bed.inside('c', || TcpStream::connect(service()).unwrap()))
        .collect();
    let servers: Vec<_> = (0..20).map(|_| listener.accept().unwrap().0).collect();
    let (kept, _) = gate.register(&tuple_of(&servers[7])).unwrap();
    assert_eq!(gate.sweep(u64::MAX).unwrap(), 19);
    assert_eq!(gate.handshake(kept).unwrap().tuple, tuple_of(&servers[7]));
    assert_eq!(gate.sweep(u64::MAX).unwrap(), 0);
    drop(clients);
}
