//! The agent's start: brings back the pods of an earlier agent and takes away what nobody names.

use std::{collections::HashSet, fs};

use sampan_runtime::cgroup::Cgroup;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use super::*;
use crate::{context::blocking, error::at, network::Attachment};

/// Longest wait for an orphaned cgroup to become empty.
const EMPTY: Duration = Duration::from_secs(10);

/// How long the agent waits for monitors before it serves: one that hangs is waited for by those who ask for its pod.
const PATIENCE: Duration = Duration::from_secs(10);

impl Pods {
    /// Takes up every pod on record, then removes snapshots, state folders, addresses and cgroups of none.
    ///
    /// # Errors
    /// Records that cannot be read at all. What is wrong with a single pod is logged and costs that pod.
    pub async fn recover(&self) -> Result<()> {
        let context = self.context.clone();
        let loaded = blocking(move || context.records.load()).await?;
        let attachments = loaded.pods.iter().filter_map(|(pod, _)| {
            let attachment = pod.attachment.clone()?;
            (pod.boot_id == self.context.boot_id).then(|| (pod.id.to_string(), attachment))
        });
        let attachments: Vec<(String, Attachment)> = attachments.collect();
        let (plugged, bridged): (Vec<_>, Vec<_>) =
            attachments.into_iter().partition(|(_, attachment)| attachment.plugins.is_some());
        let context = self.context.clone();
        // Before any task runs: what a pod holds must not be given to another.
        blocking(move || match context.open_network() {
            None if bridged.is_empty() => Ok(()),
            _ => Ok::<_, Error>(context.network()?.restore(&bridged)?),
        })
        .await?;
        collect_for(&self.context, &plugged).await;
        let mut resumed = Vec::new();
        for (record, containers) in loaded.pods {
            let pod = record.id.clone();
            let containers =
                containers.into_iter().map(|container| (container.id.clone(), Arc::new(container))).collect();
            let start = self.enter(&mut self.index(), record, containers);
            let (answer, done) = oneshot::channel();
            let pods = self.clone();
            tokio::spawn(async move {
                start.resume(answer).await;
                pods.forget(&pod);
            });
            resumed.push(done);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut late = 0;
        for done in resumed {
            late += usize::from(timeout_at(deadline, done).await.is_err());
        }
        if late > 0 {
            warn!(pods = late, "their monitors do not answer; the others are served meanwhile");
        }
        let (context, pods) = (self.context.clone(), self.list());
        blocking(move || remove_strangers(&context, &pods, &loaded.torn_pods)).await;
        info!(pods = self.list().len(), containers = self.containers().len(), "recovered");
        Ok(())
    }
}

/// Has CNI plugins give back what they hold for pods of which nothing is known any more. No pod comes or goes meanwhile.
async fn collect_for(context: &Context, pods: &[(String, Attachment)]) {
    // A broken configuration is told with every pod and by `Status`.
    let Ok(Some(list)) = context.cni.installed() else { return };
    let of_list = |attachment: &Attachment| {
        attachment.plugins.as_ref().is_some_and(|binding| binding.network() == list.name)
    };
    let known: Vec<&str> = pods.iter().filter(|(_, a)| of_list(a)).map(|(pod, _)| pod.as_str()).collect();
    if let Err(error) = context.cni.collect(&list, &known).await {
        warn!(error = %Error::from(error).chain(), "CNI plugins may hold addresses of pods that are gone");
    }
}

/// Takes away what no record names. Failures are logged: the agent serves nevertheless.
fn remove_strangers(context: &Context, pods: &[Arc<PodView>], torn: &[PodId]) {
    let known_pods: HashSet<&str> = pods.iter().map(|pod| pod.record.id.as_str()).collect();
    let known_containers: HashSet<&str> =
        pods.iter().flat_map(|pod| pod.containers.keys().map(ContainerId::as_str)).collect();
    let state = context.config.state.join("pods");
    for entry in fs::read_dir(&state).into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(PodId::from_file_name) else { continue };
        if !known_pods.contains(id.as_str()) {
            info!(sandbox.id = %id, "removing the state of a pod without a record");
            report(&id, remove_stranger(context, &id));
        }
    }
    for id in torn {
        report(id, context.records.remove_pod(id));
    }
    for key in context.store.snapshots().keys() {
        // Behind a dot is the number of an image that the container mounts.
        let owner = key.split_once('.').map_or(key.as_str(), |(owner, _)| owner);
        if !known_containers.contains(owner) {
            info!(snapshot.key = %key, "removing a writable layer without a container");
            let removed =
                context.store.snapshots().directories(&key).map_err(Error::from).and_then(|layer| {
                    sampan_runtime::mount::unmount(&layer.merged)
                        .map_err(|source| Error::Mount { container: key.clone(), source })?;
                    Ok(context.store.snapshots().remove(&key)?)
                });
            if let Err(error) = removed {
                warn!(snapshot.key = %key, error = %error.chain(), "the layer is left");
            }
        }
    }
}

/// Ends a pod of which only the state folder is known: its processes by its cgroup, its monitor with them.
fn remove_stranger(context: &Context, id: &PodId) -> Result<()> {
    let path = format!("{}/{id}", context.config.cgroup.root);
    let failed = |source| Error::Cgroup { path: path.clone(), source };
    let folder = context.pod_state(id);
    monitor::end_stranger(id)?;
    let cgroup = Cgroup::new(&path).map_err(failed)?;
    cgroup.kill().and_then(|()| cgroup.remove(EMPTY)).map_err(failed)?;
    files::remove(&folder).map_err(|source| Error::Mount { container: id.to_string(), source })?;
    fs::remove_dir_all(&folder).map_err(at("remove", folder))
}

fn report(id: &PodId, result: Result<()>) {
    if let Err(error) = result {
        warn!(sandbox.id = %id, error = %error.chain(), "remains are left");
    }
}
