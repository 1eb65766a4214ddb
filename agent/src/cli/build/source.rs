//! What a build is made of: where its context comes from, its Dockerfile, its secrets.

use std::{
    collections::HashMap,
    fs,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
};

use sampan_imagestore::build::Ignore;
use sampan_proto::sampan::{BuildStart, build_start};

use crate::cli::failure::Failure;

/// More of a Dockerfile, an ignore file or a secret is a mistake.
const MAX_FILE: u64 = 4 << 20;
const MAX_SECRET: usize = 512 << 10;

/// Where files come from.
#[derive(Debug)]
pub(super) enum Source {
    /// A folder of ours.
    Folder(Folder),
    /// Standard input: a tar, or a Dockerfile; and which file of a tar is the Dockerfile.
    Input { dockerfile: Option<String> },
    /// For the agent to fetch; the same.
    Url { url: String, dockerfile: Option<String> },
}

/// A folder with its Dockerfile.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) root: PathBuf,
    /// As people know it.
    pub(super) name: String,
    pub(super) dockerfile: Vec<u8>,
    pub(super) ignore: Ignore,
    ignore_text: Vec<u8>,
}

impl Source {
    /// What `PATH | URL | -` and `-f` mean.
    pub(super) fn find(context: &str, file: Option<&Path>) -> Result<Source, Failure> {
        let inside = |file: Option<&Path>| file.map(|path| path.to_string_lossy().into_owned());
        if context == "-" {
            if std::io::stdin().is_terminal() {
                return Err(Failure::message(
                    "- reads a Dockerfile or a tar from standard input, and that is a terminal; write '< FILE'",
                ));
            }
            return match file {
                Some(file) if file == Path::new("-") => {
                    Err(Failure::message("standard input cannot be both the Dockerfile and the context"))
                }
                file => Ok(Source::Input { dockerfile: inside(file) }),
            };
        }
        if is_git(context) {
            return Err(Failure::message(format!(
                "{context} is a git repository, which cannot be built from yet; clone it and build the folder"
            )));
        }
        if context.starts_with("http://") || context.starts_with("https://") {
            return Ok(Source::Url { url: context.to_owned(), dockerfile: inside(file) });
        }
        Folder::find(Path::new(context), file).map(Source::Folder)
    }

    /// Tells the agent what to expect.
    pub(super) fn describe(&self, start: &mut BuildStart) {
        match self {
            Source::Folder(folder) => {
                start.source = build_start::Source::Entries.into();
                start.context_id = folder.id();
                start.dockerfile.clone_from(&folder.dockerfile);
                start.dockerfile_path.clone_from(&folder.name);
                start.dockerignore.clone_from(&folder.ignore_text);
            }
            Source::Input { dockerfile } => {
                start.source = build_start::Source::Stream.into();
                start.dockerfile_path = dockerfile.clone().unwrap_or_default();
            }
            Source::Url { url, dockerfile } => {
                start.source = build_start::Source::Url.into();
                start.context_url.clone_from(url);
                start.dockerfile_path = dockerfile.clone().unwrap_or_default();
            }
        }
    }
}

impl Folder {
    fn find(root: &Path, file: Option<&Path>) -> Result<Folder, Failure> {
        let failed = |what: &str, path: &Path, error: std::io::Error| {
            Failure::message(format!("cannot read {what} {}: {error}", path.display()))
        };
        let root = root.canonicalize().map_err(|error| failed("the folder", root, error))?;
        if !root.is_dir() {
            return Err(Failure::message(format!(
                "{} is no folder; 'sampan build -f {0} FOLDER' builds a Dockerfile, and '-' reads a tar",
                root.display()
            )));
        }
        let (name, path, dockerfile) = match file {
            Some(file) if file == Path::new("-") => {
                let text = whole(std::io::stdin())
                    .map_err(|error| failed("the Dockerfile on", Path::new("standard input"), error))?;
                ("-".to_owned(), None, text)
            }
            file => {
                // As docker has it: beneath the working directory, or in the context when it is not there.
                let path = match file {
                    Some(file) if file.exists() || file.is_absolute() => file.to_owned(),
                    Some(file) => root.join(file),
                    None => root.join("Dockerfile"),
                };
                let text =
                    read_within(&root, &path).map_err(|error| failed("the Dockerfile", &path, error))?;
                let shown = file.unwrap_or(Path::new("Dockerfile"));
                (shown.to_string_lossy().into_owned(), Some(path), text)
            }
        };
        let own = path.map(|path| {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".dockerignore");
            path.with_file_name(name)
        });
        let candidates = own.into_iter().chain([root.join(".dockerignore")]);
        let mut ignore_text = Vec::new();
        let mut ignore = Ignore::default();
        for path in candidates {
            match read_within(&root, &path) {
                Ok(text) => {
                    ignore = Ignore::parse(&String::from_utf8_lossy(&text))
                        .map_err(|problem| Failure::message(format!("{}: {problem}", path.display())))?;
                    ignore_text = text;
                    break;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("the ignore file", &path, error)),
            }
        }
        Ok(Folder { root, name, dockerfile, ignore, ignore_text })
    }

    /// Tells this folder from every other on any machine that uses the agent.
    fn id(&self) -> String {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{host}:{}", self.root.display())
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    whole(fs::File::open(path)?)
}

/// All of a file; half of one would be another.
fn whole(file: impl Read) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("it has more than {} MiB", MAX_FILE >> 20)));
    }
    Ok(text)
}

/// A file of the context, which may come from somebody else: a link in it leads nowhere outside (CVE-2022-4122).
fn read_within(root: &Path, path: &Path) -> std::io::Result<Vec<u8>> {
    let (path, target) = (std::path::absolute(path)?, path.canonicalize()?);
    let folder = path.parent().unwrap_or(Path::new("/")).canonicalize()?;
    if (path.starts_with(root) || folder.starts_with(root)) && !target.starts_with(root) {
        return Err(std::io::Error::other("it is a link that leads out of the context"));
    }
    read(&target)
}

/// What Docker takes for a repository.
fn is_git(context: &str) -> bool {
    let bare = context.split('#').next().unwrap_or_default();
    let scheme = ["git://", "git@", "ssh://", "github.com/"].iter().any(|start| context.starts_with(start));
    scheme || (bare.starts_with("http") && bare.ends_with(".git"))
}

/// `id=ID[,src=FILE]`, `id=ID,env=VARIABLE`; without either, the variable or else the file of that name.
pub(super) fn secrets(given: &[String]) -> Result<HashMap<String, Vec<u8>>, Failure> {
    given.iter().map(|text| secret(text)).collect()
}

fn secret(text: &str) -> Result<(String, Vec<u8>), Failure> {
    let refuse = |problem: String| Failure::message(format!("--secret {text}: {problem}"));
    let (mut id, mut file, mut variable, mut of_type_env) = (None, None, None, false);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("id", value)) => id = Some(value.to_owned()),
            Some(("src" | "source", value)) => file = Some(value.to_owned()),
            Some(("env", value)) => variable = Some(value.to_owned()),
            Some(("type", "file")) => {}
            Some(("type", "env")) => of_type_env = true,
            _ => return Err(refuse(format!("{part:?} is not id=, src= or env="))),
        }
    }
    let Some(id) = id.filter(|id| !id.is_empty()) else { return Err(refuse("it has no id=".to_owned())) };
    // Of a variable, src names the variable.
    if of_type_env && variable.is_none() {
        variable = Some(file.take().unwrap_or_else(|| id.clone()));
    }
    let of_variable = |name: &str| std::env::var_os(name).map(std::ffi::OsString::into_encoded_bytes);
    let value = match (file, variable) {
        (None, None) => match of_variable(&id) {
            Some(value) => value,
            None => {
                read(Path::new(&id)).map_err(|error| refuse(format!("neither variable nor file: {error}")))?
            }
        },
        (Some(path), None) => read(Path::new(&path)).map_err(|error| refuse(error.to_string()))?,
        (None, Some(name)) => {
            of_variable(&name).ok_or_else(|| refuse(format!("there is no variable {name}")))?
        }
        (Some(_), Some(_)) => return Err(refuse("it has both src= and env=".to_owned())),
    };
    if value.len() > MAX_SECRET {
        return Err(refuse(format!("it has more than {} KiB", MAX_SECRET >> 10)));
    }
    Ok((id, value))
}
