//! Build checks: what is allowed in a Dockerfile and likely not meant, by the names that Docker's own checks have.
//!
//! Only what can be told without asking anybody. Checks that need a stage's variables are made while it is evaluated
//! ([`super::plan`]); here are the rules, and those that see the file or its FROM lines alone.

use std::collections::BTreeMap;
use std::fmt;

use crate::Platform;

use super::{
    diagnostic::{Diagnostic, Span},
    dockerfile::{Command, Dockerfile, Instruction, StageSource, expand::Expanded, suggest::nearest},
    ignore::Ignore,
    plan::{Foundation, Globals, Plan, StageId, expand, globals},
};

/// A check, by Docker's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it, and Docker documents each")]
pub enum Rule {
    ConsistentInstructionCasing,
    CopyIgnoredFile,
    DuplicateStageName,
    ExposeInvalidFormat,
    ExposeProtoCasing,
    FromAsCasing,
    FromPlatformFlagConstDisallowed,
    InvalidBaseImagePlatform,
    InvalidDefaultArgInFrom,
    JSONArgsRecommended,
    LegacyKeyValueFormat,
    MaintainerDeprecated,
    MultipleInstructionsDisallowed,
    NoEmptyContinuation,
    RedundantTargetPlatform,
    ReservedStageName,
    SecretsUsedInArgOrEnv,
    StageNameCasing,
    UndefinedArgInFrom,
    UndefinedVar,
    WorkdirRelativePath,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 21] = [
        Rule::ConsistentInstructionCasing,
        Rule::CopyIgnoredFile,
        Rule::DuplicateStageName,
        Rule::ExposeInvalidFormat,
        Rule::ExposeProtoCasing,
        Rule::FromAsCasing,
        Rule::FromPlatformFlagConstDisallowed,
        Rule::InvalidBaseImagePlatform,
        Rule::InvalidDefaultArgInFrom,
        Rule::JSONArgsRecommended,
        Rule::LegacyKeyValueFormat,
        Rule::MaintainerDeprecated,
        Rule::MultipleInstructionsDisallowed,
        Rule::NoEmptyContinuation,
        Rule::RedundantTargetPlatform,
        Rule::ReservedStageName,
        Rule::SecretsUsedInArgOrEnv,
        Rule::StageNameCasing,
        Rule::UndefinedArgInFrom,
        Rule::UndefinedVar,
        Rule::WorkdirRelativePath,
    ];

    /// The rule of this name, in whatever case.
    pub(crate) fn named(name: &str) -> Option<Rule> {
        Rule::ALL.into_iter().find(|rule| rule.to_string().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check.
    pub rule: Rule,
    /// What, where, and what to write instead.
    pub diagnostic: Diagnostic,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.diagnostic)
    }
}

/// Findings of one file, those that it wants.
struct Findings<'d> {
    dockerfile: &'d Dockerfile,
    found: Vec<Finding>,
}

impl Findings<'_> {
    fn add(
        &mut self,
        rule: Rule,
        comments: &[String],
        span: Span,
        part: &str,
        message: String,
        help: String,
    ) {
        if self.dockerfile.check.with_comments(comments).wants(rule) {
            let text = &self.dockerfile.text;
            let diagnostic = *text.diagnostic(text.point(span, part), message, help);
            self.found.push(Finding { rule, diagnostic });
        }
    }
}

/// What can be said of the text alone.
pub(crate) fn file(dockerfile: &Dockerfile) -> Vec<Finding> {
    let mut findings = Findings { dockerfile, found: Vec::new() };
    for span in &dockerfile.empty_continuations {
        let message = "an empty line stands inside an instruction".to_owned();
        let help = "leave the line out, or begin it with #".to_owned();
        findings.add(Rule::NoEmptyContinuation, &[], *span, "", message, help);
    }
    casing(&mut findings);
    let mut names: BTreeMap<String, u32> = BTreeMap::new();
    for stage in &dockerfile.stages {
        stage_name(&mut findings, stage, &mut names);
        for instruction in &stage.instructions {
            if let Command::Maintainer(who) = &instruction.command {
                let message = "MAINTAINER is an old form".to_owned();
                let help = format!("write LABEL org.opencontainers.image.authors={who:?}");
                let Instruction { comments, span, keyword, .. } = instruction;
                findings.add(Rule::MaintainerDeprecated, comments, *span, keyword, message, help);
            }
        }
    }
    findings.found
}

/// Keywords are all in upper or all in lower case: what most are in, the others should be in too.
fn casing(findings: &mut Findings<'_>) {
    let dockerfile = findings.dockerfile;
    let of_stage = |stage: &'_ StageSource| {
        let own = (stage.keyword.clone(), stage.comments.clone(), stage.span);
        let rest = stage.instructions.iter().map(|i| (i.keyword.clone(), i.comments.clone(), i.span));
        std::iter::once(own).chain(rest).collect::<Vec<_>>()
    };
    let globals = dockerfile.globals.iter().map(|i| (i.keyword.clone(), i.comments.clone(), i.span));
    let all: Vec<_> = globals.chain(dockerfile.stages.iter().flat_map(of_stage)).collect();
    let upper = |word: &str| word.chars().all(|c| !c.is_lowercase());
    let lower = |word: &str| word.chars().all(|c| !c.is_uppercase());
    let count = |is: &dyn Fn(&str) -> bool| all.iter().filter(|(word, ..)| is(word)).count();
    let to_upper = count(&upper) >= count(&lower);
    for (word, comments, span) in &all {
        let fits = if to_upper { upper(word) } else { lower(word) };
        if !fits {
            let wanted = if to_upper { word.to_uppercase() } else { word.to_lowercase() };
            let message = format!("{word} is not in the case of the file's other instructions");
            findings.add(
                Rule::ConsistentInstructionCasing,
                comments,
                *span,
                word,
                message,
                format!("write {wanted}"),
            );
        }
    }
}

fn stage_name(findings: &mut Findings<'_>, stage: &StageSource, names: &mut BTreeMap<String, u32>) {
    let Some((word, name)) = &stage.alias else { return };
    let (comments, span) = (&stage.comments, stage.span);
    let lower = |word: &str| word.chars().all(|c| !c.is_uppercase());
    let upper = |word: &str| word.chars().all(|c| !c.is_lowercase());
    if lower(word) != lower(&stage.keyword) || upper(word) != upper(&stage.keyword) {
        let message = format!("{word} is not in the case of {}", stage.keyword);
        let wanted = if lower(&stage.keyword) { "as" } else { "AS" };
        findings.add(
            Rule::FromAsCasing,
            comments,
            span,
            &format!(" {word} "),
            message,
            format!("write {wanted}"),
        );
    }
    if !lower(name) {
        let message = format!("the stage name {name} is not in lower case");
        let help = format!("write {}", name.to_lowercase());
        findings.add(Rule::StageNameCasing, comments, span, name, message, help);
    }
    let key = name.to_lowercase();
    if matches!(key.as_str(), "scratch" | "context") {
        let message =
            format!("{key} has a meaning of its own, and a stage of this name cannot always be had");
        findings.add(
            Rule::ReservedStageName,
            comments,
            span,
            name,
            message,
            "give it another name".to_owned(),
        );
    }
    if let Some(line) = names.insert(key, span.line) {
        let message = format!("the stage of line {line} is named {name} too");
        let help = "give each stage a name of its own".to_owned();
        findings.add(Rule::DuplicateStageName, comments, span, name, message, help);
    }
}

/// FROM lines that say nothing when no build argument is given.
pub(crate) fn defaults(plan: &Plan, predefined: Globals) -> Vec<Finding> {
    let dockerfile = &plan.dockerfile;
    let mut findings = Findings { dockerfile, found: Vec::new() };
    let Ok(globals) = globals(dockerfile, &plan.options, predefined, true) else { return Vec::new() };
    for stage in &dockerfile.stages {
        let Ok(name) = expand(dockerfile, stage.span, &stage.base, &globals) else { continue };
        let declared = name.missing.iter().all(|name| globals.declared.contains(name));
        if !declared || name.text.parse::<crate::Reference>().is_ok() || name.text == "scratch" {
            continue;
        }
        let message = match name.text.as_str() {
            "" => format!("without build arguments {} is empty", stage.base),
            text => format!("without build arguments {} is {text:?}, which names no image", stage.base),
        };
        let help = "give the ARG a default: ARG NAME=VALUE".to_owned();
        findings.add(Rule::InvalidDefaultArgInFrom, &stage.comments, stage.span, &stage.base, message, help);
    }
    findings.found
}

/// Variables of a FROM line that nothing declares above the first FROM.
pub(crate) fn undefined_in_from(plan: &Plan, stage: &StageSource, expanded: &Expanded) -> Vec<Finding> {
    let mut findings = Findings { dockerfile: &plan.dockerfile, found: Vec::new() };
    for name in expanded.missing.iter().filter(|name| !plan.globals.declared.contains(name)) {
        let message = format!("${name} is not set where FROM is read");
        let help = match nearest(name, plan.globals.names()) {
            Some(meant) => format!("did you mean ${meant}?"),
            None => format!("declare it above the first FROM: ARG {name}=VALUE"),
        };
        findings.add(Rule::UndefinedArgInFrom, &stage.comments, stage.span, name, message, help);
    }
    findings.found
}

/// A platform that says what is the case anyway, or that binds the file to one kind of machine.
pub(crate) fn platform_in_from(
    plan: &Plan,
    stage: &StageSource,
    expanded: &Expanded,
    platform: &Platform,
) -> Vec<Finding> {
    let mut findings = Findings { dockerfile: &plan.dockerfile, found: Vec::new() };
    let (comments, span, written) =
        (&stage.comments, stage.span, stage.platform.as_deref().unwrap_or_default());
    let variables = expanded.used.len() + expanded.missing.len();
    if variables == 1 && expanded.used.contains("TARGETPLATFORM") && *platform == plan.options.platform {
        let message = "--platform is the target's platform anyway".to_owned();
        let help = format!("leave --platform={written} out");
        findings.add(Rule::RedundantTargetPlatform, comments, span, "--platform", message, help);
    }
    let name = stage.name().unwrap_or_default();
    // A stage whose name tells its platform means it.
    let meant = name.contains(&platform.os) || name.contains(&platform.architecture);
    if variables == 0 && !meant {
        let message = format!("--platform={written} builds for this platform alone");
        let help = "leave it out, or write --platform=$BUILDPLATFORM or $TARGETPLATFORM".to_owned();
        findings.add(Rule::FromPlatformFlagConstDisallowed, comments, span, "--platform", message, help);
    }
    findings.found
}

/// A base that was made for another platform than the stage asks for.
pub(crate) fn base_platform(plan: &Plan, id: StageId, base: &Foundation) -> Vec<Finding> {
    let wanted = &plan.stage(id).platform;
    let source = &plan.dockerfile.stages[id.0];
    let mut findings = Findings { dockerfile: &plan.dockerfile, found: Vec::new() };
    let same = base.platform.os == wanted.os && base.platform.architecture == wanted.architecture;
    if base.known && !same {
        let message = format!("{} is for {}, and {wanted} was asked for", source.base, base.platform);
        let help = format!("choose an image that there is for {wanted}");
        let (comments, span) = (&source.comments, source.span);
        findings.add(Rule::InvalidBaseImagePlatform, comments, span, &source.base, message, help);
    }
    findings.found
}

/// What to do about a variable that is not set; `None`: it may come from a base that nobody has looked at.
pub(crate) fn undefined(name: &str, known: &[&str], globals: &Globals, base_known: bool) -> Option<String> {
    if globals.names().any(|global| global == name) {
        return Some(format!("a stage sees it once it declares it: ARG {name}"));
    }
    if Globals::is_predefined(name) || !base_known {
        return None;
    }
    Some(match nearest(name, known.iter().copied()) {
        Some(meant) => format!("did you mean ${meant}?"),
        None => format!("declare it above: ARG {name}, or ENV {name}=VALUE"),
    })
}

/// Whether a name sounds like that of a secret.
pub(crate) fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 10] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    let lower = name.to_lowercase();
    let mut words = lower.split(['_', '-', '.']);
    let public = words.clone().any(|word| word == "public");
    !public && words.any(|word| WORDS.contains(&word))
}

/// Whether the context has nothing at a path of COPY. Patterns may find other files, and folders have some left.
pub(crate) fn is_ignored(ignore: &Ignore, path: &str) -> bool {
    let path = path.trim_matches('/');
    let plain = !path.is_empty() && !path.contains(['*', '?', '[', '\\']);
    plain && ignore.excludes(path.as_bytes()) && !ignore.may_include_below(path.as_bytes())
}

/// Instructions of which a stage should have one.
#[derive(Debug, Default)]
pub(crate) struct Unique {
    last: BTreeMap<&'static str, Instruction>,
}

impl Unique {
    /// Takes note of one; gives the one before it.
    pub(crate) fn seen(&mut self, keyword: &'static str, instruction: &Instruction) -> Option<Instruction> {
        self.last.insert(keyword, instruction.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_found_by_its_name() {
        for rule in Rule::ALL {
            assert_eq!(Rule::named(&rule.to_string()), Some(rule));
            assert_eq!(Rule::named(&rule.to_string().to_lowercase()), Some(rule));
        }
        assert_eq!(Rule::named("NoSuchRule"), None);
    }

    #[test]
    fn secrets_are_known_by_words_of_their_names() {
        for name in ["TOKEN", "API_KEY", "my_password", "AWS_SECRET_ACCESS", "db-passwd", "apikey"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["KEYBOARD", "TOKENIZER", "PUBLIC_KEY", "monkey", "VERSION", "AUTHOR"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
