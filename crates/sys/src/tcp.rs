//! What TCP takeover needs of the kernel: repair mode, socket state and raw IP packets.

use std::ffi::c_int;
use std::io;
use std::mem::size_of_val;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Repair mode of a socket (`TCP_REPAIR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// State can be set; nothing is sent.
    On,
    /// Back to normal, with a window probe.
    Off,
    /// Back to normal, silently.
    OffSilently,
}

/// The queue that repair mode works on (`TCP_REPAIR_QUEUE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// None.
    None,
    /// Received, unread bytes.
    Receive,
    /// Sent, unacknowledged bytes.
    Send,
}

/// One negotiated option (`struct tcp_repair_opt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpOption {
    /// The largest segment the peer takes.
    MaxSegment(u16),
    /// Shift counts of the peer's window and of our own.
    WindowScale {
        /// The peer's.
        peer: u8,
        /// Ours.
        own: u8,
    },
    /// Selective acknowledgements.
    Sack,
    /// Timestamps.
    Timestamps,
}

/// `struct tcp_repair_window`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Window {
    /// Sequence number of the segment that last updated `snd_wnd`.
    pub snd_wl1: u32,
    /// Bytes the peer takes beyond what it has acknowledged.
    pub snd_wnd: u32,
    /// The largest `snd_wnd` ever.
    pub max_window: u32,
    /// Bytes we offered beyond `rcv_wup`.
    pub rcv_wnd: u32,
    /// What we had acknowledged when we offered them.
    pub rcv_wup: u32,
}

/// A part of `struct tcp_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// `TCP_ESTABLISHED` is 1.
    pub state: u8,
    /// `TCPI_OPT_*`.
    pub options: u8,
    /// Shift count of the peer's window.
    pub peer_scale: u8,
    /// Shift count of our own.
    pub own_scale: u8,
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u32,
    /// Segments sent again so far.
    pub retransmits: u32,
}

const TCP_MAXSEG: u32 = 2;
const TCPOPT_MSS: u32 = 2;
const TCPOPT_WINDOW: u32 = 3;
const TCPOPT_SACK_PERM: u32 = 4;
const TCPOPT_TIMESTAMP: u32 = 8;

fn set<T: Copy>(fd: BorrowedFd<'_>, level: c_int, option: c_int, value: &[T]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(value))
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the kernel reads `len` bytes of the slice.
    let r = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value.as_ptr().cast(), len) };
    if r == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn get_bytes(fd: BorrowedFd<'_>, level: c_int, option: c_int, out: &mut [u8]) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(out.len())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the kernel writes at most `len` bytes to the slice.
    let r = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            option,
            out.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if r == 0 {
        Ok(len as usize)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn get_u32(fd: BorrowedFd<'_>, option: c_int) -> io::Result<u32> {
    let mut b = [0; 4];
    get_bytes(fd, libc::IPPROTO_TCP, option, &mut b)?;
    Ok(u32::from_ne_bytes(b))
}

/// Enters or leaves repair mode. Needs CAP_NET_ADMIN in the socket's namespace.
///
/// # Errors
/// What setsockopt says.
pub fn set_repair(fd: BorrowedFd<'_>, mode: Repair) -> io::Result<()> {
    let v: c_int = match mode {
        Repair::On => 1,
        Repair::Off => 0,
        Repair::OffSilently => -1,
    };
    set(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, &[v])
}

/// Chooses the queue for [`set_queue_seq`], [`queue_seq`] and plain sends in repair mode.
///
/// # Errors
/// EPERM outside repair mode.
pub fn set_queue(fd: BorrowedFd<'_>, queue: Queue) -> io::Result<()> {
    let v: c_int = match queue {
        Queue::None => 0,
        Queue::Receive => 1,
        Queue::Send => 2,
    };
    set(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, &[v])
}

/// Sets the sequence number of the chosen queue, before connect.
///
/// # Errors
/// EPERM outside repair mode or when the queue is not empty.
pub fn set_queue_seq(fd: BorrowedFd<'_>, seq: u32) -> io::Result<()> {
    set(fd, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, &[seq])
}

/// The sequence number of the chosen queue: the end of what was written to it or received.
///
/// # Errors
/// EINVAL outside repair mode.
pub fn queue_seq(fd: BorrowedFd<'_>) -> io::Result<u32> {
    get_u32(fd, libc::TCP_QUEUE_SEQ)
}

/// Sets the negotiated options, after connect in repair mode.
///
/// # Errors
/// EPERM outside repair mode, EFBIG for a shift count beyond 14.
pub fn set_options(fd: BorrowedFd<'_>, options: &[TcpOption]) -> io::Result<()> {
    let words: Vec<[u32; 2]> = options
        .iter()
        .map(|o| match *o {
            TcpOption::MaxSegment(n) => [TCPOPT_MSS, u32::from(n)],
            TcpOption::WindowScale { peer, own } => {
                [TCPOPT_WINDOW, u32::from(peer) | u32::from(own) << 16]
            }
            TcpOption::Sack => [TCPOPT_SACK_PERM, 0],
            TcpOption::Timestamps => [TCPOPT_TIMESTAMP, 0],
        })
        .collect();
    set(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, &words)
}

/// Sets the value from which this socket's timestamps go on, in milliseconds; bit 0 must be clear.
///
/// # Errors
/// EPERM outside repair mode.
pub fn set_timestamp(fd: BorrowedFd<'_>, value: u32) -> io::Result<()> {
    set(fd, libc::IPPROTO_TCP, libc::TCP_TIMESTAMP, &[value & !1])
}

/// The timestamp the socket would send now.
///
/// # Errors
/// What getsockopt says.
pub fn timestamp(fd: BorrowedFd<'_>) -> io::Result<u32> {
    get_u32(fd, libc::TCP_TIMESTAMP)
}

/// Sets both windows, after connect in repair mode.
///
/// # Errors
/// EPERM outside repair mode; EINVAL if `max_window` is below `snd_wnd` or the numbers lie outside what
/// the connection's sequence numbers allow.
pub fn set_window(fd: BorrowedFd<'_>, window: &Window) -> io::Result<()> {
    set(
        fd,
        libc::IPPROTO_TCP,
        TCP_REPAIR_WINDOW,
        std::slice::from_ref(window),
    )
}

const TCP_REPAIR_WINDOW: c_int = 29;

/// Both windows.
///
/// # Errors
/// EPERM outside repair mode.
pub fn window(fd: BorrowedFd<'_>) -> io::Result<Window> {
    let mut b = [0; 20];
    get_bytes(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &mut b)?;
    let at = |o: usize| u32::from_ne_bytes([b[o], b[o + 1], b[o + 2], b[o + 3]]);
    Ok(Window {
        snd_wl1: at(0),
        snd_wnd: at(4),
        max_window: at(8),
        rcv_wnd: at(12),
        rcv_wup: at(16),
    })
}

/// The largest segment the connection sends.
///
/// # Errors
/// What getsockopt says.
pub fn max_segment(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut b = [0; 4];
    get_bytes(fd, libc::IPPROTO_TCP, TCP_MAXSEG as c_int, &mut b)?;
    Ok(u32::from_ne_bytes(b))
}

/// State of a connection (`TCP_INFO`; 0.4 µs).
///
/// # Errors
/// What getsockopt says.
pub fn info(fd: BorrowedFd<'_>) -> io::Result<Info> {
    let mut b = [0; 104];
    let n = get_bytes(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut b)?;
    if n < b.len() {
        return Err(io::Error::from_raw_os_error(libc::ENOPROTOOPT));
    }
    let at = |o: usize| u32::from_ne_bytes([b[o], b[o + 1], b[o + 2], b[o + 3]]);
    Ok(Info {
        state: b[0],
        options: b[5],
        peer_scale: b[6] & 0xf,
        own_scale: b[6] >> 4,
        rtt_us: at(68),
        retransmits: at(100),
    })
}

/// The error that is pending on a socket, taken from it (`SO_ERROR`).
///
/// # Errors
/// What getsockopt says.
pub fn take_error(fd: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    let mut b = [0; 4];
    get_bytes(fd, libc::SOL_SOCKET, libc::SO_ERROR, &mut b)?;
    let code = i32::from_ne_bytes(b);
    Ok((code != 0).then(|| io::Error::from_raw_os_error(code)))
}

fn queued(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<u32> {
    let mut n: c_int = 0;
    // SAFETY: both requests write one int.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut n) };
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(n.cast_unsigned())
    }
}

/// Bytes (and FIN) written to the socket that the peer has not acknowledged (`SIOCOUTQ`).
///
/// # Errors
/// What ioctl says.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> io::Result<u32> {
    queued(fd, libc::TIOCOUTQ)
}

/// Bytes received that the application has not read (`SIOCINQ`).
///
/// # Errors
/// What ioctl says.
pub fn unread(fd: BorrowedFd<'_>) -> io::Result<u32> {
    queued(fd, libc::FIONREAD)
}

/// Raises the send or receive buffer beyond the system's limit.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn force_buffers(fd: BorrowedFd<'_>, send: u32, receive: u32) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &[send])?;
    set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &[receive])
}

fn open(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: makes a new descriptor.
    let fd = unsafe {
        libc::socket(
            domain,
            kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            protocol,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends whole IPv4 packets, header included. Stays in the network namespace it was opened in.
#[derive(Debug)]
pub struct RawIp(OwnedFd);

impl RawIp {
    /// Opens one in the calling thread's network namespace. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// What socket says.
    pub fn open() -> io::Result<Self> {
        open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW).map(Self)
    }

    /// Sends one packet to `to`, by the namespace's routes.
    ///
    /// # Errors
    /// What sendto says.
    pub fn send(&self, packet: &[u8], to: Ipv4Addr) -> io::Result<()> {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from_ne_bytes(to.octets()),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: packet and address are read for the lengths given.
        let r = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if r < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// The gratuitous ARP request that tells everybody where `address` is now.
#[must_use]
pub fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> [u8; 42] {
    let mut f = [0; 42];
    f[..6].fill(0xff);
    f[6..12].copy_from_slice(&mac);
    f[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    f[22..28].copy_from_slice(&mac);
    f[28..32].copy_from_slice(&address.octets());
    f[38..42].copy_from_slice(&address.octets());
    f
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn queues_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (b, _) = listener.accept().unwrap();
        a.write_all(b"hello").unwrap();
        while unread(b.as_fd()).unwrap() < 5 {}
        assert_eq!(unread(b.as_fd()).unwrap(), 5);
        while unacknowledged(a.as_fd()).unwrap() > 0 {}
        let info = info(a.as_fd()).unwrap();
        assert_eq!(info.state, 1);
        assert!(info.peer_scale <= 14 && info.own_scale <= 14);
        assert!(take_error(a.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_gratuitous_arp_names_the_address_twice() {
        let f = gratuitous_arp([2, 0, 0, 0, 0, 9], Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(&f[..6], &[0xff; 6]);
        assert_eq!(f[28..32], f[38..42]);
    }
}
