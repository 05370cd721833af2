//! One message on the control socket: a line of JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The line that says `message`.
pub(crate) fn encode<T: Serialize>(message: &T) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The message that `line` says, with or without its end.
pub(crate) fn decode<T: DeserializeOwned>(line: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(line)
}
