//! Platforms as `--platform` names them: `linux/arm64`, `arm64`, `linux/arm/v7`, `linux`.

use crate::Platform;

const SYSTEMS: [&str; 6] = ["linux", "windows", "darwin", "freebsd", "netbsd", "openbsd"];

/// Reads a platform as `--platform` names it. Parts that are left out are those of `default`.
pub fn parse(text: &str, default: &Platform) -> Option<Platform> {
    let lower = text.trim().to_ascii_lowercase();
    let parts: Vec<&str> = lower.split('/').collect();
    let valid = |part: &&str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    if !parts.iter().all(valid) {
        return None;
    }
    let (os, architecture, variant) = match parts.as_slice() {
        [os] if SYSTEMS.contains(os) => {
            return Some(Platform { os: (*os).to_owned(), ..default.clone() });
        }
        [architecture] => (default.os.as_str(), *architecture, None),
        [os, architecture] => (*os, *architecture, None),
        [os, architecture, variant] => (*os, *architecture, Some(*variant)),
        _ => return None,
    };
    let (architecture, implied) = match architecture {
        "x86_64" | "x86-64" => ("amd64", None),
        "aarch64" => ("arm64", None),
        "i386" | "i486" | "i586" | "i686" => ("386", None),
        "armhf" => ("arm", Some("v7")),
        "armel" => ("arm", Some("v6")),
        "arm" => ("arm", Some("v7")),
        other => (other, None),
    };
    let known = [
        "amd64", "arm64", "386", "arm", "ppc64le", "ppc64", "s390x", "riscv64", "mips64le", "mips64",
        "mipsle", "mips", "loong64", "wasm",
    ];
    if parts.len() == 1 && !known.contains(&architecture) {
        return None;
    }
    let variant = variant.or(implied).map(|variant| match variant {
        "5" | "6" | "7" | "8" => format!("v{variant}"),
        variant => variant.to_owned(),
    });
    // v8 is what arm64 is anyway.
    let variant = variant.filter(|variant| !(architecture == "arm64" && variant == "v8"));
    Some(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_as_docker_reads_them() {
        let default = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        for (text, read) in [
            ("linux/amd64", Some("linux/amd64")),
            ("amd64", Some("linux/amd64")),
            ("x86_64", Some("linux/amd64")),
            ("Linux/ARM64", Some("linux/arm64")),
            ("linux/arm64/v8", Some("linux/arm64")),
            ("linux/arm", Some("linux/arm/v7")),
            ("linux/arm/7", Some("linux/arm/v7")),
            ("armel", Some("linux/arm/v6")),
            ("linux", Some("linux/amd64")),
            ("windows/amd64", Some("windows/amd64")),
            ("", None),
            ("linux/", None),
            ("banana", None),
            ("a/b/c/d", None),
            ("linux/a b", None),
        ] {
            let found = parse(text, &default).map(|platform| platform.to_string());
            assert_eq!(found.as_deref(), read, "{text}");
        }
    }
}
