//! The fold as bytes: part of a checkpoint's image.
//!
//! ```text
//! "USFOLD04"                      8 bytes
//! u32 length, section             as often as there are sections
//! ```
//!
//! A section is one [`Section`] as [`crate::codec`] writes it, so that no decoder allocates for more than
//! one section's bound. The last one is `End` with the number of those before it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::merge::{Merge, Versions};
use super::sockets::Meeting;
use super::{
    Channel, ChannelId, Closed, Description, DescriptionId, Entry, Fold, Interest, Kind, Orphan,
    Pid, Process, SpaceId, Stream, StreamId, TableId, Written,
};
use crate::codec::{self, CodecError};

const MAGIC: &[u8; 8] = b"USFOLD04";
/// Most bytes of a snapshot.
pub const MAX_SNAPSHOT: usize = 256 << 20;

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It does not begin as one.
    #[error("no fold snapshot: it begins with {found:02x?}")]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// It ends before its end.
    #[error("fold snapshot cut short after {len} bytes")]
    Truncated {
        /// Bytes it has.
        len: usize,
    },
    /// It is larger than allowed.
    #[error("fold snapshot of {len} bytes, more than {MAX_SNAPSHOT}")]
    Oversized {
        /// Bytes it has or would have.
        len: usize,
    },
    /// Its end names another number of sections, or something follows it.
    #[error("fold snapshot with {found} sections where its end says {expected}")]
    Sections {
        /// Number at its end.
        expected: u64,
        /// Number found.
        found: u64,
    },
    /// A part belongs to something that was not there before it, or brings what has sections of its own.
    #[error("fold snapshot whose section {section} does not fit those before it")]
    Dangling {
        /// Number of the section, from 0.
        section: u64,
    },
    /// A section is not one.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// One piece of the state, small enough for a message. Parts follow what they belong to.
#[derive(Serialize, Deserialize)]
enum Section {
    Counters {
        next_id: u64,
        closes: u64,
        strays: u64,
    },
    Process(Pid, Process),
    Stream(StreamId, Stream),
    Table(TableId, u32),
    Entry(TableId, i32, Entry),
    Closed(TableId, Closed),
    Description(DescriptionId, Description),
    Interest(DescriptionId, i32, DescriptionId, Interest),
    Watch(DescriptionId, i32, Vec<u8>, u32),
    Channel(ChannelId, Channel),
    Written(ChannelId, Written),
    Orphan(Orphan),
    Accepts(u16, Vec<u8>, u64),
    Meeting(Vec<u8>, Meeting),
    Versions(SpaceId, Versions),
    Held(StreamId, Vec<u8>),
    End(u64),
}

struct Writer {
    bytes: Vec<u8>,
    sections: u64,
}

impl Writer {
    fn put(&mut self, section: &Section) -> Result<(), SnapshotError> {
        let encoded = codec::encode(section)?;
        self.bytes
            .extend_from_slice(&(encoded.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&encoded);
        self.sections += 1;
        if self.bytes.len() > MAX_SNAPSHOT {
            return Err(SnapshotError::Oversized {
                len: self.bytes.len(),
            });
        }
        Ok(())
    }
}

impl Merge {
    /// The state as bytes, with what waits for its turn (nothing, at a consistent cut).
    ///
    /// # Errors
    /// [`SnapshotError::Oversized`] and, for a section that no message can hold, [`SnapshotError::Codec`].
    pub fn snapshot(&mut self) -> Result<Vec<u8>, SnapshotError> {
        for channel in self.fold.channels.values_mut() {
            channel.trim();
        }
        let mut to = Writer {
            bytes: MAGIC.to_vec(),
            sections: 0,
        };
        self.fold.write(&mut to)?;
        for (space, versions) in &self.spaces {
            to.put(&Section::Versions(*space, *versions))?;
        }
        for (stream, waiting) in &self.held {
            for record in waiting {
                to.put(&Section::Held(*stream, record.clone()))?;
            }
        }
        to.put(&Section::End(to.sections))?;
        Ok(to.bytes)
    }

    /// The state that a snapshot holds.
    ///
    /// # Errors
    /// Any [`SnapshotError`]; hostile bytes cost no more memory than a small multiple of their number.
    pub fn restore(bytes: &[u8]) -> Result<Self, SnapshotError> {
        if bytes.len() > MAX_SNAPSHOT {
            return Err(SnapshotError::Oversized { len: bytes.len() });
        }
        let truncated = SnapshotError::Truncated { len: bytes.len() };
        let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
            return Err(SnapshotError::Magic {
                found: bytes[..bytes.len().min(MAGIC.len())].to_vec(),
            });
        };
        let mut merge = Self::new();
        let mut found = 0;
        loop {
            let Some((len, after)) = rest.split_first_chunk::<4>() else {
                return Err(truncated);
            };
            let Some((section, after)) = after.split_at_checked(u32::from_le_bytes(*len) as usize)
            else {
                return Err(truncated);
            };
            rest = after;
            match codec::decode(section)? {
                Section::End(expected) if expected == found && rest.is_empty() => return Ok(merge),
                Section::End(expected) => return Err(SnapshotError::Sections { expected, found }),
                section => merge
                    .read(section)
                    .ok_or(SnapshotError::Dangling { section: found })?,
            }
            found += 1;
        }
    }

    /// `None` if the section is a part of something that is not there, or has parts itself.
    fn read(&mut self, section: Section) -> Option<()> {
        match section {
            Section::Versions(space, versions) => {
                self.spaces.insert(space, versions);
            }
            Section::Held(stream, record) => {
                self.held_bytes += record.len();
                self.held.entry(stream).or_default().push_back(record);
            }
            other => return self.fold.read_section(other),
        }
        Some(())
    }
}

impl Fold {
    fn write(&self, to: &mut Writer) -> Result<(), SnapshotError> {
        to.put(&Section::Counters {
            next_id: self.next_id,
            closes: self.closes,
            strays: self.strays,
        })?;
        for (id, process) in &self.processes {
            to.put(&Section::Process(*id, process.clone()))?;
        }
        for (id, stream) in &self.streams {
            to.put(&Section::Stream(*id, stream.clone()))?;
        }
        for (id, table) in &self.tables {
            to.put(&Section::Table(*id, table.users))?;
            for (fd, entry) in &table.entries {
                to.put(&Section::Entry(*id, *fd, *entry))?;
            }
            for closed in &table.closed {
                to.put(&Section::Closed(*id, *closed))?;
            }
        }
        for (id, description) in &self.descriptions {
            write_description(to, *id, description)?;
        }
        for (id, channel) in &self.channels {
            to.put(&Section::Channel(
                *id,
                Channel {
                    kept: VecDeque::new(),
                    kept_bytes: 0,
                    passed: channel.passed.clone(),
                    ..*channel
                },
            ))?;
            for written in &channel.kept {
                to.put(&Section::Written(*id, written.clone()))?;
            }
        }
        for orphan in &self.orphans {
            to.put(&Section::Orphan(orphan.clone()))?;
        }
        for ((port, peer), count) in &self.accepts {
            to.put(&Section::Accepts(*port, peer.clone(), *count))?;
        }
        for (address, meeting) in &self.meetings {
            to.put(&Section::Meeting(address.clone(), meeting.clone()))?;
        }
        Ok(())
    }

    fn read_section(&mut self, section: Section) -> Option<()> {
        match section {
            Section::Counters {
                next_id,
                closes,
                strays,
            } => {
                (self.next_id, self.closes, self.strays) = (next_id, closes, strays);
            }
            Section::Process(id, process) => {
                self.processes.insert(id, process);
            }
            Section::Stream(id, stream) => {
                self.streams.insert(id, stream);
            }
            Section::Table(id, users) => self.tables.entry(id).or_default().users = users,
            Section::Entry(id, fd, entry) => {
                self.tables.get_mut(&id)?.entries.insert(fd, entry);
            }
            Section::Closed(id, closed) => self.tables.get_mut(&id)?.closed.push_back(closed),
            Section::Description(id, description) => {
                self.descriptions.insert(id, description);
            }
            Section::Interest(id, fd, watched, interest) => {
                match &mut self.descriptions.get_mut(&id)?.kind {
                    Kind::Epoll(interests) => {
                        interests.insert((fd, watched), interest);
                    }
                    _ => return None,
                }
            }
            Section::Watch(id, watch, path, mask) => {
                match &mut self.descriptions.get_mut(&id)?.kind {
                    Kind::Inotify(watches) => {
                        watches.insert(watch, (path, mask));
                    }
                    _ => return None,
                }
            }
            Section::Channel(id, channel) => {
                // The count must be that of the bytes, which follow: reads subtract from it.
                if channel.kept_bytes != 0 || !channel.kept.is_empty() {
                    return None;
                }
                self.channels.insert(id, channel);
            }
            Section::Written(id, written) => {
                let channel = self.channels.get_mut(&id)?;
                channel.kept_bytes += written.data.len() as u64;
                channel.kept.push_back(written);
            }
            Section::Orphan(orphan) => self.orphans.push_back(orphan),
            Section::Accepts(port, peer, count) => {
                self.accepts.insert((port, peer), count);
            }
            Section::Meeting(address, meeting) => {
                self.meetings.insert(address, meeting);
            }
            Section::Versions(..) | Section::Held(..) | Section::End(_) => return None,
        }
        Some(())
    }
}

/// A description without what can be long, then that piece by piece.
fn write_description(
    to: &mut Writer,
    id: DescriptionId,
    description: &Description,
) -> Result<(), SnapshotError> {
    let alone = |kind| {
        Section::Description(
            id,
            Description {
                kind,
                ..description.clone()
            },
        )
    };
    match &description.kind {
        Kind::Epoll(interests) => {
            to.put(&alone(Kind::Epoll(Default::default())))?;
            for ((fd, watched), interest) in interests {
                to.put(&Section::Interest(id, *fd, *watched, *interest))?;
            }
        }
        Kind::Inotify(watches) => {
            to.put(&alone(Kind::Inotify(Default::default())))?;
            for (watch, (path, mask)) in watches {
                to.put(&Section::Watch(id, *watch, path.clone(), *mask))?;
            }
        }
        kind => to.put(&alone(kind.clone()))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(sections: &[Section]) -> Vec<u8> {
        let mut to = Writer {
            bytes: MAGIC.to_vec(),
            sections: 0,
        };
        for section in sections {
            to.put(section).unwrap();
        }
        to.put(&Section::End(to.sections)).unwrap();
        to.bytes
    }

    #[test]
    fn a_channel_that_counts_other_bytes_than_follow_is_refused() {
        let channel = Channel {
            kept_bytes: u64::MAX,
            ..Channel::default()
        };
        let bytes = snapshot(&[
            Section::Channel(1, channel),
            Section::Written(1, Written::default()),
        ]);
        assert!(matches!(
            Merge::restore(&bytes),
            Err(SnapshotError::Dangling { section: 0 })
        ));
    }
}
