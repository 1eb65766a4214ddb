//! ADD of a URL, and contexts that are fetched.
//!
//! What a server sends is data and nothing else: no name of its choosing becomes a path, it cannot lead from HTTPS to
//! something weaker, and every wait has an end. A file that was fetched before is asked for on the condition that it has
//! changed; one whose checksum the Dockerfile has is not asked for at all when it is here.

use std::{
    collections::HashMap,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{
    Client, Response, StatusCode,
    header::{ETAG, HeaderMap, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED},
    redirect::{Attempt, Policy},
};

use super::{Error, files::Files};
use crate::Digest;

/// For a connection, and without a byte.
const PATIENCE: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 10;
/// As often a server may fail in a way that can pass.
const ATTEMPTS: u32 = 4;

/// A file that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// When the server says it was changed, in seconds since 1970; 0: it does not say.
    pub(super) modified: i64,
}

/// What was fetched, by URL.
#[derive(Debug, Default)]
pub(super) struct Fetcher {
    client: Mutex<Option<Client>>,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    fetched: Fetched,
    etag: Option<String>,
    last_modified: Option<String>,
}

impl Fetcher {
    /// Fetches a URL into `files`, unless it is there as it would be fetched.
    pub(super) async fn fetch(
        &self,
        files: &Arc<Files>,
        url: &str,
        checksum: Option<&Digest>,
    ) -> Result<Fetched, Error> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(url).cloned();
        let known = known.filter(|known| files.touch(&known.fetched.digest));
        if let (Some(known), Some(wanted)) = (&known, checksum)
            && known.fetched.digest == *wanted
        {
            return Ok(known.fetched.clone());
        }
        let mut attempt = 1;
        let known = loop {
            match self.attempt(files, url, known.as_ref()).await {
                Err(Error::Fetch { again: true, .. }) if attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(250 << attempt)).await;
                    attempt += 1;
                }
                result => break result?,
            }
        };
        if let Some(expected) = checksum
            && known.fetched.digest != *expected
        {
            let (what, actual) = (bare(url), known.fetched.digest);
            return Err(Error::Checksum { what, expected: expected.clone(), actual });
        }
        let fetched = known.fetched.clone();
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(url.to_owned(), known);
        Ok(fetched)
    }

    async fn attempt(&self, files: &Arc<Files>, url: &str, known: Option<&Known>) -> Result<Known, Error> {
        let mut request = self.client()?.get(url);
        if let Some(known) = known {
            if let Some(etag) = &known.etag {
                request = request.header(IF_NONE_MATCH, etag);
            }
            if let Some(modified) = &known.last_modified {
                request = request.header(IF_MODIFIED_SINCE, modified);
            }
        }
        let response = tokio::time::timeout(PATIENCE * 2, request.send()).await;
        let response = response.map_err(|_| failed(url, "it does not answer", true))?;
        let response = response.map_err(|error| failed(url, reason(error), true))?;
        match (response.status(), known) {
            (StatusCode::NOT_MODIFIED, Some(known)) => return Ok(known.clone()),
            (status, _) if status.is_success() => {}
            (status, _) => {
                let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                return Err(failed(url, format!("the server answers {status}"), again));
            }
        }
        self.body(files, url, response).await
    }

    async fn body(&self, files: &Arc<Files>, url: &str, mut response: Response) -> Result<Known, Error> {
        let header = |headers: &HeaderMap, name| {
            headers
                .get(name)
                .and_then(|value: &reqwest::header::HeaderValue| value.to_str().ok())
                .map(str::to_owned)
        };
        let etag = header(response.headers(), ETAG);
        let last_modified = header(response.headers(), LAST_MODIFIED);
        let modified = last_modified.as_deref().and_then(http_date).unwrap_or_default();
        let promised = response.content_length();
        let mut writer = files.begin()?;
        loop {
            let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await;
            let chunk = chunk.map_err(|_| failed(url, "it stopped in the middle", true))?;
            let Some(chunk) = chunk.map_err(|error| failed(url, reason(error), true))? else { break };
            writer.write_all(&chunk).map_err(Error::io("write", bare(url).as_bytes()))?;
        }
        let size = writer.size();
        if promised.is_some_and(|promised| promised != size) {
            return Err(failed(url, "it ended too early", true));
        }
        let fetched = Fetched { digest: writer.finish()?, size, modified };
        Ok(Known { fetched, etag, last_modified })
    }

    /// Made when the first URL is met: loading certificates takes its time.
    fn client(&self) -> Result<Client, Error> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        // Fails when it is done already, and then it is done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = Client::builder()
            .user_agent(concat!("sampan/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::custom(redirect))
            .referer(false)
            .connect_timeout(PATIENCE)
            .pool_idle_timeout(Duration::from_secs(15))
            .build()
            .map_err(|error| Error::Invalid(format!("nothing can be fetched here: {}", reason(error))))?;
        *client = Some(made.clone());
        Ok(made)
    }
}

fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let secure = attempt.previous().last().is_some_and(|from| from.scheme() == "https");
    if attempt.previous().len() > REDIRECTS {
        attempt.error("it redirects without end")
    } else if secure && attempt.url().scheme() != "https" {
        attempt.error("it redirects from HTTPS to something weaker")
    } else {
        attempt.follow()
    }
}

fn failed(url: &str, reason: impl Into<String>, again: bool) -> Error {
    Error::Fetch { url: bare(url), reason: reason.into(), again }
}

/// An error without the address, which may have credentials in it.
fn reason(error: reqwest::Error) -> String {
    crate::error::chain(&error.without_url())
}

/// The address as it may be shown.
fn bare(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(mut url) => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.to_string()
        }
        Err(_) => "the URL".to_owned(),
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7) in seconds since 1970.
fn http_date(text: &str) -> Option<i64> {
    let broken = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(broken.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_servers_are_read() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(bare("https://me:secret@example.com/a?token=x"), "https://example.com/a");
    }
}
