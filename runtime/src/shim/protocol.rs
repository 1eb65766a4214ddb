//! What the agent and a shim say to each other.
//!
//! A message is one datagram of a `SOCK_SEQPACKET` socket: a JSON value of at most [`MAX_MESSAGE`] bytes, with file
//! descriptors (`SCM_RIGHTS`) where a request says so. A shim outlives the agent that made it, so the next agent, which
//! may be newer, has to speak to it: fields are added with a default and never change their meaning; what is unknown
//! to the reader is ignored; anything else raises [`VERSION`].
//!
//! A connection begins with [`Request::Hello`]. Requests of a connection are answered one by one in their order, so
//! whoever doesn't want a `Kill` to wait for a `Create` makes a connection for each. [`Response::Event`]s come between
//! answers to a connection that has subscribed. A client that doesn't read its messages is disconnected.
//!
//! ```text
//! Create ──▶ Created ── Start ──▶ Running ── exit ──▶ Exited ── Forget ──▶ ∅
//!                │                                      ▲
//!                ├── Start fails, Kill ─────────────────┘
//!                └── Forget ──▶ ∅
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::delegate::Runtime;

/// The protocol of this version of the program.
pub const VERSION: u32 = 1;

/// No message is longer; sender and receiver use buffers of this size.
pub const MAX_MESSAGE: usize = 4096;

/// No id of a container or an exec is longer.
pub const MAX_ID: usize = 128;

/// The most descriptors that come with [`Request::Exec`].
pub const EXEC_DESCRIPTORS: usize = 5;

/// Descriptors that come with [`Request::Attach`].
pub const ATTACH_DESCRIPTORS: usize = 2;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Must come first; answered with [`Response::Hello`].
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// Makes a container, up to the point before its program is executed; answered with [`Response::Created`].
    Create {
        /// Its name in this pod: letters, digits, `_`, `-`, `.`.
        id: String,
        /// Directory with `config.json` and, if the filter is compiled already, `seccomp.bpf`. Relative to the shim's
        /// working directory, or absolute. The exit record goes there too.
        bundle: PathBuf,
        /// The container's cgroup below the hierarchies' roots. The shim makes it, and removes it with the container.
        cgroup: String,
        /// The log in CRI format; without one the output goes to `/dev/null`.
        #[serde(default)]
        log: Option<PathBuf>,
        /// Whose pids the container sees.
        #[serde(default)]
        pid: PidMode,
        /// Whether standard input is a pipe, which [`Request::Attach`] gives to write to, or `/dev/null`.
        #[serde(default)]
        stdin: bool,
        /// Whether its process has a terminal, as its configuration says. Output and errors are one then, and what
        /// [`Request::Attach`] gives is the terminal's master.
        #[serde(default)]
        terminal: bool,
        /// Another runtime that makes it; none: the shim itself does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        runtime: Option<Runtime>,
    },
    /// Makes a container that comes back from images, up to the point before its processes are there; answered with
    /// [`Response::Created`], and after [`Request::Start`] with [`Response::Started`] as any container. It has pids of its
    /// own and no terminal.
    Restore {
        /// As for `Create`.
        id: String,
        /// As for `Create`. Its process is not looked at but for its user.
        bundle: PathBuf,
        /// As for `Create`.
        cgroup: String,
        /// As for `Create`.
        #[serde(default)]
        log: Option<PathBuf>,
        /// As for `Create`.
        #[serde(default)]
        stdin: bool,
        /// What a [`Request::Checkpoint`] has written.
        images: PathBuf,
        /// CRIU's program.
        criu: PathBuf,
    },
    /// Executes a created container's program; answered with [`Response::Started`].
    ///
    /// A program that can't be executed is an error of kind `InvalidArgument`; by then the container has exited, with
    /// code 127 (not found) or 126 (not executable).
    Start {
        /// The container.
        id: String,
    },
    /// Sends a signal; answered with [`Response::Done`].
    Kill {
        /// The container.
        id: String,
        /// By number.
        signal: i32,
        /// To every process of the container's cgroup and not only to the first one.
        #[serde(default)]
        all: bool,
    },
    /// Opens the log by its path anew, after somebody has moved the old file away; answered with [`Response::Done`].
    /// When that fails the old file stays in use.
    ReopenLog {
        /// The container.
        id: String,
    },
    /// Removes an exited container, or kills and removes a created one; answered with [`Response::Done`] when its
    /// cgroup is gone.
    Forget {
        /// The container.
        id: String,
    },
    /// Joins a container's streams. With two descriptors, the writing ends of pipes that get a copy of its standard
    /// output and error from now on; answered with [`Response::Attached`], which carries the writing end of the
    /// container's standard input if that is a pipe and still open, or the master of its terminal, which is to be
    /// written to and not to be read.
    ///
    /// The connection belongs to the attachment from here: closing it ends the attachment. The shim closes its copies
    /// of the descriptors when the container has ended and all of its output is written. A pipe that is full loses what
    /// doesn't fit: a container never waits for who watches it.
    Attach {
        /// The container.
        id: String,
    },
    /// Closes the shim's end of a container's standard input: the container sees its end when all who have attached
    /// have closed theirs. Answered with [`Response::Done`], also when it is closed already. The input of a terminal
    /// has no end.
    CloseStdin {
        /// The container.
        id: String,
    },
    /// All containers; answered with one or more [`Response::State`].
    State,
    /// From now on this connection gets an [`Response::Event`] for each exit; answered with [`Response::Done`]. Exits
    /// that happened before are in the state: subscribe first, then ask for it.
    Subscribe,
    /// Runs a process in a running container. With four descriptors: a file with an OCI `Process` as JSON, then
    /// standard input, output and error; and a fifth when the process has a terminal: a socket that the terminal's
    /// master is sent to, as runc's console sockets have it. Answered with [`Response::ExecStarted`] and, when the process has ended,
    /// [`Response::ExecExited`].
    ///
    /// The connection belongs to the exec from here. Closing it before `ExecExited` kills all processes that the exec
    /// has made, whatever session they are in. Those left behind by a process that has ended by itself live on.
    Exec {
        /// The container.
        id: String,
        /// A name for messages.
        exec: String,
    },
    /// Writes a running container's processes to images, after which they go on; if its cgroup was frozen, it is so again.
    /// Answered as [`Request::Exec`] is, for CRIU's process: what is wrong when its exit code is not 0 is in the log,
    /// [`crate::criu::DUMP_LOG`]. Closing the connection kills that process.
    Checkpoint {
        /// The container.
        id: String,
        /// An empty folder.
        images: PathBuf,
        /// CRIU's program.
        criu: PathBuf,
    },
    /// Kills what is left, removes the cgroups, is answered with [`Response::Done`] and exits with 0.
    Shutdown,
}

/// Which pid namespace a container is in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidMode {
    /// One of its own.
    #[default]
    Private,
    /// The pod's, which the shim has if it was started with `--shared-pid`.
    Pod,
    /// The host's.
    Host,
    /// That of another container of this pod.
    Target(String),
}

/// What the shim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To `Hello`.
    Hello {
        /// The shim's [`VERSION`].
        version: u32,
        /// The shim, whose namespaces are the pod's.
        pid: i32,
    },
    /// It is done, and there is no more to say about it.
    Done,
    /// To `Create`.
    Created {
        /// The container's first process, as the host sees it.
        pid: i32,
    },
    /// To `Start`.
    Started {
        /// Nanoseconds since 1970.
        started_at: i64,
        /// Its first process, if that is another one than was told when it was created.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
    },
    /// To `State`.
    State {
        /// Some of the containers.
        containers: Vec<ContainerState>,
        /// Whether another message follows with the next ones.
        #[serde(default)]
        more: bool,
    },
    /// To `Exec`: the program has been executed.
    ExecStarted {
        /// The process, as the host sees it.
        pid: i32,
    },
    /// To `Attach`, with a descriptor if there is a standard input to write to.
    Attached,
    /// The exec's process has ended.
    ExecExited {
        /// As [`Exit::code`].
        exit_code: i32,
    },
    /// It was not done.
    Error {
        /// For programs.
        kind: ErrorKind,
        /// For people, with all causes.
        message: String,
    },
    /// To subscribers, at any time.
    Event(Event),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container's first process has ended, and its exit record is written.
    Exited {
        /// The container.
        id: String,
        /// How.
        exit: Exit,
    },
    /// The kernel has killed a process of a container for want of memory; it is told before the end that may come of it.
    OutOfMemory {
        /// The container.
        id: String,
    },
}

/// How a container ended. Also the contents of `exit.json` in the bundle's directory, which is written whole before
/// anybody is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As given to exit(2), or 128 and the signal.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Whether it ended because the kernel killed one of its processes for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// Nanoseconds since 1970; 0 when the program never ran.
    pub started_at: i64,
    /// Nanoseconds since 1970.
    pub finished_at: i64,
}

/// A container at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Its name.
    pub id: String,
    /// Its first process, as the host sees it; of no meaning once it has exited.
    pub pid: i32,
    /// How far it is.
    pub status: Status,
    /// Nanoseconds since 1970; 0 when the program never ran.
    #[serde(default)]
    pub started_at: i64,
    /// Set when it has exited.
    #[serde(default)]
    pub exit: Option<Exit>,
}

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Made, and waiting for `Start`.
    Created,
    /// Its program runs.
    Running,
    /// Its first process has ended.
    Exited,
}

/// Kinds of errors, the same words as everywhere in the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No such container.
    NotFound,
    /// There is a container of this name.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// The request, or what it leads to, makes no sense.
    InvalidArgument,
    /// The host's fault or ours.
    Internal,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
        value: T,
        text: &str,
    ) {
        assert_eq!(serde_json::to_string(&value).unwrap(), text);
        assert_eq!(serde_json::from_str::<T>(text).unwrap(), value);
    }

    #[test]
    fn requests_round_trip() {
        let id = || "web".to_owned();
        round_trip(Request::Hello { version: 1 }, r#"{"hello":{"version":1}}"#);
        round_trip(
            Request::Create {
                id: id(),
                bundle: "web".into(),
                cgroup: "/sampan/p/web".into(),
                log: Some("/var/log/web.log".into()),
                pid: PidMode::Target("app".into()),
                stdin: true,
                terminal: false,
                runtime: None,
            },
            r#"{"create":{"id":"web","bundle":"web","cgroup":"/sampan/p/web","log":"/var/log/web.log","pid":{"target":"app"},"stdin":true,"terminal":false}}"#,
        );
        round_trip(Request::Start { id: id() }, r#"{"start":{"id":"web"}}"#);
        round_trip(
            Request::Kill { id: id(), signal: 15, all: true },
            r#"{"kill":{"id":"web","signal":15,"all":true}}"#,
        );
        round_trip(Request::ReopenLog { id: id() }, r#"{"reopen_log":{"id":"web"}}"#);
        round_trip(Request::Forget { id: id() }, r#"{"forget":{"id":"web"}}"#);
        round_trip(
            Request::Exec { id: id(), exec: "probe".into() },
            r#"{"exec":{"id":"web","exec":"probe"}}"#,
        );
        round_trip(Request::Attach { id: id() }, r#"{"attach":{"id":"web"}}"#);
        round_trip(Request::CloseStdin { id: id() }, r#"{"close_stdin":{"id":"web"}}"#);
        round_trip(
            Request::Checkpoint { id: id(), images: "/i".into(), criu: "/usr/sbin/criu".into() },
            r#"{"checkpoint":{"id":"web","images":"/i","criu":"/usr/sbin/criu"}}"#,
        );
        round_trip(
            Request::Restore {
                id: id(),
                bundle: "web".into(),
                cgroup: "/sampan/p/web".into(),
                log: None,
                stdin: false,
                images: "/i".into(),
                criu: "/usr/sbin/criu".into(),
            },
            r#"{"restore":{"id":"web","bundle":"web","cgroup":"/sampan/p/web","log":null,"stdin":false,"images":"/i","criu":"/usr/sbin/criu"}}"#,
        );
        round_trip(Request::State, r#""state""#);
        round_trip(Request::Subscribe, r#""subscribe""#);
        round_trip(Request::Shutdown, r#""shutdown""#);
    }

    #[test]
    fn responses_round_trip() {
        let exit = Exit { code: 137, signal: Some(9), oom_killed: true, started_at: 1, finished_at: 2 };
        round_trip(Response::Hello { version: 1, pid: 7 }, r#"{"hello":{"version":1,"pid":7}}"#);
        round_trip(Response::Done, r#""done""#);
        round_trip(Response::Created { pid: 7 }, r#"{"created":{"pid":7}}"#);
        round_trip(Response::Started { started_at: 5, pid: None }, r#"{"started":{"started_at":5}}"#);
        round_trip(
            Response::Started { started_at: 5, pid: Some(7) },
            r#"{"started":{"started_at":5,"pid":7}}"#,
        );
        round_trip(Response::ExecStarted { pid: 7 }, r#"{"exec_started":{"pid":7}}"#);
        round_trip(Response::Attached, r#""attached""#);
        round_trip(Response::ExecExited { exit_code: 1 }, r#"{"exec_exited":{"exit_code":1}}"#);
        round_trip(
            Response::Error { kind: ErrorKind::InvalidArgument, message: "no".into() },
            r#"{"error":{"kind":"invalid_argument","message":"no"}}"#,
        );
        round_trip(
            Response::Event(Event::Exited { id: "web".into(), exit: exit.clone() }),
            r#"{"event":{"exited":{"id":"web","exit":{"code":137,"signal":9,"oom_killed":true,"started_at":1,"finished_at":2}}}}"#,
        );
        round_trip(
            Response::Event(Event::OutOfMemory { id: "web".into() }),
            r#"{"event":{"out_of_memory":{"id":"web"}}}"#,
        );
        let state = ContainerState {
            id: "web".into(),
            pid: 7,
            status: Status::Exited,
            started_at: 1,
            exit: Some(exit),
        };
        let text =
            serde_json::to_string(&Response::State { containers: vec![state.clone()], more: true }).unwrap();
        assert_eq!(
            serde_json::from_str::<Response>(&text).unwrap(),
            Response::State { containers: vec![state], more: true }
        );
    }

    #[test]
    fn fields_of_another_version_are_defaulted_or_ignored() {
        let text = r#"{"create":{"id":"a","bundle":"a","cgroup":"/a","from_the_future":[1]}}"#;
        let Request::Create { log, pid, stdin, .. } = serde_json::from_str(text).unwrap() else {
            panic!("not Create")
        };
        assert_eq!((log, pid, stdin), (None, PidMode::Private, false));
        let text = r#"{"code":1,"started_at":1,"finished_at":2}"#;
        assert_eq!(serde_json::from_str::<Exit>(text).unwrap().signal, None);
    }
}
