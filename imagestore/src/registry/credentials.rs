//! Credentials kept on this node: the `config.json` of Docker, which is the `auth.json` of podman too.
//!
//! The file is read when a registry asks for credentials and none came with the pull. An entry for a part of the
//! registry (`quay.io/team`) wins over one for all of it. Helpers are programs; running one is for whoever
//! implements [`CredentialHelper`].

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    future::Future,
    io::{self, Read as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use serde::Deserialize;

use super::Auth;

/// More than the credentials of any node take.
const MAX_FILE: u64 = 1 << 20;

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("read credentials {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is malformed. The message holds nothing of its contents.
    #[error("credentials {path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The helper that the file names cannot be asked.
    #[error("credential helper {helper:?} for {server}: {reason}")]
    Helper {
        /// As the file names it: `ecr-login`.
        helper: String,
        /// Whose credentials it was asked for.
        server: String,
        /// Why.
        reason: String,
    },
}

/// What a helper says: credentials, none, or a sentence on what went wrong.
pub type HelperAnswer<'a> = Pin<Box<dyn Future<Output = Result<Option<Auth>, String>> + Send + 'a>>;

/// Runs the programs that keep credentials for Docker: `docker-credential-NAME get`.
pub trait CredentialHelper: Send + Sync + fmt::Debug {
    /// Asks the helper of this name for the credentials of `server`. The answer comes within a deadline.
    fn get<'a>(&'a self, name: &'a str, server: &'a str) -> HelperAnswer<'a>;
}

/// Where credentials are kept.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The file; it need not exist.
    pub file: Option<PathBuf>,
    /// Who runs helpers; without one, an entry that needs one is an error.
    pub helper: Option<Arc<dyn CredentialHelper>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: HashMap<String, Option<Entry>>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// Where credentials for something were found.
enum Found {
    Auth(Auth),
    Helper { name: String, server: String },
    Nothing,
}

impl Credentials {
    /// The credentials for a repository, named as `registry/path`.
    pub(super) async fn find(&self, repository: &str) -> Result<Option<Auth>, Error> {
        let Some(path) = &self.file else { return Ok(None) };
        let Some(bytes) = read(path)? else { return Ok(None) };
        let found =
            lookup(&bytes, repository).map_err(|reason| Error::Malformed { path: path.clone(), reason })?;
        match found {
            Found::Auth(auth) => Ok(Some(auth)),
            Found::Nothing => Ok(None),
            Found::Helper { name, server } => {
                let answer = match &self.helper {
                    Some(helper) => helper.get(&name, &server).await,
                    None => Err("no helper can be run here".to_owned()),
                };
                answer.map_err(|reason| Error::Helper { helper: name, server, reason })
            }
        }
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::Malformed { path: path.to_owned(), reason: "is larger than 1 MiB" });
    }
    Ok(Some(bytes))
}

/// What a configuration has for a repository.
fn lookup(bytes: &[u8], repository: &str) -> Result<Found, &'static str> {
    let config: Config = serde_json::from_slice(bytes).map_err(|_| "is no configuration of Docker's form")?;
    let registry = repository.split('/').next().unwrap_or_default();
    // As with Docker: a helper for the registry is asked before what the file itself has.
    if let Some((server, name)) = best(&config.cred_helpers, registry) {
        return Ok(Found::Helper { name: name.clone(), server: server.clone() });
    }
    if let Some((_, Some(entry))) = best(&config.auths, repository)
        && let Some(auth) = entry.auth()?
    {
        return Ok(Found::Auth(auth));
    }
    match config.creds_store.filter(|name| !name.is_empty()) {
        Some(name) => {
            // The store has Docker Hub under the address that Docker has always given it.
            let server = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
            Ok(Found::Helper { name, server: server.to_owned() })
        }
        None => Ok(Found::Nothing),
    }
}

/// For the fuzz targets.
#[cfg(feature = "fuzzing")]
pub(super) fn read_any(bytes: &[u8], repository: &str) {
    let _ = lookup(bytes, repository);
}

/// The entry that names most of the repository.
fn best<'a, T>(entries: &'a HashMap<String, T>, repository: &str) -> Option<(&'a String, &'a T)> {
    let covers = |key: &String| {
        let key = normalise(key);
        let rest = repository.strip_prefix(key.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then_some(key.len())
    };
    let covering = entries.iter().filter_map(|(key, value)| Some((covers(key)?, (key, value))));
    // Of two spellings of one name always the same.
    covering
        .max_by_key(|(length, (key, _))| (*length, std::cmp::Reverse((*key).clone())))
        .map(|(_, found)| found)
}

/// `https://index.docker.io/v1/` becomes `docker.io`.
fn normalise(key: &str) -> String {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let rest = rest.trim_end_matches('/');
    let rest = rest.strip_suffix("/v1").or_else(|| rest.strip_suffix("/v2")).unwrap_or(rest);
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    format!("{host}{path}")
}

impl Entry {
    fn auth(&self) -> Result<Option<Auth>, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Auth::RegistryToken(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Auth::IdentityToken(self.identitytoken.clone())));
        }
        if !self.auth.is_empty() {
            let malformed = "has an auth that is not base64 of user:password";
            return Auth::from_encoded(&self.auth).map(Some).ok_or(malformed);
        }
        let basic = || Auth::Basic { username: self.username.clone(), password: self.password.clone() };
        Ok((!self.username.is_empty()).then(basic))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(found: Found) -> String {
        match found {
            Found::Auth(Auth::Basic { username, .. }) => username,
            Found::Auth(auth) => format!("{auth:?}"),
            Found::Helper { name, server } => format!("{name} for {server}"),
            Found::Nothing => "nothing".to_owned(),
        }
    }

    fn look(config: &str, repository: &str) -> String {
        lookup(config.as_bytes(), repository).map_or_else(str::to_owned, user)
    }

    #[test]
    fn the_entry_that_names_most_of_the_repository_wins() {
        let config = r#"{"auths": {
            "quay.io": {"username": "all", "password": "p"},
            "quay.io/team": {"auth": "dGVhbTpw"},
            "https://index.docker.io/v1/": {"auth": "aHViOnA="},
            "reg.example:5000": {"identitytoken": "t"},
            "empty.example": {}
        }, "HttpHeaders": {"X": "y"}}"#;
        for (repository, expected) in [
            ("quay.io/other/app", "all"),
            ("quay.io/team/app", "team"),
            ("quay.io/team", "team"),
            ("quay.io/teams/app", "all"),
            ("docker.io/library/nginx", "hub"),
            ("reg.example:5000/app", "Auth::IdentityToken(hidden)"),
            ("reg.example/app", "nothing"),
            ("evilquay.io/app", "nothing"),
            ("empty.example/app", "nothing"),
        ] {
            assert_eq!(look(config, repository), expected, "{repository}");
        }
    }

    #[test]
    fn helpers_are_named_by_registry_and_for_all_the_rest() {
        let config = r#"{"auths": {"ecr.example": {"username": "u"}, "b.example": {"username": "b"}},
            "credHelpers": {"ecr.example": "ecr-login"}, "credsStore": "secretservice"}"#;
        assert_eq!(look(config, "ecr.example/app"), "ecr-login for ecr.example");
        assert_eq!(look(config, "b.example/app"), "b");
        assert_eq!(look(config, "c.example/app"), "secretservice for c.example");
        assert_eq!(look(config, "docker.io/library/x"), "secretservice for https://index.docker.io/v1/");
    }

    #[tokio::test]
    async fn a_bad_file_is_named_and_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let credentials = Credentials { file: Some(file.path().to_owned()), helper: None };
        for text in ["{\"auths\": 5, \"x\": \"hunter2\"}", r#"{"auths": {"a.example": {"auth": "hunter2"}}}"#]
        {
            std::fs::write(file.path(), text).unwrap();
            let error = credentials.find("a.example/app").await.unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(file.path().to_str().unwrap()) && !text.contains("hunter2"), "{text}");
        }
        std::fs::write(file.path(), r#"{"credsStore": "desktop"}"#).unwrap();
        let error = credentials.find("a.example/app").await.unwrap_err().to_string();
        assert_eq!(error, "credential helper \"desktop\" for a.example: no helper can be run here");
        let missing = Credentials { file: Some("/nonexistent/config.json".into()), helper: None };
        assert_eq!(missing.find("a.example/app").await.unwrap(), None);
    }

    proptest! {
        #[test]
        fn looking_up_never_panics(text in "\\PC*", repository in "[a-z./:]*") {
            let _ = lookup(text.as_bytes(), &repository);
            let _ = normalise(&text);
        }
    }
}
