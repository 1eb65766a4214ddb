//! Finding and executing a container's program, with errors that say what is wrong with it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::io::Errno;

use super::{Error, Result};
use crate::sys::process::{Strings, execve};

/// Where a program is looked for when the container's environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) struct Program {
    name: String,
    /// What to try, in order.
    candidates: Vec<CString>,
    arguments: Strings,
    environment: Strings,
}

impl Program {
    pub(super) fn new(arguments: &[String], environment: &[String]) -> Result<Program> {
        // A line of its own in a file of users, for whoever copies it there.
        if environment.iter().any(|variable| variable.starts_with("HOME=") && variable.contains(['\n', '\r']))
        {
            return Err(Error::Home);
        }
        let name = arguments.first().filter(|name| !name.is_empty()).ok_or(Error::NoProgram)?;
        let candidates = if name.contains('/') {
            vec![c_string(name.clone(), "an argument")?]
        } else {
            let path = environment.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
            // An empty entry would mean the working directory, which is no place to look for programs.
            let directories =
                path.unwrap_or(DEFAULT_PATH).split(':').filter(|directory| !directory.is_empty());
            let candidates = directories.map(|directory| c_string(format!("{directory}/{name}"), "PATH"));
            candidates.collect::<Result<Vec<_>>>()?
        };
        Ok(Program {
            name: name.clone(),
            candidates,
            arguments: strings(arguments, "an argument")?,
            environment: strings(environment, "an environment variable")?,
        })
    }

    /// Gives the program another environment than it was made with.
    pub(super) fn set_environment(&mut self, environment: &[String]) -> Result<()> {
        self.environment = strings(environment, "an environment variable")?;
        Ok(())
    }

    /// What `execute` would fail with, as far as can be told without privileges dropped: nothing, in most cases.
    pub(super) fn find(&self) -> Result<()> {
        let mut denied = false;
        for candidate in &self.candidates {
            let path = Path::new(std::ffi::OsStr::from_bytes(candidate.as_bytes()));
            match fs::metadata(path) {
                Ok(found) if found.is_dir() => denied = true,
                Ok(found) if found.permissions().mode() & 0o111 != 0 => return Ok(()),
                Ok(_) => denied = true,
                Err(error) if self.is_searched() || error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(source) => return Err(Error::Exec { program: self.name.clone(), source }),
            }
        }
        match (denied, self.is_searched()) {
            (true, _) => Err(self.failed(Errno::ACCESS)),
            (false, true) => Err(Error::NotInPath { program: self.name.clone() }),
            (false, false) => Ok(()),
        }
    }

    /// Returns only when nothing could be executed.
    pub(super) fn execute(&self) -> Error {
        let mut denied = None;
        for candidate in &self.candidates {
            match execve(candidate, &self.arguments, &self.environment) {
                Errno::NOENT if self.exists(candidate) => {
                    return Error::Interpreter { program: self.name.clone() };
                }
                Errno::NOENT | Errno::NOTDIR if self.is_searched() => {}
                // As in a shell: what may not be executed is passed over, and told if nothing better comes.
                Errno::ACCESS if self.is_searched() => denied = Some(Errno::ACCESS),
                errno => return self.failed(errno),
            }
        }
        match denied {
            Some(errno) => self.failed(errno),
            None => Error::NotInPath { program: self.name.clone() },
        }
    }

    fn is_searched(&self) -> bool {
        !self.name.contains('/')
    }

    fn exists(&self, candidate: &CString) -> bool {
        candidate.to_str().is_ok_and(|path| fs::metadata(Path::new(path)).is_ok_and(|found| found.is_file()))
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::Exec { program: self.name.clone(), source: io::Error::from(errno) }
    }
}

fn strings(list: &[String], what: &'static str) -> Result<Strings> {
    let strings = list.iter().map(|string| c_string(string.clone(), what));
    Ok(Strings::new(strings.collect::<Result<Vec<_>>>()?))
}

fn c_string(string: String, what: &'static str) -> Result<CString> {
    CString::new(string).map_err(|_| Error::NullByte { what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(program: &str, environment: &[&str]) -> Vec<String> {
        let environment: Vec<String> = environment.iter().map(|&variable| variable.to_owned()).collect();
        let program = Program::new(&[program.to_owned()], &environment).unwrap();
        program.candidates.iter().map(|candidate| candidate.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn names_are_looked_for_in_the_containers_path() {
        assert_eq!(candidates("sh", &["A=b", "PATH=/a:/b"]), ["/a/sh", "/b/sh"]);
        assert_eq!(candidates("sh", &["PATH=:/a::"]), ["/a/sh"]);
        assert_eq!(candidates("sh", &[]).len(), 6);
        assert_eq!(candidates("./sh", &["PATH=/a"]), ["./sh"]);
    }

    #[test]
    fn impossible_strings_are_refused() {
        let strings = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        assert!(matches!(Program::new(&[], &[]), Err(Error::NoProgram)));
        assert!(matches!(Program::new(&strings(&[""]), &[]), Err(Error::NoProgram)));
        assert!(matches!(Program::new(&strings(&["a", "b\0"]), &[]), Err(Error::NullByte { .. })));
        assert!(matches!(Program::new(&strings(&["a"]), &strings(&["A=\0"])), Err(Error::NullByte { .. })));
        let home = strings(&["A=b\nc", "HOME=/\nroot2:x:0:0::/:/bin/sh"]);
        assert!(matches!(Program::new(&strings(&["a"]), &home), Err(Error::Home)));
    }

    #[test]
    fn failures_to_execute_are_told_apart() {
        use crate::container::ExecFailure;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("plain"), "text").unwrap();
        fs::write(path("script"), "#!/no/such/interpreter\n").unwrap();
        rustix::fs::chmod(path("script").as_str(), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        let outcome = |program: &str, environment: &[String]| {
            let error = Program::new(&[program.to_owned()], environment).unwrap().execute();
            (error.exec_failure(), error.to_string())
        };
        assert_eq!(outcome(&path("none"), &[]).0, Some(ExecFailure::NotFound));
        assert_eq!(outcome(&path("plain"), &[]).0, Some(ExecFailure::NotExecutable));
        assert_eq!(outcome(&path("plain/below"), &[]).0, Some(ExecFailure::NotFound));
        let (failure, text) = outcome(&path("script"), &[]);
        assert_eq!(failure, Some(ExecFailure::NotFound));
        assert!(text.contains("interpreter"), "{text}");
        let search = [format!("PATH={}", dir.path().display())];
        assert_eq!(
            outcome("none", &search),
            (Some(ExecFailure::NotFound), "exec: \"none\": executable file not found in $PATH".to_owned())
        );
        assert_eq!(outcome("plain", &search).0, Some(ExecFailure::NotExecutable));
    }
}
