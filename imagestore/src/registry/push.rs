//! The writing half of the distribution protocol: what a repository has, blobs into it, manifests under names.
//!
//! A blob goes in one request; where that breaks or is too much for the registry, in pieces that are taken up where they
//! stopped. The registry's own check of the digest ends each upload. Whose bytes they are is not looked at here.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use reqwest::{
    Body, Method, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE},
};

use super::{
    Auth, Error,
    backoff::Backoff,
    source::Source,
    transport::{Transport, Upload},
};
use crate::{Digest, Reference};

/// What is read from a file at a time.
const READ: u64 = 128 << 10;
/// A piece of a blob that is sent in pieces.
const PIECE: u64 = 8 << 20;

/// How a blob came to be in the registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Presence {
    /// It was there.
    Found,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Sent,
}

/// A blob that goes in pieces.
#[derive(Clone, Debug)]
struct Session {
    /// Where the next one goes.
    url: Url,
    /// How much the registry has, as far as is known.
    at: u64,
    /// A piece may have come only in part.
    broken: bool,
}

/// A repository that is written to.
#[derive(Debug)]
pub(crate) struct Destination {
    source: Source,
}

impl Destination {
    /// Where images of this name go. Blobs may be taken from the repositories `others` of the same registry. Reads the
    /// settings for the registry, so it belongs on a thread that may block for a moment.
    pub(crate) fn new(
        transport: &Arc<Transport>,
        reference: &Reference,
        auth: Option<Auth>,
        others: &[String],
    ) -> Result<Destination, Error> {
        let (domain, path) = (reference.domain(), reference.path());
        let endpoints = transport.endpoints(domain)?;
        // The registry itself if it may be written to; a mirror only where there is no other way.
        let endpoint = endpoints.into_iter().filter(|endpoint| endpoint.capabilities.push);
        let endpoint = endpoint.max_by_key(|endpoint| endpoint.own).ok_or_else(|| Error::Address {
            domain: domain.to_owned(),
            reason: "no host of its settings may be pushed to",
        })?;
        let source = Source::new(transport, endpoint, (domain, path), auth.as_ref()).for_push(others);
        Ok(Destination { source })
    }

    /// The digest that a name has there, if it is known.
    pub(crate) async fn resolve(&self, name: &str, media_type: &str) -> Result<Option<Digest>, Error> {
        let what = format!("manifest {name}");
        let path = format!("manifests/{name}");
        let response = self.request(&what, Method::HEAD, &path, &[(ACCEPT, media_type)]).await?;
        let digest = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        Ok(digest.filter(|_| response.status().is_success()).and_then(|text| text.parse().ok()))
    }

    /// Puts a blob of `size` bytes there, unless it is there already. `others` may have it; `sent` is kept up to date.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        file: &Arc<File>,
        size: u64,
        others: &[String],
        sent: &Arc<AtomicU64>,
    ) -> Result<Presence, Error> {
        let what = self.source.blob_name(digest);
        let mut backoff = Backoff::new(&self.source.transport.patience);
        // Once the whole in one request did not go through.
        let mut session: Option<Session> = None;
        loop {
            let before = session.as_ref().map_or(0, |session| session.at);
            let attempt = async {
                if let Some(mut pieces) = session.clone() {
                    if !pieces.broken || self.reached(&what, &mut pieces).await? {
                        session = Some(pieces);
                        return self.pieces(digest, file, size, sent, &mut session).await;
                    }
                    session = None;
                }
                let response = self.request(&what, Method::HEAD, &format!("blobs/{digest}"), &[]).await?;
                match response.status() {
                    StatusCode::OK => return Ok(Presence::Found),
                    StatusCode::NOT_FOUND => {}
                    _ => return Err(self.source.refusal(response, &what).await),
                }
                let Some(url) = self.begin(digest, others, &what).await? else {
                    return Ok(Presence::Mounted);
                };
                match self.whole(&what, digest, file, size, url, sent).await {
                    Err(error) if in_pieces(&error) => {
                        sent.store(0, Ordering::Relaxed);
                        let Some(url) = self.begin(digest, &[], &what).await? else {
                            return Ok(Presence::Mounted);
                        };
                        session = Some(Session { url, at: 0, broken: false });
                        Err(error)
                    }
                    done => done,
                }
            };
            match attempt.await {
                Ok(presence) => return Ok(presence),
                Err(_) if session.as_ref().is_some_and(|session| !session.broken) => {}
                Err(error) => {
                    // Progress buys patience.
                    if session.as_ref().is_some_and(|session| session.at > before) {
                        backoff.reset();
                    }
                    backoff.pause(error).await?;
                }
            }
        }
    }

    /// Opens an upload; `None` when the registry took the blob from one of the `others` instead.
    async fn begin(&self, digest: &Digest, others: &[String], what: &str) -> Result<Option<Url>, Error> {
        for other in others.iter().map(Some).chain([None]) {
            let mut url = self.source.url("blobs/uploads/")?;
            if let Some(other) = other {
                url.query_pairs_mut().append_pair("mount", digest.as_str()).append_pair("from", other);
            }
            let make = || self.upload(Method::POST, url.clone(), &[(CONTENT_LENGTH, "0")], None);
            let response = self.source.send(what, &|| 0, make).await?;
            match response.status() {
                StatusCode::CREATED => return Ok(None),
                // It did not take it, and begins an upload of its own accord.
                StatusCode::ACCEPTED => return self.location(&response).map(Some),
                // Not allowed to read there, perhaps: try without.
                _ if other.is_some() => {}
                _ => return Err(self.source.refusal(response, what).await),
            }
        }
        Err(self.protocol("it opens no upload"))
    }

    /// All of it in one request.
    async fn whole(
        &self,
        what: &str,
        digest: &Digest,
        file: &Arc<File>,
        size: u64,
        mut url: Url,
        sent: &Arc<AtomicU64>,
    ) -> Result<Presence, Error> {
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let length = size.to_string();
        let headers = [(CONTENT_LENGTH, length.as_str()), (CONTENT_TYPE, "application/octet-stream")];
        let make = || {
            sent.store(0, Ordering::Relaxed);
            self.upload(Method::PUT, url.clone(), &headers, Some(body(file, 0, size, sent)))
        };
        let response = self.source.send(what, &|| sent.load(Ordering::Relaxed), make).await?;
        match response.status() {
            StatusCode::CREATED => Ok(Presence::Sent),
            _ => Err(self.source.refusal(response, what).await),
        }
    }

    /// Asks how much of a broken upload the registry has; false when it knows nothing of the upload any more.
    async fn reached(&self, what: &str, session: &mut Session) -> Result<bool, Error> {
        let make = || self.upload(Method::GET, session.url.clone(), &[], None);
        let response = self.source.send(what, &|| 0, make).await?;
        if response.status() != StatusCode::NO_CONTENT {
            return Ok(false);
        }
        if response.headers().contains_key(LOCATION) {
            session.url = self.location(&response)?;
        }
        // "0-0" is how registries say that there is nothing, and one byte is no loss.
        session.at = last(response.headers()).filter(|last| *last > 0).map_or(0, |last| last + 1);
        Ok(true)
    }

    /// Piece by piece, from where the session is. How far it comes is noted there, to go on from.
    async fn pieces(
        &self,
        digest: &Digest,
        file: &Arc<File>,
        size: u64,
        sent: &Arc<AtomicU64>,
        session: &mut Option<Session>,
    ) -> Result<Presence, Error> {
        let what = self.source.blob_name(digest);
        let Some(Session { mut url, mut at, .. }) = session.clone() else { return Ok(Presence::Found) };
        if at > size {
            return Err(self.protocol("it has more of a blob than there is"));
        }
        while at < size {
            *session = Some(Session { url: url.clone(), at, broken: true });
            let length = PIECE.min(size - at);
            let (range, count) = (format!("{at}-{}", at + length - 1), length.to_string());
            let headers = [
                (CONTENT_LENGTH, count.as_str()),
                (CONTENT_RANGE, &range),
                (CONTENT_TYPE, "application/octet-stream"),
            ];
            let make = || {
                sent.store(at, Ordering::Relaxed);
                self.upload(Method::PATCH, url.clone(), &headers, Some(body(file, at, length, sent)))
            };
            let response = self.source.send(&what, &|| sent.load(Ordering::Relaxed), make).await?;
            if response.status() != StatusCode::ACCEPTED {
                return Err(self.source.refusal(response, &what).await);
            }
            url = self.location(&response)?;
            at = match last(response.headers()) {
                Some(last) if last + 1 > at && last < size => last + 1,
                Some(_) => return Err(self.protocol("it took none of a piece of a blob")),
                None => at + length,
            };
        }
        *session = Some(Session { url: url.clone(), at, broken: true });
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let make = || self.upload(Method::PUT, url.clone(), &[(CONTENT_LENGTH, "0")], None);
        let response = self.source.send(&what, &|| 0, make).await?;
        match response.status() {
            StatusCode::CREATED => Ok(Presence::Sent),
            _ => Err(self.source.refusal(response, &what).await),
        }
    }

    /// Puts a manifest under a tag or its digest, byte for byte.
    pub(crate) async fn manifest(&self, name: &str, media_type: &str, bytes: &[u8]) -> Result<(), Error> {
        let (what, url) = (format!("manifest {name}"), self.source.url(&format!("manifests/{name}"))?);
        let length = bytes.len().to_string();
        let headers = [(CONTENT_TYPE, media_type), (CONTENT_LENGTH, length.as_str())];
        let bytes = Bytes::copy_from_slice(bytes);
        let make = || self.upload(Method::PUT, url.clone(), &headers, Some(bytes.clone().into()));
        let mut backoff = Backoff::new(&self.source.transport.patience);
        loop {
            let attempt = async {
                let response = self.source.send(&what, &|| 0, make).await?;
                let status = response.status();
                if status.is_success() { Ok(()) } else { Err(self.source.refusal(response, &what).await) }
            };
            match attempt.await {
                Ok(()) => return Ok(()),
                Err(error) => backoff.pause(error).await?,
            }
        }
    }

    async fn request(
        &self,
        what: &str,
        method: Method,
        path: &str,
        headers: &[(reqwest::header::HeaderName, &str)],
    ) -> Result<Response, Error> {
        let url = self.source.url(path)?;
        self.source.send(what, &|| 0, || self.upload(method.clone(), url.clone(), headers, None)).await
    }

    fn upload(
        &self,
        method: Method,
        url: Url,
        headers: &[(reqwest::header::HeaderName, &str)],
        body: Option<Body>,
    ) -> Result<Upload, Error> {
        let value =
            |text: &str| HeaderValue::from_str(text).map_err(|_| self.protocol("a name fits no header"));
        let headers = headers.iter().map(|(name, text)| Ok((name.clone(), value(text)?)));
        let headers = headers.collect::<Result<HeaderMap, Error>>()?;
        Ok(Upload { method, url, authorization: None, headers, body })
    }

    /// Where an upload goes on.
    fn location(&self, response: &Response) -> Result<Url, Error> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| self.protocol("it opens an upload and does not say where"))?;
        let url = response.url().join(location);
        let mut url = url.map_err(|_| self.protocol("its upload has no address"))?;
        if url.scheme() != "https" && url.scheme() != response.url().scheme() {
            return Err(self.protocol("it leads an upload from HTTPS to something weaker"));
        }
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(url)
    }

    fn protocol(&self, reason: &'static str) -> Error {
        Error::Protocol { host: self.source.host(), reason }
    }
}

/// Whether it is worth sending the blob in pieces: the connection broke, or it was too much at a time.
fn in_pieces(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Stalled { .. } | Error::Status { status: 413, .. })
}

/// The last byte that a registry says it has: `0-8388607`, some write `bytes=0-8388607`.
fn last(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?;
    text.trim_start_matches("bytes=").split_once('-')?.1.trim().parse().ok()
}

/// A part of a file, counted as it is taken.
fn body(file: &Arc<File>, at: u64, length: u64, sent: &Arc<AtomicU64>) -> Body {
    let end = at + length;
    let part = (file.clone(), sent.clone(), at);
    Body::wrap_stream(stream::try_unfold(part, move |(file, sent, at)| async move {
        if at == end {
            return Ok(None);
        }
        let reader = file.clone();
        let read = move || {
            let mut bytes = vec![0; READ.min(end - at) as usize];
            reader.read_exact_at(&mut bytes, at).map(|()| bytes)
        };
        let bytes = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)??;
        let at = at + bytes.len() as u64;
        sent.store(at, Ordering::Relaxed);
        Ok::<_, std::io::Error>(Some((Bytes::from(bytes), (file, sent, at))))
    }))
}
