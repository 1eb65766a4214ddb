//! Values of options as people write them, turned into what the agent takes.
//!
//! Errors are sentences that end up behind clap's "invalid value" and say what would be valid.

mod amount;
mod device;
mod environment;
mod moment;
mod port;
mod protection;
mod volume;

use std::{convert::Infallible, path::PathBuf};

use clap::{Args, ValueEnum};

pub(super) use self::{
    amount::{cores, memory, storage, swap},
    device::device,
    environment::environment,
    moment::moment,
    port::{Ports, ports, publication},
    protection::{SecurityOption, security, tmpfs, ulimit},
    volume::volume,
};

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(super) struct Listing {
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(super) output: Format,
}

impl Listing {
    pub(super) fn is_json(&self) -> bool {
        self.output == Format::Json
    }
}

/// A path, or a URI as other tools of the trade want it: `unix:///run/sampan/sampan.sock`. An empty one, as an empty
/// environment variable gives it, is the usual one.
pub(super) fn socket(text: &str) -> Result<PathBuf, Infallible> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    Ok(PathBuf::from(if path.is_empty() { super::DEFAULT_SOCKET } else { path }))
}

/// `KEY=VALUE`, or `KEY` for an empty value.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("a label has a key: KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `NAME=VALUE`.
pub(super) fn sysctl(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, such as net.core.somaxconn=1024".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_a_path_or_a_uri() {
        assert_eq!(socket("/a/b.sock"), socket("unix:///a/b.sock"));
        assert_eq!(socket(""), Ok(PathBuf::from("/run/sampan/sampan.sock")));
    }

    #[test]
    fn a_labels_value_may_be_empty_and_its_key_may_not() {
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(label("a"), Ok(("a".into(), String::new())));
        assert!(label("=b").is_err());
    }
}
