//! All connections of a run on one thread, over epoll.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::connection::{Broken, Connection, Kind};
use super::data::DataSet;
use super::faults::Faults;
use super::histogram::Histogram;
use super::model::{Mix, Model};
use super::timeline::{STEP, Timeline};
use super::{Config, Step};

/// Events taken from the kernel at a time.
const EVENTS: usize = 256;

/// A run in progress.
pub(crate) struct Driver {
    server: SocketAddrV4,
    set: Rc<DataSet>,
    mix: Mix,
    /// Time between two commands of one closed-loop connection, if the rate is limited.
    every: Option<Duration>,
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    /// Writers whose connection is broken: their writes are audited all the same.
    pub(crate) widows: Vec<Model>,
    /// When which connection has something to do.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    now: Instant,
    /// New commands are given out.
    issuing: bool,
    steps: Option<Sender<Step>>,
    steps_sent: usize,
    pub(crate) line: Timeline,
    /// How long commands were sent.
    pub(crate) took: Duration,
    pub(crate) faults: Faults,
    /// Closed-loop and pipelining connections.
    pub(crate) latency: Histogram,
    pub(crate) replies: u64,
    pub(crate) broken: u64,
    pub(crate) resets: u64,
}

impl Driver {
    /// Connects everything; returns when all are connected.
    ///
    /// # Errors
    /// If one of them cannot be within `config.patience`.
    pub(crate) fn connect(
        config: &Config,
        set: &Rc<DataSet>,
        server: SocketAddrV4,
    ) -> Result<Self> {
        let now = Instant::now();
        let mut driver = Self {
            server,
            set: Rc::clone(set),
            mix: config.mix,
            every: config.rate.map(|rate| {
                Duration::from_secs_f64(config.closed.max(1) as f64 / f64::from(rate.max(1)))
            }),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            connections: Vec::new(),
            widows: Vec::new(),
            timers: BinaryHeap::new(),
            now,
            issuing: false,
            steps: None,
            steps_sent: 0,
            line: Timeline::new(now),
            took: Duration::ZERO,
            faults: Faults::default(),
            latency: Histogram::new(),
            replies: 0,
            broken: 0,
            resets: 0,
        };
        for kind in config.kinds() {
            let number = driver.connections.len();
            let model = Model::new(Rc::clone(set), number as u64);
            let connection = Connection::open(server, kind, model)
                .with_context(|| format!("connection {number} to {server} could not be opened"))?;
            let event = EpollEvent::new(interest(&connection), number as u64);
            driver.epoll.add(&connection.stream, event)?;
            driver.connections.push(Some(connection));
        }
        let end = now + config.patience;
        while driver.connections.iter().flatten().any(|c| c.connecting) {
            driver.turn(Duration::from_millis(50))?;
            if driver.broken > 0 {
                bail!(
                    "{} connections to {server} failed: {}",
                    driver.broken,
                    driver.faults.examples.join("; ")
                );
            }
            if Instant::now() > end {
                bail!(
                    "{server} has not accepted all connections after {:?}",
                    config.patience
                );
            }
        }
        Ok(driver)
    }

    /// Runs the load for `config.duration`, then waits for outstanding replies.
    ///
    /// # Errors
    /// If epoll fails.
    pub(crate) fn run(&mut self, config: &Config, steps: Option<Sender<Step>>) -> Result<Instant> {
        self.now = Instant::now();
        let start = self.now;
        self.line = Timeline::new(start);
        (self.steps, self.issuing) = (steps, true);
        for number in 0..self.connections.len() {
            self.begin(number);
        }
        while self.now < start + config.duration {
            self.turn(start + config.duration - self.now)?;
        }
        self.line.finish(self.now);
        self.took = self.now.saturating_duration_since(start);
        self.issuing = false;
        let end = self.now + config.patience;
        self.with_each(|connection, now| match connection.kind {
            Kind::Idle => connection.ping(now),
            _ => Ok(()),
        });
        while self
            .connections
            .iter()
            .flatten()
            .any(Connection::unfinished)
            && self.now < end
        {
            self.turn(end - self.now)?;
        }
        for number in 0..self.connections.len() {
            if self.connections[number]
                .as_ref()
                .is_some_and(Connection::unfinished)
            {
                let silence = std::io::Error::from(std::io::ErrorKind::TimedOut);
                self.bury(number, &silence.into());
            }
        }
        self.steps = None;
        Ok(start)
    }

    /// The models of all connections, broken or not.
    pub(crate) fn into_models(self) -> (Vec<Model>, Faults) {
        let living = self.connections.into_iter().flatten().map(|c| c.model);
        (living.chain(self.widows).collect(), self.faults)
    }

    /// Waits for events, but not longer than `limit`, and deals with them.
    fn turn(&mut self, limit: Duration) -> Result<()> {
        let mut limit = limit.min(STEP);
        if let Some(Reverse((due, _))) = self.timers.peek() {
            limit = limit.min(due.saturating_duration_since(self.now));
        }
        // Rounded up: rounded down, it would spin until a timer is due.
        let timeout =
            EpollTimeout::from(u8::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(u8::MAX));
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other?,
        };
        self.now = Instant::now();
        for event in &events[..count] {
            self.ready(event.data() as usize, event.events());
        }
        while let Some(&Reverse((due, number))) = self.timers.peek() {
            if due > self.now {
                break;
            }
            self.timers.pop();
            self.due(number, due);
        }
        self.report();
        Ok(())
    }

    fn ready(&mut self, number: usize, what: EpollFlags) {
        self.with(number, |driver, connection| {
            if connection.connecting {
                connection.connected()?;
                if driver.issuing {
                    driver.start(number, connection)?;
                }
            } else if what.contains(EpollFlags::EPOLLOUT) {
                connection.flush()?;
            }
            let hurt = what.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            if hurt || (what.contains(EpollFlags::EPOLLIN) && connection.wants_to_read()) {
                driver.take(number, connection)?;
            }
            Ok(())
        });
    }

    /// The first commands of a connection.
    fn begin(&mut self, number: usize) {
        self.with(number, |driver, connection| {
            driver.start(number, connection)
        });
    }

    fn start(&mut self, number: usize, connection: &mut Connection) -> Result<(), Broken> {
        match (connection.kind, self.every) {
            (Kind::Idle, _) => return connection.ping(self.now),
            (Kind::Slow { .. }, _) => self
                .timers
                .push(Reverse((self.now + connection.pause(), number))),
            (Kind::Loop { depth: 1 }, Some(every)) => {
                // Not all at once.
                let offset = every.mul_f64(connection.model.choose(1000) as f64 / 1000.0);
                self.timers.push(Reverse((self.now + offset, number)));
                return Ok(());
            }
            _ => {}
        }
        connection.issue(self.mix, &self.set, self.now)
    }

    /// A connection's time has come: a slow reader's to read, a limited one's to send.
    fn due(&mut self, number: usize, due: Instant) {
        self.with(number, |driver, connection| {
            if let (true, Some(every)) = (connection.wants_to_read(), driver.every) {
                // Kept up after a late reply, but not after a long silence.
                connection.next = (due + every).max(driver.now - every);
                return if driver.issuing {
                    connection.issue(driver.mix, &driver.set, driver.now)
                } else {
                    Ok(())
                };
            }
            driver.take(number, connection)?;
            driver
                .timers
                .push(Reverse((driver.now + connection.pause(), number)));
            Ok(())
        });
    }

    /// Reads, counts, and goes on.
    fn take(&mut self, number: usize, connection: &mut Connection) -> Result<(), Broken> {
        let progress = connection.read(self.now, &mut self.faults)?;
        if progress.complete {
            connection.reopen(self.server)?;
            self.epoll
                .add(
                    &connection.stream,
                    EpollEvent::new(interest(connection), number as u64),
                )
                .map_err(std::io::Error::from)?;
            return Ok(());
        }
        self.replies += progress.took.len() as u64;
        let steady = matches!(connection.kind, Kind::Loop { .. });
        for took in &progress.took {
            if steady && self.issuing {
                self.latency.add(*took);
                self.line.reply(self.now);
            }
        }
        if progress.took.is_empty() || !self.issuing {
            return Ok(());
        }
        match (connection.kind, self.every) {
            (Kind::Loop { depth: 1 }, Some(_)) => {
                self.timers
                    .push(Reverse((connection.next.max(self.now), number)));
                Ok(())
            }
            (Kind::HalfClosing | Kind::Idle, _) => Ok(()),
            _ => connection.issue(self.mix, &self.set, self.now),
        }
    }

    /// Does something with a connection that is not broken; buries it if it breaks.
    fn with(
        &mut self,
        number: usize,
        work: impl FnOnce(&mut Self, &mut Connection) -> Result<(), Broken>,
    ) {
        let Some(mut connection) = self.connections.get_mut(number).and_then(Option::take) else {
            return;
        };
        let before = interest(&connection);
        let worked = work(self, &mut connection);
        let after = interest(&connection);
        if worked.is_ok() && before != after {
            let mut event = EpollEvent::new(after, number as u64);
            // Fails for no connection that is open, and a closed one needs no events.
            let _ = self.epoll.modify(&connection.stream, &mut event);
        }
        self.connections[number] = Some(connection);
        if let Err(why) = worked {
            self.bury(number, &why);
        }
    }

    fn with_each(&mut self, mut work: impl FnMut(&mut Connection, Instant) -> Result<(), Broken>) {
        for number in 0..self.connections.len() {
            self.with(number, |driver, connection| work(connection, driver.now));
        }
    }

    fn bury(&mut self, number: usize, why: &Broken) {
        if let Some(connection) = self.connections[number].take() {
            self.broken += 1;
            self.resets += u64::from(why.is_reset());
            self.faults
                .note(|| format!("connection {number} ({}) broke: {why}", connection.kind));
            self.widows.push(connection.model);
        }
    }

    /// Tells the observer of steps that are complete.
    fn report(&mut self) {
        if !self.issuing {
            return;
        }
        let complete = self.line.advance(self.now);
        let Some(steps) = &self.steps else { return };
        while self.steps_sent < complete {
            let step = Step {
                index: self.steps_sent,
                replies: self.line.counts()[self.steps_sent],
                faults: self.faults.lost + self.faults.twice + self.faults.wrong,
                broken: self.broken,
            };
            self.steps_sent += 1;
            if steps.send(step).is_err() {
                break;
            }
        }
    }
}

fn interest(connection: &Connection) -> EpollFlags {
    let mut flags = EpollFlags::empty();
    flags.set(
        EpollFlags::EPOLLIN,
        connection.wants_to_read() && !connection.connecting,
    );
    flags.set(EpollFlags::EPOLLOUT, connection.wants_to_write());
    flags
}
