//! The command line as runc's callers write it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs containers as the OCI runtime specification describes them.
#[derive(Debug, Parser)]
#[command(name = "sampan-runtime", disable_version_flag = true)]
pub(super) struct Arguments {
    /// Folder for the state of containers, best on a tmpfs.
    #[arg(long)]
    pub(super) root: Option<PathBuf>,
    /// File for the log; standard error without it.
    #[arg(long)]
    pub(super) log: Option<PathBuf>,
    /// Form of the log.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
    /// Log more.
    #[arg(long)]
    pub(super) debug: bool,
    /// Have systemd make the cgroups; cgroupsPath is SLICE:PREFIX:NAME then.
    #[arg(long)]
    pub(super) systemd_cgroup: bool,
    /// Accepted for the sake of callers; this runtime is run by root.
    #[arg(long, hide = true)]
    pub(super) rootless: Option<String>,
    /// Print the versions of the runtime and of the specification.
    #[arg(short = 'v', long)]
    pub(super) version: bool,
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

// The options of a verb are described when it is the one that is asked for.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(super) enum Verb {
    /// Make a container that waits for its start.
    Create(Create),
    /// Start the program of a container that was created.
    Start(Id),
    /// Print the state of a container.
    State(Id),
    /// Send a signal to a container's first process.
    Kill(Kill),
    /// Remove a container that has stopped.
    Delete(Delete),
    /// Create a container, run its program and remove it.
    Run(Run),
    /// Run a further process in a container.
    Exec(Box<Exec>),
    /// List containers.
    List(List),
    /// List the processes of a container.
    Ps(Ps),
    /// Freeze all processes of a container.
    Pause(Id),
    /// Let a paused container go on.
    Resume(Id),
    /// Change the limits of a container.
    Update(Box<Update>),
    /// Print statistics and events of a container.
    Events(Events),
    /// Write the processes of a container to files, by CRIU, and remove it.
    Checkpoint(Box<Checkpoint>),
    /// Make a container whose processes go on from such files.
    Restore(Box<Restore>),
    /// Print what this runtime can do.
    Features,
    /// Write a configuration to begin with.
    Spec(Spec),
}

impl Verb {
    pub(super) fn makes_processes(&self) -> bool {
        matches!(
            self,
            Verb::Create(_) | Verb::Run(_) | Verb::Exec(_) | Verb::Checkpoint(_) | Verb::Restore(_)
        )
    }
}

#[derive(Debug, Args)]
pub(super) struct Id {
    /// The container.
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// The container's name, unique below the root.
    pub(super) id: String,
    /// Folder of config.json.
    #[arg(short, long, default_value = ".")]
    pub(super) bundle: PathBuf,
    /// Socket that gets the master end of the terminal.
    #[arg(long)]
    pub(super) console_socket: Option<PathBuf>,
    /// Socket that gets a pidfd of the container's first process.
    #[arg(long)]
    pub(super) pidfd_socket: Option<PathBuf>,
    /// File for the pid of the container's first process.
    #[arg(long)]
    pub(super) pid_file: Option<PathBuf>,
    /// Don't use pivot_root, for roots on a RAM disk.
    #[arg(long)]
    pub(super) no_pivot: bool,
    /// Leave the container in the caller's session keyring instead of making one for it.
    #[arg(long)]
    pub(super) no_new_keyring: bool,
    /// How many descriptors above the standard ones to pass on.
    #[arg(long, default_value_t = 0)]
    pub(super) preserve_fds: u32,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) create: Create,
    /// Don't wait for the end.
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Keep the container when it has ended.
    #[arg(long)]
    pub(super) keep: bool,
    /// Accepted: orphans of the container are left to its own first process.
    #[arg(long, hide = true)]
    pub(super) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(super) struct Kill {
    /// The container.
    pub(super) id: String,
    /// Name or number.
    #[arg(default_value = "SIGTERM")]
    pub(super) signal: String,
    /// To every process of the container.
    #[arg(short, long)]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The container.
    pub(super) id: String,
    /// Kill it first; one that doesn't exist is no error.
    #[arg(short, long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Exec {
    /// The container.
    pub(super) id: String,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
    /// Socket that gets the master end of the terminal.
    #[arg(long)]
    pub(super) console_socket: Option<PathBuf>,
    /// Socket that gets a pidfd of the process.
    #[arg(long)]
    pub(super) pidfd_socket: Option<PathBuf>,
    /// Working directory.
    #[arg(long)]
    pub(super) cwd: Option<PathBuf>,
    /// A variable, NAME=VALUE.
    #[arg(short, long)]
    pub(super) env: Vec<String>,
    /// Give it a terminal.
    #[arg(short, long)]
    pub(super) tty: bool,
    /// UID or UID:GID.
    #[arg(short, long)]
    pub(super) user: Option<String>,
    /// Further groups.
    #[arg(short = 'g', long)]
    pub(super) additional_gids: Vec<u32>,
    /// File with the process as JSON.
    #[arg(short, long)]
    pub(super) process: Option<PathBuf>,
    /// Don't wait for the end.
    #[arg(short, long)]
    pub(super) detach: bool,
    /// File for the pid.
    #[arg(long)]
    pub(super) pid_file: Option<PathBuf>,
    /// SELinux label.
    #[arg(long)]
    pub(super) process_label: Option<String>,
    /// AppArmor profile.
    #[arg(long)]
    pub(super) apparmor: Option<String>,
    /// Set no_new_privs.
    #[arg(long)]
    pub(super) no_new_privs: bool,
    /// A further capability.
    #[arg(short, long)]
    pub(super) cap: Vec<String>,
    /// How many descriptors above the standard ones to pass on.
    #[arg(long, default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// A cgroup below that of the container; with version 1, CONTROLLERS:PATH.
    #[arg(long)]
    pub(super) cgroup: Vec<String>,
    /// Even in a paused container.
    #[arg(long)]
    pub(super) ignore_paused: bool,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Form of the list.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
    /// Names only.
    #[arg(short, long)]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Form of the list.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
    /// The container.
    pub(super) id: String,
    /// Options for ps.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) options: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// The container.
    pub(super) id: String,
    /// File with the resources as JSON, or - for standard input; other options don't count then.
    #[arg(short, long)]
    pub(super) resources: Option<PathBuf>,
    /// Weight of I/O, 10 to 1000.
    #[arg(long)]
    pub(super) blkio_weight: Option<u16>,
    /// Period in microseconds.
    #[arg(long)]
    pub(super) cpu_period: Option<u64>,
    /// Time of processors in a period, in microseconds.
    #[arg(long, allow_negative_numbers = true)]
    pub(super) cpu_quota: Option<i64>,
    /// Time saved for later, in microseconds.
    #[arg(long)]
    pub(super) cpu_burst: Option<u64>,
    /// Relative weight.
    #[arg(long)]
    pub(super) cpu_share: Option<u64>,
    /// Period of real-time tasks, in microseconds.
    #[arg(long)]
    pub(super) cpu_rt_period: Option<u64>,
    /// Time of real-time tasks in a period, in microseconds.
    #[arg(long, allow_negative_numbers = true)]
    pub(super) cpu_rt_runtime: Option<i64>,
    /// 1: idle tasks.
    #[arg(long, allow_negative_numbers = true)]
    pub(super) cpu_idle: Option<i64>,
    /// Processors.
    #[arg(long)]
    pub(super) cpuset_cpus: Option<String>,
    /// Memory nodes.
    #[arg(long)]
    pub(super) cpuset_mems: Option<String>,
    /// Bytes, with k, m, g as units; -1 for no limit.
    #[arg(long, allow_negative_numbers = true, value_parser = bytes)]
    pub(super) memory: Option<i64>,
    /// Soft limit.
    #[arg(long, allow_negative_numbers = true, value_parser = bytes)]
    pub(super) memory_reservation: Option<i64>,
    /// Memory and swap together.
    #[arg(long, allow_negative_numbers = true, value_parser = bytes)]
    pub(super) memory_swap: Option<i64>,
    /// Accepted: the kernel counts its own memory with the rest.
    #[arg(long, hide = true, allow_negative_numbers = true, value_parser = bytes)]
    pub(super) kernel_memory: Option<i64>,
    /// Accepted: the kernel counts its own memory with the rest.
    #[arg(long, hide = true, allow_negative_numbers = true, value_parser = bytes)]
    pub(super) kernel_memory_tcp: Option<i64>,
    /// Intel RDT, which is refused.
    #[arg(long, hide = true)]
    pub(super) l3_cache_schema: Option<String>,
    /// Intel RDT, which is refused.
    #[arg(long, hide = true)]
    pub(super) mem_bw_schema: Option<String>,
    /// Most tasks.
    #[arg(long, allow_negative_numbers = true)]
    pub(super) pids_limit: Option<i64>,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// The container.
    pub(super) id: String,
    /// Time between statistics, such as 5s or 500ms.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub(super) interval: std::time::Duration,
    /// Print the statistics once.
    #[arg(long)]
    pub(super) stats: bool,
}

#[derive(Debug, Args)]
pub(super) struct Spec {
    /// Folder for config.json.
    #[arg(short, long, default_value = ".")]
    pub(super) bundle: PathBuf,
    /// For a user that isn't root.
    #[arg(long)]
    pub(super) rootless: bool,
}

// What both verbs have in common. A doc comment would stand in the place of their own in the help.
#[derive(Debug, Args)]
pub(super) struct CriuOptions {
    /// Folder of the images.
    #[arg(long)]
    pub(super) image_path: Option<PathBuf>,
    /// Folder for CRIU's log; that of the images without it.
    #[arg(long)]
    pub(super) work_path: Option<PathBuf>,
    /// Allow open TCP connections.
    #[arg(long)]
    pub(super) tcp_established: bool,
    /// Allow sockets that lead out of the container.
    #[arg(long)]
    pub(super) ext_unix_sk: bool,
    /// Allow a session that was begun outside.
    #[arg(long)]
    pub(super) shell_job: bool,
    /// Allow locks of files.
    #[arg(long)]
    pub(super) file_locks: bool,
    /// Drop memory that later images have anew.
    #[arg(long)]
    pub(super) auto_dedup: bool,
    /// Accepted: the processes are in the cgroup that the configuration says.
    #[arg(long)]
    pub(super) manage_cgroups_mode: Option<String>,
    /// Accepted: namespaces that the configuration names are left out anyway.
    #[arg(long, hide = true)]
    pub(super) empty_ns: Vec<String>,
    /// Refused.
    #[arg(long, hide = true)]
    pub(super) lazy_pages: bool,
}

#[derive(Debug, Args)]
pub(super) struct Checkpoint {
    /// The container.
    pub(super) id: String,
    #[command(flatten)]
    pub(super) criu: CriuOptions,
    /// Keep the container, and let it go on.
    #[arg(long)]
    pub(super) leave_running: bool,
    /// Write memory alone, ahead of a checkpoint; the container goes on.
    #[arg(long)]
    pub(super) pre_dump: bool,
    /// Leave out TCP connections that are only being made.
    #[arg(long)]
    pub(super) tcp_skip_in_flight: bool,
    /// Give open files that have no name any more one for as long as the checkpoint lasts.
    #[arg(long)]
    pub(super) link_remap: bool,
    /// Folder of an earlier pre-dump, relative to the images.
    #[arg(long)]
    pub(super) parent_path: Option<PathBuf>,
    /// Refused.
    #[arg(long, hide = true)]
    pub(super) page_server: Option<String>,
    /// Refused.
    #[arg(long, hide = true)]
    pub(super) status_fd: Option<i32>,
}

impl Checkpoint {
    /// Which of `page-server`, `lazy-pages` and `status-fd` were given.
    pub(super) fn refused(&self) -> [bool; 3] {
        [self.page_server.is_some(), self.criu.lazy_pages, self.status_fd.is_some()]
    }
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The container's name, unique below the root.
    pub(super) id: String,
    #[command(flatten)]
    pub(super) criu: CriuOptions,
    /// Folder of config.json.
    #[arg(short, long, default_value = ".")]
    pub(super) bundle: PathBuf,
    /// Don't wait for the end.
    #[arg(short, long)]
    pub(super) detach: bool,
    /// File for the pid of the container's first process.
    #[arg(long)]
    pub(super) pid_file: Option<PathBuf>,
    /// Accepted: it is for this process that the container's are waited for.
    #[arg(long, hide = true)]
    pub(super) no_subreaper: bool,
    /// Accepted: CRIU changes the root as it can.
    #[arg(long, hide = true)]
    pub(super) no_pivot: bool,
    /// Refused.
    #[arg(long, hide = true)]
    pub(super) console_socket: Option<PathBuf>,
    /// Refused.
    #[arg(long, hide = true)]
    pub(super) lsm_profile: Option<String>,
}

impl Restore {
    /// Which of `lazy-pages`, `console-socket` and `lsm-profile` were given. An empty socket is none.
    pub(super) fn refused(&self) -> [bool; 3] {
        let socket = self.console_socket.as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        [self.criu.lazy_pages, socket, self.lsm_profile.as_ref().is_some_and(|profile| !profile.is_empty())]
    }

    /// The same as for a container that is made from its bundle alone.
    pub(super) fn as_create(&self) -> Create {
        Create {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            console_socket: None,
            pidfd_socket: None,
            pid_file: self.pid_file.clone(),
            no_pivot: false,
            no_new_keyring: false,
            preserve_fds: 0,
        }
    }
}

fn bytes(text: &str) -> Result<i64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: i64 = match lower[number.len()..].trim_end_matches('b').trim_end_matches('i') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return Err(format!("{text:?} is no size")),
    };
    let number: i64 = number.trim().parse().map_err(|error| format!("{error}"))?;
    number.checked_mul(unit).filter(|bytes| *bytes >= -1).ok_or_else(|| format!("{text:?} is out of range"))
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let value: f64 = number.parse().map_err(|_| format!("{text:?} is no duration"))?;
    let seconds = match &text[number.len()..] {
        "ms" => value / 1000.0,
        "" | "s" => value,
        "m" => value * 60.0,
        "h" => value * 3600.0,
        _ => return Err(format!("{text:?} is no duration")),
    };
    match std::time::Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(format!("{text:?} is not greater than zero")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn options_may_follow_the_id() {
        let arguments = parse("r --root /r --log-format json create x --bundle /b --pid-file /p");
        let Some(Verb::Create(create)) = arguments.verb else { panic!("not create") };
        assert_eq!((create.id.as_str(), create.bundle), ("x", PathBuf::from("/b")));
    }

    #[test]
    fn what_follows_a_program_is_the_programs() {
        let arguments = parse("r exec -e A=b --cwd / x ls -l --detach");
        let Some(Verb::Exec(exec)) = arguments.verb else { panic!("not exec") };
        assert_eq!(exec.command, ["ls", "-l", "--detach"]);
        assert!(!exec.detach);
    }

    #[test]
    fn sizes_and_durations_have_units() {
        assert_eq!((bytes("64m"), bytes("-1"), bytes("5")), (Ok(64 << 20), Ok(-1), Ok(5)));
        assert!(bytes("x").is_err() && bytes("-2").is_err() && bytes("9999999t").is_err());
        assert_eq!(duration("500ms"), Ok(std::time::Duration::from_millis(500)));
        assert!(duration("0s").is_err() && duration("x").is_err());
    }

    #[test]
    fn negative_limits_are_values() {
        let Some(Verb::Update(update)) = parse("r update --pids-limit -1 --memory -1 x").verb else {
            panic!()
        };
        assert_eq!((update.pids_limit, update.memory), (Some(-1), Some(-1)));
    }
}
