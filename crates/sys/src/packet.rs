//! Raw Ethernet frames on one link.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt};
use std::os::fd::AsFd;

/// Bytes of the notes in front of each frame of [`PacketSocket::open_for_relay`].
pub const NOTES: usize = 10;
/// Bytes that a relay's socket keeps until they are read.
const RELAY_ROOM: usize = 32 << 20;
/// Of linux/if_packet.h.
const PACKET_VNET_HDR: i32 = 15;

/// A packet socket bound to one link and one ethertype. It belongs to the network namespace of the
/// thread that opened it. Closing one takes the kernel 8 to 15 ms: not on a hot path.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens it. `ethertype` in host order (0x0806 for ARP); 0 receives nothing.
    pub fn open(index: u32, ethertype: u16) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: three integers; protocol 0 receives nothing until bind names one.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: the address has the length that is given and lives through the call.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if bound < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self(socket))
        }
    }

    /// Opens one that receives every frame on the link, those for others and those that are sent there too (but not its
    /// own), and sends frames as they were received: each has the kernel's notes on checksums and segments that are still
    /// to be made in front of it ([`NOTES`] bytes, `PACKET_VNET_HDR` of packet(7)).
    pub fn open_for_relay(index: u32) -> io::Result<Self> {
        let socket = Self::open(index, libc::ETH_P_ALL as u16)?;
        let on: i32 = 1;
        // SAFETY: the option's value is one live integer of the length that is given.
        let set = unsafe {
            libc::setsockopt(
                socket.0.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<i32>() as u32,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        // A burst of whole segments is more than the usual room, and what is dropped here nobody asked to lose.
        setsockopt(&socket.0, RcvBufForce, &RELAY_ROOM)?;
        Ok(socket)
    }

    /// Sends one whole frame, Ethernet header included. `ENETDOWN` while the link is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }

    /// Receives one frame, cut to `buffer`'s length; `None` when none came before `deadline`.
    pub fn receive(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<Option<usize>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that a rest below a millisecond does not spin.
            let timeout = PollTimeout::try_from(left + Duration::from_micros(999))
                .unwrap_or(PollTimeout::MAX);
            let mut wanted = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut wanted, timeout) {
                Ok(0) if left.is_zero() => return Ok(None),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(Some(recv(self.0.as_raw_fd(), buffer, MsgFlags::empty())?)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
