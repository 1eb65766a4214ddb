//! Image references: the names people and orchestrators give to images.
//!
//! A [`Reference`] is always normalised: it has a registry, a full path, and a tag or a digest. The grammar
//! and the short forms are Docker's (`nginx` is `docker.io/library/nginx:latest`). What a name points at is
//! for the registry and the image records to say.

use std::{fmt, str::FromStr};

use crate::Digest;

/// A complete, normalised name: registry, path, and a tag or digest or both.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What is wrong with the text of a reference.
#[derive(Debug, thiserror::Error)]
#[error("image reference {text:?}: {reason}")]
pub struct ParseError {
    text: String,
    reason: &'static str,
}

impl ParseError {
    pub(crate) fn new(text: &str, reason: &'static str) -> ParseError {
        // The text may be anything at all: repeat no more than a name can have.
        ParseError { text: text.chars().take(MAX_NAME).collect(), reason }
    }
}

const HUB: &str = "docker.io";
const HUB_ALIAS: &str = "index.docker.io";
const HUB_LIBRARY: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Of registry and path together, as the distribution specification's implementations have it.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

impl Reference {
    /// The registry's host, with its port if one is named: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; absent only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name is pinned to one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and path without tag and digest: `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The short form for people: `nginx:latest`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix(HUB).and_then(|rest| rest.strip_prefix('/')) {
            // The path of `docker.io/library/a/b` is not in short form what it was: keep it.
            Some(rest) => match rest.strip_prefix(HUB_LIBRARY) {
                Some(short) if !self.path[HUB_LIBRARY.len()..].contains('/') => short.to_owned(),
                _ => rest.to_owned(),
            },
            None => full,
        }
    }

    /// The same repository at this digest and nothing else.
    pub(crate) fn with_digest(&self, digest: &Digest) -> Reference {
        Reference { tag: None, digest: Some(digest.clone()), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Reference, ParseError> {
        parse(text).map_err(|reason| ParseError::new(text, reason))
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| "has a malformed digest")?)),
        None => (text, None),
    };
    // A colon after the last slash starts a tag; before it, a port.
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("has a malformed tag");
    }
    if tag.is_none() && digest.is_none() && is_image_id(name) {
        return Err("is an image id, not a name");
    }

    let (domain, path) = match name.split_once('/') {
        Some((first, path)) if is_domain_like(first) => (first, path),
        _ => (HUB, name),
    };
    let domain = if domain == HUB_ALIAS { HUB } else { domain };
    if !is_domain(domain) {
        return Err("has a malformed registry name");
    }
    if !path.split('/').all(is_component) {
        return Err("has a malformed repository name (lower-case letters, digits and separators)");
    }
    let path =
        if domain == HUB && !path.contains('/') { format!("{HUB_LIBRARY}{path}") } else { path.to_owned() };
    if domain.len() + 1 + path.len() > MAX_NAME {
        return Err("is longer than 255 characters");
    }
    let tag = tag.or(if digest.is_none() { Some(DEFAULT_TAG) } else { None });
    Ok(Reference { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
}

fn is_image_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether the first component is a registry rather than a part of a path on Docker Hub.
fn is_domain_like(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, Some(port)),
            None => return false,
        },
        None => match domain.find(':') {
            Some(colon) => (&domain[..colon], Some(&domain[colon..])),
            None => (domain, None),
        },
    };
    if let Some(port) = port {
        let valid = port.strip_prefix(':').is_some_and(|digits| {
            digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok()
        });
        if !valid {
            return false;
        }
    }
    if domain.starts_with('[') {
        return host.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.split('.').all(|label| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    })
}

/// Runs of lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges = component.bytes().next().is_some_and(word) && component.bytes().last().is_some_and(word);
    edges
        && component.split(|c: char| c.is_ascii() && word(c as u8)).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_completed_as_docker_does() {
        for (text, full, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"),
            ("grafana/loki", "docker.io/grafana/loki:latest", "grafana/loki:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest", "127.0.0.1:5000/a/b:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
            ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
            (
                "quay.io/a/b_c/d__e/f--g.h:V_1.0-x",
                "quay.io/a/b_c/d__e/f--g.h:V_1.0-x",
                "quay.io/a/b_c/d__e/f--g.h:V_1.0-x",
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
    }

    #[test]
    fn a_digest_stands_in_for_the_default_tag() {
        let reference: Reference = format!("nginx@{DIGEST}").parse().unwrap();
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.digest().unwrap().as_str(), DIGEST);
        let both: Reference = format!("nginx:1@{DIGEST}").parse().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/nginx:1@{DIGEST}"));
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = "a".repeat(300);
        let tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            " ",
            "Nginx",
            "a b",
            "a:",
            "a:-x",
            "a@sha256:../x",
            "a@",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/../b",
            "a.io/.a",
            "a.io/a.",
            "a.io/a..b",
            "a.io/a___b",
            "a.io:x/a",
            "a.io:99999/a",
            "-a.io/b",
            "[::1/b",
            "[zz]/b",
            "https://a.io/b",
            "a.io/b?c",
            "a.io/b#c",
            "a\n",
            "ä",
            "a.io/ä",
            DIGEST.strip_prefix("sha256:").unwrap(),
            &long,
            &tag,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn what_is_printed_parses_to_the_same(
            domain in prop::option::of("[a-z][a-z0-9]{0,8}\\.io(:[1-9][0-9]{0,3})?"),
            path in "[a-z0-9]{1,8}(_[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,3}[._-][a-z0-9]{1,3})?(/[a-z0-9]{1,8}){0,3}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            digest in any::<bool>(),
        ) {
            let mut text = domain.map_or(path.clone(), |domain| format!("{domain}/{path}"));
            if let Some(tag) = tag { text += &format!(":{tag}"); }
            if digest { text += &format!("@{DIGEST}"); }
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
        }
    }
}
