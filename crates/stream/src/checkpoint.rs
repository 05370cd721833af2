//! The checkpoint connection: an image as opaque bytes, its cut, and whether the backup committed it.
//!
//! Every frame is of [`Kind::Checkpoint`]; its `stream` field says which part it is, its `position` is the
//! checkpoint's number, but for chunks the offset in the image:
//!
//! | part | from | body |
//! |---|---|---|
//! | [`part::BEGIN`] | primary | [`Begin`] |
//! | [`part::CHUNK`] | primary | bytes of the image |
//! | [`part::FILES`] | primary | what happened to mirrored files: a list of [`Change`] |
//! | [`part::FINISH`] | primary | [`Finish`] |
//! | [`part::ANSWER`] | backup | [`Commit`] |
//!
//! A [`part::BEGIN`] while another checkpoint is under way drops that one. Changes of files that come with a checkpoint
//! happened before its cut, and count when it is committed; those that come between two checkpoints make a whole copy, as
//! the files are at the next one's cut.

use core::time::Duration;

use eventlog::change::{Change, MAX_WRITTEN};
use eventlog::codec::{self, CodecError};
use eventlog::frame::{Frame, Header, Kind, MAX_BODY};
use serde::{Deserialize, Serialize};

use crate::connect::Connection;
use crate::error::StreamError;
use crate::transport::{Receiver, Sender};

/// Parts of a checkpoint, as the `stream` field of a frame names them.
pub mod part {
    /// A checkpoint begins.
    pub const BEGIN: u32 = 0;
    /// Bytes of its image.
    pub const CHUNK: u32 = 1;
    /// It is whole.
    pub const FINISH: u32 = 2;
    /// What became of it.
    pub const ANSWER: u32 = 3;
    /// What happened to mirrored files.
    pub const FILES: u32 = 4;
}

/// Where a checkpoint cuts the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// For each stream that goes on: its number, and the position up to which its records are in the image.
    pub streams: Vec<(u32, u64)>,
    /// The number that the next stream will get. Streams below it that are not in `streams` have ended and
    /// are in the image as a whole.
    pub next_stream: u32,
}

/// How a checkpoint begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Its number; each is higher than the one before.
    pub id: u64,
    /// `None` for a full image; otherwise the committed checkpoint that this one changes.
    pub base: Option<u64>,
    /// Its place in the log.
    pub cut: Cut,
    /// Bytes of the image.
    pub image_len: u64,
}

/// How a checkpoint ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// Its number.
    pub id: u64,
    /// CRC32C of the whole image.
    pub crc: u32,
}

/// What became of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Commit {
    /// It is what a takeover starts from now.
    Done {
        /// Its number.
        id: u64,
    },
    /// It is not; the one before stays.
    Refused {
        /// Its number.
        id: u64,
        /// One sentence.
        reason: String,
    },
}

/// A part from the primary, in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A checkpoint begins.
    Begin(Begin),
    /// Bytes of the image.
    Chunk {
        /// Their place in it.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// It is whole.
    Finish(Finish),
    /// What happened to mirrored files, in order.
    Files {
        /// It.
        changes: Vec<Change>,
        /// Bytes of the frame's body.
        len: usize,
    },
}

/// Why a frame is no part of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// Another kind of frame.
    #[error("frame of kind {0:?} among the parts of a checkpoint")]
    Kind(Kind),
    /// A part of unknown number.
    #[error("part {0} of a checkpoint is unknown")]
    Unknown(u32),
    /// Its body does not decode.
    #[error(transparent)]
    Body(#[from] CodecError),
}

/// The part that `frame` holds.
///
/// # Errors
/// Any of [`PartError`].
pub fn decode<'a>(frame: &Frame<'a>) -> Result<Part<'a>, PartError> {
    if frame.header.kind != Kind::Checkpoint {
        return Err(PartError::Kind(frame.header.kind));
    }
    Ok(match frame.header.stream {
        part::BEGIN => Part::Begin(codec::decode(frame.body)?),
        part::CHUNK => Part::Chunk {
            offset: frame.header.position,
            bytes: frame.body,
        },
        part::FINISH => Part::Finish(codec::decode(frame.body)?),
        part::FILES => Part::Files {
            changes: codec::decode(frame.body)?,
            len: frame.body.len(),
        },
        other => return Err(PartError::Unknown(other)),
    })
}

/// The primary's sending side.
#[derive(Debug)]
pub struct CheckpointSender {
    sender: Sender,
    generation: u64,
    id: u64,
    offset: u64,
    crc: u32,
}

/// The primary's receiving side.
#[derive(Debug)]
pub struct CommitReceiver {
    receiver: Receiver,
}

/// The two sides of a primary's checkpoint connection.
#[must_use]
pub fn primary(connection: Connection) -> (CheckpointSender, CommitReceiver) {
    let generation = connection.welcome.generation;
    (
        CheckpointSender {
            sender: connection.sender,
            generation,
            id: 0,
            offset: 0,
            crc: 0,
        },
        CommitReceiver {
            receiver: connection.receiver,
        },
    )
}

impl CheckpointSender {
    /// Begins a checkpoint.
    ///
    /// # Errors
    /// As sending; [`StreamError::Message`] if the cut has too many streams for one message.
    pub fn begin(&mut self, begin: &Begin) -> Result<(), StreamError> {
        (self.id, self.offset, self.crc) = (begin.id, 0, 0);
        self.message(part::BEGIN, begin)
    }

    /// Sends the next bytes of the image, any number of them.
    ///
    /// # Errors
    /// As sending.
    pub fn chunk(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        for piece in bytes.chunks(MAX_BODY) {
            self.crc = crc32c::crc32c_append(self.crc, piece);
            let header = self.header(part::CHUNK, self.offset);
            let head = header.seal(&[piece]).map_err(|source| StreamError::Frame {
                peer: self.sender.peer(),
                source,
            })?;
            self.sender.send_bytes(&head)?;
            self.sender.send_bytes(piece)?;
            self.offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Sends what happened to files: of the checkpoint that is under way, or between two for a whole copy.
    ///
    /// # Errors
    /// As sending; [`StreamError::Message`] if there is more than one message holds: see [`Batch`].
    pub fn files(&mut self, changes: &[Change]) -> Result<(), StreamError> {
        self.message(part::FILES, &changes)
    }

    /// Ends the checkpoint; the answer comes on the [`CommitReceiver`].
    ///
    /// # Errors
    /// As sending.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.message(
            part::FINISH,
            &Finish {
                id: self.id,
                crc: self.crc,
            },
        )
    }

    /// Ends the connection.
    pub fn shutdown(&self) {
        self.sender.shutdown();
    }

    fn header(&self, part: u32, position: u64) -> Header {
        Header {
            kind: Kind::Checkpoint,
            generation: self.generation,
            stream: part,
            position,
        }
    }

    fn message<T: Serialize>(&self, part: u32, message: &T) -> Result<(), StreamError> {
        self.sender.message(&self.header(part, self.id), message)
    }
}

/// Changes of files gathered for one message.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
    bytes: usize,
}

impl Batch {
    /// Adds a change, after sending those gathered so far if it does not fit.
    ///
    /// # Errors
    /// As sending.
    pub fn add(&mut self, change: Change, to: &mut CheckpointSender) -> Result<(), StreamError> {
        let bytes = change.bytes();
        if self.bytes + bytes > MAX_WRITTEN {
            self.flush(to)?;
        }
        self.bytes += bytes;
        self.changes.push(change);
        Ok(())
    }

    /// Sends what is gathered.
    ///
    /// # Errors
    /// As sending.
    pub fn flush(&mut self, to: &mut CheckpointSender) -> Result<(), StreamError> {
        self.bytes = 0;
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() {
            return Ok(());
        }
        to.files(&changes)
    }
}

impl CommitReceiver {
    /// What became of a checkpoint, waiting as [`Receiver::recv`] does.
    ///
    /// # Errors
    /// As receiving.
    pub fn recv(&mut self, within: Option<Duration>) -> Result<Option<Commit>, StreamError> {
        let peer = self.receiver.peer();
        let Some(frame) = self.receiver.recv(within)? else {
            return Ok(None);
        };
        if frame.header.kind != Kind::Checkpoint || frame.header.stream != part::ANSWER {
            let doing = "waiting for a checkpoint to be committed";
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
}

/// Tells the primary what became of a checkpoint.
///
/// # Errors
/// As sending.
pub fn answer(sender: &Sender, generation: u64, commit: &Commit) -> Result<(), StreamError> {
    let (Commit::Done { id } | Commit::Refused { id, .. }) = commit;
    let header = Header {
        stream: part::ANSWER,
        ..Header::of(Kind::Checkpoint, generation, *id)
    };
    sender.message(&header, commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longs(values: &[u64]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    #[test]
    fn the_layout_of_the_beginning_is_the_documented_one() {
        let begin = Begin {
            id: 5,
            base: Some(4),
            cut: Cut {
                streams: vec![(1, 80), (3, 16)],
                next_stream: 9,
            },
            image_len: 4096,
        };
        let bytes = [
            &longs(&[5])[..],
            &[1],
            &longs(&[4, 2]),
            &1u32.to_le_bytes(),
            &longs(&[80]),
            &3u32.to_le_bytes(),
            &longs(&[16]),
            &9u32.to_le_bytes(),
            &longs(&[4096]),
        ]
        .concat();
        assert_eq!(codec::encode(&begin).unwrap(), bytes);
        let full = Begin {
            base: None,
            cut: Cut::default(),
            ..begin
        };
        let bytes = [
            &longs(&[5])[..],
            &[0],
            &longs(&[0]),
            &[0; 4],
            &longs(&[4096]),
        ]
        .concat();
        assert_eq!(codec::encode(&full).unwrap(), bytes);
    }

    #[test]
    fn the_layouts_of_the_end_and_the_answer_are_the_documented_ones() {
        let finish = codec::encode(&Finish { id: 5, crc: 6 }).unwrap();
        assert_eq!(finish, [&longs(&[5])[..], &6u32.to_le_bytes()].concat());
        let done = codec::encode(&Commit::Done { id: 5 }).unwrap();
        assert_eq!(done, [&[0; 4][..], &longs(&[5])].concat());
        let reason = "no".to_owned();
        let refused = codec::encode(&Commit::Refused { id: 5, reason }).unwrap();
        assert_eq!(
            refused,
            [&[1, 0, 0, 0][..], &longs(&[5, 2]), b"no"].concat()
        );
        let parts = [
            part::BEGIN,
            part::CHUNK,
            part::FINISH,
            part::ANSWER,
            part::FILES,
        ];
        assert_eq!(parts, [0, 1, 2, 3, 4]);
    }
}
