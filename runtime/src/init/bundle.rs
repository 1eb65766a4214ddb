//! What a bundle holds: the configuration, and the compiled seccomp filter if there is one.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, Spec};

use super::{Error, Result};
use crate::seccomp::{Filter, Program};

/// `config.json`.
pub(crate) fn read_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    serde_json::from_slice(&text).map_err(|source| Error::Parse { path, source })
}

/// The filter to load: `seccomp.bpf` when it is there, else what
/// the configuration's profile compiles to.
pub(super) fn seccomp(bundle: &Path, profile: Option<&LinuxSeccomp>) -> Result<Option<Filter>> {
    match compiled(bundle)? {
        Some(filter) => Ok(Some(filter)),
        None => compile(profile),
    }
}

/// The same for an exec, which reads the configuration only when it has to.
pub(crate) fn seccomp_of_exec(bundle: &Path) -> Result<Option<Filter>> {
    match compiled(bundle)? {
        Some(filter) => Ok(Some(filter)),
        None => compile(read_spec(bundle)?.linux().as_ref().and_then(|linux| linux.seccomp().as_ref())),
    }
}

/// The monitor's: flags and listeners are left to the command line.
fn compiled(bundle: &Path) -> Result<Option<Filter>> {
    let path = bundle.join("seccomp.bpf");
    match fs::read(&path) {
        Ok(bytes) => {
            Program::from_bytes(&bytes).map(|program| Some(bare(program))).map_err(Error::SeccompProgram)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path, source }),
    }
}

fn compile(profile: Option<&LinuxSeccomp>) -> Result<Option<Filter>> {
    let Some(profile) = profile else { return Ok(None) };
    let filter = super::filter(profile)?;
    match filter.listener {
        Some(_) => Err(Error::Unsupported { what: "SCMP_ACT_NOTIFY".to_owned() }),
        None => Ok(Some(filter)),
    }
}

fn bare(program: Program) -> Filter {
    Filter { program, flags: 0, listener: None, metadata: String::new() }
}
