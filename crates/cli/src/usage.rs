//! What the parser finds wrong with a command line, as one sentence.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Whether this is no error but an answer: help or the version.
pub(crate) fn is_answer(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    )
}

/// The sentence.
pub(crate) fn sentence(error: &Error) -> String {
    let argument = || text(error, ContextKind::InvalidArg);
    let value = || text(error, ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let name = text(error, ContextKind::InvalidSubcommand);
            format!("there is no command {name:?}: `understudy help` lists them")
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "no command is given: `understudy help` lists them".into()
        }
        ErrorKind::UnknownArgument => unknown(&argument()),
        ErrorKind::MissingRequiredArgument => {
            format!("{} is missing: see `understudy help`", argument())
        }
        ErrorKind::ArgumentConflict => {
            let other = text(error, ContextKind::PriorArg);
            if argument() == other {
                format!("{} is given twice", argument())
            } else {
                format!(
                    "{} and {other} exclude each other: give one of them",
                    argument()
                )
            }
        }
        ErrorKind::InvalidValue if value().is_empty() => {
            format!("{} needs a value", argument())
        }
        ErrorKind::InvalidValue => {
            let known = text(error, ContextKind::ValidValue);
            format!(
                "{:?} is not a value of {}: choose one of {known}",
                value(),
                argument()
            )
        }
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string);
            let reason = reason.unwrap_or_else(|| "it makes no sense".into());
            format!("{:?} is not a value of {}: {reason}", value(), argument())
        }
        _ => first_line(error),
    }
}

fn unknown(argument: &str) -> String {
    if argument.starts_with('-') {
        format!("there is no flag {argument:?} here: see `understudy help`")
    } else {
        format!("{argument:?} is out of place: a command to run comes after `--`")
    }
}

fn text(error: &Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(list)) => list.join(", "),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// What the parser itself would say, without its ornaments.
fn first_line(error: &Error) -> String {
    let text = error.to_string();
    let line = text
        .lines()
        .next()
        .unwrap_or("the command line makes no sense");
    line.trim_start_matches("error: ").to_owned()
}
