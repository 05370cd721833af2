//! A container on a bridge: reachable from another namespace, its address and name guarded, its link
//! gone with it, a standby silent until attached.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::bed::{ADDRESS, Bed, link, shell, spec, unique};
use shim::container::{Container, Ended, Error, Isolation, Link, Program, mac_of};
use sys::netlink::{End, Netlink};
use sys::packet::PacketSocket;

/// Asks redis for a PONG over TCP, until it listens; `None` if it never answers.
fn ping(bed: &Bed) -> Option<String> {
    bed.client.inside(|| {
        let address = SocketAddr::from((ADDRESS, 6379));
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            // A refusal means that it is not listening yet; each try costs a round trip.
            let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2))
            else {
                std::thread::yield_now();
                continue;
            };
            stream.write_all(b"PING\r\n").ok()?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).ok()?;
            return Some(String::from_utf8_lossy(&answer).into_owned());
        }
        None
    })
}

fn redis() -> Program {
    let command = "redis-server --save --appendonly no --protected-mode no --logfile /dev/null";
    let mut program = shell(&format!("exec {command}"));
    program.fixed_addresses = false;
    program
}

#[test]
fn a_server_is_reachable_and_everything_goes_with_it() {
    let bed = Bed::new();
    let name = unique("r");
    let mut container = bed.host.inside(|| {
        let spec = spec(&name, Isolation::Full, Some(link()));
        Container::prepare(&spec, redis()).unwrap().start().unwrap()
    });
    assert_eq!(ping(&bed).as_deref(), Some("+PONG\r\n"));
    assert!(bed.has_link(&format!("us-{name}")));
    assert!(container.host_link().is_some());
    assert!(container.cpu_time().unwrap() > Duration::ZERO);
    let taken = bed.host.inside(|| link().check().unwrap_err());
    let mac = mac_of(ADDRESS).map(|byte| format!("{byte:02x}")).join(":");
    assert!(
        matches!(&taken, Error::AddressTaken { holder, .. } if holder.contains(&mac)),
        "{taken}"
    );
    container
        .signaller()
        .unwrap()
        .unwrap()
        .send(libc::SIGTERM)
        .unwrap();
    assert_eq!(container.wait().unwrap(), Ended::Exited(0));
    drop(container);
    assert!(!bed.has_link(&format!("us-{name}")));
    bed.host.inside(|| link().check().unwrap());
}

#[test]
fn a_standby_is_silent_until_attached_and_can_be_detached() {
    let bed = Bed::new();
    let name = unique("s");
    let answers = |bed: &Bed| bed.host.inside(|| link().check().is_err());
    let mut container = bed
        .host
        .inside(|| Container::stand_by(&spec(&name, Isolation::Full, Some(link()))).unwrap());
    assert!(!answers(&bed));
    let begin = Instant::now();
    container.attach().unwrap();
    let took = begin.elapsed();
    assert!(answers(&bed));
    container.detach().unwrap();
    assert!(!answers(&bed));
    // It is on the takeover path: a tenth of a second would be a fault, not noise.
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn attaching_announces_the_address_to_the_neighbours() {
    let bed = Bed::new();
    let ears = bed.client.inside(|| {
        let index = Netlink::open()
            .unwrap()
            .link("eth0")
            .unwrap()
            .unwrap()
            .index;
        PacketSocket::open(index, 0x0806).unwrap()
    });
    let name = unique("a");
    let mut container = bed
        .host
        .inside(|| Container::stand_by(&spec(&name, Isolation::Full, Some(link()))).unwrap());
    container.attach().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    // A request and a reply, both to everybody and from the container's address.
    for operation in [1, 2] {
        let mut frame = [0; 64];
        let length = ears.receive(&mut frame, deadline).unwrap();
        assert!(
            length.is_some_and(|length| length >= 42),
            "{operation}: {length:?}"
        );
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac_of(ADDRESS));
        assert_eq!(frame[21], operation);
        assert_eq!(
            (&frame[22..28], &frame[28..32]),
            (&mac_of(ADDRESS)[..], &ADDRESS.octets()[..])
        );
    }
}

#[test]
fn a_name_that_is_taken_is_refused_and_nothing_of_its_holder_is_touched() {
    let bed = Bed::new();
    let name = unique("n");
    let taken = format!("us-{name}");
    bed.host.inside(|| {
        let mut netlink = Netlink::open().unwrap();
        let end = |name, last| End {
            name,
            mac: [2, 0, 0, 0, 0, last],
            namespace: None,
        };
        netlink.add_veth(end(&taken, 1), end("other", 2)).unwrap();
        let spec = spec(&name, Isolation::Full, Some(link()));
        let error = Container::prepare(&spec, shell("exit 0")).unwrap_err();
        assert!(matches!(error, Error::NameTaken { .. }), "{error}");
    });
    assert!(bed.has_link(&taken));
}

#[test]
fn what_is_wrong_with_a_bridge_is_said() {
    let bed = Bed::new();
    bed.host.inside(|| {
        let on = |bridge: &str| {
            Link {
                bridge: bridge.into(),
                ..link()
            }
            .check()
            .unwrap_err()
        };
        assert!(matches!(on("nowhere"), Error::BridgeMissing(_)));
        assert!(matches!(
            on("a-name-too-long-for-a-link"),
            Error::BridgeMissing(_)
        ));
        assert!(matches!(on("tap0"), Error::NotABridge(_)));
        let mut netlink = Netlink::open().unwrap();
        netlink.add_bridge("br1").unwrap();
        assert!(matches!(on("br1"), Error::BridgeDown(_)));
        let index = netlink.link("br0").unwrap().unwrap().index;
        netlink
            .add_address(index, [10, 9, 0, 12].into(), 24)
            .unwrap();
        let own = Link {
            address: [10, 9, 0, 12].into(),
            ..link()
        }
        .check()
        .unwrap_err();
        assert!(
            own.to_string().contains("already taken by this host"),
            "{own}"
        );
    });
}
