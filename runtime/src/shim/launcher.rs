//! Starts monitors, one after the other, from a thread with a table of descriptors of its own.
//!
//! A program that is started gets a copy of its parent's descriptors, and closes them one by one when it is executed. An agent
//! has a dozen or two for each pod: beside 550 pods a start took 2 ms for that alone. The thread's table has next to none.
//!
//! Always true: the thread uses no descriptor of the rest of the process, and the rest none of the thread's. So it can't wake
//! whoever sleeps by a descriptor, such as an asynchronous runtime: who asks waits, for as long as an exec takes.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use rustix::net::SocketFlags;

use crate::executable::ReadOnly;
use crate::sys;

/// Clients that may be on their way to a monitor that has not begun to listen yet.
const BACKLOG: i32 = 128;

/// A monitor to be started.
#[derive(Debug)]
pub struct Start {
    /// What follows `sampan-runtime shim`.
    pub arguments: Vec<OsString>,
    /// Where it listens. There is no such file yet, and its folder may have a name of any length.
    pub socket: PathBuf,
    /// The file that gets what it says.
    pub log: PathBuf,
}

/// The thread, for as long as there is somebody who can ask it.
#[derive(Debug)]
pub struct Launcher {
    jobs: Sender<Job>,
}

type Job = (Start, SyncSender<io::Result<i32>>);

impl Launcher {
    /// Starts the thread. The file that is at `runtime` now is what will be executed, from a read-only mount.
    ///
    /// # Errors
    /// No such file, or no right to mount.
    pub fn open(runtime: &Path) -> io::Result<Launcher> {
        let (jobs, asked) = channel();
        let open = |runtime: PathBuf| ReadOnly::open(&runtime).map_err(io::Error::other);
        sys::descriptor::thread_apart("launcher", runtime.to_owned(), open, asked, serve)?;
        Ok(Launcher { jobs })
    }

    /// Starts a monitor and tells its pid. It is a child of this process, which is to wait for it.
    ///
    /// # Errors
    /// The socket or the log can't be made, or the monitor not executed.
    pub fn start(&self, start: Start) -> io::Result<i32> {
        let (answer, answered) = sync_channel(1);
        let gone = || io::Error::other("the thread that starts monitors has ended");
        self.jobs.send((start, answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }
}

fn serve(executable: ReadOnly, jobs: Receiver<Job>) {
    for (start, answer) in jobs {
        // Nobody has stopped waiting, as nobody can.
        drop(answer.send(launch(&executable, &start)));
    }
}

#[allow(clippy::zombie_processes, reason = "whoever asked waits for it")]
fn launch(executable: &ReadOnly, start: &Start) -> io::Result<i32> {
    let failed = |what: &str, path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
    };
    let socket = sys::socket::listen(&start.socket, SocketFlags::empty(), BACKLOG)
        .map_err(|errno| failed("listen at", &start.socket, errno.into()))?;
    let log = File::options().append(true).create(true).open(&start.log);
    let log = log.map_err(|error| failed("open", &start.log, error))?;
    // Without a directory of its own to change to, it can be started without a copy of the page tables.
    let child = Command::new(executable.path())
        .arg0("sampan-runtime")
        .arg("shim")
        .args(&start.arguments)
        .env_clear()
        // glibc's per-thread cache would hold pages that a single-threaded monitor can do without.
        .env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("execute the runtime: {error}")))?;
    Ok(child.id() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_no_descriptor_of_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let inherited = File::open("/proc/self/status").unwrap();
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
        let launcher = Launcher::open(Path::new("/usr/bin/find")).unwrap();
        let long = folder.path().join("f".repeat(200));
        std::fs::create_dir(&long).unwrap();
        // find shim /proc/self/fd …
        let find = ["/proc/self/fd".into(), "-fprintf".into(), told.clone().into(), "%f %l\n".into()];
        let start = Start { arguments: find.into(), socket: long.join("s"), log: folder.path().join("log") };
        let pid = launcher.start(start).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
        let told = std::fs::read_to_string(told).unwrap();
        assert!(told.contains("0 socket:") && told.contains("1 /dev/null\n"), "{told}");
        assert!(told.contains("/log\n") && !told.contains("/status\n"), "{told}");
        assert!(long.join("s").exists());
    }

    #[test]
    fn what_is_missing_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Launcher::open(&folder.path().join("nothing")).is_err());
        let launcher = Launcher::open(Path::new("/bin/true")).unwrap();
        let start = |socket: &str| Start {
            arguments: vec![],
            socket: folder.path().join(socket),
            log: folder.path().join("log"),
        };
        let error = launcher.start(start("no/folder")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(launcher.start(start("socket")).is_ok());
    }
}
