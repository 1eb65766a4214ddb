//! `PullImage`: from a registry into the store.

use std::time::Instant;

use sampan_imagestore::{Auth, Progress, Reference};
use sampan_proto::cri;
use tonic::Status;

use crate::{
    context::Context,
    error::{Error, Kind},
};

pub(super) async fn call(
    context: &Context,
    request: cri::PullImageRequest,
) -> Result<cri::PullImageResponse, Status> {
    let name = request.image.unwrap_or_default().image;
    let reference: Reference = name.parse().map_err(|error| {
        Status::invalid_argument(format!("image {name:?}: {}", crate::error::chain(&error)))
    })?;
    let auth = request.auth.map(credentials).transpose()?.flatten();
    let since = Instant::now();
    let pulled = context.store.pull(&reference, auth, Progress::none()).await;
    context.measurements.pull(pulled.is_ok(), since);
    let image = pulled.map_err(|error| refused(error.into()))?;
    Ok(cri::PullImageResponse { image_ref: image.id.to_string() })
}

/// Kubelet knows a registry that is down by this word and tells its user so.
fn refused(error: Error) -> Status {
    match error.kind() {
        Kind::Unavailable => Status::unavailable(format!("RegistryUnavailable: {}", error.chain())),
        _ => error.into(),
    }
}

/// The request's credentials: `auth` is `user:password` in base64, as docker's configuration has it.
fn credentials(auth: cri::AuthConfig) -> Result<Option<Auth>, Status> {
    if !auth.registry_token.is_empty() {
        return Ok(Some(Auth::RegistryToken(auth.registry_token)));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Auth::IdentityToken(auth.identity_token)));
    }
    if !auth.username.is_empty() {
        return Ok(Some(Auth::Basic { username: auth.username, password: auth.password }));
    }
    if auth.auth.is_empty() {
        return Ok(None);
    }
    let malformed = || Status::invalid_argument("auth.auth is not base64 of user:password");
    Auth::from_encoded(&auth.auth).map(Some).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_style_credentials_are_understood_and_bad_ones_refused() {
        let auth = |text: &str| credentials(cri::AuthConfig { auth: text.into(), ..Default::default() });
        assert!(matches!(
            auth("dTpwOnc=").unwrap(),
            Some(Auth::Basic { username, password }) if username == "u" && password == "p:w"
        ));
        assert!(auth("").unwrap().is_none());
        assert!(auth("!").is_err());
    }
}
