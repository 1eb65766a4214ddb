//! Options of `--security-opt`, `--tmpfs` and `--ulimit`, as docker has them.

use std::path::Path;

use sampan_proto::sampan::{Tmpfs, Ulimit};

/// One option of `--security-opt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecurityOption {
    /// `no-new-privileges`, alone or with `true` or `false`.
    NoNewPrivileges(bool),
    /// `seccomp`; empty: the usual filter.
    Seccomp(String),
    /// `apparmor`; empty: the usual profile.
    AppArmor(String),
}

/// `no-new-privileges[=BOOL]`, `seccomp=FILE` or `apparmor=PROFILE`; a colon may stand for the equals sign.
pub(crate) fn security(text: &str) -> Result<SecurityOption, String> {
    let (name, value) = match text.split_once(['=', ':']) {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    match (name, value) {
        ("no-new-privileges", None | Some("true")) => Ok(SecurityOption::NoNewPrivileges(true)),
        ("no-new-privileges", Some("false")) => Ok(SecurityOption::NoNewPrivileges(false)),
        ("no-new-privileges", Some(value)) => Err(format!("{value:?} is neither true nor false")),
        ("seccomp", Some("builtin")) => Ok(SecurityOption::Seccomp(String::new())),
        ("seccomp", Some("unconfined")) => Ok(SecurityOption::Seccomp("unconfined".to_owned())),
        ("seccomp", Some(file)) if !file.is_empty() => profile(file).map(SecurityOption::Seccomp),
        ("apparmor", Some("sampan-default")) => Ok(SecurityOption::AppArmor(String::new())),
        ("apparmor", Some(profile)) if !profile.is_empty() => {
            Ok(SecurityOption::AppArmor(profile.to_owned()))
        }
        _ => Err("expected no-new-privileges, seccomp=FILE, seccomp=unconfined, apparmor=PROFILE or \
                  apparmor=unconfined"
            .to_owned()),
    }
}

/// The agent reads it, from the same machine and another directory.
fn profile(file: &str) -> Result<String, String> {
    let path = Path::new(file).canonicalize().map_err(|error| format!("{file}: {error}"))?;
    path.into_os_string().into_string().map_err(|_| format!("the path of {file} is not UTF-8"))
}

/// `DESTINATION[:OPTION,...]`.
pub(crate) fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    if !destination.starts_with('/') {
        return Err(format!("the destination {destination:?} must be an absolute path"));
    }
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned);
    Ok(Tmpfs { destination: destination.to_owned(), options: options.collect() })
}

/// `NAME=SOFT[:HARD]`; -1 is no limit.
pub(crate) fn ulimit(text: &str) -> Result<Ulimit, String> {
    let wrong =
        || "expected NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:2048; -1 is no limit".to_owned();
    let number = |text: &str| match text {
        "-1" => Some(u64::MAX),
        text => text.parse().ok(),
    };
    let (name, values) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft).ok_or_else(wrong)?, number(hard).ok_or_else(wrong)?);
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_is_changed_by_name() {
        assert_eq!(security("no-new-privileges"), Ok(SecurityOption::NoNewPrivileges(true)));
        assert_eq!(security("no-new-privileges:false"), Ok(SecurityOption::NoNewPrivileges(false)));
        assert_eq!(security("seccomp=unconfined"), Ok(SecurityOption::Seccomp("unconfined".into())));
        assert_eq!(security("seccomp=/dev/../dev/null"), Ok(SecurityOption::Seccomp("/dev/null".into())));
        assert_eq!(security("seccomp=builtin"), Ok(SecurityOption::Seccomp(String::new())));
        assert_eq!(security("apparmor=mine"), Ok(SecurityOption::AppArmor("mine".into())));
        for wrong in
            ["no-new-privileges=maybe", "seccomp", "seccomp=/nonexistent", "apparmor=", "label=disable"]
        {
            assert!(security(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_has_options_behind_its_place() {
        let made = |options: &[&str]| Tmpfs {
            destination: "/run".into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        assert_eq!(tmpfs("/run"), Ok(made(&[])));
        assert_eq!(tmpfs("/run:size=64m,exec"), Ok(made(&["size=64m", "exec"])));
        assert!(tmpfs("run").is_err());
    }

    #[test]
    fn a_limit_of_processes_has_one_number_or_two() {
        let made = |soft, hard| Ulimit { name: "nofile".into(), soft, hard };
        assert_eq!(ulimit("nofile=5"), Ok(made(5, 5)));
        assert_eq!(ulimit("nofile=5:-1"), Ok(made(5, u64::MAX)));
        for wrong in ["nofile", "=5", "nofile=x", "nofile=5:", "nofile=-2"] {
            assert!(ulimit(wrong).is_err(), "{wrong}");
        }
    }
}
