//! Containers whose takeovers fail: what is kept of them, and what becomes of them.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::bail;
use tempfile::TempDir;
use understudy_bench::bed::Bed;
use understudy_bench::race::{Outcome, Race, compile, lose};
use understudy_bench::rng::Rng;
use understudy_bench::service::{Loss, Protection, Service};
use understudy_tests::{Ended, LIMIT, options, run, understudy};

/// A race comes about so often that one attempt without the order of time often fails, and some with it do not.
const OFTEN: u32 = 500;
/// That one attempt.
const ONCE: [&str; 4] = ["--timing", "off", "--retry-budget", "1ms"];

/// Loses a server whose only attempt fails; what the backup has kept of it, under `scratch`.
fn given_up(scratch: &Path) -> PathBuf {
    let program = compile(scratch).unwrap();
    let protection = Protection {
        understudy: understudy().unwrap(),
        backup_options: ONCE.map(str::to_owned).to_vec(),
        options: options(),
    };
    for seed in 1..=20 {
        let race = Race {
            kind: "flag".to_owned(),
            one_in: OFTEN,
            connections: 4,
            seed,
        };
        let (bed, own) = (Bed::new().unwrap(), scratch.join(seed.to_string()));
        let outcome = lose(&bed, &own, &program, &race, &protection).unwrap();
        println!("{seed}: {outcome:?}");
        if let Outcome::Lost(said) = outcome {
            let kept = own.join("state/failed/racy");
            let says = format!("see `understudy replay {}`", kept.display());
            assert!(said.contains(&says), "{said}");
            return kept;
        }
    }
    panic!("no attempt has failed");
}

fn replay(kept: &Path, options: &[&str]) -> Ended {
    let mut command = Command::new(understudy().unwrap());
    run(command.arg("replay").arg(kept).args(options)).unwrap()
}

#[test]
fn what_could_not_be_taken_over_is_kept_and_can_be_replayed() {
    let scratch = TempDir::new().unwrap();
    let kept = given_up(scratch.path());
    let again = replay(&kept, &["--retry-budget", "30s"]);
    let printed = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success(), "{again:?}");
    assert!(printed.starts_with("replayed racy attempts="), "{again:?}");

    // What is damaged is refused.
    for (file, says) in [
        ("log", "log is not a whole log: "),
        ("image", "image is not a checkpoint: "),
    ] {
        let path = kept.join(file);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [&flipped[..], &whole[..whole.len() / 2], &[]] {
            fs::write(&path, damaged).unwrap();
            let refused = replay(&kept, &[]);
            let said = &refused.stderr;
            assert_eq!(refused.status.code(), Some(1), "{refused:?}");
            assert!(said.contains(says) && said.lines().count() == 1, "{said}");
        }
        fs::write(&path, whole).unwrap();
    }
}

const PORT: u16 = 7000;
/// An answer is waited for so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the server until it is gone; the answers.
fn ask(at: SocketAddr, most: usize) -> anyhow::Result<Vec<String>> {
    let stream = TcpStream::connect_timeout(&at, LIMIT)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut answers = Vec::new();
    while answers.len() < most {
        let mut line = String::new();
        let asked = reader.get_ref().write_all(b"next\n");
        match asked.and_then(|()| reader.read_line(&mut line)) {
            Ok(n) if n > 0 => answers.push(line),
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("no answer"),
            Err(_) => break,
        }
    }
    Ok(answers)
}

/// Loses a server under load whose only attempt fails, if it does; what the backup said of it, and an answer after that.
fn from_checkpoint(scratch: &Path, program: &Path, seed: u64) -> Option<(String, String)> {
    let protection = Protection {
        understudy: understudy().unwrap(),
        backup_options: [&ONCE[..], &["--on-replay-failure", "checkpoint"]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        options: options(),
    };
    let words = [
        &program.display().to_string(),
        "flag",
        &OFTEN.to_string(),
        &PORT.to_string(),
    ];
    let command = words.map(str::to_owned);
    let (bed, own) = (Bed::new().unwrap(), scratch.join(seed.to_string()));
    let service = Service::protected(&bed, &own, &protection, &command, PORT).unwrap();
    let client = bed.host("client").unwrap();
    let (mut rng, at) = (Rng::new(seed, 0), service.address);
    std::thread::scope(|scope| {
        let ask_on = || scope.spawn(|| client.inside(|| ask(at, usize::MAX)));
        let clients = [ask_on(), ask_on(), ask_on(), ask_on()];
        client.inside(|| ask(at, 2000)).unwrap();
        service.lose(&bed, Loss::Shim, &mut rng).unwrap();
        service.await_takeover(LIMIT).unwrap();
        let said = service.said("backup");
        if !said.contains("attempt 1: ") {
            // It went well: they would go on for ever.
            drop(service);
            return None;
        }
        for client in clients {
            // It has heard that its connection is gone.
            let heard = client.join().unwrap();
            assert!(heard.is_ok_and(|answers| !answers.is_empty()), "{said}");
        }
        let after = client.inside(|| ask(at, 1));
        let after = after.unwrap_or_else(|error| panic!("{error}: {}", service.said("backup")));
        Some((said, after.concat()))
    })
}

#[test]
fn it_goes_on_from_its_checkpoint_where_that_is_wanted() {
    let scratch = TempDir::new().unwrap();
    let program = compile(scratch.path()).unwrap();
    let mut all = (1..=20).filter_map(|seed| from_checkpoint(scratch.path(), &program, seed));
    let (said, after) = all.next().unwrap();
    let says = "racy could not be taken over: it goes on from its last checkpoint";
    assert!(said.contains(says) && said.contains("are kept: "), "{said}");
    assert!(after.ends_with('\n'), "{after:?}");
}
