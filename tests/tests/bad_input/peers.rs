//! Peers that are not what they should be.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::ScopedJoinHandle;

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use understudy_tests::LIMIT;

use crate::ground::Ground;

/// Version in the frames of this build (docs/FORMATS.md).
const VERSION: u8 = 1;

/// A frame's header and some body, of a version to come: what follows the version is its own affair.
fn foreign_hello() -> Vec<u8> {
    [b"USFR".as_slice(), &[VERSION + 1, 0], &[9; 200]].concat()
}

#[test]
fn keys_that_do_not_match() {
    let ground = Ground::new();
    let (ours, theirs) = (ground.keys("ours"), ground.keys("theirs"));
    let encrypted = ground.backup(&ours);
    let run = |security: &str| format!("{} true", ground.run_line(security));
    ground.fails(&run(&theirs), &["holds another key", "keygen"]);
    encrypted.says(&["holds another key", "keygen"]);
    ground.fails(&run("--insecure"), &["encrypts", "--insecure", "--tls DIR"]);
    encrypted.says(&["does not encrypt", "--tls DIR"]);
    encrypted.serves(&ours);
    let said = encrypted.end();
    assert_eq!(
        said.lines().count(),
        2,
        "one line for each stranger: {said}"
    );

    let plain = ground.backup("--insecure");
    ground.fails(&run(&ours), &["does not encrypt", "--tls DIR"]);
    plain.says(&["encrypts", "--insecure"]);
    plain.serves("--insecure");
    let said = plain.end();
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_backup_goes_on_after_strange_primaries() {
    let ground = Ground::new();
    let backup = ground.backup("--insecure");
    let answer = ground.tell(&foreign_hello());
    assert_eq!(
        &answer[..6],
        &[b'U', b'S', b'F', b'R', VERSION, 0],
        "it says what it speaks"
    );
    backup.says(&[
        "speaks protocol version 2",
        "this build speaks 1",
        "same build",
    ]);
    assert!(ground.tell(b"GET / HTTP/1.0\r\n\r\n").is_empty());
    backup.says(&["does not speak Understudy's protocol", "GET "]);
    // A hello that ends in the middle.
    ground.tell(&[b"USFR".as_slice(), &[VERSION, 0, 6, 0]].concat());
    backup.says(&["closed the connection"]);
    backup.serves("--insecure");
    backup.holds_nothing();
    let said = backup.end();
    assert_eq!(
        said.lines().count(),
        3,
        "one line for each stranger: {said}"
    );
}

#[test]
fn a_primary_stops_at_strange_backups() {
    let ground = Ground::new();
    let backup = ground.backup_address().to_string();
    let line = format!("{} true", ground.run_line("--insecure"));
    let keys = format!("{} true", ground.run_line(&ground.keys("keys")));
    let http = b"HTTP/1.0 400 Bad Request\r\n\r\n";
    let version: &[&str] = &[
        "speaks protocol version 2",
        "this build speaks 1",
        "same build",
    ];
    let table: &[(&str, &[u8], &[&str])] = &[
        (&line, &foreign_hello(), version),
        (
            &line,
            http,
            &[&backup, "does not speak Understudy's protocol", "HTTP"],
        ),
        (&line, b"", &[&backup, "closed the connection"]),
        (&keys, http, &[&backup, "does not encrypt"]),
    ];
    for (line, answer, mentions) in table {
        ground.meets(answer, || ground.fails(line, mentions));
    }
}

impl Ground {
    /// Says something to the backup; what it answers.
    fn tell(&self, words: &[u8]) -> Vec<u8> {
        let primary = self.bed.host("primary").unwrap();
        let told = primary.inside(|| {
            let mut stream = TcpStream::connect(self.backup_address())?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(words)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = Vec::new();
            // It may hang up before it has read everything.
            let _ = stream.read_to_end(&mut answer);
            Ok(answer)
        });
        told.unwrap()
    }

    /// Answers like this, in the backup's place, to the first who says anything, while `work` runs.
    fn meets<T>(&self, answer: &[u8], work: impl FnOnce() -> T) -> T {
        let host = self.bed.host("backup").unwrap();
        let listener = host.inside(|| Ok(TcpListener::bind(self.backup_address())?));
        let listener = listener.unwrap();
        // Applies to accept, too.
        setsockopt(&listener, ReceiveTimeout, &TimeVal::seconds(20)).unwrap();
        std::thread::scope(|scope| {
            let stranger: ScopedJoinHandle<'_, ()> = scope.spawn(move || {
                loop {
                    let (mut stream, _) = listener.accept().unwrap();
                    // Every primary looks whether somebody listens first.
                    if stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {
                        return stream.write_all(answer).unwrap();
                    }
                }
            });
            let done = work();
            stranger.join().unwrap();
            done
        })
    }
}
