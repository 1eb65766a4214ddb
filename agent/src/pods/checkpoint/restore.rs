//! Containers and pods from checkpoints: they are CREATED, and their start brings the processes back.

use std::{
    fs,
    io::BufReader,
    path::{Path, PathBuf},
};

use tracing::{info, warn};

use super::{POD, archive, to_the_end, tool};
use crate::{
    context::{Context, blocking},
    error::{Error, Result, at},
    pods::{
        Command, ContainerId, PodId, Pods,
        config::{ContainerConfig, PodConfig},
        record::{ContainerRecord, PodRecord},
    },
};

/// A pod that came back.
#[derive(Debug)]
pub(crate) struct RestoredPod {
    pub(crate) id: PodId,
    /// Names and ids.
    pub(crate) containers: Vec<(String, ContainerId)>,
}

impl Pods {
    /// Makes a pod of what [`Pods::checkpoint_pod`] has written. Without a configuration it is as it was; a container
    /// whose name is among `containers` has that configuration.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` and `FailedPrecondition` for what is no checkpoint or not to be trusted, for images
    /// that are not here, and where CRIU does not work. Nothing is left of the pod then.
    pub(crate) async fn restore_pod(
        &self,
        path: PathBuf,
        config: Option<PodConfig>,
        mut containers: Vec<ContainerConfig>,
    ) -> Result<RestoredPod> {
        let criu = tool::find().await?;
        let (pod, archives) = blocking(move || read(&path)).await?;
        let wanted = archives.into_iter().map(|(archive, record)| {
            let given = containers.iter().position(|given| given.name == record.config.name);
            let config = given.map_or_else(|| record.config.clone(), |index| containers.swap_remove(index));
            (Checkpoint { archive, criu: criu.clone() }, config, record)
        });
        let wanted: Vec<_> = wanted.collect();
        if let Some(stranger) = containers.first() {
            return Err(Error::Invalid(format!("the checkpoint has no container {:?}", stranger.name)));
        }
        let (pods, config) = (self.clone(), config.unwrap_or(pod.config));
        to_the_end(async move {
            let id = pods.run(config).await?;
            match pods.restore_containers(&id, wanted).await {
                Ok(containers) => {
                    info!(sandbox.id = %id, containers = containers.len(), "pod restored");
                    Ok(RestoredPod { id, containers })
                }
                Err(error) => {
                    if let Err(left) = pods.remove(&id).await {
                        warn!(sandbox.id = %id, error = %left.chain(), "remains of the pod are left");
                    }
                    Err(error)
                }
            }
        })
        .await
    }

    async fn restore_containers(
        &self,
        pod: &PodId,
        wanted: Vec<(Checkpoint, ContainerConfig, ContainerRecord)>,
    ) -> Result<Vec<(String, ContainerId)>> {
        let mut restored = Vec::new();
        for (checkpoint, config, record) in wanted {
            let name = config.name.clone();
            restored.push((name, self.create_from(pod, config, checkpoint, &record).await?));
        }
        Ok(restored)
    }

    /// Makes a container from an archive.
    ///
    /// # Errors
    /// As [`Pods::restore_pod`] and [`Pods::create_container`].
    pub(crate) async fn restore_container(
        &self,
        pod: &PodId,
        mut config: ContainerConfig,
        archive: PathBuf,
    ) -> Result<ContainerId> {
        let criu = tool::find().await?;
        let (archive, record) =
            blocking(move || archive::record(&archive).map(|record| (archive, record))).await?;
        (config.image, config.image_ref) = (record.config.image.clone(), record.image_id.clone());
        self.create_from(pod, config, Checkpoint { archive, criu }, &record).await
    }

    async fn create_from(
        &self,
        pod: &PodId,
        config: ContainerConfig,
        checkpoint: Checkpoint,
        record: &ContainerRecord,
    ) -> Result<ContainerId> {
        let missing = || {
            Error::Precondition(format!(
                "the image {} ({}) of container {:?} is not here: pull it first",
                record.config.image, record.image_id, record.config.name
            ))
        };
        // Another image of the name would be none that the processes have files of open.
        let config = ContainerConfig { image_ref: record.image_id.clone(), ..config };
        let held = self.hold_images(config).await;
        let (config, images) = held.map_err(|error| match error {
            Error::NotFound { object: "image", .. } => missing(),
            error => error,
        })?;
        let checkpoint = Some(checkpoint);
        self.ask(pod, |answer| Command::CreateContainer { config, images, checkpoint, answer }).await
    }
}

/// What a folder has: the pod, and each archive with its record, in the order in which the containers were made.
fn read(path: &Path) -> Result<(PodRecord, Vec<(PathBuf, ContainerRecord)>)> {
    let pod = path.join(POD);
    let pod: PodRecord = archive::parse(&pod, archive::open_trusted(&pod)?)?;
    let mut archives = Vec::new();
    for entry in fs::read_dir(path).map_err(at("read", path))? {
        let file = entry.map_err(at("read", path))?.path();
        if file.extension().is_some_and(|extension| extension == "tar") {
            let record = archive::record(&file)?;
            archives.push((file, record));
        }
    }
    archives.sort_by_key(|(_, record)| record.created_at);
    Ok((pod, archives))
}

/// What a container is made from, but for its image and configuration.
#[derive(Debug)]
pub(in crate::pods) struct Checkpoint {
    archive: PathBuf,
    /// CRIU's program.
    pub(in crate::pods) criu: PathBuf,
}

impl Checkpoint {
    /// Unpacks the archive: its changes into the container's snapshot, which is not mounted yet, and its images to where
    /// they stay until the start.
    pub(in crate::pods) fn lay_out(&self, context: &Context, pod: &PodId, id: &ContainerId) -> Result<()> {
        let folder = folder(context, pod, id);
        archive::extract(&self.archive, &folder)?;
        let changes = folder.join(archive::CHANGES);
        let file = fs::File::open(&changes).map_err(at("open", &changes))?;
        context.store.apply_changes(id.as_str(), BufReader::with_capacity(1 << 20, file))?;
        fs::remove_file(&changes).map_err(at("remove", &changes))
    }
}

fn folder(context: &Context, pod: &PodId, id: &ContainerId) -> PathBuf {
    context.records.directory(pod).join("restores").join(id.as_str())
}

/// Where CRIU's images of a container are that is to come back.
pub(in crate::pods) fn images(context: &Context, pod: &PodId, id: &ContainerId) -> PathBuf {
    folder(context, pod, id).join(archive::IMAGES)
}

/// Gives back the room that they take.
pub(in crate::pods) fn remove_images(context: &Context, pod: &PodId, id: &ContainerId) {
    // Most containers have none; what can't be removed goes with the pod.
    let _ = fs::remove_dir_all(folder(context, pod, id));
}
