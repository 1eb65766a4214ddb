//! `Commit` and `Changes`: what a container has made of its image.

use std::path::PathBuf;

use sampan_imagestore::{Change, ChangeKind, Commit, DiffOptions, Reference, apply_changes};
use sampan_proto::sampan;
use serde_json::Value;

use crate::{
    context::{blocking, now},
    error::{Error, Result},
    pods::{Found, Frozen, Pods, record::ContainerPhase},
    services::merged,
};

/// Where the runtime makes what it mounts on, in an image that lacks it.
pub(crate) const MOUNT_POINTS: [&str; 15] = [
    "/dev",
    "/dev/console",
    "/dev/mqueue",
    "/dev/null",
    "/dev/pts",
    "/dev/shm",
    "/dev/zero",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/run/.containerenv",
    "/sys",
    "/sys/fs/cgroup",
    "/.dockerenv",
];

pub(super) async fn commit(pods: &Pods, request: sampan::CommitRequest) -> Result<sampan::CommitResponse> {
    let found = pods.find_container_by_name(&request.container)?;
    let names = match request.name.as_str() {
        "" => Vec::new(),
        name => vec![super::reference(name).map_err(|status| Error::Invalid(status.message().to_owned()))?],
    };
    if let Some(name) = names.iter().find(|name: &&Reference| name.digest().is_some()) {
        return Err(Error::Invalid(format!(
            "{name} names an image by its digest; a tag is NAME or NAME:TAG"
        )));
    }
    let image = super::find(pods, &found.container.image_id)?;
    let context = pods.context().clone();
    let written = super::configuration(&context, &image)?;
    let of_image = written.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut config = merged::merge(&of_image, &found.pod.record.config, &found.container.config);
    let command = config.get("Cmd").and_then(Value::as_array).cloned().unwrap_or_default();
    let command: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
    let created_by = command.join(" ");
    apply_changes(&mut config, &request.changes).map_err(|error| Error::Invalid(error.to_string()))?;
    config.retain(|_, value| !value.is_null());
    let commit = Commit {
        created: now(),
        created_by,
        author: request.author,
        comment: request.message,
        config,
        options: options(&found),
    };
    let pause = !request.no_pause && found.container.phase == ContainerPhase::Running;
    let made = blocking(move || {
        let _frozen = if pause { Some(Frozen::new(&found.container.cgroup)?) } else { None };
        Ok::<_, Error>(context.store.commit(&image, found.container.id.as_str(), &commit, &names)?)
    });
    Ok(sampan::CommitResponse { image_id: made.await?.id.to_string() })
}

pub(super) async fn changes(pods: &Pods, container: &str) -> Result<sampan::ChangesResponse> {
    let found = pods.find_container_by_name(container)?;
    let context = pods.context().clone();
    let changes =
        blocking(move || context.store.changes(found.container.id.as_str(), &options(&found))).await?;
    let change = |change: Change| sampan::Change {
        kind: match change.kind {
            ChangeKind::Added => sampan::change::Kind::Added,
            ChangeKind::Changed => sampan::change::Kind::Changed,
            ChangeKind::Deleted => sampan::change::Kind::Deleted,
        } as i32,
        path: change.path.to_string_lossy().into_owned(),
    };
    Ok(sampan::ChangesResponse { changes: changes.into_iter().map(change).collect() })
}

fn options(found: &Found) -> DiffOptions {
    let own = found.container.config.mounts.iter().map(|mount| mount.container_path.clone());
    let devices = found.container.config.devices.iter().map(|device| device.container_path.clone());
    let mount_points = MOUNT_POINTS.iter().map(PathBuf::from).chain(own).chain(devices).collect();
    DiffOptions { mount_points, latest: None }
}
