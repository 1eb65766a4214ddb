//! Volumes: `SOURCE:DESTINATION[:ro]`, both absolute. The source is a path of the agent's machine. A `DESTINATION` alone is
//! an anonymous volume.

use std::{env, path::Path};

use sampan_proto::sampan::Volume;

pub(crate) fn volume(text: &str) -> Result<Volume, String> {
    if text.starts_with('/') && !text.contains(':') {
        return Ok(Volume { source: String::new(), destination: text.to_owned(), read_only: false });
    }
    let mut parts = text.split(':');
    let (Some(source), Some(destination), mode, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("expected SOURCE:DESTINATION, SOURCE:DESTINATION:ro or a DESTINATION alone".to_owned());
    };
    let read_only = match mode {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(mode) => return Err(format!("{mode:?} is not a mode; there are ro and rw")),
    };
    if !destination.starts_with('/') {
        return Err(format!("the destination {destination:?} must be an absolute path"));
    }
    Ok(Volume { source: absolute(source)?, destination: destination.to_owned(), read_only })
}

/// A path that starts with a dot is relative to where the person stands; a bare word would be a named volume.
fn absolute(source: &str) -> Result<String, String> {
    if source.starts_with('/') {
        return Ok(source.to_owned());
    }
    if source.starts_with('.') {
        let folder =
            env::current_dir().map_err(|error| format!("cannot tell the current directory: {error}"))?;
        // Keeps `..` as it is: the agent resolves the path, and symbolic links may be on it.
        let path = folder.join(Path::new(source).strip_prefix(".").unwrap_or(Path::new(source)));
        return path
            .into_os_string()
            .into_string()
            .map_err(|_| "the current directory is not UTF-8".to_owned());
    }
    Err(format!(
        "{source:?} is not a path, and there are no named volumes; write an absolute path or ./{source}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str, destination: &str, read_only: bool) -> Volume {
        Volume { source: source.into(), destination: destination.into(), read_only }
    }

    #[test]
    fn a_volume_is_writable_unless_said_otherwise() {
        assert_eq!(volume("/a:/b"), Ok(mount("/a", "/b", false)));
        assert_eq!(volume("/a:/b:rw"), Ok(mount("/a", "/b", false)));
        assert_eq!(volume("/a:/b:ro"), Ok(mount("/a", "/b", true)));
    }

    #[test]
    fn a_volume_without_a_source_is_anonymous() {
        assert_eq!(volume("/a"), Ok(mount("", "/a", false)));
    }

    #[test]
    fn a_dot_stands_for_the_current_directory() {
        let here = env::current_dir().unwrap();
        let source = |text: &str| volume(text).unwrap().source;
        assert_eq!(Path::new(&source("./x:/b")), here.join("x"));
        assert_eq!(Path::new(&source(".:/b")), here.join(""));
        assert_eq!(Path::new(&source("../x:/b")), here.join("../x"));
    }

    #[test]
    fn what_is_no_volume_says_what_would_be() {
        assert!(volume("a").unwrap_err().contains("SOURCE:DESTINATION"));
        assert!(volume("/a:b").unwrap_err().contains("absolute"));
        assert!(volume("/a:/b:rx").unwrap_err().contains("ro and rw"));
        assert!(volume("/a:/b:ro:z").is_err());
        assert!(volume("data:/b").unwrap_err().contains("./data"));
        assert!(volume(":/b").is_err() && volume("").is_err());
    }
}
