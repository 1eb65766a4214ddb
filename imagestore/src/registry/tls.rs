//! TLS as a client: whom to trust, and which certificate of ours to show.
//!
//! Trusted are the system's certificates and those of the settings, judged as everywhere on the machine. Of several
//! certificates of ours a registry sees the first that one of the authorities it names has issued; the first of all where
//! none is. Keys never leave this module but to sign.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use rustls_platform_verifier::Verifier;
use webpki::EndEntityCert;

use super::hosts::{ClientPem, Tls};

/// Why there is no TLS with a host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate to trust that is none.
    #[error("a certificate to trust does not parse: name files with PEM certificates as ca in hosts.toml")]
    Authority(#[source] pem::Error),
    /// A file of ours that does not parse.
    #[error(
        "client certificate {path}: name PEM files with a certificate and its key as client in hosts.toml"
    )]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// A certificate and a key that are of no use, or not together.
    #[error("client certificate {path}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// The system's certificates could not be read, or one of the settings is no authority's.
    #[error("certificates to trust")]
    Roots(#[source] rustls::Error),
}

/// What a client needs to speak to a host with these settings.
pub(super) fn config(tls: &Tls) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match tls.skip_verify {
        true => Arc::new(Anybody(provider.clone())),
        false => Arc::new(verifier(&tls.ca, &provider)?),
    };
    let mut identities = Vec::with_capacity(tls.clients.len());
    for client in &tls.clients {
        identities.push(Identity::open(client, &provider)?);
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Roots)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identities.is_empty() {
        true => builder.with_no_client_auth(),
        false => builder.with_client_cert_resolver(Arc::new(Identities(identities))),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn verifier(ca: &[Vec<u8>], provider: &Arc<CryptoProvider>) -> Result<Verifier, Error> {
    let mut roots = Vec::new();
    for file in ca {
        for certificate in CertificateDer::pem_slice_iter(file) {
            roots.push(certificate.map_err(Error::Authority)?);
        }
    }
    Verifier::new_with_extra_roots(roots, provider.clone()).map_err(Error::Roots)
}

/// A certificate of ours with its chain and key.
#[derive(Debug)]
struct Identity {
    key: Arc<CertifiedKey>,
    /// Who issued the certificates of the chain.
    issuers: Vec<DistinguishedName>,
}

impl Identity {
    fn open(client: &ClientPem, provider: &CryptoProvider) -> Result<Identity, Error> {
        let unreadable = |source| Error::Pem { path: client.path.clone(), source };
        let useless = |source| Error::Identity { path: client.path.clone(), source };
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&client.pem).collect::<Result<_, _>>().map_err(unreadable)?;
        if chain.is_empty() {
            return Err(unreadable(pem::Error::NoItemsFound));
        }
        let key = PrivateKeyDer::from_pem_slice(&client.pem).map_err(unreadable)?;
        // What does not parse has no issuer to be chosen by.
        let issuer = |der: &CertificateDer<'static>| {
            EndEntityCert::try_from(der).map(|parsed| DistinguishedName::in_sequence(parsed.issuer()))
        };
        let issuers = chain.iter().filter_map(|der| issuer(der).ok()).collect();
        let key = CertifiedKey::from_der(chain, key, provider).map_err(useless)?;
        Ok(Identity { key: Arc::new(key), issuers })
    }

    fn signs(&self, schemes: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(schemes).is_some()
    }

    fn is_of(&self, authorities: &[&[u8]]) -> bool {
        self.issuers.iter().any(|issuer| authorities.contains(&issuer.as_ref()))
    }
}

/// The certificates of ours, in the order of the settings.
#[derive(Debug)]
struct Identities(Vec<Identity>);

impl ResolvesClientCert for Identities {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut able = self.0.iter().filter(|identity| identity.signs(schemes));
        // Servers name no authority where any will do, and not always all that they accept.
        let chosen = able.clone().find(|identity| identity.is_of(authorities)).or_else(|| able.next());
        chosen.map(|identity| identity.key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes any certificate, as the settings ask for.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
