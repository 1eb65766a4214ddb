//! `ListImages`: answered from memory.

use sampan_imagestore::{Image, Store};
use sampan_proto::cri;
use tonic::Status;

use crate::error::Error;

pub(super) async fn call(
    store: &Store,
    request: cri::ListImagesRequest,
) -> Result<cri::ListImagesResponse, Status> {
    let wanted = request.filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
    let images = match wanted.as_str() {
        "" => store.images(),
        name => store.find(name).map_err(Error::from)?.into_iter().collect(),
    };
    Ok(cri::ListImagesResponse { images: images.iter().map(|image| convert(image)).collect() })
}

/// An image as kubelet reads it: a numeric user as a number, another by name.
pub(super) fn convert(image: &Image) -> cri::Image {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default().to_owned();
    let uid = user.parse::<i64>().ok();
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        username: if uid.is_some() { String::new() } else { user },
        uid: uid.map(|value| cri::Int64Value { value }),
        spec: Some(cri::ImageSpec { image: image.id.to_string(), ..Default::default() }),
        pinned: image.pinned,
    }
}
