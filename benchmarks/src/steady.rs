//! Load at a steady pace from one thread, with every answer checked.
//!
//! In: a server's address and [`Exchange`]s, which are made over and over, each on the next connection that waits for
//! nothing. Out: how many were answered in which time. Requests are sent one by one, evenly spaced, however fast answers
//! come: a server that is done before the next one finds one whenever it wakes, whether its answers are held back or not.
//! Answers are read when the next request is due. Since nobody waits for them, none wakes anybody: that is work of
//! whoever sends, as much as a small request itself, and there may be more or less of it from one run to the next.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::exchange::{Exchange, Progress};

/// Between two looks at what is asked first.
const LOOK: Duration = Duration::from_millis(1);
/// Silence after which a server counts as stuck.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes taken from a connection at a time.
const CHUNK: usize = 64 << 10;

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Served {
    /// Requests, all of them answered.
    pub answers: u64,
    /// Time from the first request to the last answer.
    pub took: Duration,
}

impl Served {
    /// Answers a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.answers as f64 / self.took.as_secs_f64()
    }
}

/// Connections to one server.
#[derive(Debug)]
pub struct Load {
    connections: Vec<Connection>,
    exchanges: Vec<Exchange>,
    timer: TimerFd,
    /// Requests sent so far: decides which comes next.
    sent: u64,
    answered: u64,
    /// The connection that is looked at first for the next request.
    next: usize,
    chunk: Vec<u8>,
    /// When something was sent or answered last.
    heard: Instant,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// The exchange under way.
    waiting: Option<usize>,
    input: Vec<u8>,
}

impl Load {
    /// Connects from this thread's network namespace. Each of `first` is made once.
    ///
    /// # Errors
    /// If the server does not accept, or does not answer as it should; if there is nothing to ask.
    pub fn connect(
        at: SocketAddr,
        connections: usize,
        first: Vec<Exchange>,
        exchanges: Vec<Exchange>,
    ) -> Result<Self> {
        ensure!(
            connections > 0 && !exchanges.is_empty(),
            "there is nothing to ask"
        );
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        let connect = |_| {
            let stream = TcpStream::connect_timeout(&at, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(Connection {
                stream,
                waiting: None,
                input: Vec::new(),
            })
        };
        let connected: std::io::Result<Vec<_>> = (0..connections).map(connect).collect();
        let mut load = Self {
            connections: connected.with_context(|| format!("{at} does not accept"))?,
            exchanges: first,
            timer,
            sent: 0,
            answered: 0,
            next: 0,
            chunk: vec![0; CHUNK],
            heard: Instant::now(),
        };
        load.look_each(LOOK)?;
        let count = load.exchanges.len() as u64;
        while load.sent < count {
            load.turn(count)?;
        }
        load.settle()?;
        (load.exchanges, load.sent, load.answered) = (exchanges, 0, 0);
        Ok(load)
    }

    /// Asks for `duration`, `rate` times a second, then waits for the last answers.
    ///
    /// # Errors
    /// If an answer is wrong, or none comes for ten seconds.
    pub fn run(&mut self, rate: u32, duration: Duration) -> Result<Served> {
        self.look_each(Duration::from_secs(1) / rate.max(1))?;
        let (before, base) = (self.answered, self.sent);
        let start = Instant::now();
        self.heard = start;
        while start.elapsed() < duration {
            let due = start.elapsed().as_secs_f64() * f64::from(rate);
            self.turn(base + due as u64)?;
        }
        self.settle()?;
        Ok(Served {
            answers: self.answered - before,
            took: start.elapsed(),
        })
    }

    fn look_each(&self, time: Duration) -> Result<()> {
        let each = Expiration::Interval(TimeSpec::from_duration(time));
        Ok(self.timer.set(each, TimerSetTimeFlags::empty())?)
    }

    /// Waits until everything is answered.
    fn settle(&mut self) -> Result<()> {
        while self.answered < self.sent {
            self.turn(self.sent)?;
        }
        Ok(())
    }

    /// Sends until so many requests are sent, or every connection waits; sleeps until the next look, and takes what has
    /// come meanwhile.
    fn turn(&mut self, due: u64) -> Result<()> {
        while self.sent < due && self.send_next()? {}
        self.timer.wait()?;
        for index in 0..self.connections.len() {
            self.take(index)?;
        }
        ensure!(
            self.heard.elapsed() < PATIENCE,
            "no answer for {PATIENCE:?}"
        );
        Ok(())
    }

    /// Sends the next request; false if every connection waits for an answer.
    fn send_next(&mut self) -> Result<bool> {
        let count = self.connections.len();
        let free = (0..count)
            .map(|offset| (self.next + offset) % count)
            .find(|&index| self.connections[index].waiting.is_none());
        let Some(index) = free else {
            return Ok(false);
        };
        let number = (self.sent % self.exchanges.len() as u64) as usize;
        let connection = &mut self.connections[index];
        // Far less than a socket takes: it comes to no state where it takes a part of it, or nothing.
        connection
            .stream
            .write_all(self.exchanges[number].request())?;
        connection.waiting = Some(number);
        self.sent += 1;
        self.heard = Instant::now();
        self.next = (index + 1) % count;
        Ok(true)
    }

    /// Reads what has come on a connection that waits for it.
    fn take(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        while let Some(number) = connection.waiting {
            let got = match connection.stream.read(&mut self.chunk) {
                Ok(0) => bail!("the server closed connection {index}"),
                Ok(got) => got,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e).with_context(|| format!("connection {index} broke")),
            };
            connection.input.extend_from_slice(&self.chunk[..got]);
            if self.exchanges[number].judge(&connection.input)? == Progress::Whole {
                connection.input.clear();
                connection.waiting = None;
                self.answered += 1;
                self.heard = Instant::now();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::exchange;

    /// A store that has what it shall have, and answers in two parts.
    fn serve(listener: &TcpListener, answers: Vec<Vec<u8>>) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        for answer in answers.iter().cycle() {
            if stream.read(&mut request).unwrap_or(0) == 0 {
                return;
            }
            let (front, back) = answer.split_at(answer.len() / 2);
            stream.write_all(front).unwrap();
            stream.write_all(back).unwrap();
        }
    }

    #[test]
    fn answers_are_counted_and_a_wrong_one_ends_it() {
        let ask = |answers: Vec<Vec<u8>>| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let at = listener.local_addr().unwrap();
            std::thread::spawn(move || serve(&listener, answers));
            let (first, _) = exchange::redis();
            let mut load = Load::connect(at, 1, Vec::new(), first)?;
            load.run(1000, Duration::from_millis(50))
        };
        let served = ask(vec![b"+OK\r\n".to_vec()]).unwrap();
        assert!((1..=50).contains(&served.answers), "{served:?}");
        assert!(ask(vec![b"+OK\r\n".to_vec(), b"-NO\r\n".to_vec()]).is_err());
    }
}
