//! Chance, clocks, and what carries messages.

use std::collections::BTreeMap;

use stream::Nanos;
use stream::checkpoint::{Begin, Finish};
use stream::lease::{Beat, BeatAnswer};

use crate::rng::Rng;

/// Whether it happens, with so much probability in a thousand.
pub(super) const fn chance(dice: &mut Rng, per_mille: u64) -> bool {
    dice.below(1000) < per_mille
}

/// A host's clock: an offset, and a rate that is off by so many parts per million.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    offset: u64,
    ppm: i64,
}

impl Clock {
    /// Off by half a percent at most: far more than any crystal.
    pub(super) fn any(dice: &mut Rng) -> Self {
        Self {
            offset: dice.below(1 << 40),
            ppm: dice.below(10_000).cast_signed() - 5000,
        }
    }

    /// What it shows at a millisecond of simulated time.
    pub(super) fn at(self, ms: u64) -> Nanos {
        let ns = i128::from(ms) * 1_000_000;
        let off = ns * i128::from(self.ppm) / 1_000_000;
        Nanos(self.offset + (ns + off) as u64)
    }
}

/// What hosts say to each other. `to` and `from` name the run of the backup that a connection was made to.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Beat {
        to: u64,
        beat: Beat,
    },
    Answer(BeatAnswer),
    Drain {
        to: u64,
        drain: Drain,
    },
    Ack {
        from: u64,
        number: u64,
    },
    Begin {
        to: u64,
        begin: Begin,
    },
    Image {
        to: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    Finish {
        to: u64,
        finish: Finish,
    },
    Committed {
        from: u64,
        id: u64,
    },
}

/// One drain of the primary's rings.
#[derive(Clone, Debug)]
pub(super) struct Drain {
    pub(super) number: u64,
    /// Where its bytes lie in the log.
    pub(super) position: u64,
    pub(super) bytes: Vec<u8>,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Primary,
    Backup,
}

/// What keeps messages in order: a connection each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Log,
    Checkpoint,
}

impl Message {
    /// The connection that it comes over, in order and not lost; `None` if it comes by itself.
    const fn line(&self) -> Option<Line> {
        match self {
            Self::Beat { .. } | Self::Answer(_) => None,
            Self::Drain { .. } | Self::Ack { .. } => Some(Line::Log),
            Self::Begin { .. }
            | Self::Image { .. }
            | Self::Finish { .. }
            | Self::Committed { .. } => Some(Line::Checkpoint),
        }
    }
}

/// Everything that is under way.
#[derive(Debug)]
pub(super) struct Network {
    /// By arrival, then in the order of sending.
    wire: BTreeMap<(u64, u64), (Side, Message)>,
    sent: u64,
    /// Until when nothing gets through to a side.
    cut: BTreeMap<Side, u64>,
    /// Until when each connection keeps what comes later waiting.
    lines: BTreeMap<(Line, Side), u64>,
    /// Messages in a thousand that are lost, of those that are not kept in order.
    loss: u64,
    /// From then on nothing is lost, late or doubled.
    calm: u64,
}

impl Network {
    pub(super) fn new(dice: &mut Rng, calm: u64) -> Self {
        Self {
            wire: BTreeMap::new(),
            sent: 0,
            cut: BTreeMap::new(),
            lines: BTreeMap::new(),
            loss: [0, 20, 200][dice.below(3) as usize],
            calm,
        }
    }

    /// Lets nothing through to a side until then.
    pub(super) fn cut(&mut self, side: Side, until: u64) {
        let cut = self.cut.entry(side).or_default();
        *cut = until.max(*cut);
    }

    /// Whether a connection can be made now.
    pub(super) fn connects(&self, now: u64) -> bool {
        self.cut.values().all(|until| *until <= now)
    }

    pub(super) fn send(&mut self, now: u64, dice: &mut Rng, to: Side, message: Message) {
        let is_calm = now >= self.calm;
        let cut = self.cut.get(&to).copied().unwrap_or(0);
        let usual = now + 1 + dice.below(3);
        let late = !is_calm && chance(dice, 50);
        let Some(line) = message.line() else {
            let is_lost = now < cut || (!is_calm && chance(dice, self.loss));
            if is_lost {
                return;
            }
            let copies = if !is_calm && chance(dice, 30) { 2 } else { 1 };
            for _ in 0..copies {
                let late = if late { dice.below(150) } else { 0 };
                self.put(usual + late, to, message.clone());
            }
            return;
        };
        // Sent again until it gets through, and what comes behind it waits.
        let late = if late { dice.below(300) } else { 0 };
        let ready = self.lines.entry((line, to)).or_default();
        let at = (usual + late).max(cut + 1).max(*ready);
        *ready = at;
        self.put(at, to, message);
    }

    fn put(&mut self, at: u64, to: Side, message: Message) {
        self.sent += 1;
        self.wire.insert((at, self.sent), (to, message));
    }

    /// The next message that has arrived by now.
    pub(super) fn arrived(&mut self, now: u64) -> Option<(Side, Message)> {
        let first = self.wire.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}
