//! Variables: what an instruction sees, and what a step's process gets.
//!
//! An image's own variables (ENV) beat arguments (ARG) of the same name, as Docker documents it. Global arguments and the
//! predefined ones are for FROM; a stage gets one by declaring it.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Platform,
    build::{dockerfile::expand::Values, plan::Options},
};

use super::Config;

/// The names of proxies, in pairs of upper and lower case.
const PROXIES: [(&str, &str); 5] = [
    ("HTTP_PROXY", "http_proxy"),
    ("HTTPS_PROXY", "https_proxy"),
    ("FTP_PROXY", "ftp_proxy"),
    ("NO_PROXY", "no_proxy"),
    ("ALL_PROXY", "all_proxy"),
];

/// More of a stage's variables is refused, in bytes; the kernel takes about 2 MiB of arguments and variables together.
pub(super) const MAX_VARIABLES: usize = 256 << 10;

/// Predefined and global arguments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Globals {
    values: BTreeMap<String, String>,
    /// Names that a global ARG declares, with or without value.
    pub(crate) declared: Vec<String>,
}

impl Values for Globals {
    fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }
}

impl Globals {
    /// The predefined ones. Build arguments override them.
    pub(super) fn predefined(options: &Options, target: &str) -> Globals {
        let mut globals = Globals::default();
        for (prefix, platform) in [("BUILD", &options.build_platform), ("TARGET", &options.platform)] {
            let Platform { os, architecture, variant } = platform;
            for (name, value) in [
                ("PLATFORM", platform.to_string()),
                ("OS", os.clone()),
                ("OSVERSION", String::new()),
                ("ARCH", architecture.clone()),
                ("VARIANT", variant.clone().unwrap_or_default()),
            ] {
                globals.values.insert(format!("{prefix}{name}"), value);
            }
        }
        globals.values.insert("TARGETSTAGE".to_owned(), target.to_owned());
        for (name, value) in &mut globals.values {
            if let Some(given) = options.build_args.get(name) {
                value.clone_from(given);
            }
        }
        globals
    }

    /// A global ARG, with its value if it has one.
    pub(super) fn declare(&mut self, name: &str, value: Option<String>) {
        self.declared.push(name.to_owned());
        if let Some(value) = value {
            self.values.insert(name.to_owned(), value);
        }
    }

    /// All names that FROM can use.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().chain(&self.declared).map(String::as_str)
    }

    /// Whether a name has its meaning without any declaration.
    pub(crate) fn is_predefined(name: &str) -> bool {
        PROXIES.iter().any(|(upper, lower)| name == *upper || name == *lower)
            || ["BUILD", "TARGET"].iter().any(|prefix| {
                let rest = name.strip_prefix(prefix).unwrap_or_default();
                matches!(rest, "PLATFORM" | "OS" | "OSVERSION" | "ARCH" | "VARIANT" | "STAGE")
            })
            || name == "SOURCE_DATE_EPOCH"
            || name.starts_with("BUILDKIT_")
    }
}

/// Arguments that a stage has declared, in order, each name once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Arguments(Vec<(String, Option<String>)>);

impl Arguments {
    pub(super) fn declare(&mut self, name: &str, value: Option<String>) {
        match self.0.iter_mut().find(|(other, _)| other == name) {
            // Declared again without a value, it keeps the one that it has.
            Some((_, old)) => *old = value.or(old.take()),
            None => self.0.push((name.to_owned(), value)),
        }
    }

    pub(super) fn is_declared(&self, name: &str) -> bool {
        self.0.iter().any(|(other, _)| other == name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).and_then(|(_, value)| value.as_deref())
    }
}

/// What one instruction sees.
pub(super) struct Visible<'e> {
    pub(super) config: &'e Config,
    pub(super) arguments: &'e Arguments,
}

impl Values for Visible<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        self.config.variable(name).or_else(|| self.arguments.value(name))
    }
}

impl Visible<'_> {
    /// What a process gets: the configuration's variables, then arguments that have a value and another name.
    pub(super) fn process(&self) -> Arc<Vec<String>> {
        let arguments = self.arguments.0.iter().filter(|(name, _)| self.config.variable(name).is_none());
        let arguments = arguments.filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
        Arc::new(self.config.env.iter().cloned().chain(arguments).collect())
    }

    /// `NAME=VALUE` of each argument, as the history of a RUN tells them.
    pub(super) fn told(&self) -> Vec<String> {
        let value = |name: &str| Values::value(self, name).unwrap_or_default().to_owned();
        self.arguments.names().map(|name| format!("{name}={}", value(name))).collect()
    }

    /// Proxies that were given and that nothing here sets: for the process only.
    pub(super) fn proxies(&self, given: &BTreeMap<String, String>) -> Arc<Vec<String>> {
        let mut proxies = Vec::new();
        for (upper, lower) in PROXIES {
            let Some(value) = given.get(upper).or_else(|| given.get(lower)) else { continue };
            for name in [upper, lower] {
                if Values::value(self, name).is_none() {
                    proxies.push(format!("{name}={value}"));
                }
            }
        }
        Arc::new(proxies)
    }

    pub(super) fn size(&self) -> usize {
        let arguments =
            self.arguments.0.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, String::len));
        self.config.env.iter().map(String::len).sum::<usize>() + arguments.sum::<usize>()
    }
}
