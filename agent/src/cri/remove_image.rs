//! `RemoveImage`: an image with all its names. Success when it is missing.

use sampan_imagestore::Store;
use sampan_proto::cri;
use tonic::Status;

use crate::{context::blocking, error::Error};

pub(super) async fn call(
    store: &Store,
    request: cri::RemoveImageRequest,
) -> Result<cri::RemoveImageResponse, Status> {
    let name = request.image.unwrap_or_default().image;
    if let Some(image) = store.find(&name).map_err(Error::from)? {
        let store = store.clone();
        blocking(move || store.remove(&image.id)).await.map_err(Error::from)?;
    }
    Ok(cri::RemoveImageResponse {})
}
