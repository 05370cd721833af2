//! Carrying a plan out with `TCP_REPAIR`.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrIn, bind, connect, listen, send,
    setsockopt, shutdown, socket, sockopt,
};
use sys::tcp::{Queue, Repair, TcpOption};

use super::ConnectionState;
use super::plan::{Delivery, Plan};
use super::probe::next_timestamp;
use crate::error::GateError;
use crate::tuple::Tuple;

/// Room in both directions of a socket while it is rebuilt: unread bytes and the tail must fit.
const BUFFERS: u32 = 4 << 20;
/// Bytes given to a repair queue at once.
const PIECE: usize = 16 << 10;

/// Builds sockets in the calling thread's network namespace, which has the connections' local address.
#[derive(Debug, Default)]
pub struct Rebuilder;

/// A socket in repair mode: complete, and silent until [`Rebuilt::go_live`].
#[derive(Debug)]
pub struct Rebuilt {
    socket: OwnedFd,
    tuple: Tuple,
    plan: Plan,
}

fn failed<E: Into<std::io::Error>>(
    tuple: &Tuple,
    step: &'static str,
) -> impl FnOnce(E) -> GateError {
    let tuple = *tuple;
    move |e| GateError::Socket {
        tuple,
        step,
        source: e.into(),
    }
}

fn address(a: SocketAddrV4) -> SockaddrIn {
    SockaddrIn::from(a)
}

impl Rebuilder {
    /// A listener that shares its port with rebuilt connections. Make it before them.
    ///
    /// # Errors
    /// [`GateError::System`] with the call that failed.
    pub fn listener(at: SocketAddrV4, backlog: i32) -> Result<OwnedFd, GateError> {
        let wrong = |step| {
            move |e: nix::errno::Errno| GateError::System {
                step,
                source: e.into(),
            }
        };
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(wrong("socket"))?;
        setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(wrong("SO_REUSEADDR"))?;
        bind(fd.as_raw_fd(), &address(at)).map_err(wrong("binding the listener"))?;
        let backlog =
            nix::sys::socket::Backlog::new(backlog).unwrap_or(nix::sys::socket::Backlog::MAXCONN);
        listen(&fd, backlog).map_err(wrong("listen"))?;
        Ok(fd)
    }

    /// Builds one connection up to the last step. `tail` are the bytes of [`Plan::resend`]; they are used
    /// here only if the plan says [`Delivery::Queue`].
    ///
    /// # Errors
    /// [`GateError::Socket`] with the step that the kernel refused.
    pub fn build(
        &self,
        state: &ConnectionState,
        plan: &Plan,
        tail: &[u8],
    ) -> Result<Rebuilt, GateError> {
        let h = &state.handshake;
        let t = &h.tuple;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)
            .map_err(failed(t, "socket"))?;
        let s = fd.as_fd();
        setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(failed(t, "SO_REUSEADDR"))?;
        sys::tcp::set_repair(s, Repair::On).map_err(failed(t, "TCP_REPAIR"))?;
        sys::tcp::force_buffers(s, BUFFERS, BUFFERS).map_err(failed(t, "SO_SNDBUFFORCE"))?;
        bind(fd.as_raw_fd(), &address(t.local)).map_err(failed(t, "bind"))?;
        for (queue, seq) in [(Queue::Send, plan.snd_una), (Queue::Receive, plan.rcv_nxt)] {
            sys::tcp::set_queue(s, queue).map_err(failed(t, "TCP_REPAIR_QUEUE"))?;
            sys::tcp::set_queue_seq(s, seq).map_err(failed(t, "TCP_QUEUE_SEQ"))?;
        }
        connect(fd.as_raw_fd(), &address(t.peer)).map_err(failed(t, "connect in repair mode"))?;
        sys::tcp::set_options(s, &options(state)).map_err(failed(t, "TCP_REPAIR_OPTIONS"))?;
        if let (true, Some(last)) = (h.timestamps, state.timestamp) {
            sys::tcp::set_timestamp(s, next_timestamp(last)).map_err(failed(t, "TCP_TIMESTAMP"))?;
        }
        // The receive queue is still the chosen one.
        fill(&fd, &state.unread).map_err(failed(t, "filling the receive queue"))?;
        sys::tcp::set_window(s, &plan.window).map_err(failed(t, "TCP_REPAIR_WINDOW"))?;
        if plan.delivery == Delivery::Queue {
            sys::tcp::set_queue(s, Queue::Send).map_err(failed(t, "TCP_REPAIR_QUEUE"))?;
            fill(&fd, tail).map_err(failed(t, "filling the send queue"))?;
        }
        sys::tcp::set_queue(s, Queue::None).map_err(failed(t, "TCP_REPAIR_QUEUE"))?;
        Ok(Rebuilt {
            socket: fd,
            tuple: *t,
            plan: plan.clone(),
        })
    }
}

fn options(state: &ConnectionState) -> Vec<TcpOption> {
    let h = &state.handshake;
    let mut all = vec![TcpOption::MaxSegment(h.peer_mss)];
    all.extend(h.scale.map(|s| TcpOption::WindowScale {
        peer: s.peer,
        own: s.local,
    }));
    all.extend(h.sack.then_some(TcpOption::Sack));
    all.extend(h.timestamps.then_some(TcpOption::Timestamps));
    all
}

fn fill(fd: &OwnedFd, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        let n = send(
            fd.as_raw_fd(),
            &bytes[..bytes.len().min(PIECE)],
            MsgFlags::MSG_DONTWAIT,
        )?;
        bytes = &bytes[n..];
    }
    Ok(())
}

impl Rebuilt {
    /// Ends repair mode: from here on the kernel speaks for the connection. The output of
    /// [`Plan::resend`] is then to be sent as usual, by a [`crate::Sender`] that adopts the socket with
    /// [`Plan::output`].
    ///
    /// # Errors
    /// [`GateError::Socket`] if the kernel refuses.
    pub fn go_live(self) -> Result<OwnedFd, GateError> {
        let mode = match self.plan.delivery {
            Delivery::Send => Repair::OffSilently,
            Delivery::Queue => Repair::Off,
        };
        sys::tcp::set_repair(self.socket.as_fd(), mode)
            .map_err(failed(&self.tuple, "leaving repair mode"))?;
        Ok(self.socket)
    }

    /// For callers without a [`crate::Sender`]: goes live, sends `tail` (the bytes of [`Plan::resend`]) and
    /// the FIN that the plan asks for.
    ///
    /// # Errors
    /// [`GateError::Socket`] if the kernel refuses or takes less than all.
    pub fn go_live_with(self, tail: &[u8]) -> Result<OwnedFd, GateError> {
        let (tuple, plan) = (self.tuple, self.plan.clone());
        let fd = self.go_live()?;
        if plan.delivery == Delivery::Send {
            fill(&fd, tail).map_err(failed(&tuple, "sending the tail"))?;
        }
        if plan.finish {
            shutdown(fd.as_raw_fd(), Shutdown::Write).map_err(failed(&tuple, "shutdown"))?;
        }
        Ok(fd)
    }

    /// The plan it was built by.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The socket, still in repair mode, to hand a duplicate to the application.
    #[must_use]
    pub const fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}
