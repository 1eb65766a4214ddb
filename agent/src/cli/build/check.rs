//! `sampan build --check`: what the checks find in a Dockerfile, without an agent and without a look at base images.

use std::{collections::BTreeMap, io::Read};

use sampan_imagestore::{
    Platform,
    build::{Base, Dockerfile, Finding, Foundation, Options, Plan, StageId},
};

use super::{Arguments, source::Source};
use crate::cli::{failure::Failure, output::Output};

/// Exits with 1 when there is something to say, as docker does.
pub(super) async fn execute(source: Source, arguments: &Arguments, out: &mut Output) -> Result<u8, Failure> {
    let (name, text, ignore) = match source {
        Source::Folder(folder) => (folder.name, folder.dockerfile, Some(folder.ignore)),
        Source::Input { .. } => {
            let mut text = Vec::new();
            std::io::stdin()
                .read_to_end(&mut text)
                .map_err(|error| Failure::message(format!("cannot read standard input: {error}")))?;
            ("-".to_owned(), text, None)
        }
        Source::Url { url, .. } => {
            return Err(Failure::message(format!("--check needs the Dockerfile here; fetch {url} first")));
        }
    };
    let platform = Platform::default();
    let options = Options {
        target: arguments.target.clone(),
        build_args: super::build_args(&arguments.build_arg).into_iter().collect(),
        platform: platform.clone(),
        build_platform: platform,
        ignore,
        ..Options::default()
    };
    let findings =
        check(&name, &text, options).map_err(|diagnostic| Failure::message(diagnostic.to_string()))?;
    for finding in &findings {
        out.line(finding)?;
        out.line("")?;
    }
    match findings.len() {
        0 => out.line("No warnings")?,
        1 => out.line("1 warning")?,
        count => out.line(format_args!("{count} warnings"))?,
    }
    Ok(u8::from(!findings.is_empty()))
}

/// Every stage is checked, also those that the target does not need.
fn check(
    name: &str,
    text: &[u8],
    options: Options,
) -> Result<Vec<Finding>, Box<sampan_imagestore::build::Diagnostic>> {
    let plan = Plan::new(Dockerfile::parse(name, text)?, options)?;
    let mut findings = plan.findings().to_vec();
    let mut evaluated: BTreeMap<StageId, _> = BTreeMap::new();
    for stage in plan.stages() {
        let foundation = match &stage.base {
            Base::Scratch => Foundation::scratch(&stage.platform),
            Base::Stage(below) => Foundation::stage(&evaluated[below]),
            Base::Image(_) => Foundation::unknown(&stage.platform),
        };
        let result = plan.evaluate(stage.id, &foundation)?;
        findings.extend(result.findings.iter().cloned());
        evaluated.insert(stage.id, result);
    }
    findings.sort_by_key(|finding| finding.diagnostic.span);
    Ok(findings)
}
