//! Epoll sets.

use super::calls::Call;
use super::message::{int, word};
use super::{Description, Fold, FoldError, Interest, Kind};

const EPOLL_CTL_DEL: i32 = 2;
const EPOLLONESHOT: u32 = 1 << 30;
/// Bytes of a `struct epoll_event`: events, then data, packed.
const EVENT_LEN: usize = 12;

impl Fold {
    pub(super) fn interest(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.args()?;
        let (operation, fd) = (int(args[1]), int(args[2]));
        let (Some(set), Some(watched)) = (self.named(call), self.meant(call.pid, fd)) else {
            return Ok(());
        };
        let Some(Description {
            kind: Kind::Epoll(interests),
            ..
        }) = self.descriptions.get_mut(&set)
        else {
            return Ok(());
        };
        let event = call.input(3).unwrap_or_default();
        let interest = Interest {
            events: word(event, 0, 4) as u32,
            data: word(event, 4, 8),
            armed: true,
        };
        if operation == EPOLL_CTL_DEL {
            interests.remove(&(fd, watched));
        } else {
            interests.insert((fd, watched), interest);
        }
        let still = interests.keys().any(|(_, id)| *id == watched);
        match self.descriptions.get_mut(&watched) {
            Some(description) if still => description.watchers.insert(set),
            Some(description) => description.watchers.remove(&set),
            // The watched description is gone already: a late record. Nothing watches it any more.
            None => self.forget_interest(set, watched),
        };
        Ok(())
    }

    fn forget_interest(&mut self, set: u64, watched: u64) -> bool {
        if let Some(Description {
            kind: Kind::Epoll(interests),
            ..
        }) = self.descriptions.get_mut(&set)
        {
            interests.retain(|(_, id), _| *id != watched);
        }
        true
    }

    /// Events were delivered: one-shot interests rest until they are set again.
    pub(super) fn delivered(&mut self, call: &Call<'_>) {
        let Some(Description {
            kind: Kind::Epoll(interests),
            ..
        }) = self.description_mut(call)
        else {
            return;
        };
        for event in call.filled(1).chunks_exact(EVENT_LEN) {
            let data = word(event, 4, 8);
            let mut oneshot = interests
                .values_mut()
                .filter(|interest| interest.events & EPOLLONESHOT != 0);
            if let Some(interest) = oneshot.find(|interest| interest.armed && interest.data == data)
            {
                interest.armed = false;
            }
        }
    }
}
