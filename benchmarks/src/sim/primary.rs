//! The host that serves: events happen, drains carry them to the backup, output leaves behind acknowledgements.

use stream::Nanos;
use stream::ack::AckTracker;
use stream::checkpoint::{Begin, Cut, Finish};
use stream::hello::{Timing, Welcome};
use stream::lease::{Lease, Outcome};

use super::network::{Clock, Drain, Message};
use super::{Plant, backup};
use crate::rng::Rng;

/// The one stream of the log.
pub(super) const STREAM: u32 = 1;
/// Bytes of an event.
pub(super) const EVENT: u64 = 8;
/// Milliseconds between drains, heartbeats and checkpoints.
const DRAIN: u64 = 4;
const BEAT: u64 = 10;
const EPOCH: u64 = 60;
/// Bytes of an image that are sent at a time.
const CHUNK: usize = 5;

/// What the server is after an event: each leads from the state before to another.
pub(super) const fn after(state: u64, event: u64) -> u64 {
    (state ^ event)
        .wrapping_mul(0x100_0000_01b3)
        .rotate_left(17)
}

#[derive(Debug)]
pub(super) struct Primary {
    pub(super) clock: Clock,
    pub(super) lease: Lease,
    /// The run of the backup that it is connected to, and the generation it serves under.
    pub(super) instance: u64,
    pub(super) generation: u64,
    /// Until when the gate lets output pass. Nothing shortens it but a fence; it outlives the processes that fed it.
    pub(super) gate: Nanos,
    /// The server's state after each event, from before the first.
    pub(super) states: Vec<u64>,
    events: Vec<u64>,
    acks: AckTracker<u64>,
    /// Events whose output may leave, and those whose has.
    acknowledged: u64,
    pub(super) released: u64,
    /// Events that went out with a drain.
    drained: u64,
    checkpoint: Option<u64>,
    next_checkpoint: u64,
    last_id: u64,
    pub(super) is_dead: bool,
    pub(super) is_fenced: bool,
    next_beat: u64,
    /// When a switch-over is called off.
    pub(super) resumes: Option<u64>,
    plant: Option<Plant>,
}

impl Primary {
    pub(super) fn new(
        clock: Clock,
        timing: Timing,
        welcome: Welcome,
        plant: Option<Plant>,
    ) -> Self {
        Self {
            clock,
            lease: Lease::new(timing, welcome),
            instance: welcome.instance,
            generation: welcome.generation,
            gate: Nanos(0),
            states: vec![0],
            events: Vec::new(),
            acks: AckTracker::default(),
            acknowledged: 0,
            released: 0,
            drained: 0,
            checkpoint: None,
            next_checkpoint: 0,
            last_id: 0,
            is_dead: false,
            is_fenced: false,
            next_beat: 0,
            resumes: None,
            plant,
        }
    }

    pub(super) const fn is_gone(&self) -> bool {
        self.is_dead || self.is_fenced
    }

    /// Whether output could leave at a millisecond.
    pub(super) fn speaks(&self, now: u64) -> bool {
        self.clock.at(now) < self.gate
    }

    pub(super) fn fence(&mut self) {
        (self.is_fenced, self.gate) = (true, Nanos(0));
    }

    /// Closes its gate for a switch-over that is called off at `resumes`.
    pub(super) fn give_up(&mut self, resumes: u64) {
        self.gate = Nanos(0);
        self.lease.give_up();
        self.resumes = Some(resumes);
    }

    /// Introduces itself to a backup that has restarted, and protects the container anew.
    pub(super) fn reconnect(&mut self, timing: Timing, instance: u64, now: u64) {
        self.instance = instance;
        let generation = self.generation;
        self.lease = Lease::new(
            timing,
            Welcome {
                generation,
                instance,
            },
        );
        if self.resumes.is_some() {
            self.lease.give_up();
        }
        self.acks = AckTracker::default();
        self.drained = self.events.len() as u64;
        (self.checkpoint, self.next_checkpoint) = (None, now);
    }

    pub(super) fn hear(&mut self, message: Message, now: u64) {
        if self.is_gone() {
            return;
        }
        match message {
            Message::Answer(answer) => {
                let now = self.clock.at(now);
                match self.lease.answered(&answer, now) {
                    Outcome::Extended { .. } if self.plant == Some(Plant::LeaseFromReceipt) => {
                        self.gate = self.gate.max(now + self.lease.timing().lease());
                    }
                    Outcome::Extended { until } => self.gate = self.gate.max(until),
                    Outcome::Fenced { .. } => self.fence(),
                    Outcome::Unchanged | Outcome::OtherBackup { .. } => {}
                }
            }
            Message::Ack { from, number } => {
                let is_from_it = from == self.instance;
                if is_from_it || self.plant == Some(Plant::OldAcknowledgement) {
                    let notes = self.acks.acknowledged(number).into_iter().flatten();
                    let newest = notes.map(|released| released.note).max();
                    self.acknowledged = self.acknowledged.max(newest.unwrap_or(0));
                }
            }
            Message::Committed { from, id } if from == self.instance => {
                self.checkpoint.take_if(|under_way| *under_way == id);
            }
            _ => {}
        }
    }

    /// One millisecond; what it says.
    pub(super) fn act(&mut self, now: u64, dice: &mut Rng) -> Vec<Message> {
        let mut said = Vec::new();
        if self.resumes.is_some_and(|at| at <= now) {
            self.lease.resume();
            self.resumes = None;
        }
        for _ in 0..dice.below(4) {
            let event = dice.word();
            let state = self.states.last().copied().unwrap_or(0);
            self.states.push(after(state, event));
            self.events.push(event);
        }
        if self.speaks(now) {
            self.released = self.released.max(self.acknowledged);
        }
        if now >= self.next_beat {
            self.next_beat = now + BEAT;
            let beat = self.lease.beat(self.clock.at(now));
            said.push(Message::Beat {
                to: self.instance,
                beat,
            });
        }
        if now.is_multiple_of(DRAIN) {
            said.extend(self.drain(now));
        }
        if now >= self.next_checkpoint && self.checkpoint.is_none() {
            self.next_checkpoint = now + EPOCH;
            said.extend(self.cut());
        }
        said
    }

    fn drain(&mut self, now: u64) -> Option<Message> {
        let note = self.events.len() as u64;
        let number = self.acks.begin(self.clock.at(now), note).ok()?;
        let new = &self.events[self.drained as usize..];
        let drain = Drain {
            number,
            position: self.drained * EVENT,
            bytes: new.iter().flat_map(|event| event.to_le_bytes()).collect(),
        };
        self.drained = note;
        Some(Message::Drain {
            to: self.instance,
            drain,
        })
    }

    /// A checkpoint of this moment. Its connection is another than the log's: it may come before or behind the drain that
    /// brings the log up to it.
    fn cut(&mut self) -> Vec<Message> {
        let (to, events) = (self.instance, self.events.len() as u64);
        self.last_id += 1;
        self.checkpoint = Some(self.last_id);
        let state = self.states.last().copied().unwrap_or(0);
        let image = backup::image(events, state);
        let begin = Begin {
            id: self.last_id,
            base: None,
            cut: Cut {
                streams: vec![(STREAM, events * EVENT)],
                next_stream: STREAM + 1,
            },
            image_len: image.len() as u64,
        };
        let finish = Finish {
            id: begin.id,
            crc: crc32c::crc32c(&image),
        };
        let chunks = image.chunks(CHUNK).enumerate();
        let chunks = chunks.map(|(index, bytes)| Message::Image {
            to,
            offset: (index * CHUNK) as u64,
            bytes: bytes.to_vec(),
        });
        let first = std::iter::once(Message::Begin { to, begin });
        first
            .chain(chunks)
            .chain([Message::Finish { to, finish }])
            .collect()
    }
}
