//! What goes wrong, and when.

use super::network::{Dice, Side};

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
pub(super) fn any(now: u64, dice: &mut Dice) -> Vec<Fault> {
    let mut faults = Vec::new();
    if dice.chance(3) {
        let (side, both) = (any_side(dice), dice.chance(500));
        let time = dice.roll(200);
        faults.push(Fault::Cut { side, both, time });
    }
    if dice.chance(2) {
        let side = any_side(dice);
        let time = dice.roll(120);
        faults.push(Fault::Stall { side, time });
    }
    if dice.chance(2) {
        faults.push(Fault::GiveUp {
            time: dice.roll(60),
        });
    }
    if now > PROTECTED && dice.chance(1) {
        faults.push(Fault::Die);
    }
    if dice.chance(1) {
        faults.push(Fault::Restart);
    }
    faults
}

fn any_side(dice: &mut Dice) -> Side {
    if dice.chance(500) {
        Side::Primary
    } else {
        Side::Backup
    }
}
