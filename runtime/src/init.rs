//! A container's first process, from its clone to its exec.
//!
//! Everything here runs in the child. The order matters: what needs the host's view (bundle,
//! cgroups, sources of mounts) comes before pivot_root, what needs privileges before they are
//! dropped, and what can fail before `Ready`, so that a start has little left to do.
//!
//! Nothing is resolved by the path of a container (see `beneath`), and nothing of the host is open
//! any more when the container's own settings, such as its working directory, begin to count.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::{ContainerState, Linux, LinuxNamespaceType, LinuxResources, Spec};
use rustix::thread::ThreadNameSpaceType;

use crate::cgroup::Cgroup;
use crate::container::{CommandLine, Reporter};
use crate::hook::Moment;
use crate::seccomp::Filter;
use crate::sys;
use terminal::LineEnds;

mod bundle;
mod capability;
mod cgroupfs;
mod device;
mod error;
mod identity;
mod label;
mod maskedpath;
mod mounts;
mod namespace;
mod netdevice;
mod process;
mod program;
mod rootfs;
mod scheduling;
mod supported;
mod sysctl;
pub(crate) mod terminal;

pub(crate) use bundle::{read_spec, seccomp_of_exec};
pub(crate) use capability::{give_up as give_up_capabilities, withheld as withheld_capabilities};
pub(crate) use cgroupfs::directory as cgroup_directory;
pub(crate) use error::Error;
pub(crate) use identity::{become_root, needs_midwife, write_maps};
pub(crate) use process::{Prepared, give_stdio};
use rootfs::Rootfs;
pub(crate) use scheduling::{reset_affinity, set_final_affinity, set_initial_affinity};

/// What every step here returns.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// The exit code of a child that gave up before its program could be executed.
pub(crate) const EXIT_FAILED: i32 = 128;

/// The container to be made.
pub(crate) struct Setup<'a> {
    pub(crate) bundle: &'a Path,
    pub(crate) cgroup: &'a Cgroup,
    /// Whether the child was born in its cgroup.
    pub(crate) in_cgroup: bool,
    /// Where the master of the process's terminal goes, if it has one.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) command_line: Option<Asked<'a>>,
    /// Those of the pod that a process gets by being born in them.
    pub(crate) pod: PodNamespaces,
    /// The mount namespace from which the container's own is made, unless it is the parent's.
    pub(crate) mounts: Option<OwnedFd>,
    /// Whether this process only prepares the birth of the container's own.
    pub(crate) midwife: bool,
}

/// Namespaces of a pod with users of its own; of any other pod there are none here.
#[derive(Default)]
pub(crate) struct PodNamespaces {
    pub(crate) users: Option<OwnedFd>,
    /// Unless the container has its own.
    pub(crate) pids: Option<OwnedFd>,
}

/// What the command line asks for, with the child's own copies of the descriptors.
pub(crate) struct Asked<'a> {
    pub(crate) line: &'a CommandLine<'a>,
    pub(crate) start: Option<OwnedFd>,
}

/// Makes the container around the calling process, waits for the start and executes its program.
pub(crate) fn run(mut setup: Setup<'_>, reporter: &Reporter) -> Result<Infallible> {
    let read;
    let (spec, asked) = match setup.command_line.take() {
        Some(asked) => (asked.line.spec, Some(asked)),
        None => {
            read = bundle::read_spec(setup.bundle)?;
            (&read, None)
        }
    };
    supported::check(spec, asked.is_some())?;
    let line = asked.as_ref().map(|asked| asked.line);
    let linux = spec.linux().as_ref().ok_or(Error::Missing { field: "linux" })?;
    let root = spec.root().as_ref().ok_or(Error::Missing { field: "root" })?;
    let mut prepared = prepare(&setup, spec, line)?;

    // Modes of what is made are meant as they are written, whatever the parent's mask.
    rustix::process::umask(rustix::fs::Mode::empty());
    sys::process::setsid().map_err(Error::Session)?;
    if let Some(prepared) = &prepared {
        prepared.set_oom_score()?;
    }
    let namespaces = namespace::Namespaces::of(linux, std::mem::take(&mut setup.pod), asked.is_some())?;
    // A limit of 1 leaves no room for a midwife, so hers counts once the container's process is there.
    let (resources, tasks) = match setup.midwife {
        true => apart(linux.resources().as_ref()),
        false => (linux.resources().clone(), None),
    };
    let enter_cgroup = || -> Result<()> {
        enter_cgroup(setup.cgroup, setup.in_cgroup, resources.as_ref(), asked.is_some())?;
        reset_affinity();
        Ok(())
    };
    let path = setup.bundle.join(root.path());
    // A midwife speaks to systemd once more, when it has no way back to the host's mounts.
    let from_base =
        namespaces.has_new(LinuxNamespaceType::Mount) && !(setup.midwife && setup.cgroup.is_scope());
    let base = setup.mounts.take().filter(|_| from_base);
    // What is found by the host's paths comes along when these can't be followed later. Processes that this takes are gone
    // before tasks are limited.
    let ahead = namespaces.of_users() || base.is_some();
    let mut sources = mounts::Sources::open(setup.bundle, spec, namespaces.users_of_pod(), ahead)?;
    let tree = ahead.then(|| Rootfs::open_tree(&path, linux)).transpose()?;
    // Somebody else may be making the cgroup meanwhile. But what is born here is born into it; systemd, which makes scopes, is
    // found by a path; and in somebody else's namespaces the hierarchies may be elsewhere.
    let enters_late = !setup.midwife && !setup.cgroup.is_scope() && namespaces.leave_hierarchies();
    if !enters_late {
        enter_cgroup()?;
    }
    if let Some(base) = base {
        sys::process::setns(base, ThreadNameSpaceType::MOUNT).map_err(Error::NewNamespaces)?;
    }
    if setup.midwife {
        let limit_tasks = || tasks.as_ref().map_or(Ok(()), |tasks| limit_tasks(setup.cgroup, tasks));
        identity::deliver(&namespaces, linux, reporter, limit_tasks)?;
    }
    let network_devices = netdevice::Devices::find(linux, &namespaces)?;
    namespaces.enter()?;
    if let Some(devices) = network_devices {
        devices.take()?;
    }
    // Of the container's user namespace, or its processes could not use it.
    match line {
        Some(line) if line.keyring => {
            sys::credential::join_keyring(line.state.id()).map_err(Error::Keyring)?
        }
        Some(_) => {}
        None => join_keyring_of(setup.bundle)?,
    }

    let rootfs = if namespaces.has_own(LinuxNamespaceType::Mount) {
        Rootfs::prepare(&path, linux.rootfs_propagation().as_deref(), tree)?
    } else {
        Rootfs::as_guest(&path)?
    };
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let cgroups =
        cgroupfs::View { cgroup: setup.cgroup, own_root: namespaces.has_new(LinuxNamespaceType::Cgroup) };
    if enters_late {
        enter_cgroup()?;
    }
    namespaces.enter_that_of_cgroups()?;
    mounts::mount_all(&rootfs, mounts, &cgroups, &mut sources)?;
    let devices = linux.devices().as_deref().unwrap_or_default();
    device::make(&rootfs, mounts, devices, namespaces.of_users())?;
    if let Some(console) = &setup.console {
        let size = spec.process().as_ref().and_then(|process| process.console_size());
        let slave =
            terminal::make(&rootfs, console, size, line.map_or(LineEnds::OfTerminal, |line| line.line_ends))?;
        terminal::bind(&rootfs, &slave)?;
    }
    mounts::close_dev(&rootfs, mounts)?;
    if let Some(line) = line {
        run_creation_hooks(line, &rootfs, reporter)?;
    }
    if let Some(prepared) = &prepared {
        prepared.make_working_directory(&rootfs)?;
    }
    maskedpath::mask(&rootfs, linux.masked_paths().as_deref().unwrap_or_default())?;
    maskedpath::make_read_only(&rootfs, linux.readonly_paths().as_deref().unwrap_or_default())?;
    if let Some(sysctls) = linux.sysctl().as_ref().filter(|sysctls| !sysctls.is_empty()) {
        sysctl::set(sysctls, &namespaces)?;
    }
    if namespaces.has_new(LinuxNamespaceType::Uts) {
        set_names(spec.hostname().as_deref(), spec.domainname().as_deref())?;
    }
    let label = prepared.as_ref().map(Prepared::open_label).transpose()?.flatten();
    rootfs.enter(root.readonly().unwrap_or(false), line.is_none_or(|line| line.pivot))?;
    process::take_own_null()?;
    let mut environment = Vec::new();
    if let (Some(prepared), Some(process), true) = (&mut prepared, spec.process(), line.is_some()) {
        environment = prepared.settle_environment(process.env().as_deref().unwrap_or_default())?;
        prepared.find_program()?;
    }
    set_treatment(linux)?;

    // What is no property of the process has to be there when the container is created (runtime.md, Create). Of a filter
    // somebody takes notice only if he is to be notified; any other goes last, and need not know what comes before.
    let settled = prepared.as_ref().filter(|prepared| prepared.notifies());
    let (settled, label) = match settled {
        Some(prepared) => (prepared.settle_whole(reporter, label).map(|()| true)?, None),
        None => (false, label),
    };
    wait_for_start(asked.as_ref(), reporter)?;
    let prepared = prepared.ok_or(Error::Missing { field: "process" })?;
    if let (Some(line), Some(hooks)) = (line, spec.hooks()) {
        let pid = Some(std::process::id() as i32);
        let hooks = hooks.start_container().as_ref();
        let environment = Some(&*environment);
        let restrict = || if settled { Ok(()) } else { prepared.restrict_hook() };
        let moment = Moment { status: ContainerState::Created, pid, environment, restrict: Some(&restrict) };
        crate::hook::run_all("startContainer", hooks, line.state, moment).map_err(Error::Hook)?;
    }
    if settled { prepared.execute_settled(reporter) } else { prepared.execute(reporter, label) }
}

/// What every process of a container has of its configuration, its first and those of an exec.
pub(crate) fn set_treatment(linux: &Linux) -> Result<()> {
    if let Some(personality) = linux.personality() {
        scheduling::set_personality(personality)?;
    }
    if let Some(policy) = linux.memory_policy() {
        scheduling::set_memory_policy(policy)?;
    }
    Ok(())
}

fn prepare(setup: &Setup<'_>, spec: &Spec, line: Option<&CommandLine<'_>>) -> Result<Option<Prepared>> {
    let linux = spec.linux().as_ref();
    let filter = match line {
        Some(line) => line.seccomp.cloned(),
        None => bundle::seccomp(setup.bundle, linux.and_then(|linux| linux.seccomp().as_ref()))?,
    };
    let preserved = line.map_or(0, |line| line.preserved);
    match spec.process() {
        Some(process) => Prepared::new(process, filter, preserved).map(Some),
        // Only the start needs one.
        None if line.is_some() => Ok(None),
        None => Err(Error::Missing { field: "process" }),
    }
}

/// Those that belong between the last mount and the change of the root. The container's begin at its root, as with runc.
fn run_creation_hooks(line: &CommandLine<'_>, rootfs: &Rootfs, reporter: &Reporter) -> Result<()> {
    let Some(hooks) = line.spec.hooks() else { return Ok(()) };
    #[allow(deprecated, reason = "hooks of the old kind are still in use")]
    let of_runtime = [hooks.prestart(), hooks.create_runtime()];
    if of_runtime.into_iter().flatten().any(|hooks| !hooks.is_empty())
        && !reporter.environment().map_err(Error::Talk)?
    {
        return Err(Error::Abandoned);
    }
    let pid = Some(std::process::id() as i32);
    let hooks = hooks.create_container().as_ref().filter(|hooks| !hooks.is_empty());
    if hooks.is_some() {
        sys::file::fchdir(rootfs).map_err(Error::Pivot)?;
    }
    let moment = Moment::new(ContainerState::Creating, pid);
    crate::hook::run_all("createContainer", hooks, line.state, moment).map_err(Error::Hook)
}

fn wait_for_start(asked: Option<&Asked<'_>>, reporter: &Reporter) -> Result<()> {
    match asked.and_then(|asked| asked.start.as_ref()) {
        Some(listener) => match reporter.wait_for_starter(listener).map_err(Error::Talk)? {
            // Its mask and what is left in it are no business of the program's.
            None => sys::process::reset_signals().map_err(Error::Signals),
            Some(signal) => sys::process::exit(128 + signal),
        },
        None if reporter.wait_for_start().map_err(Error::Talk)? => Ok(()),
        // Nobody is left who could ever start this container.
        None => Err(Error::Abandoned),
    }
}

/// The resources but for the number of tasks, and that.
fn apart(resources: Option<&LinuxResources>) -> (Option<LinuxResources>, Option<LinuxResources>) {
    let mut others = resources.cloned();
    let tasks = others.as_mut().and_then(|others| {
        let pids = others.pids().as_ref().copied()?;
        others.set_pids(None);
        let mut tasks = LinuxResources::default();
        tasks.set_devices(None).set_pids(Some(pids));
        Some(tasks)
    });
    (others, tasks)
}

fn limit_tasks(cgroup: &Cgroup, tasks: &LinuxResources) -> Result<()> {
    cgroup.update(tasks).map_err(|source| Error::Cgroup { path: cgroup.path().to_owned(), source })
}

/// `strictly`: what the host can't limit is an error even where an agent has it passed over.
pub(crate) fn enter_cgroup(
    cgroup: &Cgroup,
    in_cgroup: bool,
    resources: Option<&LinuxResources>,
    strictly: bool,
) -> Result<()> {
    let failed = |source| Error::Cgroup { path: cgroup.path().to_owned(), source };
    if !in_cgroup {
        cgroup.create().map_err(failed)?;
    }
    if let Some(resources) = resources {
        if strictly {
            cgroup.require_huge_pages(resources).map_err(failed)?;
        }
        cgroup.apply(resources).map_err(failed)?;
    }
    if in_cgroup { Ok(()) } else { cgroup.enter().map_err(failed) }
}

/// The session keyring that the processes of a monitor's container share. It goes with the last of them.
pub(crate) fn join_keyring_of(bundle: &Path) -> Result<()> {
    let id = bundle.file_name().unwrap_or_default().to_string_lossy();
    sys::credential::join_keyring(&id).map_err(Error::Keyring)
}

fn set_names(hostname: Option<&str>, domainname: Option<&str>) -> Result<()> {
    if let Some(name) = hostname.filter(|name| !name.is_empty()) {
        sys::process::sethostname(name).map_err(Error::Hostname)?;
    }
    if let Some(name) = domainname.filter(|name| !name.is_empty()) {
        sys::process::setdomainname(name).map_err(Error::Hostname)?;
    }
    Ok(())
}

/// A program with what its profile says about loading it, for a profile that is known.
pub(crate) fn filter(profile: &oci_spec::runtime::LinuxSeccomp) -> Result<Filter> {
    let program = crate::seccomp::compile(profile).map_err(Error::SeccompProgram)?;
    Filter::new(profile, program).map_err(Error::SeccompProgram)
}
