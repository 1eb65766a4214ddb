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
    let auth = request.auth.filter(|auth| is_for(&auth.server_address, reference.domain()));
    let auth = auth.map(credentials).transpose()?.flatten();
    let since = Instant::now();
    let pulled = context.store.pull(&reference, auth, Progress::none()).await;
    context.measurements.pull(pulled.is_ok(), since);
    let image = pulled.map_err(|error| refused(error.into()))?;
    Ok(cri::PullImageResponse { image_ref: image.id.to_string() })
}

/// Kubelet knows a registry that is down, and a signature that is missing or wrong, by the first word, and tells its
/// user so. It only sees the word first if the code is UNKNOWN: of any other code it puts the name in front.
fn refused(error: Error) -> Status {
    match error.kind() {
        Kind::Unavailable => Status::unknown(format!("RegistryUnavailable: {}", error.chain())),
        Kind::Untrusted => Status::unknown(format!("SignatureValidationFailed: {}", error.chain())),
        _ => error.into(),
    }
}

/// Whether credentials for the server of this address, if they name one, are for the registry of an image.
fn is_for(server: &str, domain: &str) -> bool {
    let host = server.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    host.is_empty() || host == domain
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
    fn credentials_for_another_server_are_left_out() {
        for (server, domain, expected) in [
            ("", "quay.io", true),
            ("https://index.docker.io/v1/", "docker.io", true),
            ("quay.io", "quay.io", true),
            ("https://quay.io", "quay.io", true),
            ("reg.example:5000/v2/", "reg.example:5000", true),
            ("https://quay.io", "docker.io", false),
            ("reg.example", "reg.example:5000", false),
        ] {
            assert_eq!(is_for(server, domain), expected, "{server} {domain}");
        }
    }

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
