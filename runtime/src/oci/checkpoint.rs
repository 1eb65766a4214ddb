//! `checkpoint`: a container's processes to images, by CRIU. The container is removed then, unless it is to go on.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::arguments::{self, CriuOptions};
use super::record::{Folder, Record, Status};
use super::{Context, Error, Result, child, delete};
use crate::container::Report;
use crate::criu::{self, Call, DUMP_LOG, Dump};

const WHAT: &str = "container checkpoint failed";

pub(super) fn checkpoint(context: &Context, arguments: &arguments::Checkpoint) -> Result<()> {
    let folder = Folder::open(context, &arguments.id)?;
    folder.lock()?;
    let record = folder.read()?;
    check(&record, &folder)?;
    let options =
        Options::of(&arguments.criu, &["page-server", "lazy-pages", "status-fd"], &arguments.refused())?;
    let mut words = options.words;
    words.extend(flags_of(arguments).map(OsString::from));
    if let Some(parent) = &arguments.parent_path {
        words.extend(["--prev-images-dir".into(), parent.into(), "--track-mem".into()]);
    } else if arguments.pre_dump {
        words.push("--track-mem".into());
    }
    fs::create_dir_all(&options.images)
        .map_err(|source| Error::io(format!("make {}", options.images.display()), source))?;
    let images = absolute(&options.images)?;
    let work = options.work.as_deref().map_or_else(|| Ok(images.clone()), absolute)?;
    let program = criu::program().ok_or_else(no_criu)?;
    let call = Call { program: &program, images: &images, work: &work, options: &words };
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|source| Error::io("open /dev/null", source))?;
    let wanted = Dump {
        call,
        verb: if arguments.pre_dump { "pre-dump" } else { "dump" },
        bundle: &record.bundle,
        cgroup: &record.cgroup,
        pid: record.pid,
        pipes: pipes(record.pid),
        null: null.as_fd(),
    };
    dump(&wanted)?;
    match arguments.leave_running || arguments.pre_dump {
        true => Ok(()),
        false => delete::kill_and_destroy(context, &folder, &record),
    }
}

/// What a checkpoint alone may be told, in CRIU's words.
fn flags_of(arguments: &arguments::Checkpoint) -> impl Iterator<Item = &'static str> {
    let flags = [
        (arguments.leave_running, "--leave-running"),
        (arguments.tcp_skip_in_flight, "--skip-in-flight"),
        (arguments.link_remap, "--link-remap"),
    ];
    flags.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag)
}

fn check(record: &Record, folder: &Folder) -> Result<()> {
    let refused =
        |why: &str| Err(Error::refused(format!("cannot checkpoint container {:?}: {why}", record.id)));
    match record.status() {
        Status::Running | Status::Paused => {}
        status => return refused(&format!("it is {}", status.name())),
    }
    let terminal = folder.configuration()?.process().as_ref().and_then(|process| process.terminal());
    match () {
        () if terminal == Some(true) => refused("it has a terminal"),
        () if record.own_user_namespace => refused("it has a user namespace"),
        () if !record.own_pid_namespace => refused("it has no pid namespace of its own"),
        () => Ok(()),
    }
}

/// Runs CRIU to its end.
fn dump(wanted: &Dump<'_>) -> Result<()> {
    let child = criu::dump(wanted).map_err(|source| Error::Child { what: WHAT, source })?;
    let report = child::receive(&child.channel, WHAT)?;
    let code = child::reap(&child.pidfd)?;
    let message = match (report, code) {
        (Report::Executed, 0) => return Ok(()),
        (Report::Failed { message, .. }, _) => message,
        (_, code) => {
            let log = wanted.call.work.join(DUMP_LOG);
            let reason = criu::reason(&log).unwrap_or_else(|| format!("it ended with {code}"));
            format!("criu {}: {reason} (log file: {})", wanted.verb, log.display())
        }
    };
    Err(Error::Container { what: WHAT, message })
}

/// The pipes that a process has as its standard descriptors, as CRIU names them.
fn pipes(pid: i32) -> [Option<String>; 3] {
    [0, 1, 2].map(|number| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
        target.to_str().filter(|name| name.starts_with("pipe:[")).map(str::to_owned)
    })
}

/// What both verbs understand.
pub(super) struct Options {
    pub(super) images: PathBuf,
    pub(super) work: Option<PathBuf>,
    /// For CRIU.
    pub(super) words: Vec<OsString>,
}

impl Options {
    /// # Errors
    /// `given` of the `names` are not to be had.
    pub(super) fn of(options: &CriuOptions, names: &[&str], given: &[bool]) -> Result<Options> {
        if let Some((name, _)) = names.iter().zip(given).find(|(_, given)| **given) {
            return Err(Error::refused(format!("--{name} is not supported")));
        }
        let mode = options.manage_cgroups_mode.as_deref().unwrap_or_default();
        if !matches!(mode, "" | "soft" | "full" | "strict" | "ignore") {
            return Err(Error::refused(format!("invalid manage-cgroups-mode {mode:?}")));
        }
        let flags = [
            (options.tcp_established, "--tcp-established"),
            (options.ext_unix_sk, "--ext-unix-sk"),
            (options.shell_job, "--shell-job"),
            (options.file_locks, "--file-locks"),
            (options.auto_dedup, "--auto-dedup"),
        ];
        let words = flags.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag.into()).collect();
        let images = options.image_path.clone().unwrap_or_else(|| "checkpoint".into());
        Ok(Options { images, work: options.work_path.clone(), words })
    }
}

/// CRIU is told no path that depends on where it is.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|source| Error::io(path.display().to_string(), source))
}

pub(super) fn no_criu() -> Error {
    Error::refused("criu is not installed on this machine (package criu)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn options_of_a_checkpoint_are_told_to_criu() {
        let line = ["r", "checkpoint", "--link-remap", "--tcp-skip-in-flight", "--leave-running", "x"];
        let Some(arguments::Verb::Checkpoint(given)) = arguments::Arguments::parse_from(line).verb else {
            panic!("another verb");
        };
        let flags: Vec<&str> = flags_of(&given).collect();
        assert_eq!(flags, ["--leave-running", "--skip-in-flight", "--link-remap"]);
    }
}
