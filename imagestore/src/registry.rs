//! The registry client: documents and blobs of one repository over the distribution protocol.
//!
//! Every document is checked against its digest and bounded in size before anyone reads it. Every wait has a
//! deadline, and errors that may pass are tried again a bounded number of times. What a layer's bytes are good
//! for, and whether they are the right ones, is for the pull to find out.

mod auth;
mod blob;
mod error;
mod transport;

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, SystemTime},
};

use reqwest::{
    Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use tokio::sync::Mutex;

use crate::{
    Digest, Reference,
    manifest::{DOCKER_INDEX, DOCKER_MANIFEST, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST},
};
use auth::{Challenge, Token};
use transport::{Request, host};

pub use auth::Auth;
pub(crate) use error::Error;
pub use transport::Patience;
pub(crate) use transport::Transport;

/// A token is a few KiB; an error text is shorter still.
const MAX_ANSWER: u64 = 1 << 20;

/// A repository of a registry, as one pull sees it.
#[derive(Debug)]
pub(crate) struct Repository {
    transport: Arc<Transport>,
    base: Url,
    path: String,
    auth: Option<Auth>,
    /// What the registry was last satisfied with.
    authorization: Mutex<Option<HeaderValue>>,
}

/// A document, and what the registry calls it.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) content_type: Option<String>,
}

impl Repository {
    pub(crate) fn new(
        transport: &Arc<Transport>,
        reference: &Reference,
        auth: Option<Auth>,
    ) -> Result<Repository, Error> {
        let base = transport.base(reference.domain())?;
        let authorization = match &auth {
            Some(Auth::RegistryToken(token)) => auth::bearer(token),
            _ => None,
        };
        Ok(Repository {
            transport: transport.clone(),
            base,
            path: reference.path().to_owned(),
            auth,
            authorization: Mutex::new(authorization),
        })
    }

    /// The manifest or index under a tag or digest.
    pub(crate) async fn manifest(&self, name: &str) -> Result<Fetched, Error> {
        let accept = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let what = format!("manifest {name} of {}", self.path);
        let fetched = self.document(&format!("manifests/{name}"), &accept, &what).await?;
        match name.parse::<Digest>() {
            Ok(expected) if expected != fetched.digest => {
                Err(Error::Mismatch { what, expected, actual: fetched.digest })
            }
            _ => Ok(fetched),
        }
    }

    /// A configuration, which is a blob that fits into memory.
    pub(crate) async fn config(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let what = format!("configuration {digest} of {}", self.path);
        let fetched = self.document(&format!("blobs/{digest}"), "*/*", &what).await?;
        if fetched.digest != *digest {
            return Err(Error::Mismatch { what, expected: digest.clone(), actual: fetched.digest });
        }
        Ok(fetched.bytes)
    }

    async fn document(&self, path: &str, accept: &str, what: &str) -> Result<Fetched, Error> {
        let mut backoff = Backoff::new(&self.transport.patience);
        loop {
            let attempt = async {
                let response = self.get(path, accept, 0, what).await?;
                let content_type = response.headers().get(CONTENT_TYPE);
                let content_type = content_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
                let bytes = self.body(response, MAX_DOCUMENT, what).await?;
                Ok(Fetched { digest: Digest::of(&bytes), bytes, content_type })
            };
            match attempt.await {
                Err(error) => backoff.pause(error).await?,
                fetched => return fetched,
            }
        }
    }

    /// A successful answer to one request, authorised if that is asked for.
    async fn get(&self, path: &str, accept: &str, from: u64, what: &str) -> Result<Response, Error> {
        let mut known = self.authorization.lock().await.clone();
        for challenged in [false, true] {
            let url = self.base.join(&format!("{}/{path}", self.path)).map_err(|_| Error::Protocol {
                host: host(&self.base),
                reason: "the repository's name makes no address",
            })?;
            let request = Request { url, authorization: known.clone(), accept, from, form: None };
            let response = self.transport.exchange(request).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            // Whoever we were redirected to may ask for credentials, but has none of ours to expect.
            let ours = response.url().origin() == self.base.origin();
            if response.status() != StatusCode::UNAUTHORIZED || challenged || !ours {
                return Err(self.refusal(response, what).await);
            }
            known = self.authorize(response, known, what).await?;
        }
        unreachable!("the second round returns")
    }

    /// Answers a challenge. `used` did not satisfy the registry.
    async fn authorize(
        &self,
        response: Response,
        used: Option<HeaderValue>,
        what: &str,
    ) -> Result<Option<HeaderValue>, Error> {
        // Layers are fetched side by side: the first that is challenged gets a token for all.
        let mut authorization = self.authorization.lock().await;
        if *authorization != used {
            return Ok(authorization.clone());
        }
        let challenge = Challenge::parse(response.headers().get_all(WWW_AUTHENTICATE).iter());
        let answer = match (challenge, &self.auth) {
            (Some(Challenge::Bearer { .. }), Some(Auth::RegistryToken(_))) => None,
            (Some(Challenge::Bearer { realm, service }), _) => {
                self.token(&realm, service.as_deref(), what).await?
            }
            (Some(Challenge::Basic), Some(Auth::Basic { username, password })) => {
                auth::basic(username, password)
            }
            _ => None,
        };
        match answer {
            Some(answer) => *authorization = Some(answer),
            None => return Err(self.refusal(response, what).await),
        }
        Ok(authorization.clone())
    }

    /// Asks the token service for leave to read this repository, and no more than that.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        what: &str,
    ) -> Result<Option<HeaderValue>, Error> {
        let url = Url::parse(realm).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(mut url) = url else {
            return Err(Error::Protocol {
                host: host(&self.base),
                reason: "its token service has no address",
            });
        };
        let auth = self.auth.as_ref().filter(|_| auth::may_know(&self.base, &url));
        if self.auth.is_some() && auth.is_none() {
            tracing::warn!(
                registry = host(&self.base),
                realm = host(&url),
                "credentials withheld from a token service outside the registry's domain"
            );
        }
        let scope = format!("repository:{}:pull", self.path);
        let mut fields = vec![("scope", scope.as_str())];
        fields.extend(service.map(|service| ("service", service)));
        let (mut authorization, mut form) = (None, None);
        match auth {
            Some(Auth::IdentityToken(token)) => {
                fields.extend([("grant_type", "refresh_token"), ("client_id", "sampan")]);
                fields.push(("refresh_token", token));
                form = Some(fields.as_slice());
            }
            Some(Auth::Basic { username, password }) => authorization = auth::basic(username, password),
            _ => {}
        }
        if form.is_none() {
            url.query_pairs_mut().extend_pairs(&fields);
        }
        let request = Request { url, authorization, accept: "application/json", from: 0, form };
        let response = self.transport.exchange(request).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, what).await);
        }
        let host = host(response.url());
        let bytes = self.body(response, MAX_ANSWER, "token").await?;
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        match token.and_then(|token| token.header()) {
            Some(header) => Ok(Some(header)),
            None => Err(Error::Protocol { host, reason: "its token service gives no token" }),
        }
    }

    /// A whole body of at most `limit` bytes.
    async fn body(&self, mut response: Response, limit: u64, what: &str) -> Result<Vec<u8>, Error> {
        let too_large = || Error::TooLarge { what: what.to_owned(), limit };
        if length(response.headers()).is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let host = host(response.url());
        // All of it in the time that may pass without progress: a document is small.
        let deadline = tokio::time::Instant::now() + self.transport.patience.stall;
        let mut bytes = Vec::new();
        loop {
            match tokio::time::timeout_at(deadline, response.chunk()).await {
                Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
                Ok(Ok(None)) => return Ok(bytes),
                Ok(Err(source)) => return Err(Error::Unavailable { host, source: source.without_url() }),
                Err(_) => return Err(Error::Stalled { host, after: self.transport.patience.stall }),
            }
            if bytes.len() as u64 > limit {
                return Err(too_large());
            }
        }
    }

    /// The error that an unsuccessful answer stands for.
    async fn refusal(&self, response: Response, what: &str) -> Error {
        let (host, what) = (host(response.url()), what.to_owned());
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        let detail = match self.body(response, MAX_ANSWER, &what).await {
            Ok(bytes) => detail(&bytes),
            Err(_) => String::new(),
        };
        match status {
            401 | 403 if self.auth.is_none() => {
                let detail = format!("{detail} (no credentials were given, and the image may not exist)");
                Error::Unauthenticated { host, what, detail }
            }
            401 | 403 => Error::Unauthenticated { host, what, detail },
            404 => Error::NotFound { host, what, detail },
            _ => Error::Status { host, status, what, detail, retry_after },
        }
    }
}

/// Pauses between attempts: longer each time, as long as the registry asks, and not for ever.
struct Backoff<'a> {
    patience: &'a Patience,
    failures: u32,
}

impl Backoff<'_> {
    fn new(patience: &Patience) -> Backoff<'_> {
        Backoff { patience, failures: 0 }
    }

    /// There was progress: what failed before does not count any more.
    fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns when it is time for another attempt, or the error if there is to be none.
    async fn pause(&mut self, error: Error) -> Result<(), Error> {
        self.failures += 1;
        let wanted = match error.retry() {
            Some(wanted) if self.failures < self.patience.attempts => wanted,
            _ => return Err(error),
        };
        if wanted > self.patience.retry_after {
            return Err(error);
        }
        let doubled = self.patience.backoff * 2u32.pow((self.failures - 1).min(5));
        // A node's pulls fail together; they need not come back together.
        let jitter = RandomState::new().hash_one(()) % 256;
        let pause = doubled.max(wanted) + doubled.mul_f64(jitter as f64 / 1024.0);
        tracing::debug!(error = %error, pause_ms = pause.as_millis() as u64, "registry is asked again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `Retry-After` in either of its forms (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(time.as_second().try_into().ok()?).saturating_sub(now))
}

/// The registry's own words, shortened and made harmless: `: code message`.
fn detail(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Answer {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Answer { errors }) = serde_json::from_slice(bytes) else { return String::new() };
    let Some(first) = errors.first() else { return String::new() };
    let text = format!(": {} {}", first.code, first.message);
    text.trim_end().chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        [(RETRY_AFTER, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(retry_after(&headers("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers("Wed, 21 Oct 2015 07:28:00 GMT")), Some(Duration::ZERO));
        let far = retry_after(&headers("Fri, 01 Jan 2100 00:00:00 GMT")).unwrap();
        assert!(far > Duration::from_secs(365 * 86400));
        assert_eq!(retry_after(&headers("soon")), None);
        assert_eq!(retry_after(&headers("-1")), None);
    }

    #[test]
    fn the_registrys_words_are_short_and_harmless() {
        let text = br#"{"errors":[{"code":"DENIED","message":"go\u001b[31m away"}]}"#;
        assert_eq!(detail(text), ": DENIED go[31m away");
        assert_eq!(detail(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(10_000));
        assert_eq!(detail(long.as_bytes()).len(), 200);
    }

    #[tokio::test]
    async fn attempts_are_bounded_and_a_long_wait_is_refused() {
        let patience = Patience { backoff: Duration::from_millis(1), ..Patience::default() };
        let error = |retry_after: u64| Error::Status {
            host: String::new(),
            status: 429,
            what: String::new(),
            detail: String::new(),
            retry_after: Some(Duration::from_secs(retry_after)),
        };
        let mut backoff = Backoff::new(&patience);
        let start = tokio::time::Instant::now();
        backoff.pause(error(1)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(1));
        for _ in 0..3 {
            backoff.pause(error(0)).await.unwrap();
        }
        backoff.pause(error(0)).await.unwrap_err();
        Backoff::new(&patience).pause(error(3600)).await.unwrap_err();
    }
}
