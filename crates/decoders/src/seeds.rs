//! Valid inputs of every target.

mod memory;
mod wire;

pub(crate) use memory::{images, snapshots};
pub(crate) use wire::{frames, messages};

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

use gate::segment::{Segment, flag};
use stream::keys;

use crate::calls;

/// Every call of the table, and a life with all kinds of record.
pub(crate) fn records() -> Vec<Vec<u8>> {
    let life: Vec<u8> = calls::life()
        .into_iter()
        .flat_map(|(_, record)| record)
        .collect();
    calls::table().chain([life]).collect()
}

/// The life, and the life up to each of its records followed by some call of the table.
pub(crate) fn folds() -> Vec<Vec<u8>> {
    let placed = |(stream, record): &(u8, Vec<u8>)| [&[*stream][..], record].concat();
    let life = calls::life();
    let whole: Vec<u8> = life.iter().flat_map(placed).collect();
    let calls = calls::table().map(|record| [&whole[..], &[1], &record].concat());
    let cut = (1..life.len()).map(|n| life[..n].iter().flat_map(placed).collect());
    cut.chain(calls).chain([whole.clone()]).collect()
}

/// Segments with and without options and bytes, and an announcement of an address.
pub(crate) fn packets() -> Vec<Vec<u8>> {
    let end = |n, port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), port);
    let segment = |flags, timestamps, payload: &[u8]| {
        let segment = Segment {
            from: end(1, 6379),
            to: end(2, 40000),
            seq: u32::MAX - 5,
            ack: 7,
            flags,
            window: 512,
            timestamps,
            payload,
        };
        segment.frame([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
    };
    let mut arp = vec![0xff; 6];
    arp.extend_from_slice(&[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    arp.extend_from_slice(&[2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    // An answer to a connection request, as the gate hands it over: addresses, numbers, frame.
    let answer = segment(flag::SYN | flag::ACK, Some((1, 2)), &[]);
    let mut opening = vec![0; 256];
    for at in [10, 26] {
        opening[at..at + 6].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
    }
    opening[36] = answer.len() as u8;
    opening[80..80 + answer.len()].copy_from_slice(&answer);
    let mut blocks = segment(flag::ACK, Some((1, 2)), &[]);
    blocks[46] = 0xb0;
    blocks.extend_from_slice(&[1, 1, 5, 10, 0, 0, 1, 0, 0, 0, 2, 0]);
    blocks[17] += 12;
    vec![
        segment(flag::SYN, None, &[]),
        segment(flag::ACK | flag::PSH, Some((1, 2)), b"PING\r\n"),
        segment(flag::ACK | flag::FIN, Some((1, 2)), &[7; 1448]),
        blocks,
        opening,
        arp,
    ]
}

/// Requests and answers of the control socket, and messages of an init.
pub(crate) fn lines() -> Vec<Vec<u8>> {
    let status = concat!(
        r#"{"status":{"name":"redis","role":"primary","mode":"hybrid","epoch":7,"generation":1,"#,
        r#""log_lag_bytes":2,"log_records":10,"log_bytes":11,"replay_ms_predicted":3,"pause_us_p50":4,"pause_us_p99":5,"#,
        r#""backup":"10.0.0.3:7000","state":"protected","address":"10.0.0.10/24","pid":9}}"#,
    );
    let words = |words: &[i32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let lines = [
        "\"status\"\n",
        "\"switchover\"\n",
        "\"done\"\n",
        r#"{"refused":"no \u00e9"}"#,
        status,
    ];
    let messages: [Vec<u8>; 5] = [
        words(&[1]),
        words(&[2, 7, 1, 0, 1022]),
        words(&[3, 9]),
        words(&[0, 2]),
        words(&[5, 12]),
    ];
    let lines = lines.map(|line| line.as_bytes().to_vec());
    lines.into_iter().chain(messages).collect()
}

/// A key pair as `keygen` makes it, and a file of a generation.
pub(crate) fn keys() -> Vec<Vec<u8>> {
    // Entries of generation 0 of no run: sixteen zeroes and their checksum.
    let generation = [&[0; 16][..], &[0xea, 0x9a, 0x70, 0x42], &[0; 4]].concat();
    let mut seeds = vec![[&generation[..], &generation].concat()];
    if let Ok(dir) = tempfile::tempdir()
        && keys::generate(dir.path()).is_ok()
    {
        let files = [keys::CERTIFICATE_FILE, keys::KEY_FILE];
        let both = files.map(|file| fs::read(dir.path().join(file)).unwrap_or_default());
        seeds.push(both.concat());
    }
    seeds
}
