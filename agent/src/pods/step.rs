//! A command of a build: a container in a pod of its own, from its start to its last remains.
//!
//! It has all that a container has (seccomp, no new privileges, the default capabilities, a cgroup, masked paths), and a
//! monitor and network namespace that nobody else is in. There is no record of it: it does not outlive the agent, and a
//! start of the agent removes what an earlier one left, by its state folder and cgroup.

use std::{
    fs,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use oci_spec::runtime::{Mount, MountBuilder};
use rustix::pipe::PipeFlags;
use sampan_runtime::{
    mount::mount_all,
    shim::protocol::{Event, Exit, PidMode as ProtocolPidMode, Request, Response},
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    config::{
        ContainerConfig, NetworkMode, PidMode, PodConfig, PodName, Resources, SeccompProfile, Security,
    },
    files,
    id::{ContainerId, PodId},
    layout::{default_apparmor, resolve_user, write_bundle},
    monitor::{self, Connection, Launch},
    record::UserIds,
    spec,
    task::empty_cgroup,
};
use crate::{
    context::{Context, blocking, private_folder},
    error::{Error, Result, at},
    network::{AttachRequest, Attachment, Network},
    services::container::logs::Reader,
};

/// Longest wait for processes to be gone after SIGKILL, and for the last of their output.
const KILLED: Duration = Duration::from_secs(10);
/// Between two looks at the log of a command that writes without pause.
const PACE: Duration = Duration::from_millis(10);
/// Between two looks at the size of a log.
const LOOK: Duration = Duration::from_millis(50);
const SIGKILL: i32 = 9;

/// A command, with all that it sees.
#[derive(Debug)]
pub(crate) struct Step {
    /// The mounted root file system.
    pub(crate) rootfs: PathBuf,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) directory: String,
    pub(crate) user: String,
    /// In order.
    pub(crate) mounts: Vec<StepMount>,
    pub(crate) network: NetworkMode,
    pub(crate) hostname: String,
    /// Names for `/etc/hosts` beside its own.
    pub(crate) hosts: Vec<(String, IpAddr)>,
    pub(crate) resources: Resources,
    /// Where its output goes, in CRI's format.
    pub(crate) log: PathBuf,
    /// After which it is killed.
    pub(crate) limit: Duration,
    /// Bytes that the log may come to before it is killed.
    pub(crate) output: u64,
}

/// Something mounted for a command.
#[derive(Debug)]
pub(crate) struct StepMount {
    pub(crate) target: PathBuf,
    pub(crate) source: StepSource,
    pub(crate) readonly: bool,
}

/// What is mounted.
#[derive(Debug)]
pub(crate) enum StepSource {
    Path(PathBuf),
    /// In memory only.
    File {
        content: Arc<Vec<u8>>,
        uid: u32,
        gid: u32,
        mode: u32,
    },
    Tmpfs(Option<u64>),
}

/// A piece of output: whether it came by standard error, what, and when in nanoseconds since 1970.
pub(crate) type Piece = (bool, Vec<u8>, i64);

/// Runs a command to its end. Its output goes to `output`; when `cancel` is cancelled, or the time is over, it is killed.
/// Nothing of it is left afterwards.
///
/// # Errors
/// `InvalidArgument` when there is no such program or user, `Cancelled`, `DeadlineExceeded`, and what the machine refuses.
pub(crate) async fn run(
    context: &Arc<Context>,
    step: Step,
    output: mpsc::Sender<Piece>,
    cancel: CancellationToken,
) -> Result<Exit> {
    let pod = PodId::random();
    let mut running = Running {
        folder: context.pod_state(&pod),
        context: context.clone(),
        cgroup: context.pod_cgroup(&pod),
        pod,
        id: ContainerId::random(),
        log: step.log.clone(),
        control: None,
        attachment: None,
    };
    let ended = running.run(step, output, cancel).await;
    if let Err(error) = running.take_down().await {
        warn!(error = %error.chain(), "remains of a build's command are left until the next start");
    }
    ended
}

struct Running {
    context: Arc<Context>,
    pod: PodId,
    id: ContainerId,
    folder: PathBuf,
    cgroup: String,
    log: PathBuf,
    control: Option<Connection>,
    attachment: Option<Attachment>,
}

impl Running {
    async fn run(
        &mut self,
        step: Step,
        output: mpsc::Sender<Piece>,
        cancel: CancellationToken,
    ) -> Result<Exit> {
        private_folder(&self.folder)?;
        let config = pod_config(&step);
        let sysctl = ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        let host = config.network == NetworkMode::Host;
        let launch = Launch {
            launcher: &self.context.launcher,
            pod: &self.pod,
            folder: &self.folder,
            cgroup: &format!("{}/monitors", self.context.config.cgroup.root),
            mounts: self.context.mounts.as_ref(),
            hostname: (!host).then_some(config.hostname.as_str()),
            host_network: host,
            host_ipc: false,
            users: None,
            shared_pid: false,
            sysctls: if host { vec![] } else { vec![sysctl] },
            procfs: &self.context.procfs.get(),
        };
        let control = monitor::launch(&launch).await?;
        let pid = control.pid;
        self.control = Some(control);
        let events = Connection::open(&self.pod, &self.folder).await?;
        events.command(&Request::Subscribe).await?;
        self.connect(pid, config.network).await?;
        let (limit, output_limit, log) = (step.limit, step.output, step.log.clone());
        let (context, folder, id) = (self.context.clone(), self.folder.clone(), self.id.clone());
        let (attachment, cgroup) = (self.attachment.clone(), format!("{}/{}", self.cgroup, self.id));
        let container_cgroup = cgroup.clone();
        blocking(move || {
            files::create(&folder, &config, &config.hostname, attachment.as_ref())?;
            lay_out(&context, &folder, &id, &config, step, &container_cgroup)
        })
        .await?;
        let control = self.control.as_ref().ok_or_else(|| Error::Internal("there is no monitor".into()))?;
        let create = Request::Create {
            id: self.id.to_string(),
            bundle: self.folder.join(self.id.as_str()),
            cgroup,
            log: Some(log.clone()),
            pid: ProtocolPidMode::Private,
            stdin: false,
            terminal: false,
            runtime: None,
        };
        match control.request(&create).await? {
            Response::Created { .. } => {}
            other => return Err(Error::Internal(format!("the monitor answered {other:?} to a creation"))),
        }
        let watched = Watched::attach(&self.pod, &self.folder, &self.id).await?;
        let mut following = tokio::spawn(watched.follow(log.clone(), output));
        let outgrown = outgrown(&log, output_limit);
        let ended = self.start_and_wait(&events, limit, outgrown, cancel).await;
        // All output is written before the pipes end; a log that cannot be read must not hold up anybody.
        let followed = tokio::time::timeout(KILLED, &mut following).await;
        if !matches!(followed, Ok(Ok(Ok(())))) {
            following.abort();
            debug!(?followed, "the last output of a build's command was not read");
        }
        ended
    }

    async fn start_and_wait(
        &self,
        events: &Connection,
        limit: Duration,
        outgrown: impl Future<Output = Error>,
        cancel: CancellationToken,
    ) -> Result<Exit> {
        let control = self.control.as_ref().ok_or_else(|| Error::Internal("there is no monitor".into()))?;
        control.request(&Request::Start { id: self.id.to_string() }).await?;
        let failed = tokio::select! {
            exit = exited(events) => return exit,
            () = cancel.cancelled() => Error::Cancelled("the build was cancelled".into()),
            () = tokio::time::sleep(limit) => Error::Deadline { what: "the command".into(), limit },
            error = outgrown => error,
        };
        control.command(&Request::Kill { id: self.id.to_string(), signal: SIGKILL, all: true }).await?;
        // What is left after that is killed by its cgroup.
        let _ = tokio::time::timeout(KILLED, exited(events)).await;
        Err(failed)
    }

    async fn connect(&mut self, pid: i32, mode: NetworkMode) -> Result<()> {
        if mode == NetworkMode::Host {
            return Ok(());
        }
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let attachment = blocking(move || {
            let path = format!("/proc/{pid}/ns/net");
            let netns = fs::File::open(&path).map_err(at("open", path))?.into();
            if mode == NetworkMode::None {
                Network::loopback(&netns)?;
                return Ok(None);
            }
            let procfs = context.procfs.get();
            let request =
                AttachRequest { pod_id: pod.as_str(), netns: &netns, ports: &[], procfs: &procfs.path() };
            Ok::<_, Error>(Some(context.network()?.attach(&request)?))
        });
        self.attachment = attachment.await?;
        Ok(())
    }

    /// Each part is tried, whatever became of the others; the first failure is told.
    async fn take_down(mut self) -> Result<()> {
        let mut pid = None;
        if let Some(control) = self.control.take() {
            pid = Some(control.pid);
            if control.command(&Request::Shutdown).await.is_ok() {
                // The connection closes when the process is gone.
                let _ = tokio::time::timeout(KILLED, async {
                    while let Ok(Some(_)) = control.receive().await {}
                })
                .await;
            }
        }
        let Running { context, pod, folder, cgroup, attachment, log, .. } = self;
        blocking(move || {
            let killed = pid.map_or(Ok(()), |pid| monitor::kill(pid, &pod));
            let emptied = empty_cgroup(&cgroup);
            let detached = attachment.map_or(Ok(()), |attachment| context.depart(&pod, &attachment));
            let unmounted = files::remove(&folder)
                .map_err(|source| Error::Mount { container: pod.to_string(), source })
                .and_then(|()| remove_folder(&folder));
            let _ = fs::remove_file(&log);
            killed.and(emptied).and(detached).and(unmounted)
        })
        .await
    }
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(at("remove", folder)),
    }
}

/// Waits until a command's log has become too large.
async fn outgrown(log: &Path, limit: u64) -> Error {
    loop {
        tokio::time::sleep(LOOK).await;
        if fs::metadata(log).is_ok_and(|metadata| metadata.len() > limit) {
            return Error::Exhausted(format!(
                "the command was stopped: its output came to more than {} MB (build.output_bytes)",
                limit / 1_000_000
            ));
        }
    }
}

async fn exited(events: &Connection) -> Result<Exit> {
    loop {
        match events.receive().await? {
            Some(Response::Event(Event::Exited { exit, .. })) => return Ok(exit),
            Some(other) => debug!(?other, "unexpected message from the monitor"),
            None => return Err(Error::Internal("the command's monitor is gone".into())),
        }
    }
}

/// A container's output, watched: the log file has all of it, and the pipes say when there is more and when it is all.
struct Watched {
    _connection: Connection,
    pipes: [pipe::Receiver; 2],
}

impl Watched {
    async fn attach(pod: &PodId, folder: &Path, id: &ContainerId) -> Result<Watched> {
        let failed = |error: std::io::Error| Error::Internal(format!("make a pipe: {error}"));
        let connection = Connection::open(pod, folder).await?;
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (out_read, out_write) = rustix::pipe::pipe_with(flags).map_err(|errno| failed(errno.into()))?;
        let (err_read, err_write) = rustix::pipe::pipe_with(flags).map_err(|errno| failed(errno.into()))?;
        connection.attach(id, [out_write.as_fd(), err_write.as_fd()]).await?;
        let receiver = |end| pipe::Receiver::from_owned_fd(end).map_err(failed);
        Ok(Watched { pipes: [receiver(out_read)?, receiver(err_read)?], _connection: connection })
    }

    /// Gives on what is in the log until there will be no more.
    async fn follow(self, log: PathBuf, output: mpsc::Sender<Piece>) -> Result<()> {
        let Watched { _connection, pipes: [mut out, mut err] } = self;
        let mut reader = Reader::open(log, -1, 0)?;
        let (mut out_open, mut err_open) = (true, true);
        let (mut one, mut two) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        loop {
            tokio::select! {
                read = out.read(&mut one), if out_open => out_open = read.is_ok_and(|length| length > 0),
                read = err.read(&mut two), if err_open => err_open = read.is_ok_and(|length| length > 0),
                else => {}
            }
            let over = !out_open && !err_open;
            if !over {
                tokio::time::sleep(PACE).await;
            }
            loop {
                let (returned, entries) = blocking(move || {
                    let entries = reader.next();
                    (reader, entries)
                })
                .await;
                reader = returned;
                let entries = entries?;
                if entries.is_empty() {
                    break;
                }
                for entry in entries {
                    let stderr = entry.stream == sampan_proto::sampan::LogStream::Stderr as i32;
                    // Nobody listening is no reason to stop reading.
                    let _ = output.send((stderr, entry.data, entry.timestamp)).await;
                }
            }
            if over {
                return Ok(());
            }
        }
    }
}

fn pod_config(step: &Step) -> PodConfig {
    PodConfig {
        name: PodName { name: "build".into(), uid: String::new(), namespace: "sampan".into(), attempt: 0 },
        hostname: step.hostname.clone(),
        log_directory: None,
        dns: None,
        hosts: step.hosts.clone(),
        ports: vec![],
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: None,
        sysctls: Default::default(),
        network: step.network,
        pid: PidMode::Container,
        host_ipc: false,
        users: None,
        resources: Resources::default(),
        privileged: false,
        runtime_handler: String::new(),
        auto_remove: false,
        standalone: true,
    }
}

/// Writes the bundle: the specification that a container would have, and the step's own mounts on top.
fn lay_out(
    context: &Context,
    folder: &Path,
    id: &ContainerId,
    pod: &PodConfig,
    step: Step,
    cgroup: &str,
) -> Result<()> {
    let security = Security {
        run_as_username: step.user.clone(),
        no_new_privileges: true,
        seccomp: SeccompProfile::Default,
        ..Security::default()
    };
    let user = resolve_user(&step.rootfs, &security, None)?;
    let ids = UserIds { uid: user.uid, gid: user.gid, groups: user.additional_gids.clone() };
    let container = ContainerConfig {
        name: "step".into(),
        attempt: 0,
        image: String::new(),
        image_ref: String::new(),
        command: step.argv.clone(),
        args: vec![],
        working_dir: step.directory.clone(),
        env: step.env.clone(),
        mounts: vec![],
        volumes: vec![],
        devices: vec![],
        tmpfs: Default::default(),
        rlimits: vec![],
        cdi_devices: vec![],
        labels: Default::default(),
        annotations: Default::default(),
        log_path: String::new(),
        resources: step.resources.clone(),
        security,
        stop_signal: None,
        stdin: false,
        tty: false,
        stdin_once: false,
    };
    let mut spec = spec::build(&spec::Input {
        pod,
        container: &container,
        image: None,
        user: &ids,
        home: user.home.as_deref(),
        hostname: &pod.hostname,
        rootfs: &step.rootfs,
        cgroup,
        pod_files: &files::mounts(folder, pod),
        volumes: &[],
        devices: &[],
        default_apparmor: default_apparmor(),
        open_files: &context.open_files,
    })?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let memory = step.mounts.iter().any(|mount| matches!(mount.source, StepSource::File { .. }));
    let secrets = if memory { Some(files::mount_secrets(folder)?) } else { None };
    for (number, mount) in step.mounts.iter().enumerate() {
        mounts.push(described(mount, secrets.as_deref(), number)?);
    }
    spec.set_mounts(Some(mounts));
    write_bundle(context, &folder.join(id.as_str()), spec, &container.security, false)?;
    if let Some(directory) = step.log.parent() {
        fs::create_dir_all(directory).map_err(at("create", directory))?;
    }
    Ok(())
}

fn described(mount: &StepMount, secrets: Option<&Path>, number: usize) -> Result<Mount> {
    let access = if mount.readonly { "ro" } else { "rw" };
    let (kind, source, options) = match &mount.source {
        StepSource::Path(path) => {
            ("bind", path.clone(), vec!["rbind".to_owned(), "rprivate".to_owned(), access.to_owned()])
        }
        StepSource::File { content, uid, gid, mode } => {
            let folder = secrets.ok_or_else(|| Error::Internal("there is no place for a secret".into()))?;
            let path = folder.join(number.to_string());
            write_secret(&path, content, (*uid, *gid), *mode)?;
            ("bind", path, vec!["bind".to_owned(), "rprivate".to_owned(), access.to_owned()])
        }
        StepSource::Tmpfs(size) => {
            let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), "mode=1777".to_owned()];
            options.extend(size.map(|size| format!("size={size}")));
            ("tmpfs", PathBuf::from("tmpfs"), options)
        }
    };
    MountBuilder::default()
        .destination(&mount.target)
        .typ(kind)
        .source(source)
        .options(options)
        .build()
        .map_err(|error| Error::Internal(format!("describe a mount: {error}")))
}

fn write_secret(path: &Path, content: &[u8], (uid, gid): (u32, u32), mode: u32) -> Result<()> {
    use std::{
        io::Write as _,
        os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    };
    let written =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| {
            file.write_all(content)?;
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
            file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
        });
    written.map_err(at("write", path))
}

/// Performs the mounts of a snapshot.
pub(crate) fn mount(mounts: &[Mount], target: &Path) -> Result<()> {
    mount_all(mounts, target, None)
        .map_err(|source| Error::Mount { container: target.display().to_string(), source })
}

/// Takes a mount away; none is fine.
pub(crate) fn unmount(target: &Path) -> Result<()> {
    sampan_runtime::mount::unmount(target)
        .map_err(|source| Error::Mount { container: target.display().to_string(), source })
}
