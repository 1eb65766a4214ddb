//! `ImageStatus`: an image, or nothing at all when it is not here, which is no error.

use std::collections::HashMap;

use sampan_imagestore::Store;
use sampan_proto::cri;
use tonic::Status;

use super::list_images;
use crate::error::Error;

pub(super) async fn call(
    store: &Store,
    request: cri::ImageStatusRequest,
) -> Result<cri::ImageStatusResponse, Status> {
    let name = request.image.unwrap_or_default().image;
    if name.is_empty() {
        return Err(Status::invalid_argument("the request names no image"));
    }
    let image = store.find(&name).map_err(Error::from)?;
    let mut info = HashMap::new();
    if let Some(image) = image.as_ref().filter(|_| request.verbose) {
        let config =
            serde_json::to_string(&image.config).map_err(|error| Status::internal(error.to_string()))?;
        info.insert("info".into(), format!("{{\"imageSpec\":{config}}}"));
    }
    Ok(cri::ImageStatusResponse { image: image.map(|image| list_images::convert(&image)), info })
}
