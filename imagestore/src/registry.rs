//! The registry client: documents and blobs of one repository over the distribution protocol.
//!
//! A repository may be on several hosts, mirrors before the registry itself. Every document is checked against its
//! digest and bounded in size before anyone reads it. Every wait has a deadline, and errors that may pass are tried
//! again a bounded number of times. What a layer's bytes are good for, and whether they are the right ones, is for
//! the pull to find out.

mod auth;
mod backoff;
mod blob;
mod credentials;
mod error;
mod hosts;
mod push;
mod source;
mod tls;
mod transport;

use std::sync::Arc;

use reqwest::header::CONTENT_TYPE;

use crate::{
    Digest, Reference,
    manifest::{DOCKER_INDEX, DOCKER_MANIFEST, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST},
};
use backoff::Backoff;
use hosts::Capabilities;
use source::Source;

pub use auth::Auth;
pub use credentials::{CredentialHelper, Credentials, HelperAnswer};
pub(crate) use error::Error;
pub(crate) use push::{Destination, Presence};
pub use transport::Patience;
pub(crate) use transport::{Routes, Transport};

/// A repository of a registry, as one pull sees it.
#[derive(Debug)]
pub(crate) struct Repository {
    transport: Arc<Transport>,
    path: String,
    domain: String,
    sources: Vec<Source>,
}

/// A document, and what the registry calls it.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) content_type: Option<String>,
}

/// What is asked for.
struct Wanted<'a> {
    path: String,
    accept: &'a str,
    /// For messages.
    what: String,
    /// Absent for a tag, which may be anything.
    digest: Option<Digest>,
}

impl Repository {
    /// Reads the settings for the registry, so it belongs on a thread that may block for a moment.
    pub(crate) fn new(
        transport: &Arc<Transport>,
        reference: &Reference,
        auth: Option<Auth>,
    ) -> Result<Repository, Error> {
        let (domain, path) = (reference.domain(), reference.path());
        let endpoints = transport.endpoints(domain)?.into_iter();
        let sources =
            endpoints.map(|endpoint| Source::new(transport, endpoint, (domain, path), auth.as_ref()));
        Ok(Repository {
            transport: transport.clone(),
            path: path.to_owned(),
            domain: domain.to_owned(),
            sources: sources.collect(),
        })
    }

    /// Whether others than the registry itself give its content.
    pub(crate) fn has_mirrors(&self) -> bool {
        self.sources.len() > 1
    }

    /// The manifest or index under a tag or digest.
    pub(crate) async fn manifest(&self, name: &str) -> Result<Fetched, Error> {
        let accept = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        self.document(Wanted {
            path: format!("manifests/{name}"),
            accept: &accept,
            what: format!("manifest {name} of {}", self.path),
            digest: name.parse().ok(),
        })
        .await
    }

    /// A blob that fits into memory, such as a configuration.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let wanted = Wanted {
            path: format!("blobs/{digest}"),
            accept: "*/*",
            what: format!("blob {digest} of {}", self.path),
            digest: Some(digest.clone()),
        };
        Ok(self.document(wanted).await?.bytes)
    }

    async fn document(&self, wanted: Wanted<'_>) -> Result<Fetched, Error> {
        let able = |may: Capabilities| if wanted.digest.is_some() { may.pull } else { may.resolve };
        let mut sources = self.sources(able)?.into_iter().peekable();
        let mut backoff = Backoff::new(&self.transport.patience);
        while let Some(source) = sources.next() {
            loop {
                match Self::fetch(source, &wanted).await {
                    Ok(fetched) => return Ok(fetched),
                    Err(error) if sources.peek().is_some() => {
                        Self::pass_over(source, &error);
                        break;
                    }
                    Err(error) => backoff.pause(error).await?,
                }
            }
        }
        Err(self.nobody())
    }

    async fn fetch(source: &Source, wanted: &Wanted<'_>) -> Result<Fetched, Error> {
        let response = source.get(&wanted.path, wanted.accept, 0, &wanted.what).await?;
        let content_type = response.headers().get(CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = source.body(response, MAX_DOCUMENT, &wanted.what).await?;
        let digest = Digest::of(&bytes);
        match &wanted.digest {
            Some(expected) if *expected != digest => {
                Err(Error::Mismatch { what: wanted.what.clone(), expected: expected.clone(), actual: digest })
            }
            _ => Ok(Fetched { bytes, digest, content_type }),
        }
    }

    /// The hosts to ask, in order; those that failed before only if there are no others.
    fn sources(&self, able: impl Fn(Capabilities) -> bool) -> Result<Vec<&Source>, Error> {
        let able: Vec<&Source> =
            self.sources.iter().filter(|source| able(source.endpoint.capabilities)).collect();
        let up: Vec<&Source> = able.iter().filter(|source| source.is_up()).copied().collect();
        match (able.is_empty(), up.is_empty()) {
            (true, _) => Err(self.nobody()),
            (false, true) => Ok(able),
            (false, false) => Ok(up),
        }
    }

    fn nobody(&self) -> Error {
        Error::Address {
            domain: self.domain.clone(),
            reason: "no host of its settings may be asked for this",
        }
    }

    /// Notes that the next host is to be asked in place of this one.
    fn pass_over(source: &Source, error: &Error) {
        tracing::info!(
            host = source.host(),
            error = error as &dyn std::error::Error,
            "mirror is passed over"
        );
        // What it does not have or does not give to us says nothing about other things.
        if error.retry().is_some() || matches!(error, Error::Unavailable { .. }) {
            source.set_down();
        }
    }
}

/// Ways in for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    use reqwest::header::HeaderValue;

    pub(crate) fn settings(bytes: &[u8]) {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(hosts) = super::hosts::parse(text)
        {
            assert!(!hosts.is_empty(), "the registry itself is always among them");
        }
        super::credentials::read_any(bytes, "registry.example/team/app");
    }

    pub(crate) fn challenge(bytes: &[u8]) {
        if let Ok(header) = HeaderValue::from_bytes(bytes) {
            let _ = super::auth::Challenge::parse(std::iter::once(&header));
        }
    }
}
