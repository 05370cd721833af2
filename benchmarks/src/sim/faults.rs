//! What goes wrong, and when.

use super::chance;
use super::network::Side;
use crate::rng::Rng;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing gets through to a side for so long; to both, if `both`.
    Cut { side: Side, both: bool, time: u64 },
    /// A host does nothing for so long; its clock goes on.
    Stall { side: Side, time: u64 },
    /// The primary closes its gate for a switch-over, which is called off after so long.
    GiveUp { time: u64 },
    /// The primary dies.
    Die,
    /// The backup restarts without its memory.
    Restart,
}

/// The primary does not die before the container is protected for the first time.
const PROTECTED: u64 = 300;

/// What goes wrong in a millisecond.
pub(super) fn any(now: u64, dice: &mut Rng) -> Vec<Fault> {
    let mut faults = Vec::new();
    if chance(dice, 3) {
        let (side, both) = (any_side(dice), chance(dice, 500));
        let time = dice.below(200);
        faults.push(Fault::Cut { side, both, time });
    }
    if chance(dice, 2) {
        let side = any_side(dice);
        let time = dice.below(120);
        faults.push(Fault::Stall { side, time });
    }
    if chance(dice, 2) {
        faults.push(Fault::GiveUp {
            time: dice.below(60),
        });
    }
    if now > PROTECTED && chance(dice, 1) {
        faults.push(Fault::Die);
    }
    if chance(dice, 3) {
        faults.push(Fault::Restart);
    }
    faults
}

fn any_side(dice: &mut Rng) -> Side {
    if chance(dice, 500) {
        Side::Primary
    } else {
        Side::Backup
    }
}
