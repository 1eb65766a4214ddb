//! The process of a configuration: what it may and who it is, up to its exec.
//!
//! Made in two steps. `Prepared` reads and checks everything while failing is cheap; `execute`
//! only makes calls. Their order: limits need the parent's privileges, the bounding set goes
//! before the user changes, a filter that no_new_privs doesn't allow goes while CAP_SYS_ADMIN is
//! there, and any other goes last, so that it has no need to allow what comes before.

use std::collections::HashSet;
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxIOPriority, PosixRlimit, PosixRlimitType, Process, Scheduler};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use super::label::Label;
use super::{Error, Result, capability::Sets, program::Program, scheduling, supported};
use crate::beneath;
use crate::container::Reporter;
use crate::seccomp::Filter;
use crate::sys::{self, credential, file};

/// A process ready to be executed.
pub(crate) struct Prepared {
    program: Program,
    working_directory: PathBuf,
    capabilities: Sets,
    seccomp: Option<(Vec<libc::sock_filter>, u64)>,
    no_new_privs: bool,
    rlimits: Vec<PosixRlimit>,
    oom_score: Option<i32>,
    terminal: bool,
    apparmor: Option<String>,
    selinux: Option<String>,
    scheduler: Option<Scheduler>,
    io_priority: Option<LinuxIOPriority>,
    /// How many descriptors above the standard ones the program keeps.
    preserved: u32,
    umask: Mode,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Prepared {
    pub(crate) fn new(process: &Process, seccomp: Option<Filter>, preserved: u32) -> Result<Prepared> {
        supported::check_process(process)?;
        process.rlimits().iter().flatten().try_for_each(raise_hard_limit)?;
        let user = process.user();
        let groups = user.additional_gids().clone().unwrap_or_default();
        // -1 means "leave as it is" to the kernel.
        if let Some(&id) = groups.iter().chain([&user.uid(), &user.gid()]).find(|&&id| id > i32::MAX as u32) {
            return Err(Error::IdRange { id });
        }
        Ok(Prepared {
            program: Program::new(
                process.args().as_deref().unwrap_or_default(),
                process.env().as_deref().unwrap_or_default(),
            )?,
            working_directory: process.cwd().clone(),
            capabilities: Sets::of(process.capabilities().as_ref()).map_err(Error::Capabilities)?,
            seccomp: seccomp.map(|filter| (credential::filters(&filter.program.to_bytes()), filter.flags)),
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            rlimits: process.rlimits().clone().unwrap_or_default(),
            oom_score: process.oom_score_adj(),
            terminal: process.terminal().unwrap_or(false),
            apparmor: process.apparmor_profile().clone(),
            selinux: process.selinux_label().clone(),
            scheduler: process.scheduler().clone(),
            io_priority: *process.io_priority(),
            preserved,
            umask: Mode::from_raw_mode(user.umask().unwrap_or(0o022)),
            uid: user.uid(),
            gid: user.gid(),
            groups,
        })
    }

    /// Through the host's procfs, while it is at hand.
    ///
    /// Lowering takes CAP_SYS_RESOURCE; without it the process stays as easy to kill as its parent.
    pub(crate) fn set_oom_score(&self) -> Result<()> {
        let Some(value) = self.oom_score else { return Ok(()) };
        let failed = |source| Error::OomScore { value, source };
        let opened = file::openat2(CWD, "/proc/self/oom_score_adj", OFlags::WRONLY, ResolveFlags::empty());
        match file::write(opened.map_err(failed)?, value.to_string().as_bytes()) {
            Err(error) if matches!(error.errno(), Errno::ACCESS | Errno::PERM) => Ok(()),
            result => result.map_err(failed),
        }
    }

    /// Makes the working directory if it is missing, while the root can still be written.
    pub(crate) fn make_working_directory(&self, root: impl AsFd) -> Result<()> {
        let made = beneath::directory(root, &self.working_directory);
        made.map(drop)
            .map_err(|source| Error::WorkingDirectory { path: self.working_directory.clone(), source })
    }

    /// Opens what the label is written to, through the host's procfs.
    pub(crate) fn open_label(&self) -> Result<Option<Label>> {
        Label::open(self.apparmor.as_deref(), self.selinux.as_deref())
    }

    /// Gives the program what is `asked`, with one value to each variable, the last, and HOME by the container's own users
    /// where there is none: as runc does. Tells what that is. The caller's root is the container's by now.
    pub(crate) fn settle_environment(&mut self, asked: &[String]) -> Result<Vec<String>> {
        const HOME: &str = "HOME=";
        let mut environment = last_of_each(asked);
        let given = environment.iter().find_map(|variable| variable.strip_prefix(HOME));
        if given.is_none_or(str::is_empty) {
            let failed = |source| Error::User { uid: self.uid, gid: self.gid, source };
            let root = file::open_path_at(CWD, "/", OFlags::DIRECTORY).map_err(failed)?;
            let home = crate::user::home(root.as_fd(), self.uid).filter(|home| !home.is_empty());
            environment.retain(|variable| !variable.starts_with(HOME));
            environment.push(format!("{HOME}{}", home.as_deref().unwrap_or("/")));
        }
        self.program.set_environment(&environment)?;
        Ok(environment)
    }

    /// Says early what is wrong with the program. The caller's root is the container's by now.
    pub(crate) fn find_program(&self) -> Result<()> {
        self.program.find()
    }

    /// Whether somebody else is to be told of calls of the program.
    pub(crate) fn notifies(&self) -> bool {
        let flags = self.seccomp.as_ref().map_or(0, |(_, flags)| *flags);
        flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }

    /// Becomes the process. The caller's root is the container's by now.
    pub(crate) fn execute(&self, reporter: &Reporter, label: Option<Label>) -> Result<Infallible> {
        self.settle(reporter, label)?;
        reporter.executing().map_err(Error::Talk)?;
        if self.no_new_privs {
            self.load_seccomp(reporter)?;
        }
        Err(self.program.execute())
    }

    /// Becomes the process but for its program, with its filter: [`Prepared::execute_settled`] comes later.
    pub(crate) fn settle_whole(&self, reporter: &Reporter, label: Option<Label>) -> Result<()> {
        self.settle(reporter, label)?;
        if self.no_new_privs { self.load_seccomp(reporter) } else { Ok(()) }
    }

    pub(crate) fn execute_settled(&self, reporter: &Reporter) -> Result<Infallible> {
        reporter.executing().map_err(Error::Talk)?;
        Err(self.program.execute())
    }

    /// All but the program and a filter that no_new_privs lets go last.
    fn settle(&self, reporter: &Reporter, label: Option<Label>) -> Result<()> {
        if self.terminal {
            sys::process::take_terminal(sys::process::stdio()[0]).map_err(Error::Terminal)?;
        }
        give_stdio(self.uid, self.terminal).map_err(|source| Error::User {
            uid: self.uid,
            gid: self.gid,
            source,
        })?;
        self.enter_working_directory()?;
        for limit in &self.rlimits {
            set_rlimit(limit)?;
        }
        if let Some(scheduler) = &self.scheduler {
            scheduling::set_scheduler(scheduler)?;
        }
        if let Some(priority) = &self.io_priority {
            scheduling::set_io_priority(priority)?;
        }
        if let Some(label) = &label {
            label.set()?;
        }
        rustix::process::umask(self.umask);
        sys::process::close_on_exec_above(self.preserved).map_err(Error::Descriptors)?;
        // From here on there are only calls that each profile knows which has ever started a container.
        self.give_up_rights(|| self.load_seccomp(reporter))
    }

    /// Makes the calling process as harmless as the program is going to be: a hook that the container's own files bring.
    /// One of a program that is settled is so from the beginning.
    pub(crate) fn restrict_hook(&self) -> Result<()> {
        let load = || match &self.seccomp {
            Some((filters, flags)) => {
                credential::load_seccomp(filters, *flags).map(drop).map_err(Error::Seccomp)
            }
            None => Ok(()),
        };
        self.give_up_rights(load)?;
        if self.no_new_privs { load() } else { Ok(()) }
    }

    /// All of it but a filter that no_new_privs lets go last.
    fn give_up_rights(&self, load_seccomp: impl Fn() -> Result<()>) -> Result<()> {
        if self.no_new_privs {
            credential::no_new_privs().map_err(Error::NoNewPrivs)?;
        } else {
            load_seccomp()?;
        }
        self.capabilities.bound().map_err(Error::Capabilities)?;
        self.change_user()?;
        self.capabilities.assume().map_err(Error::Capabilities)
    }

    /// Who gets the notifications of the filter, if there are any, has its descriptor before this returns.
    fn load_seccomp(&self, reporter: &Reporter) -> Result<()> {
        let Some((filters, flags)) = &self.seccomp else { return Ok(()) };
        let listener = credential::load_seccomp(filters, *flags).map_err(Error::Seccomp)?;
        match listener {
            Some(listener) if !reporter.listener(listener.as_raw_fd()).map_err(Error::Talk)? => {
                Err(Error::Abandoned)
            }
            _ => Ok(()),
        }
    }

    fn change_user(&self) -> Result<()> {
        let change = || {
            credential::setgroups(&self.groups)?;
            credential::setgid(self.gid)?;
            if self.uid == 0 {
                return credential::setuid(0);
            }
            credential::keep_capabilities(true)?;
            credential::setuid(self.uid)?;
            credential::keep_capabilities(false)
        };
        change().map_err(|source| Error::User { uid: self.uid, gid: self.gid, source })
    }

    /// Enters it beneath the container's root, and asks the kernel where that was.
    fn enter_working_directory(&self) -> Result<()> {
        let failed = |source| Error::WorkingDirectory { path: self.working_directory.clone(), source };
        let root = file::open_path_at(CWD, "/", OFlags::DIRECTORY).map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let directory = beneath::open(&root, &self.working_directory, flags).map_err(failed)?;
        file::fchdir(directory).map_err(failed)?;
        // Outside of the root it would begin with "(unreachable)".
        match file::getcwd() {
            Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
            _ => Err(Error::WorkingDirectoryOutside { path: self.working_directory.clone() }),
        }
    }
}

/// Lets a user that isn't root open `/dev/stdout` anew: pipes, and a terminal that is the process's own, are given to it,
/// and nothing else, least of all a device of the host.
pub(crate) fn give_stdio(uid: u32, terminal: bool) -> sys::Result<()> {
    if uid == 0 {
        return Ok(());
    }
    for fd in sys::process::stdio() {
        let stat = file::fstat(fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let own = kind == FileType::Fifo || kind == FileType::CharacterDevice && terminal;
        if own && stat.st_uid != uid {
            file::fchownat(fd, "", uid, stat.st_gid)?;
        }
    }
    Ok(())
}

/// One variable of each name.
fn last_of_each(environment: &[String]) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut seen = HashSet::new();
    let mut kept: Vec<String> =
        environment.iter().rev().filter(|variable| seen.insert(name(variable))).cloned().collect();
    kept.reverse();
    kept
}

/// Standard descriptors that are the host's `/dev/null` become the container's own, if it has one: nothing of the host
/// stays open, and a checkpoint knows no file of another mount namespace. The caller's root is the container's by now.
pub(super) fn take_own_null() -> Result<()> {
    let is_null = |stat: &rustix::fs::Stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3)
    };
    let mut own = None;
    for (number, fd) in sys::process::stdio().into_iter().enumerate() {
        if !is_null(&file::fstat(fd).map_err(Error::Descriptors)?) {
            continue;
        }
        if own.is_none() {
            let Ok(null) = file::openat2(CWD, "/dev/null", OFlags::RDWR, ResolveFlags::NO_SYMLINKS) else {
                return Ok(());
            };
            if !is_null(&file::fstat(&null).map_err(Error::Descriptors)?) {
                return Ok(());
            }
            own = Some(null);
        }
        if let Some(own) = &own {
            sys::process::replace_standard(own, number as i32).map_err(Error::Descriptors)?;
        }
    }
    Ok(())
}

/// Raises our own hard limit to what the process is to have, while the host's capabilities are at hand: in a user namespace
/// nobody may, not even its root.
fn raise_hard_limit(limit: &PosixRlimit) -> Result<()> {
    let kind = resource(limit.typ());
    let own = rustix::process::getrlimit(kind);
    let Rlimit { maximum, .. } = limits(limit);
    if own.maximum.is_none_or(|own| maximum.is_some_and(|wanted| wanted <= own)) {
        return Ok(());
    }
    sys::process::setrlimit(kind, Rlimit { maximum, ..own }).map_err(refused(limit))
}

fn set_rlimit(limit: &PosixRlimit) -> Result<()> {
    sys::process::setrlimit(resource(limit.typ()), limits(limit)).map_err(refused(limit))
}

fn limits(limit: &PosixRlimit) -> Rlimit {
    let value = |value: u64| (value != u64::MAX).then_some(value);
    Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) }
}

/// Names the limit in the kernel's refusal.
pub(super) fn refused(limit: &PosixRlimit) -> impl FnOnce(sys::Error) -> Error {
    |source| Error::Rlimit { name: limit.typ().to_string(), soft: limit.soft(), hard: limit.hard(), source }
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}
