//! Where the result of a build goes.

use std::{
    fs::File,
    io::{Write, pipe},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use sampan_proto::sampan::build_start;

use crate::cli::{failure::Failure, output::Output, save::Written};

/// What `--output` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Target {
    /// An image in the agent's store.
    #[default]
    Image,
    /// A tar of the image; standard output without a path.
    Archive(Option<PathBuf>),
    /// The files of the target's root in a folder.
    Folder(PathBuf),
    /// The same in a tar; standard output without a path.
    Tar(Option<PathBuf>),
}

/// `image`, `FOLDER`, `-`, or `type=…[,dest=…]`.
pub(super) fn parse(text: &str) -> Result<Target, String> {
    if text == "-" {
        return Ok(Target::Tar(None));
    }
    let bare = matches!(text, "image" | "oci" | "docker" | "local" | "tar");
    if !bare && !text.contains('=') {
        return Ok(Target::Folder(text.into()));
    }
    let (mut kind, mut dest) = (bare.then_some(text), None);
    for part in text.split(',').filter(|_| !bare) {
        match part.split_once('=') {
            Some(("type", value)) => kind = Some(value),
            Some(("dest", value)) => dest = Some(PathBuf::from(value)),
            _ => return Err(format!("{part:?} is not type=… or dest=…")),
        }
    }
    let dest = dest.filter(|dest| dest != Path::new("-"));
    match (kind, dest) {
        (Some("image"), None) => Ok(Target::Image),
        (Some("image"), Some(_)) => Err("an image goes to the agent's store, and not to a path".to_owned()),
        (Some("oci" | "docker"), dest) => Ok(Target::Archive(dest)),
        (Some("tar"), dest) => Ok(Target::Tar(dest)),
        (Some("local"), Some(dest)) => Ok(Target::Folder(dest)),
        (Some("local"), None) => Err("it needs a folder: type=local,dest=FOLDER".to_owned()),
        (Some(other), _) => Err(format!("there is no type {other:?}: image, oci, docker, local or tar")),
        (None, _) => Err("it has no type=…".to_owned()),
    }
}

impl Target {
    pub(super) fn asked(&self) -> build_start::Output {
        match self {
            Target::Image => build_start::Output::Image,
            Target::Archive(_) => build_start::Output::Archive,
            Target::Folder(_) | Target::Tar(_) => build_start::Output::Files,
        }
    }

    pub(super) fn is_files(&self) -> bool {
        matches!(self, Target::Folder(_) | Target::Tar(_))
    }

    pub(super) fn is_standard_output(&self) -> bool {
        matches!(self, Target::Archive(None) | Target::Tar(None))
    }

    pub(super) fn refuse_terminal(&self, out: &Output) -> Result<(), Failure> {
        match self {
            Target::Archive(None) | Target::Tar(None) if out.screen().is_some() => {
                Err(Failure::message("a tar is not for a terminal; write 'dest=FILE' or send it to a file"))
            }
            _ => Ok(()),
        }
    }

    /// Gets ready for what is sent.
    pub(super) fn open(self) -> Result<Sink, Failure> {
        match self {
            Target::Image => Ok(Sink::Nothing),
            Target::Archive(None) | Target::Tar(None) => Ok(Sink::Standard),
            Target::Archive(Some(path)) | Target::Tar(Some(path)) => Written::create(path).map(Sink::File),
            Target::Folder(path) => Unpacking::start(path).map(Sink::Folder),
        }
    }
}

/// What takes the pieces of a result.
pub(super) enum Sink {
    Nothing,
    Standard,
    File(Written),
    Folder(Unpacking),
}

impl Sink {
    pub(super) fn take(&mut self, piece: &[u8], out: &mut Output) -> Result<(), Failure> {
        match self {
            Sink::Nothing => Ok(()),
            Sink::Standard => out.bytes(piece),
            Sink::File(file) => file.write(piece),
            // Why it takes no more, it tells at the end.
            Sink::Folder(unpacking) => {
                let _ = unpacking.input.write_all(piece);
                Ok(())
            }
        }
    }

    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Sink::Nothing | Sink::Standard => Ok(()),
            Sink::File(file) => file.finish(),
            Sink::Folder(unpacking) => unpacking.finish(),
        }
    }
}

/// A tar on its way into a folder, on a thread of its own. Nothing of it lands outside.
pub(super) struct Unpacking {
    path: PathBuf,
    input: File,
    worker: JoinHandle<std::io::Result<()>>,
}

impl Unpacking {
    fn start(path: PathBuf) -> Result<Unpacking, Failure> {
        let failed = |error| Failure::message(format!("cannot write {}: {error}", path.display()));
        std::fs::create_dir_all(&path).map_err(failed)?;
        let (output, input) = pipe().map_err(failed)?;
        let folder = path.clone();
        let worker = std::thread::spawn(move || {
            let mut archive = tar::Archive::new(output);
            archive.set_preserve_permissions(true);
            archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
            archive.unpack(&folder)
        });
        Ok(Unpacking { path, input: File::from(std::os::fd::OwnedFd::from(input)), worker })
    }

    fn finish(self) -> Result<(), Failure> {
        drop(self.input);
        let result =
            self.worker.join().unwrap_or_else(|_| Err(std::io::Error::other("the unpacking panicked")));
        result.map_err(|error| Failure::message(format!("cannot write {}: {error}", self.path.display())))
    }
}
