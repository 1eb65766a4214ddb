//! One host that may have what is asked for: requests, the challenges they meet, and answers of bounded size.
//!
//! Credentials belong to a host. Those that came with a pull are for the registry that the image's name has; a mirror
//! is only ever shown what this node keeps under the mirror's own name.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use reqwest::{
    Response, StatusCode, Url,
    header::{CONTENT_LENGTH, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use tokio::sync::{Mutex, OnceCell};

use super::{
    Auth, Error,
    auth::{self, Challenge, Token},
    backoff::retry_after,
    hosts::Endpoint,
    transport::{Request, Transport, Upload, host},
};
use crate::Digest;

/// A token is a few KiB; an error text is shorter still.
const MAX_ANSWER: u64 = 1 << 20;

/// A host, as one pull sees it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) transport: Arc<Transport>,
    pub(super) endpoint: Endpoint,
    path: String,
    /// What leave to ask a token service for.
    scopes: Vec<String>,
    /// The registry in the image's name.
    domain: String,
    /// Looked up when the host first asks.
    auth: OnceCell<Option<Auth>>,
    /// What the host was last satisfied with.
    authorization: Mutex<Option<HeaderValue>>,
    /// Set when it failed in a way that it will fail again.
    down: AtomicBool,
}

impl Source {
    pub(super) fn new(
        transport: &Arc<Transport>,
        endpoint: Endpoint,
        (domain, path): (&str, &str),
        auth: Option<&Auth>,
    ) -> Source {
        let auth = auth.filter(|_| endpoint.own);
        let authorization = match auth {
            Some(Auth::RegistryToken(token)) => auth::bearer(token),
            _ => None,
        };
        Source {
            transport: transport.clone(),
            endpoint,
            path: path.to_owned(),
            scopes: vec![format!("repository:{path}:pull")],
            domain: domain.to_owned(),
            auth: OnceCell::new_with(auth.map(|auth| Some(auth.clone()))),
            authorization: Mutex::new(authorization),
            down: AtomicBool::new(false),
        }
    }

    /// Asks for leave to write as well, and to take blobs from these other repositories.
    pub(super) fn for_push(mut self, others: &[String]) -> Source {
        let others = others.iter().map(|path| format!("repository:{path}:pull"));
        self.scopes = [format!("repository:{}:pull,push", self.path)].into_iter().chain(others).collect();
        self
    }

    pub(super) fn host(&self) -> String {
        host(&self.endpoint.base)
    }

    /// Any answer to a request that changes something, authorised if that is asked for. `make` is called once more
    /// when the first attempt met a challenge.
    pub(super) async fn send(
        &self,
        what: &str,
        progress: &(dyn Fn() -> u64 + Sync),
        make: impl Fn() -> Result<Upload, Error>,
    ) -> Result<Response, Error> {
        let mut known = self.authorization.lock().await.clone();
        for challenged in [false, true] {
            let upload = Upload { authorization: known.clone(), ..make()? };
            let ours = upload.url.origin() == self.endpoint.base.origin();
            let response = self.transport.upload(&self.endpoint, upload, progress).await?;
            if response.status() != StatusCode::UNAUTHORIZED || challenged || !ours {
                return Ok(response);
            }
            known = self.authorize(response, known, what).await?;
        }
        unreachable!("the second round returns")
    }

    /// For messages.
    pub(super) fn blob_name(&self, digest: &Digest) -> String {
        format!("blob {digest} of {}", self.path)
    }

    /// Whether it is worth asking.
    pub(super) fn is_up(&self) -> bool {
        !self.down.load(Ordering::Relaxed)
    }

    pub(super) fn set_down(&self) {
        self.down.store(true, Ordering::Relaxed);
    }

    /// The credentials for this host: those of the pull, or those that this node keeps.
    async fn auth(&self) -> Result<Option<&Auth>, Error> {
        let find = || async {
            let host = if self.endpoint.own { self.domain.clone() } else { self.host() };
            Ok::<_, Error>(self.transport.credentials.find(&format!("{host}/{}", self.path)).await?)
        };
        Ok(self.auth.get_or_try_init(find).await?.as_ref())
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, Error> {
        let mut url = self.endpoint.base.join(&format!("{}/{path}", self.path)).map_err(|_| {
            Error::Protocol { host: self.host(), reason: "the repository's name makes no address" }
        })?;
        if !self.endpoint.own {
            // How a mirror of several registries knows which is meant.
            url.query_pairs_mut().append_pair("ns", &self.domain);
        }
        Ok(url)
    }

    /// A successful answer to one request, authorised if that is asked for.
    pub(super) async fn get(
        &self,
        path: &str,
        accept: &str,
        from: u64,
        what: &str,
    ) -> Result<Response, Error> {
        let mut known = self.authorization.lock().await.clone();
        for challenged in [false, true] {
            let url = self.url(path)?;
            let request = Request { url, authorization: known.clone(), accept, from, form: None };
            let response = self.transport.exchange(&self.endpoint, request).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            // Whoever we were redirected to may ask for credentials, but has none of ours to expect.
            let ours = response.url().origin() == self.endpoint.base.origin();
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
        let auth = self.auth().await?;
        let answer = match (challenge, auth) {
            (Some(Challenge::Bearer { .. }), Some(Auth::RegistryToken(_))) => None,
            (Some(Challenge::Bearer { realm, service }), _) => {
                self.token(&realm, service.as_deref(), auth, what).await?
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
        known: Option<&Auth>,
        what: &str,
    ) -> Result<Option<HeaderValue>, Error> {
        let url = Url::parse(realm).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(mut url) = url else {
            return Err(Error::Protocol {
                host: host(&self.endpoint.base),
                reason: "its token service has no address",
            });
        };
        let auth = known.filter(|_| auth::may_know(&self.endpoint.base, &url));
        if known.is_some() && auth.is_none() {
            tracing::warn!(
                registry = host(&self.endpoint.base),
                realm = host(&url),
                "credentials withheld from a token service outside the registry's domain"
            );
        }
        let joined = self.scopes.join(" ");
        let mut fields: Vec<(&str, &str)> = match auth {
            // A form has one scope with spaces in it, a query several.
            Some(Auth::IdentityToken(_)) => vec![("scope", &joined)],
            _ => self.scopes.iter().map(|scope| ("scope", scope.as_str())).collect(),
        };
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
        let response = self.transport.exchange(&self.endpoint, request).await?;
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
    pub(super) async fn body(
        &self,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, Error> {
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
    pub(super) async fn refusal(&self, response: Response, what: &str) -> Error {
        let (host, what) = (host(response.url()), what.to_owned());
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        let detail = match self.body(response, MAX_ANSWER, &what).await {
            Ok(bytes) => detail(&bytes),
            Err(_) => String::new(),
        };
        match status {
            401 | 403 if self.auth.get().is_none_or(Option::is_none) => {
                let detail = format!("{detail} (no credentials were given, and the image may not exist)");
                Error::Unauthenticated { host, what, detail }
            }
            401 | 403 => Error::Unauthenticated { host, what, detail },
            404 => Error::NotFound { host, what, detail },
            _ => Error::Status { host, status, what, detail, retry_after },
        }
    }
}

pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
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

    #[test]
    fn the_registrys_words_are_short_and_harmless() {
        let text = br#"{"errors":[{"code":"DENIED","message":"go\u001b[31m away"}]}"#;
        assert_eq!(detail(text), ": DENIED go[31m away");
        assert_eq!(detail(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(10_000));
        assert_eq!(detail(long.as_bytes()).len(), 200);
    }
}
