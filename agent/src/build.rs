//! Building: the runner that the image store's builder has its commands run by, and logs of builds that are kept.

pub(crate) mod log;

use std::{path::PathBuf, sync::Arc, time::Duration};

use oci_spec::runtime::Mount;
use sampan_imagestore::build::{
    Bind, BindSource, BuilderOptions, Command, Error as BuildError, Exit, Network, Output, Runner,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    config,
    context::Context,
    error::{Error, Kind, chain},
    pods::{
        config::{CPU_PERIOD, NetworkMode, Resources, environment_variable},
        step::{self, Step, StepMount, StepSource},
    },
    services::image::MOUNT_POINTS,
};

/// What machines are called that commands of builds run on: the same for every build, for it may get into what they make.
const HOSTNAME: &str = "sampan-build";

/// How the builder goes about things, by the agent's configuration.
pub(crate) fn options(config: &config::Build) -> BuilderOptions {
    let default = BuilderOptions::default();
    BuilderOptions { parallel: config.parallel.unwrap_or(default.parallel), keep_bytes: config.keep_bytes }
}

/// Runs commands of builds as containers.
pub(crate) struct Steps {
    pub(crate) context: Arc<Context>,
}

impl Runner for Steps {
    fn mount(&self, mounts: &[Mount], at: &std::path::Path) -> Result<(), BuildError> {
        step::mount(mounts, at).map_err(refused)
    }

    fn unmount(&self, at: &std::path::Path) -> Result<(), BuildError> {
        step::unmount(at).map_err(refused)
    }

    fn run(
        &self,
        command: Command,
        output: mpsc::Sender<Output>,
        cancel: CancellationToken,
    ) -> futures_util::future::BoxFuture<'static, Result<Exit, BuildError>> {
        let context = self.context.clone();
        Box::pin(async move {
            let step = converted(&context, command).map_err(refused)?;
            let (sender, mut pieces) = mpsc::channel(64);
            let giving = async {
                while let Some((stderr, data, time)) = pieces.recv().await {
                    // Nobody listening is no reason to stop.
                    let _ = output.send(Output { stderr, data, time }).await;
                }
            };
            let (exit, ()) = tokio::join!(step::run(&context, step, sender, cancel), giving);
            let exit = exit.map_err(refused)?;
            let mount_points = MOUNT_POINTS.iter().map(PathBuf::from).collect();
            Ok(Exit { code: exit.code, oom_killed: exit.oom_killed, mount_points })
        })
    }

    fn allow(&self, network: Network, insecure: bool) -> Result<(), BuildError> {
        let config = &self.context.config.build;
        if insecure {
            return Err(BuildError::Denied(
                "--security=insecure is not allowed to builds on this node".into(),
            ));
        }
        if network == Network::Host && !config.host_network {
            let text = "--network=host is not allowed to builds on this node; build.host_network in the configuration \
                        of the agent allows it";
            return Err(BuildError::Denied(text.into()));
        }
        Ok(())
    }
}

fn converted(context: &Context, command: Command) -> Result<Step, Error> {
    let config = &context.config.build;
    let or = |asked: i64, default: Option<i64>| if asked > 0 { Some(asked) } else { default };
    let quota =
        or(command.cpu_millis, config.cpu_millis).map(|millis| millis * CPU_PERIOD.cast_signed() / 1000);
    Ok(Step {
        rootfs: command.rootfs,
        argv: command.arguments,
        env: command.environment.iter().map(|pair| environment_variable(pair)).collect::<Result<_, _>>()?,
        directory: command.directory,
        user: command.user,
        mounts: command.mounts.into_iter().map(mount).collect(),
        network: match command.network {
            Network::Default => NetworkMode::Pod,
            Network::None => NetworkMode::None,
            Network::Host => NetworkMode::Host,
        },
        hostname: if command.hostname.is_empty() { HOSTNAME.to_owned() } else { command.hostname },
        hosts: command.hosts,
        resources: Resources {
            cpu_period: quota.map(|_| CPU_PERIOD),
            cpu_quota: quota,
            memory_limit: or(command.memory, config.memory_bytes),
            pids_limit: Some(config.pids),
            ..Resources::default()
        },
        log: log::outputs(&context.config.root).join(&command.id),
        limit: Duration::from_secs(config.step_seconds.max(1)),
        output: config.output_bytes,
    })
}

fn mount(bind: Bind) -> StepMount {
    let source = match bind.source {
        BindSource::Path(path) => StepSource::Path(path),
        BindSource::File { content, uid, gid, mode } => StepSource::File { content, uid, gid, mode },
        BindSource::Tmpfs(size) => StepSource::Tmpfs(size),
    };
    StepMount { target: bind.target, source, readonly: bind.readonly }
}

/// An error of the agent, as the builder passes it on.
fn refused(error: Error) -> BuildError {
    use sampan_imagestore::Kind as Image;
    let kind = match error.kind() {
        Kind::Cancelled => return BuildError::Cancelled,
        Kind::NotFound => Image::NotFound,
        Kind::AlreadyExists => Image::AlreadyExists,
        Kind::InvalidArgument => Image::InvalidArgument,
        Kind::FailedPrecondition => Image::FailedPrecondition,
        Kind::Unavailable => Image::Unavailable,
        Kind::Unauthenticated => Image::Unauthenticated,
        Kind::Untrusted => Image::Untrusted,
        Kind::ResourceExhausted => Image::ResourceExhausted,
        Kind::DataLoss => Image::DataLoss,
        Kind::DeadlineExceeded => Image::DeadlineExceeded,
        Kind::Unimplemented | Kind::Internal => Image::Internal,
    };
    BuildError::Runner { kind, message: chain(&error) }
}
