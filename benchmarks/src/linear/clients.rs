//! Clients of a redis who work on the same keys, and remember everything.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::history::{History, Operation};
use super::object::{Answer, Call, Kind, hash_of};
use super::order::explain;
use crate::load::{Reply, command, parse};
use crate::rng::Rng;

/// Clients, with a connection each.
const CLIENTS: usize = 6;
/// Keys of each kind: few, so that clients meet.
const KEYS: usize = 3;
const KINDS: [Kind; 3] = [Kind::Counter, Kind::List, Kind::Register];
/// Commands of each client at most: what is remembered is bounded.
const MOST: usize = 4000;
/// Between two commands of a client.
const PAUSE: Duration = Duration::from_millis(1);
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Puts a value in another's place; answers the one before.
const SWAP: &str = "local v = redis.call('GET', KEYS[1]) or '0'; \
                    if v == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end; return v";

/// Clients on shared keys, for as long as a run takes.
#[derive(Debug)]
pub struct Clients {
    server: SocketAddr,
    seed: u64,
    began: Instant,
    stop: AtomicBool,
    /// One for each key.
    histories: Mutex<Vec<History>>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Finding {
    /// Commands that were answered.
    pub answered: usize,
    /// Keys whose answers no order explains, in words.
    pub unexplained: Vec<String>,
    /// Clients that could not go on, in words.
    pub broken: Vec<String>,
}

impl Clients {
    /// Those of a server, whose choices `seed` decides.
    #[must_use]
    pub fn new(server: SocketAddr, seed: u64) -> Self {
        let keys = KINDS
            .iter()
            .flat_map(|kind| (0..KEYS).map(move |n| (*kind, n)));
        let histories = keys.map(|(kind, n)| History {
            key: format!("shared:{kind:?}:{n}"),
            kind,
            operations: Vec::new(),
        });
        Self {
            server,
            seed,
            began: Instant::now(),
            stop: AtomicBool::new(false),
            histories: Mutex::new(histories.collect()),
        }
    }

    /// Ends [`Self::run`].
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Works until stopped, from threads that are made by the calling one, in whose network namespace they are; then reads
    /// everything back, and judges.
    #[must_use]
    pub fn run(&self) -> Finding {
        let mut broken: Vec<String> = std::thread::scope(|scope| {
            let clients = (0..CLIENTS).map(|client| scope.spawn(move || self.client(client)));
            let clients: Vec<_> = clients.collect();
            let ended = clients.into_iter().enumerate().map(|(client, thread)| {
                let ended = thread.join();
                let ended = ended.unwrap_or_else(|_| Err(anyhow!("it panicked")));
                ended.map_err(|e| format!("client {client} of shared keys: {e:#}"))
            });
            ended.filter_map(Result::err).collect()
        });
        if let Err(e) = self.read_back() {
            broken.push(format!("shared keys cannot be read back: {e:#}"));
        }
        let histories = self.histories.lock();
        let histories = histories.unwrap_or_else(PoisonError::into_inner);
        let unexplained = histories.iter().filter_map(|h| explain(h).err());
        let unexplained = unexplained.map(|u| u.to_string()).collect();
        let all = histories.iter().flat_map(|history| &history.operations);
        Finding {
            answered: all.filter(|o| o.answered.is_some()).count(),
            unexplained,
            broken,
        }
    }

    fn client(&self, client: usize) -> Result<()> {
        let mut rng = Rng::new(self.seed, 100 + client as u64);
        let mut connection = Connection::open(self.server)?;
        let mut seen = [0; KINDS.len() * KEYS];
        for number in 0..MOST {
            if self.stop.load(Relaxed) {
                break;
            }
            let key = rng.below(seen.len() as u64) as usize;
            let unique = (number * CLIENTS + client) as u64 + 1;
            let call = match (KINDS[key / KEYS], rng.below(4)) {
                (_, 0) => Call::Read,
                (Kind::Counter, _) => Call::Increment,
                (Kind::List, _) => Call::Push(unique),
                (Kind::Register, _) => Call::Swap {
                    from: seen[key],
                    to: unique,
                },
            };
            let answer = self.ask(&mut connection, client, key, call)?;
            seen[key] = match call {
                Call::Swap { from, to } if answer == from => to,
                _ => answer,
            };
            std::thread::park_timeout(PAUSE);
        }
        Ok(())
    }

    /// Asks once, and remembers it.
    fn ask(
        &self,
        connection: &mut Connection,
        client: usize,
        key: usize,
        call: Call,
    ) -> Result<Answer> {
        let now = || self.began.elapsed().as_nanos() as u64;
        let name = self.with(key, |history| history.key.clone());
        let kind = KINDS[key / KEYS];
        let asked = now();
        let answer = connection.ask(&name, kind, call);
        let answered = answer.as_ref().ok().map(|answer| (now(), *answer));
        let operation = Operation {
            client,
            call,
            asked,
            answered,
        };
        self.with(key, |history| history.operations.push(operation));
        answer.with_context(|| format!("{call:?} on {name}"))
    }

    fn read_back(&self) -> Result<()> {
        let mut connection = Connection::open(self.server)?;
        for key in 0..KINDS.len() * KEYS {
            let call = match KINDS[key / KEYS] {
                Kind::List => Call::ReadAll,
                Kind::Counter | Kind::Register => Call::Read,
            };
            self.ask(&mut connection, CLIENTS, key, call)?;
        }
        Ok(())
    }

    fn with<T>(&self, key: usize, work: impl FnOnce(&mut History) -> T) -> T {
        let histories = self.histories.lock();
        work(&mut histories.unwrap_or_else(PoisonError::into_inner)[key])
    }
}

/// A connection that waits for its answers.
struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Connection {
    fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
        })
    }

    fn ask(&mut self, key: &str, kind: Kind, call: Call) -> Result<Answer> {
        let mut out = Vec::new();
        let (name, mut words) = (key.as_bytes(), Vec::<String>::new());
        match (kind, call) {
            (_, Call::Increment) => command(&mut out, &[b"INCR", name]),
            (_, Call::Push(item)) => {
                command(&mut out, &[b"RPUSH", name, item.to_string().as_bytes()]);
            }
            (_, Call::Swap { from, to }) => {
                words.extend([from, to].map(|word| word.to_string()));
                let (from, to) = (words[0].as_bytes(), words[1].as_bytes());
                command(&mut out, &[b"EVAL", SWAP.as_bytes(), b"1", name, from, to]);
            }
            (_, Call::ReadAll) => command(&mut out, &[b"LRANGE", name, b"0", b"-1"]),
            (Kind::List, Call::Read) => command(&mut out, &[b"LINDEX", name, b"-1"]),
            (Kind::Counter | Kind::Register, Call::Read) => command(&mut out, &[b"GET", name]),
        }
        self.stream.write_all(&out)?;
        loop {
            if let Some((reply, used)) = parse(&self.input)? {
                let answer = understood(&reply)?;
                self.input.drain(..used);
                return Ok(answer);
            }
            let mut more = [0; 16 << 10];
            match self.stream.read(&mut more) {
                Ok(0) => bail!("the connection was closed"),
                Ok(n) => self.input.extend_from_slice(&more[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn understood(reply: &Reply<'_>) -> Result<Answer> {
    match reply {
        Reply::Int(number) => Ok(u64::try_from(*number)?),
        Reply::Bulk(None) => Ok(0),
        Reply::Bulk(Some(text)) => Ok(std::str::from_utf8(text)?.parse()?),
        Reply::Array(items) => {
            let items: Result<Vec<Answer>> = items.iter().map(understood).collect();
            Ok(hash_of(items?.into_iter()))
        }
        other => bail!("the answer is {other:?}"),
    }
}
