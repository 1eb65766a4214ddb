//! Compiled seccomp filters, kept below the root by the profile they come from.
//!
//! Compiling a profile takes as long as the rest of a start or longer, and nodes use a handful of profiles. A kept
//! filter names its whole profile and the version of this program; it counts only when both are the same, so neither
//! a collision of hashes nor a new compiler can put a wrong filter in place. The folder is root's own.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, Spec};

use super::{Context, Error, Result};
use crate::init;
use crate::seccomp::{Filter, Program};

/// Not the name of a container: they have no such character.
const FOLDER: &str = "@seccomp";

/// The filter of a configuration.
pub(super) fn of(context: &Context, spec: &Spec) -> Result<Option<Filter>> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = profile.map(|profile| kept_or_compiled(context, profile)).transpose()?;
    if let Some(filter) = &filter {
        context.log.debug(format_args!("seccomp filter flags: {}", filter.flags));
    }
    Ok(filter)
}

fn kept_or_compiled(context: &Context, profile: &LinuxSeccomp) -> Result<Filter> {
    let mut key = format!("{} {}\n", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH).into_bytes();
    serde_json::to_writer(&mut key, profile)
        .map_err(|source| Error::Json { path: "the seccomp profile".to_owned(), source })?;
    key.push(0);
    let path = path_of(context, &key);
    if let Ok(bytes) = std::fs::read(&path)
        && let Some(program) = bytes.strip_prefix(key.as_slice())
        && let Ok(program) = Program::from_bytes(program)
    {
        return Filter::new(profile, program)
            .map_err(|source| Error::Configuration(init::Error::SeccompProgram(source)));
    }
    let filter = init::filter(profile).map_err(Error::Configuration)?;
    key.extend(filter.program.to_bytes());
    let kept = make_folder(context).and_then(|()| super::write_whole(&path, &key));
    if let Err(error) = kept {
        // The next start is slower for it, and nothing else.
        context.log.debug(format_args!("{}", super::error::text(&error)));
    }
    Ok(filter)
}

fn path_of(context: &Context, key: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    context.root.join(FOLDER).join(format!("{:016x}.bpf", hasher.finish()))
}

fn make_folder(context: &Context) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let path = context.root.join(FOLDER);
    let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&path);
    made.map_err(|source| Error::io(format!("make {}", path.display()), source))
}
