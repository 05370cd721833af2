//! A list that a connection appends to: each item tells where it belongs.

use std::ops::RangeInclusive;

use super::faults::{Faults, shown};
use super::resp::Reply;

/// One list, from its first item to its deletion.
#[derive(Clone, Debug)]
pub(crate) struct List {
    /// Counts the connection's lists.
    pub(crate) serial: u64,
    /// Items sent.
    pub(crate) sent: u64,
    /// Items acknowledged.
    pub(crate) acked: u64,
    /// It was asked for as a whole.
    pub(crate) read: bool,
    /// Its deletion was sent.
    pub(crate) deleting: bool,
    /// How far its length is from where it ought to be.
    shift: i64,
    /// Lost and repeated items that the lengths have told already.
    told: (u64, u64),
}

/// The text of an item.
pub(crate) fn item(connection: u64, serial: u64, index: u64) -> String {
    format!("{connection}:{serial}:{index}")
}

impl List {
    pub(crate) const fn new(serial: u64) -> Self {
        Self {
            serial,
            sent: 0,
            acked: 0,
            read: false,
            deleting: false,
            shift: 0,
            told: (0, 0),
        }
    }

    /// Counts one item more as sent; returns the length it makes.
    pub(crate) const fn send(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    /// Judges the length that an append has answered.
    pub(crate) fn check_len(&mut self, who: u64, len: u64, said: i64, faults: &mut Faults) {
        let serial = self.serial;
        let ideal = len.cast_signed();
        let off = said - (ideal + self.shift);
        let what = || format!("list {serial} of connection {who} is {said} long instead of {len}");
        if off < 0 {
            self.told.0 += off.unsigned_abs();
            faults.lose(off.unsigned_abs(), what);
        } else if off > 0 {
            self.told.1 += off.unsigned_abs();
            faults.repeat(off.unsigned_abs(), what);
        }
        self.shift = said - ideal;
    }

    /// Judges the whole list, which must hold the first so many items in order.
    pub(crate) fn check_items(
        &mut self,
        who: u64,
        allowed: RangeInclusive<u64>,
        items: &[Reply<'_>],
        faults: &mut Faults,
    ) {
        let serial = self.serial;
        let mut seen = vec![0_u64; usize::try_from(*allowed.end()).unwrap_or_default()];
        let mut last = 0;
        for reply in items {
            let index = match reply {
                Reply::Bulk(Some(text)) => self.index_of(who, text),
                _ => None,
            };
            match index.and_then(|i| seen.get_mut(i)) {
                Some(count) => *count += 1,
                None => {
                    let text = if let Reply::Bulk(Some(text)) = reply {
                        text
                    } else {
                        &b""[..]
                    };
                    faults.mistake(|| {
                        format!("list {serial} of connection {who} holds {}", shown(text))
                    });
                    continue;
                }
            }
            let index = index.unwrap_or_default();
            if index < last {
                faults.mistake(|| {
                    format!(
                        "item {index} of list {serial} of connection {who} is behind item {last}"
                    )
                });
            }
            last = index;
        }
        let must = usize::try_from(*allowed.start()).unwrap_or_default();
        let lost = seen.iter().take(must).filter(|&&count| count == 0).count() as u64;
        let twice: u64 = seen.iter().map(|&count| count.saturating_sub(1)).sum();
        if lost > self.told.0 {
            faults.lose(lost - self.told.0, || {
                format!("{lost} items of list {serial} of connection {who} are missing")
            });
        }
        if twice > self.told.1 {
            faults.repeat(twice - self.told.1, || {
                format!("{twice} items of list {serial} of connection {who} are there twice")
            });
        }
        self.told = (self.told.0.max(lost), self.told.1.max(twice));
    }

    fn index_of(&self, who: u64, text: &[u8]) -> Option<usize> {
        let text = std::str::from_utf8(text).ok()?;
        let index = text.rsplit(':').next()?.parse().ok()?;
        (item(who, self.serial, index) == text)
            .then(|| usize::try_from(index).ok())
            .flatten()
    }
}
