//! `understudy keygen`: the keys that primary and backup share.

use crate::arguments::KeygenArguments;
use crate::failure::Failure;

pub(crate) fn run(arguments: &KeygenArguments) -> Result<i32, Failure> {
    stream::keys::generate(&arguments.directory)?;
    println!(
        "made the keys in {0}: copy the directory to the other host, and name it there and here with --tls",
        arguments.directory.display()
    );
    Ok(0)
}
