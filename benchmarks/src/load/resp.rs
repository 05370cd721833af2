//! The protocol of redis, as far as its clients need it.

use std::io::Write;

/// A reply, borrowed from the bytes it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    /// `+OK` and the like.
    Simple(&'a [u8]),
    /// `-ERR …`.
    Error(&'a [u8]),
    /// `:n`.
    Int(i64),
    /// A value, or nothing.
    Bulk(Option<&'a [u8]>),
    /// Several replies.
    Array(Vec<Reply<'a>>),
}

/// The bytes cannot be a reply: the stream of replies is broken for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {0:#04x} where a reply must start, or a length that is no number")]
pub(crate) struct NotAReply(u8);

/// Appends a command to `out`.
pub(crate) fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(out, "${}\r\n", word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Reads the reply at the start of `bytes`, and how many bytes it takes; `None` if it is not whole yet.
///
/// # Errors
/// If no bytes to follow can make it a reply.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, NotAReply> {
    let Some(end) = bytes.windows(2).position(|w| w == b"\r\n") else {
        return match bytes.first() {
            Some(b'+' | b'-' | b':' | b'$' | b'*') | None => Ok(None),
            Some(&other) => Err(NotAReply(other)),
        };
    };
    let (tag, line, used) = (bytes[0], bytes.get(1..end).unwrap_or_default(), end + 2);
    let number = || {
        std::str::from_utf8(line)
            .ok()
            .and_then(|s| s.parse::<i64>().ok())
            .ok_or(NotAReply(tag))
    };
    match tag {
        b'+' => Ok(Some((Reply::Simple(line), used))),
        b'-' => Ok(Some((Reply::Error(line), used))),
        b':' => Ok(Some((Reply::Int(number()?), used))),
        b'$' => {
            let Ok(len) = usize::try_from(number()?) else {
                return Ok(Some((Reply::Bulk(None), used)));
            };
            let all = used.saturating_add(len).saturating_add(2);
            if bytes.len() < all {
                return Ok(None);
            }
            if &bytes[all - 2..all] != b"\r\n" {
                return Err(NotAReply(bytes[all - 2]));
            }
            Ok(Some((Reply::Bulk(Some(&bytes[used..used + len])), all)))
        }
        b'*' => {
            let (mut items, mut at) = (Vec::new(), used);
            for _ in 0..number()? {
                let Some((item, n)) = parse(&bytes[at..])? else {
                    return Ok(None);
                };
                items.push(item);
                at += n;
            }
            Ok(Some((Reply::Array(items), at)))
        }
        other => Err(NotAReply(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_is_read_once_it_is_whole() {
        let whole = b"*5\r\n+OK\r\n-ERR x\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n";
        let (reply, used) = parse(whole).unwrap().unwrap();
        let items = [
            Reply::Simple(b"OK"),
            Reply::Error(b"ERR x"),
            Reply::Int(-7),
            Reply::Bulk(Some(b"a\r\n")),
            Reply::Bulk(None),
        ];
        assert_eq!(reply, Reply::Array(items.to_vec()));
        assert_eq!(used, whole.len());
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(parse(b"OK\r\n"), Err(NotAReply(b'O')));
        assert_eq!(parse(b"$1\r\nabc"), Err(NotAReply(b'b')));
        assert_eq!(parse(b":x\r\n"), Err(NotAReply(b':')));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some((_, used))) = parse(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }
    }
}
