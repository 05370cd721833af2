//! A server's start and its connections.

use super::tape::*;
use crate::fold::{Interest, Kind, Merge, Settled, State};
use crate::record::kind;

const CLIENT: [u8; 4] = [10, 0, 0, 9];
const ONE: [u8; 4] = [1, 0, 0, 0];

/// What redis does from its start to its first connections, in numbers and order.
fn started() -> Merge {
    let mut merge = container();
    let listen_on = inet([0; 4], 6379);
    play(
        &mut merge,
        [
            Event::call("openat", &[u64::MAX - 99, 0, 0], 3, &[b"/etc/redis.conf\0"]).version(1),
            Event::call("read", &[3], 1200, &[&[b'#'; 1200]]),
            Event::call("close", &[3], 0, &[]).version(2),
            Event::call("umask", &[0o077], 0o022, &[]),
            Event::call("chdir", &[0], 0, &[b"/var/lib/redis\0"]),
            Event::call(
                "prlimit64",
                &[0, 7],
                0,
                &[
                    &[0x30, 0x27, 0, 0, 0, 0, 0, 0, 0x30, 0x27, 0, 0, 0, 0, 0, 0],
                    &[],
                ],
            ),
            Event::call("epoll_create", &[1024], 3, &[]).version(3),
            Event::call("fcntl", &[3, 2, 1], 0, &[]).version(4),
            Event::call("socket", &[2, 1, 6], 4, &[]).version(5),
            Event::call("setsockopt", &[4, 1, 2, 0, 4], 0, &[&ONE]),
            Event::call("bind", &[4, 0, 16], 0, &[&listen_on]),
            Event::call("listen", &[4, 511], 0, &[]),
            Event::call("fcntl", &[4, 3], 2, &[]),
            Event::call("fcntl", &[4, 4, 0o4002], 0, &[]),
            Event::call("pipe2", &[0, 0x80800], 0, &[&pair(5, 6)]).version(6),
            Event::call("epoll_ctl", &[3, 1, 4], 0, &[&event(1, 4)]),
            Event::call("epoll_ctl", &[3, 1, 5], 0, &[&event(1, 5)]),
            Event::call("epoll_wait", &[3], 1, &[&event(1, 4)]),
            Event::call(
                "accept4",
                &[4, 0, 0, 0x80800],
                7,
                &[&LEN16, &inet(CLIENT, 40000), &LEN16],
            )
            .version(7),
            Event::call("setsockopt", &[7, 6, 1, 0, 4], 0, &[&ONE]),
            Event::call("epoll_ctl", &[3, 1, 7], 0, &[&event(1, 7)]),
            Event::call("accept4", &[4, 0, 0, 0x80800], -11, &[]),
        ],
    );
    merge
}

#[test]
fn a_redis_start_is_known() {
    let merge = started();
    let fold = merge.fold();
    assert_eq!(fold.strays(), 0);
    let process = &fold.processes()[&1];
    assert_eq!(
        (process.umask, &process.cwd[..]),
        (Some(0o077), &b"/var/lib/redis"[..])
    );
    assert_eq!(process.limits[&7], (10032, 10032));
    let listener = socket(&merge, 1, 4);
    assert_eq!(
        listener.state,
        State::Listening {
            backlog: 511,
            accepted: 1
        }
    );
    assert_eq!(listener.local, inet([0; 4], 6379));
    assert_eq!(description(&merge, 1, 4).flags, 0o4002);
    assert!(fold.descriptor(1, 3).unwrap().0.cloexec && fold.descriptor(1, 5).unwrap().0.cloexec);
    let client = socket(&merge, 1, 7);
    assert!(matches!(
        client.state,
        State::Accepted {
            port: 6379,
            ordinal: 1,
            ..
        }
    ));
    assert_eq!(client.peer, inet(CLIENT, 40000));
    assert_eq!(
        client.options.keys().copied().collect::<Vec<_>>(),
        [(1, 2), (6, 1)],
        "inherited, then its own"
    );
    let Kind::Epoll(interests) = &description(&merge, 1, 3).kind else {
        panic!("no epoll set")
    };
    let watched: Vec<_> = interests
        .iter()
        .map(|((fd, _), interest)| (*fd, *interest))
        .collect();
    let interest = |fd: u64| {
        (
            fd as i32,
            Interest {
                events: 1,
                data: fd,
                armed: true,
            },
        )
    };
    assert_eq!(watched, [interest(4), interest(5), interest(7)]);
    assert!(
        fold.describe()
            .contains("accepted 1 on 6379 from 10.0.0.9:40000, read 0, written 0, 2 options")
    );
}

#[test]
fn bytes_are_counted_and_closes_remembered() {
    let mut merge = started();
    play(
        &mut merge,
        [
            Event::call("read", &[7], 30, &[&[b'x'; 30]]),
            Event::other(kind::OUTPUT, 7, 5).version(0xdead_beef),
            Event::call("recvfrom", &[7], 10, &[&[b'p'; 10], &[], &[]]).version(2),
            Event::call("recvfrom", &[7], 10, &[&[b'p'; 10], &[], &[]]),
            Event::call("dup2", &[7, 9], 9, &[]).version(8),
            Event::call("close", &[7], 0, &[]).version(9),
            Event::other(kind::OUTPUT, 9, 7),
            Event::call("read", &[9], 0, &[&[]]),
        ],
    );
    let client = socket(&merge, 1, 9);
    assert_eq!(
        (client.read, client.written, client.end_read),
        (40, 12, true),
        "peeked bytes stay"
    );
    assert!(merge.fold().orphans().is_empty() && !is_open(&merge, 1, 7));
    let Kind::Epoll(interests) = &description(&merge, 1, 3).kind else {
        panic!("no epoll set")
    };
    assert_eq!(
        interests.len(),
        3,
        "the interest lives as long as the connection, not as its number"
    );
    play(
        &mut merge,
        [
            Event::call("shutdown", &[9, 1], 0, &[]),
            Event::call("close", &[9], -4, &[]).version(10),
            Event::call(
                "accept4",
                &[4, 0, 0, 0x80800],
                7,
                &[&LEN16, &inet(CLIENT, 40000), &LEN16],
            )
            .version(11),
        ],
    );
    let Kind::Epoll(interests) = &description(&merge, 1, 3).kind else {
        panic!("no epoll set")
    };
    assert_eq!(interests.len(), 2);
    let orphan = merge.fold().orphans()[0].clone();
    assert_eq!(
        (
            orphan.fd,
            orphan.close,
            orphan.socket.written,
            orphan.socket.shut_write
        ),
        (9, 1, 12, true)
    );
    assert!(
        matches!(
            socket(&merge, 1, 7).state,
            State::Accepted { ordinal: 2, .. }
        ),
        "same peer, second time"
    );
    assert_eq!(
        (socket(&merge, 1, 7).read, socket(&merge, 1, 7).written),
        (0, 0)
    );
    assert!(merge.forget(orphan.description) && merge.fold().orphans().is_empty());
}

#[test]
fn a_connection_that_was_reset_is_marked() {
    let mut merge = started();
    play(&mut merge, [Event::call("read", &[7], -104, &[])]);
    assert!(socket(&merge, 1, 7).broken);
}

#[test]
fn connects_go_on_in_the_background() {
    let mut merge = container();
    play(
        &mut merge,
        [
            Event::call("socket", &[2, 0x801, 0], 3, &[]),
            Event::call("connect", &[3, 0, 16], -115, &[&inet([10, 0, 0, 1], 5432)]),
        ],
    );
    assert_eq!(
        (socket(&merge, 1, 3).state, description(&merge, 1, 3).flags),
        (State::Connecting, 0x802)
    );
    play(
        &mut merge,
        [
            Event::call(
                "getsockname",
                &[3],
                0,
                &[&inet([10, 0, 0, 2], 51000), &LEN16],
            ),
            Event::call("read", &[3], 4, &[b"okay"]),
        ],
    );
    let client = socket(&merge, 1, 3);
    assert_eq!(
        (client.state, client.local.clone(), client.read),
        (State::Connected, inet([10, 0, 0, 2], 51000), 4)
    );
}

#[test]
fn oneshot_interests_rest_until_set_again() {
    let mut merge = started();
    let oneshot = 1 | 1 << 30;
    let armed = |merge: &Merge| match &description(merge, 1, 3).kind {
        Kind::Epoll(interests) => {
            interests
                .iter()
                .find(|((fd, _), _)| *fd == 7)
                .unwrap()
                .1
                .armed
        }
        other => panic!("{other:?}"),
    };
    play(
        &mut merge,
        [Event::call(
            "epoll_ctl",
            &[3, 3, 7],
            0,
            &[&event(oneshot, 70)],
        )],
    );
    assert!(armed(&merge));
    play(
        &mut merge,
        [Event::call("epoll_wait", &[3], 1, &[&event(1, 70)])],
    );
    assert!(!armed(&merge));
    play(
        &mut merge,
        [Event::call(
            "epoll_ctl",
            &[3, 3, 7],
            0,
            &[&event(oneshot, 70)],
        )],
    );
    assert!(armed(&merge));
    play(
        &mut merge,
        [
            Event::call("epoll_ctl", &[3, 2, 7], 0, &[&[]]),
            Event::call("close", &[7], 0, &[]).version(8),
        ],
    );
    assert_eq!(merge.fold().strays(), 0);
}

#[test]
fn pipes_hold_what_was_not_read() {
    let mut merge = started();
    play(
        &mut merge,
        [
            Event::call("write", &[6], 6, &[])
                .data(b"abcdef")
                .intended(),
            Event::call("write", &[6], 4, &[]),
            Event::call("read", &[5], 3, &[b"abc"]),
        ],
    );
    assert_eq!(
        unread(&merge, 1, 5),
        b"d",
        "the intent has the bytes, the result says how many of them"
    );
    play(
        &mut merge,
        [Event::call("write", &[6], 3, &[]).data(b"xyz").intended()],
    );
    assert_eq!(unread(&merge, 1, 5), b"d");
    let (_, stream) = merge.fold().streams().next().unwrap();
    assert_eq!(
        stream
            .intent
            .as_ref()
            .map(|intent| (intent.nr, intent.arg0)),
        Some((1, 6)),
        "unsettled"
    );
    assert_eq!(merge.settle(), [], "nobody has read of it");
    play(
        &mut merge,
        [
            Event::call("close", &[5], 0, &[]).version(8),
            Event::call("close", &[6], 0, &[]).version(9),
        ],
    );
    assert!(merge.fold().describe().contains("0 channels"));
}

/// One thread wrote, another closed the end that it wrote to, and the closing is folded first.
#[test]
fn what_was_written_before_the_end_was_closed_can_be_read() {
    let mut merge = started();
    merge.introduce(2, 1, 2).unwrap();
    let (one, other) = (
        Event::call("write", &[6], 6, &[]).data(b"before"),
        b"under way",
    );
    let sockets = Event::call("socketpair", &[1, 1, 0], 0, &[&pair(8, 9)]);
    let to_socket = Event::call("write", &[8], 4, &[]).data(b"news");
    let intended = Event::call("write", &[6], 9, &[]).data(other).intended();
    play(
        &mut merge,
        [
            sockets.version(8),
            Event::call("close", &[6], 0, &[]).version(9),
            Event::call("close", &[8], 0, &[]).version(10),
            one.on(2),
            to_socket.on(2),
            Event::call("read", &[5], 8, &[b"beforeun"]),
            intended.on(2),
        ],
    );
    assert_eq!(unread(&merge, 1, 9), b"news");
    let taken = Settled {
        stream: 2,
        taken: 2,
    };
    assert_eq!(merge.settle(), [taken]);
    assert_eq!(unread(&merge, 1, 5), b"");
}

/// The reader's record came into the log, and the writer's did not.
#[test]
fn writes_without_a_result_are_settled_by_what_was_read() {
    let write = |data| Event::call("write", &[6], 3, &[]).data(data).intended();
    for (read, taken) in [(&b"xy"[..], 2), (b"xyz", 3)] {
        let mut merge = started();
        merge.introduce(2, 1, 2).unwrap();
        let count = read.len() as i64;
        let read = Event::call("read", &[5], count, &[read]).on(2);
        play(&mut merge, [write(b"xyz"), read]);
        assert_eq!(merge.settle(), [Settled { stream: 1, taken }]);
        assert_eq!(merge.settle(), [], "once");
    }
    let mut merge = container();
    merge.introduce(2, 1, 2).unwrap();
    let one = 1_u64.to_le_bytes();
    play(
        &mut merge,
        [
            Event::call("eventfd2", &[0, 0x80800], 3, &[]),
            Event::call("write", &[3], 8, &[]).data(&one).intended(),
            Event::call("read", &[3], 8, &[&one]).on(2),
        ],
    );
    let taken = Settled {
        stream: 1,
        taken: 8,
    };
    assert_eq!(merge.settle(), [taken]);
    assert!(merge.fold().describe().contains("eventfd at 0"));
}

#[test]
fn eventfds_count() {
    let mut merge = container();
    play(
        &mut merge,
        [
            Event::call("eventfd2", &[5, 0x80800], 3, &[]),
            Event::call("write", &[3], 8, &[]).data(&7u64.to_le_bytes()),
            Event::call("read", &[3], 8, &[&12u64.to_le_bytes()]),
            Event::call("write", &[3], 8, &[]).data(&2u64.to_le_bytes()),
        ],
    );
    assert!(
        merge.fold().describe().contains("eventfd at 2"),
        "{}",
        merge.fold().describe()
    );
}

#[test]
fn unix_connections_meet_and_pass_descriptors() {
    let mut merge = started();
    let path = [&[1, 0][..], b"/run/s\0"].concat();
    let rights = [
        &20u64.to_le_bytes()[..],
        &ONE,
        &ONE,
        &7u32.to_le_bytes(),
        &[0; 4],
    ]
    .concat();
    let got = [
        &20u64.to_le_bytes()[..],
        &ONE,
        &ONE,
        &13u32.to_le_bytes(),
        &[0; 4],
    ]
    .concat();
    let part = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    play(
        &mut merge,
        [
            Event::call("socket", &[1, 1, 0], 10, &[]),
            Event::call("bind", &[10, 0, 9], 0, &[&path]),
            Event::call("listen", &[10, 5], 0, &[]),
            Event::call("socket", &[1, 1, 0], 11, &[]),
            Event::call("connect", &[11, 0, 9], 0, &[&path]),
            Event::call("sendmsg", &[11], 2, &[]).data(b"hi").intended(),
            Event::call("sendmsg", &[11], 2, &[]).data(&part(&rights)),
            Event::call("close", &[7], 0, &[]).version(8),
            Event::call("accept", &[10], 12, &[&LEN16, &[], &LEN16]).version(9),
        ],
    );
    assert_eq!(unread(&merge, 1, 12), b"hi", "written before accept");
    assert!(merge.fold().orphans().is_empty(), "in flight");
    let received = [
        part(b""),
        part(&got),
        part(&0x4000_0000u32.to_le_bytes()),
        part(b"hi"),
    ]
    .concat();
    play(
        &mut merge,
        [Event::call("recvmsg", &[12], 2, &[])
            .data(&received)
            .version(10)],
    );
    assert_eq!(
        socket(&merge, 1, 13).peer,
        inet(CLIENT, 40000),
        "the connection under its new number"
    );
    assert!(merge.fold().descriptor(1, 13).unwrap().0.cloexec && unread(&merge, 1, 12).is_empty());
    play(
        &mut merge,
        [Event::call("close", &[13], 0, &[]).version(11)],
    );
    assert_eq!(merge.fold().orphans().len(), 1);
    assert_eq!(merge.fold().strays(), 0);
}

#[test]
fn files_keep_offsets_and_follow_their_names() {
    let mut merge = started();
    play(
        &mut merge,
        [
            Event::call("open", &[0, 0o102, 0o644], 20, &[b"temp-1.rdb\0"]),
            Event::call("write", &[20], 100, &[]).data(&[1; 100]),
            Event::call("lseek", &[20], 40, &[]),
            Event::call("write", &[20], 9, &[]).data(&[1; 9]),
            Event::call("rename", &[0, 0], 0, &[b"temp-1.rdb\0", b"dump.rdb\0"]),
        ],
    );
    let file = |merge: &Merge| match &description(merge, 1, 20).kind {
        Kind::File(file) => file.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (file(&merge).offset, &file(&merge).path[..]),
        (49, &b"/var/lib/redis/dump.rdb"[..])
    );
    play(
        &mut merge,
        [Event::call(
            "unlink",
            &[0],
            0,
            &[b"/var/lib/redis/dump.rdb\0"],
        )],
    );
    assert!(file(&merge).unlinked);
    let sendfile = Event::call("sendfile", &[7, 20, 0, 30], 30, &[&[], &[]]);
    play(&mut merge, [sendfile]);
    assert_eq!(
        (file(&merge).offset, socket(&merge, 1, 7).written),
        (79, 30)
    );
}
