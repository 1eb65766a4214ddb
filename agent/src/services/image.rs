//! `ImageService`: what CRI has no word for, a call of more than a few lines in a file of its own.

mod archive;
mod care;
mod commit;
mod inspect;
mod push;
mod usage;

use std::{sync::Arc, time::Instant};

use sampan_imagestore::{Auth, Image, Phase, Progress, ProgressEvent, Reference};
use sampan_proto::sampan::{self, image_service_server::ImageService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::{Feed, Reply};
use crate::{
    context::blocking,
    error::{Error, chain},
    pods::Pods,
};

pub(crate) use commit::MOUNT_POINTS;
pub(crate) use inspect::configuration;

/// The service.
#[derive(Debug, Clone)]
pub struct Images {
    /// Containers keep images from being removed.
    pub pods: Pods,
}

/// Messages that may wait for a slow client.
const QUEUE: usize = 64;

#[tonic::async_trait]
impl ImageService for Images {
    type PullStream = Feed<sampan::PullResponse>;

    async fn pull(&self, request: Request<sampan::PullRequest>) -> Reply<Self::PullStream> {
        let request = request.into_inner();
        let reference = reference(&request.image)?;
        let auth = request.auth.and_then(credentials);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let pods = self.pods.clone();
        tokio::spawn(async move {
            let result = pull(&pods, &reference, auth, &sender).await;
            let _ = sender.send(result.map_err(Status::from)).await;
        });
        Ok(ReceiverStream::new(receiver).into())
    }

    async fn list_images(&self, _: Request<sampan::ListImagesRequest>) -> Reply<sampan::ListImagesResponse> {
        let mut images: Vec<_> =
            self.pods.context().store.images().iter().map(|image| summary(image)).collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.created_at));
        Ok(sampan::ListImagesResponse { images }.into())
    }

    async fn remove_image(
        &self,
        request: Request<sampan::RemoveImageRequest>,
    ) -> Reply<sampan::RemoveImageResponse> {
        let request = request.into_inner();
        let removed = remove(&self.pods, request.image, request.force).await?;
        Ok(removed.into())
    }

    async fn inspect_image(
        &self,
        request: Request<sampan::InspectImageRequest>,
    ) -> Reply<sampan::InspectImageResponse> {
        let image = find(&self.pods, &request.into_inner().image)?;
        let context = self.pods.context().clone();
        let json = blocking(move || inspect::inspect(&context, &image)).await?.to_string();
        Ok(sampan::InspectImageResponse { json }.into())
    }

    async fn tag_image(&self, request: Request<sampan::TagImageRequest>) -> Reply<sampan::TagImageResponse> {
        let request = request.into_inner();
        let image = find(&self.pods, &request.image)?;
        let target = reference(&request.target)?;
        let store = self.pods.context().store.clone();
        blocking(move || store.tag(&image.id, &target)).await.map_err(Error::from)?;
        Ok(sampan::TagImageResponse {}.into())
    }

    async fn image_history(
        &self,
        request: Request<sampan::ImageHistoryRequest>,
    ) -> Reply<sampan::ImageHistoryResponse> {
        let image = find(&self.pods, &request.into_inner().image)?;
        let steps = self.pods.context().store.history(&image);
        Ok(sampan::ImageHistoryResponse { steps: steps.into_iter().map(usage::step).collect() }.into())
    }

    async fn disk_usage(&self, _: Request<sampan::DiskUsageRequest>) -> Reply<sampan::DiskUsageResponse> {
        Ok(usage::disk_usage(&self.pods).await?.into())
    }

    type SaveStream = Feed<sampan::SaveResponse>;

    async fn save(&self, request: Request<sampan::SaveRequest>) -> Reply<Self::SaveStream> {
        let images = archive::chosen(&self.pods, &request.into_inner().images)?;
        let (sender, receiver) = archive::channel();
        tokio::spawn(archive::save(self.pods.clone(), images, sender));
        Ok(ReceiverStream::new(receiver).into())
    }

    async fn load(&self, request: Request<Streaming<sampan::LoadRequest>>) -> Reply<sampan::LoadResponse> {
        Ok(archive::load(&self.pods, request.into_inner()).await?.into())
    }

    type PushStream = Feed<sampan::PushResponse>;

    async fn push(&self, request: Request<sampan::PushRequest>) -> Reply<Self::PushStream> {
        let request = request.into_inner();
        let image = find(&self.pods, &request.image)?;
        let reference = reference(&request.image)?;
        let auth = request.auth.and_then(credentials);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let pods = self.pods.clone();
        tokio::spawn(async move {
            let result = push::push(&pods, image, &reference, auth, &sender).await;
            let _ = sender.send(result.map_err(Status::from)).await;
        });
        Ok(ReceiverStream::new(receiver).into())
    }

    async fn prune_images(
        &self,
        request: Request<sampan::PruneImagesRequest>,
    ) -> Reply<sampan::PruneImagesResponse> {
        Ok(care::prune(&self.pods, request.into_inner().all).await?.into())
    }

    type CheckStoreStream = Feed<sampan::CheckStoreResponse>;

    async fn check_store(
        &self,
        request: Request<sampan::CheckStoreRequest>,
    ) -> Reply<Self::CheckStoreStream> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(care::check(self.pods.clone(), request.into_inner().repair, sender));
        Ok(ReceiverStream::new(receiver).into())
    }

    async fn commit(&self, request: Request<sampan::CommitRequest>) -> Reply<sampan::CommitResponse> {
        // A task of its own: a client that goes away leaves no container frozen.
        let (pods, request) = (self.pods.clone(), request.into_inner());
        let committing = tokio::spawn(async move { commit::commit(&pods, request).await });
        let made = committing.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(made.into())
    }

    async fn changes(&self, request: Request<sampan::ChangesRequest>) -> Reply<sampan::ChangesResponse> {
        Ok(commit::changes(&self.pods, &request.into_inner().container).await?.into())
    }
}

/// The image by a name, an id or a unique prefix of one.
fn find(pods: &Pods, name: &str) -> Result<Arc<Image>, Error> {
    let image = pods.context().store.find(name)?;
    image.ok_or_else(|| Error::NotFound { object: "image", id: name.to_owned() })
}

pub(super) fn reference(name: &str) -> Result<Reference, Status> {
    name.parse().map_err(|error| Status::invalid_argument(format!("image {name:?}: {}", chain(&error))))
}

pub(super) fn credentials(auth: sampan::RegistryAuth) -> Option<Auth> {
    if !auth.identity_token.is_empty() {
        return Some(Auth::IdentityToken(auth.identity_token));
    }
    (!auth.username.is_empty()).then_some(Auth::Basic { username: auth.username, password: auth.password })
}

async fn pull(
    pods: &Pods,
    reference: &Reference,
    auth: Option<Auth>,
    sender: &mpsc::Sender<Result<sampan::PullResponse, Status>>,
) -> Result<sampan::PullResponse, Error> {
    let events = sender.clone();
    let (progress, mut steps) = Progress::channel();
    let forward = tokio::spawn(async move {
        while let Some(step) = steps.recv().await {
            let event = Some(sampan::pull_response::Event::Layer(layer(&step)));
            if events.send(Ok(sampan::PullResponse { event })).await.is_err() {
                return;
            }
        }
    });
    let since = Instant::now();
    let pulled = pods.context().store.pull(reference, auth, progress).await;
    pods.context().measurements.pull(pulled.is_ok(), since);
    let image = pulled?;
    // All steps before the end.
    let _ = forward.await;
    Ok(sampan::PullResponse {
        event: Some(sampan::pull_response::Event::Image(sampan::PulledImage {
            id: image.id.to_string(),
            reference: reference.to_string(),
            digest: image.manifest.to_string(),
        })),
    })
}

pub(super) fn layer(event: &ProgressEvent) -> sampan::LayerProgress {
    let phase = match event.phase {
        Phase::Waiting => sampan::layer_progress::Phase::Waiting,
        Phase::Downloading => sampan::layer_progress::Phase::Downloading,
        Phase::Unpacking => sampan::layer_progress::Phase::Unpacking,
        Phase::Done => sampan::layer_progress::Phase::Done,
        Phase::Exists => sampan::layer_progress::Phase::Exists,
    };
    sampan::LayerProgress {
        digest: event.digest.to_string(),
        phase: phase as i32,
        current: event.current,
        total: event.total,
    }
}

fn summary(image: &Image) -> sampan::ImageSummary {
    sampan::ImageSummary {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        created_at: image.created.unwrap_or(0),
        size: image.size,
    }
}

/// A name takes itself away; an id takes the image with all its names.
async fn remove(pods: &Pods, name: String, force: bool) -> Result<sampan::RemoveImageResponse, Error> {
    let store = pods.context().store.clone();
    let missing = || Error::NotFound { object: "image", id: name.clone() };
    let image = store.find(&name)?.ok_or_else(missing)?;
    let reference = name.parse::<Reference>().ok().filter(|reference| {
        let normal = reference.to_string();
        image.repo_tags.contains(&normal) || image.repo_digests.contains(&normal)
    });
    let last_name = image.repo_tags.len() <= 1;
    if (reference.is_none() || last_name) && !force {
        let id = image.id.as_str();
        if let Some(user) = pods.containers().iter().find(|found| found.container.uses_image(id)) {
            return Err(Error::Precondition(format!(
                "image {name:?} is used by container {} ({}); remove that first, or force the removal",
                user.container.id.short(),
                user.container.config.name
            )));
        }
    }
    let removed = blocking(move || match reference {
        Some(reference) => store.untag(&reference),
        None => store.remove(&image.id),
    })
    .await?;
    Ok(sampan::RemoveImageResponse {
        untagged: removed.untagged,
        deleted: removed.deleted.iter().map(ToString::to_string).collect(),
    })
}
