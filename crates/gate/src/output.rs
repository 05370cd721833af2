//! The output of one connection between the application's write and the peer's acknowledgement: a pure
//! state machine over stream positions.
//!
//! ```text
//! 0 … trimmed … acknowledged … sent … released … written
//!      room again   peer has it   kernel has it   log has it   application wrote it
//! ```
//!
//! After a takeover `sent` may lie beyond `written`: the peer has bytes of a write whose record was lost.
//! The application makes that write again, and nothing of it is sent until it goes beyond `sent`.

/// How the application ended its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It shut its sending side and may go on reading.
    Shutdown,
    /// It closed the last descriptor.
    Close,
    /// It closed with a linger time of zero: what is not sent is thrown away.
    Reset,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait for a release, for room in the kernel, or for the peer.
    Wait,
    /// Send these bytes, as many as the kernel takes, and tell [`OutputState::sent`].
    Send {
        /// Position of the first byte.
        from: u64,
        /// Position behind the last.
        to: u64,
    },
    /// Everything was sent: shut the sending side, and tell [`OutputState::finished`].
    Finish,
    /// Reset the connection and give it up.
    Reset,
    /// The peer has everything and the application is gone: give it up.
    Free,
}

/// The application's memory contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// More released than written.
    #[error("released up to {released}, but only {written} bytes were written")]
    Unwritten {
        /// The position to be released.
        released: u64,
        /// What the buffer says was written.
        written: u64,
    },
    /// Positions went back.
    #[error("released up to {released} after {before}")]
    Backwards {
        /// The position to be released.
        released: u64,
        /// What had been released.
        before: u64,
    },
    /// Released bytes that the buffer cannot hold.
    #[error("{len} bytes are released and not acknowledged, more than the buffer's {limit}")]
    Overrun {
        /// Bytes in between.
        len: u64,
        /// The buffer's length.
        limit: u64,
    },
    /// Bytes after the end.
    #[error("released up to {released} behind the end at {end}")]
    AfterEnd {
        /// The position to be released.
        released: u64,
        /// Where the stream ended.
        end: u64,
    },
}

/// One connection's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OutputState {
    acknowledged: u64,
    sent: u64,
    released: u64,
    end: Option<End>,
    finished: bool,
    finish_acknowledged: bool,
    full: bool,
    failed: bool,
}

impl OutputState {
    /// A connection of which the peer has `acknowledged` bytes, the kernel `sent` and the log `released`:
    /// all zero for a new one.
    #[must_use]
    pub const fn resume(acknowledged: u64, sent: u64, released: u64) -> Self {
        Self {
            acknowledged,
            sent,
            released,
            end: None,
            finished: false,
            finish_acknowledged: false,
            full: false,
            failed: false,
        }
    }

    /// The log up to stream position `to` is acknowledged, and `end` if the application's end is part of
    /// it. `written` and `limit` (the buffer's length) are checked against: the memory is the container's.
    ///
    /// # Errors
    /// [`OutputError`] if the positions cannot be; nothing has changed then.
    pub fn release(
        &mut self,
        to: u64,
        written: u64,
        limit: u64,
        end: Option<End>,
    ) -> Result<(), OutputError> {
        if to > written {
            return Err(OutputError::Unwritten {
                released: to,
                written,
            });
        }
        if to < self.released {
            return Err(OutputError::Backwards {
                released: to,
                before: self.released,
            });
        }
        if to.saturating_sub(self.acknowledged) > limit {
            return Err(OutputError::Overrun {
                len: to - self.acknowledged,
                limit,
            });
        }
        if self.end.is_some() && to > self.released {
            return Err(OutputError::AfterEnd {
                released: to,
                end: self.released,
            });
        }
        self.released = to;
        self.end = match (self.end, end) {
            (old, None) => old,
            (Some(End::Close | End::Reset), Some(End::Shutdown)) => self.end,
            (_, new) => new,
        };
        Ok(())
    }

    /// The kernel took `bytes` of what [`Action::Send`] named.
    pub fn sent(&mut self, bytes: u64) {
        self.sent = self
            .sent
            .saturating_add(bytes)
            .min(self.released.max(self.sent));
    }

    /// The kernel takes no more until [`OutputState::writable`].
    pub const fn full(&mut self) {
        self.full = true;
    }

    /// The kernel takes bytes again.
    pub const fn writable(&mut self) {
        self.full = false;
    }

    /// The sending side was shut: a FIN follows the last byte.
    pub const fn finished(&mut self) {
        self.finished = true;
    }

    /// The connection is gone in the kernel (reset, timed out): released bytes count as acknowledged.
    pub const fn fail(&mut self) {
        self.failed = true;
    }

    /// The peer has everything up to stream position `position`; a FIN counts as one byte behind the end.
    pub fn acknowledge(&mut self, position: u64) {
        let end = self.sent + u64::from(self.finished);
        if position > end {
            return;
        }
        self.acknowledged = self.acknowledged.max(position.min(self.sent));
        self.finish_acknowledged |= self.finished && position == end;
    }

    /// Up to where the buffer's bytes are no longer needed.
    #[must_use]
    pub fn trim_to(&self) -> u64 {
        if self.failed {
            self.released
        } else {
            self.acknowledged.min(self.released)
        }
    }

    /// What to do next.
    #[must_use]
    pub fn next(&self) -> Action {
        let gone = matches!(self.end, Some(End::Close | End::Reset));
        match self.end {
            _ if self.failed => {
                if gone {
                    Action::Free
                } else {
                    Action::Wait
                }
            }
            Some(End::Reset) => Action::Reset,
            _ if self.sent < self.released => {
                if self.full {
                    Action::Wait
                } else {
                    Action::Send {
                        from: self.sent,
                        to: self.released,
                    }
                }
            }
            // Swallowed bytes that the application never wrote again: it ended elsewhere than before.
            Some(_) if self.sent > self.released => Action::Reset,
            Some(_) if !self.finished => Action::Finish,
            Some(End::Close) if self.finish_acknowledged => Action::Free,
            _ => Action::Wait,
        }
    }

    /// Bytes the peer is known to have.
    #[must_use]
    pub const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Bytes the kernel was given, or the peer had before.
    #[must_use]
    pub const fn sent_to(&self) -> u64 {
        self.sent
    }

    /// Bytes the log covers.
    #[must_use]
    pub const fn released(&self) -> u64 {
        self.released
    }

    /// A FIN was given to the kernel.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.finished
    }

    /// The kernel's connection is gone.
    #[must_use]
    pub const fn is_failed(&self) -> bool {
        self.failed
    }

    /// Nothing is on its way: neither bytes nor an end that the peer has not acknowledged.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.failed
            || self.acknowledged >= self.released
                && self.finished == self.finish_acknowledged
                && self.next() == Action::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u64 = 64;

    /// Drives a state against a model peer. Returns what the peer got and whether the end came.
    struct Bed {
        state: OutputState,
        written: u64,
        kernel: Vec<u64>,
        fin: bool,
        freed: bool,
    }

    impl Bed {
        fn new() -> Self {
            Self {
                state: OutputState::default(),
                written: 0,
                kernel: Vec::new(),
                fin: false,
                freed: false,
            }
        }

        fn step(&mut self, takes: u64) {
            match self.state.next() {
                Action::Send { from, to } => {
                    assert!(to <= self.state.released(), "sent what was not released");
                    let n = takes.min(to - from);
                    self.kernel.extend(from..from + n);
                    self.state.sent(n);
                    if n < to - from {
                        self.state.full();
                    }
                }
                Action::Finish => {
                    assert!(!self.fin, "two FINs");
                    assert_eq!(
                        self.kernel.len() as u64,
                        self.written,
                        "FIN before the last byte"
                    );
                    self.fin = true;
                    self.state.finished();
                }
                Action::Free => self.freed = true,
                Action::Reset => panic!("reset without cause"),
                Action::Wait => self.state.writable(),
            }
        }
    }

    proptest! {
        #[test]
        fn every_byte_goes_once_in_order_and_the_end_last(
            steps in proptest::collection::vec((0u64..20, 0u64..20, 0u64..30, 0u64..200), 1..200), shut_first: bool) {
            let mut bed = Bed::new();
            let mut drained = 0;
            for (write, release, takes, ack) in steps {
                let room = LIMIT - (bed.written - bed.state.trim_to());
                bed.written += write.min(room);
                drained = (drained + release).min(bed.written);
                bed.state.release(drained, bed.written, LIMIT, None).unwrap();
                bed.step(takes);
                let has = bed.kernel.len() as u64;
                bed.state.acknowledge(ack.min(has));
                prop_assert!(bed.state.trim_to() <= has && has <= bed.state.released());
                prop_assert!(!bed.freed && !bed.fin);
            }
            let end = if shut_first { End::Shutdown } else { End::Close };
            bed.state.release(bed.written, bed.written, LIMIT, Some(end)).unwrap();
            for _ in 0..500 {
                bed.step(7);
                bed.state.acknowledge(bed.kernel.len() as u64);
            }
            prop_assert!(bed.fin && !bed.freed, "the slot is kept until the FIN is acknowledged");
            bed.state.acknowledge(bed.written + 1);
            if shut_first {
                prop_assert_eq!(bed.state.next(), Action::Wait);
                bed.state.release(bed.written, bed.written, LIMIT, Some(End::Close)).unwrap();
            }
            bed.step(0);
            prop_assert!(bed.freed);
            prop_assert_eq!(bed.kernel, (0..bed.written).collect::<Vec<_>>());
        }
    }

    #[test]
    fn contradictions_are_refused_and_change_nothing() {
        let mut s = OutputState::resume(10, 20, 20);
        let before = s;
        assert_eq!(
            s.release(30, 29, LIMIT, None),
            Err(OutputError::Unwritten {
                released: 30,
                written: 29
            })
        );
        assert_eq!(
            s.release(19, 29, LIMIT, None),
            Err(OutputError::Backwards {
                released: 19,
                before: 20
            })
        );
        assert_eq!(
            s.release(75, 99, LIMIT, None),
            Err(OutputError::Overrun {
                len: 65,
                limit: LIMIT
            })
        );
        assert_eq!(s, before);
        s.release(20, 20, LIMIT, Some(End::Shutdown)).unwrap();
        assert_eq!(
            s.release(21, 21, LIMIT, None),
            Err(OutputError::AfterEnd {
                released: 21,
                end: 20
            })
        );
    }

    #[test]
    fn bytes_the_peer_has_already_are_swallowed() {
        let mut s = OutputState::resume(130, 130, 100);
        assert_eq!(s.next(), Action::Wait);
        assert_eq!(s.trim_to(), 100);
        s.release(120, 120, LIMIT, None).unwrap();
        assert_eq!((s.next(), s.trim_to()), (Action::Wait, 120));
        s.release(140, 140, LIMIT, None).unwrap();
        assert_eq!(
            (s.next(), s.trim_to()),
            (Action::Send { from: 130, to: 140 }, 130)
        );
    }

    #[test]
    fn an_end_before_swallowed_bytes_is_a_reset() {
        let mut s = OutputState::resume(130, 130, 100);
        s.release(110, 110, LIMIT, Some(End::Close)).unwrap();
        assert_eq!(s.next(), Action::Reset);
    }

    #[test]
    fn a_failed_connection_swallows_and_is_freed_on_close() {
        let mut s = OutputState::default();
        s.release(10, 10, LIMIT, None).unwrap();
        s.fail();
        assert_eq!((s.next(), s.trim_to()), (Action::Wait, 10));
        s.release(50, 50, 40, Some(End::Close)).unwrap_err();
        s.release(20, 20, LIMIT, Some(End::Close)).unwrap();
        assert_eq!((s.next(), s.trim_to()), (Action::Free, 20));
    }

    #[test]
    fn a_lingering_close_of_zero_resets_at_once() {
        let mut s = OutputState::default();
        s.release(10, 10, LIMIT, Some(End::Reset)).unwrap();
        assert_eq!(s.next(), Action::Reset);
    }

    #[test]
    fn acknowledgements_of_what_was_never_sent_are_ignored() {
        let mut s = OutputState::default();
        s.release(10, 10, LIMIT, None).unwrap();
        s.sent(5);
        s.acknowledge(6);
        assert_eq!(s.acknowledged(), 0);
        s.acknowledge(5);
        assert_eq!(s.acknowledged(), 5);
        assert!(!s.is_settled());
    }
}
