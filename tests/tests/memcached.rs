//! A server with threads that share what they do not lock, at its default options, survives its host.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use understudy_bench::bed::Bed;
use understudy_bench::rng::Rng;
use understudy_bench::service::{Loss, Protection, Service};
use understudy_tests::{repeats, understudy};

const PORT: u16 = 11211;
const CLIENTS: u64 = 10;
/// Time for anything that a client waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// One connection, and what it has stored: nobody else writes its keys.
struct Client {
    number: u64,
    reader: BufReader<TcpStream>,
    rng: Rng,
    stored: HashMap<String, String>,
}

impl Client {
    fn connect(address: SocketAddr, number: u64, seed: u64) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            number,
            reader: BufReader::new(stream),
            rng: Rng::new(seed, number),
            stored: HashMap::new(),
        }
    }

    fn ask(&mut self, request: &str) -> String {
        self.reader.get_ref().write_all(request.as_bytes()).unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(
            line.ends_with("\r\n"),
            "connection {}: {line:?}",
            self.number
        );
        line.truncate(line.len() - 2);
        line
    }

    /// One command, whose reply must be right.
    fn step(&mut self) {
        let key = format!("{}:{}", self.number, self.rng.below(200));
        if self.rng.below(2) == 0 {
            let len = usize::try_from(self.rng.below(400)).unwrap();
            let value = format!("{:x}.", self.rng.below(u64::MAX)).repeat(len / 8 + 1);
            let request = format!("set {key} 0 0 {}\r\n{value}\r\n", value.len());
            assert_eq!(self.ask(&request), "STORED");
            self.stored.insert(key, value);
            return;
        }
        let said = self.ask(&format!("get {key}\r\n"));
        let Some(wanted) = self.stored.get(&key).cloned() else {
            assert_eq!(said, "END");
            return;
        };
        assert_eq!(said, format!("VALUE {key} 0 {}", wanted.len()));
        let mut value = vec![0; wanted.len() + 2];
        self.reader.read_exact(&mut value).unwrap();
        assert_eq!(value, format!("{wanted}\r\n").into_bytes());
        assert_eq!(self.line(), "END");
    }

    /// Commands until `stop`, counted; the longest that one took.
    fn run(mut self, done: &AtomicU64, stop: &AtomicBool) -> Duration {
        let mut longest = Duration::ZERO;
        while !stop.load(Relaxed) {
            let began = Instant::now();
            self.step();
            longest = longest.max(began.elapsed());
            done.fetch_add(1, Relaxed);
        }
        longest
    }
}

fn wait_for(done: &AtomicU64, commands: u64) {
    let began = Instant::now();
    while done.load(Relaxed) < commands {
        assert!(began.elapsed() < 2 * PATIENCE, "the clients stand still");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn memcached_with_all_its_threads() {
    for seed in 1..=u64::from(repeats()) {
        let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
        let protection = Protection {
            understudy: understudy().unwrap(),
            options: Vec::new(),
        };
        let command = ["memcached", "-u", "root", "-t", "4"].map(str::to_owned);
        let service =
            Service::protected(&bed, scratch.path(), &protection, &command, PORT).unwrap();
        let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let longest = std::thread::scope(|scope| {
            let client = |number| {
                let (bed, service, done, stop) = (&bed, &service, &done, &stop);
                scope.spawn(move || {
                    let connect = || Ok(Client::connect(service.address, number, seed));
                    let client = bed.host("client").unwrap().inside(connect);
                    client.unwrap().run(done, stop)
                })
            };
            let clients: Vec<_> = (0..CLIENTS).map(client).collect();
            let mut rng = Rng::new(seed, CLIENTS);
            wait_for(&done, 2000 + rng.below(8000));
            assert_eq!(service.takeover(), None, "nothing was lost yet");
            service.lose(&bed, Loss::Shim, &mut rng).unwrap();
            wait_for(&done, done.load(Relaxed) + 5000);
            stop.store(true, Relaxed);
            let longest = clients.into_iter().map(|c| c.join().unwrap()).max();
            longest.unwrap()
        });
        let line = service.takeover().unwrap();
        println!("{seed}: longest reply {longest:.0?}, {line}");
    }
}
