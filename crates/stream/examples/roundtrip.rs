//! Measures the round trip of a 200-byte batch and its acknowledgement on loopback, plain and encrypted,
//! against a raw TCP ping-pong of the same bytes. Usage: `roundtrip [ROUNDS]`.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use stream::connect;
use stream::hello::{Channel, Hello, Timing, Welcome};
use stream::keys::{self, Security};
use stream::log::{self, Entry};

/// Bytes of records in a batch.
const BATCH: usize = 200;
/// Bytes of the frames around them, and of an acknowledgement.
const FRAMES: usize = 2 * eventlog::frame::HEADER_LEN;

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Fallible<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(20_000), |n| n.parse())?;
    let dir = std::env::temp_dir().join(format!("understudy-roundtrip-{}", std::process::id()));
    let keys = keys::generate(&dir).and_then(|()| Security::load(&dir));
    std::fs::remove_dir_all(&dir)?;
    let keys = keys?;
    // Each twice, alternating: neighbours on the machine disturb all alike.
    for _ in 0..2 {
        report("raw TCP", raw(rounds)?);
        report("log, --insecure", batches(rounds, &Security::Insecure)?);
        report("log, TLS 1.3", batches(rounds, &keys)?);
    }
    Ok(())
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!(
        "{name:16} median {:6.1} µs   p90 {:6.1} µs   p99 {:6.1} µs",
        at(0.5),
        at(0.9),
        at(0.99)
    );
}

fn listen() -> Fallible<(TcpListener, SocketAddr)> {
    let listener = connect::listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

fn raw(rounds: usize) -> Fallible<Vec<Duration>> {
    let (listener, addr) = listen()?;
    let server = thread::spawn(move || -> Fallible<()> {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let mut batch = [0; BATCH + FRAMES];
        while socket.read_exact(&mut batch).is_ok() {
            socket.write_all(&batch[..FRAMES / 2])?;
        }
        Ok(())
    });
    let mut socket = TcpStream::connect(addr)?;
    socket.set_nodelay(true)?;
    let (batch, mut ack) = ([1; BATCH + FRAMES], [0; FRAMES / 2]);
    let times = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            socket.write_all(&batch)?;
            socket.read_exact(&mut ack)?;
            Ok(start.elapsed())
        })
        .collect();
    drop(socket);
    server.join().map_err(|_| "server thread panicked")??;
    times
}

fn batches(rounds: usize, security: &Security) -> Fallible<Vec<Duration>> {
    let (listener, addr) = listen()?;
    let within = Duration::from_secs(5);
    let theirs = security.clone();
    let server = thread::spawn(move || -> Fallible<()> {
        let (socket, peer) = listener.accept()?;
        let pending = connect::accept(socket, peer, &theirs, within)?;
        let (ack, mut receiver) = log::backup(
            pending
                .welcome(Welcome {
                    generation: 1,
                    instance: 1,
                })?
                .1,
        );
        while let Ok(Some(entry)) = receiver.recv(None) {
            if let Entry::Drain(n) = entry {
                ack.ack(n)?;
            }
        }
        Ok(())
    });
    let hello = Hello {
        channel: Channel::Log,
        name: "roundtrip".to_owned(),
        session: 1,
        run: 2,
        generation: 0,
        timing: Timing {
            heartbeat: Duration::from_millis(10),
            detect: Duration::from_millis(50),
        },
        host: Vec::new(),
        details: Vec::new(),
    };
    let (mut sender, mut acks) = log::primary(connect::connect(addr, security, &hello, within)?);
    let batch = [1; BATCH];
    let times = (1..=rounds as u64)
        .map(|n| {
            let start = Instant::now();
            sender.records(1, (n - 1) * BATCH as u64, &[&batch])?;
            sender.drain(n)?;
            acks.recv(None)?;
            Ok(start.elapsed())
        })
        .collect();
    sender.shutdown();
    server.join().map_err(|_| "server thread panicked")??;
    times
}
