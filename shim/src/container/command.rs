//! Finding the program and turning it into what execve takes, before anything is forked.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::{Error, Program};

/// What execve takes.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) path: PathBuf,
    pub(super) file: CString,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
}

impl Image {
    pub(super) fn resolve(program: &Program) -> Result<Self, Error> {
        let name = program.command.first().filter(|name| !name.is_empty());
        let path = find(
            name.ok_or(Error::NoCommand)?,
            env::var_os("PATH").as_deref(),
        )?;
        let environment = match &program.environment {
            Some(given) => given
                .iter()
                .map(|(key, value)| variable(key, value))
                .collect(),
            None => env::vars_os()
                .map(|(key, value)| variable(&key, &value))
                .collect(),
        };
        let environment: Result<_, _> = environment;
        Ok(Self {
            file: terminated(path.as_os_str())?,
            arguments: program
                .command
                .iter()
                .map(|a| terminated(a))
                .collect::<Result<_, _>>()?,
            environment: environment?,
            path,
        })
    }
}

fn terminated(text: &OsStr) -> Result<CString, Error> {
    CString::new(text.as_bytes()).map_err(|_| Error::ZeroByte(text.to_owned()))
}

fn variable(key: &OsStr, value: &OsStr) -> Result<CString, Error> {
    let mut text = OsString::from(key);
    text.push("=");
    text.push(value);
    terminated(&text)
}

/// The file that a shell would run for `name`.
fn find(name: &OsStr, search: Option<&OsStr>) -> Result<PathBuf, Error> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(Error::Exec { path, source }),
        };
    }
    let search = search.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
    env::split_paths(search)
        .map(|directory| directory.join(name))
        .find(|path| executable(path).is_ok())
        .ok_or_else(|| Error::CommandNotFound(name.to_owned()))
}

fn executable(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    Ok(access(path, AccessFlags::X_OK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_as_a_shell_does() {
        let search = Some(OsStr::new("/nonexistent:/bin:/usr/bin"));
        assert_eq!(
            find(OsStr::new("sh"), search).unwrap(),
            Path::new("/bin/sh")
        );
        assert_eq!(
            find(OsStr::new("/bin/sh"), None).unwrap(),
            Path::new("/bin/sh")
        );
        let missing = find(OsStr::new("no-such-program"), search).unwrap_err();
        assert!(missing.to_string().contains("no-such-program"), "{missing}");
        let directory = find(OsStr::new("/tmp"), None).unwrap_err();
        assert!(
            directory
                .to_string()
                .starts_with("cannot execute /tmp: Is a directory")
        );
        assert!(matches!(
            find(OsStr::new("/etc/passwd"), None),
            Err(Error::Exec { .. })
        ));
    }

    #[test]
    fn zero_bytes_and_empty_commands_are_refused() {
        let program = |command: &[&str]| Program::new(command.iter().map(OsString::from).collect());
        assert!(matches!(
            Image::resolve(&program(&[])),
            Err(Error::NoCommand)
        ));
        assert!(matches!(
            Image::resolve(&program(&[""])),
            Err(Error::NoCommand)
        ));
        assert!(matches!(
            Image::resolve(&program(&["sh", "a\0b"])),
            Err(Error::ZeroByte(_))
        ));
    }
}
