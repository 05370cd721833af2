//! The log connection: batches of records to the backup, numbers of drains back.
//!
//! A drain is any number of [`Kind::Records`] frames followed by one [`Kind::Drain`] frame with its number,
//! handed to the kernel in one piece. The backup answers with a [`Kind::Ack`] frame once it holds them.

use core::time::Duration;

use eventlog::frame::{Header, Kind, MAX_BODY};

use crate::connect::Connection;
use crate::error::StreamError;
use crate::transport::{Receiver, Sender};

/// A batch that has grown to this goes out before its drain ends.
const FLUSH_LEN: usize = 256 << 10;

/// The primary's sending side.
#[derive(Debug)]
pub struct LogSender {
    sender: Sender,
    generation: u64,
    batch: Vec<u8>,
}

/// The primary's receiving side.
#[derive(Debug)]
pub struct AckReceiver {
    receiver: Receiver,
    generation: u64,
}

/// The two sides of a primary's log connection; each may go to a thread of its own.
#[must_use]
pub fn primary(connection: Connection) -> (LogSender, AckReceiver) {
    let generation = connection.welcome.generation;
    (
        LogSender {
            sender: connection.sender,
            generation,
            batch: Vec::with_capacity(2 * FLUSH_LEN),
        },
        AckReceiver {
            receiver: connection.receiver,
            generation,
        },
    )
}

impl LogSender {
    /// Adds the next bytes of `stream`, which lie at `position`, to the batch. A run that wraps in its ring
    /// comes as two parts.
    ///
    /// # Errors
    /// As sending, when the batch has grown large enough to go out early.
    pub fn records(
        &mut self,
        stream: u32,
        position: u64,
        parts: &[&[u8]],
    ) -> Result<(), StreamError> {
        let mut at = position;
        let mut frame = |parts: &[&[u8]], len: usize| {
            let header = Header {
                kind: Kind::Records,
                generation: self.generation,
                stream,
                position: at,
            };
            at += len as u64;
            header
                .encode(parts, &mut self.batch)
                .map_err(|source| StreamError::Frame {
                    peer: self.sender.peer(),
                    source,
                })
        };
        let total: usize = parts.iter().map(|p| p.len()).sum();
        if total <= MAX_BODY {
            frame(parts, total)?;
        } else {
            for piece in parts.iter().flat_map(|p| p.chunks(MAX_BODY)) {
                frame(&[piece], piece.len())?;
            }
        }
        if self.batch.len() >= FLUSH_LEN {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Ends the drain with this number and sends what is left of the batch.
    ///
    /// # Errors
    /// As sending. Blocks while the backup takes nothing.
    pub fn drain(&mut self, number: u64) -> Result<(), StreamError> {
        let header = Header {
            kind: Kind::Drain,
            generation: self.generation,
            stream: 0,
            position: number,
        };
        header
            .encode(&[], &mut self.batch)
            .map_err(|source| StreamError::Frame {
                peer: self.sender.peer(),
                source,
            })?;
        self.flush()
    }

    /// Ends the connection.
    pub fn shutdown(&self) {
        self.sender.shutdown();
    }

    /// Sends what is in the batch, without ending the drain.
    ///
    /// # Errors
    /// As sending. Blocks while the backup takes nothing.
    pub fn flush(&mut self) -> Result<(), StreamError> {
        let sent = self.sender.send_bytes(&self.batch);
        self.batch.clear();
        sent
    }
}

impl AckReceiver {
    /// The number of the highest drain that the backup holds: waits for one frame as [`Receiver::recv`]
    /// does, then takes in what else has come.
    ///
    /// # Errors
    /// As receiving; [`StreamError::Unexpected`] for any other frame.
    pub fn recv(&mut self, within: Option<Duration>) -> Result<Option<u64>, StreamError> {
        let Some(mut highest) = self.one(within)? else {
            return Ok(None);
        };
        while let Some(number) = self.buffered()? {
            highest = highest.max(number);
        }
        Ok(Some(highest))
    }

    /// The receiver, for poll.
    #[must_use]
    pub fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    fn buffered(&mut self) -> Result<Option<u64>, StreamError> {
        let Some(span) = self.receiver.buffered_span()? else {
            return Ok(None);
        };
        ack(&span.header, self.generation, &self.receiver).map(Some)
    }

    fn one(&mut self, within: Option<Duration>) -> Result<Option<u64>, StreamError> {
        let Some(span) = self.receiver.recv_span(within)? else {
            return Ok(None);
        };
        ack(&span.header, self.generation, &self.receiver).map(Some)
    }
}

fn ack(header: &Header, generation: u64, receiver: &Receiver) -> Result<u64, StreamError> {
    let peer = receiver.peer();
    if header.kind != Kind::Ack {
        return Err(StreamError::Unexpected {
            doing: "waiting for acknowledgements",
            peer,
            found: header.kind,
        });
    }
    if header.generation != generation {
        return Err(StreamError::Generation {
            peer,
            theirs: header.generation,
            ours: generation,
        });
    }
    Ok(header.position)
}

/// What a backup takes from the log connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// The next bytes of a stream.
    Records {
        /// The stream.
        stream: u32,
        /// Position of the first byte.
        position: u64,
        /// The records; one may go on in the stream's next entry.
        bytes: &'a [u8],
    },
    /// A drain is whole: to be acknowledged by [`AckSender::ack`] once it is kept.
    Drain(u64),
}

/// The backup's receiving side.
#[derive(Debug)]
pub struct LogReceiver {
    receiver: Receiver,
    generation: u64,
    drain: u64,
}

/// The backup's sending side.
#[derive(Clone, Debug)]
pub struct AckSender {
    sender: Sender,
    generation: u64,
}

/// The two sides of a backup's log connection.
#[must_use]
pub fn backup(connection: Connection) -> (AckSender, LogReceiver) {
    let generation = connection.welcome.generation;
    (
        AckSender {
            sender: connection.sender,
            generation,
        },
        LogReceiver {
            receiver: connection.receiver,
            generation,
            drain: 0,
        },
    )
}

impl LogReceiver {
    /// The next entry, waiting as [`Receiver::recv`] does. Drains come in their order, from 1, without gap.
    ///
    /// # Errors
    /// As receiving; [`StreamError::Unexpected`], [`StreamError::Generation`] or [`StreamError::Order`] for
    /// what a primary would not send.
    pub fn recv(&mut self, within: Option<Duration>) -> Result<Option<Entry<'_>>, StreamError> {
        let peer = self.receiver.peer();
        let Some(frame) = self.receiver.recv(within)? else {
            return Ok(None);
        };
        let Header {
            kind,
            generation,
            stream,
            position,
        } = frame.header;
        if generation != self.generation {
            return Err(StreamError::Generation {
                peer,
                theirs: generation,
                ours: self.generation,
            });
        }
        match kind {
            Kind::Records => Ok(Some(Entry::Records {
                stream,
                position,
                bytes: frame.body,
            })),
            Kind::Drain if position != self.drain + 1 => Err(StreamError::Order {
                what: "drain",
                peer,
                found: position,
                expected: self.drain + 1,
            }),
            Kind::Drain => {
                self.drain = position;
                Ok(Some(Entry::Drain(position)))
            }
            found => Err(StreamError::Unexpected {
                doing: "waiting for the log",
                peer,
                found,
            }),
        }
    }
}

impl AckSender {
    /// Tells the primary that every drain up to and with `number` is kept.
    ///
    /// # Errors
    /// As sending.
    pub fn ack(&self, number: u64) -> Result<(), StreamError> {
        let header = Header {
            kind: Kind::Ack,
            generation: self.generation,
            stream: 0,
            position: number,
        };
        self.sender.send(&header, &[])
    }

    /// Ends the connection.
    pub fn shutdown(&self) {
        self.sender.shutdown();
    }
}
