//! One request at a time: which scheme and client, where a redirect may lead, who sees the credentials.
//!
//! HTTP is for loopback and for registries that are configured so; TLS is not even set up until something needs
//! it. Redirects are followed here and not by the HTTP library, so that the `Authorization` header stays with
//! the origin it was made for.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use reqwest::{
    Client, ClientBuilder, Response, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE},
    redirect::Policy,
};

use super::Error;

/// How long to wait for a registry, and how often to ask again.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For a connection, with the name looked up and TLS agreed.
    pub connect: Duration,
    /// Without a byte, or with next to none.
    pub stall: Duration,
    /// How often to ask in all, when there is an error that may pass.
    pub attempts: u32,
    /// The first pause between two attempts; it doubles up to 32 times this.
    pub backoff: Duration,
    /// The longest pause that a registry may ask for; beyond it the pull fails at once.
    pub retry_after: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(200),
            retry_after: Duration::from_secs(60),
        }
    }
}

const MAX_REDIRECTS: usize = 5;

/// The connections to all registries.
#[derive(Debug)]
pub(crate) struct Transport {
    insecure: Vec<String>,
    pub(super) patience: Patience,
    /// Loopback is never behind a proxy.
    local: OnceLock<Client>,
    plain: OnceLock<Client>,
    tls: OnceLock<Client>,
}

/// What to ask for.
pub(super) struct Request<'a> {
    pub(super) url: Url,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) accept: &'a str,
    /// The first byte wanted.
    pub(super) from: u64,
    /// A form to post; without one it is a GET.
    pub(super) form: Option<&'a [(&'a str, &'a str)]>,
}

impl Transport {
    pub(crate) fn new(insecure: Vec<String>, patience: Patience) -> Transport {
        let (local, plain, tls) = Default::default();
        Transport { insecure, patience, local, plain, tls }
    }

    /// The address of a registry by the name that references have.
    pub(super) fn base(&self, domain: &str) -> Result<Url, Error> {
        // Docker Hub's registry is not where its name says.
        let host = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        let error = |reason| Error::Address { domain: domain.to_owned(), reason };
        let url = Url::parse(&format!("https://{host}/v2/")).map_err(|_| error("is no address"))?;
        let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
        let configured = self.insecure.iter().any(|name| name == domain || name == bare);
        if configured || is_loopback(&url) {
            return Url::parse(&format!("http://{host}/v2/")).map_err(|_| error("is no address"));
        }
        Ok(url)
    }

    /// Sends a request and follows where it leads. Any status but a redirect is an answer.
    pub(super) async fn exchange(&self, request: Request<'_>) -> Result<Response, Error> {
        let origin = request.url.origin();
        let mut url = request.url;
        for _ in 0..=MAX_REDIRECTS {
            let client = self.client(&url)?;
            let mut builder = match request.form {
                Some(form) => client.post(url.clone()).form(form),
                None => client.get(url.clone()),
            };
            builder = builder.header(ACCEPT, request.accept);
            if request.from > 0 {
                builder = builder.header(RANGE, format!("bytes={}-", request.from));
            }
            if let Some(authorization) = request.authorization.clone().filter(|_| url.origin() == origin) {
                builder = builder.header(AUTHORIZATION, authorization);
            }
            let response = self.first_byte(&url, builder.send()).await?;
            // A redirected form would carry its secret along.
            if request.form.is_some() || !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            url = redirect(&url, response.headers().get(LOCATION))?;
        }
        Err(Error::Protocol { host: host(&url), reason: "it redirects without end" })
    }

    async fn first_byte(
        &self,
        url: &Url,
        answer: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response, Error> {
        let limit = self.patience.connect + self.patience.stall;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(Error::Unavailable { host: host(url), source: source.without_url() }),
            Err(_) => Err(Error::Stalled { host: host(url), after: limit }),
        }
    }

    fn client(&self, url: &Url) -> Result<&Client, Error> {
        if url.scheme() == "https" {
            return once(&self.tls, || self.secure());
        }
        if is_loopback(url) {
            return once(&self.local, || {
                self.builder().no_proxy().tls_backend_preconfigured(no_tls()).build()
            });
        }
        once(&self.plain, || self.builder().tls_backend_preconfigured(no_tls()).build())
    }

    fn secure(&self) -> reqwest::Result<Client> {
        // The library takes the process's provider, and there may be one already. Roots are the system's.
        let _ = rustls::crypto::ring::default_provider().install_default();
        self.builder().build()
    }

    fn builder(&self) -> ClientBuilder {
        Client::builder()
            .user_agent(concat!("sampan/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(self.patience.connect)
            .pool_idle_timeout(Duration::from_secs(15))
    }
}

fn once(cell: &OnceLock<Client>, make: impl FnOnce() -> reqwest::Result<Client>) -> Result<&Client, Error> {
    if let Some(client) = cell.get() {
        return Ok(client);
    }
    let client = make().map_err(|source| Error::Client { source })?;
    Ok(cell.get_or_init(|| client))
}

/// Spares the plain clients the loading of certificates. They never see an `https` address.
fn no_tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

fn redirect(from: &Url, location: Option<&HeaderValue>) -> Result<Url, Error> {
    let error = |reason| Error::Protocol { host: host(from), reason };
    let location = location.and_then(|value| value.to_str().ok()).ok_or(error("it redirects nowhere"))?;
    let mut url = from.join(location).map_err(|_| error("it redirects to what is no address"))?;
    if url.scheme() != "https" && url.scheme() != from.scheme() {
        return Err(error("it redirects from HTTPS to something weaker"));
    }
    // Credentials in an address would come from the registry, not from who pulls.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok(url)
}

/// Host and port, for messages.
pub(super) fn host(url: &Url) -> String {
    match (url.host_str().unwrap_or_default(), url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(url::Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_for_loopback_and_configured_registries() {
        let insecure = vec!["registry.lan:5000".to_owned(), "old.lan".to_owned()];
        let transport = Transport::new(insecure, Patience::default());
        for (domain, base) in [
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("quay.io", "https://quay.io/v2/"),
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/"),
            ("127.8.8.8", "http://127.8.8.8/v2/"),
            ("[::1]:5000", "http://[::1]:5000/v2/"),
            ("registry.lan:5000", "http://registry.lan:5000/v2/"),
            ("registry.lan:5001", "https://registry.lan:5001/v2/"),
            ("old.lan:1234", "http://old.lan:1234/v2/"),
            ("localhost.evil.com", "https://localhost.evil.com/v2/"),
        ] {
            assert_eq!(transport.base(domain).unwrap().as_str(), base);
        }
        assert!(transport.tls.get().is_none());
    }

    #[test]
    fn redirects_do_not_weaken_the_connection() {
        let https = Url::parse("https://a.io/v2/").unwrap();
        let to = |text: &'static str| redirect(&https, Some(&HeaderValue::from_static(text)));
        assert_eq!(to("/x").unwrap().as_str(), "https://a.io/x");
        assert_eq!(to("https://u:p@cdn.io/y").unwrap().as_str(), "https://cdn.io/y");
        assert!(to("http://a.io/x").is_err());
        assert!(to("file:///etc/passwd").is_err());
        assert!(redirect(&https, None).is_err());
    }

    #[test]
    fn system_certificates_are_found_when_needed() {
        let transport = Transport::new(Vec::new(), Patience::default());
        transport.client(&Url::parse("https://a.io/").unwrap()).unwrap();
    }
}
