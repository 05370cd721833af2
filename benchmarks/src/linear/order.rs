//! Looks for an order that explains a history.
//!
//! The search of Wing and Gong (1993) as Lowe (2017) made it fast: commands are taken one by one from those that began
//! before the first answer that is still to be explained; where none fits, the last one taken is put back. What was taken
//! and the state that this led to are remembered, and not tried again.

use std::collections::HashSet;

use super::history::{History, Operation};
use super::object::State;

/// There is no such order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{key}: no order of its {commands} commands explains the answer in {operation:?}; an order of those before it leads \
     to {state}"
)]
pub struct Unexplained {
    /// The key.
    pub key: String,
    /// How many commands it had.
    pub commands: usize,
    /// The first command whose answer nothing explains.
    pub operation: Operation,
    /// What the key would have been.
    pub state: String,
}

/// Looks for an order that explains a history.
///
/// # Errors
/// [`Unexplained`] if there is none.
pub fn explain(history: &History) -> Result<(), Box<Unexplained>> {
    let mut operations = history.operations.clone();
    operations.sort_by_key(|operation| operation.asked);
    let mut search = Search {
        timeline: Timeline::of(&operations),
        operations: &operations,
        state: State::new(history.kind),
        taken: Taken::default(),
        tried: HashSet::new(),
        stack: Vec::new(),
        furthest: None,
    };
    if search.run() {
        return Ok(());
    }
    let (operation, state) = search
        .furthest
        .map_or((operations[0], search.state), |(index, state)| {
            (operations[index], state)
        });
    Err(Box::new(Unexplained {
        key: history.key.clone(),
        commands: operations.len(),
        operation,
        state: format!("{state:?}"),
    }))
}

struct Search<'a> {
    operations: &'a [Operation],
    timeline: Timeline,
    state: State,
    taken: Taken,
    tried: HashSet<(Taken, State)>,
    /// What was taken, and the state before it.
    stack: Vec<(usize, State)>,
    /// The last command, by its answer's time, that could not be passed.
    furthest: Option<(usize, State)>,
}

impl Search<'_> {
    fn run(&mut self) -> bool {
        let mut at = self.timeline.first();
        while self.timeline.answers_left > 0 {
            match self.timeline.event(at) {
                Some(Event::Asked(index)) => {
                    if self.take(index) {
                        at = self.timeline.first();
                    } else {
                        at = self.timeline.next[at];
                    }
                }
                Some(Event::Answered(index)) => {
                    self.stuck(index);
                    let Some((last, state)) = self.stack.pop() else {
                        return false;
                    };
                    self.state = state;
                    self.taken.put_back(last);
                    self.timeline.put_back(last);
                    at = self.timeline.next[self.timeline.asked[last]];
                }
                // An answer is left, and comes before the end.
                None => return false,
            }
        }
        true
    }

    /// Takes a command if its answer fits and this was not tried before.
    fn take(&mut self, index: usize) -> bool {
        let operation = self.operations[index];
        let (after, answer) = self.state.after(operation.call);
        if operation.answered.is_some_and(|(_, said)| said != answer) {
            return false;
        }
        self.taken.take(index);
        if !self.tried.insert((self.taken.clone(), after)) {
            self.taken.put_back(index);
            return false;
        }
        self.stack.push((index, self.state));
        self.state = after;
        self.timeline.take(index);
        true
    }

    fn stuck(&mut self, index: usize) {
        let time = |index: usize| self.operations[index].answered.map(|(time, _)| time);
        if self
            .furthest
            .is_none_or(|(before, _)| time(before) < time(index))
        {
            self.furthest = Some((index, self.state));
        }
    }
}

/// Which commands were taken: all below a number, and some beyond.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Taken {
    below: usize,
    beyond: Vec<usize>,
}

impl Taken {
    fn take(&mut self, index: usize) {
        if let Err(at) = self.beyond.binary_search(&index) {
            self.beyond.insert(at, index);
        }
        let run = self.beyond.iter().enumerate();
        let whole = run
            .take_while(|(n, index)| self.below + n == **index)
            .count();
        self.beyond.drain(..whole);
        self.below += whole;
    }

    fn put_back(&mut self, index: usize) {
        if index < self.below {
            self.beyond.splice(..0, index + 1..self.below);
            self.below = index;
        } else if let Ok(at) = self.beyond.binary_search(&index) {
            self.beyond.remove(at);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Asked(usize),
    Answered(usize),
}

/// When commands were asked and answered: a list from which those that are taken are lifted, and put back in the opposite
/// order.
struct Timeline {
    /// By node, from 1; node 0 is the beginning.
    events: Vec<Event>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// By command.
    asked: Vec<usize>,
    answered: Vec<Option<usize>>,
    /// Answers in the list.
    answers_left: usize,
}

impl Timeline {
    fn of(operations: &[Operation]) -> Self {
        let asked = operations.iter().enumerate();
        // Of two at the same moment, the question first: they may have overlapped.
        let asked = asked.map(|(index, o)| (o.asked, 0, Event::Asked(index)));
        let answered = operations.iter().enumerate();
        let answered = answered.filter_map(|(index, o)| {
            let (time, _) = o.answered?;
            Some((time, 1, Event::Answered(index)))
        });
        let mut all: Vec<_> = asked.chain(answered).collect();
        all.sort_by_key(|(time, order, _)| (*time, *order));
        let events: Vec<Event> = all.into_iter().map(|(_, _, event)| event).collect();
        let nodes = events.len() + 1;
        let mut timeline = Self {
            next: (1..=nodes).collect(),
            before: (0..nodes)
                .map(|node: usize| node.saturating_sub(1))
                .collect(),
            asked: vec![0; operations.len()],
            answered: vec![None; operations.len()],
            answers_left: 0,
            events,
        };
        for (at, event) in timeline.events.iter().enumerate() {
            match event {
                Event::Asked(index) => timeline.asked[*index] = at + 1,
                Event::Answered(index) => {
                    timeline.answered[*index] = Some(at + 1);
                    timeline.answers_left += 1;
                }
            }
        }
        timeline
    }

    fn first(&self) -> usize {
        self.next[0]
    }

    fn event(&self, node: usize) -> Option<Event> {
        self.events.get(node - 1).copied()
    }

    /// Lifts a command out.
    fn take(&mut self, index: usize) {
        self.lift(self.asked[index]);
        if let Some(node) = self.answered[index] {
            self.lift(node);
            self.answers_left -= 1;
        }
    }

    /// Puts the command back that was lifted last.
    fn put_back(&mut self, index: usize) {
        if let Some(node) = self.answered[index] {
            self.drop_in(node);
            self.answers_left += 1;
        }
        self.drop_in(self.asked[index]);
    }

    fn lift(&mut self, node: usize) {
        let (before, next) = (self.before[node], self.next[node]);
        self.next[before] = next;
        if let Some(back) = self.before.get_mut(next) {
            *back = before;
        }
    }

    fn drop_in(&mut self, node: usize) {
        let (before, next) = (self.before[node], self.next[node]);
        self.next[before] = node;
        if let Some(back) = self.before.get_mut(next) {
            *back = node;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::object::{Call, Kind};
    use proptest::prelude::*;

    fn operation(client: usize, call: Call, asked: u64, answered: Option<(u64, u64)>) -> Operation {
        Operation {
            client,
            call,
            asked,
            answered,
        }
    }

    fn history(kind: Kind, operations: Vec<Operation>) -> History {
        History {
            key: "k".to_owned(),
            kind,
            operations,
        }
    }

    #[test]
    fn what_overlaps_may_have_come_in_either_order() {
        let both = |first, second| {
            history(
                Kind::Counter,
                vec![
                    operation(0, Call::Increment, 0, Some((10, first))),
                    operation(1, Call::Increment, 5, Some((15, second))),
                ],
            )
        };
        assert!(explain(&both(1, 2)).is_ok());
        assert!(explain(&both(2, 1)).is_ok());
        assert!(explain(&both(1, 1)).is_err());
        assert!(explain(&both(1, 3)).is_err());
    }

    #[test]
    fn what_was_answered_came_before_what_was_asked_later() {
        let stale = history(
            Kind::Register,
            vec![
                operation(0, Call::Swap { from: 0, to: 7 }, 0, Some((10, 0))),
                operation(1, Call::Read, 11, Some((12, 0))),
            ],
        );
        let found = explain(&stale).unwrap_err();
        assert_eq!(found.operation, stale.operations[1]);
    }

    #[test]
    fn what_was_not_answered_may_have_happened_or_not() {
        let read = |value| {
            history(
                Kind::Register,
                vec![
                    operation(0, Call::Swap { from: 0, to: 7 }, 0, None),
                    operation(1, Call::Read, 20, Some((21, value))),
                    operation(1, Call::Read, 22, Some((23, value))),
                ],
            )
        };
        assert!(explain(&read(0)).is_ok());
        assert!(explain(&read(7)).is_ok());
        assert!(explain(&read(8)).is_err());
        let mut undone = read(7);
        undone.operations[2].answered = Some((23, 0));
        assert!(
            explain(&undone).is_err(),
            "it happened, and then it had not"
        );
    }

    #[test]
    fn all_items_come_in_the_order_of_their_lengths() {
        let items = |order: [u64; 2]| {
            let hash = crate::linear::object::hash_of(order.into_iter());
            history(
                Kind::List,
                vec![
                    operation(0, Call::Push(5), 0, Some((10, 2))),
                    operation(1, Call::Push(6), 1, Some((11, 1))),
                    operation(0, Call::Read, 12, Some((13, 5))),
                    operation(0, Call::ReadAll, 14, Some((15, hash))),
                ],
            )
        };
        assert!(explain(&items([6, 5])).is_ok());
        assert!(explain(&items([5, 6])).is_err());
    }

    /// Clients of one copy: each command happens at some moment between its question and its answer.
    fn of_one_copy(kind: Kind, choices: &[(u8, u8, u8)]) -> Vec<Operation> {
        const CLIENTS: usize = 4;
        let (mut free, mut state) = ([0; CLIENTS], State::new(kind));
        let mut all = Vec::new();
        for (moment, (who, what, long)) in choices.iter().enumerate() {
            let client = usize::from(*who) % CLIENTS;
            let moment = 1000 * (moment as u64 + 1);
            let call = match (kind, what % 3) {
                (_, 0) => Call::Read,
                (Kind::Counter, _) => Call::Increment,
                (Kind::List, _) => Call::Push(moment),
                (Kind::Register, n) => Call::Swap {
                    from: u64::from(n - 1),
                    to: u64::from(what % 2),
                },
            };
            let asked = moment
                .saturating_sub(10 * u64::from(*long))
                .max(free[client] + 1);
            // One that is asked behind its moment cannot happen then.
            if asked > moment {
                continue;
            }
            let (after, answer) = state.after(call);
            state = after;
            let answered = moment + 7 * u64::from(*long);
            free[client] = answered;
            all.push(operation(client, call, asked, Some((answered, answer))));
        }
        all
    }

    proptest! {
        #[test]
        fn what_one_copy_answered_is_explained(
            kind in prop_oneof![Just(Kind::Counter), Just(Kind::List), Just(Kind::Register)],
            choices in prop::collection::vec(any::<(u8, u8, u8)>(), 1..60),
        ) {
            let all = of_one_copy(kind, &choices);
            prop_assert_eq!(explain(&history(kind, all)), Ok(()));
        }

        #[test]
        fn a_write_that_is_lost_is_found(choices in prop::collection::vec(any::<(u8, u8, u8)>(), 10..60)) {
            // Two copies, of which the second did not get the last write of the first.
            let before = of_one_copy(Kind::Counter, &choices);
            let writes = before.iter().filter(|o| o.call == Call::Increment).count() as u64;
            prop_assume!(writes > 0);
            let mut all = before;
            all.push(operation(0, Call::Read, 1 << 40, Some((1 << 41, writes - 1))));
            prop_assert!(explain(&history(Kind::Counter, all)).is_err());
        }
    }
}
