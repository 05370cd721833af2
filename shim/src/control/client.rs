//! The asking side.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{Answer, Error, LINE_MAX, PATIENCE, Request, Role, line};

/// The socket of the container called `name`: the primary's, or else the backup's.
pub fn find(directory: &Path, name: &str) -> Result<PathBuf, Error> {
    [Role::Primary, Role::Backup]
        .map(|role| role.socket(directory, name))
        .into_iter()
        .find(|path| UnixStream::connect(path).is_ok())
        .ok_or_else(|| Error::NotFound {
            name: name.to_owned(),
        })
}

/// All sockets where somebody answers, in the order of their names. No directory, no sockets.
pub fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::socket("look for", directory))?,
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .filter(|path| UnixStream::connect(path).is_ok())
        .collect();
    found.sort();
    Ok(found)
}

/// Asks one thing.
pub fn ask(path: &Path, request: Request) -> Result<Answer, Error> {
    let malformed = |source| Error::Malformed {
        path: path.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(Error::socket("reach", path))?;
    let asked = line::encode(&request).map_err(malformed)?;
    stream
        .set_write_timeout(Some(PATIENCE))
        .map_err(Error::socket("set up", path))?;
    stream
        .write_all(&asked)
        .map_err(Error::socket("write to", path))?;
    stream
        .shutdown(Shutdown::Write)
        .map_err(Error::socket("write to", path))?;
    let mut answer = Vec::new();
    // No limit of time: a switchover answers when it is done.
    BufReader::new(stream.take(LINE_MAX))
        .read_until(b'\n', &mut answer)
        .map_err(Error::socket("read from", path))?;
    line::decode(&answer).map_err(malformed)
}
