//! Closed-loop clients that check every byte and time every answer.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::primary::FLIP;
use super::{Bed, service};

/// Byte `at` of client `n`'s stream.
fn pattern(n: usize, at: u64) -> u8 {
    ((at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n as u64).wrapping_mul(0xd1b5_4a32_d192_ed03))
        .to_le_bytes()[5]
}

struct Client {
    stream: TcpStream,
    n: usize,
    sent: u64,
    got: u64,
    until: u64,
    since: Instant,
    next: Instant,
    worst: Duration,
    answers: u64,
    finished: bool,
}

#[derive(Debug, Default)]
pub struct Report {
    pub worst: Vec<Duration>,
    pub answers: u64,
    pub broken: Vec<String>,
}

/// Clients at work.
pub struct Clients {
    stop: Arc<AtomicBool>,
    pub answers: Arc<AtomicU64>,
    worst: Arc<Mutex<Option<Duration>>>,
    thread: std::thread::JoinHandle<Report>,
}

impl Clients {
    /// Starts `count` clients that each ask, wait for the whole answer, think, and ask again. Latency is
    /// recorded from the moment `mark` was called.
    pub fn start(bed: &Bed, count: usize, largest: u64, think: Duration) -> Self {
        let streams: Vec<_> = bed.inside('c', || {
            (0..count)
                .map(|_| TcpStream::connect(service()).unwrap())
                .collect()
        });
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicU64::new(0));
        let worst = Arc::new(Mutex::new(Some(Duration::ZERO)));
        let (stop2, answers2, worst2) = (stop.clone(), answers.clone(), worst.clone());
        let thread =
            std::thread::spawn(move || run(streams, &stop2, &answers2, &worst2, largest, think));
        Self {
            stop,
            answers,
            worst,
            thread,
        }
    }

    /// The worst wait so far; from now on it is measured anew.
    pub fn forget_worst(&self) -> Duration {
        let taken = self.worst.lock().unwrap().take().unwrap();
        super::until("the clients to forget", || {
            self.worst.lock().unwrap().is_some()
        });
        taken
    }

    /// Lets every client finish its request and end; returns the worst wait of each.
    pub fn finish(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the clients' thread")
    }
}

fn run(
    streams: Vec<TcpStream>,
    stop: &AtomicBool,
    answers: &AtomicU64,
    worst: &Mutex<Option<Duration>>,
    largest: u64,
    think: Duration,
) -> Report {
    let now = Instant::now();
    let mut clients: Vec<Client> = streams
        .into_iter()
        .enumerate()
        .map(|(n, stream)| {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
            let (since, worst) = (now, Duration::ZERO);
            let next = now + think * n as u32 / 50;
            Client {
                stream,
                n,
                sent: 0,
                got: 0,
                until: 0,
                since,
                next,
                worst,
                answers: 0,
                finished: false,
            }
        })
        .collect();
    let mut report = Report::default();
    let mut give_up = None;
    while !clients.is_empty() {
        let stopping = stop.load(Ordering::Relaxed);
        if stopping
            && *give_up.get_or_insert(Instant::now() + Duration::from_secs(10)) < Instant::now()
        {
            report.broken.extend(
                clients
                    .iter()
                    .map(|c| format!("client {}: {} of {}", c.n, c.got, c.until)),
            );
            break;
        }
        let mut idle = true;
        match &mut *worst.lock().unwrap() {
            Some(w) => *w = clients.iter().map(|c| c.worst).max().unwrap_or_default(),
            forgotten => {
                clients.iter_mut().for_each(|c| c.worst = Duration::ZERO);
                *forgotten = Some(Duration::ZERO);
            }
        }
        clients.retain_mut(|c| {
            let before = c.got + c.sent;
            let alive = step(c, stopping, largest, think, &mut report);
            idle &= before == c.got + c.sent;
            if !alive {
                report.worst.push(c.worst);
                report.answers += c.answers;
            }
            alive
        });
        answers.store(
            report.answers + clients.iter().map(|c| c.answers).sum::<u64>(),
            Ordering::Relaxed,
        );
        if idle {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    report.worst.sort();
    report
}

/// One look at one client; false when it is done with.
fn step(
    c: &mut Client,
    stopping: bool,
    largest: u64,
    think: Duration,
    report: &mut Report,
) -> bool {
    let now = Instant::now();
    if c.got == c.until && !c.finished {
        if stopping {
            c.finished = true;
            c.stream.shutdown(std::net::Shutdown::Write).unwrap();
        } else if now >= c.next {
            c.until += 1 + (c.until * 7919 + c.n as u64 * 104_729) % largest;
            c.since = now;
        }
    }
    if c.sent < c.until {
        let to = c.until.min(c.sent + (16 << 10));
        let bytes: Vec<u8> = (c.sent..to).map(|i| pattern(c.n, i)).collect();
        match c.stream.write(&bytes) {
            Ok(n) => c.sent += n as u64,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => {
                report.broken.push(format!("client {} writing: {e}", c.n));
                return false;
            }
        }
    }
    let mut bytes = [0; 16 << 10];
    match c.stream.read(&mut bytes) {
        Ok(0) if c.finished => return false,
        Ok(0) => {
            report.broken.push(format!(
                "client {} met an end at {} of {}",
                c.n, c.got, c.until
            ));
            return false;
        }
        Ok(n) => {
            if let Some(i) = (0..n).find(|i| bytes[*i] ^ FLIP != pattern(c.n, c.got + *i as u64)) {
                report
                    .broken
                    .push(format!("client {}: wrong byte {}", c.n, c.got + i as u64));
                return false;
            }
            c.got += n as u64;
            if c.got == c.until {
                c.answers += 1;
                c.worst = c.worst.max(c.since.elapsed());
                c.next = Instant::now() + think;
            }
        }
        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
        Err(e) => {
            report.broken.push(format!("client {} reading: {e}", c.n));
            return false;
        }
    }
    true
}
