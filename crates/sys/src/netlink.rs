//! The few rtnetlink requests that a container's network takes: links, addresses, one route.
//!
//! A socket belongs to the network namespace of the thread that opened it, for good; open it inside
//! [`crate::namespaces::in_network`] to configure another one.

use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {source}")]
pub struct NetlinkError {
    /// What was asked, with the name it concerned.
    pub operation: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl NetlinkError {
    /// Whether the kernel answered with this errno.
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

/// A link, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// `bridge`, `veth` and so on; empty for hardware.
    pub kind: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether frames pass: for a veth, some time after both its ends were taken up.
    pub running: bool,
    /// The bridge it is a port of.
    pub master: Option<u32>,
    /// Its hardware address, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// At most 15 bytes.
    pub name: &'a str,
    /// Hardware address.
    pub mac: [u8; 6],
    /// The namespace it goes to: a descriptor of `/proc/PID/ns/net`. The socket's own without.
    pub namespace: Option<BorrowedFd<'a>>,
}

// Attribute types and header lengths of linux/rtnetlink.h, linux/if_link.h and linux/veth.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const TCA_KIND: u16 = 1;
const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
const IFINFO: usize = 16;
const IFADDR: usize = 8;

/// A request under construction: netlink header, fixed part, attributes.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nested(kind, |inner| inner.0.extend_from_slice(value))
    }

    fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        self.nested(kind, |inner| {
            inner.0.extend_from_slice(value.as_bytes());
            inner.0.push(0);
        })
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        // Attributes here are a few dozen bytes, far below 64 KiB.
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
        self
    }

    fn finish(&mut self, sequence: u32) -> &[u8] {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.0
    }
}

/// `struct ifinfomsg`.
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; IFINFO] {
    let mut bytes = [0; IFINFO];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// A route socket.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The link called `name`.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut request = Request::new(libc::RTM_GETLINK, 0, &ifinfo(0, 0, 0));
        request.string(IFLA_IFNAME, name);
        match self.ask(request, format!("look up the link {name}")) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| parse_link(answer))),
            Err(error) if error.is(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a bridge that forwards at once (no spanning tree).
    pub fn add_bridge(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, CREATE, &ifinfo(0, 0, 0));
        request
            .string(IFLA_IFNAME, name)
            .nested(IFLA_LINKINFO, |info| {
                info.attribute(IFLA_INFO_KIND, b"bridge");
            });
        self.ask(request, format!("make the bridge {name}"))
            .map(drop)
    }

    /// Makes a veth pair, both ends down.
    pub fn add_veth(&mut self, host: End<'_>, peer: End<'_>) -> Result<(), NetlinkError> {
        fn describe(request: &mut Request, end: End<'_>) {
            request
                .string(IFLA_IFNAME, end.name)
                .attribute(IFLA_ADDRESS, &end.mac);
            if let Some(namespace) = end.namespace {
                request.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
            }
        }
        let mut request = Request::new(libc::RTM_NEWLINK, CREATE, &ifinfo(0, 0, 0));
        describe(&mut request, host);
        request.nested(IFLA_LINKINFO, |info| {
            info.attribute(IFLA_INFO_KIND, b"veth")
                .nested(IFLA_INFO_DATA | NESTED, |data| {
                    data.nested(VETH_INFO_PEER | NESTED, |inner| {
                        inner.0.extend_from_slice(&ifinfo(0, 0, 0));
                        describe(inner, peer);
                    });
                });
        });
        self.ask(request, format!("make the link {}", host.name))
            .map(drop)
    }

    /// Takes a link up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let bit = libc::IFF_UP as u32;
        let info = ifinfo(index, if up { bit } else { 0 }, bit);
        let request = Request::new(libc::RTM_NEWLINK, 0, &info);
        self.ask(
            request,
            format!("take link {index} {}", if up { "up" } else { "down" }),
        )
        .map(drop)
    }

    /// Makes a link a port of a bridge, or of none.
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> Result<(), NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &ifinfo(index, 0, 0));
        request.attribute(IFLA_MASTER, &master.unwrap_or(0).to_ne_bytes());
        self.ask(request, format!("change the bridge of link {index}"))
            .map(drop)
    }

    /// Deletes a link; the other end of a veth goes with it. One that is gone is no error.
    pub fn delete(&mut self, index: u32) -> Result<(), NetlinkError> {
        let request = Request::new(libc::RTM_DELLINK, 0, &ifinfo(index, 0, 0));
        match self.ask(request, format!("delete link {index}")) {
            Err(error) if !error.is(libc::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives a link an address.
    pub fn add_address(
        &mut self,
        index: u32,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let mut fixed = [libc::AF_INET as u8, prefix, 0, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut request = Request::new(libc::RTM_NEWADDR, CREATE, &fixed);
        request
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets());
        self.ask(
            request,
            format!("give link {index} the address {address}/{prefix}"),
        )
        .map(drop)
    }

    /// Sends everything that has no better route to `gateway`.
    pub fn add_default_route(&mut self, gateway: Ipv4Addr) -> Result<(), NetlinkError> {
        let mut fixed = [0; 12];
        fixed[0] = libc::AF_INET as u8;
        fixed[4] = libc::RT_TABLE_MAIN;
        fixed[5] = libc::RTPROT_BOOT;
        fixed[6] = libc::RT_SCOPE_UNIVERSE;
        fixed[7] = libc::RTN_UNICAST;
        let mut request = Request::new(libc::RTM_NEWROUTE, CREATE, &fixed);
        request.attribute(RTA_GATEWAY, &gateway.octets());
        self.ask(request, format!("make {gateway} the default gateway"))
            .map(drop)
    }

    /// All IPv4 addresses of the namespace, with the number of their link.
    pub fn addresses(&mut self) -> Result<Vec<(u32, Ipv4Addr)>, NetlinkError> {
        let fixed = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0];
        let request = Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &fixed);
        let answers = self.ask(request, "list addresses".into())?;
        Ok(answers
            .iter()
            .filter_map(|answer| parse_address(answer))
            .collect())
    }

    /// Puts the clsact queueing discipline on a link, where eBPF classifiers attach.
    pub fn add_clsact(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut fixed = [0; 20];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        // Handle ffff:0, parent TC_H_CLSACT.
        fixed[8..12].copy_from_slice(&0xffff_0000_u32.to_ne_bytes());
        fixed[12..16].copy_from_slice(&0xffff_fff1_u32.to_ne_bytes());
        let mut request = Request::new(libc::RTM_NEWQDISC, CREATE, &fixed);
        request.string(TCA_KIND, "clsact");
        self.ask(request, format!("put clsact on link {index}"))
            .map(drop)
    }

    /// Sends a request and collects the answers, each without its netlink header, up to the
    /// acknowledgement.
    fn ask(
        &mut self,
        mut request: Request,
        operation: String,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.sequence += 1;
        self.exchange(request.finish(self.sequence))
            .map_err(|source| NetlinkError { operation, source })
    }

    fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), request, &kernel, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for (kind, sequence, body) in messages(&buffer[..length]) {
                if sequence != self.sequence {
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_ERROR => {
                        let code = word(body, 0).map_or(0, |word| word as i32);
                        return if code == 0 {
                            Ok(answers)
                        } else {
                            Err(io::Error::from_raw_os_error(-code))
                        };
                    }
                    libc::NLMSG_DONE => return Ok(answers),
                    _ => answers.push(body.to_vec()),
                }
            }
        }
    }
}

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The messages of one datagram: type, sequence number, body.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = word(bytes, 0)? as usize;
        let body = bytes.get(HEADER..length)?;
        let item = (half(bytes, 4)?, word(bytes, 8)?, body);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(item)
    })
}

/// The attributes in a run of bytes: type without its flag bits, value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = half(bytes, 0)? as usize;
        let value = bytes.get(4..length)?;
        let item = (half(bytes, 2)? & 0x3fff, value);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(item)
    })
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: word(body, 4)?,
        kind: String::new(),
        up: word(body, 8)? & libc::IFF_UP as u32 != 0,
        running: word(body, 8)? & libc::IFF_RUNNING as u32 != 0,
        master: None,
        mac: None,
    };
    for (kind, value) in attributes(body.get(IFINFO..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_MASTER => link.master = word(value, 0),
            IFLA_LINKINFO => {
                let name = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                let name = name.and_then(|(_, value)| CStr::from_bytes_until_nul(value).ok());
                link.kind = name
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_address(body: &[u8]) -> Option<(u32, Ipv4Addr)> {
    let local = attributes(body.get(IFADDR..)?)
        .find(|(kind, _)| *kind == IFA_LOCAL)?
        .1;
    Some((
        word(body, 4)?,
        Ipv4Addr::from(<[u8; 4]>::try_from(local).ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespaces::on_helper_thread;
    use nix::sched::{CloneFlags, unshare};

    /// Runs a test in a network namespace that vanishes with its thread.
    fn in_fresh_network<T: Send>(test: impl FnOnce(Netlink) -> T + Send) -> T {
        on_helper_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(test(Netlink::open()?))
        })
        .unwrap()
    }

    #[test]
    fn a_veth_on_a_bridge() {
        in_fresh_network(|mut netlink| {
            netlink.add_bridge("br0").unwrap();
            let host = End {
                name: "left",
                mac: [0xfe, 0, 0, 0, 0, 1],
                namespace: None,
            };
            let peer = End {
                name: "right",
                mac: [2, 0, 0, 0, 0, 1],
                namespace: None,
            };
            netlink.add_veth(host, peer).unwrap();
            let bridge = netlink.link("br0").unwrap().unwrap();
            assert_eq!(bridge.kind, "bridge");
            let left = netlink.link("left").unwrap().unwrap();
            assert_eq!((left.kind.as_str(), left.mac), ("veth", Some(host.mac)));
            assert!(!left.up);
            netlink.set_master(left.index, Some(bridge.index)).unwrap();
            netlink.set_up(left.index, true).unwrap();
            let left = netlink.link("left").unwrap().unwrap();
            assert!(left.up);
            assert_eq!(left.master, Some(bridge.index));
            netlink.delete(left.index).unwrap();
            netlink.delete(left.index).unwrap();
            assert_eq!(netlink.link("right").unwrap(), None);
        });
    }

    #[test]
    fn addresses_and_a_route() {
        in_fresh_network(|mut netlink| {
            let lo = netlink.link("lo").unwrap().unwrap().index;
            netlink.set_up(lo, true).unwrap();
            netlink
                .add_address(lo, Ipv4Addr::new(10, 1, 2, 3), 24)
                .unwrap();
            let found = netlink.addresses().unwrap();
            assert!(
                found.contains(&(lo, Ipv4Addr::new(10, 1, 2, 3))),
                "{found:?}"
            );
            let route = netlink
                .add_default_route(Ipv4Addr::new(192, 0, 2, 1))
                .unwrap_err();
            assert!(route.is(libc::ENETUNREACH), "{route}");
            assert!(route.to_string().contains("192.0.2.1"));
            netlink.add_clsact(lo).unwrap();
        });
    }
}
