//! A host's way to the common bridge through this process, which delays and loses frames as it is told: not every kernel
//! can by itself (netem).
//!
//! ```text
//! host: up0 ══ NAME ··relay·· NAME-w ══ NAME-b : bridge
//! ```

use std::collections::BinaryHeap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use sys::packet::{NOTES, PacketSocket};

use super::{Bed, Host, ip};
use crate::rng::Rng;

/// Longest frame, segments that are still to be made included, with the notes in front of it.
const LONGEST: usize = NOTES + 14 + (64 << 10);
/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Where in a frame its type, and in an IPv4 or ARP frame the addresses of the two ends begin.
const TYPE: usize = 12;
const IPV4: (u16, [usize; 2]) = (0x0800, [26, 30]);
const ARP: (u16, [usize; 2]) = (0x0806, [28, 38]);

/// What happens to frames in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// How long each is on its way.
    pub delay: Duration,
    /// By how much longer at most, at random: frames overtake one another.
    pub jitter: Duration,
    /// Of a thousand frames, how many are lost.
    pub lost: u64,
    /// Only frames between the host and this other one; all if absent.
    pub with: Option<Ipv4Addr>,
}

impl Way {
    /// Nothing arrives.
    #[must_use]
    pub const fn cut(with: Option<Ipv4Addr>) -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            lost: 1000,
            with,
        }
    }

    /// Everything arrives so much later.
    #[must_use]
    pub const fn long(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            lost: 0,
            with: None,
        }
    }

    /// When a frame is to arrive; `None` if it is lost.
    fn fate(&self, frame: &[u8], now: Instant, dice: &mut Rng) -> Option<Instant> {
        if self.with.is_some_and(|with| !is_of(frame, with)) {
            return Some(now);
        }
        if dice.below(1000) < self.lost {
            return None;
        }
        let jitter = dice.below(self.jitter.as_nanos() as u64 + 1);
        Some(now + self.delay + Duration::from_nanos(jitter))
    }
}

/// Whether one end of a frame is at this address.
fn is_of(frame: &[u8], address: Ipv4Addr) -> bool {
    let found = frame.get(TYPE..TYPE + 2);
    [IPV4, ARP].iter().any(|(kind, ends)| {
        let at = |end: &usize| frame.get(*end..end + 4) == Some(&address.octets());
        found == Some(&kind.to_be_bytes()) && ends.iter().any(at)
    })
}

/// The relay of one host. Everything passes at once until told otherwise; nothing does once it is dropped.
#[derive(Debug)]
pub struct Wire {
    ways: Arc<[Mutex<Way>; 2]>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Puts a relay between a host and the common bridge. `seed` decides what is lost.
    pub(super) fn put(bed: &Bed, host: &Host, seed: u64) -> Result<Self> {
        let (switch, port) = (bed.switch(), host.name());
        for line in [
            format!("link set {port} nomaster"),
            format!("link add {port}-w type veth peer name {port}-b"),
            format!("link set {port}-b master switch up"),
            format!("link set {port}-w up"),
        ] {
            ip::run(&format!("-n {switch} {line}"))?;
        }
        let open = |name: &str| {
            let index = if_nametoindex(name)?;
            PacketSocket::open_for_relay(index).context("a packet socket could not be opened")
        };
        let inside = Host::new("switch", &switch, Ipv4Addr::UNSPECIFIED);
        let sockets =
            inside.inside(|| Ok([open(port)?, open(&format!("{port}-w"))?].map(Arc::new)));
        let [near, far] = sockets?;
        let mut wire = Self {
            ways: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let directions = [(&near, &far), (&far, &near)];
        for (index, (from, to)) in directions.into_iter().enumerate() {
            let relay = Relay {
                from: Arc::clone(from),
                to: Arc::clone(to),
                ways: Arc::clone(&wire.ways),
                index,
                dice: Rng::new(seed, 200 + index as u64),
                late: BinaryHeap::new(),
                sent: 0,
            };
            let stop = Arc::clone(&wire.stop);
            let thread = std::thread::Builder::new().name(format!("wire of {port}"));
            wire.threads.push(thread.spawn(move || relay.run(&stop))?);
        }
        Ok(wire)
    }

    /// What happens from now on to frames from the host, and to it.
    pub fn set(&self, from: Way, to: Way) {
        *way(&self.ways[0]) = from;
        *way(&self.ways[1]) = to;
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A panic was told when it happened.
            let _ = thread.join();
        }
    }
}

fn way(way: &Mutex<Way>) -> MutexGuard<'_, Way> {
    way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One direction.
struct Relay {
    from: Arc<PacketSocket>,
    to: Arc<PacketSocket>,
    ways: Arc<[Mutex<Way>; 2]>,
    index: usize,
    dice: Rng,
    late: BinaryHeap<Late>,
    sent: u64,
}

/// A frame on its way: the earliest is the greatest, and of two at the same moment the one that came first.
#[derive(Debug, PartialEq, Eq)]
struct Late {
    due: Instant,
    number: u64,
    frame: Vec<u8>,
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Relay {
    fn run(mut self, stop: &AtomicBool) {
        let mut frame = vec![0; LONGEST];
        while !stop.load(Relaxed) {
            let look = Instant::now() + LOOK;
            let until = self.late.peek().map_or(look, |late| late.due.min(look));
            // An interface that is down loses what it is given.
            if let Ok(Some(len)) = self.from.receive(&mut frame, until) {
                self.take(&frame[..len]);
            }
            let now = Instant::now();
            while self.late.peek().is_some_and(|late| late.due <= now) {
                if let Some(late) = self.late.pop() {
                    let _ = self.to.send(&late.frame);
                }
            }
        }
    }

    fn take(&mut self, frame: &[u8]) {
        let now = Instant::now();
        let rules = *way(&self.ways[self.index]);
        let plain = frame.get(NOTES..).unwrap_or_default();
        match rules.fate(plain, now, &mut self.dice) {
            Some(due) if due <= now && self.late.is_empty() => {
                let _ = self.to.send(frame);
            }
            Some(due) => {
                self.sent += 1;
                self.late.push(Late {
                    due,
                    number: self.sent,
                    frame: frame.to_vec(),
                });
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_pair_are_told_from_others() {
        let there = Ipv4Addr::new(10, 79, 0, 2);
        let mut frame = [0; 60];
        frame[TYPE..TYPE + 2].copy_from_slice(&[8, 0]);
        frame[30..34].copy_from_slice(&there.octets());
        assert!(is_of(&frame, there) && !is_of(&frame, Ipv4Addr::new(10, 79, 0, 3)));
        frame[TYPE + 1] = 6;
        assert!(!is_of(&frame, there));
        frame[38..42].copy_from_slice(&there.octets());
        assert!(is_of(&frame, there) && !is_of(&frame[..40], there));
        let (now, mut dice) = (Instant::now(), Rng::new(1, 1));
        assert_eq!(Way::cut(Some(there)).fate(&frame, now, &mut dice), None);
        let elsewhere = Way::cut(Some(Ipv4Addr::LOCALHOST));
        assert_eq!(elsewhere.fate(&frame, now, &mut dice), Some(now));
    }

    #[test]
    fn frames_arrive_in_the_order_of_their_times() {
        let now = Instant::now();
        let late = |after, number| Late {
            due: now + Duration::from_millis(after),
            number,
            frame: Vec::new(),
        };
        let mut all: BinaryHeap<_> = [late(5, 1), late(3, 2), late(3, 3)].into();
        let order: Vec<u64> = std::iter::from_fn(|| all.pop()).map(|l| l.number).collect();
        assert_eq!(order, [2, 3, 1]);
    }
}
