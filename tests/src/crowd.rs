//! Clients that ask, check each answer, and ask again, through the loss of their server.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use understudy_bench::bed::Bed;
use understudy_bench::rng::Rng;
use understudy_bench::service::{Loss, Service};

/// Time for anything that a client waits for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);
const CLIENTS: u64 = 10;
/// Answers to all clients together after which the loss may come at any moment, the width of that range, and the
/// answers that must come behind it.
const BEFORE: u64 = 2000;
const RANGE: u64 = 8000;
const AFTER: u64 = 5000;

/// One client with one connection.
pub trait Client: Sized {
    /// Begins to speak; nobody else has its number.
    ///
    /// # Errors
    /// If the server does not answer as it should.
    fn begin(stream: TcpStream, number: u64, rng: Rng) -> Result<Self>;

    /// Asks for something, and checks the answer.
    ///
    /// # Errors
    /// If it is not the right one.
    fn step(&mut self) -> Result<()>;
}

/// One that can go on over another connection.
pub trait Returning: Client {
    /// Its connection.
    fn stream(&self) -> &TcpStream;

    /// Goes on over this one.
    ///
    /// # Errors
    /// If the server does not answer as it should.
    fn come_back(&mut self, stream: TcpStream) -> Result<()>;
}

/// A client that ends its connection now and then, and comes back over another.
pub struct ComesAndGoes<C> {
    client: C,
    rng: Rng,
    left: u64,
}

impl<C: Returning> Client for ComesAndGoes<C> {
    fn begin(stream: TcpStream, number: u64, mut rng: Rng) -> Result<Self> {
        let own = Rng::new(rng.below(1 << 40), number);
        Ok(Self {
            client: C::begin(stream, number, rng)?,
            rng: own,
            left: 1,
        })
    }

    fn step(&mut self) -> Result<()> {
        if self.left == 0 {
            let stream = connect(self.client.stream().peer_addr()?)?;
            self.client.come_back(stream)?;
            self.left = 1 + self.rng.below(6);
        }
        self.left -= 1;
        self.client.step()
    }
}

/// Loads a server with clients of a kind, strikes at a random moment, and sees them go on. The longest that an answer
/// took, and the backup's line.
///
/// # Errors
/// If an answer was wrong, or did not come.
pub fn through_a_loss<C: Client>(
    bed: &Bed,
    service: &Service,
    loss: Loss,
    seed: u64,
) -> Result<(Duration, String)> {
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let client = |number| {
            let (done, stop) = (&done, &stop);
            let run = move || {
                let all = || {
                    let stream = connect(service.address)?;
                    let mut client = C::begin(stream, number, Rng::new(seed, number))?;
                    run(&mut client, done, stop)
                };
                let took = bed.host("client")?.inside(all);
                took.with_context(|| format!("client {number}"))
            };
            scope.spawn(run)
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        let seen = lose(bed, service, loss, seed, &done);
        stop.store(true, Relaxed);
        let mut longest = Duration::ZERO;
        for client in clients {
            let took = client.join().map_err(|_| anyhow!("a client panicked"))?;
            longest = longest.max(took.with_context(|| format!("beside it: {seen:?}"))?);
        }
        Ok((longest, seen?))
    })
}

/// A connection as clients have them. For one that begins another in a step.
///
/// # Errors
/// If the server does not answer.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks until `stop`, and counts; the longest that one answer took.
fn run(client: &mut impl Client, done: &AtomicU64, stop: &AtomicBool) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    while !stop.load(Relaxed) {
        let began = Instant::now();
        client.step().with_context(|| {
            let (all, took) = (done.load(Relaxed), began.elapsed());
            format!("after {all} answers to all, {took:.0?} behind its last, whose longest took {longest:.0?}")
        })?;
        longest = longest.max(began.elapsed());
        done.fetch_add(1, Relaxed);
    }
    Ok(longest)
}

fn lose(bed: &Bed, service: &Service, loss: Loss, seed: u64, done: &AtomicU64) -> Result<String> {
    let mut rng = Rng::new(seed, CLIENTS);
    wait_for(done, BEFORE + rng.below(RANGE))?;
    ensure!(service.takeover().is_none(), "nothing was lost yet");
    service.lose(bed, loss, &mut rng)?;
    let line = service.await_takeover(PATIENCE)?;
    let taken_over = done.load(Relaxed);
    wait_for(done, taken_over + AFTER)
        .with_context(|| format!("{line}; the backup said: {}", service.said("backup")))?;
    Ok(format!("after {taken_over} answers: {line}"))
}

fn wait_for(done: &AtomicU64, answers: u64) -> Result<()> {
    let (mut last, mut since) = (done.load(Relaxed), Instant::now());
    while done.load(Relaxed) < answers {
        let now = done.load(Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() < PATIENCE, "the clients stand still");
        std::thread::sleep(LOOK);
    }
    Ok(())
}
