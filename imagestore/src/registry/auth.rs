//! Credentials: what a registry's challenge asks for, and to whom it may be sent.
//!
//! A password goes to the registry itself or to a token service of the same domain, and never over plain HTTP
//! unless the registry itself is spoken to that way. No secret is ever printed.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Url, header::HeaderValue};
use serde::Deserialize;

/// What the one who pulls proves who they are with.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Auth {
    /// A user with a password or an access token in its place.
    Basic {
        /// The user.
        username: String,
        /// The secret.
        password: String,
    },
    /// What a login to the token service gave: exchanged for a token of this one repository.
    IdentityToken(String),
    /// Sent to the registry as it is.
    RegistryToken(String),
}

impl Auth {
    /// Reads the `auth` field of a Docker configuration: `user:password` in base64.
    pub fn from_encoded(text: &str) -> Option<Auth> {
        let bytes = STANDARD.decode(text.trim()).ok()?;
        let (username, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
        // Some tools pad the decoded text with NULs.
        let password = password.trim_end_matches('\0');
        Some(Auth::Basic { username: username.to_owned(), password: password.to_owned() })
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::Basic { .. } => "Auth::Basic(hidden)",
            Auth::IdentityToken(_) => "Auth::IdentityToken(hidden)",
            Auth::RegistryToken(_) => "Auth::RegistryToken(hidden)",
        })
    }
}

/// What a 401 asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The best of the challenges in these `WWW-Authenticate` headers.
    pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a HeaderValue>) -> Option<Challenge> {
        let mut basic = None;
        for header in headers {
            for (scheme, parameters) in challenges(header.to_str().unwrap_or_default()) {
                let find = |name: &str| {
                    parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone())
                };
                if scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = find("realm")
                {
                    return Some(Challenge::Bearer { realm, service: find("service") });
                }
                if scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Challenge::Basic);
                }
            }
        }
        basic
    }
}

type Parameters = Vec<(String, String)>;

/// Splits a header into schemes with parameters (RFC 9110, section 11.6.1).
fn challenges(text: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        match (value, found.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                let (value, after) = take_value(value.trim_start_matches([' ', '\t']));
                parameters.push((word.to_owned(), value));
                rest = after;
            }
            // A parameter of nothing: the header is not worth reading on.
            (Some(_), None) => return found,
            (None, _) => {
                found.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
    }
}

/// A token or a quoted string, and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

/// Whether credentials for `registry` may be sent to the token service at `realm`.
///
/// Only the registry names its token service, so this is about a registry that was tampered with or is
/// redirected: `registry.example.com` may send us to `example.com` and `auth.example.com`, no further.
pub(super) fn may_know(registry: &Url, realm: &Url) -> bool {
    let secure = realm.scheme() == "https" || registry.scheme() == "http" && realm.scheme() == "http";
    let (Some(ours), Some(theirs)) = (registry.host_str(), realm.host_str()) else { return false };
    if !secure {
        return false;
    }
    if ours == theirs {
        return true;
    }
    let parent = match ours.split_once('.') {
        Some((_, parent)) if parent.contains('.') => parent,
        _ => ours,
    };
    matches!(registry.host(), Some(url::Host::Domain(_)))
        && ours.contains('.')
        && (theirs == parent || theirs.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.')))
}

/// The answer of a token service.
#[derive(Deserialize)]
pub(super) struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Token {
    pub(super) fn header(&self) -> Option<HeaderValue> {
        bearer(self.token.as_deref().or(self.access_token.as_deref())?)
    }
}

/// An `Authorization` header that prints as nothing.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

pub(super) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(headers: &[&str]) -> Option<Challenge> {
        let headers: Vec<_> = headers.iter().map(|text| HeaderValue::from_str(text).unwrap()).collect();
        Challenge::parse(headers.iter())
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) })
        };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b,c""#;
        assert_eq!(parse(&[hub]), bearer("https://auth.docker.io/token", Some("registry.docker.io")));
        assert_eq!(parse(&["bearer Realm=https://x/"]), bearer("https://x/", None));
        assert_eq!(parse(&[r#"Basic realm="a", Bearer realm="b\"c""#]), bearer("b\"c", None));
        assert_eq!(parse(&[r#"Basic realm="Registry Realm""#]), Some(Challenge::Basic));
        assert_eq!(parse(&["Negotiate", "Basic"]), Some(Challenge::Basic));
        assert_eq!(parse(&["Bearer"]), None);
        assert_eq!(parse(&["realm=x"]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn credentials_stay_in_the_domain_of_the_registry() {
        let may = |registry: &str, realm: &str| {
            may_know(&Url::parse(registry).unwrap(), &Url::parse(realm).unwrap())
        };
        assert!(may("https://registry-1.docker.io", "https://auth.docker.io/token"));
        assert!(may("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"));
        assert!(may("https://ghcr.io", "https://ghcr.io/token"));
        assert!(may("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"));
        assert!(may("http://localhost:5000", "https://localhost/token"));
        for (registry, realm) in [
            ("https://registry.example.com", "https://evil.com/token"),
            ("https://registry.example.com", "https://evilexample.com/token"),
            ("https://registry.example.com", "http://registry.example.com/token"),
            ("https://ghcr.io", "https://evil.io/token"),
            ("https://ghcr.io", "https://io/token"),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5000/token"),
            ("http://10.0.0.1:5000", "http://0.0.1/token"),
            ("http://localhost:5000", "http://evil.localhost/token"),
            ("https://ghcr.io", "ftp://ghcr.io/token"),
        ] {
            assert!(!may(registry, realm), "{registry} {realm}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let auth = Auth::from_encoded("dXNlcjpodW50ZXIy").unwrap();
        assert_eq!(auth, Auth::Basic { username: "user".into(), password: "hunter2".into() });
        assert!(!format!("{auth:?}").contains("hunter2"));
        assert!(!format!("{:?}", basic("user", "hunter2")).contains("dXN"));
        assert_eq!(Auth::from_encoded("%%%"), None);
    }

    proptest! {
        #[test]
        fn reading_any_challenge_ends_without_panic(text in "[ -~]*") {
            let _ = challenges(&text);
            let _ = challenges(&format!("Bearer realm=\"{text}"));
        }
    }
}
