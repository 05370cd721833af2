//! A standby's own thread: everything that traces its process happens there.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use eventlog::handover::Details;

use super::checkpoint::Checkpoint;
use super::error::{Result, TakeoverError, io};
use super::live::Live;
use super::search::Search;
use super::standby::{Report, Vacant};
use crate::detector::Suspicion;
use crate::guard::{Attempt, Guard};

/// A container in waiting: namespaces, a link on the bridge, a closed gate that keeps what is sent to it, and
/// a process that follows the committed checkpoints. Dropped, it is gone.
#[derive(Debug)]
pub struct Standby(Option<Waiting>);

#[derive(Debug)]
struct Waiting {
    orders: Sender<Order>,
    thread: JoinHandle<Option<Outcome>>,
}

/// Hears of each attempt that failed, by its number.
pub type Tell = Box<dyn FnMut(u32, &TakeoverError) + Send>;

/// To take over.
struct Order {
    attempt: Attempt<Checkpoint>,
    suspicion: Suspicion,
    search: Search,
    tell: Tell,
}

type Outcome = (Search, Result<(Live, Report)>);

impl Standby {
    /// Makes it, with its link on `bridge`. From now on commits of `guard` are followed here and nowhere
    /// else.
    ///
    /// # Errors
    /// When the container, its gate or its thread cannot be made.
    pub fn prepare(details: Details, bridge: &str, guard: &Arc<Guard<Checkpoint>>) -> Result<Self> {
        let mounts = guard
            .mirror()
            .as_ref()
            .map(|mirror| mirror.mounts().collect());
        let vacant = Vacant::prepare(details, bridge, mounts.unwrap_or_default())?;
        let (orders, inbox) = channel();
        let committing = Arc::downgrade(guard);
        let thread = thread::Builder::new()
            .name("standby".to_owned())
            .spawn(move || wait(vacant, &committing, &inbox))
            .map_err(io("starting a thread"))?;
        guard.tell_commits_to(thread.thread().clone());
        // One may have come before.
        thread.thread().unpark();
        Ok(Self(Some(Waiting { orders, thread })))
    }

    /// Takes over, with as many attempts as `search` allows. The caller goes on with [`Live::host`].
    ///
    /// # Errors
    /// That of the last attempt, which `tell` and `search` have heard of; what was made is gone then, and the takeover
    /// is called off.
    pub fn take_over(
        mut self,
        attempt: Attempt<Checkpoint>,
        suspicion: Suspicion,
        search: &mut Search,
        tell: Tell,
    ) -> Result<(Live, Report)> {
        const PANICKED: TakeoverError = TakeoverError::Panicked { what: "takes over" };
        let Waiting { orders, thread } = self.0.take().ok_or(PANICKED)?;
        let order = Order {
            attempt,
            suspicion,
            search: search.clone(),
            tell,
        };
        orders.send(order).map_err(|_| PANICKED)?;
        thread.thread().unpark();
        let Some((learnt, outcome)) = thread.join().ok().flatten() else {
            search.missed();
            return Err(PANICKED);
        };
        *search = learnt;
        outcome
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Some(Waiting { orders, thread }) = self.0.take() {
            drop(orders);
            thread.thread().unpark();
            // A panic was told when it happened.
            let _ = thread.join();
        }
    }
}

/// Follows the commits until there is an order, or nobody to give one.
fn wait(
    mut vacant: Vacant,
    guard: &Weak<Guard<Checkpoint>>,
    orders: &Receiver<Order>,
) -> Option<Outcome> {
    loop {
        match orders.try_recv() {
            Ok(order) => {
                let Order {
                    attempt,
                    suspicion,
                    mut search,
                    mut tell,
                } = order;
                let taken = vacant.take_over(attempt, suspicion, &mut search, &mut tell);
                return Some((search, taken));
            }
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        // Whatever comes from here on wakes this thread, or keeps it from falling asleep.
        if !guard.upgrade().is_some_and(|guard| vacant.follow(&guard)) {
            thread::park();
        }
    }
}
