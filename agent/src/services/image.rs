//! `ImageService`: a pull that can be watched, and images with the columns people know.

use std::{collections::BTreeMap, time::Instant};

use sampan_imagestore::{Auth, Image, Phase, Progress, ProgressEvent, Reference};
use sampan_proto::sampan::{self, image_service_server::ImageService};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::{Feed, Reply};
use crate::{
    context::blocking,
    error::{Error, chain},
    pods::Pods,
};

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
        let reference: Reference = request.image.parse().map_err(|error| {
            Status::invalid_argument(format!("image {:?}: {}", request.image, chain(&error)))
        })?;
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
        let name = request.into_inner().image;
        let image = self.pods.context().store.find(&name).map_err(Error::from)?;
        let image = image.ok_or(Error::NotFound { object: "image", id: name })?;
        Ok(sampan::InspectImageResponse { json: inspect(&image)?.to_string() }.into())
    }
}

fn credentials(auth: sampan::RegistryAuth) -> Option<Auth> {
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

fn layer(event: &ProgressEvent) -> sampan::LayerProgress {
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
        let id = image.id.to_string();
        if let Some(user) = pods.containers().iter().find(|found| found.container.image_id == id) {
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

fn inspect(image: &Image) -> Result<Value, Error> {
    let internal = |error: serde_json::Error| Error::Internal(format!("image {}: {error}", image.id));
    let config = serde_json::to_value(&image.config).map_err(internal)?;
    let layers: Vec<String> = image.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let chains: BTreeMap<String, String> =
        image.layers.iter().map(|layer| (layer.digest.to_string(), layer.chain_id.to_string())).collect();
    Ok(json!({
        "Id": image.id.to_string(),
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Created": config.get("created"),
        "Author": config.get("author"),
        "Architecture": config.get("architecture"),
        "Os": config.get("os"),
        "Size": image.size,
        "Config": config.get("config"),
        "RootFS": { "Type": "layers", "Layers": layers },
        "History": config.get("history"),
        "ManifestDigest": image.manifest.to_string(),
        "ChainIds": chains,
    }))
}
