//! Bytes that go through descriptors of any kind, and descriptors that go with them.

use super::calls::Call;
use super::descriptors::STREAM;
use super::message::{int, passed_descriptors, word};
use super::timers::{SIGNALFD, SIGNALFD_LEN};
use super::{ChannelId, DescriptionId, Fold, FoldError, Kind, State, nr};
use crate::payload::MSG_PEEK;

/// Descriptors in flight on one channel.
const MAX_PASSED: usize = 1 << 15;
/// O_APPEND.
const APPEND: u32 = 0x400;
/// MSG_CMSG_CLOEXEC.
const CMSG_CLOEXEC: u32 = 0x4000_0000;

impl Fold {
    /// read, readv, recvfrom, recvmsg.
    pub(super) fn read(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let flags = match call.nr {
            nr::RECVFROM => call.version as u32,
            nr::RECVMSG => call.message().map_or(0, |message| message.flags),
            _ => 0,
        };
        let Some(id) = self.named(call) else {
            return Ok(());
        };
        if flags & MSG_PEEK != 0 {
            return Ok(());
        }
        let bytes = if call.parsed.data.is_empty() {
            call.filled(1)
        } else {
            call.parsed.data
        };
        let channel = self.consume(call, id, bytes);
        if let Some(message) = call.message().filter(|_| call.nr == nr::RECVMSG) {
            self.receive_descriptors(
                call,
                channel,
                &passed_descriptors(message.control),
                flags & CMSG_CLOEXEC != 0,
            )?;
        }
        Ok(())
    }

    /// `call.result` bytes came out of a description; answers with the channel they came from.
    fn consume(&mut self, call: &Call<'_>, id: DescriptionId, bytes: &[u8]) -> Option<ChannelId> {
        let count = call.result.unsigned_abs();
        let (mut channel, now) = (None, self.now);
        if let Some(socket) = self.socket_mut(id) {
            if socket.state == State::Connecting {
                socket.state = State::Connected;
            }
            super::bump(&mut socket.read, count);
            socket.end_read |= count == 0 && socket.kind == STREAM;
            channel = socket.channels.map(|(receives, _)| receives);
        } else if let Some(description) = self.descriptions.get_mut(&id) {
            match &mut description.kind {
                Kind::File(file) => super::bump(&mut file.offset, count),
                Kind::Memfd { offset, .. } => super::bump(offset, count),
                Kind::Event { taken, .. } => *taken = taken.wrapping_add(word(bytes, 0, 8)),
                Kind::Pipe { channel: pipe, .. } => channel = Some(*pipe),
                Kind::Signal(_) => {
                    for info in bytes.chunks(SIGNALFD_LEN) {
                        self.told(call.pid, info, &SIGNALFD);
                    }
                }
                Kind::Timer {
                    armed: Some(armed), ..
                } => armed.seen = Some(now),
                _ => {}
            }
        }
        if let Some(channel) = channel.and_then(|id| self.channels.get_mut(&id))
            && (count > 0 || channel.messages)
        {
            channel.take(count);
        }
        channel
    }

    /// write, writev, sendto, sendmsg.
    pub(super) fn wrote(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let Some(id) = self.named(call) else {
            return Ok(());
        };
        let channel = self.produce(call, id, call.data(), call.result.unsigned_abs())?;
        let rights = call
            .message()
            .map(|message| passed_descriptors(message.control))
            .unwrap_or_default();
        if let Some(channel) = channel.filter(|_| !rights.is_empty()) {
            let passed: Vec<_> = rights
                .iter()
                .filter_map(|fd| self.meant(call.pid, *fd))
                .collect();
            passed.iter().for_each(|id| self.retain(*id));
            if let Some(channel) = self.channels.get_mut(&channel) {
                channel.passed.push_back(passed);
                if channel
                    .passed
                    .iter()
                    .map(|fds| 1 + fds.len())
                    .sum::<usize>()
                    > MAX_PASSED
                {
                    return Err(FoldError::TooMany {
                        what: "descriptors in flight",
                        most: MAX_PASSED as u64,
                    });
                }
            }
        }
        Ok(())
    }

    /// `count` bytes went into a description; answers with the channel they went to.
    fn produce(
        &mut self,
        call: &Call<'_>,
        id: DescriptionId,
        data: &[u8],
        count: u64,
    ) -> Result<Option<ChannelId>, FoldError> {
        let mut channel = None;
        if let Some(socket) = self.socket_mut(id) {
            super::bump(&mut socket.written, count);
            channel = socket.channels.map(|(_, sends)| sends);
        } else if let Some(description) = self.descriptions.get_mut(&id) {
            match &mut description.kind {
                Kind::File(file) => {
                    super::bump(&mut file.offset, count);
                    file.at_end = description.flags & APPEND != 0;
                }
                Kind::Memfd { offset, size, .. } => {
                    super::bump(offset, count);
                    *size = (*size).max(*offset);
                }
                Kind::Event { added, .. } => *added = added.wrapping_add(word(data, 0, 8)),
                Kind::Pipe { channel: pipe, .. } => channel = Some(*pipe),
                _ => {}
            }
        } else {
            channel = self.written_by_ended(id);
        }
        if let Some(channel) = channel.and_then(|id| self.channels.get_mut(&id)) {
            let time = self.streams.get(&call.stream);
            channel.write(data, count, time.map_or(0, |stream| stream.time))?;
        }
        Ok(channel)
    }

    /// sendfile, splice, tee, vmsplice, copy_file_range.
    pub(super) fn moved(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let count = call.result.unsigned_abs();
        if call.nr == nr::VMSPLICE {
            return self.wrote(call);
        }
        let args = call.args()?;
        // Source, its offset's argument, destination, its offset's argument.
        let (from, from_offset, to, to_offset) = match call.nr {
            nr::SENDFILE => (args[1], Some(2), args[0], None),
            nr::TEE => (args[0], None, args[1], None),
            _ => (args[0], Some(1), args[2], Some(3)),
        };
        let given = |argument: Option<usize>| argument.is_some_and(|i| args[i] != 0);
        if let Some(id) = self
            .meant(call.pid, int(from))
            .filter(|_| call.nr != nr::TEE && !given(from_offset))
        {
            self.consume(call, id, &[]);
        }
        if let Some(id) = self.meant(call.pid, int(to)).filter(|_| !given(to_offset)) {
            self.produce(call, id, call.data(), count)?;
        }
        Ok(())
    }

    /// Descriptors that came with a message.
    fn receive_descriptors(
        &mut self,
        call: &Call<'_>,
        channel: Option<ChannelId>,
        fds: &[i32],
        cloexec: bool,
    ) -> Result<(), FoldError> {
        if fds.is_empty() {
            return Ok(());
        }
        let sent = channel
            .and_then(|id| self.channels.get_mut(&id))
            .and_then(|channel| channel.passed.pop_front());
        let sent = sent.unwrap_or_default();
        for (i, fd) in fds.iter().enumerate() {
            match sent.get(i) {
                Some(id) => self.install(call.pid, *fd, *id, cloexec, call.version),
                None => self.open(call.at(i64::from(*fd)), Kind::Other(call.nr), 0, cloexec)?,
            }
        }
        for id in sent {
            self.release(id, call.pid, -1);
        }
        Ok(())
    }
}
