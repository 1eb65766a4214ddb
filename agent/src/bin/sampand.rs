//! `sampand`: the agent. Logging → configuration → stores → recovery → socket → signal → drain.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sampan_agent::{
    config::{Config, Overrides},
    context::Context,
    pods::Pods,
    room, server,
    stats::{Collector, endpoint},
    streaming::Streaming,
    telemetry,
};
use sampan_imagestore::Store;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// What calls in flight get to finish once the agent is told to end.
const DRAIN: Duration = Duration::from_secs(10);
/// What the disk gets to take the layers of the last pulls. Those that it does not take are unpacked again after the
/// next boot.
const SETTLE: Duration = Duration::from_secs(30);

/// The node agent: pulls images, runs pods, serves CRI v1 and sampan.v1 on a unix socket.
#[derive(Debug, Parser)]
#[command(name = "sampand", version)]
struct Arguments {
    /// Configuration file (TOML) [default: /etc/sampan/config.toml, which need not exist].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of what survives a reboot: images, layers, records.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder of what a reboot makes void: sockets, bundles.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The gRPC socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Log filter, such as `info` or `sampan_agent=debug`.
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

fn main() -> ExitCode {
    match main_exec() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("sampand: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn main_exec() -> anyhow::Result<()> {
    sampan_runtime::keep_little();
    // Whoever starts it may have none; what is stricter stays.
    let usual = rustix::fs::Mode::from_raw_mode(0o022);
    let given = rustix::process::umask(usual);
    rustix::process::umask(given | usual);
    let open_files = use_all_descriptors();
    let arguments = Arguments::parse();
    let overrides = Overrides {
        root: arguments.root,
        state: arguments.state,
        socket: arguments.socket,
        log_level: arguments.log_level,
    };
    let config = Config::load(arguments.config.as_deref(), &overrides)?;
    telemetry::start(&config.log).context("start logging")?;
    // Two threads serve; what blocks has threads of its own, which go when they are idle.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(Duration::from_secs(5))
        .enable_all()
        .build()?;
    let result = runtime.block_on(run(config, open_files));
    runtime.shutdown_timeout(DRAIN);
    result
}

/// Gives this process as many as it may have, and tells what it was started with, which is for what it starts: each pod costs
/// the agent some, and the usual limit of 1024 is for programs that call select(2).
fn use_all_descriptors() -> Rlimit {
    let limit = getrlimit(Resource::Nofile);
    // What is allowed anyway can't be refused; with fewer the agent serves fewer pods.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    limit
}

async fn run(config: Config, open_files: Rlimit) -> anyhow::Result<()> {
    let socket = config.socket.clone();
    info!(version = env!("CARGO_PKG_VERSION"), root = %config.root.display(), "starting");
    let listener = server::listen(&socket).await?;
    let context = tokio::task::spawn_blocking(move || Context::open(config, open_files))
        .await?
        .context("open the stores")?;
    let store = context.store.clone();
    let pods = Pods::new(Arc::new(context));
    pods.recover().await?;
    let collector = Collector::new(pods.clone());
    tokio::spawn(collector.clone().run());
    tokio::spawn(room::watch(pods.clone()));
    let streaming = Streaming::start(&pods.context().config.streaming, pods.clone()).await?;
    if let Some(address) = pods.context().config.metrics.address {
        let listener = endpoint::listen(address).await?;
        info!(address = %listener.local_addr()?, "metrics are served");
        tokio::spawn(endpoint::serve(listener, pods.context().clone(), collector.clone()));
    }
    tokio::spawn(watchdog());
    notify(&[NotifyState::Ready]);
    info!(socket = %socket.display(), "serving");
    let mut server = std::pin::pin!(server::serve(listener, pods, collector, streaming, told_to_end()));
    tokio::select! {
        ended = &mut server => return ended,
        () = told_to_end() => {}
    }
    notify(&[NotifyState::Stopping]);
    info!("ending; containers run on");
    let ended = tokio::time::timeout(DRAIN, server).await.unwrap_or_else(|_| {
        warn!("calls were still in flight when the agent ended");
        Ok(())
    });
    settle(store).await;
    ended
}

/// Has the layers of the last pulls on the disk before the machine may go down.
async fn settle(store: Store) {
    let settled = tokio::task::spawn_blocking(move || store.settle());
    match tokio::time::timeout(SETTLE, settled).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            warn!(error = &error as &dyn std::error::Error, "layers did not reach the disk")
        }
        Ok(Err(error)) => warn!(%error, "layers did not reach the disk"),
        Err(_) => warn!("the disk was still taking layers when the agent ended"),
    }
}

async fn told_to_end() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Tells systemd that the agent still turns, twice in each of its periods.
async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(period / 2);
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd could not be told");
    }
}

/// Before logging is set up, and when it cannot be, standard error is all there is.
#[allow(clippy::print_stderr)]
fn tell(text: &str) {
    eprintln!("{text}");
}
