//! What a backup refuses, and who is not disturbed by it.

use std::io::Write as _;
use std::net::TcpStream;

use backup::Event;
use backup::guard::ServeError;
use backup::store::StoreError;
use eventlog::frame::{Header, Kind, LENGTH_AT};
use stream::StreamError;
use stream::hello::{Channel, Hello, Refusal};
use stream::keys::Security;

use crate::bed::{Backup, WITHIN, hello, protected, tls};

#[test]
fn what_does_not_fit_is_refused() {
    let backup = Backup::start(Security::Insecure, None);
    let first = backup.connect(&hello(Channel::Log)).unwrap();
    assert_eq!(
        backup.refusal(&hello(Channel::Log)),
        Refusal::Twice {
            channel: Channel::Log
        }
    );
    let unknown = Hello {
        session: 1,
        name: "other".to_owned(),
        ..hello(Channel::Checkpoint)
    };
    assert!(matches!(
        backup.refusal(&unknown),
        Refusal::UnknownSession { .. }
    ));
    let kernel = Hello {
        host: vec![("kernel".to_owned(), "6.1".to_owned())],
        ..hello(Channel::Log)
    };
    assert!(matches!(backup.refusal(&kernel), Refusal::Host { .. }));
    let taken = Hello {
        session: 9,
        ..hello(Channel::Log)
    };
    assert!(matches!(backup.refusal(&taken), Refusal::NameTaken { .. }));
    let second = backup
        .connect(&Hello {
            name: "second".to_owned(),
            ..hello(Channel::Log)
        })
        .unwrap();
    let third = Hello {
        name: "third".to_owned(),
        ..hello(Channel::Log)
    };
    assert_eq!(backup.refusal(&third), Refusal::Full { containers: 2 });
    // What was never protected is gone with its primary, and leaves room.
    drop((first, second));
    let admitted = std::iter::repeat_with(|| backup.connect(&third)).find_map(Result::ok);
    assert_eq!(admitted.unwrap().welcome.generation, 1);
}

/// Strangers send nonsense, half a frame, a huge header, or nothing at all, and go.
#[test]
fn nonsense_does_not_disturb_the_others() {
    for security in [Security::Insecure, tls()] {
        let backup = Backup::start(security, None);
        let (mut p, _guard) = protected(&backup);
        let mut head = Header {
            kind: Kind::Hello,
            generation: 0,
            stream: 0,
            position: 0,
        }
        .seal(&[])
        .unwrap();
        head[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let noise: Vec<u8> = (0..70_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &head,
            &head[..20],
            &noise,
            &[],
        ] {
            let mut socket = TcpStream::connect(backup.addr).unwrap();
            // The backup may hang up before everything is sent.
            let _ = socket.write_all(bytes);
        }
        let n = p.drain(b"still here");
        p.acked(n);
        p.die();
    }
}

#[test]
fn a_gap_in_the_log_ends_its_connection() {
    let backup = Backup::start(Security::Insecure, None);
    let (mut p, _guard) = protected(&backup);
    p.drain(b"abc");
    p.position += 1;
    p.drain(b"def");
    let Event::Failed(_, channel, e) = backup.event() else {
        panic!()
    };
    assert_eq!(channel, Channel::Log);
    assert!(
        matches!(
            e,
            ServeError::Store(StoreError::Gap {
                expected: 3,
                found: 4,
                ..
            })
        ),
        "{e}"
    );
    let told = std::iter::repeat_with(|| p.acks.recv(Some(WITHIN))).find_map(Result::err);
    assert!(matches!(told, Some(StreamError::Closed { .. })), "{told:?}");
    p.die();
}
