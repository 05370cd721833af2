//! A server that does one thing wrong: the checker must say so, and say nothing of one that does not.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use understudy_bench::load::{self, Config, Report};

/// What the server does wrong, once, with the so-many-th command of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    ForgetsSet,
    RestoresOldValue,
    CountsTwice,
    ForgetsCount,
    PushesTwice,
    ForgetsPush,
    SwapsItems,
    FlipsBitOfValue,
    FlipsBitOfBigValue,
    AnswersError,
    AnswersOther,
    SwallowsReply,
    Resets,
    ClosesEarly,
    DropsPipelined,
    NeverCloses,
}

#[derive(Default)]
struct Store {
    values: HashMap<Vec<u8>, Vec<u8>>,
    old: HashMap<Vec<u8>, Vec<u8>>,
    frozen: Option<Vec<u8>>,
    lists: HashMap<Vec<u8>, Vec<Vec<u8>>>,
}

struct Server {
    fault: Fault,
    store: Mutex<Store>,
    /// Commands so far that the fault could strike.
    chances: AtomicU64,
}

/// The command that is struck; late enough that every connection has written.
const STRUCK: u64 = 200;

impl Server {
    fn start(fault: Fault) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::new(Self {
            fault,
            store: Mutex::default(),
            chances: AtomicU64::new(0),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&server);
                std::thread::spawn(move || server.serve(&stream));
            }
        });
        address
    }

    /// True for the one command that the fault strikes.
    fn strikes(&self, fault: Fault) -> bool {
        self.fault == fault && self.chances.fetch_add(1, Ordering::SeqCst) + 1 == STRUCK
    }

    fn serve(&self, stream: &TcpStream) {
        let mut input = BufReader::new(stream);
        while let Some(words) = command(&mut input) {
            let reply = self.answer(&words);
            if self.strikes(Fault::Resets) {
                // Unread bytes make the kernel reset the connection.
                let _ = nix::sys::socket::setsockopt(
                    stream,
                    nix::sys::socket::sockopt::Linger,
                    &nix::libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    },
                );
                return;
            }
            if self.strikes(Fault::ClosesEarly) {
                close_in_order(input);
                return;
            }
            if self.strikes(Fault::SwallowsReply) {
                continue;
            }
            // More commands are there already: a pipelining or half-closing connection.
            if self.fault == Fault::DropsPipelined
                && !input.buffer().is_empty()
                && self.strikes(self.fault)
            {
                close_in_order(input);
                return;
            }
            let mut stream = stream;
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
        if self.fault == Fault::NeverCloses {
            std::thread::park();
        }
    }

    fn answer(&self, words: &[Vec<u8>]) -> Vec<u8> {
        let mut store = self.store.lock().unwrap();
        let key = words.get(1).cloned().unwrap_or_default();
        match words[0].as_slice() {
            b"PING" => b"+PONG\r\n".to_vec(),
            b"SET" => {
                if self.strikes(Fault::AnswersError) {
                    return b"-OOM no more\r\n".to_vec();
                }
                // A write that the next one covers up leaves no trace: this key is never written again.
                if self.strikes(Fault::ForgetsSet) {
                    store.frozen = Some(key.clone());
                }
                if store.frozen.as_ref() != Some(&key) {
                    let old = store.values.insert(key.clone(), words[2].clone());
                    store.old.insert(key, old.unwrap_or_default());
                }
                b"+OK\r\n".to_vec()
            }
            b"GET" => {
                let mut value = store.values.get(&key).cloned();
                if self.fault == Fault::RestoresOldValue
                    && let Some(old) = store.old.get(&key).filter(|old| !old.is_empty())
                    && self.strikes(Fault::RestoresOldValue)
                {
                    value = Some(old.clone());
                    let old = old.clone();
                    store.values.insert(key, old);
                }
                if let Some(value) = &mut value {
                    let fault = if value.len() == 1 << 20 {
                        Fault::FlipsBitOfBigValue
                    } else {
                        Fault::FlipsBitOfValue
                    };
                    let big_and_due = value.len() == 1 << 20 && self.fault == fault;
                    if big_and_due || self.strikes(fault) {
                        let at = value.len() / 2;
                        value[at] ^= 1;
                    }
                }
                bulk(value.as_deref())
            }
            b"INCR" => {
                let step = match self.fault {
                    Fault::CountsTwice if self.strikes(Fault::CountsTwice) => 2,
                    Fault::ForgetsCount if self.strikes(Fault::ForgetsCount) => 0,
                    _ => 1,
                };
                let value = store.values.entry(key).or_insert_with(|| b"0".to_vec());
                let count = String::from_utf8_lossy(value).parse::<i64>().unwrap() + step;
                *value = count.to_string().into_bytes();
                if self.strikes(Fault::AnswersOther) {
                    b"+OK\r\n".to_vec()
                } else {
                    format!(":{count}\r\n").into_bytes()
                }
            }
            b"RPUSH" => {
                let list = store.lists.entry(key).or_default();
                if !self.strikes(Fault::ForgetsPush) {
                    list.push(words[2].clone());
                }
                if self.strikes(Fault::PushesTwice) {
                    list.push(words[2].clone());
                }
                format!(":{}\r\n", list.len()).into_bytes()
            }
            b"LRANGE" => {
                let mut items = store.lists.get(&key).cloned().unwrap_or_default();
                if self.fault == Fault::SwapsItems && items.len() > 2 {
                    items.swap(0, 1);
                }
                let mut reply = format!("*{}\r\n", items.len()).into_bytes();
                reply.extend(items.iter().flat_map(|item| bulk(Some(item))));
                reply
            }
            b"DEL" => format!(":{}\r\n", u8::from(store.lists.remove(&key).is_some())).into_bytes(),
            other => panic!("the load sent {}", other.escape_ascii()),
        }
    }
}

/// Ends a connection by a FIN also when more of the client's bytes are on their way: to close over unread bytes is to
/// reset (RFC 2525, section 2.17).
fn close_in_order(mut input: BufReader<&TcpStream>) {
    let _ = input.get_ref().shutdown(Shutdown::Write);
    let _ = std::io::copy(&mut input, &mut std::io::sink());
}

fn bulk(value: Option<&[u8]>) -> Vec<u8> {
    let Some(value) = value else {
        return b"$-1\r\n".to_vec();
    };
    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
}

fn command(input: &mut impl BufRead) -> Option<Vec<Vec<u8>>> {
    let mut number = |mark: char| {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        line.trim_end().strip_prefix(mark)?.parse::<usize>().ok()
    };
    let count = number('*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let len = line.trim_end().strip_prefix('$')?.parse::<usize>().ok()?;
        let mut word = vec![0; len + 2];
        input.read_exact(&mut word).ok()?;
        word.truncate(len);
        words.push(word);
    }
    Some(words)
}

/// All kinds of connection at once, for a moment.
fn load(fault: Fault) -> Report {
    let config = Config {
        duration: Duration::from_millis(400),
        closed: 4,
        pipelined: 1,
        depth: 8,
        slow: 1,
        half_closing: 1,
        idle: 2,
        patience: Duration::from_secs(2),
        ..Config::new(Server::start(fault))
    };
    load::run(&config, None).unwrap()
}

#[test]
fn a_correct_server_has_a_flawless_report() {
    let report = load(Fault::Nothing);
    assert!(report.flawless(), "{report:#?}");
    assert!(
        report.replies > 1000 && report.audit.read > 50,
        "{report:#?}"
    );
    assert!(report.faults.examples.is_empty());
}

#[test]
fn what_is_forgotten_is_lost() {
    let faults = load(Fault::ForgetsSet).faults;
    assert!(
        faults.lost >= 1 && faults.twice == 0 && faults.wrong == 0,
        "{faults:#?}"
    );
    for fault in [
        Fault::RestoresOldValue,
        Fault::ForgetsCount,
        Fault::ForgetsPush,
    ] {
        let faults = load(fault).faults;
        assert_eq!(
            (faults.lost, faults.twice, faults.wrong),
            (1, 0, 0),
            "{fault:?}: {faults:#?}"
        );
    }
}

#[test]
fn what_is_done_twice_is_seen() {
    for fault in [Fault::CountsTwice, Fault::PushesTwice] {
        let faults = load(fault).faults;
        assert_eq!(
            (faults.lost, faults.twice, faults.wrong),
            (0, 1, 0),
            "{fault:?}: {faults:#?}"
        );
    }
}

#[test]
fn a_wrong_reply_is_seen() {
    for fault in [
        Fault::FlipsBitOfValue,
        Fault::AnswersError,
        Fault::AnswersOther,
    ] {
        let report = load(fault);
        assert!(
            report.faults.wrong == 1 && report.faults.twice == 0 && report.broken == 0,
            "{fault:?}: {report:#?}"
        );
    }
    for fault in [Fault::FlipsBitOfBigValue, Fault::SwapsItems] {
        let faults = load(fault).faults;
        assert!(
            faults.wrong >= 1 && faults.lost == 0 && faults.twice == 0,
            "{fault:?}: {faults:#?}"
        );
    }
}

#[test]
fn a_broken_connection_is_counted_and_a_reset_told_apart() {
    for (fault, resets) in [
        (Fault::Resets, 1),
        (Fault::ClosesEarly, 0),
        (Fault::DropsPipelined, 0),
    ] {
        let report = load(fault);
        assert_eq!(
            (report.broken, report.resets),
            (1, resets),
            "{fault:?}: {report:#?}"
        );
        assert!(
            report.faults.none() && !report.flawless(),
            "{fault:?}: {report:#?}"
        );
    }
}

#[test]
fn an_end_of_file_that_never_comes_breaks_its_connection() {
    let report = load(Fault::NeverCloses);
    assert_eq!((report.broken, report.resets), (1, 0), "{report:#?}");
}

#[test]
fn a_reply_that_never_comes_breaks_its_connection() {
    let report = load(Fault::SwallowsReply);
    assert!(
        report.broken >= 1 || report.faults.wrong >= 1,
        "{report:#?}"
    );
    assert!(!report.flawless());
}
