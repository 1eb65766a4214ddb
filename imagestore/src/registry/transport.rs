//! One request at a time: which scheme and client, where a redirect may lead, who sees the credentials.
//!
//! HTTP is for loopback and for registries that are configured so; TLS is not even set up until something needs
//! it. Redirects are followed here and not by the HTTP library, so that the `Authorization` header stays with
//! the origin it was made for.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use reqwest::{
    Body, Client, ClientBuilder, Method, Response, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE},
    redirect::Policy,
};

use super::{
    Credentials, Error,
    hosts::{self, Capabilities, Endpoint, Entry, Tls},
    tls,
};

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
/// Clients with settings of their own are few; beyond this something makes them up.
const MAX_CLIENTS: usize = 64;

/// Where registries are and how they are spoken to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    /// Registries to speak plain HTTP to.
    pub(crate) insecure: Vec<String>,
    /// The folder with a folder of settings for each registry; it need not exist.
    pub(crate) certs: Option<PathBuf>,
}

/// The connections to all registries.
#[derive(Debug)]
pub(crate) struct Transport {
    routes: Routes,
    pub(super) patience: Patience,
    pub(super) credentials: Credentials,
    /// Loopback is never behind a proxy.
    local: OnceLock<Client>,
    plain: OnceLock<Client>,
    /// By settings, and whether they are for loopback.
    tls: Mutex<HashMap<(Tls, bool), Client>>,
}

/// What to send.
pub(super) struct Upload {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Body>,
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
    pub(crate) fn new(routes: Routes, patience: Patience, credentials: Credentials) -> Transport {
        let (local, plain, tls) = Default::default();
        Transport { routes, patience, credentials, local, plain, tls }
    }

    /// The hosts to ask for what the registry of this name has, mirrors first.
    pub(super) fn endpoints(&self, domain: &str) -> Result<Vec<Endpoint>, Error> {
        let mut entries = match &self.routes.certs {
            Some(root) => hosts::load(root, domain)?,
            None => Vec::new(),
        };
        if entries.is_empty() {
            entries.push(Entry {
                base: None,
                capabilities: Capabilities::ALL,
                tls: Tls::default(),
                headers: HeaderMap::new(),
                own: true,
            });
        }
        let endpoint = |entry: Entry| {
            let base = entry.base.map_or_else(|| self.base(domain), Ok)?;
            let Entry { capabilities, tls, headers, own, .. } = entry;
            Ok(Endpoint { base, capabilities, tls, headers, own })
        };
        entries.into_iter().map(endpoint).collect()
    }

    /// The address of a registry by the name that references have.
    fn base(&self, domain: &str) -> Result<Url, Error> {
        // Docker Hub's registry is not where its name says.
        let host = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        let error = |reason| Error::Address { domain: domain.to_owned(), reason };
        let url = Url::parse(&format!("https://{host}/v2/")).map_err(|_| error("is no address"))?;
        let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
        let configured = self.routes.insecure.iter().any(|name| name == domain || name == bare);
        if configured || is_loopback(&url) {
            return Url::parse(&format!("http://{host}/v2/")).map_err(|_| error("is no address"));
        }
        Ok(url)
    }

    /// Sends a request and follows where it leads. Any status but a redirect is an answer. The settings of the
    /// endpoint are for its own origin; of them a host elsewhere only profits from the certificates to trust.
    pub(super) async fn exchange(
        &self,
        endpoint: &Endpoint,
        request: Request<'_>,
    ) -> Result<Response, Error> {
        let origin = request.url.origin();
        let elsewhere = Tls { ca: endpoint.tls.ca.clone(), ..Tls::default() };
        let mut url = request.url;
        for _ in 0..=MAX_REDIRECTS {
            let own = url.origin() == endpoint.base.origin();
            let client = self.client(&url, if own { &endpoint.tls } else { &elsewhere })?;
            let mut builder = match request.form {
                Some(form) => client.post(url.clone()).form(form),
                None => client.get(url.clone()),
            };
            builder = builder.header(ACCEPT, request.accept);
            if own {
                builder = builder.headers(endpoint.headers.clone());
            }
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

    /// Sends a request that changes something. It goes nowhere else: whoever redirects it is refused. `progress` is
    /// asked now and then how far the body is; as long as it moves there is no hurry.
    pub(super) async fn upload(
        &self,
        endpoint: &Endpoint,
        upload: Upload,
        progress: &(dyn Fn() -> u64 + Sync),
    ) -> Result<Response, Error> {
        let own = upload.url.origin() == endpoint.base.origin();
        let elsewhere = Tls { ca: endpoint.tls.ca.clone(), ..Tls::default() };
        let client = self.client(&upload.url, if own { &endpoint.tls } else { &elsewhere })?;
        let mut builder = client.request(upload.method, upload.url.clone()).headers(upload.headers);
        if own {
            builder = builder.headers(endpoint.headers.clone());
            if let Some(authorization) = upload.authorization {
                builder = builder.header(AUTHORIZATION, authorization);
            }
        }
        if let Some(body) = upload.body {
            builder = builder.body(body);
        }
        let mut answer = std::pin::pin!(builder.send());
        let limit = self.patience.connect + self.patience.stall;
        let mut before = progress();
        loop {
            match tokio::time::timeout(limit, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(source)) => {
                    return Err(Error::Unavailable { host: host(&upload.url), source: source.without_url() });
                }
                Err(_) if progress() > before => before = progress(),
                Err(_) => return Err(Error::Stalled { host: host(&upload.url), after: limit }),
            }
        }
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

    fn client(&self, url: &Url, tls: &Tls) -> Result<Client, Error> {
        if url.scheme() == "https" {
            return self.secure(tls, is_loopback(url));
        }
        if is_loopback(url) {
            return once(&self.local, || {
                self.builder().no_proxy().tls_backend_preconfigured(no_tls()).build()
            });
        }
        once(&self.plain, || self.builder().tls_backend_preconfigured(no_tls()).build())
    }

    fn secure(&self, tls: &Tls, local: bool) -> Result<Client, Error> {
        let mut clients = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tls.clone(), local);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = self.make_secure(tls, local)?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn make_secure(&self, tls: &Tls, local: bool) -> Result<Client, Error> {
        let mut builder = self.builder().tls_backend_preconfigured(tls::config(tls)?);
        if local {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|source| Error::Client { source })
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

fn once(cell: &OnceLock<Client>, make: impl FnOnce() -> reqwest::Result<Client>) -> Result<Client, Error> {
    if let Some(client) = cell.get() {
        return Ok(client.clone());
    }
    let client = make().map_err(|source| Error::Client { source })?;
    Ok(cell.get_or_init(|| client).clone())
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

    fn transport(routes: Routes) -> Transport {
        Transport::new(routes, Patience::default(), Credentials::default())
    }

    #[test]
    fn mirrors_come_before_the_registry_whatever_it_is_called() {
        let certs = tempfile::tempdir().unwrap();
        std::fs::create_dir(certs.path().join("_default")).unwrap();
        let text = "[host.\"https://mirror.lan\"]\ncapabilities = [\"pull\"]";
        std::fs::write(certs.path().join("_default/hosts.toml"), text).unwrap();
        let transport = transport(Routes { certs: Some(certs.path().to_owned()), insecure: Vec::new() });
        for (domain, base) in
            [("docker.io", "https://registry-1.docker.io/v2/"), ("[::1]:5000", "http://[::1]:5000/v2/")]
        {
            let endpoints = transport.endpoints(domain).unwrap();
            let bases: Vec<_> = endpoints.iter().map(|endpoint| endpoint.base.as_str()).collect();
            assert_eq!(bases, ["https://mirror.lan/v2/", base]);
            assert!(!endpoints[0].own && !endpoints[0].capabilities.resolve);
            assert!(endpoints[1].own && endpoints[1].capabilities.resolve);
        }
    }

    #[test]
    fn http_is_for_loopback_and_configured_registries() {
        let insecure = vec!["registry.lan:5000".to_owned(), "old.lan".to_owned()];
        let transport = transport(Routes { insecure, certs: None });
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
        assert!(transport.tls.lock().unwrap().is_empty());
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
        let url = Url::parse("https://a.io/").unwrap();
        let transport = transport(Routes::default());
        transport.client(&url, &Tls::default()).unwrap();
        let bad = hosts::ClientPem { path: "node.pem".into(), pem: b"no certificate".to_vec() };
        let bad = Tls { clients: vec![bad], ..Tls::default() };
        assert!(matches!(transport.client(&url, &bad), Err(Error::Tls(tls::Error::Pem { .. }))));
        assert_eq!(transport.tls.lock().unwrap().len(), 1);
    }
}
