//! The state for human eyes.

use std::fmt::{self, Write};

use super::message::word;
use super::sockets::port;
use super::{Description, Fold, Interest, Kind, Process, Socket, State};

impl Fold {
    /// A listing of processes, descriptors, sockets, interests and orphans, one line each.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_all(&mut text);
        text
    }

    fn write_all(&self, to: &mut String) -> fmt::Result {
        for (pid, process) in &self.processes {
            write_process(to, *pid, process)?;
            for (fd, entry) in self
                .table(*pid)
                .into_iter()
                .flat_map(|table| &table.entries)
            {
                let cloexec = if entry.cloexec { " cloexec" } else { "" };
                write!(to, "  {fd:>4} -> {}{cloexec} ", entry.description)?;
                match self.descriptions.get(&entry.description) {
                    Some(description) => self.write_description(to, description)?,
                    None => writeln!(to, "gone")?,
                }
            }
        }
        for orphan in &self.orphans {
            write!(
                to,
                "closed {}: {} of process {} ",
                orphan.close, orphan.fd, orphan.pid
            )?;
            write_socket(to, &orphan.socket)?;
        }
        for (id, stream) in self
            .streams
            .iter()
            .filter(|(_, stream)| stream.intent.is_some())
        {
            let call = stream
                .intent
                .as_ref()
                .and_then(|intent| sysabi::lookup(u64::from(intent.nr)));
            let call = call.map_or("?", |row| row.name);
            writeln!(to, "stream {id}: thread {} is inside {call}", stream.tid)?;
        }
        writeln!(
            to,
            "{} descriptions, {} channels, {} strays",
            self.descriptions.len(),
            self.channels.len(),
            self.strays
        )
    }

    fn write_description(&self, to: &mut String, description: &Description) -> fmt::Result {
        write!(to, "flags {:#o} ", description.flags)?;
        match &description.kind {
            Kind::Standard(n) => writeln!(
                to,
                "standard {}",
                ["input", "output", "error"][usize::from(*n).min(2)]
            ),
            Kind::File(file) => {
                let end = if file.at_end { " (end)" } else { "" };
                let unlinked = if file.unlinked { ", unlinked" } else { "" };
                let path = String::from_utf8_lossy(&file.path);
                writeln!(to, "file {path:?} at {}{end}{unlinked}", file.offset)
            }
            Kind::Memfd {
                name, size, offset, ..
            } => {
                writeln!(
                    to,
                    "memfd {:?} of {size} at {offset}",
                    String::from_utf8_lossy(name)
                )
            }
            Kind::Socket(socket) => write_socket(to, socket),
            Kind::Pipe {
                channel, writes, ..
            } => {
                let unread: usize = self
                    .channels
                    .get(channel)
                    .map_or(0, |channel| channel.unread().map(<[u8]>::len).sum());
                writeln!(
                    to,
                    "pipe {channel}, {} end, {unread} unread",
                    if *writes { "writing" } else { "reading" }
                )
            }
            Kind::Epoll(interests) => {
                writeln!(to, "epoll of {}", interests.len())?;
                for (
                    (fd, _),
                    Interest {
                        events,
                        data,
                        armed,
                    },
                ) in interests
                {
                    let rests = if *armed { "" } else { ", rests" };
                    writeln!(
                        to,
                        "       watches {fd}: events {events:#x}, data {data:#x}{rests}"
                    )?;
                }
                Ok(())
            }
            Kind::Event {
                added,
                taken,
                semaphore,
            } => {
                let semaphore = if *semaphore { ", semaphore" } else { "" };
                writeln!(to, "eventfd at {}{semaphore}", added.wrapping_sub(*taken))
            }
            Kind::Timer { clock, armed } => {
                writeln!(
                    to,
                    "timerfd of clock {clock}, {}",
                    if armed.is_some() {
                        "armed"
                    } else {
                        "not armed"
                    }
                )
            }
            Kind::Signal(mask) => writeln!(to, "signalfd of {:#x}", word(mask, 0, 8)),
            Kind::Inotify(watches) => writeln!(to, "inotify of {}", watches.len()),
            Kind::Process(pid) => writeln!(to, "pidfd of {pid}"),
            Kind::Other(nr) => writeln!(
                to,
                "made by {}",
                sysabi::lookup(u64::from(*nr)).map_or("?", |row| row.name)
            ),
        }
    }
}

fn write_process(to: &mut String, pid: u32, process: &Process) -> fmt::Result {
    let program = String::from_utf8_lossy(&process.program);
    write!(
        to,
        "process {pid} of {} {program:?}, {} threads",
        process.parent,
        process.threads.len()
    )?;
    if !process.cwd.is_empty() {
        write!(to, ", in {:?}", String::from_utf8_lossy(&process.cwd))?;
    }
    if let Some(umask) = process.umask {
        write!(to, ", umask {umask:03o}")?;
    }
    for (resource, (soft, hard)) in &process.limits {
        write!(to, ", limit {resource} {soft}/{hard}")?;
    }
    for (signal, action) in &process.actions {
        write!(to, ", signal {signal} -> {:#x}", action.handler)?;
    }
    match process.ended {
        Some(status) => writeln!(to, ", ended with {status:#x}"),
        None => writeln!(to),
    }
}

fn write_socket(to: &mut String, socket: &Socket) -> fmt::Result {
    let Socket {
        domain,
        kind,
        protocol,
        ..
    } = socket;
    write!(to, "socket {domain}/{kind}/{protocol} ")?;
    match socket.state {
        State::New => write!(to, "new")?,
        State::Bound => write!(to, "bound to {}", name(&socket.local))?,
        State::Listening { backlog, accepted } => {
            write!(
                to,
                "listens on {} (backlog {backlog}), accepted {accepted}",
                name(&socket.local)
            )?;
        }
        State::Connecting => write!(to, "connecting to {}", name(&socket.peer))?,
        State::Connected => write!(to, "connected to {}", name(&socket.peer))?,
        State::Accepted { port, ordinal, .. } => write!(
            to,
            "accepted {ordinal} on {port} from {}",
            name(&socket.peer)
        )?,
    }
    write!(to, ", read {}, written {}", socket.read, socket.written)?;
    let marks = [
        (socket.end_read, "end read"),
        (socket.shut_read, "shut for reading"),
        (socket.shut_write, "shut for writing"),
        (socket.broken, "broken"),
    ];
    for (_, mark) in marks.iter().filter(|(set, _)| *set) {
        write!(to, ", {mark}")?;
    }
    writeln!(to, ", {} options", socket.options.len())
}

/// A socket address.
fn name(address: &[u8]) -> String {
    match word(address, 0, 2) {
        2 if address.len() >= 8 => {
            let ip = std::net::Ipv4Addr::new(address[4], address[5], address[6], address[7]);
            format!("{ip}:{}", port(address))
        }
        10 => match address
            .get(8..24)
            .and_then(|ip| <[u8; 16]>::try_from(ip).ok())
        {
            Some(ip) => format!("[{}]:{}", std::net::Ipv6Addr::from(ip), port(address)),
            None => "?".to_owned(),
        },
        1 => format!(
            "{:?}",
            String::from_utf8_lossy(address.get(2..).unwrap_or_default())
        ),
        _ => "?".to_owned(),
    }
}
