//! The control connection: one request, one answer, in turn.

use core::time::Duration;

use eventlog::codec;
use eventlog::frame::{Header, Kind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::StreamError;
use crate::transport::{Receiver, Sender};

/// What a primary asks of its backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The container has ended in order, with this status: stop protecting it.
    Ended {
        /// The command's exit status.
        status: i32,
    },
    /// The operator wants the container to move: its gate is closed, the last heartbeat said so.
    Switchover,
    /// What does the backup hold?
    Status,
}

/// What a backup answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is done, or has begun.
    Done,
    /// It cannot be done.
    Failed {
        /// One sentence.
        reason: String,
    },
    /// What the backup holds.
    Status(Held),
}

/// What a backup holds of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The generation.
    pub generation: u64,
    /// The committed checkpoint, if there is one.
    pub checkpoint: Option<u64>,
    /// Bytes of log behind it.
    pub log_bytes: u64,
    /// Records of log behind it that a takeover would replay, in bytes of the longest stream.
    pub longest_stream: u64,
    /// How often the primary was suspected and then answered.
    pub false_alarms: u64,
}

/// Sends one message.
///
/// # Errors
/// As [`Sender::message`].
pub fn send<T: Serialize>(
    sender: &Sender,
    generation: u64,
    message: &T,
) -> Result<(), StreamError> {
    sender.message(&Header::of(Kind::Control, generation, 0), message)
}

/// Receives one message, waiting as [`Receiver::recv`] does.
///
/// # Errors
/// As receiving; [`StreamError::Message`] if it is another one.
pub fn recv<T: DeserializeOwned>(
    receiver: &mut Receiver,
    within: Option<Duration>,
) -> Result<Option<T>, StreamError> {
    let peer = receiver.peer();
    let Some(frame) = receiver.recv(within)? else {
        return Ok(None);
    };
    if frame.header.kind != Kind::Control {
        let doing = "waiting for a control message";
        return Err(StreamError::Unexpected {
            doing,
            peer,
            found: frame.header.kind,
        });
    }
    codec::decode(frame.body)
        .map(Some)
        .map_err(|source| StreamError::Message { peer, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_the_documented_ones() {
        let request = |request: &Request| codec::encode(request).unwrap();
        assert_eq!(
            request(&Request::Ended { status: -2 }),
            [0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]
        );
        assert_eq!(request(&Request::Switchover), [1, 0, 0, 0]);
        assert_eq!(request(&Request::Status), [2, 0, 0, 0]);
        let response = |response: &Response| codec::encode(response).unwrap();
        assert_eq!(response(&Response::Done), [0; 4]);
        let reason = "no".to_owned();
        assert_eq!(
            response(&Response::Failed { reason }),
            [&[1, 0, 0, 0][..], &2u64.to_le_bytes(), b"no"].concat()
        );
        let held = Held {
            generation: 1,
            checkpoint: Some(2),
            log_bytes: 3,
            longest_stream: 4,
            false_alarms: 5,
        };
        let long = |value: u64| value.to_le_bytes();
        let status = [
            &[2, 0, 0, 0][..],
            &long(1),
            &[1],
            &long(2),
            &long(3),
            &long(4),
            &long(5),
        ];
        assert_eq!(response(&Response::Status(held)), status.concat());
    }
}
