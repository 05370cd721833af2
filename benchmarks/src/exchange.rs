//! Questions to servers of several kinds, each with the one answer that is right.

use anyhow::{Result, bail, ensure};

use crate::load::command;
use crate::rng::Rng;
use crate::servers::content;

/// Keys of a store, and bytes of each value.
const KEYS: u64 = 500;
const VALUE_LEN: usize = 64;
/// A web server is asked for files up to this number: nothing to 9 kB, 2.4 kB on the average.
const SMALL_FILES: u64 = 14;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const STATUS: &[u8] = b"HTTP/1.1 200 OK\r\n";

/// A request and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    request: Vec<u8>,
    answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A head that tells of success, and this body.
    Page(Vec<u8>),
}

/// How much of an answer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More has to come.
    Partial,
    /// All of it.
    Whole,
}

impl Exchange {
    /// What is sent.
    #[must_use]
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Compares what has come so far.
    ///
    /// # Errors
    /// If it is not, or does not begin, the right answer.
    pub fn judge(&self, input: &[u8]) -> Result<Progress> {
        let whole = match &self.answer {
            Answer::Bytes(bytes) => {
                let good = bytes.starts_with(input);
                ensure!(good, "{:?} instead of {:?}", text(input), text(bytes));
                input.len() == bytes.len()
            }
            Answer::Page(page) => {
                let begins = STATUS.starts_with(&input[..input.len().min(STATUS.len())]);
                ensure!(begins, "the answer begins with {:?}", text(input));
                let head = input
                    .windows(END_OF_HEAD.len())
                    .position(|w| w == END_OF_HEAD);
                let Some(head) = head else {
                    return Ok(Progress::Partial);
                };
                let body = &input[head + END_OF_HEAD.len()..];
                if !page.starts_with(body) {
                    bail!("{} bytes that are not those of the file", body.len());
                }
                body.len() == page.len()
            }
        };
        Ok(if whole {
            Progress::Whole
        } else {
            Progress::Partial
        })
    }
}

/// The beginning of an answer, for messages.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned()
}

/// SET of every key, and then SET and GET in turn, 64 bytes each.
#[must_use]
pub fn redis() -> (Vec<Exchange>, Vec<Exchange>) {
    let ask = |words: &[&[u8]], answer: Vec<u8>| {
        let mut request = Vec::new();
        command(&mut request, words);
        let answer = Answer::Bytes(answer);
        Exchange { request, answer }
    };
    store(
        |key, value| ask(&[b"SET", key, value], b"+OK\r\n".to_vec()),
        |key, value| {
            let head = format!("${}\r\n", value.len());
            ask(&[b"GET", key], [head.as_bytes(), value, b"\r\n"].concat())
        },
    )
}

/// `set` of every key, and then `set` and `get` in turn, 64 bytes each.
#[must_use]
pub fn memcached() -> (Vec<Exchange>, Vec<Exchange>) {
    let ask = |request: &[&[u8]], answer: &[&[u8]]| Exchange {
        request: request.concat(),
        answer: Answer::Bytes(answer.concat()),
    };
    let len = VALUE_LEN.to_string();
    let len = len.as_bytes();
    store(
        |key, value| {
            let request = [b"set ", key, b" 0 0 ", len, b"\r\n", value, b"\r\n"];
            ask(&request, &[b"STORED\r\n"])
        },
        |key, value| {
            let answer = [b"VALUE ", key, b" 0 ", len, b"\r\n", value, b"\r\nEND\r\n"];
            ask(&[b"get ", key, b"\r\n"], &answer)
        },
    )
}

/// What is to be stored first, and then the same with a look at each.
fn store(
    set: impl Fn(&[u8], &[u8]) -> Exchange,
    get: impl Fn(&[u8], &[u8]) -> Exchange,
) -> (Vec<Exchange>, Vec<Exchange>) {
    let entries: Vec<(Vec<u8>, Vec<u8>)> = (0..KEYS)
        .map(|number| (format!("key:{number}").into_bytes(), value(number)))
        .collect();
    let first = entries.iter().map(|(key, value)| set(key, value)).collect();
    let both = entries
        .iter()
        .flat_map(|(key, value)| [set(key, value), get(key, value)])
        .collect();
    (first, both)
}

/// Letters: memcached's protocol is one of lines.
fn value(number: u64) -> Vec<u8> {
    let mut rng = Rng::new(number, 0);
    let letter = |_| b'a' + rng.below(26) as u8;
    (0..VALUE_LEN).map(letter).collect()
}

/// GET of the smaller of the [files](crate::servers::FILES), in turn.
#[must_use]
pub fn web() -> Vec<Exchange> {
    let get = |number| Exchange {
        request: format!("GET /{number} HTTP/1.1\r\nHost: here\r\n\r\n").into_bytes(),
        answer: Answer::Page(content(number)),
    };
    (0..SMALL_FILES).map(get).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_come_in_parts_but_not_be_another() {
        let (first, both) = redis();
        assert_eq!((first.len(), both.len()), (500, 1000));
        assert_eq!(first[3], both[6]);
        assert_eq!(first[0].judge(b"+O").unwrap(), Progress::Partial);
        assert_eq!(first[0].judge(b"+OK\r\n").unwrap(), Progress::Whole);
        assert!(first[0].judge(b"+OK\r\n+").is_err());
        assert!(first[0].judge(b"-ERR").is_err());
        let (_, both) = memcached();
        let mut answer = b"VALUE key:0 0 64\r\n".to_vec();
        answer.extend(value(0));
        assert_eq!(both[1].judge(&answer).unwrap(), Progress::Partial);
        answer.extend(b"\r\nEND\r\n");
        assert_eq!(both[1].judge(&answer).unwrap(), Progress::Whole);
    }

    #[test]
    fn a_page_ends_with_its_file() {
        let pages = web();
        let mut answer = b"HTTP/1.1 200 OK\r\nServer: any\r\n\r\n".to_vec();
        assert_eq!(pages[0].judge(&answer).unwrap(), Progress::Whole);
        assert_eq!(pages[2].judge(&answer).unwrap(), Progress::Partial);
        assert_eq!(pages[2].judge(&answer[..9]).unwrap(), Progress::Partial);
        answer.extend(content(2));
        assert_eq!(pages[2].judge(&answer).unwrap(), Progress::Whole);
        answer.push(0);
        assert!(pages[2].judge(&answer).is_err());
        assert!(pages[0].judge(b"HTTP/1.1 404").is_err());
    }
}
