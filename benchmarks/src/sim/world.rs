//! Both hosts and what is between them, step by step.

use core::time::Duration;
use std::collections::VecDeque;
use std::mem::take;

use ::backup::arbiter::Phase;
use ::backup::detector::Status;
use stream::Nanos;
use stream::hello::{Timing, Welcome};

use super::backup::Step;
use super::faults::{self, Fault};
use super::network::{Message, Side};
use super::{Backup, Clock, Network, Plant, Primary, Tally, Violation};
use crate::rng::Rng;

const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(10),
    detect: Duration::from_millis(50),
};
/// Faults happen until then, in milliseconds; after it, hosts and network are whole.
const CALM: u64 = 1500;
const END: u64 = 3000;

pub(super) struct World {
    seed: u64,
    dice: Rng,
    now: u64,
    network: Network,
    primary: Primary,
    backup: Backup,
    /// What has arrived at each side, and until when it does nothing.
    arrived: [VecDeque<Message>; 2],
    stalled: [u64; 2],
    tally: Tally,
    events: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64, plant: Option<Plant>) -> Self {
        let mut dice = Rng::new(seed, 0);
        let (one, other) = (Clock::any(&mut dice), Clock::any(&mut dice));
        let welcome = Welcome {
            generation: 1,
            instance: 1,
        };
        Self {
            seed,
            now: 0,
            network: Network::new(&mut dice, CALM),
            primary: Primary::new(one, TIMING, welcome, plant),
            backup: Backup::new(other, TIMING, plant),
            arrived: Default::default(),
            stalled: [0; 2],
            tally: Tally::default(),
            events: Vec::new(),
            dice,
        }
    }

    pub(super) fn run(mut self) -> Result<Tally, Violation> {
        while self.now < END {
            self.step().map_err(|what| self.violation(what))?;
            self.now += 1;
        }
        if !self.is_settled() {
            return Err(self.violation("nobody speaks in the end".to_owned()));
        }
        self.tally.released = self.primary.released;
        Ok(self.tally)
    }

    fn violation(&mut self, what: String) -> Violation {
        Violation {
            seed: self.seed,
            at: self.now,
            what,
            events: take(&mut self.events),
        }
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        self.events.push(format!("{} {what}", self.now));
    }

    fn step(&mut self) -> Result<(), String> {
        if self.now < CALM {
            for fault in faults::any(self.now, &mut self.dice) {
                self.suffer(fault);
            }
        }
        while let Some((side, message)) = self.network.arrived(self.now) {
            self.arrived[side as usize].push_back(message);
        }
        if self.works(Side::Primary) {
            self.primary_acts();
        }
        if self.works(Side::Backup) {
            self.backup_acts()?;
        }
        self.check()
    }

    fn works(&self, side: Side) -> bool {
        self.stalled[side as usize] <= self.now
    }

    fn suffer(&mut self, fault: Fault) {
        let now = self.now;
        match fault {
            Fault::Cut { side, both, time } => {
                for other in [Side::Primary, Side::Backup] {
                    if both || other == side {
                        self.network.cut(other, now + time);
                    }
                }
            }
            Fault::Stall { side, time } => {
                let until = &mut self.stalled[side as usize];
                *until = (now + time).min(CALM).max(*until);
            }
            Fault::GiveUp { time } => {
                if self.primary.resumes.is_some() || self.primary.is_gone() {
                    return;
                }
                self.primary.give_up(now + time);
            }
            Fault::Die => {
                if self.primary.is_gone() {
                    return;
                }
                self.primary.is_dead = true;
                self.tally.died += 1;
            }
            Fault::Restart => {
                if self.backup.is_live() {
                    return;
                }
                self.backup.restart(now);
                self.tally.restarted += 1;
            }
        }
        self.note(format_args!("{fault:?}"));
    }

    fn primary_acts(&mut self) {
        for message in take(&mut self.arrived[Side::Primary as usize]) {
            self.primary.hear(message, self.now);
        }
        if self.primary.is_gone() {
            return;
        }
        if self.primary.instance != self.backup.instance
            && self.network.connects(self.now)
            && self.works(Side::Backup)
        {
            self.reconnect();
        }
        if self.primary.is_gone() {
            return;
        }
        for message in self.primary.act(self.now, &mut self.dice) {
            self.network
                .send(self.now, &mut self.dice, Side::Backup, message);
        }
    }

    fn reconnect(&mut self) {
        if self.primary.generation < self.backup.generation {
            return self.primary.fence();
        }
        let instance = self.backup.instance;
        self.primary.reconnect(TIMING, instance, self.now);
        self.backup.arbiter.reconnected();
        self.note("reconnected");
    }

    fn backup_acts(&mut self) -> Result<(), String> {
        let mut said = Vec::new();
        for message in take(&mut self.arrived[Side::Backup as usize]) {
            let answers = self.backup.hear(message, self.now);
            said.extend(answers.map_err(|e| format!("the backup refuses: {e}"))?);
        }
        let faulty = self.now < CALM;
        let acted = self
            .backup
            .act(self.now, &mut self.dice, faulty, !self.primary.is_gone());
        let (step, more) = acted.map_err(|e| format!("the backup fails: {e}"))?;
        said.extend(more);
        for message in said {
            self.tally.committed += u64::from(matches!(message, Message::Committed { .. }));
            self.network
                .send(self.now, &mut self.dice, Side::Primary, message);
        }
        match step {
            Step::Nothing => return Ok(()),
            Step::TakesOver => {}
            Step::Revoked => self.tally.revoked += 1,
            Step::Live => self.tally.live += 1,
        }
        self.note(format_args!("{step:?}"));
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.backup.is_live() && self.primary.speaks(self.now) {
            return Err("both speak".to_owned());
        }
        let Some((events, state)) = self.backup.replayed else {
            return Ok(());
        };
        if self.primary.released > events {
            return Err(format!(
                "clients have seen {} events, and the takeover has {events}",
                self.primary.released
            ));
        }
        if self.primary.states.get(events as usize) != Some(&state) {
            return Err(format!(
                "the takeover has another state behind {events} events"
            ));
        }
        Ok(())
    }

    /// True if somebody speaks at the end, or can say why nobody may.
    fn is_settled(&self) -> bool {
        match self.backup.arbiter.phase() {
            Phase::Live => true,
            // Dead before its first checkpoint with this run of the backup: nothing to take over.
            Phase::Unprotected => self.primary.is_gone(),
            Phase::Guarding | Phase::TakingOver if self.primary.is_dead => {
                // Never heard by this run of the backup, so it cannot be missed.
                self.backup.detector.clone().check(Nanos(u64::MAX)) == Status::Waiting
            }
            _ => self.primary.speaks(self.now),
        }
    }
}
