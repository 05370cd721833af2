//! Entries for a fuzzer: each takes any bytes and must neither panic nor allocate beyond its bounds, and
//! what it did decode must come back from its encoding.

use std::net::Ipv4Addr;

use crate::container::arp;
use crate::container::protocol::{self, Reply};
use crate::control::{Answer, Request, line};

/// A line of the control socket, from either side.
pub fn fuzz_control(data: &[u8]) {
    if let Ok(request) = line::decode::<Request>(data) {
        let again = line::encode(&request).and_then(|bytes| line::decode(&bytes));
        assert!(again.is_ok_and(|again: Request| again == request));
    }
    if let Ok(answer) = line::decode::<Answer>(data) {
        let again = line::encode(&answer).and_then(|bytes| line::decode(&bytes));
        assert!(again.is_ok_and(|again: Answer| again == answer));
    }
}

/// A message between a container's handle and its init, from either side.
pub fn fuzz_init(data: &[u8]) {
    if let Some(request) = protocol::Request::decode(data) {
        assert_eq!(protocol::Request::decode(&request.encode()), Some(request));
    }
    if let Some(reply) = Reply::decode(data) {
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
    }
    let ended = protocol::decode_end(data);
    assert_eq!(protocol::decode_end(&protocol::encode_end(ended)), ended);
}

/// A frame that comes while the link asks whether its address is taken.
pub fn fuzz_neighbour(data: &[u8]) {
    let found = arp::claim(data, Ipv4Addr::new(10, 0, 0, 1));
    assert!(found.is_none() || data.len() >= 42);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_answered(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_control(&data);
            fuzz_init(&data);
            fuzz_neighbour(&data);
        }

        #[test]
        fn any_answer_comes_back(reason in ".{0,80}", cut in 0usize..100) {
            let mut bytes = line::encode(&Answer::Refused(reason)).unwrap();
            fuzz_control(&bytes);
            bytes.truncate(cut);
            fuzz_control(&bytes);
        }
    }
}
