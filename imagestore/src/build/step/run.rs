//! RUN: what the command sees, and what is left of it.
//!
//! Sources of mounts are resolved where nobody can change them: in a read-only view of a stage, in a copy of the context's
//! files, in a directory that no process has yet. A cache mount is mounted whole. Secrets are neither in a key nor in a
//! layer nor on a disk.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Done, Failed, Feed, Listener, Site, Task, blocking};
use crate::{
    ChainId,
    build::{
        Bind, BindSource, Command, Error, Mount, MountKind, Network, Origin, Run, Sharing,
        cache::Key,
        files::Temporary,
        mounts, pad,
        pad::View,
        transfer::{self, Changes, Destination, Wanted},
        tree::{Tree, join, resolve},
    },
    gc::Lease,
    image::Layer,
};

/// Where a directory of the context is put for a mount, in a directory of its own.
const MOUNTED: &str = "files";

/// Something that has to stay until the command has ended.
enum Kept {
    View(#[allow(dead_code)] View),
    Copy(#[allow(dead_code)] Temporary),
}

/// A RUN with what it needs, apart from the build that asks for it.
struct Prepared {
    run: Run,
    parent: Option<ChainId>,
    /// The chains of the origins of its mounts, in their order.
    chains: Vec<Option<ChainId>>,
}

impl Site {
    pub(super) async fn run(
        self: &Arc<Self>,
        task: &Task<'_>,
        run: &Run,
        listener: Listener,
    ) -> Result<Done, Failed> {
        let network = if run.network == Network::Default { self.network } else { run.network };
        self.runner.allow(network, run.insecure)?;
        let chains: Vec<Option<ChainId>> = run.mounts.iter().map(|mount| origin(task, mount)).collect();
        let mut quick = self.run_key(task, run);
        let mut reads_stages = false;
        for (mount, chain) in run.mounts.iter().zip(&chains) {
            if let MountKind::Bind { from, source, .. } = &mount.kind
                && *from != Origin::Context
            {
                reads_stages = true;
                let chain = chain.as_ref().map(ToString::to_string).unwrap_or_default();
                quick.add(&format!("mounted at {}", mount.target), format!("{chain} {source}"));
            }
        }
        if reads_stages && let Some(done) = self.cached(task, &quick.digest()).await? {
            return Ok(done);
        }
        let mut key = self.run_key(task, run);
        for (mount, chain) in run.mounts.iter().zip(&chains) {
            if let MountKind::Bind { from, source, .. } = &mount.kind {
                key.add(
                    &format!("files at {}", mount.target),
                    self.mounted(from, source, chain.as_ref()).await?,
                );
            }
        }
        if let Some(done) = self.cached(task, &key.digest()).await? {
            if reads_stages {
                self.builder.cache.alias(&quick.digest(), &key.digest());
            }
            return Ok(done);
        }
        let prepared = Prepared { run: run.clone(), parent: task.parent().cloned(), chains };
        let site = self.clone();
        let work = move |feed: Arc<Feed>, token: CancellationToken| async move {
            site.execute(prepared, network, &feed, token).await
        };
        let quick = reads_stages.then(|| quick.digest());
        self.fly(task, &key, quick.as_ref(), listener, work).await
    }

    /// All that counts but the contents of what is mounted.
    fn run_key(&self, task: &Task<'_>, run: &Run) -> Key {
        let mut key = self.key(task, "RUN");
        for (number, argument) in run.arguments.iter().enumerate() {
            key.add(&format!("argument {number}"), &**argument);
        }
        key.add("script", run.script.as_ref().map(|script| script.content.clone()).unwrap_or_default());
        for pair in &*run.environment {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            key.add(&format!("variable {name}"), value);
        }
        key.add("directory", &*run.directory);
        key.add("user", &*run.user);
        let network = if run.network == Network::Default { self.network } else { run.network };
        key.add("network", format!("{network:?}"));
        key.add("insecure", run.insecure.to_string());
        key.add("hostname", &*self.hostname);
        key.add("hosts", format!("{:?}", self.hosts));
        for mount in &run.mounts {
            key.add(&format!("mount at {}", mount.target), counted(&mount.kind, task));
        }
        key
    }

    /// What the files of a bind mount count for.
    async fn mounted(
        self: &Arc<Self>,
        from: &Origin,
        source: &str,
        chain: Option<&ChainId>,
    ) -> Result<String, Failed> {
        let (site, from, source, chain) = (self.clone(), from.clone(), source.to_owned(), chain.cloned());
        let from_context = from == Origin::Context;
        let select = move |tree: &dyn Tree, source: &str| {
            let mut picks = Vec::new();
            let wanted = Wanted { path: source, pivot: None, parents: false, exclude: &[] };
            transfer::select(tree, &wanted, &super::copy::called(&from), &mut picks).map(|()| picks)
        };
        let print = match chain {
            Some(chain) => {
                blocking(move || {
                    let view = site.view(&chain, false)?;
                    let picks = select(view.tree(), &source)?;
                    transfer::fingerprint(view.tree(), &picks)
                })
                .await?
            }
            None if from_context => {
                let context = self.context.clone();
                let found = context.clone();
                let picks = blocking(move || select(&*found, &source)).await?;
                context.fetch(picks.iter().map(|pick| &*pick.from)).await?;
                blocking(move || transfer::fingerprint(&*context, &picks)).await?
            }
            None => return Ok(String::new()),
        };
        Ok(hex::encode(print))
    }

    /// Runs the command, and makes a layer of what it wrote.
    async fn execute(
        self: &Arc<Self>,
        prepared: Prepared,
        network: Network,
        feed: &Feed,
        token: CancellationToken,
    ) -> Result<(Option<Layer>, Lease), Failed> {
        let cancelled = || Failed::from(Error::Cancelled);
        let run = &prepared.run;
        // Before the slot: who waits for a cache mount must not keep a command from running that has it.
        let caches = tokio::select! {
            caches = self.cache_mounts(&prepared) => caches?,
            () = token.cancelled() => return Err(cancelled()),
        };
        let _slot = tokio::select! {
            slot = self.builder.slots.acquire() => slot.map_err(|_| cancelled())?,
            () = token.cancelled() => return Err(cancelled()),
        };
        let (mut kept, mut binds, mut environment) = (Vec::new(), Vec::new(), self.environment(run));
        for (mount, chain) in run.mounts.iter().zip(&prepared.chains) {
            let bind = tokio::select! {
                bind = self.bind(mount, chain.as_ref(), &caches, &mut kept, &mut environment) => bind?,
                () = token.cancelled() => return Err(cancelled()),
            };
            binds.extend(bind);
        }
        if let Some(script) = &run.script {
            let content = Arc::new(script.content.clone().into_bytes());
            let source = BindSource::File { content, uid: 0, gid: 0, mode: 0o755 };
            binds.push(Bind { target: PathBuf::from(&script.path), source, readonly: true });
        }
        let (site, parent) = (self.clone(), prepared.parent.clone());
        let (pad, rootfs) = blocking(move || {
            let mut pad = site.pad(parent.as_ref())?;
            let rootfs = pad.mount()?;
            Ok::<_, Error>((pad, rootfs))
        })
        .await?;
        let mut mount_points: Vec<PathBuf> = binds.iter().map(|bind| bind.target.clone()).collect();
        let command = Command {
            id: self.name(),
            rootfs,
            arguments: run.arguments.clone(),
            environment,
            directory: run.directory.clone(),
            user: run.user.clone(),
            mounts: binds,
            network,
            hostname: self.hostname.clone(),
            hosts: self.hosts.clone(),
            memory: self.memory,
            cpu_millis: self.cpu_millis,
        };
        let (sender, mut outputs) = mpsc::channel(64);
        let running = self.runner.run(command, sender, token.clone());
        let telling = async {
            while let Some(output) = outputs.recv().await {
                feed.tell(output).await;
            }
        };
        let (ended, ()) = tokio::join!(running, telling);
        let site = self.clone();
        blocking(move || {
            let mut pad = pad;
            pad.unmount()?;
            // What was mounted is not needed any more, and what was written into it is nobody's.
            drop((kept, caches));
            let exit = ended?;
            mount_points.extend(exit.mount_points);
            if token.is_cancelled() {
                return Err(Failed::from(Error::Cancelled));
            }
            if exit.code == 0 {
                return site.keep(pad, &mount_points);
            }
            let (code, oom_killed) = (exit.code, exit.oom_killed);
            let error = Error::Command { code, oom_killed, disk_full: is_full(&pad) };
            let wreck = if site.debug { Some(Arc::new(site.keep(pad, &mount_points)?)) } else { None };
            Err(Failed { error, wreck, explanation: String::new() })
        })
        .await
    }

    fn environment(&self, run: &Run) -> Vec<String> {
        run.environment.iter().chain(&*run.proxies).cloned().collect()
    }

    /// What is to be mounted; nothing for a secret that need not be there or is in a variable only.
    async fn bind(
        self: &Arc<Self>,
        mount: &Mount,
        chain: Option<&ChainId>,
        caches: &BTreeMap<String, mounts::Held>,
        kept: &mut Vec<Kept>,
        environment: &mut Vec<String>,
    ) -> Result<Option<Bind>, Failed> {
        let target = PathBuf::from(&mount.target);
        let (source, readonly) = match &mount.kind {
            MountKind::Bind { from, source, writable } => {
                let path = self.files_for(from, source, chain, *writable, kept).await?;
                (BindSource::Path(path), !writable)
            }
            MountKind::Cache { id, from, source, writable, .. } => {
                let name = format!("{id}{}", begins(from, source, chain));
                let held =
                    caches.get(&name).ok_or_else(|| Error::Missing(format!("the cache mount {id}")))?;
                (BindSource::Path(held.path()), !writable)
            }
            MountKind::Tmpfs { size } => (BindSource::Tmpfs(*size), false),
            MountKind::Secret { id, required, variable, uid, gid, mode } => {
                let Some(content) = self.secrets.get(id) else {
                    if *required {
                        let message = format!("the secret {id:?} was not given: --secret id={id},src=FILE");
                        return Err(Error::Missing(message).into());
                    }
                    return Ok(None);
                };
                if let Some(name) = variable {
                    let value =
                        String::from_utf8((**content).clone()).ok().filter(|value| !value.contains('\0'));
                    let value = value.ok_or_else(|| {
                        Error::Invalid(format!(
                            "the secret {id:?} is no text, and cannot be in the variable {name}"
                        ))
                    })?;
                    environment.push(format!("{name}={value}"));
                }
                if mount.target.is_empty() {
                    return Ok(None);
                }
                let content = content.clone();
                (BindSource::File { content, uid: *uid, gid: *gid, mode: *mode }, true)
            }
        };
        Ok(Some(Bind { target, source, readonly }))
    }

    /// A directory or file of this machine with what a bind mount shows.
    async fn files_for(
        self: &Arc<Self>,
        from: &Origin,
        source: &str,
        chain: Option<&ChainId>,
        writable: bool,
        kept: &mut Vec<Kept>,
    ) -> Result<PathBuf, Failed> {
        let (site, from, source) = (self.clone(), from.clone(), source.to_owned());
        if let Some(chain) = chain.cloned() {
            let (view, path) = blocking(move || {
                let view = site.view(&chain, writable)?;
                let found = resolve(view.tree(), source.as_bytes(), true)?;
                let missing = || Error::Missing(format!("{source} is not in {}", super::copy::called(&from)));
                let found = found.ok_or_else(missing)?;
                view.tree().look(&found)?.ok_or_else(missing)?;
                let path = join(view.path().as_os_str().as_encoded_bytes(), &found);
                let path = String::from_utf8(path).map_err(|_| {
                    Error::Invalid(format!("the path of {source} is no UTF-8, and cannot be mounted"))
                })?;
                Ok::<_, Error>((view, PathBuf::from(path)))
            })
            .await?;
            kept.push(Kept::View(view));
            return Ok(path);
        }
        // Nothing of the context lies on this machine: what is mounted is put together for it.
        let (copy, path) = blocking(move || site.lay_out(&from, &source)).await?;
        kept.push(Kept::Copy(copy));
        Ok(path)
    }

    /// Files of the context, or of nothing, in a directory of their own.
    fn lay_out(&self, from: &Origin, source: &str) -> Result<(Temporary, PathBuf), Error> {
        let copy = self.builder.files.directory()?;
        let mut picks = Vec::new();
        if *from == Origin::Context {
            let wanted = Wanted { path: source, pivot: None, parents: false, exclude: &[] };
            transfer::select(&*self.context, &wanted, &super::copy::called(from), &mut picks)?;
        }
        let root = pad::open(copy.path())?;
        let path = copy.path().join(MOUNTED);
        let destination = Destination { root: std::os::fd::AsFd::as_fd(&root), path: &format!("/{MOUNTED}") };
        if picks.is_empty() {
            transfer::make_directory(destination.root, destination.path, (0, 0))?;
        } else {
            transfer::place(&*self.context, &picks, &destination, &Changes::default())?;
        }
        Ok((copy, path))
    }

    /// The step's cache mounts, by their names. Each is taken once, and all steps take theirs in the same order, so that
    /// no two wait for one another.
    async fn cache_mounts(
        self: &Arc<Self>,
        prepared: &Prepared,
    ) -> Result<BTreeMap<String, mounts::Held>, Failed> {
        let mut wanted: BTreeMap<String, (Sharing, &MountKind, Option<&ChainId>)> = BTreeMap::new();
        for (mount, chain) in prepared.run.mounts.iter().zip(&prepared.chains) {
            let MountKind::Cache { id, from, source, sharing, .. } = &mount.kind else { continue };
            let name = format!("{id}{}", begins(from, source, chain.as_ref()));
            let (strictest, ..) = wanted.entry(name).or_insert((*sharing, &mount.kind, chain.as_ref()));
            *strictest = (*strictest).max(*sharing);
        }
        let mut taken = BTreeMap::new();
        for (name, (sharing, kind, chain)) in wanted {
            let held = self.cache_mount(&name, sharing, kind, chain).await?;
            taken.insert(name, held);
        }
        Ok(taken)
    }

    /// A cache mount, filled with what it begins with if it is new.
    async fn cache_mount(
        self: &Arc<Self>,
        name: &str,
        sharing: Sharing,
        kind: &MountKind,
        chain: Option<&ChainId>,
    ) -> Result<mounts::Held, Failed> {
        let MountKind::Cache { from, source, uid, gid, mode, .. } = kind.clone() else {
            return Err(Error::Invalid("it is no cache mount".into()).into());
        };
        let held = self.builder.mounts.take(name, sharing).await?;
        if !held.fresh {
            return Ok(held);
        }
        if from == Origin::Context {
            let found = self.context.clone();
            let (path, place) = (source.clone(), super::copy::called(&from));
            let picks = blocking(move || {
                let mut picks = Vec::new();
                let wanted = Wanted { path: &path, pivot: None, parents: false, exclude: &[] };
                transfer::select(&*found, &wanted, &place, &mut picks).map(|()| picks)
            });
            self.context.fetch(picks.await?.iter().map(|pick| &*pick.from)).await?;
        }
        let (site, chain) = (self.clone(), chain.cloned());
        blocking(move || {
            site.fill(&held, &from, &source, chain.as_ref(), (uid, gid, mode))?;
            Ok(held.filled(sharing))
        })
        .await
    }

    fn fill(
        &self,
        held: &mounts::Held,
        from: &Origin,
        source: &str,
        chain: Option<&ChainId>,
        (uid, gid, mode): (u32, u32, u32),
    ) -> Result<(), Error> {
        use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};
        use std::os::fd::AsFd;
        let root = pad::open(&held.path())?;
        let destination = Destination { root: root.as_fd(), path: "/" };
        let wanted = Wanted { path: source, pivot: None, parents: false, exclude: &[] };
        let (mut picks, place) = (Vec::new(), super::copy::called(from));
        match chain {
            Some(chain) => {
                let view = self.view(chain, false)?;
                transfer::select(view.tree(), &wanted, &place, &mut picks)?;
                transfer::place(view.tree(), &picks, &destination, &Changes::default())?;
            }
            None if *from == Origin::Context => {
                transfer::select(&*self.context, &wanted, &place, &mut picks)?;
                transfer::place(&*self.context, &picks, &destination, &Changes::default())?;
            }
            None => {}
        }
        fchown(&root, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(Error::io("fchown", b"a cache mount"))?;
        fchmod(&root, Mode::from(mode & 0o7777)).map_err(Error::io("fchmod", b"a cache mount"))
    }
}

/// Whether a step has left next to no room. Its output has none either then, and cannot say so.
fn is_full(pad: &pad::Pad) -> bool {
    const ROOM: u64 = 4 << 20;
    let found = pad.upper().ok().and_then(|upper| rustix::fs::fstatvfs(upper).ok());
    found.is_some_and(|disk| disk.f_bfree.saturating_mul(disk.f_frsize) < ROOM)
}

/// What counts of a mount beside its files. Which stage or image they are of, and what those are called, does not.
fn counted(kind: &MountKind, task: &Task<'_>) -> String {
    match kind {
        MountKind::Bind { writable, .. } => format!("bind, writable: {writable}"),
        MountKind::Cache { id, from, source, sharing, writable, uid, gid, mode } => {
            let begins = begins(from, source, task.chain(from));
            format!("cache {id:?}{begins}, {sharing:?}, writable: {writable}, {uid}:{gid} {mode:o}")
        }
        MountKind::Tmpfs { size } => format!("tmpfs, size: {size:?}"),
        MountKind::Secret { id, required, variable, uid, gid, mode } => {
            format!("secret {id:?}, required: {required}, variable: {variable:?}, {uid}:{gid} {mode:o}")
        }
    }
}

/// What a cache mount begins with, as a part of its name.
fn begins(from: &Origin, source: &str, chain: Option<&ChainId>) -> String {
    match (from, chain) {
        (Origin::Scratch, _) => String::new(),
        (_, Some(chain)) => format!(" from {chain}{source}"),
        (Origin::Context, None) => format!(" from the context's {source}"),
        _ => String::new(),
    }
}

/// The chain that a mount's files are of.
fn origin(task: &Task<'_>, mount: &Mount) -> Option<ChainId> {
    match &mount.kind {
        MountKind::Bind { from, .. } | MountKind::Cache { from, .. } => task.chain(from).cloned(),
        MountKind::Tmpfs { .. } | MountKind::Secret { .. } => None,
    }
}
