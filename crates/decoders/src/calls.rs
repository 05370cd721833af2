//! Records of system calls, written by hand.

use eventlog::record::{Header, stored_len};
use sysabi::{Arg, Len, Syscall, TABLE};

/// One record, stored.
pub(crate) fn record(mut header: Header, payload: &[u8]) -> Vec<u8> {
    header.payload_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let (head, len) = header.encode();
    let mut bytes = head[..len].to_vec();
    bytes.extend_from_slice(payload);
    bytes.resize(stored_len(header.needs_long(), payload.len()), 0);
    bytes
}

/// A record that is no system call's.
pub(crate) fn event(kind: u16, arg0: u32, result: i64, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind,
        arg0,
        result,
        ..Header::default()
    };
    record(header, payload)
}

/// The record of a call that worked, whose buffers hold `buffers` in the order of the payload; as long as
/// their type where there are fewer.
pub(crate) fn call(name: &str, args: &[u64], result: i64, buffers: &[&[u8]]) -> Vec<u8> {
    let Some(row) = TABLE.iter().find(|row| row.name == name) else {
        return Vec::new();
    };
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let header = Header {
        kind: row.nr,
        arg0: all[0] as u32,
        result,
        ticks: 3,
        ..Header::default()
    };
    record(header, &payload(row, &all, result, buffers))
}

/// A payload of the shape that the call has.
pub(crate) fn payload(row: &Syscall, args: &[u64; 6], result: i64, buffers: &[&[u8]]) -> Vec<u8> {
    let mut given = buffers.iter();
    let mut bytes = Vec::new();
    let part = |bytes: &mut Vec<u8>, part: &[u8]| {
        bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
        bytes.extend_from_slice(part);
    };
    let mut next = |arg: Arg| match (given.next(), arg) {
        (Some(buffer), _) => buffer.to_vec(),
        (None, Arg::In(Len::Fixed(n)) | Arg::Out(Len::Fixed(n)) | Arg::InOut(Len::Fixed(n))) => {
            vec![1; usize::from(n)]
        }
        (None, _) => b"file\0".to_vec(),
    };
    let shape = row.shape(args).unwrap_or(row.args);
    if row.captures(result) {
        for arg in &args[..row.arity()] {
            bytes.extend_from_slice(&arg.to_le_bytes());
        }
        for arg in shape.iter().filter(|arg| arg.is_input()) {
            part(&mut bytes, &next(*arg));
        }
    }
    for arg in shape.iter().filter(|_| row.fills(result)) {
        match arg {
            arg if arg.is_filled() => part(&mut bytes, &next(*arg)),
            Arg::OutVec => part(&mut bytes, &next(*arg)),
            Arg::OutMsg => {
                for piece in [&next(*arg)[..], b"", &[0; 4], b"bytes"] {
                    part(&mut bytes, piece);
                }
            }
            _ => {}
        }
    }
    bytes
}

/// A clone and its like.
pub(crate) fn clone(name: &str, result: i64, stream: u32, flags: u64) -> Vec<u8> {
    let nr = TABLE.iter().find(|row| row.name == name);
    let payload = [&stream.to_le_bytes()[..], &flags.to_le_bytes()].concat();
    event(nr.map_or(0, |row| row.nr), 0, result, &payload)
}

/// Every call of the table, with buffers as long as their types.
pub(crate) fn table() -> impl Iterator<Item = Vec<u8>> {
    TABLE
        .iter()
        .map(|row| call(row.name, &[1, 0x800, 3], 5, &[]))
}

/// Some life of a container: stream and record.
pub(crate) fn life() -> Vec<(u8, Vec<u8>)> {
    use eventlog::record::kind;
    let peer = [2, 0, 0x1f, 0x90, 10, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    let len = 16u32.to_le_bytes();
    let pair = |one: u32, other: u32| [one.to_le_bytes(), other.to_le_bytes()].concat();
    let path = [&[1, 0][..], b"/run/x\0"].concat();
    let first = [
        event(
            kind::EXEC,
            0,
            0,
            &[[7; 16].as_slice(), &pair(0, 1)].concat(),
        ),
        call("openat", &[0, 0, 2], 3, &[b"/tmp/file\0"]),
        call("socket", &[2, 1, 0], 4, &[]),
        call("bind", &[4, 0, 16], 0, &[&peer]),
        call("listen", &[4, 128], 0, &[]),
        call("accept4", &[4, 0, 0, 0x800], 5, &[&len, &peer, &len]),
        call("epoll_create1", &[0], 6, &[]),
        call("epoll_ctl", &[6, 1, 5, 0], 0, &[&[1; 12]]),
        call("epoll_wait", &[6, 0, 8, 9], 1, &[&[1; 12]]),
        call("pipe2", &[0, 0x800], 0, &[&pair(7, 8)]),
        call("socketpair", &[1, 1, 0], 0, &[&pair(9, 10)]),
        call("eventfd2", &[0, 0], 11, &[]),
        call("inotify_init1", &[0], 12, &[]),
        call("inotify_add_watch", &[12, 0, 1], 1, &[b"/tmp\0"]),
        call("dup2", &[5, 20], 20, &[]),
        call("connect", &[9, 0, 9], 0, &[&path]),
        call("setsockopt", &[5, 6, 1, 0, 4], 0, &[&[1, 0, 0, 0]]),
        event(1, 8, 4, b"data"),
        call("read", &[7, 0, 4], 2, &[b"da"]),
        event(kind::INTENT, 8, 1, b"more"),
        event(1, 8, 4, &[]),
        event(kind::OUTPUT, 5, 9, &[0; 16]),
        clone("clone3", 21, 2, 0x1_0f00),
        clone("fork", 22, 3, 0),
    ];
    let others = [
        (2, event(kind::BIRTH, 0, 21, &[])),
        (2, call("close", &[5], 0, &[])),
        (3, event(kind::BIRTH, 0, 22, &[])),
        (3, call("sendmsg", &[9, 0, 0], 1, &[])),
        (3, call("recvmsg", &[10, 0, 0], 1, &[])),
        (3, event(kind::EXIT, 1, 0, &[])),
        (1, call("wait4", &[0, 0, 0, 0], 22, &[&[0; 4], &[0; 144]])),
        (1, event(kind::SIGNAL, 0, 0, &[17; 128])),
        (2, event(kind::EXIT, 0, 0, &[])),
    ];
    first
        .into_iter()
        .map(|one| (1, one))
        .chain(others)
        .collect()
}
