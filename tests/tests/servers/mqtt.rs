//! mosquitto: each client publishes to itself, with QoS 1 and 2 in turn, and gets each message once and in order.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail, ensure};
use understudy_bench::rng::Rng;
use understudy_tests::crowd;

use crate::survives;

#[test]
fn mosquitto() {
    survives::<Client>(1883, |directory| {
        let configuration = directory.join("mosquitto.conf");
        let lines = "listener 1883 0.0.0.0\nallow_anonymous true\npersistence false\nuser root\nset_tcp_nodelay true\n";
        fs::write(&configuration, lines).unwrap();
        vec![
            "mosquitto".to_owned(),
            "-c".to_owned(),
            configuration.display().to_string(),
        ]
    });
}

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

struct Client {
    stream: TcpStream,
    topic: String,
    sent: u64,
    rng: Rng,
}

/// What has come, and what has been settled, of one message.
#[derive(Default)]
struct Passage {
    delivered: bool,
    /// The message's own packet identifier, once it is settled with us.
    received: bool,
    acknowledged: bool,
}

impl Client {
    fn send(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        let mut packet = vec![kind];
        let mut left = body.len();
        loop {
            let low = (left & 0x7f) as u8;
            left >>= 7;
            packet.push(if left > 0 { low | 0x80 } else { low });
            if left == 0 {
                break;
            }
        }
        packet.extend_from_slice(body);
        Ok(self.stream.write_all(&packet)?)
    }

    fn packet(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        let (kind, mut len, mut shift) = (byte[0], 0_usize, 0);
        loop {
            self.stream.read_exact(&mut byte)?;
            len |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
            ensure!(shift < 28, "a packet's length does not end");
        }
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body)?;
        Ok((kind, body))
    }

    fn expect(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        let got = self.packet()?;
        ensure!(
            got == (kind, body.to_vec()),
            "instead of {kind:#x} {body:?} came {got:?}"
        );
        Ok(())
    }

    /// A message's delivery: it must be the one that was sent last.
    fn take(&mut self, kind: u8, body: &[u8], payload: &[u8], passage: &mut Passage) -> Result<()> {
        ensure!(
            !passage.delivered && kind & 0x08 == 0,
            "message {} came twice",
            self.sent
        );
        let topic = text(&self.topic);
        let Some(rest) = body.strip_prefix(&topic[..]) else {
            bail!("a message of another topic: {body:?}");
        };
        let (id, content) = match kind >> 1 & 3 {
            0 => bail!("a message without QoS"),
            _ => rest.split_at(2),
        };
        ensure!(
            content == payload,
            "instead of message {} came {content:?}",
            self.sent
        );
        passage.delivered = true;
        if kind >> 1 & 3 == 1 {
            passage.received = true;
            return self.send(PUBACK, id);
        }
        self.send(PUBREC, id)
    }
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

impl crowd::Client for Client {
    fn begin(stream: TcpStream, number: u64, rng: Rng) -> Result<Self> {
        let mut client = Self {
            stream,
            topic: format!("own/{number}"),
            sent: 0,
            rng,
        };
        let hello = [
            text("MQTT"),
            vec![4, 2, 0, 0],
            text(&format!("client{number}")),
        ]
        .concat();
        client.send(CONNECT, &hello)?;
        client.expect(CONNACK, &[0, 0])?;
        let filter = [vec![0, 1], text(&client.topic), vec![2]].concat();
        client.send(SUBSCRIBE, &filter)?;
        client.expect(SUBACK, &[0, 1, 2])?;
        Ok(client)
    }

    fn step(&mut self) -> Result<()> {
        self.sent += 1;
        let qos = 1 + (self.sent % 2) as u8;
        let id = ((self.sent % 60_000 + 1) as u16).to_be_bytes();
        let len = usize::try_from(self.rng.below(2000))?;
        let payload = format!("{} ", self.sent).repeat(len / 8 + 1).into_bytes();
        let message = [&text(&self.topic)[..], &id, &payload].concat();
        self.send(PUBLISH | qos << 1, &message)?;
        let mut passage = Passage::default();
        while !(passage.delivered && passage.received && passage.acknowledged) {
            let (kind, body) = self.packet()?;
            match kind {
                PUBACK if qos == 1 && body == id => passage.acknowledged = true,
                PUBREC if qos == 2 && body == id => self.send(PUBREL, &id)?,
                PUBCOMP if qos == 2 && body == id => passage.acknowledged = true,
                PUBREL => {
                    passage.received = true;
                    self.send(PUBCOMP, &body)?;
                }
                _ if kind & 0xf0 == PUBLISH => self.take(kind, &body, &payload, &mut passage)?,
                _ => bail!("a packet that nobody waits for: {kind:#x} {body:?}"),
            }
        }
        Ok(())
    }
}
