//! Directives: `# syntax=`, `# escape=` and `# check=` at the very top of a Dockerfile.
//!
//! They end at the first line that is none. A syntax other than Docker's own frontend is an error and never fetched or
//! run: this builder has one language built in (CVE-2026-33747 and its like cannot happen).

use std::collections::BTreeSet;

use super::super::check::Rule;

/// A directive as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directive<'t> {
    /// In lower case.
    pub(super) key: String,
    pub(super) value: &'t str,
}

const KEYS: [&str; 3] = ["syntax", "escape", "check"];

/// Reads a comment as a directive; `line` is without blanks at its ends.
pub(super) fn directive(line: &str) -> Option<Directive<'_>> {
    let (key, value) = line.strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
    (KEYS.contains(&key.as_str()) && !value.is_empty()).then_some(Directive { key, value })
}

/// Whether the built-in language is what a `syntax` asks for.
pub(super) fn is_own_syntax(value: &str) -> bool {
    // What follows a blank is for the frontend's own command line.
    let image = value.split_ascii_whitespace().next().unwrap_or_default();
    let image = ["docker.io/", "index.docker.io/", "registry-1.docker.io/"]
        .iter()
        .find_map(|host| image.strip_prefix(host))
        .unwrap_or(image);
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    let (name, tag) = image.split_once(':').unwrap_or((image, "latest"));
    let known = ["docker/dockerfile", "docker/dockerfile-upstream"].contains(&name);
    let version = tag.split('-').next().unwrap_or_default();
    known
        && (matches!(tag, "latest" | "labs" | "master" | "master-labs" | "experimental")
            || version == "1"
            || version.starts_with("1."))
}

/// Which checks a file or an instruction wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckOptions {
    /// `skip=all`.
    pub(crate) skip_all: bool,
    /// `skip=A,B`.
    pub(crate) skip: BTreeSet<Rule>,
    /// `error=true`: a finding fails the build.
    pub(crate) error: bool,
}

impl CheckOptions {
    /// Reads `skip=A,B;error=true`. The error says what is wrong and what would be right.
    pub(crate) fn parse(text: &str) -> Result<CheckOptions, (String, String)> {
        let mut options = CheckOptions::default();
        for part in text.split(';').map(str::trim) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match (key.trim(), value.trim()) {
                ("skip", "all") => options.skip_all = true,
                ("skip", names) => {
                    for name in names.split(',').map(str::trim) {
                        // Rules come and go with frontends: an unknown one skips nothing.
                        options.skip.extend(Rule::named(name));
                    }
                }
                // Rules that are still on trial; none of ours is.
                ("experimental", _) => {}
                ("error", "true" | "True" | "TRUE" | "1" | "t") => options.error = true,
                ("error", "false" | "False" | "FALSE" | "0" | "f") => options.error = false,
                _ => {
                    return Err((
                        format!("{part:?} is no option of checks"),
                        "write skip=RULE,RULE or skip=all, and error=true, parted by ;".to_owned(),
                    ));
                }
            }
        }
        Ok(options)
    }

    /// Adds what is wanted beside.
    pub(crate) fn merge(&mut self, more: CheckOptions) {
        self.skip_all |= more.skip_all;
        self.skip.extend(more.skip);
        self.error |= more.error;
    }

    /// The same with what a comment above an instruction adds.
    pub(crate) fn with_comments(&self, comments: &[String]) -> CheckOptions {
        let mut merged = self.clone();
        for comment in comments {
            if let Some(Directive { key, value }) = directive(&format!("#{comment}"))
                && key == "check"
                && let Ok(more) =
                    CheckOptions::parse(value.split_ascii_whitespace().next().unwrap_or_default())
            {
                merged.merge(CheckOptions { error: false, ..more });
            }
        }
        merged
    }

    /// Whether findings of a rule are wanted.
    pub(crate) fn wants(&self, rule: Rule) -> bool {
        !self.skip_all && !self.skip.contains(&rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_frontend_that_is_built_in_may_be_asked_for() {
        for own in [
            "docker/dockerfile:1",
            "docker/dockerfile:1.7-labs",
            "docker/dockerfile",
            "docker.io/docker/dockerfile:1.26@sha256:0123",
            "docker/dockerfile:1 --option",
            "docker/dockerfile-upstream:master",
        ] {
            assert!(is_own_syntax(own), "{own}");
        }
        for other in
            ["docker/dockerfile:2", "r.j3ss.co/dockerfile:1", "evil/dockerfile:1", "docker/dockerfile:12"]
        {
            assert!(!is_own_syntax(other), "{other}");
        }
    }

    #[test]
    fn options_of_checks_are_read_and_merged() {
        let options = CheckOptions::parse("skip=StageNameCasing, FromAsCasing;error=true").unwrap();
        assert!(options.error && !options.wants(Rule::StageNameCasing) && options.wants(Rule::UndefinedVar));
        let merged = options.with_comments(&["a note".into(), "check=skip=UndefinedVar".into()]);
        assert!(!merged.wants(Rule::UndefinedVar) && !merged.wants(Rule::FromAsCasing));
        assert!(!CheckOptions::parse("skip=all").unwrap().wants(Rule::UndefinedVar));
        assert!(CheckOptions::parse("bananas=3").is_err());
    }
}
