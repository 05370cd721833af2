//! The answering side: a thread that accepts, and one for each request that is being answered.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Answer, Error, LINE_MAX, PATIENCE, Request, Role, Status, line};

/// Requests that are answered at once; more are turned away.
const AT_ONCE: usize = 8;

/// Whoever knows the answers. Called from threads of the server's.
pub trait Handler: Send + Sync + 'static {
    /// How the container is now.
    fn status(&self) -> Status;

    /// Hands over to the backup and returns when that is done; the error is one sentence.
    fn switchover(&self) -> Result<(), String>;
}

/// A control socket that answers. Dropping it removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Closing it ends the accepting thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens for a container; [`Error::Taken`] if somebody answers under that name already.
    pub fn bind(
        directory: &Path,
        name: &str,
        role: Role,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, Error> {
        let path = role.socket(directory, name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(Error::socket("make the directory of", directory))?;
        if UnixStream::connect(&path).is_ok() {
            return Err(Error::Taken {
                name: name.to_owned(),
            });
        }
        // What a killed process left behind.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::socket("replace", &path)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(Error::socket("listen on", &path))?;
        let prepared = fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .and_then(|()| listener.set_nonblocking(true))
            .and_then(|()| Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?))
            .and_then(|(stopped, stop)| {
                let accept = move || serve(&listener, &stopped, &handler);
                let thread = thread::Builder::new()
                    .name("control".into())
                    .spawn(accept)?;
                Ok((stop, thread))
            });
        match prepared {
            Ok((stop, thread)) => Ok(Self {
                path,
                stop: Some(stop),
                thread: Some(thread),
            }),
            Err(error) => {
                // The first error is the one to tell.
                let _ = fs::remove_file(&path);
                Err(Error::socket("set up", &path)(error))
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to say when it panicked.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, stopped: &OwnedFd, handler: &Arc<dyn Handler>) {
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        let mut wanted =
            [stopped.as_fd(), listener.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut wanted, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return tracing::warn!(%error, "the control socket has ended"),
        }
        if wanted[0].any().unwrap_or(true) {
            return finish(&busy);
        }
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        if busy.fetch_add(1, Ordering::AcqRel) >= AT_ONCE {
            busy.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (handler, counter) = (Arc::clone(handler), Arc::clone(&busy));
        let work = move || {
            if let Err(error) = answer(stream, handler.as_ref()) {
                tracing::debug!(%error, "a control connection ended early");
            }
            counter.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = thread::Builder::new()
            .name("control-answer".into())
            .spawn(work)
        {
            busy.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(%error, "a control request could not be answered");
        }
    }
}

/// Waits until the answers under way are given: one may say that this very end was asked for.
fn finish(busy: &AtomicUsize) {
    let end = Instant::now() + PATIENCE;
    while busy.load(Ordering::Acquire) > 0 && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
}

fn answer(mut stream: UnixStream, handler: &dyn Handler) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut asked = Vec::new();
    BufReader::new((&stream).take(LINE_MAX)).read_until(b'\n', &mut asked)?;
    if asked.is_empty() {
        // Somebody looked whether we are here.
        return Ok(());
    }
    let answer = match line::decode(&asked) {
        Ok(Request::Status) => Answer::Status(Box::new(handler.status())),
        Ok(Request::Switchover) => handler
            .switchover()
            .map_or_else(Answer::Refused, |()| Answer::Done),
        Err(error) => Answer::Refused(format!("the request makes no sense: {error}")),
    };
    stream.write_all(&line::encode(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::super::{State, ask, find, list};
    use super::*;

    struct Fixed;

    impl Handler for Fixed {
        fn status(&self) -> Status {
            Status {
                name: "redis".into(),
                role: Role::Primary,
                mode: "hybrid".into(),
                epoch: 7,
                generation: 1,
                log_lag_bytes: 2,
                log_records: 10,
                log_bytes: 11,
                replay_ms_predicted: 3,
                pause_us_p50: 4,
                pause_us_p99: 5,
                backup: "10.0.0.3:7000".into(),
                state: State::Protected,
                address: "10.0.0.10/24".into(),
                pid: 9,
            }
        }

        fn switchover(&self) -> Result<(), String> {
            Err("the backup has no committed checkpoint yet".into())
        }
    }

    fn bind(directory: &Path) -> Result<Server, Error> {
        Server::bind(directory, "redis", Role::Primary, Arc::new(Fixed))
    }

    #[test]
    fn questions_get_answers_and_the_socket_goes_with_its_server() {
        let directory = tempfile::tempdir().unwrap();
        let server = bind(directory.path()).unwrap();
        let path = find(directory.path(), "redis").unwrap();
        assert_eq!(path, server.path());
        assert_eq!(
            ask(&path, Request::Status).unwrap(),
            Answer::Status(Box::new(Fixed.status()))
        );
        let refused = Answer::Refused("the backup has no committed checkpoint yet".into());
        assert_eq!(ask(&path, Request::Switchover).unwrap(), refused);
        assert_eq!(list(directory.path()).unwrap(), [path]);
        drop(server);
        assert!(matches!(
            find(directory.path(), "redis"),
            Err(Error::NotFound { .. })
        ));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_is_taken_while_somebody_answers_and_free_when_he_died() {
        let directory = tempfile::tempdir().unwrap();
        let server = bind(directory.path()).unwrap();
        assert!(matches!(bind(directory.path()), Err(Error::Taken { .. })));
        let path = server.path().to_owned();
        drop(server);
        // A socket file without a listener is what SIGKILL leaves.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        bind(directory.path()).unwrap();
    }

    #[test]
    fn nonsense_is_answered_and_long_lines_end() {
        let directory = tempfile::tempdir().unwrap();
        let server = bind(directory.path()).unwrap();
        let mut stream = UnixStream::connect(server.path()).unwrap();
        stream.write_all(b"{\"rm\": \"-rf\"}\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains("makes no sense"), "{text}");
        let mut stream = UnixStream::connect(server.path()).unwrap();
        let long = vec![b'['; (LINE_MAX + 4096) as usize];
        // The server may hang up before it has all.
        let _ = stream.write_all(&long);
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        assert!(ask(server.path(), Request::Status).is_ok());
    }
}
