//! `understudy switchover`: hand a container over to its backup.

use shim::control::{self, Answer, Request};

use crate::arguments::SwitchoverArguments;
use crate::failure::Failure;

pub(crate) fn run(arguments: &SwitchoverArguments) -> Result<i32, Failure> {
    let path = control::find(&control::directory(), &arguments.name)?;
    match control::ask(&path, Request::Switchover)? {
        Answer::Done => Ok(0),
        Answer::Refused(reason) => Err(Failure::new(reason)),
        Answer::Status(_) => Err(Failure::new(format!(
            "{} does not switch over",
            path.display()
        ))),
    }
}
