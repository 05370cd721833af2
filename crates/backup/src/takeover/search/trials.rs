//! What can be tried where an attempt left the log.
//!
//! A replay does what a thread did between two records as if at the first of them, while much of it, and above all what
//! makes the next record, was done at the end of that time. So the first other turn of a record is behind all that others
//! did until its thread's next record; then come single records of others, the nearest first.

use std::collections::VecDeque;

use crate::takeover::timeline::{Moment, Span, Timeline};
use crate::takeover::timing::{Start, Turn};

/// Records of one thread before a place whose turns are tried: what came of a race may show only some records later.
const RECORDS: usize = 3;
/// Trials of each of them in one go.
const ROUND: usize = 3;
/// Other threads' records that a record is put before or behind, at most.
const ORDERS: usize = 16;
/// So many cycles before a thread's first record are looked at.
const LONG: u64 = 1_000_000_000;
/// So many cycles around what a thread did are looked at, at least.
const AROUND: u64 = 50_000;

/// Turns of the record before the one at this place, then of those before that. `has_turn` tells which records have one
/// already.
pub(super) fn at(
    timeline: &Timeline,
    stream: u32,
    position: u64,
    has_turn: impl Fn(u32, u64) -> bool,
) -> VecDeque<Turn> {
    let records = timeline.before(stream, position);
    let ends = timeline.time(stream, position).into_iter();
    let ends = ends.chain(records.iter().rev().map(|record| record.time));
    let records = records.iter().rev().zip(ends).take(RECORDS);
    let mut all: Vec<_> = records
        .map(|(record, end)| turns(timeline, stream, *record, end))
        .collect();
    let mut trials = VecDeque::new();
    while all.iter().any(|turns| !turns.is_empty()) {
        for turns in &mut all {
            trials.extend(turns.drain(..ROUND.min(turns.len())));
        }
    }
    trials.retain(|turn| !has_turn(turn.stream, turn.position));
    trials
}

/// What a thread did before its first record in the log has no record whose turn could be another: it starts late instead.
/// First others, behind what led to this place, which the log gives them later records than; then the thread of this
/// place, if its first records end here: behind all that others do, and behind single records of others, the latest first.
pub(super) fn starts(timeline: &Timeline, stream: u32, position: u64) -> Vec<Start> {
    let records = timeline.before(stream, position);
    let since = records.last().map_or(0, |record| record.time);
    let firsts = timeline.firsts().filter(|(other, _)| *other != stream);
    let later = firsts.filter(|(_, first)| first.time > since);
    let mut starts: Vec<Start> = later
        .map(|(other, _)| Start {
            stream: other,
            behind: Some((stream, position)),
        })
        .collect();
    if records.len() >= RECORDS {
        return starts;
    }
    let first = records.first().map_or(position, |record| record.position);
    let end = timeline.time(stream, first).unwrap_or(0);
    let mut others = timeline.others(stream, end.saturating_sub(LONG), end);
    others.retain(|other| other.begin < end);
    others.sort_by_key(|other| std::cmp::Reverse(other.begin));
    let behind = others.into_iter().take(ORDERS).filter_map(|other| {
        let next = timeline.next(other.stream, other.position)?;
        Some(Some((other.stream, next)))
    });
    let own = [None].into_iter().chain(behind);
    starts.extend(own.map(|behind| Start { stream, behind }));
    starts
}

/// Turns against what a thread did from a record on until it made its next at `end`.
fn turns(timeline: &Timeline, stream: u32, record: Moment, end: u64) -> VecDeque<Turn> {
    let around = AROUND.max(end - record.time);
    let (from, to) = (record.time.saturating_sub(around), end + around);
    let mut others = timeline.others(stream, from, to);
    // What both did at the same time first.
    let apart = |other: &Span| other.begin > end || other.end < record.time;
    others.sort_by_key(|other| (apart(other), other.begin.abs_diff(record.time)));
    let own = |time| Turn {
        stream,
        position: record.position,
        time,
    };
    // What it did, it may have done at the end of its time, behind all that others did meanwhile.
    let meanwhile = |other: &Span| (record.time..end).contains(&other.begin);
    let late = others
        .iter()
        .any(meanwhile)
        .then(|| own(end.saturating_sub(1)));
    let orders = others.iter().take(ORDERS).flat_map(|other| {
        if other.begin >= record.time {
            return [Some(own(other.begin + 1)), None];
        }
        let near = other.begin >= from;
        let before = near.then(|| own(other.begin.saturating_sub(1)));
        // So may others.
        let later = (other.end > record.time).then_some(Turn {
            stream: other.stream,
            position: other.position,
            time: record.time + 1,
        });
        [before, later]
    });
    late.into_iter().chain(orders.flatten()).collect()
}
