//! Channels inside the container: pipes and pairs of sockets, with what was written and not read.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

use eventlog::fold::{ChannelId, Fold, Socket};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::unistd::{pipe2, write};

use super::error::{Result, io};

/// Ends that were made and not taken yet.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    pipes: BTreeMap<ChannelId, [Option<OwnedFd>; 2]>,
    sockets: BTreeMap<(ChannelId, ChannelId), OwnedFd>,
}

impl Pairs {
    /// One end of a pipe.
    pub(super) fn pipe(
        &mut self,
        fold: &Fold,
        channel: ChannelId,
        writes: bool,
        capacity: Option<u64>,
    ) -> Result<OwnedFd> {
        if let std::collections::btree_map::Entry::Vacant(place) = self.pipes.entry(channel) {
            let (reader, writer) =
                pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(io("making a pipe"))?;
            if let Some(capacity) = capacity {
                let capacity = i32::try_from(capacity).unwrap_or(i32::MAX);
                fcntl(&writer, FcntlArg::F_SETPIPE_SZ(capacity)).map_err(io("sizing a pipe"))?;
            }
            for bytes in unread(fold, channel) {
                fill(bytes, |rest| write(&writer, rest));
            }
            place.insert([Some(reader), Some(writer)]);
        }
        let end = self
            .pipes
            .get_mut(&channel)
            .and_then(|ends| ends[usize::from(writes)].take());
        end.ok_or(Errno::EBADF)
            .map_err(io("taking an end of a pipe twice"))
    }

    /// One end of a pair of connected UNIX sockets. Its other end may be gone.
    pub(super) fn socket(
        &mut self,
        fold: &Fold,
        socket: &Socket,
        (receives, sends): (ChannelId, ChannelId),
    ) -> Result<OwnedFd> {
        if let Some(end) = self.sockets.remove(&(receives, sends)) {
            return Ok(end);
        }
        let kind = match socket.kind {
            2 => SockType::Datagram,
            5 => SockType::SeqPacket,
            _ => SockType::Stream,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (mine, theirs) = socketpair(AddressFamily::Unix, kind, None, flags)
            .map_err(io("making a socket pair"))?;
        for (channel, from) in [(receives, &theirs), (sends, &mine)] {
            for bytes in unread(fold, channel) {
                fill(bytes, |rest| {
                    send(from.as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT)
                });
            }
        }
        self.sockets.insert((sends, receives), theirs);
        Ok(mine)
    }
}

fn unread(fold: &Fold, channel: ChannelId) -> impl Iterator<Item = &[u8]> {
    let all = fold.channel(channel).map(|channel| channel.unread());
    all.into_iter().flatten()
}

fn fill(mut bytes: &[u8], mut put: impl FnMut(&[u8]) -> nix::Result<usize>) {
    while !bytes.is_empty() {
        match put(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) => {
                tracing::error!(%error, lost = bytes.len(), "unread bytes of a channel do not fit");
                return;
            }
        }
    }
}
