//! Everything that descriptors of the process refer to, made anew as the fold describes it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use eventlog::fold::{self, Description, DescriptionId, Fold, Kind, Socket, State};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, bind, connect,
    listen, setsockopt, socket, sockopt,
};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use super::dead;
use super::error::{Result, io as failed};
use super::pairs::Pairs;
use super::place::Target;

const INET: u32 = 2;
const INET6: u32 = 10;
const UNIX: u32 = 1;
const STREAM: u32 = 1;
/// Status flags that can be set behind open.
const STATUS: i32 = libc::O_NONBLOCK | libc::O_APPEND | libc::O_ASYNC | libc::O_NOATIME;

/// The objects of all processes and their numbers.
#[derive(Debug, Default)]
pub(super) struct Objects {
    made: Vec<OwnedFd>,
    /// Where in `made` the object of a description is.
    index: BTreeMap<DescriptionId, usize>,
}

impl Objects {
    /// Makes all objects of these processes but those in `except`, which are added later. Called in the
    /// container's network.
    pub(super) fn make(
        fold: &Fold,
        pids: &[fold::Pid],
        except: &BTreeSet<DescriptionId>,
    ) -> Result<Self> {
        let mut objects = Self::default();
        let mut pairs = Pairs::default();
        let tables = pids.iter().filter_map(|pid| fold.table(*pid));
        let entries = tables.flat_map(|table| table.entries.values());
        let wanted: BTreeSet<DescriptionId> = entries.map(|e| e.description).collect();
        for id in wanted {
            let Some(description) = fold.descriptions().get(&id) else {
                continue;
            };
            if !except.contains(&id) {
                let fd = make(fold, description, &mut pairs)?;
                objects.add(fold, id, fd);
            }
        }
        Ok(objects)
    }

    /// Adds the object of a description.
    pub(super) fn add(&mut self, fold: &Fold, id: DescriptionId, fd: OwnedFd) {
        if let Some(description) = fold.descriptions().get(&id) {
            set_status(&fd, description);
        }
        self.index.insert(id, self.made.len());
        self.made.push(fd);
    }

    /// Adds an object without a description; its index.
    pub(super) fn add_unnamed(&mut self, fd: OwnedFd) -> usize {
        self.made.push(fd);
        self.made.len() - 1
    }

    /// The objects, in the order of [`Target::object`].
    pub(super) fn all(&self) -> Vec<&OwnedFd> {
        self.made.iter().collect()
    }

    /// Which object goes where.
    pub(super) fn targets(&self, fold: &Fold, pid: fold::Pid) -> Vec<Target> {
        let entries = fold.table(pid).map(|table| &table.entries);
        let all = entries.into_iter().flatten().filter_map(|(number, entry)| {
            Some(Target {
                object: *self.index.get(&entry.description)?,
                number: *number,
                cloexec: entry.cloexec,
            })
        });
        all.collect()
    }
}

fn set_status(fd: &OwnedFd, description: &Description) {
    if matches!(description.kind, Kind::Standard(_)) {
        return;
    }
    let flags = OFlag::from_bits_retain(description.flags as i32 & STATUS);
    if let Err(error) = fcntl(fd, FcntlArg::F_SETFL(flags)) {
        tracing::warn!(%error, "status flags of a descriptor cannot be set");
    }
}

fn make(fold: &Fold, description: &Description, pairs: &mut Pairs) -> Result<OwnedFd> {
    match &description.kind {
        Kind::Standard(0) => null(),
        Kind::Standard(1) => duplicate(&io::stdout()),
        Kind::Standard(_) => duplicate(&io::stderr()),
        Kind::File(file) => open(file),
        Kind::Memfd { name, size, .. } => {
            tracing::error!(name = %String::from_utf8_lossy(name), "the contents of a memory file are lost");
            let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
            let file = nix::sys::memfd::memfd_create("restored", flags)
                .map_err(failed("making a memory file"))?;
            let size = i64::try_from(*size).unwrap_or(i64::MAX);
            nix::unistd::ftruncate(&file, size).map_err(failed("sizing a memory file"))?;
            Ok(file)
        }
        Kind::Socket(socket) => make_socket(fold, socket, pairs),
        Kind::Pipe {
            channel,
            writes,
            capacity,
        } => pairs.pipe(fold, *channel, *writes, *capacity),
        Kind::Epoll(_) => Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map(|epoll| epoll.0)
            .map_err(failed("making an epoll set")),
        Kind::Event {
            added,
            taken,
            semaphore,
        } => event(added.wrapping_sub(*taken), *semaphore),
        Kind::Timer { clock, .. } => {
            let clock = match *clock as i32 {
                libc::CLOCK_REALTIME => ClockId::CLOCK_REALTIME,
                libc::CLOCK_BOOTTIME => ClockId::CLOCK_BOOTTIME,
                _ => ClockId::CLOCK_MONOTONIC,
            };
            TimerFd::new(clock, TimerFlags::TFD_CLOEXEC)
                .map(OwnedFd::from)
                .map_err(failed("making a timer"))
        }
        Kind::Signal(_) => SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_CLOEXEC)
            .and_then(|fd| nix::unistd::dup(&fd))
            .map_err(failed("making a signalfd")),
        Kind::Inotify(_) | Kind::Process(_) | Kind::Other(_) => {
            tracing::error!(kind = ?description.kind, "a descriptor of this kind cannot be made again");
            null()
        }
    }
}

fn null() -> Result<OwnedFd> {
    let null = File::options().read(true).write(true).open("/dev/null");
    null.map(OwnedFd::from).map_err(failed("opening /dev/null"))
}

fn duplicate(fd: &impl AsFd) -> Result<OwnedFd> {
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(failed("duplicating a descriptor"))
}

fn open(file: &fold::File) -> Result<OwnedFd> {
    let path = Path::new(OsStr::from_bytes(&file.path));
    let flags = file.flags as i32;
    let makes = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ACCMODE;
    let access = flags & libc::O_ACCMODE;
    let opened = File::options()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(flags & !makes | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(path);
    let mut opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "a file of the container is not here");
            return null();
        }
    };
    let to = if file.at_end {
        SeekFrom::End(0)
    } else {
        SeekFrom::Start(file.offset)
    };
    // What cannot be sought has no offset.
    let _ = opened.seek(to);
    Ok(opened.into())
}

fn event(count: u64, semaphore: bool) -> Result<OwnedFd> {
    let mut flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    if semaphore {
        flags |= EfdFlags::EFD_SEMAPHORE;
    }
    let event = EventFd::from_flags(flags).map_err(failed("making an eventfd"))?;
    if count > 0 {
        event.write(count).map_err(failed("setting an eventfd"))?;
    }
    Ok(event.into())
}

fn make_socket(fold: &Fold, s: &Socket, pairs: &mut Pairs) -> Result<OwnedFd> {
    if let Some(channels) = s.channels {
        return pairs.socket(fold, s, channels);
    }
    let connected = !matches!(s.state, State::New | State::Bound | State::Listening { .. });
    if connected && s.kind == STREAM {
        return dead::stand_in(None);
    }
    let (family, kind) = match (s.domain, s.kind) {
        (INET, _) => (AddressFamily::Inet, s.kind),
        (INET6, _) => (AddressFamily::Inet6, s.kind),
        (UNIX, _) => (AddressFamily::Unix, s.kind),
        (domain, _) => {
            tracing::error!(domain, "a socket of this family cannot be made again");
            return null();
        }
    };
    let kind = match kind {
        STREAM => SockType::Stream,
        5 => SockType::SeqPacket,
        _ => SockType::Datagram,
    };
    let fd =
        socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map_err(failed("making a socket"))?;
    if let Err(error) = address(&fd, s) {
        tracing::error!(%error, local = ?s.local, "a socket of the container cannot get its address again");
    }
    Ok(fd)
}

fn address(fd: &OwnedFd, s: &Socket) -> nix::Result<()> {
    let raw = fd.as_raw_fd();
    if matches!(s.domain, INET | INET6) && s.kind == STREAM {
        setsockopt(fd, sockopt::ReuseAddr, &true)?;
        if s.options
            .contains_key(&(libc::SOL_SOCKET, libc::SO_REUSEPORT))
        {
            setsockopt(fd, sockopt::ReusePort, &true)?;
        }
    }
    if let Some(only) = s.options.get(&(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)) {
        setsockopt(fd, sockopt::Ipv6V6Only, &(only.first() == Some(&1)))?;
    }
    match (s.domain, name(&s.local)) {
        (_, Some(Name::V4(ip, port))) => {
            bind(
                raw,
                &SockaddrIn::from(std::net::SocketAddrV4::new(ip, port)),
            )?;
        }
        (_, Some(Name::V6(ip, port))) => {
            bind(raw, &SockaddrIn6::from(SocketAddrV6::new(ip, port, 0, 0)))?;
        }
        (_, Some(Name::Path(path))) => {
            // The socket's file of the primary may have come here with the mirror.
            let _ = std::fs::remove_file(OsStr::from_bytes(&path));
            bind(raw, &UnixAddr::new(OsStr::from_bytes(&path))?)?;
        }
        (_, None) => {}
    }
    if let State::Listening { backlog, .. } = s.state {
        listen(fd, Backlog::new(backlog).unwrap_or(Backlog::MAXCONN))?;
    }
    if s.kind != STREAM && s.state == State::Connected {
        match name(&s.peer) {
            Some(Name::V4(ip, port)) => {
                connect(
                    raw,
                    &SockaddrIn::from(std::net::SocketAddrV4::new(ip, port)),
                )?;
            }
            Some(Name::V6(ip, port)) => {
                connect(raw, &SockaddrIn6::from(SocketAddrV6::new(ip, port, 0, 0)))?;
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) enum Name {
    V4(Ipv4Addr, u16),
    V6(Ipv6Addr, u16),
    Path(Vec<u8>),
}

/// Reads a socket address as the kernel lays it out.
pub(super) fn name(bytes: &[u8]) -> Option<Name> {
    let family = u32::from(u16::from_ne_bytes(*bytes.first_chunk::<2>()?));
    let port = || Some(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
    match family {
        INET => {
            let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(Name::V4(ip.into(), port()?))
        }
        INET6 => {
            let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(Name::V6(ip.into(), port()?))
        }
        UNIX => {
            let path = bytes.get(2..)?;
            let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
            (end > 0).then(|| Name::Path(path[..end].to_vec()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let v4 = [2, 0, 0x18, 0xeb, 10, 0, 0, 1];
        assert!(matches!(name(&v4), Some(Name::V4(ip, 6379)) if ip == Ipv4Addr::new(10, 0, 0, 1)));
        assert!(matches!(name(b"\x01\0/run/x\0\0"), Some(Name::Path(p)) if p == b"/run/x"));
        assert!(name(&[2, 0, 1]).is_none());
    }
}
