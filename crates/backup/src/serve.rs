//! One loop for each kind of connection, on a thread of its own.

use core::ops::ControlFlow;
use std::sync::Arc;

use eventlog::codec;
use eventlog::frame::Kind;
use stream::checkpoint::{self, Begin, Commit, Part};
use stream::connect::Connection;
use stream::control::{self, Request, Response};
use stream::hello::Channel;
use stream::lease::Heartbeat;
use stream::log::{self, Entry};
use stream::transport::{Receiver, Sender};
use stream::{Clocks, Nanos, StreamError, heartbeat};

use crate::guard::{Event, Guard, ServeError};
use crate::store::{Image, Staging, StoreError};

/// Priority of the threads that answer heartbeats, among real-time ones.
const PRIORITY: i32 = 10;

/// Serves a connection until it ends. A connection that the peer closed has ended well.
pub(crate) fn serve<I: Image>(
    guard: &Arc<Guard<I>>,
    channel: Channel,
    connection: Connection,
    image_cap: u64,
) -> Result<(), ServeError> {
    let served = match channel {
        Channel::Log => log(guard, connection),
        Channel::Heartbeat => heartbeats(guard, connection),
        Channel::Checkpoint => checkpoints(guard, connection, image_cap),
        Channel::Control => control(guard, connection),
    };
    match served {
        Err(ServeError::Stream(StreamError::Closed { .. })) => Ok(()),
        other => other,
    }
}

fn log<I: Image>(guard: &Arc<Guard<I>>, connection: Connection) -> Result<(), ServeError> {
    let (acks, mut receiver) = log::backup(connection);
    guard.acknowledge_to(acks);
    loop {
        guard.wait_for_room();
        match receiver.recv(None)? {
            Some(Entry::Records {
                stream,
                position,
                bytes,
            }) => guard.append(stream, position, bytes)?,
            Some(Entry::Drain(number)) => guard.drained(number)?,
            None => {}
        }
    }
}

fn heartbeats<I: Image>(guard: &Arc<Guard<I>>, connection: Connection) -> Result<(), ServeError> {
    let _priority = sys::process::RealTime::enter(PRIORITY)
        .inspect_err(|e| tracing::warn!("heartbeats are answered without real-time priority: {e}"));
    let Connection {
        sender,
        mut receiver,
        ..
    } = connection;
    loop {
        let wait = guard.watch(Nanos::now(), false);
        if let Err(e) = heartbeat(guard, &sender, &mut receiver, wait) {
            guard.watch(Nanos::now(), true);
            return Err(e);
        }
    }
}

fn heartbeat<I: Image>(
    guard: &Arc<Guard<I>>,
    sender: &Sender,
    receiver: &mut Receiver,
    wait: core::time::Duration,
) -> Result<(), ServeError> {
    let peer = receiver.peer();
    let Some(frame) = receiver.recv(Some(wait))? else {
        return Ok(());
    };
    if frame.header.kind != Kind::Heartbeat {
        let doing = "waiting for heartbeats";
        return Err(StreamError::Unexpected {
            doing,
            peer,
            found: frame.header.kind,
        }
        .into());
    }
    let heard: Heartbeat = codec::decode(frame.body)?;
    let (answer, false_alarm) = guard.heartbeat(&heard, Clocks::now(), Nanos::now());
    sender.message(&heartbeat::header(answer.generation, answer.seq), &answer)?;
    if false_alarm {
        guard.tell(Event::FalseAlarm(Arc::clone(guard)));
    }
    Ok(())
}

fn checkpoints<I: Image>(
    guard: &Arc<Guard<I>>,
    connection: Connection,
    image_cap: u64,
) -> Result<(), ServeError> {
    let Connection {
        sender,
        mut receiver,
        welcome,
    } = connection;
    let mut staging = Staging::new(image_cap);
    loop {
        let Some(frame) = receiver.recv(None)? else {
            continue;
        };
        let part = checkpoint::decode(&frame)?;
        let (id, taken) = match part {
            Part::Begin(begin) => (
                begin.id,
                begin_one(guard, &mut staging, begin).map(|()| None),
            ),
            Part::Chunk { offset, bytes } => {
                // What is not under way was refused already, and its primary may not know yet.
                let Some(id) = staging.under_way().map(|b| b.id) else {
                    continue;
                };
                (id, staging.chunk(offset, bytes).map(|()| None))
            }
            Part::Files { changes, len } => match staging.under_way().map(|b| b.id) {
                Some(id) => (id, staging.files(changes, len).map(|()| None)),
                None => {
                    if let Err(error) = guard.copy_files(&changes) {
                        // The checkpoint that follows is refused for it.
                        tracing::warn!(name = guard.hello().name, %error, "the container's files cannot be copied");
                    }
                    continue;
                }
            },
            Part::Finish(_) if staging.under_way().is_none() => continue,
            Part::Finish(finish) => (
                finish.id,
                staging
                    .finish(&finish)
                    .and_then(|w| guard.commit(w).map(Some)),
            ),
        };
        let commit = match taken {
            Ok(None) => continue,
            Ok(Some(true)) => Commit::Done { id },
            Ok(Some(false)) => Commit::Refused {
                id,
                reason: "a takeover is under way, or the log ended before its cut".to_owned(),
            },
            Err(e) => Commit::Refused {
                id,
                reason: e.to_string(),
            },
        };
        if matches!(commit, Commit::Refused { .. }) {
            guard.await_cut(staging.under_way())?;
        }
        checkpoint::answer(&sender, welcome.generation, &commit)?;
    }
}

fn begin_one<I: Image>(
    guard: &Arc<Guard<I>>,
    staging: &mut Staging,
    begin: Begin,
) -> Result<(), StoreError> {
    staging.begin(begin)?;
    guard
        .await_cut(staging.under_way())
        .inspect_err(|_| staging.abandon())
}

fn control<I: Image>(guard: &Arc<Guard<I>>, connection: Connection) -> Result<(), ServeError> {
    let Connection {
        sender,
        mut receiver,
        welcome,
    } = connection;
    loop {
        let Some(request) = control::recv::<Request>(&mut receiver, None)? else {
            continue;
        };
        let (response, next) = match request {
            Request::Status => (Response::Status(guard.held()), ControlFlow::Continue(())),
            Request::Switchover => {
                guard.yielded(Nanos::now());
                (Response::Done, ControlFlow::Continue(()))
            }
            Request::Ended { status } => {
                guard.ended();
                (Response::Done, ControlFlow::Break(status))
            }
        };
        control::send(&sender, welcome.generation, &response)?;
        if let ControlFlow::Break(status) = next {
            guard.tell(Event::Ended(Arc::clone(guard), status));
            guard.disconnect();
            return Ok(());
        }
    }
}
